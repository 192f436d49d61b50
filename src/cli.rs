//! The command line: one module per subcommand, what they share, and how they print.
//!
//! To add a subcommand, write a module with its `command` (name, help and arguments) and its `run`, declare the module
//! below, and add a row to [`SUBCOMMANDS`].

use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{ArgMatches, Command};
use log::LevelFilter;
use user_http_server::config::{self, ConfigError, Layers, LogFormat};

use crate::process::logging::Logging;
use crate::process::signals;

mod backup;
mod check;
mod client;
mod completions;
mod demo;
mod doctor;
mod healthcheck;
mod man;
mod messages;
mod serve;
mod text;
mod token;

/// Exit code for a wrong command line, environment or configuration file, as other programs use it.
const EXIT_USAGE: u8 = 2;

/// The name of the program.
const PROGRAM: &str = "user-http-server";

/// What the help and the manual page say about all settings.
const NOTES: &str = "\
Flags override the environment, which overrides the file, which overrides the defaults.
A SIZE is 500KB, 64MiB or 1GiB, a DURATION 10s, 15m or 24h. RUST_LOG filters the log (RUST_LOG=warn).
SIGHUP reloads tokens and certificates.";

/// A subcommand.
struct Subcommand {
    /// Its name, its help, and the arguments that only it has.
    command: fn() -> Command,
    /// The settings that it takes in addition.
    settings: Settings,
    run: fn(&Invocation<'_>) -> ExitCode,
}

/// Which settings a subcommand takes, as flags, in the environment, and in the file.
#[derive(Clone, Copy)]
enum Settings {
    None,
    All,
    /// All, because one file and one environment serve all subcommands; but its help shows only these.
    Shown(&'static [&'static str]),
}

/// Static, so that each has one address by which it is known.
static SUBCOMMANDS: &[Subcommand] = &[
    Subcommand { command: serve::command, settings: Settings::All, run: serve::run },
    Subcommand { command: check::command, settings: Settings::All, run: check::run },
    Subcommand { command: healthcheck::command, settings: client::SETTINGS, run: healthcheck::run },
    Subcommand { command: doctor::command, settings: Settings::All, run: doctor::run },
    Subcommand { command: backup::command, settings: backup::SETTINGS, run: backup::run },
    Subcommand { command: messages::command, settings: client::SETTINGS, run: messages::run },
    Subcommand { command: token::command, settings: Settings::None, run: token::run },
    Subcommand { command: demo::command, settings: Settings::None, run: demo::run },
    Subcommand { command: completions::command, settings: Settings::None, run: completions::run },
    Subcommand { command: man::command, settings: Settings::None, run: man::run },
];

/// The subcommand that runs if none is given.
static DEFAULT: &Subcommand = &SUBCOMMANDS[0];

/// What a subcommand was started with.
struct Invocation<'a> {
    logging: &'a Logging,
    /// The arguments of the subcommand, or of its innermost subcommand.
    args: &'a ArgMatches,
    /// The names of the subcommand's own subcommands.
    names: Vec<&'a str>,
    /// The arguments of every level of the command line. A setting can be given at each.
    levels: Vec<&'a ArgMatches>,
}

impl Invocation<'_> {
    /// What the flags, the environment and the file say.
    fn layers(&self) -> Layers {
        Layers::read(&self.levels, std::env::vars_os())
    }

    /// Reports the errors of a configuration.
    fn refuse(&self, errors: &[ConfigError]) -> ExitCode {
        errors.iter().for_each(|error| self.logging.error(&error.to_string()));
        ExitCode::from(EXIT_USAGE)
    }

    /// Reports why it has failed, and returns the exit code.
    fn end(&self, result: Result<(), Failure>) -> ExitCode {
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => self.fail(failure),
        }
    }

    fn fail(&self, failure: Failure) -> ExitCode {
        match failure {
            Failure::Failed(why) => {
                self.logging.error(&text::line(&why));
                ExitCode::FAILURE
            }
            Failure::Usage(why) => {
                self.logging.error(&text::line(&why));
                ExitCode::from(EXIT_USAGE)
            }
            Failure::Config(errors) => self.refuse(&errors),
            // such as head, which has read enough
            Failure::Output(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            Failure::Output(error) => {
                self.logging.error(&format!("cannot write to standard output: {error}"));
                ExitCode::FAILURE
            }
        }
    }
}

/// Why a subcommand has ended early. Its text may have control characters from elsewhere.
enum Failure {
    /// What it was to do has failed.
    Failed(String),
    /// The command line is wrong in a way that clap does not see.
    Usage(String),
    /// The configuration is wrong.
    Config(Vec<ConfigError>),
    /// Standard output takes no more.
    Output(io::Error),
}

