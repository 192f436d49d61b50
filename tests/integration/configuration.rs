//! The command line, the environment and the file.

use std::process::Command;

use crate::harness::{Farm, Server, Setup, request};

const SETTINGS: [&str; 15] = [
    "http-bind",
    "http-tls-cert",
    "http-tls-key",
    "api-bind",
    "api-tls-cert",
    "api-tls-key",
    "api-client-ca",
    "amqp-url",
    "amqp-ca-file",
    "data-dir",
    "blend-root",
    "max-body",
    "max-buffered",
    "buffer-ttl",
    "memory",
];

fn variable(setting: &str) -> String {
    format!("USER_HTTP_SERVER_{}", setting.replace('-', "_").to_uppercase())
}

/// The limit of a body in KiB that a server goes by, of those that the test is about.
fn limit_of(server: &Server) -> usize {
    let takes = |kib: usize| {
        let head = r#"{"USER_ID": "u", "MAIN_DATA": {"TYPE": "TEST", "DATA": ""}}"#;
        let body = format!("{head}{}", " ".repeat(kib * 1024 - head.len()));
        request(server.http, "POST", "/", &[], body.as_bytes()).status == 200
    };
    *[8, 4, 2, 1].iter().find(|&&kib| takes(kib)).expect("a limit of at least 1 KiB")
}

#[test]
fn flags_beat_the_environment_that_beats_the_file_that_beats_the_defaults() {
    let file = |setup: Setup| setup.config("max-body = \"1KiB\"\n");
    let environment = |setup: Setup| setup.env("USER_HTTP_SERVER_MAX_BODY", "2KiB");
    let flag = |setup: Setup| setup.args(["--max-body", "4KiB"]);
    assert_eq!(limit_of(&Setup::default().start()), 8, "the default is larger than all of these");
    assert_eq!(limit_of(&file(Setup::default()).start()), 1);
    assert_eq!(limit_of(&environment(file(Setup::default())).start()), 2);
    assert_eq!(limit_of(&flag(environment(file(Setup::default()))).start()), 4);
    assert_eq!(limit_of(&flag(file(Setup::default())).start()), 4);
    assert_eq!(limit_of(&environment(Setup::default()).start()), 2);
}

#[test]
fn the_environment_may_name_the_file() {
    let setup = Setup::default();
    let path = setup.path("elsewhere.toml");
    std::fs::write(&path, "max-body = \"1KiB\"\n").expect("a configuration file");
    let server = setup.env("USER_HTTP_SERVER_CONFIG", path.to_str().expect("UTF-8")).start();
    assert_eq!(limit_of(&server), 1);
}

#[test]
fn a_bad_value_is_an_error_that_names_the_setting_its_source_and_what_is_accepted() {
    for (setting, value, accepted) in [
        ("http-bind", "somewhere", "127.0.0.1:10000"),
        ("api-bind", "127.0.0.1:99999", "127.0.0.1:10000"),
        ("amqp-url", "http://localhost", "amqp://"),
        ("max-body", "much", "64MiB"),
        ("max-body", "-1", "64MiB"),
        ("max-body", "0", "at least 1 byte"),
        ("max-body", "4GiB", "less than 4GiB"),
        ("max-inflight", "0", "at least 1 byte"),
        ("min-transfer-rate", "0", "at least 1 byte"),
        ("max-buffered", "1 parsec", "64MiB"),
        ("buffer-ttl", "soon", "10s"),
        ("buffer-ttl", "10", "10s"),
        ("frame-ack", "disk", "stored or broker"),
        // nothing would ever confirm a frame
        ("frame-ack", "broker", "--amqp-url"),
        ("buffer-store", "mysql://farm@db/farm", "postgres://user:password@host:port/database"),
        ("postgres-require-sync", "one", "a number from 0 to 100"),
        // nothing would have standbys
        ("postgres-require-sync", "1", "--buffer-store"),
    ] {
        let in_file = Setup::default().config(&format!("{setting} = {value:?}\n"));
        let file = in_file.path("config.toml").display().to_string();
        let in_environment = Setup::default().env(&variable(setting), value);
        let as_flag = Setup::default().args([format!("--{setting}={value}")]);
        let flag = format!("--{setting}");
        for (setup, name, source) in [
            (in_file, setting, file.as_str()),
            (in_environment, &variable(setting), "environment"),
            (as_flag, &flag, "command line"),
        ] {
            let (status, log) = setup.start_refused();
            assert!(status.code().is_some_and(|code| code != 0), "{setting}: {status}");
            for part in [name, source, accepted] {
                assert!(log.contains(part), "{setting} = {value:?}: no {part:?} in:\n{log}");
            }
            if !["amqp-url", "buffer-store"].contains(&setting) {
                assert!(log.contains(value), "{setting}: the value {value:?} is not in:\n{log}");
            }
        }
    }
}

