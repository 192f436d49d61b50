//! `user-http-server backup`: what is in a backup, and what is said when there is none.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::harness::{
    Ended, Program, Response, Scrape, Server, Setup, add_buffer_msg, gateway, post_user_msg, request,
};

/// Backs up the data directory of a server to `target`.
pub fn back_up(setup: &Setup, target: &Path) -> Ended {
    let mut command = gateway(&["backup", "--data-dir"]);
    Program::start(command.arg(setup.data_dir()).arg(target)).end()
}

/// Everything for the user manager, in order, with its ids.
fn for_user_manager(server: &Server) -> Vec<(Option<String>, Vec<u8>)> {
    let next = || request(server.api, "GET", "/UserManager/NextMessage", &[], b"");
    let taken = std::iter::repeat_with(next).take_while(|answer| answer.status == 200);
    taken.map(|answer| (answer.header("message-id").map(str::to_owned), answer.body)).collect()
}

fn fetch(server: &Server, uuid: &str) -> Response {
    request(server.http, "GET", &format!("/?bufferUUID={uuid}"), &[], b"")
}

/// A server with messages in both directions, small ones and such that are in files of their own.
fn filled() -> Server {
    let server = Server::start();
    for (uuid, len) in [("small", 10), ("large", 1_500_000), ("taken", 10)] {
        assert_eq!(add_buffer_msg(&server, uuid, &json!({ "TEXT": "x".repeat(len) })).status, 200);
    }
    for (user, len) in [("one", 10), ("two", 1_500_000), ("three", 10)] {
        assert_eq!(post_user_msg(&server, user, "FRAME_RENDERED", &json!("y".repeat(len))).status, 200);
    }
    assert_eq!(fetch(&server, "taken").status, 200);
    server
}

#[test]
fn a_server_that_is_restored_from_a_backup_has_every_message_and_takes_the_start_for_a_clean_one() {
    for is_running in [true, false] {
        let mut server = filled();
        if !is_running {
            server.stop();
        }
        let target = server.setup().path("backup");
        let ended = back_up(server.setup(), &target);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
        let expected = format!("{} is complete: 2 records (", target.display());
        assert!(ended.stdout.starts_with(&expected) && ended.stdout.contains(", 3 records ("), "{ended:?}");
        if !is_running {
            server.restart();
        }
        let original = for_user_manager(&server);
        assert_eq!(original.len(), 3);

        // the restore of docs/backup.md
        // more connections than this machine may have open would be a warning
        let setup = Setup::default().args(["--max-connections", "100"]);
        let copied = Command::new("cp").arg("-a").arg(&target).arg(setup.data_dir()).status();
        assert!(copied.expect("cp").success());
        let restored = setup.start();
        assert!(!restored.log().contains(" WARN "), "{}", restored.log());
        assert_eq!(Scrape::of(restored.api).value("unclean_starts_total"), 0.0);
        assert!(for_user_manager(&restored) == original, "the same messages, in order, under the same ids");
        for uuid in ["small", "large"] {
            let (original, restored) = (fetch(&server, uuid), fetch(&restored, uuid));
            assert_eq!((original.status, restored.status), (200, 200));
            assert!(original.body == restored.body, "{uuid}");
        }
        if !is_running {
            assert_eq!(fetch(&restored, "taken").status, 400, "it was delivered before the stop");
        }
    }
}

#[test]
fn the_data_directory_is_that_of_the_configuration_wherever_that_is_given() {
    let server = filled();
    let data_dir = server.setup().data_dir().display().to_string();
    let file = server.setup().path("backup.toml");
    // the rest of the configuration need not be valid, so that a backup works at a bad time
    fs::write(&file, format!("data-dir = {data_dir:?}\nhttp-tls-cert = \"/missing\"\n")).expect("writable");
    for (name, value) in [("CONFIG", file.display().to_string()), ("DATA_DIR", data_dir)] {
        let target = server.setup().path(name);
        let mut command = gateway(&["backup"]);
        let ended = Program::start(command.env(format!("USER_HTTP_SERVER_{name}"), value).arg(&target)).end();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(target.join("buffer").is_dir());
    }
}

#[test]
fn the_exit_code_is_2_for_a_wrong_command_line_and_1_for_a_failure_and_nothing_is_left() {
    let server = filled();
    let setup = server.setup();
    let path = |name: &str| setup.path(name);
    fs::create_dir(path("full")).and_then(|()| fs::write(path("full/file"), "")).expect("writable");
    let before: Vec<_> =
        fs::read_dir(path("")).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    for (target, code, text) in [
        ("full", 2, "is not an empty folder"),
        ("full/file", 2, "is not an empty folder"),
        ("data/backup", 2, "where the gateway keeps its messages"),
        ("missing/backup", 1, "No such file or directory"),
    ] {
        let ended = back_up(setup, &path(target));
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert!(ended.stderr.contains(text) && ended.stdout.is_empty(), "{ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    }
    let run = |args: &[&str]| Program::start(gateway(args).current_dir(path(""))).end();
    for (args, code, text) in [
        (&["backup"][..], 2, "<TARGET>"),
        (&["backup", "a", "b"], 2, "unexpected argument 'b'"),
        (&["backup", "a", "--memory"], 2, "--memory"),
        (&["backup", "a", "--data-dir", "nowhere"], 1, "there is no data directory nowhere"),
        (&["backup", "a", "--data-dir", "full"], 1, "not the data directory of a gateway"),
    ] {
        let ended = run(args);
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert!(ended.stderr.contains(text), "{ended:?}");
    }
    let after: Vec<_> =
        fs::read_dir(path("")).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    assert_eq!(before, after);
}

#[test]
fn a_backup_is_complete_even_if_nobody_can_read_that() {
    let mut server = filled();
    server.stop();
    let target = server.setup().path("backup");
    let full = fs::File::options().write(true).open("/dev/full").expect("a file that is always full");
    let mut command = gateway(&["backup", "--data-dir"]);
    let status = command.arg(server.setup().data_dir()).arg(&target).stdout(full).status().expect("a process");
    assert_eq!((status.code(), target.is_dir()), (Some(0), true));
}

#[test]
fn a_limit_on_the_size_of_files_is_a_failure_that_says_so_and_leaves_nothing() {
    let mut server = filled();
    server.stop();
    let target = server.setup().path("backup");
    let mut shell = Command::new("sh");
    // in blocks of 512 bytes: less than one of the messages
    shell.args(["-c", "ulimit -f 2000; exec \"$0\" \"$@\""]);
    let program = gateway(&[]);
    shell.arg(program.get_program()).args(["backup", "--data-dir"]).arg(server.setup().data_dir()).arg(&target);
    let ended = Program::start(&mut shell).end();
    assert!(ended.code == Some(1) && ended.stderr.contains("File too large"), "{ended:?}");
    let left = fs::read_dir(target.parent().expect("a folder")).expect("a folder").flatten();
    let left: Vec<_> =
        left.map(|entry| entry.file_name()).filter(|name| name.to_string_lossy().contains("backup")).collect();
    assert!(left.is_empty(), "{left:?}");
}
