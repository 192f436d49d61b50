//! A backup to a disk that is too small, and to the data directory under another path.

use std::fs;

use serde_json::json;

use crate::harness::{Program, Server, add_buffer_msg, new_mount_namespace, without_settings};

#[test]
fn a_backup_that_does_not_fit_on_its_disk_says_so_and_leaves_nothing() {
    let server = Server::start();
    for number in 0..4 {
        assert_eq!(add_buffer_msg(&server, &number.to_string(), &json!("x".repeat(600_000))).status, 200);
    }
    let disk = server.setup().path("disk");
    fs::create_dir(&disk).expect("a mount point");
    let script = "mount -t tmpfs -o size=1m none \"$1\" && \"$2\" backup \"$1/backup\" --data-dir \"$3\"; code=$?; \
                  ls -A \"$1\"; exit $code";
    let [first, rest @ ..] = new_mount_namespace() else { panic!("no command") };
    let mut command = std::process::Command::new(first);
    without_settings(&mut command).args(rest).args(["sh", "-c", script, "sh"]).arg(&disk);
    let ended =
        Program::start(command.arg(env!("CARGO_BIN_EXE_user-http-server")).arg(server.setup().data_dir())).end();
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{ended:?}");
    assert!(ended.stderr.contains("No space left on device") && ended.stderr.contains("disk/backup"), "{ended:?}");
}

#[test]
fn a_target_in_the_data_directory_under_another_path_is_refused() {
    let server = Server::start();
    assert_eq!(add_buffer_msg(&server, "1", &json!("x".repeat(2_000_000))).status, 200);
    let alias = server.setup().path("alias");
    fs::create_dir(&alias).expect("a mount point");
    let script = "mount --bind \"$3/$4\" \"$1\" && exec \"$2\" backup \"$1/backup\" --data-dir \"$3\"";
    let [first, rest @ ..] = new_mount_namespace() else { panic!("no command") };
    for folder in ["", "buffer", "buffer/bodies", "outbox"] {
        let mut command = std::process::Command::new(first);
        without_settings(&mut command).args(rest).args(["sh", "-c", script, "sh"]).arg(&alias);
        command.arg(env!("CARGO_BIN_EXE_user-http-server")).arg(server.setup().data_dir()).arg(folder);
        let ended = Program::start(&mut command).end();
        assert!(ended.code == Some(2) && ended.stderr.contains("alias/backup is inside"), "{folder:?}: {ended:?}");
    }
}
