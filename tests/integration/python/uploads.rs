//! Large request bodies go into files while they arrive, and take little memory.

use std::path::PathBuf;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::harness::{Connection, Farm, SOON, eventually, files_below, forwarded, frame, holds, order, request};

const PICKLE: &str = "application/octet-stream";
const JSON: &str = "application/json";

/// Longer bodies, in bytes, go into files.
const MAX_IN_MEMORY: usize = 1 << 20;

/// The files of bodies.
fn body_files(farm: &Farm) -> Vec<(PathBuf, u64)> {
    let mut files = files_below(&farm.server.setup().data_dir());
    files.retain(|(path, _)| path.extension().is_some_and(|end| end == "body"));
    files
}

/// What all files below the data directory take, in bytes.
fn disk_bytes(farm: &Farm) -> u64 {
    files_below(&farm.server.setup().data_dir()).iter().map(|(_, len)| len).sum()
}

fn begin(farm: &Farm, path: &str, length: (&str, &str), content_type: &str) -> Connection {
    let mut connection = Connection::open(if path == "/" { farm.http } else { farm.api });
    connection.send_head("POST", path, &[("Content-Type", content_type), length]);
    connection
}

/// Announces a frame of this pickle and sends all but its last byte.
fn send_all_but_one(farm: &Farm, body: &[u8]) -> Connection {
    let mut connection = begin(farm, "/", ("Content-Length", &body.len().to_string()), PICKLE);
    connection.send(&body[..body.len() - 1]);
    connection
}

#[test]
fn uploads_in_progress_take_little_memory_and_their_frames_arrive_whole() {
    const UPLOADS: usize = 24;
    let mut farm = Farm::start();
    let body = farm.peer.dumps(&frame("FRAME_RENDERED", "bytes(16 << 20)"), 4);
    farm.post(&frame("FRAME_RENDERED", "'warm'"));
    farm.take();
    let before = farm.server.rss_kib();
    let mut uploads: Vec<Connection> = (0..UPLOADS).map(|_| send_all_but_one(&farm, &body)).collect();
    let len = body.len() as u64;
    eventually("nearly all is in files", SOON, || {
        let files = body_files(&farm);
        holds(files.len() == UPLOADS && files.iter().all(|(_, written)| len - written <= 256 << 10), files)
    });
    let peak = farm.server.peak_rss_kib();
    assert!(peak < before + UPLOADS as u64 * 512 + (8 << 10), "{before} KiB before, {peak} KiB at the most");
    for upload in &mut uploads {
        upload.send(&body[body.len() - 1..]);
        assert_eq!(upload.read_response().status, 200);
    }
    for _ in 0..UPLOADS {
        let message = farm.next_answer("wait=30");
        assert_eq!(message.status, 200);
        assert!(message.body.len() > 16 << 20);
        assert_eq!(farm.delete(message.header("message-id").expect("a message")), 204);
    }
    eventually("the space comes back", SOON, || holds(body_files(&farm).is_empty(), body_files(&farm)));
}

#[test]
fn frames_of_every_length_around_the_bound_arrive_equal_whatever_their_form() {
    let mut farm = Farm::start();
    let around = [-200, -100, -2, -1, 0, 1, 200].map(|offset| (MAX_IN_MEMORY as isize + offset) as usize);
    for (len, protocols) in around.map(|len| (len, &[4][..])).into_iter().chain([(3 * MAX_IN_MEMORY, &[2, 3, 5][..])]) {
        let data = format!("bytes(range(256)) * {} + bytes({})", len / 256, len % 256);
        let expected = farm.peer.show(&forwarded("FRAME_RENDERED", &data));
        for protocol in protocols {
            let body = farm.peer.dumps(&frame("FRAME_RENDERED", &data), *protocol);
            assert_eq!(farm.post_bytes(PICKLE, &body).status, 200);
            assert!(farm.take().value == expected, "{len} bytes, protocol {protocol}");
        }
    }
    // JSON becomes a pickle, and a message of two forms becomes longer
    for (kind, data) in [("FRAME_RENDERED", "'text' * 400_000"), ("RENDER_COMPLETED", "[1, 2.5, 'three'] * 100_000")] {
        farm.post_json(&frame(kind, data));
        assert!(farm.take().value == farm.peer.show(&forwarded(kind, data)), "{kind}");
    }
}

