//! Requests that are sent ahead on one connection: each is answered as it was asked, in its turn, and a message counts
//! as delivered only if its own bytes went out.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use crate::harness::{Ca, Client, Connection, Farm, SOON, eventually, holds};

/// The head of a request, and what follows it.
fn request(line: &str, headers: &str, rest: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n{rest}")
}

fn get(uuid: &str) -> String {
    request(&format!("GET /?bufferUUID={uuid}"), "", "")
}

const TEST: &str = "{\"USER_ID\": \"me\", \"MAIN_DATA\": {\"TYPE\": \"TEST\", \"DATA\": 1}}";

fn post(headers: &str, body: &str) -> String {
    request("POST /", &format!("Content-Type: application/json\r\nContent-Length: {}\r\n{headers}", body.len()), body)
}

/// A farm with the messages `a` and `b` of some length, and a connection to the workers' server.
fn farm() -> (Farm, Connection) {
    let mut farm = Farm::start();
    for uuid in ["a", "b"] {
        farm.leave(uuid, &format!("'{uuid}' * 5_000"));
    }
    let connection = Connection::open(farm.http);
    (farm, connection)
}

/// Checks that a message is still there, by fetching it.
#[track_caller]
fn assert_there(farm: &mut Farm, uuid: &str) {
    assert_eq!(farm.fetch_value(uuid), format!("'{}'", uuid.repeat(5_000)));
}

/// Checks that the server closes the connection without another byte.
#[track_caller]
fn assert_ends(mut connection: Connection) {
    assert_eq!(connection.read(&mut [0; 100]), 0, "the connection is at its end");
}

#[test]
fn a_get_and_a_head_in_one_packet_are_each_answered_as_asked() {
    let (mut farm, mut connection) = farm();
    connection.send((get("a") + &get("b").replace("GET", "HEAD")).as_bytes());
    let answer = connection.read_response();
    assert_eq!(farm.peer.loads(&answer.body), format!("'{}'", "a".repeat(5_000)));
    let head = connection.read_head();
    assert_eq!((head.status, head.content_length()), (200, answer.body.len() as u64));
    farm.expect_no_message("a");
    assert_there(&mut farm, "b");
    // the connection is where it should be
    assert_eq!(connection.request("GET", "/?bufferUUID=c", &[], b"").status, 400);
}

#[test]
fn a_head_and_a_get_in_one_packet_are_each_answered_as_asked() {
    let (mut farm, mut connection) = farm();
    connection.send((get("a").replace("GET", "HEAD") + &get("b")).as_bytes());
    let head = connection.read_head();
    assert_eq!(head.status, 200, "{head:?}");
    let answer = connection.read_response();
    assert_eq!(farm.peer.loads(&answer.body), format!("'{}'", "b".repeat(5_000)));
    assert_there(&mut farm, "a");
    farm.expect_no_message("b");
}

#[test]
fn only_the_last_answer_is_the_connections_last_where_the_second_request_closes_it() {
    let (farm, mut connection) = farm();
    let closing = request("GET /?bufferUUID=b", "Connection: close\r\n", "");
    connection.send((get("a") + &closing + &get("c")).as_bytes());
    let first = connection.read_response();
    assert_eq!((first.status, first.header("connection")), (200, None), "{first:?}");
    let second = connection.read_response();
    assert_eq!((second.status, second.header("connection")), (200, Some("close")), "{second:?}");
    assert_ends(connection);
    assert_eq!(farm.readyz()["buffer"]["delivered_total"], 2);
}

#[test]
fn nothing_is_taken_of_what_follows_a_request_that_closes_the_connection() {
    let (mut farm, mut connection) = farm();
    connection.send((request("GET /?bufferUUID=a", "Connection: close\r\n", "") + &get("b")).as_bytes());
    assert_eq!(connection.read_response().header("connection"), Some("close"));
    assert_ends(connection);
    assert_there(&mut farm, "b");
}