impl Failure {
    /// Why, in words.
    fn text(&self) -> String {
        match self {
            Self::Failed(why) | Self::Usage(why) => why.clone(),
            Self::Config(errors) => errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
            Self::Output(error) => error.to_string(),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<Vec<ConfigError>> for Failure {
    fn from(errors: Vec<ConfigError>) -> Self {
        Self::Config(errors)
    }
}

/// Runs the subcommand that the arguments name (the program's name first).
pub fn run(args: Vec<OsString>, logging: &Logging) -> ExitCode {
    let mut command = command();
    let parsed = command.try_get_matches_from_mut(&args).and_then(|matches| {
        check_settings(&mut command, &matches)?;
        Ok(matches)
    });
    let matches = match parsed {
        Ok(matches) => matches,
        // Where standard output is closed or full, the exit code says so.
        Err(text) if !text.use_stderr() => {
            return print(&text.to_string()).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
        }
        Err(text) => {
            let text = mask(text.to_string(), &args);
            logging.error(text.strip_prefix("error: ").unwrap_or(&text));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let levels = levels(&matches);
    let args = levels.last().copied().unwrap_or(&matches);
    let names = levels.iter().skip(1).filter_map(|level| level.subcommand_name()).collect();
    let subcommand = chosen(&matches);
    if !std::ptr::eq(subcommand, DEFAULT) {
        // The settings of the log are for the service. At finer levels, the client would log the token that it sends.
        logging.set_format(LogFormat::Text);
        log::set_max_level(LevelFilter::Error);
    }
    if let Err(error) = signals::survive_the_file_size_limit() {
        logging.error(&format!("cannot handle signals: {error}"));
        return ExitCode::FAILURE;
    }
    (subcommand.run)(&Invocation { logging, args, names, levels })
}

/// The text without the passwords of URLs among the arguments, which it may quote.
fn mask(text: String, args: &[OsString]) -> String {
    args.iter().fold(text, |text, arg| {
        let arg = arg.to_string_lossy();
        // of `--flag=value`, both may be quoted
        let value = arg.split_once('=').map_or(&*arg, |(_, value)| value);
        [&*arg, value].into_iter().fold(text, |text, quoted| match config::without_password(quoted) {
            masked if masked != quoted => text.replace(quoted, &masked),
            _ => text,
        })
    })
}

/// The arguments of every level of the command line, from the program's to those of its innermost subcommand.
fn levels(matches: &ArgMatches) -> Vec<&ArgMatches> {
    std::iter::successors(Some(matches), |level| Some(level.subcommand()?.1)).collect()
}

/// The subcommand that the command line names, or else the default.
fn chosen(matches: &ArgMatches) -> &'static Subcommand {
    let find = |name: &str| SUBCOMMANDS.iter().find(|subcommand| (subcommand.command)().get_name() == name);
    matches.subcommand_name().and_then(find).unwrap_or(DEFAULT)
}

/// The whole command line.
fn command() -> Command {
    let command = Command::new(PROGRAM)
        .version(env!("CARGO_PKG_VERSION"))
        .propagate_version(true)
        .about("HTTP gateway of a Blender render farm")
        .long_about(
            "HTTP gateway of a Blender render farm: workers fetch their messages from it and post their frames. \
             Without a command it serves until SIGTERM or Ctrl-C.",
        )
        .override_usage(format!("{PROGRAM} [serve] [OPTIONS]\n       {PROGRAM} [OPTIONS] <COMMAND>"))
        .next_line_help(true)
        .after_help(format!("{NOTES}\nExit codes: 0 success, 1 failure, 2 wrong command line or configuration."))
        .args(config::flags());
    SUBCOMMANDS.iter().fold(command, |command, subcommand| {
        command.subcommand(with_settings((subcommand.command)(), subcommand.settings))
    })
}

/// Adds the settings to a subcommand, and to the subcommands that it has.
fn with_settings(command: Command, settings: Settings) -> Command {
    let is_hidden = |key: &str| matches!(settings, Settings::Shown(shown) if !shown.contains(&key));
    let command = command.mut_subcommands(|inner| with_settings(inner, settings));
    match settings {
        Settings::None => command,
        Settings::All => command.args(config::flags()).next_line_help(true),
        Settings::Shown(_) => command
            .args(config::flags().map(|flag| {
                let hidden = is_hidden(flag.get_id().as_str());
                flag.hide(hidden)
            }))
            .next_line_help(true)
            .after_help(format!("Every setting of {PROGRAM} is accepted; `{PROGRAM} --help` lists them.")),
    }
}

/// Checks what clap cannot: a setting can stand before and behind the name of a subcommand, but one that has a single
/// value only once; and not every subcommand takes settings.
fn check_settings(command: &mut Command, matches: &ArgMatches) -> Result<(), clap::Error> {
    let is_given = |level: &ArgMatches, key: &str| {
        matches!(level.try_contains_id(key), Ok(true)) && level.value_source(key) == Some(ValueSource::CommandLine)
    };
    let (levels, subcommand) = (levels(matches), chosen(matches));
    for flag in config::flags() {
        let key = flag.get_id().as_str();
        let times = levels.iter().filter(|level| is_given(level, key)).count();
        let error = match (subcommand.settings, flag.get_action()) {
            (Settings::None, _) if times > 0 => clap::Error::new(clap::error::ErrorKind::UnknownArgument),
            (_, clap::ArgAction::Set) if times > 1 => clap::Error::new(clap::error::ErrorKind::ArgumentConflict),
            _ => continue,
        };
        let mut error = error.with_cmd(command);
        // only an argument of the command that was parsed can be shown
        let shown = command.get_arguments().find(|arg| arg.get_id() == key).map(ToString::to_string);
        let argument = ContextValue::String(shown.unwrap_or_else(|| format!("--{key}")));
        error.insert(ContextKind::InvalidArg, argument.clone());
        error.insert(ContextKind::PriorArg, argument);
        return Err(error);
    }
    Ok(())
}

/// Prints to standard output.
fn print(text: &str) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    Ok(output.write_all(text.as_bytes()).and_then(|()| output.flush())?)
}
