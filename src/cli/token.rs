//! `user-http-server token`: makes a bearer token.

use std::process::ExitCode;

use user_http_server::auth;

use crate::cli::print;
use crate::process::logging::Logging;

/// Prints a new token to standard output, and its hash, for use in a token file instead of the token, to standard
/// error.
pub fn run(logging: &Logging) -> ExitCode {
    let (token, line) = auth::new_token();
    logging.print(&format!("put this hash in the token file instead of the token: {line}"));
    print(&format!("{token}\n"))
}
