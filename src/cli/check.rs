//! `user-http-server check`: prints the configuration, and everything that would stop the service from starting.

use std::fmt::Write;
use std::process::ExitCode;

use clap::Command;
use user_http_server::config::GivenValues;

use crate::cli::text::{line, quoted};
use crate::cli::{EXIT_USAGE, Failure, Invocation, print};
use crate::process::limits;

pub fn command() -> Command {
    Command::new("check").about("Print every setting, and what would stop the service from starting").long_about(
        "Load the configuration as `serve` would, and print every setting with its value (passwords are masked) and \
         where it comes from: a flag, an environment variable, a file, or the default. Report everything that would \
         stop the service from starting, and exit with 2 if there is anything.\n\n\
         It binds no port, and changes and locks nothing, so that it can run beside the service.",
    )
}

pub fn run(invocation: &Invocation<'_>) -> ExitCode {
    // the blend roots are opened on threads
    if let Err(error) = limits::check_threads() {
        return invocation.fail(Failure::Failed(error.to_string()));
    }
    limits::raise_file_limit();
    let mut layers = invocation.layers();
    let table: String = layers.values().map(|given| row(&given)).collect();
    let checked = layers.check();
    let printed = print(&table);
    layers.warnings().iter().for_each(|warning| invocation.logging.print(&format!("warning: {}", line(warning))));
    match checked {
        Ok(_) => {
            invocation.logging.print("the configuration is valid");
            invocation.end(printed)
        }
        Err(errors) => {
            errors.iter().for_each(|error| invocation.logging.print(&format!("error: {}", line(&error.to_string()))));
            ExitCode::from(EXIT_USAGE)
        }
    }
}

/// A line of the table: TOML, with the origin as a comment.
fn row(given: &GivenValues) -> String {
    let GivenValues { key, values, is_switch, origin } = given;
    let value = match &values[..] {
        [] => "(not set)".to_owned(),
        [value] if *is_switch => line(value),
        [value] => quoted(value),
        values => format!("[{}]", values.iter().map(|value| quoted(value)).collect::<Vec<_>>().join(", ")),
    };
    let mut row = String::new();
    // writing to a string never fails
    let _ = writeln!(row, "{key:<21} = {value:<36} # {}", line(&origin.to_string()));
    row
}
