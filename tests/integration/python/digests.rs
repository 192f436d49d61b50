//! `Content-Digest` and `Repr-Digest` (RFC 9530) of request bodies.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::json;
use sfv::{DictSerializer, key_ref};
use sha2::{Digest, Sha256, Sha512};

use crate::harness::{Connection, Farm, Response, SOON, Setup, eventually, files_below, frame, holds, order, request};

const PICKLE: (&str, &str) = ("Content-Type", "application/octet-stream");

/// The SHA-256 of no bytes.
const EMPTY: &str = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:";

fn sha_256(body: &[u8]) -> String {
    let mut dictionary = DictSerializer::new();
    dictionary.bare_item(key_ref("sha-256"), &Sha256::digest(body)[..]);
    dictionary.finish().expect("a member")
}

fn sha_512(body: &[u8]) -> String {
    let mut dictionary = DictSerializer::new();
    dictionary.bare_item(key_ref("sha-512"), &Sha512::digest(body)[..]);
    dictionary.finish().expect("a member")
}

/// Posts a pickle with these headers.
fn post(farm: &Farm, headers: &[(&str, &str)], body: &[u8]) -> Response {
    request(farm.http, "POST", "/", &[&[PICKLE], headers].concat(), body)
}

/// Posts it in chunks, so that its length is not known before.
fn post_chunked(farm: &Farm, header: (&str, &str), body: &[u8]) -> Response {
    let mut connection = Connection::open(farm.http);
    connection.send_head("POST", "/", &[PICKLE, header, ("Transfer-Encoding", "chunked")]);
    for chunk in body.chunks(100_000) {
        connection.send(format!("{:x}\r\n", chunk.len()).as_bytes());
        connection.send(chunk);
        connection.send(b"\r\n");
    }
    connection.send(b"0\r\n\r\n");
    connection.read_response()
}

/// Pickles of frames whose bodies take each of the ways: in memory, hashed in place and elsewhere, and in a file.
fn frames(farm: &mut Farm) -> Vec<Vec<u8>> {
    ["b'pixels'", "bytes(300_000)", "bytes(range(256)) * 6_000"]
        .map(|data| farm.peer.dumps(&frame("FRAME_RENDERED", data), 4))
        .into()
}

#[test]
fn a_body_with_its_own_digests_is_accepted() {
    let mut farm = Farm::start();
    for body in frames(&mut farm) {
        let (sha_256, sha_512) = (sha_256(&body), sha_512(&body));
        let both = format!("md5=:1B2M2Y8AsgTpgAmY7PhCfg==:, {sha_256};a=1, {sha_512}");
        for headers in [
            &[("Content-Digest", sha_256.as_str())][..],
            &[("repr-digest", &sha_512)],
            &[("Content-Digest", &both), ("Repr-Digest", &both)],
            &[("Content-Digest", &sha_256), ("Content-Digest", &sha_512)],
            // other algorithms, and the header of an older standard, are ignored
            &[("Content-Digest", "md5=:1B2M2Y8AsgTpgAmY7PhCfg==:")],
            &[("Digest", "SHA-256=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=")],
        ] {
            let answer = post(&farm, headers, &body);
            assert_eq!(answer.status, 200, "{headers:?}: {answer:?}");
            farm.take();
        }
        let answer = post_chunked(&farm, ("Content-Digest", &both), &body);
        assert_eq!(answer.status, 200, "{answer:?}");
        farm.take();
    }
    let body = farm.peer.dumps(&order("id-1", "'hello'"), 4);
    let digest = sha_256(&body);
    let path = "/CommunicationInterface/AddBufferMsg";
    let answer = request(farm.api, "POST", path, &[PICKLE, ("Content-Digest", &digest)], &body);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(farm.fetch_value("id-1"), "'hello'");
}

