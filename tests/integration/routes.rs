//! What neither server has a route for.

use crate::harness::{Connection, Server, request};

#[test]
fn an_unknown_path_is_answered_404() {
    let server = Server::start();
    for path in ["/nothing", "/nothing/more", "/CommunicationInterface"] {
        request(server.http, "GET", path, &[], b"").failure(404);
    }
    for path in ["/nothing", "/CommunicationInterface/", "/UserManager/Messages", "/UserManager/Messages/"] {
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
        (server.api, "POST", "/UserManager/NextMessage", "HEAD"),
        (server.api, "GET", id, "DELETE"),
        (server.api, "POST", "/", "GET"),
        (server.api, "POST", "/status", "GET"),
        (server.api, "DELETE", "/events", "HEAD"),
        (server.api, "POST", "/healthz", "GET"),
        (server.api, "POST", "/healthz", "HEAD"),
        (server.api, "POST", "/readyz", "GET"),
        (server.api, "DELETE", "/UserManager/Parked", "HEAD"),
    ] {
        let answer = request(to, method, path, &[], b"");
        answer.failure(405);
        let allow = answer.header("allow").unwrap_or_else(|| panic!("{method} {path}: no Allow: {answer:?}"));
        assert!(allow.split(", ").any(|method| method == allowed), "{method} {path}: {allow}");
    }
}

#[test]
fn head_is_answered_wherever_get_is_with_the_same_head_and_no_body() {
    let server = Server::start();
    let mut connection = Connection::open(server.api);
    for path in ["/", "/healthz", "/readyz", "/UserManager/Parked", "/UserManager/NextMessage", "/nothing"] {
        let head = connection.request("HEAD", path, &[], b"");
        // on the same connection: a body that HEAD had would be taken for this answer
        let get = connection.request("GET", path, &[], b"");
        let headers = |answer: &crate::harness::Response| {
            ["content-type", "content-length", "cache-control"].map(|name| answer.header(name).map(str::to_owned))
        };
        assert_eq!((head.status, headers(&head)), (get.status, headers(&get)), "{path}: {head:?}, {get:?}");
    }
}

#[test]
fn head_on_the_health_routes_needs_no_token_either() {
    let setup = crate::harness::Setup::default();
    let tokens = setup.path("tokens");
    std::fs::write(&tokens, format!("sha256:{}\n", "0".repeat(64))).expect("a token file");
    let server = setup.args(["--api-token-file", tokens.to_str().expect("UTF-8")]).start();
    for path in ["/healthz", "/readyz"] {
        assert_eq!(request(server.api, "HEAD", path, &[], b"").status, 200, "{path}");
    }
    assert_eq!(request(server.api, "HEAD", "/UserManager/NextMessage", &[], b"").status, 401);
}
