//! Data directories that released versions have written still open, with every message in them. `tests/data` has a
//! folder for each version, and `tests/data/record.py` records another. Those of later versions are refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::harness::{Connection, Server, Setup, add_buffer_msg, files_below, hex, post_user_msg, request};

fn recorded() -> Vec<PathBuf> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let entries = fs::read_dir(data).expect("the recorded data").map(|entry| entry.expect("a folder").path());
    let mut folders: Vec<_> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// A copy, because a start changes the files.
fn copy(from: &Path, to: &Path) {
    for (path, _) in files_below(from) {
        let target = to.join(path.strip_prefix(from).expect("below it"));
        fs::create_dir_all(target.parent().expect("a folder")).expect("a folder");
        fs::copy(&path, &target).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().expect("a list").iter().map(|text| text.as_str().expect("a text")).collect()
}

#[test]
fn every_message_that_a_released_version_has_stored_is_found() {
    let folders = recorded();
    let names: Vec<_> = folders.iter().map(|folder| folder.file_name().expect("a name").to_string_lossy()).collect();
    assert!(names.contains(&"version-0.1.0".into()) && names.len() >= 2, "{names:?}");
    for folder in &folders {
        check(folder);
    }
}

fn check(folder: &Path) {
    let version = folder.display();
    let manifest = fs::read(folder.join("manifest.json")).unwrap_or_else(|error| panic!("{version}: {error}"));
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    let setup = Setup::default().args(["--buffer-ttl", "36500d"]);
    copy(folder, &setup.data_dir());
    fs::write(setup.blend_root().join("scene.blend"), manifest["blend"].as_str().expect("a text")).expect("space");
    let mut server = setup.start();
    for round in ["at first", "after a restart"] {
        let mut worker = Connection::open(server.http);
        for (uuid, digest) in manifest["buffer"].as_object().expect("messages by their UUIDs") {
            let path = format!("/?bufferUUID={uuid}");
            let head = worker.request("HEAD", &path, &[], b"");
            assert_eq!(head.status, 200, "{version}, {uuid} {round}: {head:?}");
            if round == "after a restart" {
                let message = worker.request("GET", &path, &[], b"");
                assert_eq!(sha256(&message.body), digest.as_str().expect("a digest"), "{version}, {uuid}");
            }
        }
        for uuid in texts(&manifest["gone"]) {
            let answer = worker.request("GET", &format!("/?bufferUUID={uuid}"), &[], b"");
            assert_eq!(answer.status, 400, "{version}, {uuid} {round}: {answer:?}");
        }
        if round == "at first" {
            server.replace();
        }
    }
    let mut api = Connection::open(server.api);
    for expected in manifest["outbox"].as_array().expect("messages in their order") {
        let next = api.request("GET", "/UserManager/NextMessage", &[], b"");
        assert_eq!(next.status, 200, "{version}, {expected}: {next:?}");
        let id = next.header("message-id").expect("an id").to_owned();
        let found = [&id, next.header("content-type").expect("a type"), &sha256(&next.body)].map(str::to_owned);
        let expected = ["id", "type", "sha256"].map(|field| expected[field].as_str().expect("a text").to_owned());
        assert_eq!(found, expected, "{version}");
        let deleted = api.request("DELETE", &format!("/UserManager/Messages/{id}"), &[], b"");
        assert_eq!(deleted.status, 204, "{version}: {deleted:?}");
    }
    assert_eq!(api.request("GET", "/UserManager/NextMessage", &[], b"").status, 204, "{version}");
}

/// The files below a folder, with their content.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let read = |path: PathBuf| {
        let content = fs::read(&path).expect("a file");
        (path, content)
    };
    files_below(folder).into_iter().map(|(path, _)| read(path)).collect()
}

#[test]
fn what_a_later_version_has_written_is_refused_in_words_and_stays_as_it_is() {
    let mut server = Server::start();
    for store in ["buffer", "outbox"] {
        assert_eq!(add_buffer_msg(&server, "job", &json!("a message")).status, 200);
        assert_eq!(post_user_msg(&server, "worker", "FRAME_RENDERED", &json!("a frame")).status, 200);
        assert_eq!(server.stop().code(), Some(0));
        let data_dir = server.setup().data_dir();
        let before = contents(&data_dir);
        let is_segment =
            |path: &&PathBuf| path.starts_with(data_dir.join(store)) && before[*path].starts_with(b"UHSLOG");
        let path = before.keys().rfind(is_segment).expect("a segment");
        let mut later = before.clone();
        later.get_mut(path).expect("the segment")[6] += 1;
        fs::write(path, &later[path]).expect("writable");

        let refused = server.setup().command().output().expect("it runs");
        let log = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{log}");
        let why = format!("{} has format version ", path.display());
        assert!(log.contains(&why) && log.contains("; use the program that wrote it"), "{log}");
        assert!(contents(&data_dir) == later, "something has changed; log:\n{log}");

        // the later version finds what it has left
        fs::write(path, &before[path]).expect("writable");
        server.restart();
        assert_eq!(request(server.http, "GET", "/?bufferUUID=job", &[], b"").status, 200);
        let frame = request(server.api, "GET", "/UserManager/NextMessage?lease=0", &[], b"");
        assert_eq!(frame.status, 200, "{frame:?}");
    }
}
