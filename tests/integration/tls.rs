//! TLS on both servers: what clients see of it, and certificates that change while the server runs.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::harness::{
    Ca, Client, Connection, Farm, Identity, SOON, Server, Setup, connect, eventually, forwarded, frame, holds, order,
    request,
};

/// More than what the sockets between server and worker hold.
const LARGE: u64 = 64 << 20;

/// A server whose workers' side has TLS, with certificate and key in the files that it gives.
fn farm_with_tls(ca: &Ca) -> (Farm, [String; 2]) {
    let files = ca.issue_files("server");
    (Farm::of(Setup::default().args(["--http-tls-cert", &files[0], "--http-tls-key", &files[1]])), files)
}

/// A server whose API has TLS, for clients of a CA only.
fn farm_with_mutual_tls(ca: &Ca, clients: &Ca) -> Farm {
    let [cert, key] = ca.issue_files("server");
    let client_ca = clients.path().display().to_string();
    let args = ["--api-tls-cert", &cert, "--api-tls-key", &key, "--api-client-ca", &client_ca];
    Farm::of(Setup::default().args(args))
}

fn curl(ca: &Ca, args: &[&str]) -> Output {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "30", "--cacert"]).arg(ca.path()).args(args);
    command.output().expect("curl")
}

#[track_caller]
fn assert_refused(output: &Output, exit_codes: &[i32]) {
    let code = output.status.code().expect("an exit code");
    assert!(exit_codes.contains(&code) && output.stdout.is_empty(), "{output:?}");
}

#[test]
fn a_client_that_does_not_trust_the_ca_goes_away() {
    let (farm, _) = farm_with_tls(&Ca::new());
    let stranger = Ca::new();
    // curl's "peer certificate cannot be authenticated"
    assert_refused(&curl(&stranger, &[&farm.worker_url()]), &[60]);
    assert!(Client::trusting(&stranger).try_open(farm.http).is_err());
}

#[test]
fn a_certificate_that_is_not_of_version_3_is_refused_with_what_would_be_right() {
    let (ca, clients) = (Ca::new(), Ca::new());
    let [cert, key] = ca.issue_files("server");
    let client_ca = clients.path().display().to_string();
    let args = ["--api-tls-cert", &cert, "--api-tls-key", &key, "--api-client-ca", &client_ca];
    let server = Setup::default().args(args).env("RUST_LOG", "debug").start();
    let client = Client::with(&ca, Some(&clients.issue_version_1()), rustls::DEFAULT_VERSIONS, &[]);
    let refused = client.try_open(server.api).and_then(|mut connection| {
        connection.try_send_request("GET", "/readyz", &[], b"")?;
        connection.try_read_head()
    });
    assert!(refused.is_err(), "{refused:?}");
    server.wait_for_log("the certificate is not of X.509 version 3");

    let folder = tempfile::tempdir().expect("a folder");
    let [cert, key] = ca.issue_version_1().write(folder.path(), "old");
    let (status, log) = Setup::default().args(["--http-tls-cert", &cert, "--http-tls-key", &key]).start_refused();
    assert!(status.code() == Some(2) && log.contains("not of X.509 version 3") && log.contains("-extfile"), "{log}");
}

#[test]
fn tls_1_2_and_1_3_are_spoken_and_http_1_1_is_the_only_protocol_offered() {
    let ca = Ca::new();
    let (farm, _) = farm_with_tls(&ca);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let client = Client::with(&ca, None, &[version], &["h2", "http/1.1"]);
        let stream = client.try_shake_hands(farm.http).expect("a handshake");
        assert_eq!(stream.conn.protocol_version(), Some(version.version));
        assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
        assert_eq!(client.open(farm.http).request("GET", "/?bufferUUID=x", &[], b"").status, 400);
    }
    assert!(Client::with(&ca, None, rustls::DEFAULT_VERSIONS, &["h2"]).try_open(farm.http).is_err());
}

/// Sends requests on one new connection after another until `stop` is set. Returns how many were answered.
fn keep_asking(client: &Client, server: &Server, end: &Arc<AtomicBool>) -> thread::JoinHandle<usize> {
    let (client, to, end) = (client.clone(), server.http, Arc::clone(end));
    thread::spawn(move || {
        let mut answered = 0;
        while !end.load(Ordering::SeqCst) {
            let answer = client.open(to).request("GET", "/?bufferUUID=x", &[], b"");
            assert_eq!(answer.status, 400, "{answer:?}");
            answered += 1;
        }
        answered
    })
}

