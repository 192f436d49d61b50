//! The command line: one module per subcommand, and how they print.

use std::io::Write;
use std::process::ExitCode;

pub mod serve;
pub mod token;

/// Exit code for a wrong command line, environment or configuration file, as other programs use it.
pub const EXIT_USAGE: u8 = 2;

/// Prints to standard output. Where that is closed or full, the exit code says so.
fn print(text: &str) -> ExitCode {
    let mut output = std::io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
