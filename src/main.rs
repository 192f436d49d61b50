//! The process: arguments, logger, signals, exit code.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use user_http_server::config::ConfigError;
use user_http_server::{Config, Listeners, UserHttpServer};

/// What a wrong command line, environment or file ends with, as other programs do.
const EXIT_USAGE: u8 = 2;

/// What is logged unless `RUST_LOG` says otherwise: actix-server repeats at every start what this program has said.
const LOG_FILTER: &str = "info,actix_server=warn";

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(LOG_FILTER)).init();
    let config = match Config::load(std::env::args_os(), std::env::vars_os()) {
        Ok(config) => config,
        Err(ConfigError::CommandLine(error)) => error.exit(),
        Err(error) => {
            log::error!("{error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let listeners = match Listeners::bind(&config) {
        Ok(listeners) => listeners,
        Err(error) => {
            log::error!("{error}");
            return ExitCode::FAILURE;
        }
    };
    match actix_web::rt::System::new().block_on(run(config, listeners)) {
        Ok(()) => {
            log::info!("stopped");
            ExitCode::SUCCESS
        }
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: Config, listeners: Listeners) -> Result<(), Box<dyn std::error::Error>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    introduce(&config, &listeners)?;
    Ok(UserHttpServer::start_service(config, listeners, shutdown).await?)
}

/// Says where the service is, how it works, and what to try first.
fn introduce(config: &Config, listeners: &Listeners) -> std::io::Result<()> {
    let (http, api) = (listeners.http.local_addr()?, listeners.api.local_addr()?);
    log::info!("worker server listening on http://{http}");
    log::info!("API server listening on http://{api}");
    match &config.actors.amqp {
        Some(amqp) => log::info!("mode: RabbitMQ at {}", amqp.url),
        None => {
            log::info!("mode: no broker; the user manager takes its messages from http://{api}/UserManager/NextMessage")
        }
    }
    match &config.actors.data_dir {
        Some(data_dir) => log::info!("data directory: {}", std::path::absolute(data_dir)?.display()),
        None => log::info!("data directory: none, a stop loses every message (--memory)"),
    }
    log::info!(
        "try: curl -i http://{http}/ -H 'Content-Type: application/json' -d '{{\"USER_ID\": \"me\", \"MAIN_DATA\": \
         {{\"TYPE\": \"TEST\", \"DATA\": \"hello\"}}}}'"
    );
    Ok(())
}
