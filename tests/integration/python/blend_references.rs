//! `Prefer: blend-reference` on `GET /?bufferUUID=ID`: a reference to the .blend file in its place, and everything else
//! as without the header.

use std::fs;
use std::time::{Duration, SystemTime};

use crate::harness::{
    Connection, Farm, Host, Referred, Response, SOON, eventually, for_each_host, holds, io_bytes, referred,
};

for_each_host! {
    a_message_by_reference_has_the_dict_in_the_files_place_and_is_delivered_once,
    a_reference_is_written_into_pickles_of_every_protocol,
    without_the_header_nothing_is_different,
    a_message_without_a_blend_file_ignores_the_header,
    both_forms_of_a_message_have_their_own_etag_and_ranges,
    a_file_that_cannot_be_sent_is_answered_as_without_the_header,
    an_empty_file_and_the_name_of_the_preference_in_any_form_are_understood,
}

const PREFER: (&str, &str) = ("Prefer", "blend-reference");

/// The value of a message as [`Farm::leave_blend`] leaves it, by reference.
fn value(Referred { sha256, size, path }: &Referred) -> String {
    format!(
        "{{'DATA': {{'META_DATA': 'EXTRACT_BLEND_FILE_FROM_PATH', 'BINARY_BLEND_FILE': {{'SHA256': '{sha256}', 'SIZE': \
         {size}, 'PATH': '{path}'}}}}}}"
    )
}

#[track_caller]
fn assert_by_reference(answer: &Response) {
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("preference-applied"), Some("blend-reference"), "{answer:?}");
    assert_eq!(answer.header("vary"), Some("Prefer"), "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/octet-stream"), "{answer:?}");
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{answer:?}");
}

fn a_message_by_reference_has_the_dict_in_the_files_place_and_is_delivered_once(host: Host) {
    let mut farm = Farm::on(host);
    for (uuid, len) in [("short", 7), ("long", 300_000)] {
        let content: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        farm.blend_file("scene.blend", &content);
        farm.leave_blend(uuid, "scene.blend");
        let head = farm.ask("HEAD", uuid, &[PREFER]);
        assert_by_reference(&head);
        let answer = farm.ask("GET", uuid, &[PREFER]);
        assert_by_reference(&answer);
        assert_eq!((head.content_length(), head.header("etag")), (answer.body.len() as u64, answer.header("etag")));
        let reference = referred(&farm, &content);
        assert_eq!(farm.peer.loads(&answer.body), value(&reference));
        farm.expect_no_message(uuid);
        let file = farm.ask_path("GET", &reference.path, &[]);
        assert!(file.status == 200 && file.body == content, "{file:?}");
    }
}

fn a_reference_is_written_into_pickles_of_every_protocol(host: Host) {
    let mut farm = Farm::on(host);
    farm.blend_file("scene.blend", b"content");
    let reference = referred(&farm, b"content");
    let message = "{'BEFORE': [1], 'DATA': {'A': 'x' * 300, 'META_DATA': 'EXTRACT_BLEND_FILE_FROM_PATH', \
                   'BINARY_BLEND_FILE': 'scene.blend', 'B': b'y'}, 'AFTER': None}";
    let Referred { sha256, size, path } = reference;
    let dict = format!("{{'SHA256': '{sha256}', 'SIZE': {size}, 'PATH': '{path}'}}");
    let expected = farm.peer.show(&message.replace("'scene.blend'", &dict));
    for protocol in 0..=5 {
        farm.leave_pickle("id-1", message, protocol);
        let answer = farm.ask("GET", "id-1", &[PREFER]);
        assert_by_reference(&answer);
        assert_eq!(farm.peer.loads(&answer.body), expected, "protocol {protocol}");
    }
}

fn without_the_header_nothing_is_different(host: Host) {
    let mut farm = Farm::on(host);
    farm.blend_file("scene.blend", b"content");
    farm.leave_blend("id-1", "scene.blend");
    let before = farm.ask("HEAD", "id-1", &[]);
    farm.ask("HEAD", "id-1", &[PREFER]);
    for headers in [&[][..], &[("Prefer", "respond-async, \"blend-reference\", blend-reference=no")]] {
        let answer = farm.ask("HEAD", "id-1", headers);
        let names = |answer: &Response| {
            // in no order
            let others = answer.headers.iter().filter(|(name, _)| name != "date" && name != "x-request-id");
            others.cloned().collect::<std::collections::BTreeMap<_, _>>()
        };
        assert_eq!(names(&answer), names(&before));
        assert!(answer.header("vary").is_none() && answer.header("preference-applied").is_none(), "{answer:?}");
    }
    assert!(farm.fetch_value("id-1").contains("b'content'"));
}

