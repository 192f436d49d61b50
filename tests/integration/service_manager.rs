//! What a service manager such as systemd relies on: reports, the watchdog, and sockets that it passes.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;

use crate::harness::{Connection, Manager, Server, Setup, listening, passing, request};

#[test]
fn start_reload_and_stop_are_reported() {
    let manager = Manager::new();
    let mut server = manager.starts(Setup::default(), 0).start();
    manager.wait_for("READY=1");
    let status = manager.wait_for("STATUS=");
    assert_eq!(status, ["STATUS=0 messages for workers, 0 for the user manager"]);
    server.signal("HUP");
    let reload = manager.wait_for("RELOADING=1");
    let since_boot = reload.iter().find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
    assert!(since_boot.and_then(|time| time.parse().ok()).is_some_and(|time: u64| time > 0), "{reload:?}");
    manager.wait_for("READY=1");
    server.terminate();
    manager.wait_for("STOPPING=1");
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn a_server_that_cannot_start_is_never_ready() {
    let manager = Manager::new();
    let setup = Setup::default();
    std::fs::write(setup.data_dir(), b"a file").expect("a file in place of the data directory");
    let (status, log) = manager.starts(setup, 0).start_refused();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(manager.is_silent_for(std::time::Duration::from_millis(1)), "{log}");
}

#[test]
fn the_watchdog_is_fed_while_the_broker_is_down() {
    let manager = Manager::new();
    let setup = Setup::default().args(["--amqp-url", "amqp://guest:guest@127.0.0.1:1/%2f"]);
    let _server = manager.starts(setup, 300).start();
    for _ in 0..5 {
        manager.wait_for("WATCHDOG=1");
    }
}

fn owned(socket: impl Into<OwnedFd>) -> OwnedFd {
    socket.into()
}

fn address(socket: &TcpListener) -> SocketAddr {
    socket.local_addr().expect("an address")
}

#[test]
fn the_servers_use_the_sockets_that_are_passed_by_their_names() {
    let (api, worker) = (listening("127.0.0.1"), listening("127.0.0.1"));
    let addresses = (address(&worker), address(&api));
    // in use, so that binding it would fail
    let taken = address(&worker).to_string();
    let setup = Setup::default().args(["--http-bind", &taken, "--api-bind", "127.0.0.1:1"]);
    let server = passing(setup, "api:worker", vec![owned(api), owned(worker)]).start();
    assert_eq!((server.http, server.api), addresses);
    assert_eq!(request(server.http, "GET", "/?bufferUUID=x", &[], b"").status, 400);
    server.wait_for_log("--api-bind 127.0.0.1:1 is not used");
}

#[test]
fn a_server_whose_socket_is_not_passed_binds_its_address() {
    let worker = listening("127.0.0.1");
    let http = address(&worker);
    let server = passing(Setup::default(), "worker", vec![owned(worker)]).start();
    assert_eq!(server.http, http);
    assert_eq!(request(server.api, "GET", "/readyz", &[], b"").status, 200);
}

#[test]
fn connections_wait_in_a_passed_socket_until_the_next_server_answers() {
    let (worker, api) = (listening("127.0.0.1"), listening("127.0.0.1"));
    let http = address(&worker);
    let mut server = passing(Setup::default(), "worker:api", vec![owned(worker), owned(api)]).start();
    assert_eq!(server.stop().code(), Some(0));
    let mut early = Connection::open(http);
    early.send_head("GET", "/?bufferUUID=x", &[]);
    server.restart();
    assert_eq!(early.read_response().status, 400);
}

#[test]
fn sockets_for_another_process_are_ignored() {
    let worker = listening("127.0.0.1");
    let passed = address(&worker);
    let setup = passing(Setup::default(), "worker", vec![owned(worker)]).env("OTHER_PID", "1");
    assert_ne!(setup.start().http, passed);
}

#[track_caller]
fn assert_refused(setup: Setup, code: i32, why: &[&str]) {
    let (status, log) = setup.start_refused();
    assert_eq!(status.code(), Some(code), "{log}");
    for why in why {
        assert!(log.contains(why), "no {why:?} in {log}");
    }
}

#[test]
fn sockets_that_cannot_be_used_are_refused_with_what_would_be_right() {
    let tcp = || owned(listening("127.0.0.1"));
    let right = "FileDescriptorName= of systemd.socket";
    let connected = TcpStream::connect(address(&listening("127.0.0.1"))).expect("a connection");
    for (names, sockets, why) in [
        ("http", vec![tcp()], ["\"http\"", right]),
        ("worker:user-http-server.socket", vec![tcp(), tcp()], ["\"user-http-server.socket\"", right]),
        ("", vec![tcp()], ["\"\"", right]),
        ("worker", vec![tcp(), tcp()], ["2 sockets", right]),
        ("worker:api:api", vec![tcp(), tcp()], ["LISTEN_FDNAMES=\"worker:api:api\"", right]),
        ("worker:worker", vec![tcp(), tcp()], ["two sockets with the name \"worker\"", right]),
        ("worker", vec![owned(UdpSocket::bind("127.0.0.1:0").expect("a port"))], ["\"worker\"", "listening TCP"]),
        ("api", vec![owned(connected)], ["does not listen", "listening TCP socket"]),
        ("api", vec![owned(std::fs::File::open("/dev/null").expect("a device"))], ["\"api\"", "listening TCP"]),
    ] {
        assert_refused(passing(Setup::default(), names, sockets), 2, &why);
    }
}

#[test]
fn the_address_of_a_passed_socket_decides_whether_the_api_is_guarded() {
    let open = || vec![owned(listening("0.0.0.0"))];
    assert_refused(passing(Setup::default(), "api", open()), 2, &["0.0.0.0:", "--api-token-file"]);
    let allowed: Server = passing(Setup::default().args(["--allow-open-api"]), "api", open()).start();
    assert!(allowed.api.ip().is_unspecified());
}
