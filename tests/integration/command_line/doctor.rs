//! `user-http-server doctor`, without a broker: what it says of disk, files, ports and the gateway, and that it changes
//! nothing.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use crate::harness::{Ended, Program, Setup, files_below, free_address, gateway};

/// Runs it with the configuration of `setup`.
pub fn doctor(setup: &Setup) -> Ended {
    Program::start(setup.command().arg("doctor")).end()
}

/// Checks that a line starts with `start` and contains `parts`.
#[track_caller]
pub fn assert_line(ended: &Ended, start: &str, parts: &[&str]) {
    let fits = |line: &str| line.starts_with(start) && parts.iter().all(|part| line.contains(part));
    assert!(ended.stdout.lines().any(fits), "no line {start:?} with {parts:?}: {ended:?}");
}

/// Checks what holds of every line, and that the exit code tells whether anything failed.
#[track_caller]
pub fn assert_sound(ended: &Ended) {
    for line in ended.stdout.lines() {
        let level = ["ok      ", "warning ", "failed  "].iter().find(|level| line.starts_with(**level));
        assert!(level.is_some() && line.contains(": "), "{line:?}");
        assert!(!line.starts_with("failed") || line.contains("; type: "), "{line:?}");
    }
    let has_failed = ended.stdout.lines().any(|line| line.starts_with("failed"));
    assert_eq!(ended.code, Some(i32::from(has_failed)), "{ended:?}");
}

/// A configuration whose ports are known.
pub fn with_ports() -> Setup {
    let [http, api] = [(); 2].map(|()| free_address().to_string());
    Setup::default().args(["--http-bind", &http, "--api-bind", &api, "--max-connections", "100"])
}

#[test]
fn before_the_first_start_nothing_fails_and_nothing_is_created() {
    let setup = with_ports();
    let ended = doctor(&setup);
    assert_sound(&ended);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for (start, part) in [
        ("ok      configuration", "valid"),
        ("ok      broker", "none configured"),
        ("ok      data directory", "the gateway creates it"),
        ("ok      disk space", "are free"),
        ("warning gateway", "systemctl start"),
        ("ok      port", "worker server is free"),
        ("ok      port", "API server is free"),
        ("ok      blend root", "can be read"),
        ("ok      clock", "T"),
        ("ok      open files", "100"),
    ] {
        assert_line(&ended, start, &[part]);
    }
    assert!(!setup.data_dir().exists() && files_below(&setup.path("")).is_empty(), "it has left something");
}

#[test]
fn folders_are_named_from_the_root_wherever_the_shell_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = fs::canonicalize(folder.path()).expect("it is there");
    let [http, api] = [(); 2].map(|()| free_address().to_string());
    let mut command = gateway(&["doctor", "--http-bind", &http, "--api-bind", &api]);
    let ended = Program::start(command.current_dir(&here)).end();
    assert_sound(&ended);
    let shown = here.display();
    let typed = format!("type: mkdir -p {shown}/blends");
    let found = format!("blend root: {shown}/blends (./blends in this folder) does not exist");
    assert_line(&ended, "warning blend root", &[&found, &typed]);
    assert_line(&ended, "ok      data directory", &[&format!("data directory: {shown}/data does not exist")]);
}

#[test]
fn a_running_gateway_is_found_by_its_lock_its_ports_and_its_answer_and_is_not_disturbed() {
    let mut server = with_ports().start();
    let before = files_below(&server.setup().data_dir());
    let ended = doctor(server.setup());
    assert_sound(&ended);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let pid = server.pid().to_string();
    assert_line(&ended, "ok      data directory", &["is used by the gateway with process id", &pid]);
    assert_line(&ended, "ok      gateway", &["it takes work: broker none, store ok"]);
    for port in [server.http, server.api] {
        assert_line(&ended, "ok      port", &[&port.to_string(), "user-http-serve", &pid]);
    }
    assert_eq!(files_below(&server.setup().data_dir()), before);

    server.kill9();
    let ended = doctor(server.setup());
    assert_line(&ended, "warning data directory", &["was not stopped in order"]);
}

#[test]
fn what_is_wrong_is_found_although_other_probes_fail_and_each_failure_says_what_to_type() {
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = other.local_addr().expect("its address").to_string();
    let setup = Setup::default();
    let api = free_address().to_string();
    let setup = setup.args(["--http-bind", &taken, "--api-bind", &api, "--max-connections", "100"]);
    fs::create_dir(setup.data_dir()).expect("writable");
    fs::set_permissions(setup.data_dir(), fs::Permissions::from_mode(0o755)).expect("its owner may");
    let future = fs::File::create(setup.data_dir().join("from-the-future")).expect("writable");
    future.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(86_400)).expect("a time");
    let ended = doctor(&setup);
    assert_sound(&ended);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let port = taken.rsplit(':').next().expect("a port");
    assert_line(&ended, "failed  port", &[&taken, "another program", &format!("type: ss -ltnp 'sport = :{port}'")]);
    assert_line(&ended, "warning data directory", &["mode 0755", "type: chmod 700"]);
    assert_line(&ended, "warning clock", &["was set back", "timedatectl"]);
    assert_line(&ended, "ok      port", &["API server is free"]);
}

#[test]
fn an_invalid_configuration_is_a_failure_and_the_rest_is_examined() {
    let setup = with_ports().args(["--max-body", "0"]);
    let ended = doctor(&setup);
    assert_sound(&ended);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_line(&ended, "failed  configuration", &["--max-body", "type: user-http-server check"]);
    assert_line(&ended, "warning configuration", &["are not probed"]);
    assert_line(&ended, "ok      disk space", &["are free"]);
    assert_line(&ended, "ok      clock", &[]);
}

#[test]
fn secrets_that_others_can_read_are_a_warning_and_are_not_shown() {
    let setup = with_ports();
    let token = "a-token-of-at-least-thirty-two-characters";
    let (file, config) = (setup.path("tokens"), setup.path("gateway.toml"));
    fs::write(&file, format!("{token}\n")).expect("writable");
    let url = "amqp://farm:hidden@127.0.0.1:1/";
    fs::write(&config, format!("amqp-url = {url:?}\n")).expect("writable");
    for (path, mode) in [(&file, 0o604), (&config, 0o644)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its owner may");
    }
    let [file, config] = [file, config].map(|path| path.display().to_string());
    let setup = setup.args(["--api-token-file", &file, "--config", &config]);
    let ended = doctor(&setup);
    assert_sound(&ended);
    // root may leave a file to the group of the service
    let allowed = if rustix::process::geteuid().is_root() { "640" } else { "600" };
    for (path, mode) in [(&file, "0604"), (&config, "0644")] {
        assert_line(&ended, "warning secrets", &[path, mode, &format!("type: chmod {allowed} {path}")]);
    }
    for path in [&file, &config] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o640)).expect("its owner may");
    }
    let is_warned = doctor(&setup).stdout.contains("warning secrets");
    assert_eq!(is_warned, allowed == "600", "readable by the group only");
    let said = format!("{}{}", ended.stdout, ended.stderr);
    assert!(!said.contains(token) && !said.contains("hidden"), "{said}");
    assert_line(
        &ended,
        "failed  broker",
        &["amqp://farm:***@127.0.0.1:1/", "cannot connect", "type: rabbitmqctl status"],
    );
}
