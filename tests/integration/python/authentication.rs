//! Bearer tokens on both servers.

use std::fs;
use std::process::Command;

use crate::harness::{Farm, Response, SOON, Setup, eventually, frame, holds, order, request};

const WORKER: &str = "worker-token-0123456789";
const BOUND: &str = "token-bound-to-a-user-01";
const SERVICE: &str = "service-token-0123456789";
const PICKLE: (&str, &str) = ("Content-Type", "application/octet-stream");

fn guarded_farm() -> Farm {
    let setup = Setup::default();
    let (workers, services) = (setup.path("worker-tokens"), setup.path("api-tokens"));
    fs::write(&workers, format!("# of the workers\n{WORKER}\n{BOUND} anna\n")).expect("writable");
    fs::write(&services, format!("{SERVICE}\n")).expect("writable");
    let path = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    Farm::of(setup.args(["--worker-token-file", &path(&workers), "--api-token-file", &path(&services)]))
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

fn post(farm: &mut Farm, token: &str, user_id: &str) -> Response {
    let value = format!("{{'USER_ID': '{user_id}', 'MAIN_DATA': {{'TYPE': 'FRAME_RENDERED', 'DATA': 1}}}}");
    let body = farm.peer.dumps(&value, 4);
    request(farm.http, "POST", "/", &[PICKLE, ("Authorization", &bearer(token))], &body)
}

fn leave(farm: &mut Farm, token: &str, uuid: &str) -> u16 {
    let body = farm.peer.dumps(&order(uuid, "'kept'"), 4);
    let headers = [PICKLE, ("Authorization", &bearer(token))];
    request(farm.api, "POST", "/CommunicationInterface/AddBufferMsg", &headers, &body).status
}

fn fetch(farm: &Farm, token: &str, uuid: &str) -> u16 {
    request(farm.http, "GET", &format!("/?bufferUUID={uuid}"), &[("Authorization", &bearer(token))], b"").status
}

#[test]
fn without_a_valid_token_nothing_is_done_and_the_answer_says_what_is_needed() {
    let mut farm = guarded_farm();
    assert_eq!(leave(&mut farm, SERVICE, "id-1"), 200);
    let body = farm.peer.dumps(&frame("FRAME_RENDERED", "1"), 4);
    for authorization in
        [None, Some("Bearer wrong-token-0123456789"), Some("Basic d29ya2Vy"), Some(WORKER), Some("Bearer")]
    {
        let headers: Vec<_> = authorization.iter().map(|value| ("Authorization", *value)).collect();
        for (to, method, path) in [
            (farm.http, "GET", "/?bufferUUID=id-1"),
            (farm.http, "HEAD", "/?bufferUUID=id-1"),
            (farm.http, "POST", "/"),
            (farm.http, "GET", "/nowhere"),
            (farm.api, "POST", "/CommunicationInterface/AddBufferMsg"),
            (farm.api, "GET", "/UserManager/NextMessage"),
            (farm.api, "DELETE", "/UserManager/Messages/x"),
            (farm.api, "GET", "/UserManager/Parked"),
            (farm.api, "GET", "/nowhere"),
        ] {
            let sent: &[u8] = if method == "POST" { &body } else { b"" };
            let answer = request(to, method, path, &headers, sent);
            assert_eq!(answer.status, 401, "{method} {path} with {authorization:?}: {answer:?}");
            let challenge = answer.header("www-authenticate").expect("a challenge");
            assert!(challenge.starts_with("Bearer"), "{challenge}");
            if method == "GET" && to == farm.http {
                assert!(farm.peer.loads(&answer.body).contains("'message': 'a valid token is needed"), "{answer:?}");
            } else if method != "HEAD" {
                assert_eq!(answer.json()["STATUS"], "FAILED", "{answer:?}");
            }
        }
    }
    // the tokens of one server are none of the other
    assert_eq!((fetch(&farm, SERVICE, "id-1"), leave(&mut farm, WORKER, "id-2")), (401, 401));
    for path in ["/healthz", "/readyz"] {
        assert_eq!(request(farm.api, "GET", path, &[], b"").status, 200);
    }
    assert_eq!(fetch(&farm, WORKER, "id-1"), 200);
    assert!(![WORKER, SERVICE, BOUND].iter().any(|token| farm.log().contains(token)), "{}", farm.log());
}

#[test]
fn a_token_bound_to_a_user_sends_for_no_other() {
    let mut farm = guarded_farm();
    assert_eq!(post(&mut farm, BOUND, "anna").status, 200);
    let refused = post(&mut farm, BOUND, "berta");
    assert!(refused.failure(403).contains("berta"), "{refused:?}");
    assert_eq!(post(&mut farm, WORKER, "berta").status, 200);
    let next = || request(farm.api, "GET", "/UserManager/NextMessage", &[("Authorization", &bearer(SERVICE))], b"");
    assert_eq!([next().status, next().status, next().status], [200, 200, 204]);
}

#[test]
fn a_bound_user_is_compared_whole_and_exactly() {
    let setup = Setup::default();
    let file = setup.path("worker-tokens");
    let tokens = ["bound-token-0123456789-1", "bound-token-0123456789-2", "bound-token-0123456789-3"];
    let (long, longer) = ("u".repeat(1024), "v".repeat(5000));
    let users = [&long, &longer, "w\u{fffd}"];
    let lines: String = tokens.iter().zip(users).map(|(token, user)| format!("{token} {user}\n")).collect();
    fs::write(&file, lines).expect("writable");
    let mut farm = Farm::of(setup.args(["--worker-token-file", file.to_str().expect("UTF-8")]));
    for (token, claimed, status) in [
        (tokens[0], long.clone(), 200),
        (tokens[0], format!("{long}admin"), 403),
        (tokens[0], "u".repeat(1023), 403),
        (tokens[1], longer.clone(), 200),
        (tokens[1], format!("{longer}admin"), 403),
        (tokens[2], r"w\ufffd".to_owned(), 200),
        (tokens[2], r"w\ud800".to_owned(), 403),
        (tokens[2], r"w\udfff".to_owned(), 403),
    ] {
        for protocol in [0, 4] {
            let value = format!("{{'USER_ID': '{claimed}', 'MAIN_DATA': {{'TYPE': 'FRAME_RENDERED', 'DATA': 1}}}}");
            let body = farm.peer.dumps(&value, protocol);
            let answer = request(farm.http, "POST", "/", &[PICKLE, ("Authorization", &bearer(token))], &body);
            assert_eq!(answer.status, status, "protocol {protocol}: {answer:?}");
        }
        let json = format!(r#"{{"USER_ID": "{claimed}", "MAIN_DATA": {{"TYPE": "FRAME_RENDERED", "DATA": 1}}}}"#);
        let answer = request(farm.http, "POST", "/", &[("Authorization", &bearer(token))], json.as_bytes());
        // JSON with half a surrogate pair is no message of anybody
        let expected = if claimed.contains(r"\ud") { 400 } else { status };
        assert_eq!(answer.status, expected, "{answer:?}");
    }
}

#[test]
fn a_token_file_with_a_byte_order_mark_and_comments_is_read_as_it_looks() {
    let setup = Setup::default();
    let file = setup.path("worker-tokens");
    fs::write(&file, format!("\u{feff}{WORKER} # of all workers\r\n{BOUND} anna # hers\r\n")).expect("writable");
    let mut farm = Farm::of(setup.args(["--worker-token-file", file.to_str().expect("UTF-8")]));
    assert_eq!((post(&mut farm, WORKER, "x").status, post(&mut farm, BOUND, "anna").status), (200, 200));
    assert_eq!(post(&mut farm, BOUND, "# hers").status, 403);
}

#[test]
fn a_token_file_that_is_emptied_revokes_every_token_at_a_hangup() {
    let mut farm = guarded_farm();
    let file = farm.server.setup().path("worker-tokens");
    assert_eq!(post(&mut farm, WORKER, "x").status, 200);
    for (nothing, warnings) in [("", 1), ("# none at present\n", 2)] {
        fs::write(&file, nothing).expect("writable");
        farm.server.signal("HUP");
        eventually("the log says so", SOON, || {
            let warned = |line: &&str| line.contains(" WARN ") && line.contains("has no tokens any more");
            holds(farm.log().lines().filter(warned).count() == warnings, farm.log())
        });
        assert_eq!((post(&mut farm, WORKER, "x").status, post(&mut farm, BOUND, "anna").status), (401, 401));
        assert_eq!(fetch(&farm, "", "id-1"), 401);
        fs::write(&file, format!("{WORKER}\n")).expect("writable");
        farm.server.signal("HUP");
        eventually("the token is valid again", SOON, || {
            let answer = post(&mut farm, WORKER, "x");
            holds(answer.status == 200, answer)
        });
    }
    fs::remove_file(&file).expect("a token file");
    farm.server.signal("HUP");
    farm.server.wait_for_log("the previous ones stay valid: cannot read the token file");
    assert_eq!(post(&mut farm, WORKER, "x").status, 200);
}

#[test]
fn a_hangup_reads_the_tokens_again_and_a_bad_file_changes_nothing() {
    let mut farm = guarded_farm();
    let file = farm.server.setup().path("worker-tokens");
    let new = "another-token-0123456789";
    // both are valid while the workers get the new one
    fs::write(&file, format!("{WORKER}\n{new}\n")).expect("writable");
    farm.server.signal("HUP");
    farm.server.wait_for_log("2 tokens read");
    assert_eq!((post(&mut farm, WORKER, "x").status, post(&mut farm, new, "x").status), (200, 200));
    fs::write(&file, "short\n").expect("writable");
    farm.server.signal("HUP");
    farm.server.wait_for_log("cannot reload the tokens");
    assert_eq!(post(&mut farm, new, "x").status, 200);
    fs::write(&file, format!("{new}\n")).expect("writable");
    farm.server.signal("HUP");
    eventually("the old one is not valid any more", SOON, || {
        let answer = post(&mut farm, WORKER, "x");
        holds(answer.status == 401, answer)
    });
    assert_eq!(post(&mut farm, new, "x").status, 200);
}

#[test]
fn a_new_token_is_printed_alone_and_its_hash_stands_for_it() {
    let output = Command::new(env!("CARGO_BIN_EXE_user-http-server")).arg("token").output().expect("the program");
    let token = String::from_utf8(output.stdout).expect("text").trim().to_owned();
    assert!(output.status.success() && token.len() == 64, "{token}");
    let stderr = String::from_utf8(output.stderr).expect("text");
    let line = stderr.split_whitespace().find(|word| word.starts_with("sha256:")).expect("the hash");
    let setup = Setup::default();
    let file = setup.path("tokens");
    fs::write(&file, format!("{line} anna\n")).expect("writable");
    let mut farm = Farm::of(setup.args(["--worker-token-file", file.to_str().expect("UTF-8")]));
    assert_eq!((post(&mut farm, &token, "anna").status, post(&mut farm, line, "anna").status), (200, 401));
}

#[test]
fn an_api_server_beyond_this_machine_without_tokens_is_refused_unless_that_is_meant() {
    let (status, stderr) = Setup::default().args(["--api-bind", "0.0.0.0:0"]).start_refused();
    assert_eq!(status.code(), Some(2), "{stderr}");
    for part in ["--api-bind", "0.0.0.0:0", "--api-token-file", "--allow-open-api"] {
        assert!(stderr.contains(part), "{stderr}");
    }
    let (status, stderr) = Setup::default().args(["--worker-token-file", "/nowhere/tokens"]).start_refused();
    assert!(status.code() == Some(2) && stderr.contains("--worker-token-file"), "{stderr}");
}