fn a_message_without_a_blend_file_ignores_the_header(host: Host) {
    let mut farm = Farm::on(host);
    for message in ["[1, 2]", "{'DATA': {'META_DATA': 'OTHER', 'BINARY_BLEND_FILE': 'scene.blend'}}"] {
        farm.leave("id-1", message);
        let before = farm.ask("HEAD", "id-1", &[]);
        let answer = farm.ask("GET", "id-1", &[PREFER]);
        assert_eq!((answer.status, answer.header("etag")), (200, before.header("etag")));
        assert!(answer.header("vary").is_none() && answer.header("preference-applied").is_none(), "{answer:?}");
        assert_eq!(farm.peer.loads(&answer.body), farm.peer.show(message));
        farm.expect_no_message("id-1");
    }
}

fn both_forms_of_a_message_have_their_own_etag_and_ranges(host: Host) {
    let mut farm = Farm::on(host);
    farm.blend_file("scene.blend", &[7; 1000]);
    farm.leave_blend("id-1", "scene.blend");
    let tag = |answer: &Response| answer.header("etag").expect("an ETag").to_owned();
    let (file_tag, tag) = (tag(&farm.ask("HEAD", "id-1", &[])), tag(&farm.ask("HEAD", "id-1", &[PREFER])));
    assert_ne!(file_tag, tag);
    assert_eq!(farm.ask("GET", "id-1", &[PREFER, ("If-Match", &file_tag)]).status, 412);

    let first = farm.ask("GET", "id-1", &[PREFER, ("Range", "bytes=0-99")]);
    assert_eq!((first.status, first.header("preference-applied")), (206, Some("blend-reference")), "{first:?}");
    // the rest of the other form completes nothing
    let other = farm.ask("GET", "id-1", &[("Range", "bytes=100-")]);
    assert_eq!((other.status, tag == other.header("etag").expect("an ETag")), (206, false), "{other:?}");
    let whole = farm.ask("GET", "id-1", &[PREFER, ("Range", "bytes=0-99"), ("If-Range", &file_tag)]);
    assert_eq!(whole.status, 200, "{whole:?}");
    farm.expect_no_message("id-1");

    farm.leave_blend("id-1", "scene.blend");
    let first = farm.ask("GET", "id-1", &[PREFER, ("Range", "bytes=0-99")]);
    let tag = first.header("etag").expect("an ETag").to_owned();
    assert_eq!(farm.ask("GET", "id-1", &[PREFER, ("Range", "bytes=5000-"), ("If-Range", &tag)]).status, 416);
    let rest = farm.ask("GET", "id-1", &[PREFER, ("Range", "bytes=100-"), ("If-Range", &tag)]);
    assert_eq!(rest.status, 206, "{rest:?}");
    assert_eq!(farm.peer.loads(&[first.body, rest.body].concat()), value(&referred(&farm, &[7; 1000])));
    farm.expect_no_message("id-1");
}

fn a_file_that_cannot_be_sent_is_answered_as_without_the_header(host: Host) {
    let mut farm = Farm::on(host);
    fs::create_dir(farm.setup().blend_root().join("folder")).expect("a folder");
    for path in ["missing.blend", "../outside.blend", "folder", "C:\\x.blend"] {
        farm.leave_blend("id-1", path);
        let before = farm.ask("GET", "id-1", &[]);
        assert_eq!(before.status, 400);
        let answer = farm.ask("GET", "id-1", &[PREFER]);
        assert_eq!((answer.status, &answer.body), (400, &before.body), "{path}");
    }
    farm.blend_file("missing.blend", b"content");
    farm.leave_blend("id-1", "missing.blend");
    assert_by_reference(&farm.ask("GET", "id-1", &[PREFER]));
}

fn an_empty_file_and_the_name_of_the_preference_in_any_form_are_understood(host: Host) {
    let mut farm = Farm::on(host);
    farm.blend_file("empty.blend", b"");
    let reference = referred(&farm, b"");
    for prefer in ["BLEND-Reference", "respond-async, blend-reference;x=\"1, 2\"", "@@, blend-reference"] {
        farm.leave_blend("id-1", "empty.blend");
        let mut connection = Connection::open(farm.http);
        let lines = [("Prefer", "handling=lenient"), ("Prefer", prefer)];
        let answer = connection.request("GET", &farm.worker_path("/?bufferUUID=id-1"), &lines, b"");
        assert_by_reference(&answer);
        assert_eq!(farm.peer.loads(&answer.body), value(&reference));
    }
    assert_eq!(farm.ask_path("GET", &reference.path, &[]).content_length(), 0);
}

