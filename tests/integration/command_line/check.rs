//! `user-http-server check`: the configuration, and everything that would stop the service from starting.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::harness::{
    Ca, Ended, Program, Server, Setup, files_below, free_address, gateway, request, without_settings,
};

fn check(setup: &Setup) -> Ended {
    Program::start(setup.command().arg("check")).end()
}

/// The value and the origin of a setting, as printed.
#[track_caller]
fn row(ended: &Ended, key: &str) -> (String, String) {
    let mut rows = ended.stdout.lines().filter_map(|line| {
        let (name, rest) = line.split_once('=')?;
        let (value, origin) = rest.rsplit_once(" # ")?;
        (name.trim() == key).then(|| (value.trim().to_owned(), origin.to_owned()))
    });
    rows.next().unwrap_or_else(|| panic!("no {key}: {ended:?}"))
}

/// The names of all flags, from the help.
fn keys() -> Vec<String> {
    let help = Program::start(&mut gateway(&["--help"])).end().stdout;
    let flags = help.lines().filter_map(|line| line.trim_start().strip_prefix("--"));
    let keys: Vec<_> = flags.map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect();
    assert!(keys.len() > 30, "{help}");
    keys
}

#[track_caller]
fn assert_refused(setup: &Setup, lines: &[&[&str]]) {
    let ended = check(setup);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    for parts in lines {
        let is_reported = |line: &str| line.starts_with("error: ") && parts.iter().all(|part| line.contains(part));
        assert!(ended.stderr.lines().any(is_reported), "no line with {parts:?}: {ended:?}");
    }
    let errors = ended.stderr.lines().filter(|line| line.starts_with("error: "));
    assert_eq!(errors.count(), lines.len(), "more errors than {lines:?}: {ended:?}");
}

#[test]
fn it_prints_every_setting_with_its_value_and_its_origin_whatever_rust_log_says() {
    for level in ["off", "error", "trace"] {
        let setup =
            Setup::default().config("max-outbox = \"1GiB\"\nmax-body = \"1MiB\"\nblend-root = [\".\", \"/\"]\n");
        let file = setup.path("config.toml").display().to_string();
        let setup = setup
            .env("RUST_LOG", level)
            .env("USER_HTTP_SERVER_MAX_BODY", "2MiB")
            .env("USER_HTTP_SERVER_BUFFER_TTL", "1h")
            .args(["--buffer-ttl", "2h", "--memory"]);
        let ended = check(&setup);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(ended.stderr.contains("the configuration is valid"), "{ended:?}");
        for key in keys() {
            row(&ended, &key);
        }
        for (key, value, origin) in [
            ("config", format!("{file:?}"), "flag".to_owned()),
            ("buffer-ttl", "\"2h\"".to_owned(), "flag".to_owned()),
            ("memory", "true".to_owned(), "flag".to_owned()),
            ("max-body", "\"2MiB\"".to_owned(), "environment variable USER_HTTP_SERVER_MAX_BODY".to_owned()),
            ("max-outbox", "\"1GiB\"".to_owned(), format!("file {file}")),
            ("blend-root", "[\".\", \"/\"]".to_owned(), format!("file {file}")),
            ("max-inflight", "\"1GiB\"".to_owned(), "default".to_owned()),
            ("amqp-url", "(not set)".to_owned(), "default".to_owned()),
        ] {
            assert_eq!(row(&ended, key), (value, origin), "{key}");
        }
    }
}