#[track_caller]
fn wait_for_certificate(client: &Client, server: &Server, identity: &Identity) {
    eventually("the new certificate is shown", SOON, || {
        holds(client.certificate_of(server.http) == identity.certificate, server.log())
    });
}

#[test]
fn certificates_that_are_replaced_under_load_lose_no_request() {
    let ca = Ca::new();
    let (farm, [cert, key]) = farm_with_tls(&ca);
    let client = Client::trusting(&ca);
    let mut long = client.open(farm.http);
    let end = Arc::new(AtomicBool::new(false));
    let asking: Vec<_> = (0..4).map(|_| keep_asking(&client, &farm, &end)).collect();
    for round in 0..5 {
        let identity = ca.issue();
        fs::write(&cert, &identity.chain).expect("a certificate");
        fs::write(&key, &identity.key).expect("a key");
        // Every other time it is left to the server to see it.
        if round % 2 == 0 {
            farm.signal("HUP");
        }
        wait_for_certificate(&client, &farm, &identity);
        assert_eq!(long.request("GET", "/?bufferUUID=x", &[], b"").status, 400, "the old connection goes on");
    }
    end.store(true, Ordering::SeqCst);
    let answered: usize = asking.into_iter().map(|thread| thread.join().expect("every request is answered")).sum();
    assert!(answered > 50, "{answered} requests are a load");
}

#[test]
fn a_bad_new_certificate_is_reported_once_and_the_old_one_stays() {
    let ca = Ca::new();
    let (farm, [cert, key]) = farm_with_tls(&ca);
    let client = Client::trusting(&ca);
    let old = client.certificate_of(farm.http);
    let warnings = |part: &str| farm.log().lines().filter(|line| line.contains("WARN") && line.contains(part)).count();
    let good = ca.issue();
    fs::write(&cert, "-----BEGIN CERTIFICATE-----\n!\n").expect("a certificate");
    farm.wait_for_log(&format!("{cert}: it is not valid PEM"));
    fs::write(&cert, "nothing at all").expect("a certificate");
    farm.wait_for_log(&format!("{cert}: it contains no certificate"));
    fs::write(&cert, &good.chain).expect("a certificate");
    farm.wait_for_log(&format!("{key}: it does not belong to the certificate in {cert}"));
    fs::remove_file(&key).expect("a key");
    farm.wait_for_log(&format!("{key}: it cannot be read: No such file"));
    assert_eq!(client.certificate_of(farm.http), old);
    fs::write(&key, &good.key).expect("a key");
    wait_for_certificate(&client, &farm, &good);
    assert_eq!(warnings("new connections use the previous one"), 4, "{}", farm.log());
}

#[test]
fn a_changed_client_ca_holds_for_new_connections() {
    let (ca, clients, others) = (Ca::new(), Ca::new(), Ca::new());
    let farm = farm_with_mutual_tls(&ca, &clients);
    let of = |clients: &Ca| Client::with(&ca, Some(&clients.issue()), &[&rustls::version::TLS12], &[]);
    let (before, after) = (of(&clients), of(&others));
    assert!(before.try_open(farm.api).is_ok() && after.try_open(farm.api).is_err());
    fs::copy(others.path(), clients.path()).expect("a CA");
    farm.signal("HUP");
    eventually("the new CA holds", SOON, || holds(after.try_open(farm.api).is_ok(), farm.log()));
    assert!(before.try_open(farm.api).is_err());
}

#[test]
fn the_answer_to_plain_http_at_the_tls_port_names_https() {
    let ca = Ca::new();
    let (farm, _) = farm_with_tls(&ca);
    let error = request(farm.http, "GET", "/?bufferUUID=x", &[], b"").failure(400);
    assert!(error.contains("https://"), "{error}");
    // with more to come, the answer is read all the same
    let mut posting = Connection::open(farm.http);
    posting.send_head("POST", "/", &[("Content-Length", "1000000")]);
    posting.send(&[0; 100_000]);
    posting.read_response().failure(400);
    farm.wait_for_log("speaks plain HTTP");
    let log = farm.log();
    let line = log.lines().find(|line| line.contains("speaks plain HTTP")).expect("a line");
    assert!(line.contains("INFO") && line.contains("127.0.0.1:") && line.contains("https://"), "{line}");
    assert_eq!(Client::trusting(&ca).open(farm.http).request("GET", "/?bufferUUID=x", &[], b"").status, 400);
}

