//! Configuration: sources, precedence, and refused values.

use crate::support::{assert_one_line_error, run};

#[test]
fn invalid_value_is_refused_with_the_name_of_its_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let cases = [
        ("REFRAIN_UPSTREAM__BASE_URL", "https://api.example/v1", "upstream.base_url"),
        ("REFRAIN_UPSTREAM__BASE_URL", "https://user:pass@api.example", "upstream.base_url"),
        ("REFRAIN_UPSTREAM__BASE_URL", "https://api.example/?a=b", "upstream.base_url"),
        ("REFRAIN_UPSTREAM__BASE_URL", "https://api.example/#x", "upstream.base_url"),
        ("REFRAIN_UPSTREAM__BASE_URL", "ftp://api.example", "upstream.base_url"),
        ("REFRAIN_UPSTREAM__BASE_URL", "api.example", "upstream.base_url"),
        ("REFRAIN_UPSTREAM__MAX_BATCH", "0", "upstream.max_batch"),
        ("REFRAIN_UPSTREAM__MAX_BATCH", "many", "upstream.max_batch"),
        ("REFRAIN_UPSTREAM__REQUESTS_PER_SECOND", "-1", "upstream.requests_per_second"),
        ("REFRAIN_UPSTREAM__REQUESTS_PER_SECOND", "nan", "upstream.requests_per_second"),
        ("REFRAIN_SERVER__LISTEN", "8080", "server.listen"),
        ("REFRAIN_SERVER__SHUTDOWN_TIMEOUT", "soon", "server.shutdown_timeout"),
        ("REFRAIN_STORE__MEMORY_BYTES", "64 potatoes", "store.memory_bytes"),
        ("REFRAIN_STORE__URL", "postgres://x", "store.url"),
        ("REFRAIN_TASKS__SERVICES", "[\"a b\"]", "tasks.services"),
        ("REFRAIN_TASKS__SERVICES", "producer", "tasks.services"),
        ("REFRAIN_ACCESS__MODE", "open", "access.mode"),
        ("REFRAIN_LOG__FORMAT", "xml", "log.format"),
        ("REFRAIN_LOG__FILTER", "loud", "log.filter"),
        ("REFRAIN_TASKS_SERVICES", "[\"suno\"]", "REFRAIN_TASKS__SERVICES"),
        ("REFRAIN_ADMIN__LISTEN", ":0", "admin.token"),
        ("REFRAIN_ADMIN__LISTEN", "0.0.0.0:0", "admin.token"),
        ("REFRAIN_UPSTREAM__TOKEN", "t", "upstream.token"),
        ("REFRAIN_ACCESS__CLIENTS", "[{name = \"a\", key = \"k\"}]", "access.clients"),
        ("REFRAIN_UPSTREAM__TOKEN_FILE", "/no/such/file", "upstream.token_file"),
    ];
    for (variable, value, key) in cases {
        for command in ["check", "serve"] {
            let output = run(folder.path(), &[command], &[(variable, value)]);
            let line = assert_one_line_error(&output, 64, &[key]);
            assert!(!line.contains("pass@") && !line.contains(":pass"), "{line}");
        }
    }
    assert!(!folder.path().join("refrain.db").exists(), "nothing was begun");
}

#[test]
fn shared_mode_requires_a_token_and_clients() {
    let folder = tempfile::tempdir().expect("a folder");
    let shared = ("REFRAIN_ACCESS__MODE", "shared");
    let token = ("REFRAIN_UPSTREAM__TOKEN", "t");
    let clients = ("REFRAIN_ACCESS__CLIENTS", "[{name = \"a\", key = \"k\"}]");
    assert_one_line_error(&run(folder.path(), &["check"], &[shared, clients]), 64, &["upstream.token"]);
    assert_one_line_error(&run(folder.path(), &["check"], &[shared, token]), 64, &["access.clients"]);
    let fine = run(folder.path(), &["check"], &[shared, token, clients]);
    assert_eq!(fine.status.code(), Some(0), "{fine:?}");
}

