//! `GET /?bufferUUID=ID&wait=S`: a worker waits for its message.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Ca, Client, Connection, Farm, Host, Response, SOON, Setup, connect, eventually, holds, request};

/// A request for a message that waits for it.
fn begin_waiting(farm: &Farm, method: &str, uuid: &str, wait: &str) -> Connection {
    let mut connection = Connection::open(farm.http);
    connection.send_head(method, &farm.worker_path(&format!("/?bufferUUID={uuid}&wait={wait}")), &[]);
    connection
}

#[track_caller]
fn expect_message(farm: &mut Farm, answer: &Response, message: &str) {
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(farm.peer.loads(&answer.body), message);
}

#[track_caller]
fn expect_refusal(farm: &mut Farm, answer: &Response, message: &str) {
    assert_eq!(answer.status, 400, "{answer:?}");
    assert_eq!(farm.peer.loads(&answer.body), format!("{{'message': '{message}'}}"));
}

#[test]
fn a_message_that_comes_meanwhile_is_answered_at_once_as_without_a_wait() {
    for host in [Host::Server, Host::Embedded] {
        let mut farm = Farm::on(host);
        let mut waiting = begin_waiting(&farm, "GET", "id-1", "60");
        let start = Instant::now();
        // The server's turn, so that these probably wait by then; the result is the same if they do not.
        assert_eq!(farm.ask("GET", "id-2", &[]).status, 400);
        farm.leave("id-1", "{'FRAMES': [1]}");
        let answer = waiting.read_response();
        assert!(start.elapsed() < Duration::from_secs(20), "after {:?}", start.elapsed());
        expect_message(&mut farm, &answer, "{'FRAMES': [1]}");
        farm.expect_no_message("id-1");
        let mut head = begin_waiting(&farm, "HEAD", "id-1", "60");
        farm.leave("id-1", "{'FRAMES': [1]}");
        let head = head.read_head();
        let plain = farm.ask("GET", "id-1", &[]);
        assert_eq!((head.status, head.content_length()), (200, plain.body.len() as u64), "{head:?}");
        assert_eq!((constant(&answer), &answer.body), (constant(&plain), &plain.body));
    }
}

/// The headers that are the same for the same message under the same UUID.
fn constant(answer: &Response) -> Vec<(String, String)> {
    let mut headers = answer.headers.clone();
    headers.retain(|(name, _)| !["etag", "date", "x-request-id"].contains(&name.as_str()));
    headers.sort();
    headers
}

#[test]
fn after_the_wait_the_answer_is_that_without_a_wait_and_the_connection_stays_usable() {
    let mut farm = Farm::with(&["--keep-alive", "1s"]);
    let mut connection = Connection::open(farm.http);
    for (wait, least) in [("0", 0), ("0.5", 500), ("2.25", 2_250)] {
        let start = Instant::now();
        let answer = connection.request("GET", &format!("/?bufferUUID=id-1&wait={wait}"), &[], b"");
        assert!(start.elapsed() >= Duration::from_millis(least), "wait={wait}: after {:?}", start.elapsed());
        expect_refusal(&mut farm, &answer, "No Buffer Message");
        let start = Instant::now();
        let answer = connection.request("HEAD", &format!("/?bufferUUID=id-1&wait={wait}"), &[], b"");
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(start.elapsed() >= Duration::from_millis(least), "HEAD, wait={wait}: after {:?}", start.elapsed());
    }
}

#[test]
fn a_wait_that_is_no_number_from_0_to_60_or_is_given_twice_is_an_error() {
    let mut farm = Farm::start();
    farm.leave("id-1", "1");
    for wait in [
        "",
        "-1",
        "%2B1",
        "+1",
        "1e1",
        "inf",
        "NaN",
        "60.1",
        "61",
        "1s",
        "x",
        "%201",
        "1%20",
        ".",
        "1.2.3",
        "1,5",
        "0x1",
        "1&wait=1",
        "&wait=",
        "%00",
        "%D9%A1",
        "99999999999999999999999",
    ] {
        for method in ["GET", "HEAD"] {
            let path = format!("/?bufferUUID=id-1&wait={wait}");
            let answer = request(farm.http, method, &path, &[], b"");
            assert_eq!(answer.status, 400, "{method} {path}: {answer:?}");
            if method == "GET" {
                let value = farm.peer.loads(&answer.body);
                assert!(
                    value.contains("wait must be given once, as a decimal number of seconds from 0 to 60"),
                    "{value}"
                );
            }
        }
    }
    // more than one waiting must not be taken for none
    let twice = request(farm.http, "GET", "/?wait=1&bufferUUID=id-1&wait=1", &[], b"");
    assert_eq!(twice.status, 400, "{twice:?}");
    for wait in ["0", "60", "1.5", ".5", "5."] {
        let answer = request(farm.http, "HEAD", &format!("/?bufferUUID=id-1&wait={wait}"), &[], b"");
        assert_eq!(answer.status, 200, "{wait}: {answer:?}");
    }
    assert_eq!(farm.fetch_value("id-1"), "1", "none of these has taken it");
}

