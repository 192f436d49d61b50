//! Subcommands, and the settings before and behind their names.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::harness::{Ended, Program, Server, Setup, gateway};

const SUBCOMMANDS: [&str; 8] = ["serve", "check", "healthcheck", "messages", "token", "demo", "completions", "man"];

fn run(args: &[&str]) -> Ended {
    Program::start(&mut gateway(args)).end()
}

#[track_caller]
fn assert_usage_error(args: &[&str], parts: &[&str]) {
    let ended = run(args);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{args:?}: {ended:?}");
    for part in parts {
        assert!(ended.stderr.contains(part), "{args:?}: no {part:?} in {ended:?}");
    }
}

#[test]
fn it_serves_with_and_without_the_name_of_the_subcommand() {
    for args in [&["--memory"][..], &["serve", "--memory"], &["--memory", "serve"]] {
        let mut server = Setup::default().args(args).start();
        assert!(server.log().contains("data directory: none"), "{args:?}: {}", server.log());
        assert!(server.stop().success());
    }
}

#[test]
fn a_setting_may_stand_before_and_behind_the_subcommand() {
    let line = |args: &[&str], key: &str| {
        let printed = run(args).stdout;
        let line = printed.lines().find(|line| line.starts_with(key));
        line.unwrap_or_else(|| panic!("no {key}: {printed}")).to_owned()
    };
    for args in [&["--max-body", "1KiB", "check"][..], &["check", "--max-body", "1KiB"], &["check", "--max-body=1KiB"]]
    {
        let line = line(args, "max-body");
        assert!(line.contains("\"1KiB\"") && line.ends_with("# flag"), "{args:?}: {line}");
    }
    for args in [&["--memory", "check"][..], &["check", "--memory"], &["--memory", "check", "--memory"]] {
        assert!(line(args, "memory").contains("true"), "{args:?}");
    }
    let roots = line(&["--blend-root", "/a", "check", "--blend-root", "/b"], "blend-root");
    assert!(roots.contains("[\"/a\", \"/b\"]"), "{roots}");
    let message = "the argument '--max-body <SIZE>' cannot be used multiple times";
    assert_usage_error(&["--max-body", "1KiB", "check", "--max-body", "1KiB"], &[message]);
    assert_usage_error(&["check", "--max-body", "1KiB", "--max-body", "1KiB"], &[message]);
    // of nested subcommands too
    let twice = ["--api-bind", "127.0.0.1:1", "messages", "--api-bind", "127.0.0.1:1", "list"];
    assert_usage_error(&twice, &["'--api-bind <ADDR>' cannot be used multiple times"]);
    for args in [
        ["--api-bind", "127.0.0.1:0", "messages", "list"],
        ["messages", "--api-bind", "127.0.0.1:0", "list"],
        ["messages", "list", "--api-bind", "127.0.0.1:0"],
    ] {
        assert_usage_error(&args, &["--api-bind 127.0.0.1:0", "give the URL"]);
    }
}

#[test]
fn a_mistyped_name_is_an_error_that_suggests_the_right_one() {
    for (args, parts) in [
        (&["chekc"][..], ["'chekc'", "'check'"]),
        (&["--memory", "health-check"], ["'health-check'", "'healthcheck'"]),
        (&["messages", "lst"], ["'lst'", "'list'"]),
        (&["check", "--data-dri", "x"], ["'--data-dri'", "'--data-dir'"]),
        (&["messages", "list", "--jsn"], ["'--jsn'", "'--json'"]),
        (&["completions", "bsh"], ["'bsh'", "'bash'"]),
    ] {
        assert_usage_error(args, &parts);
    }
    assert_usage_error(&["nothing", "of", "that"], &["nothing", "--help"]);
    assert_usage_error(&["messages"], &["list", "publish"]);
    assert_usage_error(&["messages", "show"], &["ID"]);
}