#[test]
fn unknown_key_is_refused_with_a_suggestion() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = run(folder.path(), &["check"], &[("REFRAIN_UPSTREAM__MAX_BACH", "5")]);
    assert_one_line_error(&output, 64, &["upstream.max_bach", "REFRAIN_UPSTREAM__MAX_BATCH"]);
    let fine = run(folder.path(), &["check"], &[("REFRAIN_SOMETHING", "x"), ("REFRAINED__A", "x")]);
    assert_eq!(fine.status.code(), Some(0), "unrelated variables are ignored: {fine:?}");

    let file = folder.path().join("refrain.toml");
    std::fs::write(&file, "[upstream]\nmax_bach = 5\n").expect("written");
    assert_one_line_error(
        &run(folder.path(), &["check"], &[]),
        64,
        &["upstream.max_bach", "max_batch", "refrain.toml"],
    );
    std::fs::write(&file, "[upstraem]\nmax_batch = 5\n").expect("written");
    assert_one_line_error(&run(folder.path(), &["check"], &[]), 64, &["upstraem", "upstream"]);
    std::fs::write(&file, "[upstream\n").expect("written");
    assert_one_line_error(&run(folder.path(), &["check"], &[]), 64, &["refrain.toml"]);
    assert_one_line_error(
        &run(folder.path(), &["check", "--config", "missing.toml"], &[]),
        64,
        &["missing.toml"],
    );
}

#[test]
fn two_mistakes_are_reported_on_two_lines() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = run(
        folder.path(),
        &["check"],
        &[("REFRAIN_UPSTREAM__MAX_BATCH", "0"), ("REFRAIN_LOG__FORMAT", "xml")],
    );
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), stderr.trim_end().lines().count()), (Some(64), 2), "{stderr}");
}

#[test]
fn flags_override_environment_and_environment_overrides_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = |arguments: &[&str], environment: &[(&str, &str)]| {
        let output = run(folder.path(), &[&["config"], arguments].concat(), environment);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    assert!(config(&[], &[]).contains("127.0.0.1:8080"));
    std::fs::write(folder.path().join("refrain.toml"), "[server]\nlisten = \"127.0.0.1:1111\"\n")
        .expect("written");
    std::fs::write(folder.path().join("other.toml"), "[server]\nlisten = \"127.0.0.1:4444\"\n")
        .expect("written");
    let variable = ("REFRAIN_SERVER__LISTEN", "127.0.0.1:2222");
    assert!(config(&[], &[]).contains("127.0.0.1:1111"), "refrain.toml of the working directory");
    assert!(config(&["--config", "other.toml"], &[]).contains("127.0.0.1:4444"));
    assert!(config(&[], &[variable]).contains("127.0.0.1:2222"));
    assert!(config(&["--listen", "127.0.0.1:3333"], &[variable]).contains("127.0.0.1:3333"));
}

#[test]
fn config_command_shows_every_value_and_hides_every_secret() {
    let folder = tempfile::tempdir().expect("a folder");
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "canary-file\n").expect("written");
    let environment = [
        ("REFRAIN_ACCESS__MODE", "shared"),
        ("REFRAIN_UPSTREAM__TOKEN", "canary-team"),
        ("REFRAIN_ACCESS__CLIENTS", "[{name = \"reports\", key = \"canary-client\"}]"),
        ("REFRAIN_ADMIN__TOKEN_FILE", secret.to_str().expect("UTF-8")),
    ];
    for command in ["config", "check"] {
        let output = run(folder.path(), &[command], &environment);
        let shown =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{shown}");
        assert!(!shown.contains("canary"), "{shown}");
        if command == "config" {
            for word in ["reports", "requests_per_second", "pending_max_age", "recheck_after", "cors_origins"]
            {
                assert!(shown.contains(word), "{word}: {shown}");
            }
        }
    }
    // An invalid secret is not shown either.
    let bad = run(folder.path(), &["check"], &[("REFRAIN_ADMIN__TOKEN", "canary token\u{1}")]);
    assert_eq!(bad.status.code(), Some(64));
    assert!(!String::from_utf8_lossy(&bad.stderr).contains("canary"), "{bad:?}");
}
