//! The gateway itself, if it runs.

use serde_json::Value;

use super::{Finding, Readiness};

const GATEWAY: &str = "gateway";

/// Shows why a gateway has ended or does not answer.
const LOG: &str = "journalctl -u user-http-server -n 50";

pub fn probe(readiness: Readiness, holder: Option<i32>) -> Vec<Finding> {
    let (status, body) = match (readiness, holder) {
        (Ok(answer), _) => answer,
        (Err(why), Some(pid)) => {
            let text = format!("process {pid} uses the data directory, but its API server does not answer: {why}");
            return vec![Finding::failed(GATEWAY, text, LOG)];
        }
        (Err(why), None) => {
            let text = format!("it does not run here ({why}); to start it, type: systemctl start user-http-server");
            return vec![Finding::warning(GATEWAY, text)];
        }
    };
    let state: Value = serde_json::from_slice(&body).unwrap_or_default();
    let Some(is_ready) = state["ready"].as_bool() else {
        let text = format!("what answers at its API server's address is no gateway (status {status})");
        return vec![Finding::failed(GATEWAY, text, "ss -ltnp")];
    };
    let word = |part: &str| state[part].as_str().unwrap_or("unknown").to_owned();
    let states = format!("broker {}, store {}", word("broker"), word("store"));
    let mut findings = vec![match is_ready {
        true => Finding::ok(GATEWAY, format!("it takes work: {states}")),
        false => Finding::failed(GATEWAY, format!("it refuses work: {states}"), "user-http-server healthcheck"),
    }];
    if let Some(waiting_for) = state["waiting_for"].as_str() {
        let text = format!("messages for the user manager wait for {waiting_for}; start the service behind it");
        findings.push(Finding::warning(GATEWAY, text));
    }
    findings
}
