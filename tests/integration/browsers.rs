//! Web pages in a browser that reaches the API server: they leave, take and read nothing.

use std::fs;
use std::net::SocketAddr;

use serde_json::json;

use crate::harness::{Connection, Farm, Response, Server, Setup, request};

const ROUTES: [(&str, &str); 9] = [
    ("POST", "/CommunicationInterface/AddBufferMsg"),
    ("GET", "/UserManager/NextMessage"),
    ("DELETE", "/UserManager/Messages/x"),
    ("GET", "/UserManager/Parked"),
    ("POST", "/UserManager/Parked/x/Publish"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("OPTIONS", "/CommunicationInterface/AddBufferMsg"),
    ("GET", "/nowhere"),
];

fn order(uuid: &str) -> Vec<u8> {
    let data = json!({ "BUFFER_UUID": uuid, "BUFFER_MSG": "left" });
    json!({ "TYPE": "ADD_BUFFER_MSG", "DATA": data }).to_string().into_bytes()
}

/// Leaves a message as a page does that may set no header but these.
fn leave(to: SocketAddr, uuid: &str, headers: &[(&str, &str)]) -> Response {
    let headers = [&[("Content-Type", "text/plain")], headers].concat();
    request(to, "POST", "/CommunicationInterface/AddBufferMsg", &headers, &order(uuid))
}

/// Leaves a message with these lines instead of `Host: …`.
fn leave_for_host(to: SocketAddr, uuid: &str, lines: &str) -> Response {
    let (body, mut connection) = (order(uuid), Connection::open(to));
    let length = body.len();
    let head = format!(
        "POST /CommunicationInterface/AddBufferMsg HTTP/1.1\r\n{lines}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    connection.send(&[head.into_bytes(), body].concat());
    connection.read_response()
}

fn is_buffered(server: &Server, uuid: &str) -> bool {
    request(server.http, "HEAD", &format!("/?bufferUUID={uuid}"), &[], b"").status == 200
}

#[test]
fn a_page_of_another_origin_is_refused_on_every_route_and_leaves_nothing() {
    let server = Server::start();
    let port = server.api.port();
    let (other_port, other_name) = (format!("http://{}", server.http), format!("http://localhost:{port}"));
    let foreign = ["https://evil.example", "null", "", "http://127.0.0.1", &other_port, &other_name];
    let origins = foreign.map(|origin| ("Origin", origin));
    // a page's browser says of a GET for an image only this
    let cross_site = ("Sec-Fetch-Site", "cross-site");
    for header in origins.into_iter().chain([cross_site]) {
        for (method, path) in ROUTES {
            let answer = request(server.api, method, path, &[header], b"");
            assert!(answer.failure(403).contains("web page"), "{method} {path} with {header:?}: {answer:?}");
        }
        leave(server.api, "id-1", &[header]).failure(403);
    }
    let error = leave(server.api, "id-1", &[("Origin", "https://evil.example")]).failure(403);
    assert!(error.contains("https://evil.example"), "{error}");
    // an origin counts whatever else the browser says
    let both = [("Origin", "https://evil.example"), ("Sec-Fetch-Site", "same-origin")];
    leave(server.api, "id-1", &both).failure(403);
    let twice = [("Origin", &*format!("http://{}", server.api)), ("Origin", "https://evil.example")];
    leave(server.api, "id-1", &twice).failure(403);
    assert!(!is_buffered(&server, "id-1"));
}

#[test]
fn the_servers_own_page_and_clients_that_are_no_browsers_are_served() {
    let server = Server::start();
    let own = format!("http://{}", server.api);
    let behind_tls = format!("https://{}", server.api);
    for (number, headers) in [
        vec![],
        vec![("Origin", &*own)],
        vec![("Origin", &*behind_tls)],
        vec![("Origin", &*own), ("Sec-Fetch-Site", "same-origin")],
        vec![("Sec-Fetch-Site", "same-origin")],
        vec![("Sec-Fetch-Site", "none")],
    ]
    .into_iter()
    .enumerate()
    {
        let uuid = format!("id-{number}");
        let answer = leave(server.api, &uuid, &headers);
        assert!(answer.status == 200 && is_buffered(&server, &uuid), "{headers:?}: {answer:?}");
        assert_eq!(request(server.api, "GET", "/readyz", &headers, b"").status, 200);
    }
    // behind a proxy that passes the Host header on
    let proxied = Setup::default().args(["--api-host", "farm.example"]).start();
    let lines = "Host: farm.example\r\nOrigin: https://farm.example\r\n";
    assert_eq!(leave_for_host(proxied.api, "id-1", lines).status, 200);
    leave_for_host(proxied.api, "id-1", "Host: farm.example\r\nOrigin: https://farm.example:8443\r\n").failure(403);
}

#[test]
fn on_loopback_without_tokens_the_host_must_be_loopback_or_allowed() {
    let server = Setup::default().args(["--api-host", "Farm.Example", "--api-host", "10.1.2.3"]).start();
    let port = server.api.port();
    for (number, host) in [
        "localhost",
        &format!("LOCALHOST:{port}"),
        "localhost.",
        "127.0.0.1",
        &format!("127.9.8.7:{port}"),
        "[::1]",
        &format!("[::1]:{port}"),
        "status.localhost",
        "farm.example",
        &format!("FARM.example.:{port}"),
        &format!("10.1.2.3:{port}"),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = leave_for_host(server.api, &format!("id-{number}"), &format!("Host: {host}\r\n"));
        assert_eq!(answer.status, 200, "{host}: {answer:?}");
    }
    for host in [
        "evil.example",
        &format!("evil.example:{port}"),
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "a.farm.example",
        "0.0.0.0",
        "10.1.2.4",
        "127.0.0.1@evil.example",
        "",
    ] {
        // of a page under that name the browser says that it is the server's own
        let lines = format!("Host: {host}\r\nOrigin: http://{host}\r\nSec-Fetch-Site: same-origin\r\n");
        let error = leave_for_host(server.api, "evil", &lines).failure(403);
        assert!(error.contains(&format!("{host:?}")) && error.contains("--api-host"), "{host}: {error}");
    }
    assert!(!is_buffered(&server, "evil"));
    let mut connection = Connection::open(server.api);
    connection.send(b"GET /healthz HTTP/1.0\r\n\r\n");
    assert_eq!(connection.read_head().status, 200, "a monitor that speaks HTTP/1.0 names no host");

    let (status, log) = Setup::default().args(["--api-host", "http://farm.example"]).start_refused();
    assert!(status.code() == Some(2) && log.contains("--api-host") && log.contains("without scheme"), "{log}");
}

#[test]
fn hosts_in_the_environment_may_be_ipv6_addresses_with_or_without_brackets() {
    for list in ["fd00::1", "[fd00::1]", "gateway:[fd00::1]", "fd00::1:gateway", "[fd00::1]:[fd00::2]"] {
        let server = Setup::default().env("USER_HTTP_SERVER_API_HOST", list).start();
        let answer = leave_for_host(server.api, "id-1", "Host: [fd00::1]:10001\r\n");
        assert_eq!(answer.status, 200, "{list}: {answer:?}");
        assert_eq!(leave_for_host(server.api, "evil", "Host: [fd00::3]\r\n").status, 403, "{list}");
    }
}

#[test]
fn workers_may_be_pages_and_reach_their_server_by_any_name() {
    let server = Server::start();
    let body = br#"{"USER_ID": "me", "MAIN_DATA": {"TYPE": "TEST", "DATA": 1}}"#;
    for headers in [[("Origin", "https://evil.example")], [("Sec-Fetch-Site", "cross-site")]] {
        assert_eq!(request(server.http, "POST", "/", &headers, body).status, 200);
    }
    let mut connection = Connection::open(server.http);
    connection.send(b"GET /?bufferUUID=x HTTP/1.1\r\nHost: workers.example\r\n\r\n");
    assert_eq!(connection.read_response().status, 400);
}

#[test]
fn no_preflight_is_granted_anything_on_either_server() {
    let server = Server::start();
    for (to, path, method) in [
        (server.api, "/CommunicationInterface/AddBufferMsg", "POST"),
        (server.api, "/UserManager/NextMessage", "GET"),
        (server.api, "/UserManager/Messages/x", "DELETE"),
        (server.api, "/nowhere", "PUT"),
        (server.http, "/", "POST"),
        (server.http, "/?bufferUUID=x", "GET"),
    ] {
        let own = format!("http://{to}");
        for origin in ["https://evil.example", &own] {
            for asked in ["OPTIONS", method] {
                let headers = [
                    ("Origin", origin),
                    ("Access-Control-Request-Method", method),
                    ("Access-Control-Request-Headers", "content-type,authorization"),
                    ("Access-Control-Request-Private-Network", "true"),
                ];
                let answer = request(to, asked, path, &headers, b"");
                let granted = answer.headers.iter().find(|(name, _)| name.starts_with("access-control-"));
                assert_eq!(granted, None, "{asked} {path} from {origin}: {answer:?}");
                assert!(asked != "OPTIONS" || (400..500).contains(&answer.status), "{answer:?}");
            }
        }
    }
}

/// These tests need the farm's Python programs.
mod python {
    use super::*;

    #[test]
    fn a_foreign_page_is_refused_with_a_token_too() {
        const TOKEN: &str = "service-token-0123456789";
        let setup = Setup::default();
        let file = setup.path("api-tokens");
        fs::write(&file, TOKEN).expect("writable");
        let mut farm = Farm::of(setup.args(["--api-token-file", file.to_str().expect("UTF-8")]));
        let bearer = format!("Bearer {TOKEN}");
        let authorized = ("Authorization", &*bearer);
        for foreign in [("Origin", "https://evil.example"), ("Sec-Fetch-Site", "cross-site")] {
            leave(farm.api, "id-1", &[authorized, foreign]).failure(403);
            leave(farm.api, "id-1", &[foreign]).failure(403);
            request(farm.api, "GET", "/healthz", &[foreign], b"").failure(403);
        }
        assert_eq!(leave(farm.api, "id-1", &[authorized, ("Origin", &format!("http://{}", farm.api))]).status, 200);
        // the token guards it, by whatever name it is asked
        let lines = format!("Host: farm.example\r\nAuthorization: {bearer}\r\n");
        assert_eq!(leave_for_host(farm.api, "id-2", &lines).status, 200);
        assert_eq!(leave_for_host(farm.api, "id-3", "Host: farm.example\r\n").status, 401);
        assert_eq!(farm.fetch_value("id-1"), "'left'");
    }
}
