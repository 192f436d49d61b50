//! One HTTP server, over TCP or over TLS.

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::num::NonZero;
use std::thread;
use std::time::Duration;

use actix_http::{HttpService, Request, Response};
use actix_server::ServerBuilder;
use actix_service::{IntoServiceFactory, Service, ServiceFactory, ServiceFactoryExt, fn_service, map_config};
use actix_web::HttpServer;
use actix_web::body::MessageBody;
use actix_web::dev::{AppConfig, Server};
use actix_web::rt::net::TcpStream;
use futures::future::Either;

use crate::http::{H1_WRITE_BUFFER_SIZE, remember_socket};
use crate::tls::{Tls, TlsStream, accept};

/// How long a stop waits for requests in flight, in seconds. With what the actors need afterwards (3 s at the most)
/// and [`LAST_REQUESTS`](crate::LAST_REQUESTS) the process ends within 10 s.
pub const SHUTDOWN_TIMEOUT: u64 = 6;

/// How long an idle connection is kept. Shorter than [`SHUTDOWN_TIMEOUT`], so that it does not decide how long a stop
/// takes.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// How long a client has for its side of a connection's end; actix-web's own default.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Starts a server of the apps that `factory` makes. `half_closed` says whether a client that has closed its side
/// still waits for its answer; `max_connections` is how many connections are open at once, those beyond wait in the
/// kernel.
pub fn serve<F, I, S, B>(
    listener: TcpListener,
    tls: Option<Tls>,
    half_closed: bool,
    max_connections: usize,
    factory: F,
) -> io::Result<Server>
where
    F: Fn() -> I + Send + Clone + 'static,
    I: IntoServiceFactory<S, Request>,
    S: ServiceFactory<Request, Config = AppConfig> + 'static,
    S::Error: Into<actix_web::Error> + 'static,
    S::InitError: fmt::Debug,
    S::Response: Into<Response<B>> + 'static,
    S::Service: 'static,
    <S::Service as Service<Request>>::Future: 'static,
    B: MessageBody + 'static,
{
    let workers = thread::available_parallelism().map_or(1, NonZero::get);
    let connections = max_connections.div_ceil(workers).max(1);
    match tls {
        None => Ok(HttpServer::new(factory)
            .on_connect(remember_socket)
            .workers(workers)
            .max_connections(connections)
            .listen(listener)?
            .h1_write_buffer_size(H1_WRITE_BUFFER_SIZE)
            .h1_allow_half_closed(half_closed)
            .keep_alive(KEEP_ALIVE)
            .client_disconnect_timeout(DISCONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .shutdown_timeout(SHUTDOWN_TIMEOUT)
            .disable_signals()
            .run()),
        Some(tls) => {
            let builder = ServerBuilder::new().workers(workers).max_concurrent_connections(connections);
            serve_tls(builder, listener, tls, half_closed, factory)
        }
    }
}

/// As `HttpServer` does it, which has no room for a stream that is exact about what it has written: see
/// `TlsStream`.
fn serve_tls<F, I, S, B>(
    builder: ServerBuilder,
    listener: TcpListener,
    tls: Tls,
    half_closed: bool,
    factory: F,
) -> io::Result<Server>
where
    F: Fn() -> I + Send + Clone + 'static,
    I: IntoServiceFactory<S, Request>,
    S: ServiceFactory<Request, Config = AppConfig> + 'static,
    S::Error: Into<actix_web::Error> + 'static,
    S::InitError: fmt::Debug,
    S::Response: Into<Response<B>> + 'static,
    S::Service: 'static,
    <S::Service as Service<Request>>::Future: 'static,
    B: MessageBody + 'static,
{
    let address = listener.local_addr()?;
    let builder = builder.shutdown_timeout(SHUTDOWN_TIMEOUT).disable_signals();
    let stopping = builder.graceful_shutdown_signal();
    let server = builder.listen("https", listener, move || {
        let app = factory().into_factory().map_err(|error| error.into().error_response());
        let (tls, stop_handshakes, stopping) = (tls.clone(), stopping.clone(), stopping.clone());
        let http = HttpService::build()
            .graceful_shutdown_signal(move || {
                let stopping = stopping.clone();
                async move { stopping.notified().await }
            })
            .secure()
            .on_connect_ext(|stream: &TlsStream<TcpStream>, extensions| remember_socket(stream.socket(), extensions))
            .local_addr(address)
            .h1_write_buffer_size(H1_WRITE_BUFFER_SIZE)
            .h1_allow_half_closed(half_closed)
            .keep_alive(KEEP_ALIVE)
            .client_disconnect_timeout(DISCONNECT_TIMEOUT)
            .h1(map_config(app, |()| AppConfig::default()));
        fn_service(move |socket: TcpStream| {
            let (tls, stopping) = (tls.clone(), stop_handshakes.clone());
            async move {
                let client = socket.peer_addr().ok();
                let _ = socket.set_nodelay(true);
                let handshake = std::pin::pin!(accept(tls, socket));
                match futures::future::select(handshake, std::pin::pin!(stopping.notified())).await {
                    Either::Left((Ok(stream), _)) => Ok((stream, client)),
                    Either::Left((Err(error), _)) => {
                        log::debug!("no TLS with {client:?}: {error}");
                        Err(())
                    }
                    Either::Right(_) => Err(()),
                }
            }
        })
        .and_then(http.map_err(|error| log::debug!("a connection has failed: {error}")))
    })?;
    Ok(server.run())
}
