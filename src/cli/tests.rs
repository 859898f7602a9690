use super::*;

fn run_with(arguments: &[&str], environment: &[(&str, &str)]) -> Result<(), CliError> {
    let arguments = ["refrain"].iter().chain(arguments).map(OsString::from);
    let environment = environment.iter().map(|(name, value)| (name.into(), value.into()));
    run(arguments, &Environment::new(environment))
}

fn mistakes(arguments: &[&str], environment: &[(&str, &str)]) -> Vec<String> {
    match run_with(arguments, environment) {
        Err(CliError::Usage(mistakes)) => mistakes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn command_line_definition_is_valid() {
    Cli::command().debug_assert();
}

#[test]
fn global_options_are_taken_before_and_after_the_command() {
    for arguments in [["refrain", "--listen", "x", "check"], ["refrain", "check", "--listen", "x"]] {
        let cli = Cli::try_parse_from(arguments).unwrap();
        assert_eq!(cli.command, Some(Command::Check));
        assert_eq!(cli.options.listen.as_deref(), Some("x"));
    }
}

#[test]
fn check_succeeds_or_reports_all_mistakes() {
    run_with(&["check", "--config", "config/refrain.toml"], &[]).unwrap();
    run_with(&["check"], &[("REFRAIN_CONFIG", "config/refrain.toml"), ("REFRAIN_UPSTREAM__BURST", "2")])
        .unwrap();
    assert_eq!(
        mistakes(&["check", "--listen", "x", "--log-format", "xml"], &[("REFRAIN_UPSTREAM__BURST", "x")]),
        [
            "REFRAIN_UPSTREAM__BURST: upstream.burst = \"x\": must be a whole number of at least 1",
            "--listen: server.listen = \"x\": must be an address with a port, such as \"127.0.0.1:8080\", \
             \"localhost:8080\" or \":8080\"",
            "--log-format: log.format = \"xml\": must be \"pretty\" or \"json\"",
        ]
    );
}

#[test]
fn missing_configuration_file_is_an_error_only_if_named() {
    let [mistake] = &mistakes(&["check", "--config", "no/such.toml"], &[])[..] else { panic!("one mistake") };
    assert!(mistake.starts_with("--config no/such.toml: cannot be read: "), "{mistake}");
    let [mistake] = &mistakes(&["check"], &[("REFRAIN_CONFIG", "no/such.toml")])[..] else {
        panic!("one mistake")
    };
    assert!(mistake.starts_with("REFRAIN_CONFIG no/such.toml: cannot be read: "), "{mistake}");
    run_with(&["check"], &[("REFRAIN_CONFIG", "")]).unwrap();
}

#[test]
fn wrong_usage_is_reported_in_one_line() {
    for (arguments, expected) in [
        (&["serv"][..], "unrecognized subcommand 'serv'; a similar subcommand exists: 'serve'"),
        (&["--lisen", "x"], "unexpected argument '--lisen' found; a similar argument exists: '--listen'"),
        (
            &["check", "--listen"],
            "a value is required for '--listen <ADDRESS>' but none was supplied; see refrain --help",
        ),
        (&["demo", "--store", "sqlite://x"], "--store cannot be used with demo"),
        (&["simulate", "--config", "x"], "--config cannot be used with simulate"),
    ] {
        assert_eq!(mistakes(arguments, &[]), [expected]);
    }
}

#[test]
fn help_and_version_succeed() {
    run_with(&["--version"], &[]).unwrap();
    run_with(&["--help"], &[]).unwrap();
}

#[test]
fn simulator_may_use_the_default_admin_port() {
    let cli = Cli::try_parse_from(["refrain", "simulate", "--listen", "127.0.0.1:8081"]).unwrap();
    assert_eq!(simulate::config(&cli.options).unwrap().server.listen.port(), 8081);
    let cli = Cli::try_parse_from(["refrain", "simulate"]).unwrap();
    assert_eq!(simulate::config(&cli.options).unwrap().server.listen.port(), 0);
}

#[cfg(unix)]
#[test]
fn variable_that_is_not_utf8_is_refused_if_it_is_ours() {
    use std::os::unix::ffi::OsStringExt;

    let bad = OsString::from_vec(vec![0xff]);
    let environment = Environment::new([("REFRAIN_LOG__FILTER".into(), bad.clone()), ("OTHER".into(), bad)]);
    match run(["refrain", "check"].map(OsString::from), &environment) {
        Err(CliError::Usage(mistakes)) => assert_eq!(mistakes, ["REFRAIN_LOG__FILTER: not UTF-8"]),
        other => panic!("{other:?}"),
    }
}
