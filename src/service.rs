//! The whole service: two servers in front of the actors, from start to shutdown.

use std::io;
use std::net::TcpListener;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix_web::body::MessageBody;
use actix_web::dev::{Service, ServiceResponse};
use actix_web::http::ConnectionType;
use actix_web::{App, web};
use futures::future::Either;
use user_http_actors::store::StoreError;
use user_http_actors::{DiskHangs, StartError, UserHttpActors};

use crate::Metrics;
use crate::api::configure_api_routes;
use crate::auth::Authentication;
use crate::config::Config;
use crate::http::metrics::ServerMetrics;
use crate::http::{self, CrossOriginGuard, Gateway, server};
use crate::status::Status;
use crate::tls::{self, Tls};
use crate::worker::configure_http_routes;

mod descriptors;

use descriptors::DescriptorBudget;
pub use descriptors::DescriptorError;

/// How long a stopping service still answers requests on open connections; each answer is the last one of its
/// connection. Without this, requests that the kernel had received before the stop would be discarded unread.
pub(crate) const LAST_REQUESTS: Duration = Duration::from_millis(500);

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
        let bind = |flag: &str, address| {
            TcpListener::bind(address).map_err(|error| format!("cannot listen on {address} (--{flag}): {error}"))
        };
        Ok(Self { http: bind("http-bind", config.http_bind)?, api: bind("api-bind", config.api_bind)? })
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
        mut config: Config,
        listeners: Listeners,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ServiceError> {
        let (budget, warning) =
            DescriptorBudget::within_limit(config.max_connections, config.actors.max_open_blend_files)?;
        warning.iter().for_each(|warning| log::warn!("{warning}"));
        config.actors.max_open_blend_files = budget.blend_files;
        let metrics = Metrics::new();
        let actors = metrics.record(|| UserHttpActors::start(config.actors.clone()))?;
        let status = Status::new(actors.clone(), config.events.clone(), Some(budget.services));
        let gateway = Gateway::with_status(actors.clone(), config.limits, status).with_metrics(metrics.clone());
        log_addresses(&config, &listeners)?;
        let settings = gateway.connection_settings(config.keep_alive);
        let is_stopping = Arc::new(AtomicBool::new(false));

        let http = {
            let (gateway, is_stopping) = (gateway.clone(), Arc::clone(&is_stopping));
            let authentication = Authentication::for_workers(config.worker_tokens.clone());
            let counts = ServerMetrics::new(&metrics, "worker", budget.workers);
            let settings = settings.clone();
            server::serve(listeners.http, config.http_tls.clone(), budget.workers, settings, counts, move || {
                let is_stopping = Arc::clone(&is_stopping);
                App::new()
                    .configure(configure_http_routes(gateway.clone()))
                    .default_service(web::to(http::not_found))
                    .wrap(authentication.clone())
                    .wrap_fn(move |request, service| close_if(Arc::clone(&is_stopping), service.call(request)))
            })?
        };
        let api = {
            let is_stopping = Arc::clone(&is_stopping);
            let is_loopback = listeners.api.local_addr()?.ip().to_canonical().is_loopback();
            let mut guard = CrossOriginGuard::new();
            if is_loopback && config.api_tokens.is_none() {
                guard = guard.loopback_hosts_and(config.api_hosts.clone());
            }
            let authentication = Authentication::for_services(config.api_tokens.clone());
            let counts = ServerMetrics::new(&metrics, "api", budget.services);
            server::serve(listeners.api, config.api_tls.clone(), budget.services, settings, counts, move || {
                let is_stopping = Arc::clone(&is_stopping);
                App::new()
                    .configure(configure_api_routes(gateway.clone()))
                    .default_service(web::to(http::not_found))
                    .wrap(authentication.clone())
                    .wrap(guard.clone())
                    .wrap_fn(move |request, service| close_if(Arc::clone(&is_stopping), service.call(request)))
            })?
        };

        for (server, tls) in [("worker", &config.http_tls), ("api", &config.api_tls)] {
            tls.iter().for_each(|tls| metrics.add_certificate(server, tls.clone()));
        }
        let watch = actix_web::rt::spawn(tls::watch(config.tls().cloned().collect()));
        let upkeep = actix_web::rt::spawn(metrics.upkeep());
        let (http_handle, api_handle) = (http.handle(), api.handle());
        let servers = async { futures::try_join!(http, api).map(|_| ()) };
        let stop = async {
            let failure = match futures::future::select(pin!(shutdown), pin!(actors.store_failure())).await {
                Either::Left(_) => None,
                Either::Right((failure, _)) => {
                    log::error!("{failure}");
                    Some(failure)
                }
            };
            log::info!("stopping: no new connections, {} s for requests in flight", server::SHUTDOWN_TIMEOUT);
            is_stopping.store(true, Ordering::Relaxed);
            actors.stop_waiting().await;
            futures::join!(http_handle.pause(), api_handle.pause());
            tokio::time::sleep(LAST_REQUESTS).await;
            futures::join!(http_handle.stop(true), api_handle.stop(true));
            failure
        };
        let (served, failure) = futures::join!(servers, stop);
        watch.abort();
        upkeep.abort();
        let drained = actors.drain().await;
        served?;
        failure.map_or(Ok(()), |failure| Err(ServiceError::from(failure)))?;
        Ok(drained?)
    }
}

/// Closes the connection after an answer that begins while the service is stopping.
async fn close_if<B: MessageBody>(
    is_stopping: Arc<AtomicBool>,
    answer: impl Future<Output = Result<ServiceResponse<B>, actix_web::Error>>,
) -> Result<ServiceResponse<B>, actix_web::Error> {
    let mut answer = answer.await?;
    if is_stopping.load(Ordering::Relaxed) {
        answer.response_mut().head_mut().set_connection_type(ConnectionType::Close);
    }
    Ok(answer)
}

/// Logs the addresses, the mode, the data directory, and a first command to try.
fn log_addresses(config: &Config, listeners: &Listeners) -> io::Result<()> {
    let scheme = |tls: &Option<Tls>| if tls.is_some() { "https" } else { "http" };
    let http = format!("{}://{}", scheme(&config.http_tls), listeners.http.local_addr()?);
    let api = format!("{}://{}", scheme(&config.api_tls), listeners.api.local_addr()?);
    log::info!("worker server listening on {http}");
    log::info!("API server listening on {api}");
    match &config.actors.amqp {
        Some(amqp) => log::info!("mode: RabbitMQ at {}", amqp.url),
        None => {
            log::info!("mode: no broker, the user manager takes its messages from {api}/UserManager/NextMessage")
        }
    }
    match &config.actors.data_dir {
        Some(data_dir) => log::info!("data directory: {}", std::path::absolute(data_dir)?.display()),
        None => log::info!("data directory: none, a restart loses every message (--memory)"),
    }
    log::info!(
        "try: curl -i {http}/ -H 'Content-Type: application/json' -d '{{\"USER_ID\": \"me\", \"MAIN_DATA\": \
         {{\"TYPE\": \"TEST\", \"DATA\": \"hello\"}}}}'"
    );
    Ok(())
}
