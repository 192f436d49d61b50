//! Hundreds of bad requests: each is answered, and the server stays what it was.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use serde_json::json;

use crate::harness::{Farm, SOON, frame};

/// How much more memory the process may hold after the battery than before it: four threads that have handled a body
/// (two HTTP workers, two that decode) may keep 8 MiB each.
const GROWTH_KIB: u64 = 32 << 10;

/// Sends bytes and reads what the server answers, if anything, until it closes.
fn throw(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(to).expect("the server to accept");
    stream.set_read_timeout(Some(SOON)).expect("a read timeout");
    let mut answer = Vec::new();
    // The server may have answered and closed before all is sent.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.read_to_end(&mut answer);
    answer
}

fn bad_heads() -> Vec<Vec<u8>> {
    let mut heads: Vec<Vec<u8>> = [
        "",
        "\r\n\r\n",
        "GET\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "G\0T / HTTP/1.1\r\n\r\n",
        "GET /?bufferUUID=%ff%fe HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /?bufferUUID=% HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /?%00=%00&bufferUUID HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: \u{7f}\u{1}\r\nContent-Length: 0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nthe rest never comes",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03",
    ]
    .map(|head| head.as_bytes().to_vec())
    .to_vec();
    heads.push(format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(1 << 20)).into_bytes());
    heads.push(format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(10_000)).into_bytes());
    heads.push(format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "b".repeat(1 << 20)).into_bytes());
    heads
}

/// Bodies that cost a reader much time or memory if it trusts them.
fn costly_bodies() -> Vec<(&'static str, Vec<u8>)> {
    const PICKLE: &str = "application/octet-stream";
    const JSON: &str = "application/json";
    vec![
        (PICKLE, [b"]".repeat(4_000_000), b"a".repeat(3_999_999), b".".to_vec()].concat()),
        (PICKLE, [b"(".repeat(4_000_000), b".".to_vec()].concat()),
        (PICKLE, b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.".to_vec()),
        (PICKLE, b"r\xff\xff\xff\xff.".to_vec()),
        (PICKLE, [b"\x8b\xff\xff\xff\x7f".to_vec(), b"\x01".repeat(1 << 20)].concat()),
        (PICKLE, b"N\x94".repeat(2_000_000)),
        (PICKLE, [b"I".to_vec(), b"7".repeat(4_000_000), b"\n.".to_vec()].concat()),
        (JSON, b"[".repeat(4_000_000)),
        (JSON, b"{\"\":".repeat(1_000_000)),
        (JSON, b"7".repeat(4_000_000)),
        (JSON, [b"\"".to_vec(), b"\\ud800".repeat(700_000)].concat()),
        (JSON, [b"[".to_vec(), b"1,".repeat(2_000_000)].concat()),
    ]
}

#[test]
fn after_a_battery_of_bad_requests_the_process_is_the_same_and_its_memory_returns() {
    let mut farm = Farm::start();
    let campaign = |farm: &mut Farm, seed: u64, cases: u64| {
        let arguments =
            json!({ "worker": farm.server.worker_url(), "api": farm.server.api_url(""), "seed": seed, "cases": cases });
        farm.peer.call("bad_bodies", arguments)
    };
    // The first of each kind makes the server's threads, arenas and buffers.
    campaign(&mut farm, 1, 20);
    for (content_type, body) in costly_bodies() {
        farm.post_bytes(content_type, &body).failure(400);
    }
    let (pid, before) = (farm.pid(), farm.rss_kib());

    let answered = campaign(&mut farm, 2, 600);
    assert!(answered["400"].as_u64() > Some(300), "{answered}");
    for head in bad_heads() {
        for to in [farm.http, farm.api] {
            let answer = throw(to, &head);
            let refused = answer.is_empty() || answer.starts_with(b"HTTP/1.1 4") || answer.starts_with(b"HTTP/1.0 4");
            assert!(refused, "{} to {}", answer.escape_ascii(), head[..head.len().min(100)].escape_ascii());
        }
    }
    for _ in 0..3 {
        for (content_type, body) in costly_bodies() {
            farm.post_bytes(content_type, &body).failure(400);
            farm.order_bytes(content_type, &body).failure(400);
        }
    }

    assert!(farm.is_running(), "the server has ended");
    assert_eq!(farm.pid(), pid);
    let grown = farm.rss_kib().saturating_sub(before);
    assert!(grown < GROWTH_KIB, "grown by {grown} KiB, from {before} KiB");
    let log = farm.log();
    assert!(!log.contains("panicked"), "{log}");
    farm.leave("id-1", "'well'");
    assert_eq!(farm.fetch_value("id-1"), "'well'");
    farm.post(&frame("FRAME_RENDERED", "'well'"));
}
