//! Every alert of `deploy/alerts.yml` rings when its fault is there, alone, and falls silent when the fault is mended.

use std::fs::{self, File};
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, SystemTime};

use serde_json::json;

use super::node::{Prometheus, rules};
use crate::harness::{
    AmqpFarm, Broker, Connection, FaultyBroker, Program, Server, Setup, Version, add_buffer_msg, gateway, post_frame,
    request, send_frame, try_send_frame,
};

/// The tests of this file, by the alerts that they are about.
const TESTED: [&str; 12] = [
    "GatewayDown",
    "GatewayUncleanStart",
    "GatewayBrokerAway",
    "GatewayBrokerBlocked",
    "GatewayMessagesReturned",
    "GatewayMessagesParked",
    "GatewayFramesWait",
    "GatewayDiskFull",
    "GatewayNearlyFull",
    "GatewayConnectionsShort",
    "GatewayCertificateExpires",
    "GatewayErrors",
];

fn add(server: &Server, uuid: &str, len: usize) -> u16 {
    add_buffer_msg(server, uuid, &json!("x".repeat(len))).status
}

fn frame(server: &Server, len: usize) {
    post_frame(&mut Connection::open(server.http), 1, len);
}

/// A gateway with RabbitMQ, whose user manager takes its messages.
fn farm_at(broker: &FaultyBroker) -> AmqpFarm {
    let mut amqp = AmqpFarm::at(&broker.url);
    amqp.user_manager();
    amqp
}

#[test]
fn each_alert_has_a_test_a_meaning_and_a_command() {
    let rules = rules();
    let named: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert_eq!(named, TESTED);
    for part in ["summary: ", "description: ", "command: ", "severity: "] {
        assert_eq!(rules.matches(part).count(), named.len(), "{part}");
    }
    let commands = rules.lines().filter_map(|line| line.trim().strip_prefix("command: "));
    for command in commands.flat_map(|line| line.split("; ")) {
        let words: Vec<&str> = command.split(' ').collect();
        match words[..] {
            ["user-http-server", ref subcommand @ ..] => {
                let ended = Program::start(gateway(subcommand).arg("--help")).end();
                assert_eq!(ended.code, Some(0), "{command}: {ended:?}");
            }
            // what a machine has that the Debian package is installed on
            [name, ..] => assert!(["systemctl", "journalctl", "ss", "grep"].contains(&name), "{command}"),
            [] => {}
        }
    }
}

#[test]
fn a_gateway_that_is_stopped_is_down() {
    let mut server = Server::start();
    let prometheus = Prometheus::watching(server.api);
    prometheus.wait_for_silence();
    assert!(server.stop().success());
    prometheus.wait_for("GatewayDown", || {});
    server.restart();
    prometheus.watch(server.api);
    prometheus.wait_for_silence();
}

#[test]
fn a_kill_is_an_unclean_start_of_the_next_process() {
    let mut server = Server::start();
    let prometheus = Prometheus::watching(server.api);
    server.kill9();
    server.restart();
    prometheus.watch(server.api);
    prometheus.wait_for("GatewayUncleanStart", || {});
    prometheus.wait_for_silence();
}

#[test]
fn a_broker_that_is_killed_is_away() {
    let mut broker = FaultyBroker::of(Version::Debian);
    let amqp = farm_at(&broker);
    let prometheus = Prometheus::watching(amqp.farm.api);
    prometheus.wait_for_silence();
    broker.kill9();
    prometheus.wait_for("GatewayBrokerAway", || {});
    broker.launch();
    prometheus.wait_for_silence();
}

#[test]
fn a_broker_without_memory_blocks() {
    let mut broker = FaultyBroker::of(Version::Debian);
    let amqp = farm_at(&broker);
    let prometheus = Prometheus::watching(amqp.farm.api);
    broker.ctl(&["set_vm_memory_high_watermark", "0.0000001"]);
    // a broker says so to those who publish
    frame(&amqp.farm, 100);
    prometheus.wait_for("GatewayBrokerBlocked", || {});
    broker.ctl(&["set_vm_memory_high_watermark", "0.6"]);
    prometheus.wait_for_silence();
}

#[test]
fn without_a_queue_for_them_frames_are_returned() {
    let mut amqp = AmqpFarm::at(&Broker::of(Version::Debian).url);
    let prometheus = Prometheus::watching(amqp.farm.api);
    frame(&amqp.farm, 100);
    prometheus.wait_for("GatewayMessagesReturned", || {});
    amqp.user_manager();
    prometheus.wait_for_silence();
}