#[test]
fn passwords_are_masked_wherever_they_stand() {
    let url = "amqp://farm:s3cr3t-Pa55@broker:5673/farm";
    for setup in [
        Setup::default().args(["--amqp-url", url]),
        Setup::default().env("USER_HTTP_SERVER_AMQP_URL", url),
        Setup::default().config(&format!("amqp-url = {url:?}\n")),
    ] {
        let ended = check(&setup);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(row(&ended, "amqp-url").0, "\"amqp://farm:***@broker:5673/farm\"");
        assert!(!format!("{ended:?}").contains("s3cr3t"), "{ended:?}");
    }
    let (one, two) = ("amqp://farm:s3cr3t@one", "amqps://farm:s3cr3t@two");
    for setup in [
        Setup::default().args(["--amqp-url", one, "--amqp-url", two]),
        Setup::default().env("USER_HTTP_SERVER_AMQP_URL", &format!("{one}:{two}")),
        Setup::default().config(&format!("amqp-url = [{one:?}, {two:?}]\n")),
    ] {
        let ended = check(&setup);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let masked = "[\"amqp://farm:***@one:5672/%2F\", \"amqps://farm:***@two:5671/%2F\"]";
        assert_eq!(row(&ended, "amqp-url").0, masked);
        assert!(!format!("{ended:?}").contains("s3cr3t"), "{ended:?}");
    }
    let ended = check(&Setup::default().args(["--buffer-store", "postgres://farm:s3cr3t@one,two:5433/messages"]));
    assert_eq!(row(&ended, "buffer-store").0, "\"postgres://farm:***@one:5432,two:5433/messages\"");
    for url in ["postgres://farm:s3cr3t@one:port/messages", "farm:s3cr3t@one", "postgres://farm:s3cr3t@one/a?b=c"] {
        let ended = check(&Setup::default().args(["--buffer-store", url]));
        assert_eq!((ended.code, row(&ended, "buffer-store").0.as_str()), (Some(2), "\"(not shown)\""), "{ended:?}");
        assert!(!format!("{ended:?}").contains("s3cr3t"), "{ended:?}");
    }
    for url in ["amqp://farm:s3cr3t@broker:port", "farm:s3cr3t@broker", "http://farm:s3cr3t@broker"] {
        let ended = check(&Setup::default().args(["--amqp-url", url]));
        assert_eq!((ended.code, row(&ended, "amqp-url").0.as_str()), (Some(2), "\"(not shown)\""), "{ended:?}");
        assert!(!format!("{ended:?}").contains("s3cr3t"), "{ended:?}");
    }
    let ended = check(&Setup::default().args(["--amqp-exchange", "amqp://farm:s3cr3t@broker"]));
    assert!(!format!("{ended:?}").contains("s3cr3t"), "a URL in the wrong setting: {ended:?}");
    for url in ["farm:s3cr3t@broker:1", "farm:pa://s3cr3t@h:1", "amqp://farm:s3cr3t@h", "a:b@c/d:s3cr3t@h"] {
        let keys = || keys().into_iter().filter(|key| !["help", "version", "config", "memory"].contains(&&**key));
        let given = keys().map(|key| format!("--{key}={url}")).filter(|arg| !arg.contains("allow-open-api"));
        let as_flags = check(&Setup::default().args(given));
        let variable = |key: String| format!("USER_HTTP_SERVER_{}", key.replace('-', "_").to_uppercase());
        let in_environment = keys().fold(Setup::default(), |setup, key| setup.env(&variable(key), url));
        for ended in [as_flags, check(&in_environment), Program::start(&mut gateway(&["check", "--config", url])).end()]
        {
            assert_eq!(ended.code, Some(2), "{url}: {ended:?}");
            assert!(!format!("{ended:?}").contains("s3cr3t"), "{url}: {ended:?}");
        }
    }
}

#[test]
fn a_file_without_an_end_is_refused_wherever_a_file_is_given() {
    let (ca, zero) = (Ca::new(), "/dev/zero");
    let [cert, key] = ca.issue_files("server");
    for args in [
        vec!["--worker-token-file", zero],
        vec!["--api-tls-cert", zero, "--api-tls-key", &key],
        vec!["--api-tls-cert", &cert, "--api-tls-key", zero],
        vec!["--api-tls-cert", &cert, "--api-tls-key", &key, "--api-client-ca", zero],
        vec!["--amqp-url", "amqps://broker", "--amqp-ca-file", zero],
    ] {
        assert_refused(&Setup::default().args(args), &[&[zero, "more than 16 MiB"]]);
    }
    let ended = Program::start(&mut gateway(&["check", "--config", zero])).end();
    assert!(ended.code == Some(2) && ended.stderr.contains("more than 16 MiB"), "{ended:?}");
}

