//! The program: runs the subcommand that the arguments name, and exits with its code.

// println! panics if the reader has closed the pipe. The subcommands write and handle the error.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod cli;
mod process;

use std::io::Write;
use std::process::ExitCode;

use process::limits::ThreadError;
use process::logging::Logging;
use process::{allocator, scheduling};

fn main() -> ExitCode {
    allocator::set_bounds();
    // Before the first thread starts, because threads inherit it.
    let scheduled = scheduling::set();
    let args: Vec<_> = std::env::args_os().collect();
    let logging = match Logging::start(&args) {
        Ok(logging) => logging,
        Err(error) => {
            // If even this fails, the exit code has to be enough.
            let _ = writeln!(std::io::stderr(), "error: {}", ThreadError::none(error));
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = scheduled {
        log::debug!("the scheduling policy is unchanged: {error}");
    }
    cli::run(args, &logging)
}
