//! One HTTP server, over TCP or over TLS.

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::num::NonZero;
use std::pin::pin;
use std::rc::Rc;
use std::thread;

use actix_http::Request;
use actix_server::{GracefulShutdownSignal, Server, ServerBuilder};
use actix_service::{IntoServiceFactory, Service, ServiceFactory, fn_factory, fn_service};
use actix_web::dev::AppConfig;
use futures::future::{self, Either};
use tokio::net::TcpStream;

use crate::http::Failure;
use crate::http::connection::{self, ConnectionSettings, Transport};
use crate::http::metrics::{Answer, RequestMetrics, ServerMetrics};
use crate::http::supervision::Supervision;
use crate::tls::{Greeting, Tls, greet};

/// How long a shutdown waits for requests in flight, in seconds. With the actors, which need at most 3 s, and
/// `LAST_REQUESTS` of `service/started.rs`, a shutdown takes less than 10 s.
pub const SHUTDOWN_TIMEOUT: u64 = 6;

/// Starts a server for the apps that `factory` makes. At most `max_connections` are open at the same time; further ones
/// wait in the kernel.
///
/// It does what actix-web's `HttpServer` does, but with the project's own [`connection`]s.
pub fn serve<F, I, S>(
    listener: TcpListener,
    tls: Option<Tls>,
    max_connections: usize,
    settings: ConnectionSettings,
    metrics: ServerMetrics,
    supervision: Supervision,
    factory: F,
) -> io::Result<Server>
where
    F: Fn() -> I + Send + Clone + 'static,
    I: IntoServiceFactory<S, Request>,
    S: ServiceFactory<Request, Config = AppConfig> + 'static,
    S::Error: Into<actix_web::Error> + 'static,
    S::InitError: fmt::Debug,
    S::Response: Answer + 'static,
    S::Service: 'static,
    <S::Service as Service<Request>>::Future: 'static,
{
    // One thread per core. On two cores, a single thread reduced the throughput of AddBufferMsg to 0.75, and that of a
    // GET without a message to 0.9.
    let workers = thread::available_parallelism().map_or(1, NonZero::get).min(max_connections).max(1);
    supervision.expect_threads(workers);
    let builder = ServerBuilder::new()
        .workers(workers)
        .max_concurrent_connections((max_connections / workers).max(1))
        .shutdown_timeout(SHUTDOWN_TIMEOUT)
        .disable_signals();
    let stopping = builder.graceful_shutdown_signal();
    let server = builder.listen("http", listener, move || {
        let (factory, tls, settings, stopping) = (factory.clone(), tls.clone(), settings.clone(), stopping.clone());
        let (metrics, supervision) = (metrics.clone(), supervision.clone());
        fn_factory(move || {
            supervision.join_thread();
            let supervision = supervision.clone();
            let app = factory().into_factory().new_service(AppConfig::default());
            let (tls, settings, stopping) = (tls.clone(), Rc::new(settings.clone()), stopping.clone());
            let metrics = Rc::new(RequestMetrics::new(metrics.clone()));
            async move {
                let app =
                    Rc::new(app.await.map_err(|error| log::error!("cannot create the routes of a server: {error:?}"))?);
                Ok::<_, ()>(fn_service(move |socket: TcpStream| {
                    let (app, tls, settings) = (Rc::clone(&app), tls.clone(), Rc::clone(&settings));
                    let (metrics, stopping) = (Rc::clone(&metrics), stopping.clone());
                    let early = supervision.connection();
                    async move {
                        let _early = early;
                        serve_socket(socket, tls, &settings, &metrics, &stopping, &*app).await;
                        Ok::<_, ()>(())
                    }
                }))
            }
        })
    })?;
    Ok(server.run())
}

/// Serves a connection until it ends.
async fn serve_socket<A>(
    socket: TcpStream,
    tls: Option<Tls>,
    settings: &ConnectionSettings,
    metrics: &RequestMetrics,
    stopping: &GracefulShutdownSignal,
    app: &A,
) where
    A: Service<Request>,
    A::Response: Answer,
    A::Error: Into<actix_web::Error>,
{
    let _open = metrics.connection();
    let client = socket.peer_addr().ok();
    // Fails only if the client has disconnected already.
    let _ = socket.set_nodelay(true);
    let transport = match tls {
        None => Transport::Plain(socket),
        Some(tls) => match future::select(pin!(greet(tls, socket)), pin!(stopping.notified())).await {
            Either::Left((Ok(Greeting::Tls(stream)), _)) => Transport::Tls(stream),
            Either::Left((Ok(Greeting::Http(socket)), _)) => {
                log::info!("{client:?} speaks plain HTTP to a server that speaks TLS; it must use https://");
                return connection::refuse(Transport::Plain(socket), settings, metrics, Failure::tls_required()).await;
            }
            Either::Left((Err(error), _)) => return log::debug!("TLS handshake with {client:?} failed: {error}"),
            Either::Right(_) => return,
        },
    };
    connection::serve(transport, client, settings, metrics, stopping.notified(), app).await;
}