#[test]
fn a_post_and_a_head_in_one_packet_are_each_answered_as_asked() {
    let (farm, mut connection) = farm();
    connection.send((post("", TEST) + &get("a").replace("GET", "HEAD") + &post("", "no JSON")).as_bytes());
    let answer = connection.read_response();
    assert_eq!((answer.status, &answer.json()["DATA"]), (200, &"RECEIVED".into()), "{answer:?}");
    assert_eq!(connection.read_head().status, 200);
    connection.read_response().failure(400);
    assert_eq!(farm.readyz()["buffer"]["messages"], 2);
}

#[test]
fn a_request_of_http_1_0_does_not_make_the_answer_before_it_one() {
    let (_farm, mut connection) = farm();
    connection.send((get("a") + "GET /?bufferUUID=b HTTP/1.0\r\n\r\n").as_bytes());
    assert_eq!(connection.read_response().status, 200);
    let mut rest = vec![0; 9];
    connection.read(&mut rest);
    assert_eq!(rest, b"HTTP/1.0 ");
}

#[test]
fn what_follows_a_body_that_is_refused_unread_is_not_taken_for_a_request() {
    // with `Connection: close`, and without, where the body is longer than what is worth receiving
    for (headers, len) in [("Connection: close\r\n", 10), ("", 300_000)] {
        let (mut farm, mut connection) = farm();
        let body = "x".repeat(len);
        connection.send((post(&format!("Content-Encoding: gzip\r\n{headers}"), &body) + &get("a")).as_bytes());
        let answer = connection.read_response();
        answer.failure(415);
        assert_eq!(answer.header("connection"), Some("close"));
        assert_ends(connection);
        assert_there(&mut farm, "a");
    }
}

#[test]
fn a_connection_goes_on_after_a_short_body_that_is_refused_unread() {
    let (mut farm, mut connection) = farm();
    connection.send((post("Content-Encoding: gzip\r\n", "not gzip") + &get("a")).as_bytes());
    connection.read_response().failure(415);
    let answer = connection.read_response();
    assert_eq!(farm.peer.loads(&answer.body), format!("'{}'", "a".repeat(5_000)));
}

#[test]
fn a_refused_body_that_looks_like_a_request_is_none() {
    let (mut farm, mut connection) = farm();
    let chunked = request("POST /", "Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", "");
    // the body never ends: what comes is its
    connection.send((chunked + &get("a")).as_bytes());
    let answer = connection.read_response();
    answer.failure(415);
    assert_eq!(answer.header("connection"), Some("close"));
    assert_ends(connection);
    assert_there(&mut farm, "a");
}

#[test]
fn requests_that_come_byte_by_byte_are_answered_like_others() {
    let (mut farm, mut connection) = farm();
    let chunked = request("POST /", "Transfer-Encoding: chunked\r\n", "");
    let (first, second) = TEST.split_at(10);
    let body = format!("{:x}\r\n{first}\r\n{:X};x=y\r\n{second}\r\n0\r\nField: x\r\n\r\n", first.len(), second.len());
    for byte in (chunked + &body + &get("a")).bytes() {
        connection.send(&[byte]);
    }
    assert_eq!(connection.read_response().status, 200);
    let answer = connection.read_response();
    assert_eq!(farm.peer.loads(&answer.body), format!("'{}'", "a".repeat(5_000)));
}

#[test]
fn offers_to_upgrade_the_connection_are_not_taken() {
    let (mut farm, mut connection) = farm();
    for offer in [
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAA\r\n",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n",
        "Connection: keep-alive, Upgrade\r\nUpgrade: TLS/1.0\r\n",
    ] {
        connection.send((post(offer, TEST) + &request("GET /?bufferUUID=c", offer, "")).as_bytes());
        for status in [200, 400] {
            let answer = connection.read_response();
            assert_eq!((answer.status, answer.header("connection")), (status, None), "{offer}: {answer:?}");
            assert_eq!(answer.header("upgrade"), None, "{offer}: {answer:?}");
        }
    }
    let chunks = format!("{:x}\r\n{TEST}\r\n0\r\n\r\n", TEST.len());
    let offer = "Connection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n";
    connection.send((request("POST /", offer, &chunks) + &get("a")).as_bytes());
    assert_eq!(connection.read_response().status, 200);
    assert_eq!(connection.read_response().status, 200);
    connection.send((request("CONNECT x:1", "", "") + &get("b")).as_bytes());
    connection.read_response().failure(405);
    let answer = connection.read_response();
    assert_eq!(farm.peer.loads(&answer.body), format!("'{}'", "b".repeat(5_000)));
}

