//! TLS to the broker.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::json;

use crate::harness::{
    AmqpFarm, Arrivals, Ca, Connection, Farm, SOON, Server, Setup, eventually, holds, order, post_frame, request,
};
use crate::rabbitmq::RabbitMq;

/// A broker with TLS whose certificate is for 127.0.0.1 and for no name.
struct TlsBroker {
    rabbitmq: RabbitMq,
    /// The certificate of its CA.
    ca_file: PathBuf,
}

impl TlsBroker {
    /// The one that these tests share.
    fn get() -> &'static Self {
        static SHARED: OnceLock<TlsBroker> = OnceLock::new();
        SHARED.get_or_init(|| {
            let ca = Ca::new();
            let mut rabbitmq = RabbitMq::prepare();
            // Nothing else in a static is ever cleared away.
            let ca_file = rabbitmq.folder().join("ca.pem");
            fs::copy(ca.path(), &ca_file).expect("a CA");
            let [certificate, key] = ca.issue_for(&["127.0.0.1"]).write(&rabbitmq.folder(), "broker");
            rabbitmq.launch_with_tls(&certificate, &key);
            Self { rabbitmq, ca_file }
        })
    }

    fn url(&self, host: &str) -> String {
        format!("amqps://guest:guest@{host}:{}/%2f", self.rabbitmq.tls_port.expect("a port"))
    }
}

/// A server that cannot reach its broker. Both directions log the reason, and it accepts work nevertheless.
#[track_caller]
fn assert_disconnected(url: &str, ca_file: Option<&Path>, reason: &str) -> Server {
    let mut setup = Setup::default().args(["--amqp-url", url]);
    if let Some(path) = ca_file {
        setup = setup.args(["--amqp-ca-file", &path.display().to_string()]);
    }
    let server = setup.start();
    eventually("both directions log the reason", SOON, || {
        let log = server.log();
        let reported = |what: &str| log.lines().any(|line| line.contains(what) && line.contains(reason));
        holds(reported("no connection to the broker") && reported("not consuming messages"), log.clone())
    });
    let ready = request(server.api, "GET", "/readyz", &[], b"");
    assert_eq!((ready.status, &ready.json()["broker"]), (200, &json!("disconnected")), "{ready:?}");
    assert!(!server.log().contains("guest:guest"), "{}", server.log());
    server
}

#[test]
fn messages_flow_in_both_directions_over_tls() {
    let broker = TlsBroker::get();
    let (url, ca_file) = (broker.url("127.0.0.1"), broker.ca_file.display().to_string());
    // the worker's connection is idle while others are at work
    let setup = Setup::default().args(["--amqp-url", &url, "--amqp-ca-file", &ca_file, "--keep-alive", "10m"]);
    let farm = Farm::of(setup);
    let mut amqp = AmqpFarm { farm, url: broker.rabbitmq.url() };
    amqp.wait_until_consuming();
    amqp.user_manager();
    // Many times what the socket and rustls hold, so that writes stop in the middle, with small ones between.
    let mut worker = Connection::open(amqp.farm.http);
    let mut arrivals = Arrivals::default();
    for number in 0..40 {
        post_frame(&mut worker, number, if number % 10 == 0 { 8 << 20 } else { 1000 });
    }
    arrivals.receive_all(&mut amqp, 0..40);

    // Writes that stop in the middle because nobody reads, and go on where they were: all of these are more than what
    // the sockets and the client's buffers hold.
    broker.rabbitmq.sigstop();
    for number in 40..100 {
        post_frame(&mut worker, number, 256 << 10);
    }
    broker.rabbitmq.sigcont();
    arrivals.receive_all(&mut amqp, 40..100);

    for (uuid, len) in [("small", 10), ("large", 20 << 20)] {
        let message = format!("'x' * {len}");
        amqp.publish_value(&order(uuid, &message));
        let fetched = amqp.fetch_when_there(uuid);
        assert_eq!(fetched.len(), len + 2, "{uuid}");
    }

    let reason = "closed by the test";
    broker.rabbitmq.ctl(&["close_all_connections", reason]);
    amqp.farm.wait_for_log(reason);
    amqp.wait_until_consuming();
    amqp.user_manager();
    post_frame(&mut worker, 100, 1000);
    arrivals.receive_all(&mut amqp, 100..101);
    assert!(amqp.farm.server.stop().success());
}

#[test]
fn a_broker_whose_certificate_is_of_another_ca_is_not_trusted() {
    let broker = TlsBroker::get();
    let stranger = Ca::new();
    let reason =
        format!("the broker's certificate is not trusted: it was not issued by a CA in {}", stranger.path().display());
    assert_disconnected(&broker.url("127.0.0.1"), Some(&stranger.path()), &reason);
    assert_disconnected(
        &broker.url("127.0.0.1"),
        None,
        "not trusted: it was not issued by a CA that the system trusts",
    );
}

#[test]
fn a_broker_with_a_certificate_for_another_name_is_not_trusted() {
    let broker = TlsBroker::get();
    let reason = "the name does not match: the broker's certificate is not for \"localhost\"";
    assert_disconnected(&broker.url("localhost"), Some(&broker.ca_file), reason);
}

#[test]
fn a_ca_file_that_is_replaced_holds_for_the_next_connection() {
    let broker = TlsBroker::get();
    let stranger = Ca::new();
    let server = assert_disconnected(&broker.url("127.0.0.1"), Some(&stranger.path()), "is not trusted");
    fs::copy(&broker.ca_file, stranger.path()).expect("a CA");
    eventually("the broker is connected", SOON, || {
        let ready = request(server.api, "GET", "/readyz", &[], b"").json();
        holds(ready["broker"] == "connected", (ready, server.log()))
    });
}

#[test]
fn a_port_without_tls_and_a_silent_one_have_different_errors() {
    let broker = TlsBroker::get();
    let plain = format!("amqps://guest:guest@127.0.0.1:{}/%2f", broker.rabbitmq.port);
    assert_disconnected(&plain, Some(&broker.ca_file), "does not speak TLS");
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("amqps://guest:guest@{}/%2f", silent.local_addr().expect("an address"));
    let mut server = assert_disconnected(&url, Some(&broker.ca_file), "the TLS handshake did not finish within 5s");
    // In the middle of the next handshake.
    let (mut socket, _) = silent.accept().expect("a connection");
    socket.read_exact(&mut [0; 5]).expect("a handshake");
    server.terminate();
    assert!(server.wait_for_exit(Duration::from_secs(10)).success(), "{}", server.log());
}

#[test]
fn a_ca_file_that_cannot_be_used_is_an_error_that_names_it() {
    let ca = Ca::new();
    let path = ca.path().display().to_string();
    for (url, file, reason) in [
        ("amqp-url = 'amqps://127.0.0.1:1'", "/no/such.pem", "No such file"),
        ("amqp-url = 'amqps://127.0.0.1:1'", "config.toml", "no certificate"),
        ("amqp-url = 'amqp://127.0.0.1:1'", &path, "amqps://"),
        ("", &path, "amqps://"),
    ] {
        let setup = Setup::default().config(url).args(["--amqp-ca-file", file]);
        let (status, log) = setup.start_refused();
        assert_eq!(status.code(), Some(2), "{log}");
        for part in ["--amqp-ca-file", file, reason] {
            assert!(log.contains(part), "{url:?}: no {part:?} in:\n{log}");
        }
    }
}
