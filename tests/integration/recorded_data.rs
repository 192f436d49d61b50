//! Data directories that released versions have written still open, with every message in them. `tests/data` has a
//! folder for each version, and `tests/data/record.py` records another.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::harness::{Connection, Setup, files_below, hex};

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
