//! One HTTP server, over TCP or over TLS.

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::num::NonZero;
use std::pin::pin;
use std::thread;
use std::time::Duration;

use actix_http::{HttpService, Request, Response};
use actix_server::{Server, ServerBuilder};
use actix_service::{IntoServiceFactory, Service, ServiceFactory, ServiceFactoryExt, fn_service, map_config};
use actix_web::body::MessageBody;
use actix_web::dev::AppConfig;
use futures::future::{self, Either};
use tokio::net::TcpStream;

use crate::connection::Connection;
use crate::http::remember;
use crate::tls::{Tls, accept};

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
///
/// It does what actix-web's `HttpServer` does, which has no room for a [`Connection`].
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
    // with one on two cores, AddBufferMsg fell to 0.75 and a GET without a message to 0.9
    let workers = thread::available_parallelism().map_or(1, NonZero::get);
    let address = listener.local_addr()?;
    let builder = ServerBuilder::new()
        .workers(workers)
        .max_concurrent_connections(max_connections.div_ceil(workers).max(1))
        .shutdown_timeout(SHUTDOWN_TIMEOUT)
        .disable_signals();
    let stopping = builder.graceful_shutdown_signal();
    let server = builder.listen("http", listener, move || {
        let app = factory().into_factory().map_err(|error| error.into().error_response());
        let (tls, stop_handshakes, stopping) = (tls.clone(), stopping.clone(), stopping.clone());
        let mut http = HttpService::build()
            .graceful_shutdown_signal(move || {
                let stopping = stopping.clone();
                async move { stopping.notified().await }
            })
            .on_connect_ext(|connection: &Connection, extensions| remember(connection, extensions))
            .local_addr(address)
            .h1_allow_half_closed(half_closed)
            .keep_alive(KEEP_ALIVE)
            .client_disconnect_timeout(DISCONNECT_TIMEOUT);
        if tls.is_some() {
            http = http.secure();
        }
        let http = http.h1(map_config(app, |()| AppConfig::default()));
        fn_service(move |socket: TcpStream| {
            let client = socket.peer_addr().ok();
            // it may be gone already
            let _ = socket.set_nodelay(true);
            let Some(tls) = tls.clone() else {
                return Either::Left(future::ready(Ok((Connection::plain(socket), client))));
            };
            let stopping = stop_handshakes.clone();
            Either::Right(async move {
                match future::select(pin!(accept(tls, socket)), pin!(stopping.notified())).await {
                    Either::Left((Ok(stream), _)) => Ok((Connection::tls(stream), client)),
                    Either::Left((Err(error), _)) => {
                        log::debug!("no TLS with {client:?}: {error}");
                        Err(())
                    }
                    Either::Right(_) => Err(()),
                }
            })
        })
        .and_then(http.map_err(|error| log::debug!("a connection has failed: {error}")))
    })?;
    Ok(server.run())
}
