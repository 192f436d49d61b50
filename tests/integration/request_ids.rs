//! `X-Request-Id`: taken from the request or generated, and returned in every answer.

use std::collections::BTreeSet;
use std::fs;
use std::net::Shutdown;

use serde_json::json;
use uuid::Uuid;

use crate::harness::{Connection, Response, Server, Setup, connect, request};

/// The id in an answer.
#[track_caller]
fn id_of(answer: &Response) -> &str {
    let mut ids = answer.headers.iter().filter(|(name, _)| name == "x-request-id").map(|(_, id)| id.as_str());
    match (ids.next(), ids.next()) {
        (Some(id), None) => id,
        ids => panic!("{ids:?}: {answer:?}"),
    }
}

/// Checks that the id in an answer was generated.
#[track_caller]
fn assert_generated(answer: &Response) {
    let id = id_of(answer);
    assert_eq!(Uuid::parse_str(id).unwrap_or_default().get_version_num(), 4, "{answer:?}");
}

fn leave(server: &Server, uuid: &str, message: &serde_json::Value) {
    let data = json!({ "BUFFER_UUID": uuid, "BUFFER_MSG": message });
    let body = json!({ "TYPE": "ADD_BUFFER_MSG", "DATA": data }).to_string();
    let answer = request(server.api, "POST", "/CommunicationInterface/AddBufferMsg", &[], body.as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[test]
fn every_kind_of_answer_has_the_id_of_its_request() {
    let setup = Setup::default();
    let tokens = setup.path("tokens");
    fs::write(&tokens, format!("{}\n", "a".repeat(32))).expect("a token file");
    let guarded = setup.args(["--api-token-file", tokens.to_str().expect("UTF-8")]).start();
    let server = Server::with(&["--max-body", "1KB"]);
    server.blend_file("scene.blend", b"a scene");
    leave(&server, "plain", &json!({ "A": "message" }));
    let file = json!({ "META_DATA": "EXTRACT_BLEND_FILE_FROM_PATH", "BINARY_BLEND_FILE": "scene.blend" });
    leave(&server, "file", &json!({ "DATA": file }));
    let range = ("Range", "bytes=1-2");
    let id = ("X-Request-Id", "farm/42:a~!");
    let large = vec![b'x'; 2_000];
    let of_page = ("Origin", "https://evil.example");
    let referred = request(server.http, "GET", "/?bufferUUID=file", &[id, ("Prefer", "blend-reference")], b"");
    assert_eq!((referred.status, id_of(&referred)), (200, id.1));
    let text = String::from_utf8_lossy(&referred.body);
    let start = text.find("/blends/").unwrap_or_else(|| panic!("{referred:?}"));
    let file = &text[start..start + "/blends/".len() + 64];
    for (to, method, path, headers, body, status) in [
        (server.http, "HEAD", "/?bufferUUID=plain", &[][..], &b""[..], 200),
        (server.http, "GET", "/?bufferUUID=plain", &[range], b"", 206),
        (server.http, "GET", "/?bufferUUID=plain", &[("Range", "bytes=9999-")], b"", 416),
        (server.http, "GET", "/?bufferUUID=plain", &[("If-Match", "\"x\"")], b"", 412),
        (server.http, "GET", "/?bufferUUID=plain", &[], b"", 200),
        (server.http, "GET", "/?bufferUUID=plain", &[], b"", 400),
        (server.http, "GET", file, &[range], b"", 206),
        (server.http, "HEAD", file, &[("If-None-Match", "*")], b"", 304),
        (server.http, "HEAD", file, &[], b"", 200),
        (server.http, "POST", "/", &[], b"{", 400),
        (server.http, "POST", "/", &[], &large, 413),
        (server.http, "POST", "/", &[("Content-Encoding", "gzip")], b"x", 415),
        (server.http, "PUT", "/", &[], b"", 405),
        (server.http, "OPTIONS", "/", &[], b"", 405),
        (server.http, "GET", "/nothing", &[], b"", 404),
        (server.api, "GET", "/UserManager/NextMessage", &[], b"", 204),
        (server.api, "GET", "/healthz", &[], b"", 200),
        (server.api, "GET", "/admin/buffer?limit=0", &[], b"", 400),
        (server.api, "DELETE", "/admin/buffer/x", &[], b"", 404),
        (server.api, "GET", "/readyz", &[of_page], b"", 403),
        (guarded.api, "GET", "/admin/buffer", &[], b"", 401),
    ] {
        let answer = request(to, method, path, &[&[id], headers].concat(), body);
        assert_eq!((answer.status, id_of(&answer)), (status, id.1), "{method} {path} {headers:?}: {answer:?}");
    }
}

#[test]
fn an_id_is_generated_where_there_is_none_or_it_is_invalid() {
    let server = Server::start();
    let (longest, too_long) = ("x".repeat(128), "x".repeat(129));
    let mut connection = Connection::open(server.api);
    let answer = connection.request("GET", "/healthz", &[("x-request-ID", &longest)], b"");
    assert_eq!(id_of(&answer), longest);
    for wrong in ["", "a b", "a\tb", "\u{e4}", &too_long] {
        assert_generated(&connection.request("GET", "/healthz", &[("X-Request-Id", wrong)], b""));
    }
    let twice = [("X-Request-Id", "a"), ("X-Request-Id", "b")];
    assert_generated(&connection.request("GET", "/healthz", &twice, b""));
    let generated: BTreeSet<String> =
        (0..50).map(|_| id_of(&connection.request("GET", "/healthz", &[], b"")).to_owned()).collect();
    assert_eq!(generated.len(), 50, "{generated:?}");
}

#[test]
fn pipelined_requests_have_an_id_each() {
    let server = Server::start();
    let mut connection = Connection::open(server.http);
    let of = |id: &str| format!("GET /nothing HTTP/1.1\r\nHost: x\r\nX-Request-Id: {id}\r\n\r\n");
    connection.send([of("one"), of("two"), of("three")].concat().as_bytes());
    for id in ["one", "two", "three"] {
        assert_eq!(id_of(&connection.read_response()), id);
    }
}

#[test]
fn what_is_refused_without_a_whole_head_has_a_generated_id() {
    let server = Server::start();
    let endless = format!("GET / HTTP/1.1\r\nA: {}", "x".repeat(20_000));
    for (sent, ends, status) in [
        ("this is no request\r\n\r\n", false, 400),
        ("GET / HTTP/1.1\r\nX-Request-Id: mine\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", false, 400),
        ("GET / HTTP/1.1\r\nX-Request-Id: mine\r\n", true, 400),
        (endless.as_str(), false, 431),
        ("GET / HTTP/1.1\r\n", false, 408),
    ] {
        let stream = connect(server.http).expect("a connection");
        let socket = stream.try_clone().expect("a handle");
        let mut connection = Connection::over(server.http, stream);
        connection.send(sent.as_bytes());
        if ends {
            socket.shutdown(Shutdown::Write).expect("still open");
        }
        let answer = connection.read_response();
        assert_eq!(answer.status, status, "{sent:.40}: {answer:?}");
        assert_generated(&answer);
    }
}
