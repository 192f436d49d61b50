//! Behind nginx, HAProxy and Caddy, set up as `docs/proxies.md` says, the promises are the same.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::harness::{Connection, Farm, Front, Kind, Proxy, Response, SOON, eventually, frame, holds, io_bytes};

/// More than the sockets of a connection through a proxy hold, so that an answer that nobody reads stays unfinished.
const LARGE: usize = 64 << 20;
/// What a worker reads of it before it hangs up.
const READ: usize = 1 << 20;
const FRAME: usize = 20 << 20;

macro_rules! for_each_proxy {
    ($($test:ident),* $(,)?) => {
        crate::harness::tests_with!(behind_nginx, crate::harness::Kind::Nginx, $($test),*);
        crate::harness::tests_with!(behind_haproxy, crate::harness::Kind::HaProxy, $($test),*);
        crate::harness::tests_with!(behind_caddy, crate::harness::Kind::Caddy, $($test),*);
    };
}

for_each_proxy!(
    a_worker_that_breaks_off_leaves_the_message_and_the_next_gets_it_whole,
    a_broken_transfer_is_resumed,
    a_large_frame_goes_through_and_is_taken_and_deleted,
    a_call_that_hangs_up_while_it_waits_for_a_message_takes_none,
    a_hundred_requests_after_pauses_are_all_answered,
);

/// A farm with a message that holds a large .blend file, and the file's content.
fn farm_with_large_message() -> (Farm, Vec<u8>) {
    let mut farm = Farm::start();
    let pattern: Vec<u8> = (0..=250).collect();
    let mut content = pattern.repeat(LARGE / pattern.len() + 1);
    content.truncate(LARGE);
    farm.blend_file("scene.blend", &content);
    farm.leave_blend("id-1", "scene.blend");
    (farm, content)
}

/// Asks for the message until it is not in delivery any more; the connection, and the answer's head.
#[track_caller]
fn ask_when_released(front: &Front, headers: &[(&str, &str)]) -> (Connection, Response) {
    eventually("the message is offered again", SOON, || {
        let mut connection = front.client.open(front.workers);
        connection.send_head("GET", "/?bufferUUID=id-1", headers);
        let head = connection.read_head();
        if head.status == 400 { Err(head) } else { Ok((connection, head)) }
    })
}

/// Starts to fetch the message, and hangs up when everything that can be on its way is; what came, and the message's
/// ETag.
#[track_caller]
fn break_off(front: &Front, farm: &Farm) -> (Vec<u8>, String) {
    let mut connection = front.client.open(front.workers);
    connection.send_head("GET", "/?bufferUUID=id-1", &[]);
    let head = connection.read_head();
    assert_eq!((head.status, head.header("cache-control")), (200, Some("no-store")), "{head:?}");
    let received = connection.read_exact(READ);
    wait_until_nothing_is_read(farm.pid());
    (received, head.header("etag").expect("an ETag").to_owned())
}

/// Waits until the server stops reading the file: nothing accepts more of the answer.
#[track_caller]
fn wait_until_nothing_is_read(pid: u32) {
    let mut last = (0, 0);
    eventually("the server has stopped reading", SOON, || {
        let read = io_bytes(pid, "rchar");
        last = if read == last.0 { (read, last.1 + 1) } else { (read, 0) };
        // at ten milliseconds each
        holds(last.1 >= 50, last)
    });
}

/// Checks that a whole message has arrived.
#[track_caller]
fn assert_whole(body: &[u8], content: &[u8]) {
    // behind the file the message has its end, of 3 bytes
    let file = body.len() - 3 - content.len()..body.len() - 3;
    assert!(body[file] == *content, "the file's bytes, in {} bytes", body.len());
}

#[track_caller]
fn assert_breaking_off_leaves_the_message(front: &Front, farm: &mut Farm, content: &[u8]) {
    break_off(front, farm);
    let (mut connection, head) = ask_when_released(front, &[]);
    assert_eq!(head.status, 200, "{head:?}");
    assert_whole(&connection.read_exact(head.content_length() as usize), content);
    farm.expect_no_message("id-1");
}

fn a_worker_that_breaks_off_leaves_the_message_and_the_next_gets_it_whole(kind: Kind) {
    let (mut farm, content) = farm_with_large_message();
    let front = Front::start(kind, &farm);
    assert_breaking_off_leaves_the_message(&front, &mut farm, &content);
}

#[test]
fn nginx_that_buffers_answers_by_default_does_not_buffer_deliveries() {
    let (mut farm, content) = farm_with_large_message();
    let configuration = Kind::Nginx.configuration();
    let by_default = configuration.replace("proxy_buffering off;", "");
    assert_ne!(by_default, configuration);
    let front = Front::with(Kind::Nginx, [farm.http, farm.api], &by_default);
    assert_breaking_off_leaves_the_message(&front, &mut farm, &content);
}

fn a_broken_transfer_is_resumed(kind: Kind) {
    let (mut farm, content) = farm_with_large_message();
    let front = Front::start(kind, &farm);
    let (mut body, tag) = break_off(&front, &farm);
    let range = format!("bytes={}-", body.len());
    let (mut connection, head) = ask_when_released(&front, &[("Range", &range), ("If-Range", &tag)]);
    assert_eq!(head.status, 206, "{head:?}");
    body.extend(connection.read_exact(head.content_length() as usize));
    assert_whole(&body, &content);
    farm.expect_no_message("id-1");
}

