//! `user-http-server backup TARGET`: a consistent copy of the data directory, while a gateway may be using it.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use bytesize::ByteSize;
use clap::{Arg, Command, value_parser};
use user_http_actors::backup::{Copied, Options, back_up};

use crate::cli::text::line;
use crate::cli::{Failure, Invocation, Settings};
use crate::process::limits;

/// The settings that say where the data directory is.
pub const SETTINGS: Settings = Settings::Shown(&["config", "data-dir"]);

/// Open files that the program needs in addition to those of the data directory: its own, and those that it writes.
const OTHER_FILES: usize = 64;

pub fn command() -> Command {
    let target = Arg::new("target")
        .value_name("TARGET")
        .required(true)
        .value_parser(value_parser!(PathBuf))
        .help("Folder of the copy: a new one, or an empty one");
    Command::new("backup")
        .about("Copy the data directory of a gateway, which may be running")
        .long_about(
            "Copy the data directory of a gateway to a new folder. The gateway may be running: it is not asked, and \
             its files are only read. Everything that it acknowledged before the backup began is in the copy, and a \
             gateway starts on it. To restore, stop the gateway, and copy the folder back.",
        )
        .arg(target)
}

pub fn run(invocation: &Invocation<'_>) -> ExitCode {
    invocation.end(copy(invocation))
}

fn copy(invocation: &Invocation<'_>) -> Result<(), Failure> {
    let Some(data_dir) = invocation.layers().data_dir()? else {
        let why = "with --memory there is no data directory to back up; give the settings that the gateway has";
        return Err(Failure::Usage(why.to_owned()));
    };
    limits::raise_file_limit();
    let max_open = limits::open_files().saturating_sub(OTHER_FILES) / 2;
    let target = invocation.args.get_one::<PathBuf>("target").cloned().unwrap_or_default();
    let made = back_up(&data_dir, &target, &Options::new(max_open.max(1))).map_err(|error| {
        let why = format!("there is no backup: {error}");
        if error.is_about_target() { Failure::Usage(why) } else { Failure::Failed(why) }
    })?;
    let amount = |Copied { records, bytes }: Copied| {
        format!("{records} record{} ({})", if records == 1 { "" } else { "s" }, ByteSize(bytes))
    };
    let (folder, buffer, outbox) = (line(&made.folder.to_string_lossy()), amount(made.buffer), amount(made.outbox));
    // The backup is there even if nobody can read this.
    let _ = writeln!(std::io::stdout(), "{folder} is complete: {buffer} of the buffer, {outbox} of the outbox");
    Ok(())
}
