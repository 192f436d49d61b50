//! `user-http-server [serve]`: runs the service until a signal stops it.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Command;
use tokio::signal::unix::{Signal, SignalKind, signal};
use user_http_server::auth::Tokens;
use user_http_server::tls::Tls;
use user_http_server::{Config, StartedService};

use crate::cli::{EXIT_USAGE, Invocation};
use crate::process::service_manager::ServiceManager;
use crate::process::sockets::Inherited;
use crate::process::{limits, signals};

pub fn command() -> Command {
    Command::new("serve").about("Serve until SIGTERM or Ctrl-C; this is the default")
}

/// Loads the configuration, and serves.
///
/// An error that ends it is written to standard error even if the log filter is off.
pub fn run(invocation: &Invocation<'_>) -> ExitCode {
    let logging = invocation.logging;
    let inherited = Inherited::take();
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
    let inherited = match inherited.and_then(|inherited| inherited.checked(&config)) {
        Ok(inherited) => inherited,
        Err(error) => {
            logging.error(&error);
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match serve(config, inherited) {
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

fn serve(config: Config, inherited: Inherited) -> Result<(), Box<dyn std::error::Error>> {
    let hands_over = inherited.is_any();
    let listeners = inherited.into_listeners(&config)?;
    let system = actix_web::rt::System::new();
    let served = system.block_on(async {
        let stop = signals::stop()?;
        signals::survive_others()?;
        let hangup = signal(SignalKind::hangup())?;
        let tokens = config.worker_tokens.iter().chain(&config.api_tokens).cloned().collect();
        let tls = config.tls().cloned().collect();
        let manager = ServiceManager::of_environment();
        let service = StartedService::new(config, listeners)?;
        let service = if hands_over { service.hand_over() } else { service };
        actix_web::rt::spawn(manager.clone().watch(service.pulse()));
        actix_web::rt::spawn(reload_on_hangup(hangup, tokens, tls, manager.clone()));
        let stop = async {
            stop.await;
            manager.stopping().await;
        };
        Ok(service.run_until(stop).await?)
    });
    if served.is_err() {
        // its drop would wait for the threads that a disk which hangs has blocked
        std::mem::forget(system);
    }
    served
}

/// Reloads tokens and certificates at each SIGHUP.
async fn reload_on_hangup(mut hangup: Signal, tokens: Vec<Arc<Tokens>>, tls: Vec<Tls>, manager: ServiceManager) {
    while hangup.recv().await.is_some() {
        let (tokens, tls) = (tokens.clone(), tls.clone());
        let reload = move || {
            tokens.iter().for_each(|tokens| tokens.reload());
            tls.iter().for_each(Tls::reload);
        };
        // The panic hook logs a panic.
        manager.reloading(async { drop(actix_web::rt::task::spawn_blocking(reload).await) }).await;
    }
}
