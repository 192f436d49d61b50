//! `user-http-server man`: the manual page.

use std::io;
use std::process::ExitCode;

use clap::{Arg, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};
use user_http_server::config;

use crate::cli::{Failure, Invocation, NOTES, PROGRAM, print};

pub fn command() -> Command {
    Command::new("man")
        .about("Print the manual page")
        .long_about(format!("Print the manual page, in the format of man(1). Read it with `{PROGRAM} man | man -l -`."))
}

pub fn run(invocation: &Invocation<'_>) -> ExitCode {
    let page = page().map_err(|error| Failure::Failed(format!("cannot make the page: {error}")));
    invocation.end(page.and_then(|page| print(&String::from_utf8_lossy(&page))))
}

/// One page with everything, because a page for each subcommand would have to be looked for.
fn page() -> io::Result<Vec<u8>> {
    let mut command = super::command();
    command.build();
    let man = Man::new(command.clone()).manual("User Commands");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([bold(PROGRAM), roman(" [serve] ["), italic("settings"), roman("]")]);
    roff.control("br", []);
    roff.text([bold(PROGRAM), roman(" ["), italic("settings"), roman("] "), italic("command"), roman(" …")]);
    roff.to_writer(&mut page)?;
    man.render_description_section(&mut page)?;
    let mut roff = Roff::new();
    roff.control("SH", ["COMMANDS"]);
    let commands = command.get_subcommands().filter(|command| command.get_name() != "help");
    commands.for_each(|command| describe(&mut roff, command, &[]));
    roff.to_writer(&mut page)?;
    man.render_options_section(&mut page)?;
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in [("0", "Success."), ("1", "Failure."), ("2", "Wrong command line or configuration.")] {
        roff.control("TP", []);
        roff.text([bold(code)]);
        roff.text([roman(meaning)]);
    }
    roff.control("SH", ["NOTES"]);
    for line in NOTES.lines() {
        roff.text([roman(line)]);
        roff.control("br", []);
    }
    roff.to_writer(&mut page)?;
    Ok(page)
}

/// A command, and the commands that it has. The settings, which most of them take, are described once, and so are the
/// arguments that the command around it has too.
fn describe(roff: &mut Roff, command: &Command, outer: &[&Arg]) {
    let is_setting = |arg: &Arg| config::flags().any(|flag| flag.get_id() == arg.get_id());
    let is_known = |arg: &Arg| outer.iter().any(|outer| outer.get_id() == arg.get_id());
    let is_of_clap = |arg: &Arg| ["help", "version"].contains(&arg.get_id().as_str());
    let args: Vec<_> =
        command.get_arguments().filter(|arg| !is_setting(arg) && !is_known(arg) && !is_of_clap(arg)).collect();
    let positionals: String = args.iter().filter(|arg| arg.is_positional()).map(|arg| format!(" {arg}")).collect();
    let name = command.get_bin_name().unwrap_or_default().trim_start_matches(PROGRAM).trim_start();
    roff.control("SS", [format!("{name}{positionals}").as_str()]);
    for line in command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default().lines() {
        if line.is_empty() {
            roff.control("PP", []);
        } else {
            roff.text([roman(line)]);
        }
    }
    for arg in &args {
        roff.control("TP", []);
        roff.text([bold(arg.to_string())]);
        let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
        roff.text([roman(help)]);
    }
    let inner = command.get_subcommands().filter(|command| command.get_name() != "help");
    inner.for_each(|command| describe(roff, command, &args));
}
