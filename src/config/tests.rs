use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::*;

const CANARY: &str = "canary-3f9a";

fn no_files(_: &Path) -> io::Result<String> {
    Err(io::ErrorKind::NotFound.into())
}

fn file(text: &str) -> ConfigSources {
    ConfigSources { file: Some(("refrain.toml".into(), text.to_owned())), ..ConfigSources::default() }
}

fn environment(variables: &[(&str, &str)]) -> ConfigSources {
    let environment =
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    ConfigSources { environment, ..ConfigSources::default() }
}

fn default_keys() -> Vec<keys::ConfigKey> {
    keys::of(&Config::default())
}

fn load(sources: &ConfigSources) -> LoadedConfig {
    Config::load(sources, no_files).unwrap_or_else(|error| panic!("{error}"))
}

/// Returns the mistakes, one per line. Asserts that none contains the canary.
fn mistakes(sources: &ConfigSources) -> String {
    let error = Config::load(sources, no_files).expect_err("refused");
    let text = error.to_string();
    assert!(!text.contains(CANARY), "{text}");
    assert_eq!(text.lines().count(), error.mistakes().len(), "a line each: {text}");
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    text
}

#[test]
fn empty_sources_yield_the_defaults() {
    assert_eq!(load(&ConfigSources::default()).config, Config::default());
    assert_eq!(load(&file("")).config, Config::default());
}

#[test]
fn example_file_names_every_key_with_its_default() {
    let loaded = load(&file(include_str!("../../config/refrain.toml")));
    assert_eq!(loaded.config, Config::default());
    let keys = default_keys();
    let named: BTreeSet<_> = loaded.origins.keys().collect();
    let all: BTreeSet<_> = keys.iter().map(|key| key.name.as_str()).collect();
    assert_eq!(named, all);
}

#[test]
fn documentation_names_every_key_with_its_default() {
    let text = include_str!("../../docs/configuration.md");
    let rows: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | `"))
        .filter_map(|(key, rest)| Some((key, rest.split_once("` |")?.0)))
        .collect();
    let documented: Vec<_> = rows.iter().map(|(key, _)| *key).collect();
    let keys = default_keys();
    let all: Vec<_> = keys.iter().map(|key| key.name.as_str()).collect();
    assert_eq!(documented, all);
    for (key, default) in rows {
        let (section, field) = key.split_once('.').unwrap();
        let loaded = load(&file(&format!("[{section}]\n{field} = {default}")));
        assert_eq!(loaded.config, Config::default(), "{key}");
    }
}