#[test]
fn who_waits_for_another_delivery_gets_the_message_if_that_breaks_off_and_the_next_one_if_it_succeeds() {
    let mut farm = Farm::start();
    farm.sparse_blend_file("scene.blend", 64 << 20);
    farm.leave_blend("id-1", "scene.blend");
    let (broken, head) = farm.begin_fetch("id-1");
    let answer = request(farm.http, "GET", "/?bufferUUID=id-1&wait=0.3", &[], b"");
    expect_refusal(&mut farm, &answer, "Buffer Message In Delivery");
    assert_eq!(answer.header("retry-after"), Some("1"), "{answer:?}");
    let mut waiting = begin_waiting(&farm, "GET", "id-1", "60");
    assert_eq!(farm.ask("HEAD", "id-1", &[]).status, 200);
    drop(broken);
    let again = waiting.read_head();
    assert_eq!((again.status, again.header("etag")), (200, head.header("etag")), "{again:?}");
    let mut next = begin_waiting(&farm, "GET", "id-1", "60");
    waiting.read_exact(again.content_length() as usize);
    farm.leave("id-1", "'next'");
    let answer = next.read_response();
    expect_message(&mut farm, &answer, "'next'");
}

#[test]
fn several_that_wait_get_one_message_each_in_the_order_in_which_they_came() {
    let mut farm = Farm::start();
    let mut all = Vec::new();
    for _ in 0..5 {
        all.push(begin_waiting(&farm, "GET", "id-1", "60"));
        // each is waiting before the next one comes
        eventually("it waits", SOON, || {
            let waiting = farm.readyz()["buffer"]["waiting"].as_u64();
            holds(waiting == Some(all.len() as u64), format!("{waiting:?} wait"))
        });
    }
    for (number, mut waiting) in all.into_iter().enumerate() {
        farm.leave("id-1", &number.to_string());
        let answer = waiting.read_response();
        expect_message(&mut farm, &answer, &number.to_string());
    }
    farm.expect_no_message("id-1");
}

/// Hangs up in each way that a client can.
fn hang_up(socket: TcpStream, how: usize) -> Option<TcpStream> {
    match how % 3 {
        0 => {
            drop(socket);
            None
        }
        1 => {
            socket.shutdown(Shutdown::Write).expect("a connection");
            Some(socket)
        }
        _ => {
            // unread bytes make the close a reset on some systems; the server must not care
            socket.shutdown(Shutdown::Both).expect("a connection");
            Some(socket)
        }
    }
}

fn send_waiting(to: SocketAddr, path: &str) -> TcpStream {
    let mut socket = connect(to).expect("a connection");
    write!(socket, "GET {path} HTTP/1.1\r\nHost: {to}\r\n\r\n").expect("the server to read");
    socket
}

#[test]
fn a_client_that_hangs_up_while_it_waits_takes_no_message() {
    for host in [Host::Server, Host::Embedded] {
        let mut farm = Farm::on(host);
        for round in 0..60 {
            let uuid = format!("id-{round}");
            let path = farm.worker_path(&format!("/?bufferUUID={uuid}&wait=60"));
            let socket = send_waiting(farm.http, &path);
            if round % 2 == 0 {
                assert_eq!(farm.ask("GET", "id-x", &[]).status, 400);
            }
            // before the message is there: so close that the server may learn of both at once
            let _half_closed = hang_up(socket, round);
            farm.leave(&uuid, &round.to_string());
            assert_eq!(farm.fetch_value(&uuid), round.to_string(), "round {round}, {host:?}");
        }
    }
}

#[test]
fn a_client_that_sends_much_ahead_while_it_waits_is_told_so_and_takes_no_message() {
    let mut farm = Farm::start();
    for (ahead, hangs_up) in [(1_000, true), (100_000, true), (100_000, false)] {
        let mut socket = send_waiting(farm.http, "/?bufferUUID=id-1&wait=60");
        write!(socket, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {ahead}\r\n\r\n").expect("a connection");
        // the answer may come first, and end the connection
        let _ = socket.write_all(&vec![b'x'; ahead]);
        if hangs_up {
            let _ = socket.shutdown(Shutdown::Write);
        }
        let mut start = [0; 13];
        socket.read_exact(&mut start).expect("an answer long before the end of the wait");
        assert_eq!(start.escape_ascii().to_string(), "HTTP/1.1 400 ", "{ahead} bytes ahead");
        farm.leave("id-1", "1");
        assert_eq!(farm.fetch_value("id-1"), "1", "{ahead} bytes ahead");
    }
}

#[test]
fn a_client_that_closes_its_sending_side_is_told_so_and_waits_no_longer() {
    let mut farm = Farm::start();
    let mut socket = send_waiting(farm.http, "/?bufferUUID=id-1&wait=60");
    socket.shutdown(Shutdown::Write).expect("a connection");
    let start = Instant::now();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).expect("an answer");
    assert!(start.elapsed() < Duration::from_secs(20), "after {:?}", start.elapsed());
    assert!(answer.starts_with(b"HTTP/1.1 400 "), "{}", answer.escape_ascii());
    farm.leave("id-1", "1");
    // without a wait it gets its answer, as ever
    let mut socket = send_waiting(farm.http, "/?bufferUUID=id-1&wait=0");
    socket.shutdown(Shutdown::Write).expect("a connection");
    answer.clear();
    socket.read_to_end(&mut answer).expect("an answer");
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", answer.escape_ascii());
}