#[test]
fn an_unknown_key_of_the_file_or_flag_is_an_error_that_names_it_its_source_and_the_nearest_setting() {
    let in_file = Setup::default().config("max-bodies = \"1KiB\"\n");
    let file = in_file.path("config.toml").display().to_string();
    let as_flag = Setup::default().args(["--max-bodies", "1KiB"]);
    for (setup, parts) in [
        (in_file, [r#"unknown key "max-bodies""#, file.as_str(), r#"did you mean "max-body"?"#]),
        (as_flag, ["'--max-bodies'", "'--max-body'", "--help"]),
    ] {
        let (status, log) = setup.start_refused();
        assert_eq!(status.code(), Some(2), "{log}");
        for part in parts {
            assert!(log.contains(part), "no {part:?} in:\n{log}");
        }
    }
    let (status, log) = Setup::default().config("max-body = 1\nmax_body = 2\n").start_refused();
    assert!(status.code() == Some(2) && log.contains("max_body") && log.contains("given twice"), "{status}: {log}");
}

#[test]
fn an_unknown_variable_is_a_warning_that_suggests_the_nearest_setting_and_never_shows_its_value() {
    let injected = [
        ("PORT", "tcp://10.96.0.7:10000"),
        ("SERVICE_HOST", "10.96.0.7"),
        ("SERVICE_PORT", "10000"),
        ("SERVICE_PORT_WORKERS", "10000"),
        ("PORT_10000_TCP", "tcp://10.96.0.7:10000"),
        ("PORT_10000_TCP_PROTO", "tcp"),
        ("PORT_10000_TCP_PORT", "10000"),
        ("PORT_10000_TCP_ADDR", "10.96.0.7"),
        // of a Service user-http-server-max-body
        ("MAX_BODY_SERVICE_HOST", "10.96.0.8"),
        ("MAX_BODY_PORT", "tcp://10.96.0.8:80"),
    ];
    let mistaken = [
        ("MAX_BODDY", "1KiB", "MAX_BODY"),
        ("AMQP_URI", "amqp://u:s3cr3t@host", "AMQP_URL"),
        ("CONFIG_FILE", "a.toml", "CONFIG"),
    ];
    let mut setup = Setup::default();
    for (name, value) in injected.into_iter().chain(mistaken.map(|(name, value, _)| (name, value))) {
        setup = setup.env(&format!("USER_HTTP_SERVER_{name}"), value);
    }
    let server = setup.start();
    assert_eq!(limit_of(&server), 8, "none of them sets anything");
    let log = server.log();
    let warning = |name: &str| {
        let name = format!("{:?} in the environment", format!("USER_HTTP_SERVER_{name}"));
        let line = log.lines().find(|line| line.contains(&name)).unwrap_or_else(|| panic!("no {name} in:\n{log}"));
        assert!(line.contains(" WARN "), "{line}");
        line
    };
    for (name, _) in injected {
        assert!(warning(name).contains("enableServiceLinks: false"), "{log}");
    }
    for (name, _, nearest) in mistaken {
        assert!(warning(name).contains(&format!("did you mean USER_HTTP_SERVER_{nearest}?")), "{log}");
    }
    assert!(!log.contains("s3cr3t"), "{log}");
}

#[test]
fn an_empty_value_for_a_file_a_folder_or_the_broker_is_an_error_wherever_it_stands() {
    for setting in [
        "worker-token-file",
        "api-token-file",
        "http-tls-cert",
        "http-tls-key",
        "api-tls-cert",
        "api-tls-key",
        "api-client-ca",
        "amqp-ca-file",
        "amqp-url",
        "data-dir",
        "blend-root",
    ] {
        let flag = format!("--{setting}");
        for (setup, name) in [
            (Setup::default().args([&format!("{flag}=")]), flag.as_str()),
            (Setup::default().env(&variable(setting), ""), &variable(setting)),
            (Setup::default().config(&format!("{setting} = \"\"\n")), setting),
        ] {
            let (status, log) = setup.start_refused();
            assert_eq!(status.code(), Some(2), "{name}: {log}");
            assert!(log.contains(name) && log.contains("it is empty"), "{name}: {log}");
        }
    }
    for roots in ["a:", ":a", "a::b"] {
        let (status, log) = Setup::default().env(&variable("blend-root"), roots).start_refused();
        assert!(status.code() == Some(2) && log.contains("it is empty"), "{roots:?}: {log}");
    }
    let (status, log) = Setup::default().config("blend-root = []\n").start_refused();
    assert!(status.code() == Some(2) && log.contains("blend-root") && log.contains("it is empty"), "{log}");
    let (status, log) = Setup::default().args(["--config", ""]).start_refused();
    assert!(status.code() == Some(2) && log.contains("--config") && log.contains("empty"), "{log}");
}

#[test]
fn an_empty_variable_for_anything_else_counts_as_not_set() {
    let setup = Setup::default().config("max-body = \"1KiB\"\n");
    let server = setup.env(&variable("max-body"), "").env("USER_HTTP_SERVER_CONFIG", "").start();
    assert_eq!(limit_of(&server), 1);
    assert_eq!(limit_of(&Setup::default().env("USER_HTTP_SERVER_CONFIG", "").start()), 8);
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_that_names_it() {
    let broken = Setup::default().config("max-body = \n");
    let path = broken.path("config.toml").display().to_string();
    let (status, log) = broken.start_refused();
    assert!(!status.success() && log.contains(&path), "{status}: {log}");
    let (status, log) = Setup::default().args(["--config", "/no/such/file.toml"]).start_refused();
    assert!(!status.success() && log.contains("/no/such/file.toml"), "{status}: {log}");
}

#[test]
fn an_address_in_use_or_a_root_that_is_missing_is_an_error_that_names_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    for flag in ["--http-bind", "--api-bind"] {
        let (status, log) = Setup::default().args([flag, &address]).start_refused();
        assert!(!status.success() && log.contains(&address), "{flag}: {status}: {log}");
    }
    let (status, log) = Setup::default().args(["--blend-root", "/no/such/root"]).start_refused();
    assert!(status.code() == Some(2) && log.contains("/no/such/root"), "{status}: {log}");
}

#[test]
fn help_lists_every_flag_with_its_variable_and_exits_with_0() {
    let binary = env!("CARGO_BIN_EXE_user-http-server");
    let output = Command::new(binary).arg("--help").output().expect("the server");
    let help = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success());
    for setting in SETTINGS.into_iter().chain(["config"]) {
        assert!(help.contains(&format!("--{setting}")), "no --{setting} in:\n{help}");
        assert!(help.contains(&variable(setting)), "no {} in:\n{help}", variable(setting));
    }
    assert!(Command::new(binary).arg("--version").output().expect("the server").status.success());
}

#[test]
fn at_start_it_logs_its_addresses_its_data_directory_and_a_line_to_try() {
    let server = Server::start();
    for text in [
        format!("worker server listening on http://{}", server.http),
        format!("API server listening on http://{}", server.api),
        server.setup().data_dir().display().to_string(),
        "curl ".to_owned(),
    ] {
        server.wait_for_log(&text);
    }
}

#[test]
fn a_password_never_reaches_the_log() {
    let secret = "s3cr3t-Pa55";
    let broken = |url: &str| Setup::default().args(["--amqp-url", &url.replace("SECRET", secret)]);
    for url in
        ["amqp://user:SECRET@host:port/", "http://user:SECRET@host/", "amqp://user:SECRET@[::1", "user:SECRET@host"]
    {
        let (status, log) = broken(url).start_refused();
        assert!(!status.success(), "{url}");
        assert!(!log.contains(secret), "{url}:\n{log}");
    }
    let (status, log) = Setup::default().config(&format!("amqp-url = \"amqp://u:{secret}@h:x\"\n")).start_refused();
    assert!(!status.success() && !log.contains(secret), "{log}");
    let (status, log) = Setup::default().config(&format!("amqp-url = \"amqp://u:{secret}@h:1\n")).start_refused();
    assert!(!status.success() && !log.contains(secret), "{log}");

    let mut server = broken("amqp://user:SECRET@127.0.0.1:1/%2f").env("RUST_LOG", "trace").start();
    server.wait_for_log("127.0.0.1:1");
    assert!(server.stop().success());
    assert!(!server.log().contains(secret), "{}", server.log());
}

/// These tests need the farm's Python programs.
mod python {
    use super::*;

    #[test]
    fn every_setting_can_stand_in_the_file() {
        let setup = Setup::default();
        let (data, blends) = (setup.path("the-data"), setup.path("the-blends"));
        std::fs::create_dir(&blends).expect("a blend root");
        std::fs::write(blends.join("scene.blend"), "found").expect("a .blend file");
        let text = format!(
            "http-bind = \"127.0.0.1:0\"\napi-bind = \"127.0.0.1:0\"\ndata-dir = {data:?}\nblend-root = [{blends:?}]\n\
             max-body = \"64KiB\"\nmax-buffered = \"1MiB\"\nbuffer-ttl = \"10s\"\nmemory = false\n"
        );
        let mut farm = Farm::of(setup.config(&text));
        farm.leave_blend("id-1", "scene.blend");
        assert!(farm.fetch_value("id-1").contains("b'found'"));
        assert!(data.is_dir() && !farm.setup().data_dir().exists());
        assert_eq!(limit_of(&farm.server), 8);
    }

    #[test]
    fn every_setting_can_stand_in_the_environment() {
        let setup = Setup::default();
        let (data, blends) = (setup.path("the-data"), setup.path("the-blends"));
        std::fs::create_dir(&blends).expect("a blend root");
        std::fs::write(blends.join("scene.blend"), "found").expect("a .blend file");
        let mut setup = setup;
        for (setting, value) in [
            ("http-bind", "127.0.0.1:0"),
            ("api-bind", "127.0.0.1:0"),
            ("data-dir", data.to_str().expect("UTF-8")),
            ("blend-root", blends.to_str().expect("UTF-8")),
            ("max-body", "64KiB"),
            ("max-buffered", "1MiB"),
            ("buffer-ttl", "10s"),
            ("memory", "false"),
        ] {
            setup = setup.env(&variable(setting), value);
        }
        let mut farm = Farm::of(setup);
        farm.leave_blend("id-1", "scene.blend");
        assert!(farm.fetch_value("id-1").contains("b'found'"));
        assert!(data.is_dir() && !farm.setup().data_dir().exists());
        assert_eq!(limit_of(&farm.server), 8);
    }
}
