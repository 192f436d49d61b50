//! The process: arguments, logger, signals, exit code.

mod allocator;
mod logging;
mod scheduling;
mod signals;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use user_http_server::auth::{self, Tokens};
use user_http_server::config::ConfigError;
use user_http_server::resources::{self, ResourceError};
use user_http_server::tls::Tls;
use user_http_server::{Config, Listeners, UserHttpServer};

use logging::Logging;

/// What a wrong command line, environment or file ends with, as other programs do.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    allocator::set_bounds();
    // before the first thread, since threads inherit it
    let scheduled = scheduling::set();
    let logging = match Logging::start() {
        Ok(logging) => logging,
        Err(error) => {
            // where even this cannot be written, the exit code has to do
            let _ = writeln!(std::io::stderr(), "error: {}", ResourceError::no_thread(error));
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = scheduled {
        log::debug!("the scheduling policy stays as it is: {error}");
    }
    if std::env::args_os().skip(1).eq(["token"]) {
        return print_token(&logging);
    }
    // the configuration opens the blend roots, which takes a thread
    if let Err(error) = resources::check_threads() {
        logging.say(&format!("error: {error}"));
        return ExitCode::FAILURE;
    }
    let config = match Config::load(std::env::args_os(), std::env::vars_os()) {
        Ok(config) => config,
        Err(ConfigError::CommandLine(text)) => return print_usage(&text, &logging),
        // not through the log, which the user may have turned off; and so below
        Err(error) => {
            logging.say(&format!("error: {error}"));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    raise_file_limit();
    let served = Listeners::bind(&config).map_err(Into::into).and_then(|listeners| serve(config, listeners));
    match served {
        Ok(()) => {
            log::info!("stopped");
            ExitCode::SUCCESS
        }
        Err(error) => {
            logging.say(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn print_token(logging: &Logging) -> ExitCode {
    let (token, line) = auth::new_token();
    logging.say(&format!("in a token file, this line stands for it too, and does not tell it: {line}"));
    print(&format!("{token}\n"))
}

/// What clap has to say: help, or what is wrong with the command line.
fn print_usage(text: &clap::Error, logging: &Logging) -> ExitCode {
    if !text.use_stderr() {
        return print(&text.to_string());
    }
    logging.say(&text.to_string());
    ExitCode::from(EXIT_USAGE)
}

/// Prints to standard output, which somebody may have closed: that is a failure, and nothing to panic about.
fn print(text: &str) -> ExitCode {
    let mut output = std::io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Each connection takes a file descriptor, and the limit is often 1,024 only for the sake of programs that use `select`.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        log::warn!("the limit of open files stays {:?}: {error}", limit.current);
    }
}

fn serve(config: Config, listeners: Listeners) -> Result<(), Box<dyn std::error::Error>> {
    actix_web::rt::System::new().block_on(run(config, listeners))
}

async fn run(config: Config, listeners: Listeners) -> Result<(), Box<dyn std::error::Error>> {
    let stop = signals::stop()?;
    signals::survive_others()?;
    let tokens = config.worker_tokens.iter().chain(&config.api_tokens).cloned().collect();
    let tls = config.tls().cloned().collect();
    actix_web::rt::spawn(reload_on_hangup(signal(SignalKind::hangup())?, tokens, tls));
    Ok(UserHttpServer::start_service(config, listeners, stop).await?)
}

async fn reload_on_hangup(mut hangup: Signal, tokens: Vec<Arc<Tokens>>, tls: Vec<Tls>) {
    while hangup.recv().await.is_some() {
        let (tokens, tls) = (tokens.clone(), tls.clone());
        let reload = move || {
            tokens.iter().for_each(|tokens| tokens.reload());
            tls.iter().for_each(Tls::reload);
        };
        // its panic has been told of
        let _ = actix_web::rt::task::spawn_blocking(reload).await;
    }
}
