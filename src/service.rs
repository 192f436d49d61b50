//! The whole service: its sockets, why it can fail, and [`UserHttpServer`], which runs it from start to shutdown.

use std::io;
use std::net::TcpListener;

use user_http_actors::store::StoreError;
use user_http_actors::{DiskHangs, StartError};

use crate::config::Config;

mod descriptors;
mod started;

use descriptors::DescriptorBudget;
pub use descriptors::DescriptorError;
pub use started::{Pulse, StartedService};

/// The sockets that the service listens on. The caller binds them, so that it knows the ports, or passes on sockets
/// that it has inherited.
#[derive(Debug)]
pub struct Listeners {
    /// For workers.
    pub http: TcpListener,
    /// For the farm's services.
    pub api: TcpListener,
}

impl Listeners {
    /// Binds the addresses of the configuration.
    ///
    /// # Errors
    /// A text that names the address, the flag, and the cause.
    pub fn bind(config: &Config) -> Result<Self, String> {
        Self::complete(None, None, config)
    }

    /// As [`bind`](Self::bind), but only for the servers that have no socket yet.
    ///
    /// # Errors
    /// See [`bind`](Self::bind).
    pub fn complete(http: Option<TcpListener>, api: Option<TcpListener>, config: &Config) -> Result<Self, String> {
        let bind = |flag: &str, address| {
            TcpListener::bind(address).map_err(|error| format!("cannot listen on {address} (--{flag}): {error}"))
        };
        Ok(Self {
            http: http.map_or_else(|| bind("http-bind", config.http_bind), Ok)?,
            api: api.map_or_else(|| bind("api-bind", config.api_bind), Ok)?,
        })
    }
}

/// Why the service did not start, or ended before its shutdown.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The actors cannot start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The process may open too few files.
    #[error(transparent)]
    Descriptors(#[from] DescriptorError),
    /// One of the servers has failed.
    #[error("the HTTP server has failed: {0}")]
    Http(#[from] io::Error),
    /// The disk has failed, or the data directory has been removed. Messages that would be acknowledged now could be
    /// lost.
    #[error("{0}; {remedy}", remedy = remedy(.0))]
    Store(#[from] StoreError),
    /// The disk has not answered during the stop.
    #[error(transparent)]
    DiskHangs(#[from] DiskHangs),
}

/// What the operator has to do about a failed store.
fn remedy(failure: &StoreError) -> &'static str {
    match failure {
        StoreError::Gone(_) => {
            "what it has acknowledged is lost with it; if the directory was moved, move it back before you start the \
             service again"
        }
        _ => "check the disk, then start the service again: everything that it has acknowledged is there",
    }
}

/// The service (`userHttpServerService` of the specification).
#[derive(Debug)]
pub struct UserHttpServer;

impl UserHttpServer {
    /// Checks whether the limits of this process allow a start. Returns a warning if the service would get less than
    /// the configuration allows.
    ///
    /// # Errors
    /// The limit of open files is too low.
    pub fn check_limits(config: &Config) -> Result<Option<String>, DescriptorError> {
        let budget = DescriptorBudget::within_limit(config.max_connections, config.actors.max_open_blend_files);
        budget.map(|(_, warning)| warning)
    }

    /// Runs the service (`startService` of the specification) until `shutdown` resolves or the disk fails. Then it
    /// finishes the requests in flight, settles the deliveries that the actors are processing, and returns.
    ///
    /// [`StartedService`] does the same in two steps, for a caller that wants to know when the service is ready.
    ///
    /// ```
    /// use std::io::{Read, Write};
    /// use std::net::TcpStream;
    ///
    /// use user_http_server::{Config, Listeners, UserHttpServer};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let args = ["gateway", "--memory", "--http-bind", "127.0.0.1:0", "--api-bind", "127.0.0.1:0"];
    /// let config = Config::load(args.map(Into::into), [])?;
    /// let listeners = Listeners::bind(&config)?;
    /// let api = listeners.api.local_addr()?;
    ///
    /// let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    /// let asking = std::thread::spawn(move || -> std::io::Result<String> {
    ///     let mut connection = TcpStream::connect(api)?;
    ///     connection.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    ///     let mut answer = String::new();
    ///     connection.read_to_string(&mut answer)?;
    ///     drop(stop);
    ///     Ok(answer)
    /// });
    /// let shutdown = async { drop(stopped.await) };
    /// actix_web::rt::System::new().block_on(UserHttpServer::start_service(config, listeners, shutdown))?;
    /// assert!(asking.join().expect("no panic")?.starts_with("HTTP/1.1 200 OK"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub async fn start_service(
        config: Config,
        listeners: Listeners,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ServiceError> {
        StartedService::new(config, listeners)?.run_until(shutdown).await
    }
}