#[test]
fn every_key_can_be_set_by_environment() {
    let samples = [
        ("server.listen", "0.0.0.0:9000"),
        ("server.max_request_bytes", "2MiB"),
        ("server.shutdown_timeout", "3s"),
        ("server.cors_origins", r#"["https://app.example:8443"]"#),
        ("admin.listen", "off"),
        ("admin.token", CANARY),
        ("admin.token_file", "/run/secrets/admin"),
        ("upstream.base_url", "http://localhost:1234"),
        ("upstream.token", CANARY),
        ("upstream.token_file", "/run/secrets/upstream"),
        ("upstream.connect_timeout", "1s"),
        ("upstream.request_timeout", "1m"),
        ("upstream.max_retries", "0"),
        ("upstream.max_batch", "7"),
        ("upstream.requests_per_second", "2"),
        ("upstream.burst", "3"),
        ("upstream.max_response_bytes", "64KiB"),
        ("tasks.services", r#"["producer", "mine"]"#),
        ("tasks.custom_services", r#"[{ name = "mine", class = "batch", max_batch = 20 }]"#),
        ("tasks.forward_headers", "[]"),
        ("tasks.pending_max_age", "0s"),
        ("tasks.pending_max_stale", "20s"),
        ("tasks.queue_timeout", "250ms"),
        ("tasks.max_wait", "0s"),
        ("tasks.default_wait", "10s"),
        ("tasks.max_ids", "50"),
        ("access.mode", "shared"),
        ("access.clients", r#"[{ name = "reports", key = "canary-3f9a" }]"#),
        (
            "access.tokens",
            r#"[{ name = "a", digest = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789ABCDEF" }]"#,
        ),
        ("access.recheck_after", "5m"),
        ("store.url", "sqlite:///data/refrain.db"),
        ("store.memory_bytes", "0"),
        ("store.max_bytes", "2GiB"),
        ("store.max_age", "30days"),
        ("log.format", "json"),
        ("log.filter", "warn,refrain=debug"),
    ];
    let defaults = default_keys();
    let names: Vec<_> = defaults.iter().map(|key| key.name.as_str()).collect();
    assert_eq!(samples.map(|(name, _)| name)[..], names);

    // A secret comes from its value or from a file, not from both.
    for with_files in [false, true] {
        let is_given = |name: &str| match name.strip_suffix("_file").unwrap_or(name) {
            "admin.token" | "upstream.token" => name.ends_with("_file") == with_files,
            _ => true,
        };
        let environment = defaults
            .iter()
            .zip(samples)
            .filter(|(key, _)| is_given(&key.name))
            .map(|(key, (_, value))| (key.variable(), value.to_owned()))
            .collect();
        let sources = ConfigSources { environment, ..ConfigSources::default() };
        let loaded = Config::load(&sources, |_| Ok(format!("{CANARY}\n"))).unwrap();
        for (key, default) in keys::of(&loaded.config).iter().zip(&defaults) {
            if is_given(&key.name) || key.is_secret() {
                assert_ne!(key.value, default.value, "{}", key.name);
            }
            assert_eq!(key.value.to_string().contains("***"), key.is_secret(), "{}", key.name);
        }
        assert_eq!(loaded.config.upstream.token.as_ref().unwrap().expose(), CANARY);
        assert_eq!(loaded.config.admin.token.as_ref().unwrap().expose(), CANARY);
    }
}

#[test]
fn flags_win_over_environment_and_environment_over_file() {
    let mut sources = file("[upstream]\nmax_batch = 2\nburst = 2\n[tasks]\nmax_ids = 2\n");
    sources.environment = environment(&[
        ("REFRAIN_UPSTREAM__BURST", "3"),
        ("REFRAIN_TASKS__MAX_IDS", "3"),
        ("REFRAIN_LOG__FILTER", "warn"),
    ])
    .environment;
    sources.flags = vec![FlagValue { flag: "--log-filter", key: "log.filter", value: "debug".to_owned() }];
    let loaded = load(&sources);
    assert_eq!(loaded.config.upstream.max_batch, 2);
    assert_eq!(loaded.config.upstream.burst, 3);
    assert_eq!(loaded.config.tasks.max_ids, 3);
    assert_eq!(loaded.config.log.filter, "debug");

    let shown = loaded.to_toml();
    for (line, origin) in [
        ("max_batch = 2 ", "# refrain.toml line 2"),
        ("burst = 3 ", "# REFRAIN_UPSTREAM__BURST"),
        ("filter = \"debug\" ", "# --log-filter"),
        ("max_retries = 4 ", "# default"),
    ] {
        assert!(
            shown.lines().any(|l| l.starts_with(line) && l.ends_with(origin)),
            "{line} {origin}\n{shown}"
        );
    }
}

#[test]
fn shown_configuration_loads_again_and_hides_secrets() {
    let mut sources = file(
        "[access]\nmode = \"shared\"\nclients = [{ name = \"a \\\"b\\\"\", key = \"canary-3f9a\" }]\n[upstream]\ntoken = \"canary-3f9a\"",
    );
    sources.environment = environment(&[("REFRAIN_STORE__MAX_BYTES", "1000")]).environment;
    let loaded = load(&sources);
    let shown = loaded.to_toml();
    assert!(!shown.contains(CANARY), "{shown}");
    assert!(shown.contains("token = \"***\""), "{shown}");
    assert!(shown.contains("token = \"\""), "an empty one stays empty: {shown}");
    let again = load(&file(&shown)).config;
    assert_eq!(again.access.clients[0].name, "a \"b\"");
    assert_eq!(again.store, loaded.config.store);
    assert_eq!(load(&file(&load(&ConfigSources::default()).to_toml())).config, Config::default());
}

#[test]
fn unknown_names_are_refused_with_a_suggestion() {
    for (text, expected) in [
        (
            "[upstream]\n\nmax_bacth = 3",
            "refrain.toml line 3: unknown key upstream.max_bacth; did you mean upstream.max_batch?",
        ),
        (
            "[upsteram]\nburst = 3",
            "refrain.toml line 1: unknown section [upsteram]; did you mean [upstream]?",
        ),
        ("burst = 3", "refrain.toml line 1: unknown key burst; did you mean upstream.burst?"),
        ("[tasks]\nburst = 3", "refrain.toml line 2: unknown key tasks.burst; did you mean upstream.burst?"),
        ("[tasks]\nzzzzzzzz = 3", "refrain.toml line 2: unknown key tasks.zzzzzzzz"),
        (
            "upstream.max_bacth = 3",
            "refrain.toml line 1: unknown key upstream.max_bacth; did you mean upstream.max_batch?",
        ),
        ("upstream = 3", "refrain.toml line 1: upstream must be a section, [upstream]"),
        ("[[upstream]]\nburst = 3", "refrain.toml line 1: upstream must be a section, [upstream]"),
        ("\"a\\nb\\u001b\" = 3", "refrain.toml line 1: unknown key a\\nb\\u{1b}"),
    ] {
        assert_eq!(mistakes(&file(text)), expected, "{text}");
    }
    assert_eq!(
        mistakes(&environment(&[("REFRAIN_UPSTREAM__MAX_BACTH", CANARY)])),
        "REFRAIN_UPSTREAM__MAX_BACTH: unknown key upstream.max_bacth; did you mean REFRAIN_UPSTREAM__MAX_BATCH?"
    );
    assert_eq!(
        mistakes(&environment(&[("REFRAIN__UPSTREAM__MAX_BATCH", "3")])),
        "REFRAIN__UPSTREAM__MAX_BATCH: unknown key upstream.max_batch; did you mean REFRAIN_UPSTREAM__MAX_BATCH?"
    );
    load(&environment(&[("REFRAIN_CONFIG", "x"), ("OTHER__KEY", "x"), ("REFRAIN_URL", "x")]));
}

#[test]
fn variable_with_a_missing_underscore_is_refused() {
    for (variable, hint) in [
        ("REFRAIN_TASKS_SERVICES", "; did you mean REFRAIN_TASKS__SERVICES?"),
        ("REFRAIN_TASK_SERVICES", "; did you mean REFRAIN_TASKS__SERVICES?"),
        ("REFRAIN_UPSTREAM_MAX_BATCH", "; did you mean REFRAIN_UPSTREAM__MAX_BATCH?"),
        ("REFRAIN_ADMIN_TOKEN", "; did you mean REFRAIN_ADMIN__TOKEN?"),
        ("REFRAIN_LOG_LEVEL", ""),
    ] {
        let expected =
            format!("{variable}: unknown variable; two underscores stand between section and key{hint}");
        assert_eq!(mistakes(&environment(&[(variable, CANARY)])), expected);
    }
    // Kubernetes sets these for services named "refrain" and "refrain-admin".
    for service in ["REFRAIN", "REFRAIN_ADMIN"] {
        for variable in [
            "SERVICE_HOST",
            "SERVICE_PORT",
            "SERVICE_PORT_ADMIN",
            "PORT",
            "PORT_8081_TCP",
            "PORT_8081_TCP_ADDR",
        ] {
            load(&environment(&[(&format!("{service}_{variable}"), "tcp://10.0.0.1:8081")]));
        }
    }
}

#[test]
fn short_forms_of_addresses_and_paths_are_accepted() {
    for (text, expected) in [
        ("localhost:80", "127.0.0.1:80"),
        ("LocalHost:0", "127.0.0.1:0"),
        (":8080", "0.0.0.0:8080"),
        ("[::1]:80", "[::1]:80"),
    ] {
        let loaded = load(&environment(&[("REFRAIN_SERVER__LISTEN", text)]));
        assert_eq!(loaded.config.server.listen.to_string(), expected);
    }
    for (text, expected) in [
        ("refrain.db", "sqlite://refrain.db"),
        ("/data/a:b.db", "sqlite:///data/a:b.db"),
        ("./a:b.db", "sqlite://./a:b.db"),
        ("sqlite:///data/x.db", "sqlite:///data/x.db"),
    ] {
        assert_eq!(load(&environment(&[("REFRAIN_STORE__URL", text)])).config.store.url, expected);
    }
}

#[test]
fn all_mistakes_are_reported_at_once_from_top_to_bottom() {
    let mut sources =
        file("[upstream]\nburst = \"x\"\nmax_bacth = 1\n[log]\nformat = \"xml\"\n[admin]\nlisten = 3");
    sources.environment = environment(&[("REFRAIN_TASKS__SERVICES", "producer")]).environment;
    assert_eq!(
        mistakes(&sources),
        "refrain.toml line 2: upstream.burst = \"x\": must be a whole number of at least 1\n\
         refrain.toml line 3: unknown key upstream.max_bacth; did you mean upstream.max_batch?\n\
         refrain.toml line 5: log.format = \"xml\": must be \"pretty\" or \"json\"\n\
         refrain.toml line 7: admin.listen = 3: must be an address with a port, such as \"127.0.0.1:8080\", \
         \"localhost:8080\" or \":8080\", or \"off\"\n\
         REFRAIN_TASKS__SERVICES: tasks.services = \"producer\": must be a list of service names \
         ([A-Za-z0-9_-], at most 64 characters) or exactly [\"*\"]"
    );
}

#[test]
fn invalid_values_are_refused() {
    for (key, values) in [
        (
            "server.listen",
            &["3", "\"\"", "\"localhost\"", "\"host:80\"", "\":x\"", "\":\"", "\"127.0.0.1\"", "\"off\""][..],
        ),
        ("server.max_request_bytes", &["\"0\"", "-1", "1.5", "\"x\"", "\"9EiB\"", "\"-1\""]),
        ("server.shutdown_timeout", &["5", "\"5\"", "\"5 parsecs\"", "\"-5s\"", "\"\"", "\"101years\""]),
        ("server.shutdown_timeout", &["\"18446744073709551615s 1000000000ns\""]),
        (
            "server.cors_origins",
            &[
                "\"*\"",
                "[\"*\", \"https://a.example\"]",
                "[\"a.example\"]",
                "[\"https://a.example/\"]",
                "[\"https://a.example/x\"]",
                "[\"https://u@a.example\"]",
                "[\"https://\"]",
                "[\"https://a.example:0\"]",
                "[\"null\"]",
                "[3]",
            ],
        ),
        ("admin.token_file", &["3", "\"a\\u0000b\""]),
        (
            "upstream.base_url",
            &[
                "3",
                "\"\"",
                "\"api.acedata.cloud\"",
                "\"ftp://a.example\"",
                "\"https://\"",
                "\"https://:80\"",
                "\"https://a.example:\"",
                "\"https://a.example:0\"",
                "\"https://a.example:99999\"",
                "\"https://a.example/v1\"",
                "\"https://a.example/?\"",
                "\"https://a.example?key=canary-3f9a\"",
                "\"https://a.example#x\"",
                "\"https://a.example/#\"",
                "\"https://user:canary-3f9a@a.example\"",
                "\"https://a b\"",
                "\"https://a\\\\b\"",
                "\"https:a.example\"",
                "\"/x\"",
                "\"*\"",
            ],
        ),
        ("upstream.token", &["3", "\"Bearer canary-3f9a\"", "\"canary-3f9aä\"", "[\"canary-3f9a\"]"]),
        ("upstream.connect_timeout", &["\"0s\""]),
        ("upstream.request_timeout", &["\"0s\""]),
        ("upstream.max_retries", &["-1", "21", "1.0", "\"4\"", "true"]),
        ("upstream.max_batch", &["0", "1001", "\"50\"", "99999999999999999999"]),
        (
            "upstream.requests_per_second",
            &["0", "-1.0", "0.0", "nan", "inf", "1e-9", "1000.1", "\"1\"", "1979-05-27"],
        ),
        ("upstream.burst", &["0", "5000000000"]),
        ("upstream.max_response_bytes", &["\"63KiB\"", "\"0\""]),
        (
            "tasks.services",
            &["[]", "[\"*\", \"producer\"]", "[\"a/b\"]", "[\"\"]", "\"producer\"", "[3]", "[\"a\\nb\"]"],
        ),
        (
            "tasks.custom_services",
            &[
                "\"x\"",
                "[\"x\"]",
                "[{ name = \"x\" }]",
                "[{ name = \"a b\", class = \"batch\" }]",
                "[{ name = \"x\", class = \"Batch\" }]",
                "[{ name = \"x\", class = \"single\", max_batch = 2 }]",
                "[{ name = \"x\", class = \"batch\", max_batch = 0 }]",
                "[{ name = \"x\", class = \"batch\", more = 1 }]",
                "[{ name = \"x\", class = \"batch\" }, { name = \"x\", class = \"pass\" }]",
            ],
        ),
        ("tasks.forward_headers", &["\"x\"", "[\"a b\"]", "[\"\"]", "[3]"]),
        ("tasks.pending_max_stale", &["\"0s\""]),
        ("tasks.queue_timeout", &["\"0s\""]),
        ("tasks.max_ids", &["0", "\"9\""]),
        ("access.mode", &["\"Token\"", "\"\"", "3"]),
        (
            "access.clients",
            &[
                "\"canary-3f9a\"",
                "[\"canary-3f9a\"]",
                "[{ name = \"a\" }]",
                "[{ key = \"canary-3f9a\" }]",
                "[{ name = \"\", key = \"canary-3f9a\" }]",
                "[{ name = \"a\", key = \"\" }]",
                "[{ name = \"a\", key = \"canary-3f9a b\" }]",
                "[{ name = \"a\", key = \"canary-3f9a\", kez = 1 }]",
                "[{ name = \"a\", key = \"canary-3f9a\" }, { name = \"b\", key = \"canary-3f9a\" }]",
                "[{ name = \"a\", key = \"canary-3f9a\" }, { name = \"a\", key = \"x\" }]",
            ],
        ),
        (
            "access.tokens",
            &[
                "\"canary-3f9a\"",
                "[\"canary-3f9a\"]",
                "[{ name = \"a\" }]",
                "[{ name = \"a\", digest = \"canary-3f9a\" }]",
                "[{ name = \"a\", digest = \"01234567\" }]",
                "[{ name = \"a\", digest = 3 }]",
                "[{ name = \"a\", digest = \"canary-3f9a\", more = 1 }]",
            ],
        ),
        (
            "store.url",
            &[
                "\"\"",
                "\"data/\"",
                "\"sqlite:refrain.db\"",
                "\"sqlite:/refrain.db\"",
                "\"sqlite://\"",
                "\"sqlite::memory:\"",
                "\"sqlite://:memory:\"",
                "\"sqlite://a.db?mode=ro\"",
                "\"sqlite:///data/\"",
                "\"postgres://a\"",
                "3",
            ],
        ),
        ("store.memory_bytes", &["\"\"", "\"many\"", "true"]),
        ("log.format", &["\"xml\"", "3"]),
        (
            "log.filter",
            &[
                "\"\"",
                "\"inof\"",
                "\"warning\"",
                "\"loud\"",
                "\"refrain=loud\"",
                "\"info,hyper\"",
                "\"refrain=\"",
                "\"a[b\"",
                "3",
            ],
        ),
    ] {
        let (section, field) = key.split_once('.').unwrap();
        for value in values {
            let text = mistakes(&file(&format!("[{section}]\n{field} = {value}")));
            assert!(text.starts_with(&format!("refrain.toml line 2: {key} ")), "{key} = {value}: {text}");
            let rules = [": must ", ": client ", ": service ", ": token "];
            assert!(rules.iter().any(|rule| text.contains(rule)), "{key} = {value}: {text}");
            assert_eq!(text.lines().count(), 1, "{text}");
        }
    }
}

#[test]
fn valid_values_are_accepted() {
    for text in [
        "[upstream]\nbase_url = \"HTTPS://API.acedata.cloud/\"",
        "[server]\nmax_request_bytes = 1048576",
        "[server]\nmax_request_bytes = \"1048576\"",
        "[upstream]\nrequests_per_second = 1",
        "[upstream]\nmax_batch = 0x32",
        "[tasks]\nforward_headers = [\"X-Record-Exempt\", \"x-record-exempt\"]",
        "[admin]\ntoken = \"\"\n[upstream]\ntoken_file = \"\"",
    ] {
        assert_eq!(load(&file(text)).config, Config::default(), "{text}");
    }
    let loaded = load(&file("[server]\ncors_origins = [\"HTTPS://App.example:443\", \"tauri://localhost\"]"));
    assert_eq!(loaded.config.server.cors_origins, ["https://app.example", "tauri://localhost"]);
    let loaded = load(&file("[upstream]\nbase_url = \"http://[::1]:9/\""));
    assert_eq!(loaded.config.upstream.base_url.authority().unwrap().as_str(), "[::1]:9");
    let loaded = load(&file("[server]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\""));
    assert_eq!(loaded.config.admin.listen, Some(loaded.config.server.listen));
    for filter in [
        "off",
        "hyper=debug",
        "refrain",
        "info, refrain::store",
        "info,refrain::batcher=debug",
        "TRACE",
        "refrain[request]=trace",
    ] {
        assert_eq!(load(&environment(&[("REFRAIN_LOG__FILTER", filter)])).config.log.filter, filter);
    }
}

#[test]
fn dangerous_headers_are_refused_in_forward_headers() {
    for name in [
        "Authorization",
        "cookie",
        "host",
        "content-length",
        "content-type",
        "accept",
        "accept-encoding",
        "connection",
        "transfer-encoding",
        "te",
        "trailer",
        "upgrade",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "x-api-key",
        "payment-signature",
        "expect",
        "range",
        "if-none-match",
    ] {
        let text = mistakes(&file(&format!("[tasks]\nforward_headers = [\"{name}\"]")));
        assert!(text.contains(&format!("must not name {}", name.to_lowercase())), "{text}");
    }
}

#[test]
fn file_that_is_not_toml_is_refused_without_quoting_it() {
    for text in [
        "[upstream]\ntoken = canary-3f9a",
        "[upstream]\ntoken = \"canary-3f9a",
        "[upstream]\ntoken = 'canary-3f9a\"",
        "[upstream]\ntoken \"canary-3f9a\"",
        "[upstream]\ntoken = \"canary-3f9a\" x",
        "[upstream]\ntoken = \"canary-3f9a\\q\"",
        "[upstream]\ntoken = \"a\"\ntoken = \"canary-3f9a\"",
    ] {
        let text = mistakes(&file(text));
        assert!(text.starts_with("refrain.toml line ") && text.contains("not TOML: "), "{text}");
    }
}

#[test]
fn invalid_name_or_digest_is_reported_with_its_entry() {
    let digest = |digit: &str| digit.repeat(64);
    for (entries, expected) in [
        (
            vec![("a", digest("0")), ("b", "canary-3f9a".to_owned())],
            "token 2 (\"b\") must have as its digest",
        ),
        (vec![("a", digest("0")), ("b", digest("0"))], "token 2 (\"b\") has the digest of an earlier one"),
        (vec![("a", digest("0")), ("a", digest("1"))], "token 2 has the name of an earlier one, \"a\""),
        (vec![("other", digest("0"))], "token 1 must be like"),
    ] {
        let entries: Vec<String> = entries
            .iter()
            .map(|(name, digest)| format!("{{ name = \"{name}\", digest = \"{digest}\" }}"))
            .collect();
        let text = mistakes(&file(&format!("[access]\ntokens = [{}]", entries.join(", "))));
        assert!(text.contains(expected) && !text.contains(CANARY), "{text}");
    }
}

#[test]
fn violated_rules_between_keys_are_reported() {
    for (text, expected) in [
        (
            "[access]\nmode = \"shared\"\nclients = [{ name = \"a\", key = \"canary-3f9a\" }]",
            "needs the token of the team",
        ),
        ("[access]\nmode = \"shared\"\n[upstream]\ntoken = \"canary-3f9a\"", "needs at least one client"),
        (
            "[upstream]\ntoken = \"canary-3f9a\"",
            "refrain.toml line 2: upstream.token is only for access.mode = \"shared\"",
        ),
        (
            "[[access.clients]]\nname = \"a\"\nkey = \"canary-3f9a\"",
            "access.clients is only for access.mode = \"shared\"",
        ),
        ("[admin]\nlisten = \"0.0.0.0:8081\"", "needs admin.token"),
        ("[admin]\nlisten = \"10.0.0.1:8081\"", "needs admin.token"),
        ("[admin]\nlisten = \"[::]:8081\"", "needs admin.token"),
        ("[admin]\nlisten = \"127.0.0.1:8080\"", "set different ports"),
        ("[admin]\nlisten = \"[::ffff:127.0.0.1]:8080\"", "set different ports"),
        ("[server]\nlisten = \"0.0.0.0:8081\"", "set different ports"),
        ("[server]\nlisten = \"[::]:8081\"", "set different ports"),
        ("[upstream]\nbase_url = \"http://localhost:8080\"", "sent back to refrain"),
        ("[upstream]\nbase_url = \"http://[::1]\"\n[server]\nlisten = \"[::]:80\"", "sent back to refrain"),
    ] {
        let text = mistakes(&file(text));
        assert!(text.contains(expected), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    for text in [
        "[admin]\nlisten = \"[::1]:8080\"",
        "[admin]\nlisten = \"127.0.0.2:8081\"",
        "[admin]\nlisten = \"0.0.0.0:8081\"\ntoken = \"x\"",
        "[admin]\nlisten = \"off\"",
        "[access]\nmode = \"shared\"\n[[access.clients]]\nname = \"a\"\nkey = \"b\"\n[upstream]\ntoken = \"c\"",
    ] {
        load(&file(text));
    }
}

#[test]
fn tokens_are_read_from_files() {
    let sources = file("[admin]\ntoken_file = \"/run/secrets/admin\"");
    let with = |text: &'static str| Config::load(&sources, move |_| Ok(text.to_owned()));
    for text in ["canary-3f9a", "canary-3f9a\n", "canary-3f9a\r\n"] {
        let loaded = with(text).unwrap();
        assert_eq!(loaded.config.admin.token.as_ref().unwrap().expose(), CANARY);
        assert!(loaded.to_toml().contains("token = \"***\""));
    }
    for (text, expected) in
        [("", "the file is empty"), ("\n", "the file is empty"), ("canary-3f9a x", "must be visible ASCII")]
    {
        let error = with(text).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("/run/secrets/admin"), "{error}");
        assert!(!error.contains(CANARY), "{error}");
    }
    assert!(mistakes(&sources).contains("admin.token_file = \"/run/secrets/admin\": cannot be read"));

    let mut both = file("[admin]\ntoken = \"canary-3f9a\"");
    both.environment = environment(&[("REFRAIN_ADMIN__TOKEN_FILE", "/run/secrets/admin")]).environment;
    assert_eq!(
        mistakes(&both),
        "REFRAIN_ADMIN__TOKEN_FILE: admin.token_file and admin.token (refrain.toml line 2) are both set; keep one of them"
    );
}

#[test]
fn strings_are_plain_and_numbers_are_toml_in_the_environment() {
    let keys = default_keys();
    let is_string = |name: &str| keys.iter().find(|key| key.name == name).unwrap().is_string();
    assert!(is_string("store.max_bytes") && is_string("tasks.max_wait") && !is_string("upstream.burst"));
}

#[test]
fn size_is_shown_in_the_largest_exact_unit() {
    for (bytes, shown) in [(0, "0"), (1, "1B"), (1000, "1000B"), (1536, "1536B"), (64 << 20, "64MiB")] {
        assert_eq!(notation::exact_size(bytes), shown);
    }
}

#[test]
fn unknown_and_uninterpreted_services_are_refused() {
    assert_eq!(
        mistakes(&file("[tasks]\nservices = [\"sunoo\", \"captcha\", \"zzz\", \"flux\"]")),
        "refrain.toml line 2: tasks.services: refrain does not know the service \"sunoo\"; did you mean \"suno\"?\n\
         refrain.toml line 2: tasks.services: refrain always passes \"captcha\" through (docs/services.md); remove it \
         from the list\n\
         refrain.toml line 2: tasks.services: refrain does not know the service \"zzz\"; the services are listed in \
         docs/services.md, and tasks.custom_services adds others"
    );
    assert_eq!(
        mistakes(&file("[tasks]\ncustom_services = [{ name = \"suno\", class = \"pass\" }]")),
        "refrain.toml line 2: tasks.custom_services: refrain knows \"suno\" already (docs/services.md); remove it from \
         the list"
    );
}

#[test]
fn services_are_those_of_the_catalogue_and_the_custom_ones() {
    let names = |text: &str| -> Vec<String> {
        load(&file(text)).config.tasks.interpreted_services().names().map(str::to_owned).collect()
    };
    assert_eq!(names("[tasks]\nservices = [\"suno\", \"flux\"]"), ["flux", "suno"]);
    let custom =
        "custom_services = [{ name = \"mine\", class = \"single\" }, { name = \"not\", class = \"pass\" }]";
    assert_eq!(names(&format!("[tasks]\nservices = [\"suno\"]\n{custom}")), ["mine", "suno"]);
    let all = names("");
    assert!(all.contains(&"producer".to_owned()) && !all.contains(&"captcha".to_owned()));
}