#[test]
fn a_named_pipe_is_refused_wherever_a_file_is_given_and_one_of_the_shell_is_read() {
    let (ca, folder) = (Ca::new(), tempfile::tempdir().expect("a folder"));
    let [cert, key] = ca.issue_files("server");
    let pipe = folder.path().join("pipe").display().to_string();
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    for args in [
        vec!["--worker-token-file", &pipe],
        vec!["--api-tls-cert", &pipe, "--api-tls-key", &key],
        vec!["--api-tls-cert", &cert, "--api-tls-key", &pipe],
        vec!["--api-tls-cert", &cert, "--api-tls-key", &key, "--api-client-ca", &pipe],
        vec!["--amqp-url", "amqps://broker", "--amqp-ca-file", &pipe],
    ] {
        assert_refused(&Setup::default().args(args), &[&[&pipe, "named pipe", "give a regular file"]]);
    }
    for (subcommand, code) in [("check", 2), ("serve", 2), ("doctor", 1)] {
        let ended = Program::start(&mut gateway(&[subcommand, "--config", &pipe])).end();
        let output = ended.stdout.clone() + &ended.stderr;
        assert!(ended.code == Some(code) && output.contains("named pipe"), "{subcommand}: {ended:?}");
    }
    let shell = |arguments: &str| {
        let mut command = Command::new("bash");
        command.args(["-c", &format!("exec \"$0\" check --data-dir /tmp {arguments}")]).arg(gateway(&[]).get_program());
        Program::start(without_settings(&mut command)).end()
    };
    let ended = shell("--config <(echo 'max-body = \"3MiB\"') --worker-token-file <(echo a-token-0123456789)");
    assert_eq!((ended.code, row(&ended, "max-body").0.as_str()), (Some(0), "\"3MiB\""), "{ended:?}");
}

#[test]
fn a_folder_that_cannot_keep_files_is_no_data_directory() {
    let ended = Program::start(&mut gateway(&["check", "--data-dir", "/proc/self"])).end();
    assert!(ended.code == Some(2) && ended.stderr.contains("/proc/self"), "{ended:?}");
}

#[test]
fn a_damaged_key_in_the_data_directory_is_an_error_of_check_and_of_a_start() {
    let setup = Setup::default();
    fs::create_dir(setup.data_dir()).expect("a data directory");
    let key = setup.data_dir().join("etag.key");
    fs::write(&key, "damaged").expect("a file");
    let key = key.display().to_string();
    assert_refused(&setup, &[&["--data-dir", &key, "it is damaged", "delete it"]]);
    let (status, log) = setup.start_refused();
    assert!(status.code() == Some(1) && log.contains(&key) && log.contains("delete it"), "{status}: {log}");
}

#[test]
fn values_cannot_write_to_the_terminal() {
    let ended = check(&Setup::default().args(["--amqp-exchange", "a\u{1b}[31m\nb", "--max-body", "\u{1b}[2J"]));
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(!ended.stdout.contains('\u{1b}') && !ended.stderr.contains('\u{1b}'), "{ended:?}");
    assert_eq!(row(&ended, "amqp-exchange").0, "\"a\\u001b[31m\\u000ab\"");
}