fn a_large_frame_goes_through_and_is_taken_and_deleted(kind: Kind) {
    let mut farm = Farm::start();
    let front = Front::start(kind, &farm);
    let body = farm.peer.dumps(&frame("FRAME_RENDERED", &format!("bytes({FRAME})")), 4);
    let mut worker = front.client.open(front.workers);
    let answer = worker.request("POST", "/", &[("Content-Type", "application/octet-stream")], &body);
    assert_eq!((answer.status, &answer.json()["DATA"]), (200, &"RECEIVED".into()), "{answer:?}");
    let mut manager = Connection::open(front.services);
    let answer = manager.request("GET", "/UserManager/NextMessage?wait=30", &[], b"");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.body.len() > FRAME, "{} bytes", answer.body.len());
    let id = answer.header("message-id").expect("a Message-Id");
    let answer = manager.request("DELETE", &format!("/UserManager/Messages/{id}"), &[], b"");
    assert_eq!(answer.status, 204, "{answer:?}");
    farm.expect_nothing_for_the_user_manager();
}

/// How many connections to a server there are that it has not closed.
fn connections_to(server: SocketAddr) -> usize {
    let local = format!(":{:04X}", server.port());
    let sockets = fs::read_to_string("/proc/net/tcp").expect("the kernel's table of sockets");
    let fields = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // ESTABLISHED, CLOSE_WAIT
    fields.filter(|fields| fields[1].ends_with(&local) && ["01", "08"].contains(&fields[3])).count()
}

fn a_call_that_hangs_up_while_it_waits_for_a_message_takes_none(kind: Kind) {
    let mut farm = Farm::start();
    let front = Front::start(kind, &farm);
    let wait_for_connections = |count| {
        eventually(&format!("{count} connections to the API server"), SOON, || {
            let connections = connections_to(farm.api);
            holds(connections == count, connections)
        });
    };
    wait_for_connections(0);
    let mut waiting = Connection::open(front.services);
    waiting.send_head("GET", "/UserManager/NextMessage?wait=60&lease=600", &[]);
    wait_for_connections(1);
    drop(waiting);
    wait_for_connections(0);
    farm.post(&frame("FRAME_RENDERED", "1"));
    let message = farm.next("wait=30").expect("the message that nobody has taken");
    assert_eq!(message.delivery_count, "1");
}

/// A request as an ordinary client sends it: one that finds its connection closed opens another.
fn ask(front: &Front, kept: &mut Option<Connection>, method: &str, path: &str, body: &[u8]) -> io::Result<Response> {
    if let Some(connection) = kept {
        let sent = connection.try_send_request(method, path, &[], body);
        if let Ok(answer) = sent.and_then(|()| connection.try_read_response()) {
            return Ok(answer);
        }
    }
    let connection = kept.insert(front.client.try_open(front.workers)?);
    connection.try_send_request(method, path, &[], body)?;
    connection.try_read_response()
}

/// How long a way takes between proxy and server: for twice as long the proxy can send a request on a connection that
/// the server has closed, or closes before the request is there.
const WAY: Duration = Duration::from_millis(250);
/// How long a client does nothing: that connections are idle for so long is what this is about. The first is short of
/// every proxy's time; the second ends when the server's time is up by the time that the next request is there.
const PAUSES: [Duration; 2] = [Duration::from_millis(2_500), Duration::from_millis(4_750)];

fn a_hundred_requests_after_pauses_are_all_answered(kind: Kind) {
    let farm = Farm::with(&["--keep-alive", "5s"]);
    let network = Proxy::to_http(farm.http);
    let front = Front::with(kind, [network.address(), farm.api], &kind.configuration());
    network.delay(WAY);
    let ask_five_times = |client: usize| {
        let mut kept = None;
        for round in 0..5 {
            if round > 0 {
                // all in step, so that all the proxy's connections are idle for as long
                thread::sleep(PAUSES[round % PAUSES.len()]);
            }
            if client.is_multiple_of(3) {
                kept = None;
            }
            let (method, path, body, expected) = match client / 2 % 2 {
                0 => ("GET", "/?bufferUUID=none", &b""[..], (400, "No Buffer Message")),
                _ => (
                    "POST",
                    "/",
                    &br#"{"USER_ID": "me", "MAIN_DATA": {"TYPE": "TEST", "DATA": 1}}"#[..],
                    (200, "RECEIVED"),
                ),
            };
            let answer = ask(&front, &mut kept, method, path, body).expect("an answer");
            let text = String::from_utf8_lossy(&answer.body);
            assert!(answer.status == expected.0 && text.contains(expected.1), "client {client}, {method}: {answer:?}");
        }
    };
    thread::scope(|scope| {
        for client in 0..20 {
            let ask_five_times = &ask_five_times;
            scope.spawn(move || ask_five_times(client));
        }
    });
}

#[test]
fn the_documentation_shows_the_configurations_that_are_tested() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/proxies.md");
    let text = fs::read_to_string(&path).expect("docs/proxies.md");
    for kind in [Kind::Nginx, Kind::HaProxy, Kind::Caddy] {
        assert!(text.contains(&kind.configuration()), "{} is not in docs/proxies.md as it is", kind.file());
    }
}