#[test]
fn a_body_with_another_digest_is_refused_with_both_digests_and_nothing_of_it_is_kept() {
    for mode in [&[][..], &["--memory"]] {
        let limits = ["--max-inflight", "4MiB", "--max-upload-space", "4MiB", "--max-body", "3MiB"];
        let mut farm = Farm::of(Setup::default().args(limits).args(mode));
        let frames = frames(&mut farm);
        // more often than the limits allow if anything were still counted
        for _ in 0..2 {
            for body in &frames {
                let (right, mut other) = (sha_256(body), body.clone());
                let last = other.len() - 20;
                other[last] ^= 1;
                let (wrong, wrong_512) = (sha_256(&other), sha_512(&other));
                for header in [("Content-Digest", wrong.as_str()), ("Repr-Digest", &wrong)] {
                    for answer in [post(&farm, &[header], body), post_chunked(&farm, header, body)] {
                        let error = answer.failure(400);
                        let said = [header.0, &wrong, &right].map(|part| error.contains(part));
                        assert_eq!(said, [true; 3], "{error}");
                    }
                }
                // both are checked
                let both = [("Content-Digest", right.as_str()), ("Content-Digest", &wrong_512)];
                let error = post(&farm, &both, body).failure(400);
                assert!(error.contains(&wrong_512) && error.contains(&sha_512(body)), "{error}");
            }
        }
        let body = farm.peer.dumps(&order("id-1", "bytes(300_000)"), 4);
        let path = "/CommunicationInterface/AddBufferMsg";
        request(farm.api, "POST", path, &[PICKLE, ("Repr-Digest", EMPTY)], &body).failure(400);
        farm.expect_no_message("id-1");
        farm.expect_nothing_for_the_user_manager();
        let readyz = farm.readyz();
        for part in ["buffer", "outbox"] {
            assert_eq!((readyz[part]["messages"].as_u64(), readyz[part]["bytes"].as_u64()), (Some(0), Some(0)));
        }
        eventually("no file is left", SOON, || {
            let mut files = files_below(&farm.server.setup().data_dir());
            files.retain(|(path, _)| path.extension().is_some_and(|end| end == "body"));
            holds(files.is_empty(), files)
        });
        let answer = post(&farm, &[("Content-Digest", &sha_256(&frames[2]))], &frames[2]);
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

#[test]
fn a_connection_is_usable_after_a_digest_that_does_not_match_which_comes_before_other_faults_of_the_body() {
    let farm = Farm::start();
    let mut connection = Connection::open(farm.http);
    for _ in 0..3 {
        let answer = connection.request("POST", "/", &[PICKLE, ("Content-Digest", EMPTY)], b"no pickle");
        assert!(answer.failure(400).contains(EMPTY), "{answer:?}");
        let right = sha_256(b"no pickle");
        let answer = connection.request("POST", "/", &[PICKLE, ("Content-Digest", &right)], b"no pickle");
        assert!(!answer.failure(400).contains("sha-256"), "{answer:?}");
        // a body of no bytes has a digest too
        let answer = connection.request("POST", "/", &[PICKLE, ("Content-Digest", &right)], b"");
        assert!(answer.failure(400).contains(EMPTY), "{answer:?}");
        let answer = connection.request("POST", "/", &[PICKLE, ("Content-Digest", EMPTY)], b"");
        assert!(!answer.failure(400).contains("sha-256"), "{answer:?}");
    }
}

#[test]
fn a_malformed_digest_is_refused_before_the_body_is_read() {
    let mut farm = Farm::start();
    let body = farm.peer.dumps(&frame("FRAME_RENDERED", "b'pixels'"), 4);
    for (to, path) in [(farm.http, "/"), (farm.api, "/CommunicationInterface/AddBufferMsg")] {
        for digest in
            ["sha-256", "sha-256=1", "sha-256=abc", "sha-256=:AAAA:", "sha-512=:====:", "a=:AA==:,", "?", "=::"]
        {
            for header in ["Content-Digest", "Repr-Digest"] {
                let mut connection = Connection::open(to);
                let length = body.len().to_string();
                let headers = [PICKLE, ("Content-Length", &length), ("Expect", "100-continue"), (header, digest)];
                connection.send_head("POST", path, &headers);
                let error = connection.read_response().failure(400);
                assert!(error.contains(header), "{digest}: {error}");
            }
        }
    }
    // requests whose bodies nobody reads
    farm.leave("id-1", "1");
    for method in ["HEAD", "GET"] {
        let answer = farm.ask(method, "id-1", &[("Content-Digest", "sha-256=:AAAA:")]);
        assert_eq!(answer.status, 200, "{method}: {answer:?}");
    }
    farm.expect_nothing_for_the_user_manager();
}

#[test]
fn requests_and_curl_send_digests() {
    let mut farm = Farm::start();
    let url = farm.worker_url();
    for (wrong, status) in [(false, 200), (true, 400)] {
        let value = frame("FRAME_RENDERED", "bytes(2_000_000)");
        let arguments = json!({ "url": url, "value": value, "protocol": 5, "wrong": wrong });
        let answer = farm.peer.answer("post_with_digest", arguments);
        assert_eq!(answer.status, status, "{answer:?}");
        let body = farm.peer.dumps(&value, 5);
        let digest = if wrong { EMPTY.to_owned() } else { sha_256(&body) };
        let mut curl = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "60", "--data-binary", "@-"])
            .args(["--write-out", "%{http_code}", "--output", "/dev/null"])
            .args(["-H", "Content-Type: application/octet-stream", "-H", &format!("Content-Digest: {digest}"), &url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("curl");
        curl.stdin.take().expect("a pipe").write_all(&body).expect("curl reads");
        let output = curl.wait_with_output().expect("curl");
        assert_eq!(output.stdout, status.to_string().as_bytes(), "{output:?}");
    }
    farm.take();
    farm.take();
    farm.expect_nothing_for_the_user_manager();
}
