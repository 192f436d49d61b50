//! The token that clients of the API server send.

use std::fs;

use crate::harness::{Ended, Program, Server, Setup, gateway};

const TOKEN: &str = "a-token-of-the-night-shift";
const OTHER: &str = "another-token-of-somebody";

/// A server whose token file has these lines.
fn start(lines: &str) -> (Server, String) {
    let setup = Setup::default();
    let file = setup.path("tokens");
    fs::write(&file, lines).expect("a token file");
    let file = file.display().to_string();
    (setup.args(["--api-token-file", &file]).start(), file)
}

fn hash(token: &str) -> String {
    use sha2::{Digest, Sha256};
    let digits: String = Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

fn list(server: &Server, args: &[&str]) -> Ended {
    let api = server.api.to_string();
    Program::start(gateway(&["messages", "list", "--api-bind", &api]).args(args)).end()
}

#[track_caller]
fn assert_answered(ended: &Ended) {
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
}

#[track_caller]
fn assert_refused(ended: &Ended, parts: &[&str]) {
    assert_eq!(ended.code, Some(1), "{ended:?}");
    for part in parts.iter().chain(&["401"]) {
        assert!(ended.stderr.contains(part), "no {part:?}: {ended:?}");
    }
    assert!(![TOKEN, OTHER].iter().any(|token| ended.stderr.contains(token)), "{ended:?}");
}

#[test]
fn the_first_token_of_the_servers_file_that_is_no_hash_is_sent() {
    let (server, file) = start(&format!("# farm\n\n{}  day shift\n{TOKEN} night shift # mine\n", hash(OTHER)));
    assert_answered(&list(&server, &["--api-token-file", &file]));
    assert_answered(&list(&server, &["--api-token-file", &file, "--url", &server.api_url("")]));
}

#[test]
fn a_token_can_be_given_in_a_file_or_in_the_environment_and_the_file_comes_first() {
    let (server, file) = start(&format!("{}\n", hash(TOKEN)));
    let own = server.setup().path("own");
    fs::write(&own, format!("{TOKEN}\n")).expect("a token file");
    let own = own.display().to_string();
    assert_answered(&list(&server, &["--token-file", &own]));
    assert_answered(&list(&server, &["--token-file", &own, "--api-token-file", &file]));
    let with_variable = |token: &str, args: &[&str]| {
        let api = server.api.to_string();
        let mut command = gateway(&["messages", "list", "--api-bind", &api]);
        Program::start(command.args(args).env("USER_HTTP_SERVER_TOKEN", token)).end()
    };
    assert_answered(&with_variable(TOKEN, &[]));
    assert_answered(&with_variable(TOKEN, &["--api-token-file", &file]));
    assert_answered(&with_variable(OTHER, &["--token-file", &own]));
    assert_refused(&with_variable(OTHER, &[]), &["USER_HTTP_SERVER_TOKEN"]);
    let ended = with_variable("two words\n", &[]);
    assert!(ended.code == Some(2) && ended.stderr.contains("USER_HTTP_SERVER_TOKEN"), "{ended:?}");
}

#[test]
fn without_a_usable_token_the_refusal_says_what_to_do() {
    let (server, file) = start(&format!("{}\n", hash(TOKEN)));
    let hashes = ["--api-token-file", &file, "only hashes", "--token-file", "USER_HTTP_SERVER_TOKEN"];
    assert_refused(&list(&server, &["--api-token-file", &file]), &hashes);
    assert_refused(&list(&server, &[]), &["--token-file", "USER_HTTP_SERVER_TOKEN"]);
    assert_refused(&list(&server, &["--api-token-file", "/no/tokens"]), &["/no/tokens", "--token-file"]);
    let other = server.setup().path("other");
    fs::write(&other, format!("{OTHER}\n")).expect("a token file");
    let other = other.display().to_string();
    assert_refused(&list(&server, &["--token-file", &other]), &[&other, "is not valid there"]);
    for (args, parts) in [
        (["--token-file", "/no/tokens"], ["--token-file", "/no/tokens"]),
        (["--token-file", &file], ["--token-file", "only hashes"]),
    ] {
        let ended = list(&server, &args);
        assert!(ended.code == Some(2) && parts.iter().all(|part| ended.stderr.contains(part)), "{ended:?}");
    }
}

#[test]
fn the_token_is_never_printed_whatever_rust_log_says() {
    let (server, file) = start(&format!("{TOKEN}\n"));
    let api = server.api.to_string();
    for subcommand in [&["messages", "list"][..], &["healthcheck"], &["check"]] {
        let mut command = gateway(subcommand);
        let ended =
            Program::start(command.args(["--api-bind", &api, "--api-token-file", &file]).env("RUST_LOG", "trace"));
        let ended = ended.end();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        // the client would dump what it sends, in lines of 16 bytes
        assert!(!ended.stderr.contains("TRACE") && !format!("{ended:?}").contains(TOKEN), "{ended:?}");
    }
}

#[test]
fn a_healthcheck_needs_no_token() {
    let (server, file) = start(&format!("{}\n", hash(TOKEN)));
    let api = server.api.to_string();
    for args in [&["--api-bind", &api][..], &["--api-bind", &api, "--api-token-file", &file]] {
        assert_answered(&Program::start(gateway(&["healthcheck"]).args(args)).end());
    }
}
