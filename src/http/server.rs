//! One HTTP server, over TCP or over TLS.

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::num::NonZero;
use std::pin::pin;
use std::rc::Rc;
use std::thread;

use actix_http::{Request, Response};
use actix_server::{GracefulShutdownSignal, Server, ServerBuilder};
use actix_service::{IntoServiceFactory, Service, ServiceFactory, fn_factory, fn_service};
use actix_web::body::MessageBody;
use actix_web::dev::AppConfig;
use futures::future::{self, Either};
use tokio::net::TcpStream;

use crate::http::Failure;
use crate::http::connection::{self, Terms, Transport};
use crate::tls::{Greeting, Tls, greet};

/// How long a stop waits for requests in flight, in seconds. With what the actors need afterwards (3 s at the most)
/// and [`LAST_REQUESTS`](crate::service::LAST_REQUESTS) the process ends within 10 s.
pub const SHUTDOWN_TIMEOUT: u64 = 6;

/// Starts a server of the apps that `factory` makes. At most `max_connections` are open at once; those beyond wait in the
/// kernel.
///
/// It does what actix-web's `HttpServer` does, with connections of its own: see [`connection`].
pub fn serve<F, I, S, B>(
    listener: TcpListener,
    tls: Option<Tls>,
    max_connections: usize,
    terms: Terms,
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
    let workers = thread::available_parallelism().map_or(1, NonZero::get).min(max_connections).max(1);
    let builder = ServerBuilder::new()
        .workers(workers)
        .max_concurrent_connections((max_connections / workers).max(1))
        .shutdown_timeout(SHUTDOWN_TIMEOUT)
        .disable_signals();
    let stopping = builder.graceful_shutdown_signal();
    let server = builder.listen("http", listener, move || {
        let (factory, tls, terms, stopping) = (factory.clone(), tls.clone(), terms.clone(), stopping.clone());
        fn_factory(move || {
            let app = factory().into_factory().new_service(AppConfig::default());
            let (tls, terms, stopping) = (tls.clone(), Rc::new(terms.clone()), stopping.clone());
            async move {
                let app = Rc::new(app.await.map_err(|error| log::error!("a server cannot be made: {error:?}"))?);
                Ok::<_, ()>(fn_service(move |socket: TcpStream| {
                    let (app, tls, terms) = (Rc::clone(&app), tls.clone(), Rc::clone(&terms));
                    let stopping = stopping.clone();
                    async move {
                        attend(socket, tls, &terms, &stopping, &*app).await;
                        Ok::<_, ()>(())
                    }
                }))
            }
        })
    })?;
    Ok(server.run())
}

/// Serves a connection until it ends.
async fn attend<A, B>(socket: TcpStream, tls: Option<Tls>, terms: &Terms, stopping: &GracefulShutdownSignal, app: &A)
where
    A: Service<Request>,
    A::Response: Into<Response<B>>,
    A::Error: Into<actix_web::Error>,
    B: MessageBody,
{
    let client = socket.peer_addr().ok();
    // it may be gone already
    let _ = socket.set_nodelay(true);
    let transport = match tls {
        None => Transport::Plain(socket),
        Some(tls) => match future::select(pin!(greet(tls, socket)), pin!(stopping.notified())).await {
            Either::Left((Ok(Greeting::Tls(stream)), _)) => Transport::Tls(stream),
            Either::Left((Ok(Greeting::Http(socket)), _)) => {
                log::info!("{client:?} speaks plain HTTP to a server that speaks TLS: it has to ask for https://");
                return connection::refuse(Transport::Plain(socket), terms, Failure::tls_needed()).await;
            }
            Either::Left((Err(error), _)) => return log::debug!("no TLS with {client:?}: {error}"),
            Either::Right(_) => return,
        },
    };
    connection::serve(transport, client, terms, stopping.notified(), app).await;
}
