//! The process: arguments, logger, signals, exit code.

mod glibc;
mod scheduling;

use std::process::ExitCode;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use user_http_server::auth::{self, Tokens};
use user_http_server::config::ConfigError;
use user_http_server::tls::Tls;
use user_http_server::{Config, Listeners, UserHttpServer};

/// What a wrong command line, environment or file ends with, as other programs do.
const EXIT_USAGE: u8 = 2;

/// What is logged unless `RUST_LOG` says otherwise: actix-server repeats at every start what this program has said, and
/// amiquip what it says of the broker, once for each look at a queue that is awaited.
const LOG_FILTER: &str = "info,actix_server=warn,amiquip=error";

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(LOG_FILTER))
        // below this it writes the broker's password down, whatever RUST_LOG says
        .filter_module("amiquip::io_loop::handshake_state", log::LevelFilter::Info)
        .init();
    glibc::set();
    scheduling::set();
    if std::env::args_os().skip(1).eq(["token"]) {
        let (token, line) = auth::new_token();
        eprintln!("in a token file, this line stands for it too, and does not tell it: {line}");
        println!("{token}");
        return ExitCode::SUCCESS;
    }
    let config = match Config::load(std::env::args_os(), std::env::vars_os()) {
        Ok(config) => config,
        Err(ConfigError::CommandLine(error)) => error.exit(),
        Err(error) => {
            // not through the log, which the user may have turned off
            eprintln!("error: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    raise_file_limit();
    let listeners = match Listeners::bind(&config) {
        Ok(listeners) => listeners,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    match actix_web::rt::System::new().block_on(run(config, listeners)) {
        Ok(()) => {
            log::info!("stopped");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Each connection takes two file descriptors, and the limit is often 1,024 only for the sake of programs that use
/// `select`.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        log::warn!("the limit of open files stays {:?}: {error}", limit.current);
    }
}

async fn run(config: Config, listeners: Listeners) -> Result<(), Box<dyn std::error::Error>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let tokens = config.worker_tokens.iter().chain(&config.api_tokens).cloned().collect();
    let tls = config.tls().cloned().collect();
    actix_web::rt::spawn(reload_on_hangup(signal(SignalKind::hangup())?, tokens, tls));
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    Ok(UserHttpServer::start_service(config, listeners, shutdown).await?)
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