#[test]
fn a_frame_that_the_broker_never_takes_is_parked() {
    const LIMIT: usize = 1 << 20;
    let mut broker = FaultyBroker::of(Version::Debian);
    broker.set_max_message_size(LIMIT);
    let amqp = farm_at(&broker);
    let prometheus = Prometheus::watching(amqp.farm.api);
    broker.freeze();
    frame(&amqp.farm, LIMIT);
    broker.thaw();
    prometheus.wait_for("GatewayMessagesParked", || {});
    let parked = request(amqp.farm.api, "GET", "/UserManager/Parked", &[], b"").json();
    let path = format!("/UserManager/Parked/{}", parked[0]["id"].as_str().expect("an id"));
    assert_eq!(request(amqp.farm.api, "DELETE", &path, &[], b"").status, 204);
    prometheus.wait_for_silence();
    broker.set_max_message_size(128 << 20);
}

#[test]
fn a_frame_that_nobody_takes_waits() {
    let server = Server::start();
    let prometheus = Prometheus::watching(server.api);
    frame(&server, 100);
    prometheus.wait_for("GatewayFramesWait", || {});
    let page = request(server.api, "GET", "/admin/outbox", &[], b"").json();
    let path = format!("/admin/outbox/{}", page["messages"][0]["id"].as_str().expect("an id"));
    assert_eq!(request(server.api, "DELETE", &path, &[], b"").status, 204);
    prometheus.wait_for_silence();
}

#[test]
fn on_a_full_disk_messages_are_refused() {
    let server = Setup::on_a_small_disk().start();
    let prometheus = Prometheus::watching(server.api);
    let disk = server.setup().path("disk");
    let filler = format!("/proc/{}/root{}/filler", server.pid(), disk.display());
    let mut other = File::create(&filler).expect("a file on the small disk");
    while other.write_all(&[0x55; 4096]).is_ok() {}
    let refused = (0..100).find(|number| add(&server, &number.to_string(), 900_000) == 503);
    assert!(refused.is_some(), "the disk is full");
    prometheus.wait_for("GatewayDiskFull", || {});
    fs::remove_file(&filler).expect("the filler");
    prometheus.wait_for_silence();
}

#[test]
fn a_buffer_that_nobody_empties_is_nearly_full() {
    let server = Server::with(&["--max-buffered", "1MB"]);
    let prometheus = Prometheus::watching(server.api);
    assert_eq!(add(&server, "one", 950_000), 200);
    prometheus.wait_for("GatewayNearlyFull", || {});
    assert_eq!(request(server.http, "GET", "/?bufferUUID=one", &[], b"").status, 200);
    prometheus.wait_for_silence();
}

#[test]
fn clients_that_take_all_connections_leave_few() {
    let server = Server::with(&["--max-connections", "20"]);
    let prometheus = Prometheus::watching(server.api);
    let connect = |_| TcpStream::connect(server.http).expect("a connection");
    let mut strangers: Vec<TcpStream> = (0..20).map(connect).collect();
    // the server closes those that send nothing
    prometheus.wait_for("GatewayConnectionsShort", || strangers.extend((0..2).map(connect)));
    drop(strangers);
    prometheus.wait_for_silence();
}

#[test]
fn a_certificate_expires_soon_until_it_is_replaced() {
    let days = |days: u64| {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        params.not_after = (SystemTime::now() + Duration::from_secs(days * 86_400)).into();
        let key = rcgen::KeyPair::generate().expect("a key");
        [params.self_signed(&key).expect("a certificate").pem(), key.serialize_pem()]
    };
    let setup = Setup::default();
    let files = ["cert.pem", "key.pem"].map(|name| setup.path(name));
    let write = |pem: [String; 2]| files.iter().zip(pem).for_each(|(path, pem)| fs::write(path, pem).expect("a file"));
    write(days(13));
    let [cert, key] = files.each_ref().map(|path| path.to_str().expect("UTF-8"));
    let server = setup.args(["--http-tls-cert", cert, "--http-tls-key", key]).start();
    let prometheus = Prometheus::watching(server.api);
    prometheus.wait_for("GatewayCertificateExpires", || {});
    write(days(90));
    prometheus.wait_for_silence();
}

#[test]
fn requests_that_fail_are_errors() {
    let server = Server::with(&["--max-upload-space", "4MiB"]);
    let prometheus = Prometheus::watching(server.api);
    // an upload that does not end has most of the space
    let mut slow = Connection::open(server.http);
    slow.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 3000000\r\n\r\n");
    slow.send(&[b' '; 2_900_000]);
    let refused = || send_frame(&mut Connection::open(server.http), 1, 3_000_000).status;
    prometheus.wait_for("GatewayErrors", || {
        slow.send(b" ");
        let _ = try_send_frame(&mut Connection::open(server.http), 1, 3_000_000, None);
    });
    assert_eq!(refused(), 503);
    drop(slow);
    prometheus.wait_for_silence();
}