#[test]
fn every_error_is_reported_with_its_setting_its_origin_and_what_would_be_right() {
    let (ca, setup) = (Ca::new(), Setup::default());
    let [cert, _] = ca.issue_files("server");
    let [_, other_key] = ca.issue_files("other");
    let short = setup.path("tokens");
    fs::write(&short, "short\n").expect("a token file");
    let short = short.display().to_string();
    let setup = setup
        .config("max-inflight = \"much\"\nmax-bodies = \"1KiB\"\n")
        .env("USER_HTTP_SERVER_MAX_BODY", "0")
        .args(["--keep-alive", "soon", "--http-tls-cert", &cert, "--http-tls-key", &other_key])
        .args(["--api-tls-cert", "/no/cert.pem", "--api-tls-key", "/no/key.pem", "--api-client-ca", "/no/ca.pem"])
        .args(["--worker-token-file", "/no/tokens", "--api-token-file", &short])
        .args(["--blend-root", "/no/blends", "--blend-root", "/no/other", "--data-dir", "/dev/null/data"])
        .args(["--frame-ack", "broker", "--amqp-ca-file", "/no/amqp.pem"]);
    let file = setup.path("config.toml").display().to_string();
    assert_refused(
        &setup,
        &[
            &["unknown key \"max-bodies\"", &file, "did you mean \"max-body\"?"],
            &["max-inflight = \"much\"", &file, "64MiB"],
            &["USER_HTTP_SERVER_MAX_BODY=\"0\" in the environment", "at least 1 byte"],
            &["--keep-alive \"soon\" on the command line", "expected a duration"],
            &["--http-tls-key", &other_key, "does not belong to the certificate", &cert, "give the key"],
            &["--api-tls-cert \"/no/cert.pem\"", "cannot be read", "correct the path"],
            &["--api-tls-key \"/no/key.pem\"", "cannot be read", "correct the path"],
            &["--api-client-ca \"/no/ca.pem\"", "cannot be read", "correct the path"],
            &["--worker-token-file \"/no/tokens\"", "cannot read the token file", "correct the path"],
            &["--api-token-file", &short, "line 1", "at least 16 characters"],
            &["--blend-root \"/no/blends\"", "expected a directory", "create it"],
            &["--blend-root \"/no/other\"", "expected a directory"],
            &["--data-dir \"/dev/null/data\"", "/dev/null is not a folder"],
            &["--frame-ack \"broker\"", "--amqp-url"],
            &["--amqp-ca-file", "amqps://"],
        ],
    );
}

#[test]
fn an_open_api_is_refused_and_two_servers_on_one_address() {
    let open = |args: &[&str]| Setup::default().args(["--api-bind", "0.0.0.0:10001"]).args(args);
    assert_refused(&open(&[]), &[&["--api-bind \"0.0.0.0:10001\"", "--api-token-file", "--allow-open-api"]]);
    // what would guard it is wrong, which is another error
    assert_refused(&open(&["--api-token-file", "/no/tokens"]), &[&["--api-token-file"]]);
    assert_eq!(check(&open(&["--allow-open-api"])).code, Some(0));
    let both = Setup::default().args(["--api-bind", "127.0.0.1:1234", "--http-bind", "0.0.0.0:1234"]);
    assert_refused(&both, &[&["--api-bind \"127.0.0.1:1234\"", "--http-bind 0.0.0.0:1234", "its own port"]]);
    let (status, log) = both.start_refused();
    assert!(status.code() == Some(2) && log.contains("its own port"), "{status}: {log}");
}

#[test]
fn the_nodes_of_a_cluster_have_the_same_vhost_and_a_queue_has_one_of_two_types() {
    let args = ["--amqp-url", "amqp://one/a", "--amqp-url", "amqp://two/b", "--amqp-queue-type", "stream"];
    let refused: &[&[&str]] = &[&["--amqp-queue-type \"stream\"", "classic or quorum"], &["--amqp-url", "the same"]];
    assert_refused(&Setup::default().args(args), refused);
    let right = ["--amqp-url", "amqp://one/a", "--amqp-url", "amqp://two/a", "--amqp-queue-type", "quorum"];
    assert_eq!(check(&Setup::default().args(right)).code, Some(0));
}

