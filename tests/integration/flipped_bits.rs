//! Stored messages that change on the disk: none is sent, whoever asks for it, and the log names the file.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::harness::{Server, files_below, request};

/// The place of `marker` in one of the files of a store.
fn find(store: &Path, marker: &str) -> (PathBuf, u64) {
    let position = |path: &Path| {
        let content = fs::read(path).expect("a file");
        content.windows(marker.len()).position(|part| part == marker.as_bytes())
    };
    let found = files_below(store).into_iter().find_map(|(path, _)| position(&path).map(|at| (path, at as u64)));
    found.unwrap_or_else(|| panic!("{marker} is in no file of {}", store.display()))
}

/// Flips a bit.
fn flip((path, at): &(PathBuf, u64)) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, *at).expect("a byte");
    file.write_all_at(&[byte[0] ^ 4], *at).expect("writable");
}

fn add(server: &Server, uuid: &str, text: &str) {
    let body = json!({ "TYPE": "ADD_BUFFER_MSG", "DATA": { "BUFFER_UUID": uuid, "BUFFER_MSG": { "TEXT": text } } });
    let path = "/CommunicationInterface/AddBufferMsg";
    assert_eq!(request(server.api, "POST", path, &[], body.to_string().as_bytes()).status, 200);
}

fn post_frame(server: &Server, text: &str) {
    let body = json!({ "USER_ID": "me", "MAIN_DATA": { "TYPE": "FRAME_RENDERED", "DATA": text } });
    assert_eq!(request(server.http, "POST", "/", &[], body.to_string().as_bytes()).status, 200);
}

/// A text of so many bytes with a marker near its end.
fn text(marker: &str, len: usize) -> String {
    format!("{}{marker}{}", "x".repeat(len), "y".repeat(10))
}

/// Sizes of a message that is sent at once, of a longer one in the log, and of one in a body file.
const SIZES: [usize; 3] = [100, 300_000, 3_000_000];

#[test]
fn a_message_that_has_changed_on_the_disk_is_answered_503_and_named_in_the_log_and_stays() {
    let server = Server::start();
    for (at, size) in SIZES.into_iter().enumerate() {
        let (uuid, marker) = (format!("job-{at}"), format!("MARKER-{at}"));
        add(&server, &uuid, &text(&marker, size));
        let place = find(&server.setup().data_dir().join("buffer"), &marker);
        flip(&place);
        let path = format!("/?bufferUUID={uuid}");
        for (method, headers) in [("HEAD", &[][..]), ("GET", &[]), ("GET", &[("Range", "bytes=5-")])] {
            let answer = request(server.http, method, &path, headers, b"");
            assert_eq!(answer.status, 503, "{size}, {method}: {answer:?}");
            assert!(answer.header("retry-after").is_some(), "{answer:?}");
            let text = String::from_utf8_lossy(&answer.body);
            assert!(method == "HEAD" || text.contains("cannot be read") && !text.contains(".log"), "{answer:?}");
        }
        server.wait_for_log(&format!("{} is damaged: the body does not match its checksum", place.0.display()));
        flip(&place);
        let answer = request(server.http, "GET", &path, &[], b"");
        assert_eq!(answer.status, 200, "{size}: {answer:?}");
        assert!(String::from_utf8_lossy(&answer.body).contains(&marker), "{size}");
    }
}

#[test]
fn a_message_for_the_user_manager_that_has_changed_on_the_disk_is_parked_and_the_next_is_sent() {
    let server = Server::start();
    for (at, size) in SIZES.into_iter().enumerate() {
        let marker = format!("MARKER-{at}");
        post_frame(&server, &text(&marker, size));
        flip(&find(&server.setup().data_dir().join("outbox"), &marker));
    }
    post_frame(&server, "a sound one");
    let next = request(server.api, "GET", "/UserManager/NextMessage", &[], b"");
    assert_eq!(next.status, 200, "{next:?}");
    assert!(String::from_utf8_lossy(&next.body).contains("a sound one"), "{next:?}");
    let parked = request(server.api, "GET", "/UserManager/Parked", &[], b"").json();
    let parked = parked.as_array().expect("a list");
    assert_eq!(parked.len(), SIZES.len(), "{parked:?}");
    for message in parked {
        let reason = message["reason"].as_str().expect("a reason");
        assert!(reason.contains("is damaged"), "{reason}");
    }
}

#[test]
fn after_a_stop_in_order_a_start_on_a_damaged_last_message_is_refused_without_a_panic() {
    for store in ["buffer", "outbox"] {
        let mut server = Server::start();
        add(&server, "last", "MARKER");
        post_frame(&server, "MARKER");
        assert_eq!(server.stop().code(), Some(0));
        let place = find(&server.setup().data_dir().join(store), "MARKER");
        flip(&place);
        let refused = server.setup().command().output().expect("it runs");
        let log = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{log}");
        assert!(log.contains(&format!("{} is damaged at byte", place.0.display())), "{log}");
        assert!(log.contains("truncate -s 0") && !log.contains("panicked"), "{log}");
        flip(&place);
        server.restart();
        let answer = request(server.http, "GET", "/?bufferUUID=last", &[], b"");
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}
