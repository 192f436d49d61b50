//! `user-http-server healthcheck`.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;

use crate::harness::{Ended, Program, Server, Setup, free_address, gateway};

fn healthcheck(args: &[&str]) -> Ended {
    Program::start(gateway(&["healthcheck"]).args(args)).end()
}

/// Checks that it has failed with one line that has these parts.
#[track_caller]
fn assert_failed(ended: &Ended, parts: &[&str]) {
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    for part in parts {
        assert!(ended.stderr.contains(part), "no {part:?}: {ended:?}");
    }
}

/// A server that gives every connection this answer, or none at all and keeps it open.
fn answering(answer: Option<String>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        let mut open = Vec::new();
        while let Ok((mut socket, _)) = listener.accept() {
            if let Some(answer) = &answer {
                let mut head = [0; 4096];
                let read = socket.read(&mut head).expect("a request");
                assert!(head[..read].starts_with(b"GET /readyz HTTP/1.1\r\n"));
                socket.write_all(answer.as_bytes()).expect("a client");
            } else {
                open.push(socket);
            }
        }
    });
    address
}

fn http(status: &str, body: &str) -> Option<String> {
    Some(format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()))
}

#[test]
fn a_server_that_takes_work_is_healthy_at_its_configured_address_and_at_its_url() {
    let server = Server::start();
    let (api, url) = (server.api.to_string(), server.api_url(""));
    for args in [
        &["--api-bind", &api][..],
        &[&url],
        &[&format!("{url}/")],
        &[&format!("{url}/readyz")],
        // other settings play no part, even if they are wrong
        &[&url, "--data-dir", "/dev/null/x", "--blend-root", "/no/root", "--max-body", "0"],
    ] {
        let ended = healthcheck(args);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{args:?}: {ended:?}");
        assert!(ended.stdout.contains("ready") && ended.stdout.lines().count() == 1, "{args:?}: {ended:?}");
    }
    let ended = Program::start(gateway(&["healthcheck"]).env("USER_HTTP_SERVER_API_BIND", &api)).end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    // Kubernetes sets such a variable
    let ended = Program::start(gateway(&["healthcheck", &url]).env("USER_HTTP_SERVER_PORT", "tcp://10.0.0.1:1")).end();
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
}

#[test]
fn a_server_on_all_addresses_is_asked_on_loopback() {
    let port = free_address().port();
    let bind = format!("0.0.0.0:{port}");
    let _server = Setup::default().args(["--api-bind", &bind, "--allow-open-api"]).start();
    let ended = healthcheck(&["--api-bind", &bind]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains(&format!("http://127.0.0.1:{port}")), "{ended:?}");
}

#[test]
fn proxies_of_the_environment_are_not_used() {
    let server = Server::start();
    let mut command = gateway(&["healthcheck", &server.api_url("")]);
    for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env(name, "http://127.0.0.1:1");
    }
    let ended = Program::start(command.env_remove("no_proxy").env_remove("NO_PROXY")).end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn a_full_disk_behind_standard_output_makes_no_server_sick() {
    let server = Server::start();
    let full = File::options().write(true).open("/dev/full").expect("/dev/full");
    let status = gateway(&["healthcheck", &server.api_url("")]).stdout(full).status().expect("the client");
    assert_eq!(status.code(), Some(0));
}

#[test]
fn whatever_is_wrong_is_one_line_that_says_what() {
    let nobody = free_address().to_string();
    assert_failed(&healthcheck(&["--api-bind", &nobody]), &[&nobody, "nothing listens there"]);
    let full = r#"{"ready": false, "not_ready": ["store: no space left on the disk", "outbox: full\u001b[2J\n"]}"#;
    let failure = r#"{"STATUS": "FAILED", "ERROR": "the buffer does not answer"}"#;
    for (answer, parts) in [
        (http("503 Service Unavailable", full), &["503", "no space left on the disk", "outbox: full"][..]),
        (http("500 Internal Server Error", failure), &["500", "the buffer does not answer"]),
        (http("404 Not Found", "<html>\n\u{1b}[2J"), &["404", "is it the API server of a gateway?"]),
        (http("302 Found\r\nLocation: http://127.0.0.1:1/", ""), &["302"]),
        (Some("SSH-2.0-OpenSSH_9.2\r\n".to_owned()), &["no answer"]),
        (Some(String::new()), &["no answer"]),
        (Some("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf".to_owned()), &["no answer"]),
    ] {
        let address = answering(answer.clone()).to_string();
        let ended = healthcheck(&["--api-bind", &address]);
        assert_failed(&ended, parts);
        assert!(ended.stderr.contains(&address) && !ended.stderr.contains('\u{1b}'), "{answer:?}: {ended:?}");
    }
    let silent = answering(None).to_string();
    assert_failed(&healthcheck(&["--api-bind", &silent, "--timeout", "200ms"]), &["did not answer within 200ms"]);
    assert_failed(&healthcheck(&["http://host.invalid:1"]), &["http://host.invalid:1"]);
}

#[test]
fn a_server_that_stops_is_no_longer_healthy() {
    let mut server = Server::start();
    let url = server.api_url("");
    assert_eq!(healthcheck(&[&url]).code, Some(0));
    assert!(server.stop().success());
    assert_failed(&healthcheck(&[&url]), &[&url]);
}

#[test]
fn a_wrong_command_line_is_not_a_sick_server() {
    for (args, part) in [
        (&["127.0.0.1:10001"][..], "http://127.0.0.1:10001"),
        (&["ftp://farm"], "expected a URL"),
        (&["http://user:pass@farm"], "expected a URL"),
        (&["--api-bind", "somewhere"], "--api-bind"),
        (&["--timeout", "0"], "--timeout"),
        (&["http://127.0.0.1:99999"], "expected a URL"),
        (&["--config", "/no/such/file"], "/no/such/file"),
        (&["a", "b"], "'b'"),
    ] {
        let ended = healthcheck(args);
        assert_eq!(ended.code, Some(2), "{args:?}: {ended:?}");
        assert!(ended.stderr.contains(part), "{args:?}: {ended:?}");
    }
}