#[test]
fn what_could_be_taken_for_two_different_requests_is_refused_and_nothing_behind_it_is_taken() {
    let (mut farm, _) = farm();
    let length = TEST.len();
    for (headers, body, reason) in [
        (format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n"), "0\r\n\r\n", "both Content-Length"),
        ("Content-Length: 0\r\nContent-Length: 33\r\n".to_owned(), "", "given twice"),
        ("Content-Length: +5\r\n".to_owned(), "hello", "not a length"),
        ("Content-Length: 5, 5\r\n".to_owned(), "hello", "not a length"),
        ("Transfer-Encoding: xchunked\r\n".to_owned(), "0\r\n\r\n", "not supported"),
        ("Transfer-Encoding: chunked, identity\r\n".to_owned(), "0\r\n\r\n", "not supported"),
        ("Transfer-Encoding : chunked\r\n".to_owned(), "0\r\n\r\n", "malformed"),
        ("X: y\r\n Content-Length: 5\r\n".to_owned(), "hello", "malformed"),
        ("Host: y\r\n".to_owned(), "", "Host is given twice"),
        // An error in the body is reported as an error of the body.
        ("Transfer-Encoding: chunked\r\n".to_owned(), "-1\r\n\r\n", "the size of a chunk"),
        ("Transfer-Encoding: chunked\r\n".to_owned(), "1\na\r\n0\r\n\r\n", "CR LF"),
        ("Transfer-Encoding: chunked\r\n".to_owned(), "2;a=\"\n\r\n{}\r\n0\r\n\r\n", "CR LF"),
        ("Transfer-Encoding: chunked\r\n".to_owned(), "fffffffffffffffff\r\n\r\n", "the size of a chunk"),
        ("Transfer-Encoding: chunked\r\n".to_owned(), "2\r\n{}}\r\n0\r\n\r\n", "longer than its size"),
        ("Transfer-Encoding: chunked\r\n".to_owned(), "2\r\n{}\r\n0\r\nX: y\n\r\n", "CR LF"),
    ] {
        let mut connection = Connection::open(farm.http);
        connection.send((request("POST /", &headers, body) + &get("a")).as_bytes());
        let answer = connection.read_response();
        let error = answer.failure(400);
        assert!(error.contains(reason), "{headers:?} {body:?}: {error}");
        assert_eq!(answer.header("connection"), Some("close"), "{headers:?} {body:?}: {answer:?}");
        assert_ends(connection);
    }
    assert_there(&mut farm, "a");
}

#[test]
fn the_answer_to_what_is_no_http_names_what_is_expected() {
    let farm = Farm::start();
    for (bytes, reason) in [
        (&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], "TLS"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "METHOD TARGET HTTP/1.1"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "METHOD TARGET HTTP/1.1"),
        (b"GET / HTTP/1.1\r\n\r\n", "Host"),
    ] {
        for to in [farm.http, farm.api] {
            let mut connection = Connection::open(to);
            connection.send(bytes);
            let error = connection.read_response().failure(400);
            assert!(error.contains(reason), "{}: {error}", bytes.escape_ascii());
            assert_ends(connection);
        }
    }
}

