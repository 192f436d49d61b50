//! `user-http-server [serve]`: runs the service until a signal stops it.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Command;
use tokio::signal::unix::{Signal, SignalKind, signal};
use user_http_server::auth::Tokens;
use user_http_server::tls::Tls;
use user_http_server::{Config, Listeners, UserHttpServer};

use crate::cli::Invocation;
use crate::process::{limits, signals};

pub fn command() -> Command {
    Command::new("serve").about("Serve until SIGTERM or Ctrl-C; this is the default")
}

/// Loads the configuration, and serves.
///
/// An error that ends it is written to standard error even if the log filter is off.
pub fn run(invocation: &Invocation<'_>) -> ExitCode {
    let logging = invocation.logging;
    // Before the configuration is loaded: that opens the blend roots, which takes a thread.
    if let Err(error) = limits::check_threads() {
        logging.error(&error.to_string());
        return ExitCode::FAILURE;
    }
    let mut layers = invocation.layers();
    layers.warnings().iter().for_each(|warning| log::warn!("{warning}"));
    let config = match layers.config() {
        Ok(config) => Config { events: logging.events(), ..config },
        Err(errors) => return invocation.refuse(&errors),
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
