//! The program: from arguments to a subcommand, and to its exit code.

// println! panics where the reader has gone; the subcommands write and check
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
    // before the first thread, because threads inherit it
    let scheduled = scheduling::set();
    let logging = match Logging::start() {
        Ok(logging) => logging,
        Err(error) => {
            // if even this fails, the exit code must do
            let _ = writeln!(std::io::stderr(), "error: {}", ThreadError::none(error));
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = scheduled {
        log::debug!("the scheduling policy is unchanged: {error}");
    }
    let args: Vec<_> = std::env::args_os().collect();
    match args.get(1..) {
        Some([subcommand]) if subcommand == "token" => cli::token::run(&logging),
        _ => cli::serve::run(args, &logging),
    }
}