#[test]
fn what_is_wrong_with_the_command_line_is_said_without_passwords() {
    let url = "amqp://farm:s3cr3t@broker";
    let equals = format!("--timeout={url}");
    for args in [&[url][..], &["check", url], &["healthcheck", &equals], &["completions", url], &["messages", url]] {
        let ended = run(args);
        assert_eq!(ended.code, Some(2), "{args:?}: {ended:?}");
        assert!(!ended.stderr.contains("s3cr3t") && ended.stderr.contains("***@broker"), "{args:?}: {ended:?}");
    }
}

#[test]
fn variables_that_are_no_text_are_named() {
    let no_text = OsStr::from_bytes(b"\xff");
    for (name, args) in [
        ("CONFIG", &["check"][..]),
        ("DATA_DIR", &["check"]),
        ("TOKEN", &["healthcheck"]),
        ("TOKEN", &["messages", "list"]),
    ] {
        let name = format!("USER_HTTP_SERVER_{name}");
        let ended = Program::start(gateway(args).env(&name, no_text)).end();
        assert_eq!(ended.code, Some(2), "{name}: {ended:?}");
        assert!(ended.stderr.contains(&name) && ended.stderr.contains("UTF-8"), "{name}: {ended:?}");
    }
    // the service does not use it
    let ended = Program::start(gateway(&["check", "--memory"]).env("USER_HTTP_SERVER_TOKEN", no_text)).end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn durations_without_an_end_are_refused() {
    let long = "18446744073709551615s";
    for args in [
        &["healthcheck", "--timeout", long][..],
        &["messages", "list", "--timeout", long],
        &["check", "--memory", "--amqp-url", "amqp://broker", "--amqp-settle", long],
        &["check", "--memory", "--keep-alive", long],
    ] {
        let ended = run(args);
        assert!(ended.code == Some(2) && ended.stderr.contains("at most 1d"), "{args:?}: {ended:?}");
    }
}

#[test]
fn a_subcommand_without_settings_refuses_them() {
    for args in [
        &["--data-dir", "x", "token"][..],
        &["token", "--data-dir", "x"],
        &["--memory", "man"],
        &["--config", "x", "demo"],
        &["--blend-root", "x", "completions", "bash"],
    ] {
        let flag = args.iter().find(|arg| arg.starts_with("--")).expect("a flag");
        assert_usage_error(args, &[flag, "unexpected argument"]);
    }
}

#[test]
fn every_subcommand_has_help_and_a_version() {
    let root = run(&["--help"]);
    for name in SUBCOMMANDS {
        assert!(root.stdout.lines().any(|line| line.trim() == name), "no {name} in {root:?}");
    }
    let nested = ["list", "show", "drop", "parked", "publish"];
    let all = SUBCOMMANDS.map(|name| vec![name]).into_iter().chain(nested.map(|name| vec!["messages", name]));
    for mut args in all.chain([vec![]]) {
        for flag in ["--help", "-h", "--version"] {
            args.push(flag);
            let ended = run(&args);
            assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{args:?}: {ended:?}");
            let expected = if flag == "--version" { env!("CARGO_PKG_VERSION") } else { "Usage: user-http-server" };
            assert!(ended.stdout.contains(expected), "{args:?}: {ended:?}");
            args.pop();
        }
    }
}

#[test]
fn clients_show_only_their_settings_in_their_help_but_accept_all() {
    let help = run(&["messages", "list", "--help"]).stdout;
    assert!(help.contains("--api-token-file") && !help.contains("--max-body"), "{help}");
    let server = Server::start();
    let api = server.api.to_string();
    let ended = run(&["messages", "list", "--max-body", "1KiB", "--api-bind", &api]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
}

#[test]
fn token_prints_a_token_and_its_hash() {
    let ended = run(&["token"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!((ended.stdout.len(), ended.stdout.lines().count()), (65, 1), "{ended:?}");
    assert!(ended.stderr.contains("sha256:"), "{ended:?}");
}
