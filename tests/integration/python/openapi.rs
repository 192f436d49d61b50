//! The descriptions of both servers as tools for OpenAPI read them.

use std::process::Command;

use crate::harness::{Server, python, request};

/// Checks that a command succeeds.
#[track_caller]
fn assert_success(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
}

#[test]
fn both_descriptions_are_valid_openapi() {
    let server = Server::start();
    for path in ["/openapi.json", "/openapi-worker.json"] {
        let answer = request(server.api, "GET", path, &[], b"");
        let file = server.setup().path(&path[1..]);
        std::fs::write(&file, &answer.body).expect("a file");
        assert_success(Command::new(python()).args(["-m", "openapi_spec_validator"]).arg(file));
    }
}

/// Requests that schemathesis makes from the descriptions, valid and invalid ones, get answers as described.
///
/// It leaves out what waits for a message or streams, and does not check that what is valid is accepted: a description
/// cannot say which bytes are a pickle.
#[test]
fn schemathesis_gets_no_answer_that_is_not_described() {
    let server = Server::with(&["--memory"]);
    let (workers, services) = (server.worker_url(), server.api_url(""));
    for (description, url, selection) in [
        ("/openapi.json", &services, &["--exclude-path", "/events", "--exclude-path", "/UserManager/NextMessage"][..]),
        ("/openapi-worker.json", &workers, &["--include-method", "POST"]),
        ("/openapi-worker.json", &workers, &["--include-path-regex", "/blends/"]),
    ] {
        let answer = request(server.api, "GET", description, &[], b"");
        let file = server.setup().path("description.json");
        std::fs::write(&file, &answer.body).expect("a file");
        let mut command = Command::new(python());
        command.args(["-m", "schemathesis.cli", "run"]).arg(&file).args(["--url", url.trim_end_matches('/')]);
        command.args(["--max-examples", "10", "--seed", "1", "--request-timeout", "60", "--no-color"]);
        command.args(["--exclude-checks", "positive_data_acceptance"]).args(selection);
        assert_success(command.current_dir(server.setup().path("")));
    }
}
