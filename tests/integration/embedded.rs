//! The example of an application with the gateway inside protects the routes that it mounts.

use std::fs;

use crate::harness::{Host, Response, Server, Setup, request};

const WORKER_TOKEN: &str = "a-token-of-a-worker";
const API_TOKEN: &str = "a-token-of-a-service";

/// The example with a file of tokens for each of the two scopes.
fn with_tokens() -> Server {
    let mut setup = Setup::on(Host::Embedded);
    for (flag, token) in [("--worker-token-file", WORKER_TOKEN), ("--api-token-file", API_TOKEN)] {
        let file = setup.path(token);
        fs::write(&file, format!("{token}\n")).expect("a file of tokens");
        setup = setup.args([flag, file.to_str().expect("UTF-8")]);
    }
    setup.start()
}

fn get_message(server: &Server, headers: &[(&str, &str)]) -> Response {
    request(server.http, "GET", &server.worker_path("/?bufferUUID=id-1"), headers, b"")
}

fn get_next(server: &Server, headers: &[(&str, &str)]) -> Response {
    request(server.api, "GET", &server.api_path("/UserManager/NextMessage?wait=0"), headers, b"")
}

#[test]
fn routes_in_an_application_ask_for_the_tokens_of_their_scope() {
    let server = with_tokens();
    for (wrong, header) in [("none", None), ("the other scope's", Some(API_TOKEN)), ("another", Some("guessed"))] {
        let value = header.map(|token| format!("Bearer {token}"));
        let headers: Vec<_> = value.iter().map(|value| ("Authorization", value.as_str())).collect();
        let answer = get_message(&server, &headers);
        assert_eq!(answer.status, 401, "{wrong}: {answer:?}");
        assert!(answer.header("www-authenticate").is_some(), "{wrong}: {answer:?}");
    }
    get_next(&server, &[("Authorization", &format!("Bearer {WORKER_TOKEN}"))]).failure(401);
    assert_eq!(get_message(&server, &[("Authorization", &format!("Bearer {WORKER_TOKEN}"))]).status, 400, "no message");
    assert_eq!(get_next(&server, &[("Authorization", &format!("Bearer {API_TOKEN}"))]).status, 204, "nothing there");
    // the application's own routes are its own business
    assert_eq!(request(server.api, "GET", "/dashboard", &[], b"").status, 200);
}

#[test]
fn routes_in_an_application_refuse_web_pages_of_other_origins_and_other_hosts() {
    let server = Setup::on(Host::Embedded).start();
    assert_eq!(get_next(&server, &[]).status, 204);
    for header in [("Origin", "https://evil.example"), ("Sec-Fetch-Site", "cross-site")] {
        get_next(&server, &[header]).failure(403);
    }
    let mut connection = crate::harness::Connection::open(server.api);
    let path = server.api_path("/UserManager/NextMessage?wait=0");
    connection.send(format!("GET {path} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").as_bytes());
    connection.read_response().failure(403);
    // with tokens the host is the token's business, and the origin is not
    let server = with_tokens();
    let token = format!("Bearer {API_TOKEN}");
    get_next(&server, &[("Authorization", &token), ("Origin", "https://evil.example")]).failure(403);
}