#[test]
fn http_1_0_is_spoken() {
    let (_farm, mut connection) = farm();
    connection.send(b"GET /?bufferUUID=a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let answer = connection.read_response();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("keep-alive")), "{answer:?}");
    connection.send(b"GET /?bufferUUID=b HTTP/1.0\r\n\r\n");
    let answer = connection.read_response();
    assert_eq!((answer.status, answer.header("connection")), (200, None), "{answer:?}");
    assert_ends(connection);
}

/// 50 orders for the API server.
fn orders() -> String {
    let order = |number| {
        let body = format!(
            "{{\"TYPE\": \"ADD_BUFFER_MSG\", \"DATA\": {{\"BUFFER_UUID\": \"id-{number}\", \"BUFFER_MSG\": {number}}}}}"
        );
        let headers = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        request("POST /CommunicationInterface/AddBufferMsg", &headers, &body)
    };
    (0..50).map(order).collect()
}

#[test]
fn a_client_that_has_closed_its_side_gets_all_its_answers() {
    let farm = Farm::start();
    let frames: String = (0..50).map(|_| post("", TEST)).collect();
    for (to, requests) in [(farm.api, orders()), (farm.http, frames)] {
        let mut socket = TcpStream::connect(to).expect("the server accepts");
        socket.set_read_timeout(Some(SOON)).expect("a time limit");
        socket.write_all(requests.as_bytes()).expect("the server to read");
        socket.shutdown(Shutdown::Write).expect("still open");
        let mut answers = String::new();
        socket.read_to_string(&mut answers).expect("answers, and an end");
        assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 50, "{answers}");
    }
    assert_eq!(farm.readyz()["buffer"]["messages"], 50);
}

#[test]
fn over_tls_the_answers_belong_to_their_requests_too() {
    let ca = Ca::new();
    let [cert, key] = ca.issue_files("both");
    let mut farm =
        Farm::with(&["--http-tls-cert", &cert, "--http-tls-key", &key, "--api-tls-cert", &cert, "--api-tls-key", &key]);
    let client = Client::trusting(&ca);
    let order = "{\"TYPE\": \"ADD_BUFFER_MSG\", \"DATA\": {\"BUFFER_UUID\": \"a\", \"BUFFER_MSG\": [1, 2]}}";
    let stored = client.open(farm.api).request("POST", "/CommunicationInterface/AddBufferMsg", &[], order.as_bytes());
    assert_eq!(stored.status, 200, "{stored:?}");
    let mut connection = client.open(farm.http);
    connection.send((get("a").replace("GET", "HEAD") + &get("a") + &get("b").replace("GET", "HEAD")).as_bytes());
    let head = connection.read_head();
    let answer = connection.read_response();
    assert_eq!((head.status, head.content_length()), (200, answer.body.len() as u64));
    assert_eq!(farm.peer.loads(&answer.body), "[1, 2]");
    assert_eq!(connection.read_head().status, 400);
    connection.send((post("Connection: close\r\n", "no JSON") + &get("a")).as_bytes());
    connection.read_response().failure(400);
    assert_ends(connection);

    let mut tls = client.try_shake_hands(farm.api).expect("a handshake");
    tls.write_all(orders().as_bytes()).expect("the server to read");
    tls.conn.send_close_notify();
    tls.flush().expect("the server to read");
    tls.sock.shutdown(Shutdown::Write).expect("still open");
    let mut answers = String::new();
    tls.read_to_string(&mut answers).expect("answers, and a close_notify");
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 50, "{answers}");
}

#[test]
fn a_waiting_next_message_whose_client_has_closed_its_side_takes_nothing() {
    let mut farm = Farm::start();
    let mut socket = TcpStream::connect(farm.api).expect("the server accepts");
    socket.set_read_timeout(Some(SOON)).expect("a time limit");
    socket.write_all(request("GET /UserManager/NextMessage?wait=60", "", "").as_bytes()).expect("the server to read");
    socket.shutdown(Shutdown::Write).expect("still open");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer long before the wait is over");
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    // others hang up altogether, some with a request behind
    for behind in ["", "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
        let mut connection = Connection::open(farm.api);
        connection.send((request("GET /UserManager/NextMessage?wait=60", "", "") + behind).as_bytes());
        drop(connection);
    }
    // They end once the server runs: if one of them took a message, that would count two deliveries.
    eventually("nobody waits", SOON, || {
        farm.post(&crate::harness::frame("FRAME_RENDERED", "'x'"));
        let message = farm.next("wait=1").ok_or("no message")?;
        assert_eq!(farm.delete(&message.id), 204);
        holds(message.delivery_count == "1", "delivered before")
    });
}
