//! `user-http-server healthcheck [URL]`: whether a gateway takes work, for containers and supervisors.

use std::io::Write;
use std::process::ExitCode;

use clap::{Arg, Command};
use serde::Deserialize;

use crate::cli::{Failure, Invocation, client};

/// The route.
const READY: &str = "/readyz";

pub fn command() -> Command {
    let url = Arg::new("url").value_name("URL").help(
        "API server, such as https://farm.example:10001\n[default: the one that --api-bind describes, on this machine]",
    );
    Command::new("healthcheck").about("Ask a running gateway whether it takes work").long_about(
        "Ask a running gateway whether it takes work (GET /readyz). Exit with 0 if it does, and otherwise with 1 and \
         one line that says why.",
    )
    .arg(url)
    .args(client::args("5s"))
}

pub fn run(invocation: &Invocation<'_>) -> ExitCode {
    invocation.end(check(invocation))
}

fn check(invocation: &Invocation<'_>) -> Result<(), Failure> {
    let url = invocation.args.get_one::<String>("url").map(|url| {
        // the whole URL of the route is meant as well
        url.trim_end_matches('/').trim_end_matches(READY).to_owned()
    });
    let client = client::Client::new(invocation, url.as_ref())?;
    let answer = client.get(READY)?;
    if answer.status == 200 {
        let mut output = std::io::stdout().lock();
        // the exit code says it even if nobody can read this
        let _ = writeln!(output, "ready: {}{READY} answers 200", client.base()).and_then(|()| output.flush());
        return Ok(());
    }
    let why = match serde_json::from_slice::<Readiness>(&answer.body) {
        Ok(Readiness { not_ready }) => {
            format!("not ready: {}{READY} answers {}: {}", client.base(), answer.status, not_ready.join("; "))
        }
        Err(_) => client.refusal(&answer),
    };
    Err(Failure::Failed(why))
}

/// The part of the answer that says why the gateway is not ready.
#[derive(Deserialize)]
struct Readiness {
    not_ready: Vec<String>,
}