#[test]
fn large_messages_for_workers_are_files_too_and_are_read_in_ranges() {
    let mut farm = Farm::start();
    for (content_type, message) in [(PICKLE, "bytes(range(256)) * 20_000"), (JSON, "'0123456789' * 300_000")] {
        let expected = farm.peer.show(message);
        let body = match content_type {
            PICKLE => farm.peer.dumps(&order("id-1", message), 4),
            _ => serde_json::to_vec(&serde_json::json!({
                "TYPE": "ADD_BUFFER_MSG",
                "DATA": { "BUFFER_UUID": "id-1", "BUFFER_MSG": "0123456789".repeat(300_000) },
            }))
            .expect("JSON"),
        };
        assert_eq!(farm.order_bytes(content_type, &body).status, 200);
        assert_eq!(body_files(&farm).len(), 1, "{content_type}");
        let whole = farm.ask("HEAD", "id-1", &[]).content_length() as usize;
        let part = farm.ask("GET", "id-1", &[("Range", "bytes=0-99")]);
        assert_eq!((part.status, part.body.len()), (206, 100));
        let etag = part.header("etag").expect("a version").to_owned();
        let rest = farm.ask("GET", "id-1", &[("Range", "bytes=100-"), ("If-Range", &etag)]);
        assert_eq!((rest.status, rest.body.len()), (206, whole - 100));
        assert_eq!(farm.peer.loads(&[part.body, rest.body].concat()), expected);
        farm.expect_no_message("id-1");
        eventually("the space comes back", SOON, || holds(body_files(&farm).is_empty(), body_files(&farm)));
    }
}

#[test]
fn an_upload_without_a_length_goes_into_a_file_once_it_is_long() {
    let mut farm = Farm::start();
    let body = farm.peer.dumps(&frame("FRAME_RENDERED", "bytes(5 << 20)"), 4);
    let mut connection = begin(&farm, "/", ("Transfer-Encoding", "chunked"), PICKLE);
    for chunk in body.chunks(300_000) {
        connection.send(format!("{:x}\r\n", chunk.len()).as_bytes());
        connection.send(&[chunk, b"\r\n"].concat());
    }
    eventually("it is in a file", SOON, || holds(body_files(&farm).len() == 1, body_files(&farm)));
    connection.send(b"0\r\n\r\n");
    assert_eq!(connection.read_response().status, 200);
    assert!(farm.take().body.len() > 5 << 20);
}

#[test]
fn uploads_broken_off_anywhere_and_refused_ones_leave_nothing_behind() {
    let mut farm = Farm::with(&["--max-upload-space", "9MiB"]);
    let body = farm.peer.dumps(&frame("FRAME_RENDERED", "bytes(3 << 20)"), 4);
    let wrong = [&body[..body.len() - 1], b"!"].concat();
    farm.post_bytes(PICKLE, &wrong).failure(400);
    farm.post_bytes(JSON, &body).failure(400);
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..60 {
        // Three at once are all that the bound allows, so that one whose share is not given back is noticed.
        let mut connection = begin(&farm, "/", ("Content-Length", &body.len().to_string()), PICKLE);
        let sent = rng.random_range(0..body.len());
        // it may be refused while an earlier one is being given up
        let _ = connection.try_send(&body[..sent]);
    }
    eventually("no file is left", SOON, || holds(body_files(&farm).is_empty(), body_files(&farm)));
    let before = disk_bytes(&farm);
    let mut together: Vec<Connection> = (0..2).map(|_| send_all_but_one(&farm, &body)).collect();
    for connection in &mut together {
        connection.send(&body[body.len() - 1..]);
        assert_eq!(connection.read_response().status, 200);
        farm.take();
    }
    eventually("the space comes back", SOON, || {
        let now = disk_bytes(&farm);
        holds(now < before + (1 << 20), (before, now))
    });
}