#[test]
fn what_is_neither_tls_nor_http_hurts_nobody() {
    let ca = Ca::new();
    let (farm, _) = farm_with_tls(&ca);
    for bytes in [&b"\x16\x03\x01\xff\xff"[..], &[0; 4096], b""] {
        let mut socket = connect(farm.http).expect("a connection");
        socket.write_all(bytes).expect("the server to read");
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        // An alert or a reset, as it comes.
        let _ = socket.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP"), "{}", answer.escape_ascii());
    }
    assert_eq!(Client::trusting(&ca).open(farm.http).request("GET", "/?bufferUUID=x", &[], b"").status, 400);
}

#[test]
fn handshakes_that_are_never_finished_hold_up_nobody_and_end() {
    let ca = Ca::new();
    let (mut farm, _) = farm_with_tls(&ca);
    let mut stalled: Vec<TcpStream> = (0..300).map(|_| connect(farm.http).expect("a connection")).collect();
    for (number, socket) in stalled.iter_mut().enumerate() {
        // Some say nothing, some begin.
        if number % 2 == 0 {
            socket.write_all(b"\x16\x03\x01\x02\x00\x01").expect("the server to read");
        }
    }
    let client = Client::trusting(&ca);
    for _ in 0..20 {
        assert_eq!(client.open(farm.http).request("GET", "/?bufferUUID=x", &[], b"").status, 400);
    }
    let mut rest = Vec::new();
    let _ = stalled[0].read_to_end(&mut rest);
    assert!(rest.is_empty(), "{rest:?}");
    let mut late = connect(farm.http).expect("a connection");
    late.write_all(b"\x16").expect("the server to read");
    farm.terminate();
    let status = farm.server.wait_for_exit(Duration::from_secs(5));
    assert!(status.success(), "{status}: {}", farm.log());
}

#[test]
fn files_that_cannot_be_used_are_errors_that_name_setting_file_and_reason() {
    let ca = Ca::new();
    let [cert, key] = ca.issue_files("one");
    let [_, other_key] = ca.issue_files("other");
    let nothing = Setup::default();
    let empty = nothing.path("empty.pem").display().to_string();
    fs::write(&empty, "").expect("an empty file");
    for side in ["http", "api"] {
        let (cert_flag, key_flag) = (format!("--{side}-tls-cert"), format!("--{side}-tls-key"));
        for (args, parts) in [
            (vec![&cert_flag, &cert], [&cert_flag, &cert, &key_flag]),
            (vec![&key_flag, &key], [&key_flag, &key, &cert_flag]),
            (vec![&cert_flag, &empty, &key_flag, &key], [&cert_flag, &empty, &"no certificate".to_owned()]),
            (vec![&cert_flag, &cert, &key_flag, &empty], [&key_flag, &empty, &"no unencrypted private key".to_owned()]),
            (vec![&cert_flag, &cert, &key_flag, &other_key], [&key_flag, &other_key, &"does not belong to".to_owned()]),
            (
                vec![&cert_flag, &"/no/such.pem".to_owned(), &key_flag, &key],
                [&cert_flag, &"/no/such.pem".to_owned(), &"No such file".to_owned()],
            ),
        ] {
            let (status, log) = Setup::default().args(&args).start_refused();
            assert_eq!(status.code(), Some(2), "{args:?}: {log}");
            for part in parts {
                assert!(log.contains(part.as_str()), "{args:?}: no {part:?} in:\n{log}");
            }
        }
    }
    let (status, log) = Setup::default().args(["--api-client-ca", &cert]).start_refused();
    assert!(status.code() == Some(2) && log.contains("--api-tls-cert"), "{log}");
    let text = format!("api-tls-cert = {cert:?}\napi-tls-key = {key:?}\napi-client-ca = {empty:?}\n");
    let (status, log) = Setup::default().config(&text).start_refused();
    assert_eq!(status.code(), Some(2), "{log}");
    for part in ["api-client-ca", &empty, "config.toml", "no certificate"] {
        assert!(log.contains(part), "no {part:?} in:\n{log}");
    }
}

/// These tests need the farm's Python programs.
mod python {
    use super::*;