#[test]
fn a_missing_blend_root_is_an_error_unless_it_is_the_default() {
    let missing = Setup::default().args(["--blend-root", "/no/such/root"]);
    assert_refused(&missing, &[&["--blend-root \"/no/such/root\" on the command line", "expected a directory"]]);
    let ended = check(&Setup::default().default_blend_root());
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn a_data_directory_that_can_be_created_is_fine_and_nothing_is_left_behind() {
    let setup = Setup::default();
    let data = setup.path("a/b/c").display().to_string();
    let setup = setup.args(["--data-dir", &data]);
    let before = files_below(&setup.path(""));
    let ended = check(&setup);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!setup.path("a").exists() && files_below(&setup.path("")) == before);
    // a relative one
    let ended = check(&Setup::default().args(["--data-dir", "data"]));
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn a_data_directory_where_not_even_root_can_create_one_is_an_error() {
    for data in ["/proc/user-http-server/data", "/dev/null/data"] {
        let setup = Setup::default().args(["--data-dir", data]);
        assert_refused(&setup, &[&["--data-dir", data, "cannot be created"]]);
        let (status, log) = setup.start_refused();
        assert!(!status.success() && log.contains(data), "{status}: {log}");
    }
}

/// A program that may not do more than the rights of a file say, even if the tests run as root.
fn without_privileges() -> Vec<&'static str> {
    if rustix::process::geteuid().is_root() {
        vec!["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    } else {
        vec!["env"]
    }
}

fn close(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a file of the test's own");
}

#[test]
fn a_data_directory_that_cannot_be_written_is_an_error() {
    let setup = Setup::default().wrapper(&without_privileges());
    let data = setup.data_dir();
    fs::create_dir_all(data.join("buffer")).expect("a data directory");
    fs::write(data.join("buffer/LOCK"), "").expect("a file");
    assert_eq!(check(&setup).code, Some(0));
    let denied = |path: &Path| {
        let path = path.display().to_string();
        assert_refused(&setup, &[&["--data-dir", "on the command line", &path, "Permission denied", "chown or chmod"]]);
    };
    // files of another user, as a start by root leaves them
    close(&data.join("buffer/LOCK"), 0o000);
    denied(&data.join("buffer/LOCK"));
    close(&data.join("buffer/LOCK"), 0o600);
    close(&data.join("buffer"), 0o500);
    denied(&data.join("buffer"));
    close(&data.join("buffer"), 0o700);
    close(&data, 0o500);
    denied(&data);
    close(&data, 0o700);
    assert_eq!(check(&setup).code, Some(0));
    // one that would have to be created
    let closed = setup.path("closed");
    fs::create_dir(&closed).expect("a folder");
    close(&closed, 0o500);
    let inside = closed.join("data").display().to_string();
    let setup = Setup::default().wrapper(&without_privileges()).args(["--data-dir", &inside]);
    assert_refused(&setup, &[&["--data-dir", "cannot be created", &closed.display().to_string()]]);
}

#[test]
fn a_limit_of_open_files_that_is_too_low_is_an_error() {
    let setup = Setup::default().wrapper(&["prlimit", "--nofile=100"]);
    assert_refused(&setup, &[&["--max-connections", "limit of 100 open files is too low", "LimitNOFILE="]]);
}

#[test]
fn it_runs_beside_the_server_and_disturbs_nothing() {
    let [http, api] = [free_address(), free_address()].map(|address| address.to_string());
    let server: Server = Setup::default().args(["--http-bind", &http, "--api-bind", &api]).start();
    let data = || {
        let stamp = |path: &Path| fs::metadata(path).and_then(|of| of.modified()).expect("a file");
        let files = files_below(&server.setup().data_dir());
        files.into_iter().map(|(path, len)| (stamp(&path), path, len)).collect::<Vec<_>>()
    };
    let before = data();
    for _ in 0..3 {
        let ended = check(server.setup());
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
    assert_eq!(data(), before);
    assert_eq!(request(server.api, "GET", "/readyz", &[], b"").status, 200);
}

#[test]
fn an_unknown_variable_is_a_warning_and_no_error() {
    let setup = Setup::default().env("USER_HTTP_SERVER_MAX_BODDY", "s3cr3t").env("RUST_LOG", "off");
    let ended = check(&setup);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let hint = "did you mean USER_HTTP_SERVER_MAX_BODY?";
    assert!(ended.stderr.lines().any(|line| line.starts_with("warning: ") && line.contains(hint)), "{ended:?}");
    assert!(!format!("{ended:?}").contains("s3cr3t"), "{ended:?}");
    // the variable of clients
    let ended = check(&Setup::default().env("USER_HTTP_SERVER_TOKEN", "a-token-of-somebody"));
    assert!(ended.code == Some(0) && !ended.stderr.contains("_TOKEN"), "{ended:?}");
}
