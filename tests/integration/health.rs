//! `/healthz` and `/readyz` on the API server.

use crate::harness::{Server, request};

#[test]
fn healthz_is_answered_200_while_the_process_is_alive() {
    let server = Server::start();
    assert_eq!(request(server.api, "GET", "/healthz", &[], b"").status, 200);
}

#[test]
fn readyz_tells_that_the_service_takes_work_and_has_no_broker() {
    for args in [&[][..], &["--memory"]] {
        let server = Server::with(args);
        let answer = request(server.api, "GET", "/readyz", &[], b"");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let json = answer.json();
        assert_eq!(
            (&json["ready"], &json["broker"], &json["store"]),
            (&true.into(), &"none".into(), &"ok".into()),
            "{json}"
        );
    }
}

#[test]
fn the_workers_server_tells_nothing_of_the_farm() {
    let server = Server::start();
    for path in ["/healthz", "/readyz", "/UserManager/NextMessage", "/CommunicationInterface/AddBufferMsg"] {
        assert_eq!(request(server.http, "GET", path, &[], b"").status, 404, "{path}");
    }
    assert_eq!(request(server.http, "POST", "/CommunicationInterface/AddBufferMsg", &[], b"{}").status, 404);
}
