//! The whole service: two servers in front of the actors, from start to stop.

use std::future;
use std::io;
use std::net::TcpListener;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix_web::dev::{Service, ServiceRequest, ServiceResponse};
use actix_web::http::ConnectionType;
use actix_web::{App, web};
use futures::future::Either;
use user_http_actors::store::StoreError;
use user_http_actors::{StartError, UserHttpActors};

use crate::api::configure_api_routes;
use crate::auth::Tokens;
use crate::config::Config;
use crate::http::auth::{Audience, authenticate};
use crate::http::{self, Gateway, PageGuard, server};
use crate::tls::{self, Tls};
use crate::worker::configure_http_routes;

mod descriptors;

pub use descriptors::ResourceError;
use descriptors::Shares;

/// How long a stop goes on answering requests on the connections that there are, each answer being the connection's
/// last: a request that is with the kernel when the stop begins would be thrown away unread by a server that stops at
/// once.
pub(crate) const LAST_REQUESTS: Duration = Duration::from_millis(500);

/// The sockets that the service listens on, bound by whoever starts it.
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
    /// A text that names the address and why it cannot be had.
    pub fn bind(config: &Config) -> Result<Self, String> {
        let bind = |flag: &str, address| {
            TcpListener::bind(address).map_err(|error| format!("cannot listen on {address} (--{flag}): {error}"))
        };
        Ok(Self { http: bind("http-bind", config.http_bind)?, api: bind("api-bind", config.api_bind)? })
    }
}

/// Why the service has ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The actors could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The limits of the process are too low.
    #[error(transparent)]
    Resources(#[from] ResourceError),
    /// One of the servers has failed.
    #[error("the HTTP server has failed: {0}")]
    Http(#[from] io::Error),
    /// The disk has failed, or the data directory is gone: nothing can be promised any more.
    #[error("{0}; {remedy}", remedy = remedy(.0))]
    Store(#[from] StoreError),
}

/// What whoever runs the service has to do about a store that has failed.
fn remedy(failure: &StoreError) -> &'static str {
    match failure {
        StoreError::Gone(_) => {
            "what it has acknowledged is lost with it; if the directory was moved, move it back before the service is \
             started again"
        }
        _ => "look after the disk, then start the service again: everything that it has acknowledged is there",
    }
}

/// The service (`userHttpServerService` of the specification).
#[derive(Debug)]
pub struct UserHttpServer;

impl UserHttpServer {
    /// Runs the service (`startService`) until `shutdown` resolves or the disk fails, then finishes the requests in
    /// flight, settles what is in hand and returns.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub async fn start_service(
        mut config: Config,
        listeners: Listeners,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ServiceError> {
        let shares = Shares::within_limit(config.max_connections, config.actors.max_open_blend_files)?;
        config.actors.max_open_blend_files = shares.blend_files;
        let actors = UserHttpActors::start(config.actors.clone())?;
        let gateway = Gateway::new(actors.clone(), config.limits);
        introduce(&config, &listeners)?;
        let for_workers = gateway.clone();
        let terms = gateway.terms(config.keep_alive);
        let stopping = Arc::new(AtomicBool::new(false));
        let trusting = listeners.api.local_addr()?.ip().to_canonical().is_loopback() && config.api_tokens.is_none();
        let pages = PageGuard::new(trusting, config.api_hosts.clone());
        let door = |tokens: &Option<Arc<Tokens>>, audience, pages| Door {
            tokens: tokens.clone(),
            audience,
            pages,
            stopping: Arc::clone(&stopping),
        };
        let http_door = door(&config.worker_tokens, Audience::Workers, None);
        let api_door = door(&config.api_tokens, Audience::Services, Some(pages));
        let http = server::serve(listeners.http, config.http_tls.clone(), shares.workers, terms.clone(), move || {
            let door = http_door.clone();
            App::new()
                .configure(configure_http_routes(for_workers.clone()))
                .default_service(web::to(http::not_found))
                .wrap_fn(move |request, service| door.answer(request, service))
        })?;
        let api = server::serve(listeners.api, config.api_tls.clone(), shares.services, terms, move || {
            let door = api_door.clone();
            App::new()
                .configure(configure_api_routes(gateway.clone()))
                .default_service(web::to(http::not_found))
                .wrap_fn(move |request, service| door.answer(request, service))
        })?;
        let watch = actix_web::rt::spawn(tls::watch(config.tls().cloned().collect()));
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
            log::info!("stopping: no new requests, {} s for those in flight", server::SHUTDOWN_TIMEOUT);
            stopping.store(true, Ordering::Relaxed);
            actors.stop_leasing().await;
            futures::join!(http_handle.pause(), api_handle.pause());
            tokio::time::sleep(LAST_REQUESTS).await;
            futures::join!(http_handle.stop(true), api_handle.stop(true));
            failure
        };
        let (served, failure) = futures::join!(servers, stop);
        watch.abort();
        actors.drain().await;
        served?;
        failure.map_or(Ok(()), |failure| Err(failure.into()))
    }
}

/// What a server does around every request: it refuses those of other servers' web pages where that is asked for, then
/// asks for a token where there are any, and once the service is stopping each answer is its connection's last.
#[derive(Clone)]
struct Door {
    tokens: Option<Arc<Tokens>>,
    audience: Audience,
    pages: Option<PageGuard>,
    stopping: Arc<AtomicBool>,
}

impl Door {
    fn admit(&self, request: ServiceRequest) -> Either<ServiceRequest, ServiceResponse> {
        match self.pages.as_ref().map_or(Ok(()), |pages| pages.check(request.request())) {
            Ok(()) => authenticate(self.tokens.as_deref(), self.audience, request),
            Err(failure) => Either::Right(request.into_response(failure.json())),
        }
    }

    fn answer<S>(
        &self,
        request: ServiceRequest,
        service: &S,
    ) -> impl Future<Output = Result<ServiceResponse, actix_web::Error>> + use<S>
    where
        S: Service<ServiceRequest, Response = ServiceResponse, Error = actix_web::Error>,
    {
        let answer = match self.admit(request) {
            Either::Left(request) => Either::Left(service.call(request)),
            Either::Right(refusal) => Either::Right(future::ready(Ok(refusal))),
        };
        let stopping = Arc::clone(&self.stopping);
        async move {
            let mut answer = answer.await?;
            if stopping.load(Ordering::Relaxed) {
                answer.response_mut().head_mut().set_connection_type(ConnectionType::Close);
            }
            Ok(answer)
        }
    }
}

/// Says where the service is, how it works, and what to try first.
fn introduce(config: &Config, listeners: &Listeners) -> io::Result<()> {
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
        None => log::info!("data directory: none, a stop loses every message (--memory)"),
    }
    log::info!(
        "try: curl -i {http}/ -H 'Content-Type: application/json' -d '{{\"USER_ID\": \"me\", \"MAIN_DATA\": \
         {{\"TYPE\": \"TEST\", \"DATA\": \"hello\"}}}}'"
    );
    Ok(())
}