#[test]
fn a_message_that_comes_while_its_client_hangs_up_is_either_received_or_still_there() {
    let mut farm = Farm::start();
    for round in 0..40 {
        let uuid = format!("id-{round}");
        let mut socket = send_waiting(farm.http, &format!("/?bufferUUID={uuid}&wait=60"));
        let hanging_up = thread::spawn(move || {
            socket.shutdown(Shutdown::Write).expect("a connection");
            let mut answer = Vec::new();
            socket.read_to_end(&mut answer).expect("an answer");
            answer.starts_with(b"HTTP/1.1 200 ")
        });
        farm.leave(&uuid, &round.to_string());
        if hanging_up.join().expect("no panic") {
            farm.expect_no_message(&uuid);
        } else {
            assert_eq!(farm.fetch_value(&uuid), round.to_string(), "round {round}");
        }
    }
}

#[test]
fn over_tls_and_with_a_token_a_client_waits_and_takes_nothing_once_it_has_hung_up() {
    let ca = Ca::new();
    let [cert, key] = ca.issue_files("server");
    let setup = Setup::default();
    let tokens = setup.path("tokens");
    std::fs::write(&tokens, "a-token-of-a-worker\n").expect("a file of tokens");
    let tokens = tokens.display().to_string();
    let args = ["--http-tls-cert", &cert, "--http-tls-key", &key, "--worker-token-file", &tokens];
    let mut farm = Farm::of(setup.args(args));
    let client = Client::trusting(&ca);
    let path = "/?bufferUUID=id-1&wait=60";
    assert_eq!(client.open(farm.http).request("GET", path, &[], b"").status, 401, "no token, no wait");
    let token = ("Authorization", "Bearer a-token-of-a-worker");
    // a close_notify, and then a closed socket
    let mut stream = client.try_shake_hands(farm.http).expect("a handshake");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n{}: {}\r\n\r\n", token.0, token.1).expect("the server to read");
    stream.conn.send_close_notify();
    stream.flush().expect("the server to read");
    let mut gone = client.open(farm.http);
    gone.send_head("GET", path, &[token]);
    drop(gone);
    let mut waiting = client.open(farm.http);
    waiting.send_head("GET", path, &[token]);
    farm.leave("id-1", "'for the one that is there'");
    let answer = waiting.read_response();
    expect_message(&mut farm, &answer, "'for the one that is there'");
}

#[test]
fn a_stop_answers_those_that_wait() {
    let mut farm = Farm::start();
    let mut all: Vec<_> = ["GET", "HEAD"].map(|method| begin_waiting(&farm, method, "id-1", "60")).into();
    eventually("both wait", SOON, || {
        let waiting = farm.readyz()["buffer"]["waiting"].as_u64();
        holds(waiting == Some(2), format!("{waiting:?} wait"))
    });
    farm.terminate();
    let answer = all.remove(0).read_response();
    expect_refusal(&mut farm, &answer, "No Buffer Message");
    assert_eq!(all.remove(0).read_head().status, 400);
    let status = farm.server.wait_for_exit(Duration::from_secs(10));
    assert_eq!(status.code(), Some(0), "{status}; log:\n{}", farm.server.log());
}

#[test]
fn requests_and_curl_wait_for_their_message() {
    let mut farm = Farm::start();
    let curl = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "60"])
        .arg(format!("http://{}/?bufferUUID=for-curl&wait=60", farm.http))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("curl");
    let (url, api) = (farm.worker_url(), farm.server.api_url("/CommunicationInterface/AddBufferMsg"));
    let arguments = json!({ "url": url, "api": api, "uuid": "for-requests", "wait": 60, "message": "'hello'" });
    let answer = farm.peer.answer("wait_for", arguments);
    assert_eq!((answer.status, answer.value.as_str()), (200, "'hello'"), "{answer:?}");
    farm.leave("for-curl", "'hello, curl'");
    let output = curl.wait_with_output().expect("curl");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(farm.peer.loads(&output.stdout), "'hello, curl'");
}
