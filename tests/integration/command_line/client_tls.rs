//! What the clients of the API server trust, and what they show it.

use std::fs;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

use crate::harness::{Ca, Ended, Program, Server, Setup, free_address, gateway};

fn run(args: &[&str]) -> Ended {
    Program::start(&mut gateway(args)).end()
}

/// The arguments of the TLS of an API server.
fn tls<'a>(files: &'a [String; 2], more: &[&'a str]) -> Vec<&'a str> {
    [&["--api-tls-cert", &files[0], "--api-tls-key", &files[1]], more].concat()
}

fn start(tls: &[&str]) -> Server {
    Setup::default().args(["--api-bind", &free_address().to_string()]).args(tls).start()
}

#[track_caller]
fn assert_healthy(args: &[&str]) {
    let ended = run(args);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{args:?}: {ended:?}");
}

#[track_caller]
fn assert_failed(args: &[&str], parts: &[&str]) {
    let ended = run(args);
    assert_eq!((ended.code, ended.stderr.lines().count()), (Some(1), 1), "{args:?}: {ended:?}");
    for part in parts {
        assert!(ended.stderr.contains(part), "{args:?}: no {part:?}: {ended:?}");
    }
}

#[test]
fn the_configured_server_is_known_by_its_own_certificate() {
    let (ca, folder) = (Ca::new(), tempfile::tempdir().expect("a folder"));
    // as the README makes one: self-signed, a CA by itself, and for another name than the address
    let mut params = CertificateParams::new(vec!["farm.example".to_owned()]).expect("a name");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate");
    let self_signed = ["cert.pem", "key.pem"].map(|name| folder.path().join(name).display().to_string());
    fs::write(&self_signed[0], certificate.pem()).expect("a file");
    fs::write(&self_signed[1], key.serialize_pem()).expect("a file");
    let issued = ca.issue_for(&["farm.example"]).write(folder.path(), "issued");
    for files in [self_signed, issued] {
        let server = start(&tls(&files, &[]));
        let api = server.api.to_string();
        let args = tls(&files, &["--api-bind", &api]);
        assert_healthy(&[&["healthcheck"], &args[..]].concat());
        assert_healthy(&[&["messages", "list"], &args[..]].concat());
        assert_healthy(&[&["healthcheck", &server.api_url("")], &args[..]].concat());
        // the settings of another server
        let other = ca.issue_files("other");
        let args = tls(&other, &["--api-bind", &api]);
        assert_failed(&[&["healthcheck"], &args[..]].concat(), &["certificate is not", "--api-tls-cert"]);
    }
}

#[test]
fn a_renewed_certificate_of_the_same_ca_is_trusted_while_the_server_still_shows_the_old_one() {
    let ca = Ca::new();
    let server = start(&tls(&ca.issue_files("server"), &[]));
    let renewed = ca.issue_files("renewed");
    assert_healthy(&[&["healthcheck"], &tls(&renewed, &["--api-bind", &server.api.to_string()])[..]].concat());
}

#[test]
fn a_server_at_a_url_is_known_by_a_ca_and_its_name() {
    let ca = Ca::new();
    let server = start(&tls(&ca.issue_files("server"), &[]));
    let (url, file) = (server.api_url(""), ca.path().display().to_string());
    assert_healthy(&["healthcheck", &url, "--ca-file", &file]);
    assert_healthy(&["messages", "--url", &url, "--ca-file", &file, "list"]);
    assert_failed(&["healthcheck", &url], &["its certificate is not trusted", "--ca-file"]);
    assert_failed(
        &["healthcheck", &url, "--ca-file", &Ca::new().path().display().to_string()],
        &["its certificate is not trusted", "--ca-file"],
    );
    let folder = tempfile::tempdir().expect("a folder");
    let elsewhere = ca.issue_for(&["farm.example"]).write(folder.path(), "elsewhere");
    let server = start(&tls(&elsewhere, &[]));
    assert_failed(&["healthcheck", &server.api_url(""), "--ca-file", &file], &["certificate is not accepted"]);
    let ended = run(&["healthcheck", &url, "--ca-file", "/no/ca.pem"]);
    assert!(ended.code == Some(2) && ended.stderr.contains("--ca-file /no/ca.pem"), "{ended:?}");
}

#[test]
fn a_server_with_tls_is_not_asked_in_plain_http_and_the_other_way_round() {
    let ca = Ca::new();
    let server = start(&tls(&ca.issue_files("server"), &[]));
    let plain = format!("http://{}", server.api);
    let ended = run(&["healthcheck", &plain]);
    assert!(ended.code == Some(1) && ended.stderr.contains(&plain), "{ended:?}");
    let server = Server::start();
    let url = format!("https://{}", server.api);
    assert_failed(&["healthcheck", &url, "--ca-file", &ca.path().display().to_string()], &["it does not speak TLS"]);
}

#[test]
fn a_server_that_asks_for_client_certificates_gets_its_own_or_the_one_that_is_given() {
    let (ca, clients) = (Ca::new(), Ca::new());
    let files = ca.issue_files("server");
    let [same, other] = [&ca, &clients].map(|ca| ca.path().display().to_string());
    // the CA of the server has issued the certificates of its clients too
    let server = start(&tls(&files, &["--api-client-ca", &same]));
    let api = server.api.to_string();
    assert_healthy(&[&["healthcheck"], &tls(&files, &["--api-client-ca", &same, "--api-bind", &api])[..]].concat());

    let server = start(&tls(&files, &["--api-client-ca", &other]));
    let api = server.api.to_string();
    let args = tls(&files, &["--api-client-ca", &other, "--api-bind", &api]);
    let refused = [&["healthcheck"], &args[..]].concat();
    assert_failed(&refused, &["client certificate", "--client-cert"]);
    let [cert, key] = clients.issue_files("client");
    assert_healthy(&[&refused[..], &["--client-cert", &cert, "--client-key", &key]].concat());
    let url = server.api_url("");
    let with_url = ["healthcheck", &url, "--ca-file", &same];
    assert_failed(&with_url, &["client certificate", "--client-cert"]);
    assert_healthy(&[&with_url[..], &["--client-cert", &cert, "--client-key", &key]].concat());
    let ended = run(&[&refused[..], &["--client-cert", &cert]].concat());
    assert!(ended.code == Some(2) && ended.stderr.contains("--client-key"), "{ended:?}");
    let ended = run(&[&refused[..], &["--client-cert", &cert, "--client-key", &files[1]]].concat());
    assert!(ended.code == Some(2) && ended.stderr.contains("cannot be used"), "{ended:?}");
}

#[test]
fn a_certificate_that_cannot_be_read_is_an_error_only_where_it_is_needed() {
    let server = Server::start();
    let missing = ["--api-tls-cert", "/no/cert.pem", "--api-tls-key", "/no/key.pem"];
    assert_healthy(&[&["healthcheck", &server.api_url("")], &missing[..]].concat());
    let ended = run(&[&["healthcheck"], &missing[..]].concat());
    assert!(ended.code == Some(2) && ended.stderr.contains("--api-tls-cert"), "{ended:?}");
}
