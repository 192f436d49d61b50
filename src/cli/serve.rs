//! `user-http-server` without a subcommand: runs the service until a signal stops it.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use user_http_server::auth::Tokens;
use user_http_server::config::ConfigError;
use user_http_server::tls::Tls;
use user_http_server::{Config, Listeners, UserHttpServer};

use crate::cli::{EXIT_USAGE, print};
use crate::process::logging::Logging;
use crate::process::{limits, signals};

/// Loads the configuration from `args` (the program's name first), the environment and the file, and serves.
///
/// An error that ends it is written to standard error even if the log filter is off.
pub fn run(args: impl IntoIterator<Item = OsString>, logging: &Logging) -> ExitCode {
    // Before the configuration is loaded: that opens the blend roots, which takes a thread.
    if let Err(error) = limits::check_threads() {
        logging.error(&error.to_string());
        return ExitCode::FAILURE;
    }
    let config = match Config::load(args, std::env::vars_os()) {
        Ok(config) => Config { events: logging.events(), ..config },
        Err(ConfigError::CommandLine(text)) if !text.use_stderr() => return print(&text.to_string()),
        Err(ConfigError::CommandLine(text)) => {
            let text = text.to_string();
            logging.error(text.strip_prefix("error: ").unwrap_or(&text));
            return ExitCode::from(EXIT_USAGE);
        }
        Err(error) => {
            logging.error(&error.to_string());
            return ExitCode::from(EXIT_USAGE);
        }
    };
    logging.set_format(config.log_format);
    limits::raise_file_limit();
    let served = Listeners::bind(&config).map_err(Into::into).and_then(|listeners| serve(config, listeners));
    match served {
        Ok(()) => {
            log::info!("stopped");
            ExitCode::SUCCESS
        }
        Err(error) => {
            logging.error(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn serve(config: Config, listeners: Listeners) -> Result<(), Box<dyn std::error::Error>> {
    let system = actix_web::rt::System::new();
    let served = system.block_on(async {
        let stop = signals::stop()?;
        signals::survive_others()?;
        let tokens = config.worker_tokens.iter().chain(&config.api_tokens).cloned().collect();
        let tls = config.tls().cloned().collect();
        actix_web::rt::spawn(reload_on_hangup(signal(SignalKind::hangup())?, tokens, tls));
        Ok(UserHttpServer::start_service(config, listeners, stop).await?)
    });
    if served.is_err() {
        // its drop would wait for the threads that a disk which hangs has blocked
        std::mem::forget(system);
    }
    served
}

/// Reloads tokens and certificates at each SIGHUP.
async fn reload_on_hangup(mut hangup: Signal, tokens: Vec<Arc<Tokens>>, tls: Vec<Tls>) {
    while hangup.recv().await.is_some() {
        let (tokens, tls) = (tokens.clone(), tls.clone());
        let reload = move || {
            tokens.iter().for_each(|tokens| tokens.reload());
            tls.iter().for_each(Tls::reload);
        };
        // The panic hook logs a panic.
        let _ = actix_web::rt::task::spawn_blocking(reload).await;
    }
}
