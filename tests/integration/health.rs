//! `/healthz` and `/readyz` on the API server.

use serde_json::json;

use crate::harness::{Farm, Server, frame, request};

#[test]
fn healthz_is_answered_200_while_the_process_is_alive() {
    let server = Server::start();
    assert_eq!(request(server.api, "GET", "/healthz", &[], b"").status, 200);
}

/// Without a word about it, a cache may keep an answer as long as it likes (RFC 9111, section 4.2.2).
#[test]
fn no_cache_keeps_what_healthz_and_readyz_say() {
    let server = Server::start();
    for path in ["/healthz", "/readyz"] {
        let answer = request(server.api, "GET", path, &[], b"");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{answer:?}");
    }
}

#[test]
fn readyz_says_that_the_service_takes_work_and_has_no_broker() {
    for args in [&[][..], &["--memory"]] {
        let server = Server::with(args);
        let answer = request(server.api, "GET", "/readyz", &[], b"");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let json = answer.json();
        assert_eq!(
            (&json["ready"], &json["broker"], &json["store"]),
            (&json!(true), &json!("none"), &json!("ok")),
            "{json}"
        );
    }
}

#[test]
fn the_worker_server_reveals_nothing_about_the_farm() {
    let server = Server::start();
    for path in ["/healthz", "/readyz", "/UserManager/NextMessage", "/CommunicationInterface/AddBufferMsg"] {
        assert_eq!(request(server.http, "GET", path, &[], b"").status, 404, "{path}");
    }
    assert_eq!(request(server.http, "POST", "/CommunicationInterface/AddBufferMsg", &[], b"{}").status, 404);
}

/// These tests need the farm's Python programs.
mod python {
    use super::*;

    #[test]
    fn a_broker_that_is_away_leaves_the_service_ready_while_the_outbox_has_capacity() {
        let mut farm = Farm::with(&["--amqp-url", "amqp://guest:guest@127.0.0.1:1/%2f", "--max-outbox", "1MiB"]);
        let answer = request(farm.api, "GET", "/readyz", &[], b"");
        assert_eq!((answer.status, &answer.json()["broker"]), (200, &json!("disconnected")), "{answer:?}");
        // Filled to the last byte: while a smaller message still fits, the outbox has capacity.
        for len in [300_000, 30_000, 3_000, 300, 0] {
            let body = farm.peer.dumps(&frame("FRAME_RENDERED", &format!("bytes({len})")), 4);
            while farm.post_bytes("application/octet-stream", &body).status == 200 {}
        }
        let answer = request(farm.api, "GET", "/readyz", &[], b"");
        let json = answer.json();
        assert_eq!(
            (answer.status, &json["ready"], &json["broker"]),
            (503, &json!(false), &json!("disconnected")),
            "{json}"
        );
        assert_eq!(request(farm.api, "GET", "/healthz", &[], b"").status, 200, "alive all the same");
    }
}