#[test]
fn what_an_upload_has_beside_its_message_takes_no_space_once_the_message_is_stored() {
    let mut farm = Farm::start();
    let long = "'text' * 3_000";
    let message = frame("RENDER_COMPLETED", long);
    let with_more = |message: &str| format!("{}, 'MORE': 'x' * (5 << 20)}}", &message[..message.len() - 1]);
    farm.post(&with_more(&message));
    farm.leave_pickle("id-1", long, 4);
    // of a pickle all is passed on, and all of it counts
    let data = serde_json::json!({ "BUFFER_UUID": "id-2", "BUFFER_MSG": "text".repeat(3_000) });
    let body = serde_json::json!({ "TYPE": "ADD_BUFFER_MSG", "DATA": data, "MORE": "x".repeat(5 << 20) });
    let answer = farm.order_bytes(JSON, body.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
    eventually("the files are gone", SOON, || holds(body_files(&farm).is_empty(), body_files(&farm)));
    assert!(disk_bytes(&farm) < 2 << 20, "{} bytes", disk_bytes(&farm));
    let expected = farm.peer.show(&forwarded("RENDER_COMPLETED", long));
    assert!(farm.take().value == expected);
    assert_eq!(farm.fetch_value("id-2"), farm.fetch_value("id-1"));
}

#[test]
fn uploads_take_no_more_disk_space_than_they_may() {
    let mut farm = Farm::with(&["--max-upload-space", "8MiB"]);
    let body = farm.peer.dumps(&frame("FRAME_RENDERED", "bytes(5 << 20)"), 4);
    let refused = {
        let mut connection = begin(&farm, "/", ("Content-Length", &(9 << 20).to_string()), PICKLE);
        connection.read_response()
    };
    refused.failure(503);
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    let mut first = send_all_but_one(&farm, &body);
    eventually("the first one's bytes are counted", SOON, || {
        let files = body_files(&farm);
        holds(files.iter().any(|(_, len)| *len > 4 << 20), files)
    });
    farm.post_bytes(PICKLE, &body).failure(503);
    farm.post(&frame("FRAME_RENDERED", "'small'"));
    first.send(&body[body.len() - 1..]);
    assert_eq!(first.read_response().status, 200);
    // one that is stored counts no more
    let answer = farm.post_bytes(PICKLE, &body);
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[test]
fn what_a_kill_leaves_of_an_upload_is_swept_at_the_start() {
    let mut farm = Farm::start();
    let body = farm.peer.dumps(&frame("FRAME_RENDERED", "bytes(4 << 20)"), 4);
    assert_eq!(farm.post_bytes(PICKLE, &body).status, 200);
    let upload = send_all_but_one(&farm, &body);
    eventually("a part is in a file", SOON, || holds(body_files(&farm).len() == 2, body_files(&farm)));
    farm.server.kill9();
    drop(upload);
    farm.server.restart();
    assert_eq!(body_files(&farm).len(), 1, "that of the frame that was received");
    assert!(farm.take().body.len() > 4 << 20);
    eventually("its space comes back", SOON, || holds(body_files(&farm).is_empty(), body_files(&farm)));
}

#[test]
fn in_memory_only_no_body_goes_into_a_file() {
    let mut farm = Farm::with(&["--memory"]);
    let body = farm.peer.dumps(&frame("FRAME_RENDERED", "bytes(4 << 20)"), 4);
    assert_eq!(farm.post_bytes(PICKLE, &body).status, 200);
    assert!(farm.take().body.len() > 4 << 20);
    assert!(!farm.server.setup().data_dir().exists());
}

#[test]
fn a_client_that_asks_first_is_told_to_go_on_and_its_frame_is_stored() {
    let mut farm = Farm::start();
    let body = farm.peer.dumps(&frame("FRAME_RENDERED", "bytes(2 << 20)"), 4);
    let mut connection = Connection::open(farm.http);
    connection.try_announce("POST", "/", &[("Content-Type", PICKLE)], body.len()).expect("asked for");
    connection.send(&body);
    assert_eq!(connection.read_response().status, 200);
    assert!(farm.take().body.len() > 2 << 20);
    assert_eq!(request(farm.api, "GET", "/readyz", &[], b"").status, 200);
}
