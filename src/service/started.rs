//! A service that has opened its stores: from there to the end of its shutdown.

use std::io;
use std::pin::pin;
use std::time::Duration;

use actix_server::Server;
use actix_web::body::MessageBody;
use actix_web::dev::{Service, ServiceResponse};
use actix_web::http::ConnectionType;
use actix_web::{App, web};
use futures::future::Either;
use tokio::task::AbortHandle;
use user_http_actors::{ActorsState, Error, UserHttpActors};

use super::descriptors::DescriptorBudget;
use super::{Listeners, ServiceError};
use crate::Metrics;
use crate::api::configure_api_routes;
use crate::auth::Authentication;
use crate::config::Config;
use crate::http::metrics::ServerMetrics;
use crate::http::supervision::Supervision;
use crate::http::{self, CrossOriginGuard, Gateway, server};
use crate::status::Status;
use crate::tls::{self, Tls};
use crate::worker::configure_http_routes;

/// How long a stopping service still answers requests on open connections; each answer is the last one of its
/// connection. Without this, requests that the kernel had received before the stop would be discarded unread.
const LAST_REQUESTS: Duration = Duration::from_millis(500);

/// How long a service that [hands over](StartedService::hand_over) its sockets still accepts connections after
/// `shutdown`, if connections from before stay open. It is the default of `--keep-alive`: then each connection that is
/// idle ends as it would have without the shutdown.
const HAND_OVER: Duration = Duration::from_secs(5);

/// A service with open stores. Its servers accept connections as soon as [`run_until`](Self::run_until) is polled.
#[must_use = "a service answers only while `run_until` is awaited"]
pub struct StartedService {
    http: Server,
    api: Server,
    actors: UserHttpActors,
    supervision: Supervision,
    hands_over: bool,
    /// Tasks that end with the service.
    tasks: Vec<AbortHandle>,
}

/// Finds out whether a service reacts. Clones are the same.
#[derive(Clone, Debug)]
pub struct Pulse {
    actors: UserHttpActors,
    supervision: Supervision,
}

impl Pulse {
    /// Resolves when every actor and every thread of both servers has answered: for the first time once the servers
    /// accept connections. If one of them hangs, it does not resolve. A broker or a disk that is down delays nothing.
    ///
    /// # Errors
    /// [`Error::Stopping`].
    pub async fn check(&self) -> Result<ActorsState, Error> {
        let ((), state) = futures::join!(self.supervision.threads_answer(), self.actors.state());
        state
    }
}

impl StartedService {
    /// Opens the stores, which blocks until they have been read, and starts the actors on the current arbiter.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub fn new(mut config: Config, listeners: Listeners) -> Result<Self, ServiceError> {
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
        let supervision = Supervision::default();

        let http = {
            let (gateway, stopping) = (gateway.clone(), supervision.clone());
            let authentication = Authentication::for_workers(config.worker_tokens.clone());
            let counts = ServerMetrics::new(&metrics, "worker", budget.workers);
            let (settings, tls) = (settings.clone(), config.http_tls.clone());
            server::serve(listeners.http, tls, budget.workers, settings, counts, supervision.clone(), move || {
                let stopping = stopping.clone();
                App::new()
                    .configure(configure_http_routes(gateway.clone()))
                    .default_service(web::to(http::not_found))
                    .wrap(authentication.clone())
                    .wrap_fn(move |request, service| close_if(stopping.clone(), service.call(request)))
            })?
        };
        let api = {
            let stopping = supervision.clone();
            let is_loopback = listeners.api.local_addr()?.ip().to_canonical().is_loopback();
            let mut guard = CrossOriginGuard::new();
            if is_loopback && config.api_tokens.is_none() {
                guard = guard.loopback_hosts_and(config.api_hosts.clone());
            }
            let authentication = Authentication::for_services(config.api_tokens.clone());
            let counts = ServerMetrics::new(&metrics, "api", budget.services);
            let tls = config.api_tls.clone();
            server::serve(listeners.api, tls, budget.services, settings, counts, supervision.clone(), move || {
                let stopping = stopping.clone();
                App::new()
                    .configure(configure_api_routes(gateway.clone()))
                    .default_service(web::to(http::not_found))
                    .wrap(authentication.clone())
                    .wrap(guard.clone())
                    .wrap_fn(move |request, service| close_if(stopping.clone(), service.call(request)))
            })?
        };

        for (server, tls) in [("worker", &config.http_tls), ("api", &config.api_tls)] {
            tls.iter().for_each(|tls| metrics.add_certificate(server, tls.clone()));
        }
        let watch = actix_web::rt::spawn(tls::watch(config.tls().cloned().collect()));
        let upkeep = actix_web::rt::spawn(metrics.upkeep());
        Ok(Self {
            http,
            api,
            actors,
            supervision,
            hands_over: false,
            tasks: vec![watch.abort_handle(), upkeep.abort_handle()],
        })
    }

    /// Makes the service hand over its sockets at the end. Somebody else keeps them open, and another process will
    /// accept from them, so nobody should notice the shutdown: at first, connections are still accepted, and each
    /// connection ends with its next answer, or because it is idle for too long. So no client sends a request on a
    /// connection that is being closed. Connections that come later wait in the kernel for the other process.
    pub fn hand_over(mut self) -> Self {
        self.hands_over = true;
        self
    }

    /// Finds out whether the service reacts.
    pub fn pulse(&self) -> Pulse {
        Pulse { actors: self.actors.clone(), supervision: self.supervision.clone() }
    }

    /// Serves until `shutdown` resolves or the disk fails. Then it finishes the requests in flight, settles the
    /// deliveries that the actors are processing, and returns.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<(), ServiceError> {
        let Self { http, api, actors, supervision, hands_over, tasks } = self;
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
            supervision.stop();
            if hands_over && failure.is_none() {
                log::info!("stopping: handing over the sockets, in at most {} s", HAND_OVER.as_secs());
                // What is still open after this time is closed below.
                let _ = tokio::time::timeout(HAND_OVER, supervision.early_connections_end()).await;
            }
            log::info!("stopping: no new connections, {} s for requests in flight", server::SHUTDOWN_TIMEOUT);
            actors.stop_waiting().await;
            futures::join!(http_handle.pause(), api_handle.pause());
            tokio::time::sleep(LAST_REQUESTS).await;
            futures::join!(http_handle.stop(true), api_handle.stop(true));
            failure
        };
        let (served, failure) = futures::join!(servers, stop);
        tasks.iter().for_each(AbortHandle::abort);
        let drained = actors.drain().await;
        served?;
        failure.map_or(Ok(()), |failure| Err(ServiceError::from(failure)))?;
        Ok(drained?)
    }
}

/// Closes the connection after an answer that begins while the service is stopping.
async fn close_if<B: MessageBody>(
    stopping: Supervision,
    answer: impl Future<Output = Result<ServiceResponse<B>, actix_web::Error>>,
) -> Result<ServiceResponse<B>, actix_web::Error> {
    let mut answer = answer.await?;
    if stopping.is_stopping() {
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
