//! `user-http-server token`: makes a bearer token.

use std::process::ExitCode;

use clap::Command;
use user_http_server::auth;

use crate::cli::{Invocation, print};

pub fn command() -> Command {
    Command::new("token").about("Print a new bearer token").long_about(
        "Print a new bearer token to standard output, and its hash, for use in a token file instead of the token, to \
         standard error.",
    )
}

/// Prints a new token to standard output, and its hash, for use in a token file instead of the token, to standard
/// error.
pub fn run(invocation: &Invocation<'_>) -> ExitCode {
    let (token, line) = auth::new_token();
    invocation.logging.print(&format!("put this hash in the token file instead of the token: {line}"));
    // A token that nobody has read is of no use, even if the reader has only closed the pipe.
    print(&format!("{token}\n")).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}