    #[test]
    fn requests_and_curl_fetch_and_post_over_tls() {
        let ca = Ca::new();
        let (mut farm, _) = farm_with_tls(&ca);
        let (url, verify) = (farm.worker_url(), ca.path());
        assert!(url.starts_with("https://"), "{url}");
        farm.leave("id-1", "'for requests'");
        farm.leave("id-2", "'for curl'");
        let fetched = farm.peer.answer("get", json!({ "url": url, "uuid": "id-1", "verify": verify }));
        assert_eq!((fetched.status, fetched.value.as_str()), (200, "'for requests'"));
        let fetched = curl(&ca, &[&format!("{url}?bufferUUID=id-2")]);
        assert_eq!(farm.peer.loads(&fetched.stdout), "'for curl'", "{fetched:?}");

        let value = frame("FRAME_RENDERED", "'from requests'");
        let posted =
            farm.peer.answer("post_pickle", json!({ "url": url, "value": value, "protocol": 4, "verify": verify }));
        assert_eq!(posted.status, 200, "{posted:?}");
        let taken = farm.take();
        assert_eq!(taken.value, forwarded("FRAME_RENDERED", "'from requests'"));
        let body = r#"{"USER_ID": "worker-1", "MAIN_DATA": {"TYPE": "RENDER_COMPLETED", "DATA": 1}}"#;
        let posted = curl(&ca, &["-d", body, &url]);
        assert!(posted.status.success() && posted.stdout.starts_with(b"{\"DATA\""), "{posted:?}");
    }

    #[test]
    fn the_api_takes_only_clients_with_a_certificate_of_the_ca() {
        let (ca, clients) = (Ca::new(), Ca::new());
        let mut farm = farm_with_mutual_tls(&ca, &clients);
        let ready = farm.api_url("/readyz");
        let [cert, key] = clients.issue_files("client");
        let answer = curl(&ca, &["--cert", &cert, "--key", &key, &ready]);
        assert!(answer.status.success() && answer.stdout.starts_with(b"{"), "{answer:?}");
        let url = farm.api_url("/CommunicationInterface/AddBufferMsg");
        let value = order("id-1", "'over mutual TLS'");
        // `requests` takes both in one file.
        let both = [&cert, &key].map(|path| fs::read_to_string(path).expect("a PEM file")).concat();
        fs::write(&cert, both).expect("a PEM file");
        let arguments = json!({ "url": url, "value": value, "verify": ca.path(), "cert": cert });
        assert_eq!(farm.peer.answer("post_json", arguments).status, 200);
        assert_eq!(farm.fetch_value("id-1"), "'over mutual TLS'");

        // curl's "failure in receiving" (TLS 1.3, where the client is done first) and "problem with the handshake"
        let refused = [56, 35];
        assert_refused(&curl(&ca, &[&ready]), &refused);
        let others = Ca::new();
        let [cert, key] = others.issue_files("stranger");
        assert_refused(&curl(&ca, &["--cert", &cert, "--key", &key, &ready]), &refused);
        let [cert, key] = ca.issue_files("of-the-servers-ca");
        assert_refused(&curl(&ca, &["--cert", &cert, "--key", &key, &ready]), &refused);
        for identity in [None, Some(&others.issue())] {
            let client = Client::with(&ca, identity, &[&rustls::version::TLS12], &[]);
            assert!(client.try_open(farm.api).is_err(), "refused in the handshake");
        }
    }

    #[test]
    fn a_worker_that_hangs_up_in_the_middle_of_a_download_leaves_the_message_buffered() {
        let ca = Ca::new();
        let (mut farm, _) = farm_with_tls(&ca);
        let client = Client::trusting(&ca);
        farm.sparse_blend_file("scene.blend", LARGE);
        for (round, received) in [0, 1, 1 << 20, 40 << 20].into_iter().enumerate() {
            let uuid = format!("round-{round}");
            farm.leave_blend(&uuid, "scene.blend");
            let mut connection = client.open(farm.http);
            connection.send_head("GET", &format!("/?bufferUUID={uuid}"), &[]);
            assert_eq!(connection.read_head().status, 200);
            connection.read_exact(received);
            drop(connection);
            let whole = eventually("the message is offered again", SOON, || {
                let answer = client.open(farm.http).request("GET", &format!("/?bufferUUID={uuid}"), &[], b"");
                if answer.status == 200 { Ok(answer.body.len() as u64) } else { Err(answer) }
            });
            assert!(whole > LARGE, "{whole} bytes");
            eventually("it is delivered", SOON, || {
                let answer = client.open(farm.http).request("GET", &format!("/?bufferUUID={uuid}"), &[], b"");
                holds(answer.status == 400 && answer.header("retry-after").is_none(), answer)
            });
        }
    }
}
