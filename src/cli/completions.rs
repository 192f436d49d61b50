//! `user-http-server completions SHELL`: the completions of the command line.

use std::process::ExitCode;

use clap::{Arg, Command, value_parser};
use clap_complete::Shell;

use crate::cli::{Failure, Invocation, PROGRAM, print};

pub fn command() -> Command {
    let shell = Arg::new("shell").value_name("SHELL").required(true).value_parser(value_parser!(Shell));
    Command::new("completions").about("Print completions for a shell").arg(shell.help("The shell"))
}

pub fn run(invocation: &Invocation<'_>) -> ExitCode {
    let Some(shell) = invocation.args.get_one::<Shell>("shell") else {
        return invocation.fail(Failure::Usage("the shell is missing".to_owned()));
    };
    let mut script = Vec::new();
    clap_complete::generate(*shell, &mut super::command(), PROGRAM, &mut script);
    invocation.end(print(&String::from_utf8_lossy(&script)))
}