/// How often the server has computed a digest, as an operator sees it.
fn computed(farm: &Farm) -> usize {
    farm.log().matches("computed SHA-256").count()
}

#[test]
fn many_requests_for_one_file_wait_for_one_digest_together_and_one_that_hangs_up_stops_nothing() {
    let mut farm = Farm::start();
    farm.sparse_blend_file("scene.blend", 16 << 20);
    for number in 0..20 {
        farm.leave_blend(&format!("id-{number}"), "scene.blend");
    }
    let mut waiting: Vec<Connection> = (0..20)
        .map(|number| {
            let mut connection = Connection::open(farm.http);
            connection.send_head("GET", &format!("/?bufferUUID=id-{number}"), &[PREFER]);
            connection
        })
        .collect();
    // the first of them began the computation
    drop(waiting.remove(0));
    for connection in &mut waiting {
        assert_by_reference(&connection.read_response());
    }
    // the message of the one that hung up is offered again
    eventually("the message is offered again", SOON, || {
        let answer = farm.ask("GET", "id-0", &[PREFER]);
        holds(answer.status == 200, answer)
    });
    assert_eq!(computed(&farm), 1, "{}", farm.log());
}

#[test]
fn a_client_that_hangs_up_during_the_computation_releases_the_message_at_once() {
    let mut farm = Farm::start();
    // takes the better part of a minute
    farm.sparse_blend_file("scene.blend", 64 << 30);
    farm.leave_blend("id-1", "scene.blend");
    let mut connection = Connection::open(farm.http);
    // waits, because one of the requests below may be first
    connection.send_head("GET", "/?bufferUUID=id-1&wait=60", &[PREFER]);
    eventually("the message is in delivery", SOON, || {
        let answer = farm.ask("GET", "id-1", &[("Range", "bytes=0-0")]);
        holds(answer.status == 400, answer)
    });
    drop(connection);
    eventually("the message is offered again", SOON, || {
        let answer = farm.ask("GET", "id-1", &[("Range", "bytes=0-0")]);
        holds(answer.status == 206, answer)
    });
    // other files do not wait for it
    farm.blend_file("small.blend", b"content");
    farm.leave_blend("small", "small.blend");
    assert_by_reference(&farm.ask("GET", "small", &[PREFER]));
    let log = farm.log();
    assert!(!log.contains("of 68719476736 bytes"), "the digest of the large file is computed already: {log}");
}

#[test]
fn a_file_that_changes_while_its_digest_is_computed_is_answered_503_and_its_message_stays() {
    let mut farm = Farm::start();
    let path = farm.sparse_blend_file("scene.blend", 64 << 30);
    farm.leave_blend("id-1", "scene.blend");
    let mut connection = Connection::open(farm.http);
    connection.send_head("GET", "/?bufferUUID=id-1", &[PREFER]);
    eventually("the file is being read", SOON, || {
        let read = io_bytes(farm.pid(), "rchar");
        holds(read > 32 << 20, read)
    });
    let file = fs::OpenOptions::new().write(true).open(path).expect("the file");
    file.set_len(100).expect("shorter");
    file.set_modified(SystemTime::now() - Duration::from_secs(60)).expect("a time");
    let answer = connection.read_response();
    assert!(answer.status == 503 && answer.header("retry-after").is_some(), "{answer:?}");
    assert!(farm.peer.loads(&answer.body).contains("has changed while its SHA-256 was computed"), "{answer:?}");
    let answer = farm.ask("GET", "id-1", &[PREFER]);
    assert_by_reference(&answer);
    assert_eq!(farm.peer.loads(&answer.body), value(&referred(&farm, &[0; 100])));
}

#[test]
fn a_file_that_is_rewritten_all_the_time_is_never_served_under_another_digest() {
    let mut farm = Farm::start();
    let path = farm.blend_file("scene.blend", &[0; 4096]);
    let mut stale = 0;
    for round in 0..40_u8 {
        // in place, with the same length, often within one tick of the file system's clock
        fs::write(&path, [round; 4096]).expect("written");
        farm.leave_blend("id-1", "scene.blend");
        let answer = farm.ask("GET", "id-1", &[PREFER]);
        fs::write(&path, [round + 100; 4096]).expect("written again");
        if answer.status == 503 {
            continue;
        }
        let reference = referred(&farm, &[round; 4096]);
        assert_eq!(farm.peer.loads(&answer.body), value(&reference));
        let file = farm.ask_path("GET", &reference.path, &[]);
        assert_eq!(file.status, 404, "round {round}: the file has changed: {file:?}");
        stale += 1;
    }
    assert!(stale > 0, "no digest at all: {}", farm.log());
}
