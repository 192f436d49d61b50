//! What neither server has a route for.

use crate::harness::{Server, request};

#[test]
fn an_unknown_path_is_answered_404() {
    let server = Server::start();
    for path in ["/nothing", "/nothing/more", "/CommunicationInterface"] {
        request(server.http, "GET", path, &[], b"").failure(404);
    }
    for path in ["/", "/nothing", "/CommunicationInterface/", "/UserManager/Messages", "/UserManager/Messages/"] {
        request(server.api, "GET", path, &[], b"").failure(404);
    }
    request(server.http, "POST", "/nothing", &[], b"{}").failure(404);
}

#[test]
fn a_method_that_a_path_does_not_have_is_answered_405_with_those_it_has() {
    let server = Server::start();
    let id = "/UserManager/Messages/00000000-0000-4000-8000-000000000000";
    for (to, method, path, allowed) in [
        (server.http, "PUT", "/", "GET"),
        (server.http, "DELETE", "/", "POST"),
        (server.http, "PATCH", "/?bufferUUID=x", "HEAD"),
        (server.api, "GET", "/CommunicationInterface/AddBufferMsg", "POST"),
        (server.api, "POST", "/UserManager/NextMessage", "GET"),
        (server.api, "GET", id, "DELETE"),
        (server.api, "POST", "/healthz", "GET"),
        (server.api, "POST", "/readyz", "GET"),
    ] {
        let answer = request(to, method, path, &[], b"");
        answer.failure(405);
        let allow = answer.header("allow").unwrap_or_else(|| panic!("{method} {path}: no Allow: {answer:?}"));
        assert!(allow.split(", ").any(|method| method == allowed), "{method} {path}: {allow}");
    }
}
