//! `user-http-server doctor`: examines what a gateway needs around it.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Command;
use user_http_server::doctor::{Level, examine};

use crate::cli::text::line;
use crate::cli::{Failure, Invocation, client};
use crate::process::limits;

pub fn command() -> Command {
    Command::new("doctor")
        .about("Examine what a gateway needs: broker, disk, files, ports")
        .long_about(
            "Examine what a gateway with this configuration needs around it: the broker with its exchanges, queues and \
         permissions, the data directory and its disk, blend roots, secrets, certificates, ports, limits and the \
         clock; and the gateway itself, if it runs. Print one line for each: ok, warning or failed, with what to do. \
         Exit with 1 if anything has failed. Nothing is changed anywhere.",
        )
        .args(client::args("5s"))
}

pub fn run(invocation: &Invocation<'_>) -> ExitCode {
    match report(invocation) {
        Ok(false) => ExitCode::SUCCESS,
        Ok(true) => ExitCode::FAILURE,
        Err(failure) => invocation.fail(failure),
    }
}

/// Prints every finding. Returns whether anything has failed.
fn report(invocation: &Invocation<'_>) -> Result<bool, Failure> {
    limits::check_threads().map_err(|error| Failure::Failed(error.to_string()))?;
    limits::raise_file_limit();
    let client = client::Client::new(invocation, None);
    let ask = move || {
        let answer = client.and_then(|client| client.get("/readyz")).map_err(|failure| failure.text())?;
        Ok((answer.status, answer.body))
    };
    let (mut has_failed, mut written) = (false, Ok(()));
    let mut output = io::stdout().lock();
    examine(&mut invocation.layers(), ask, &mut |finding| {
        has_failed |= finding.level == Level::Failed;
        let text = line(&finding.to_string());
        let write = writeln!(output, "{text}").and_then(|()| output.flush());
        written = std::mem::replace(&mut written, Ok(())).and(write);
    });
    match written {
        // its reader has read enough
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(has_failed),
        written => Ok(written.map(|()| has_failed)?),
    }
}
