//! Readers that take an answer too slowly, where the routes are in an application's own server: their connection is cut,
//! so that it does not hold on to a message for ever. The connections of [`UserHttpServer`](crate::UserHttpServer) see to
//! that themselves.

use std::any::Any;
use std::cell::Cell;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;

use actix_web::dev::Extensions;
use actix_web::{HttpRequest, rt};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::http::limits::Limits;

/// The socket of a connection.
#[derive(Clone)]
struct Socket(Arc<TcpStream>);

/// Keeps the socket of a connection where its requests find it: for [`HttpServer::on_connect`]. Without this, slow
/// readers are waited for. It is a second descriptor of the socket: each connection has two.
///
/// [`HttpServer::on_connect`]: actix_web::HttpServer::on_connect
pub fn remember_socket(connection: &dyn Any, extensions: &mut Extensions) {
    let socket = connection.downcast_ref::<rt::net::TcpStream>();
    if let Some(Ok(socket)) = socket.map(|socket| socket.as_fd().try_clone_to_owned()) {
        extensions.insert(Socket(Arc::new(socket.into())));
    }
}

/// Watches an answer until this is dropped.
pub struct ReaderWatch {
    /// When the last chunk was handed over, and how long it is.
    handed_over: Rc<Cell<(Instant, u64)>>,
    watch: JoinHandle<()>,
}

impl ReaderWatch {
    /// Cuts the request's connection as soon as a chunk of its answer is taken more slowly than `limits` allow.
    pub fn start(request: &HttpRequest, limits: Limits) -> Option<Self> {
        let socket = request.conn_data::<Socket>()?.clone();
        let handed_over = Rc::new(Cell::new((Instant::now(), 0)));
        let last = Rc::clone(&handed_over);
        let watch = rt::spawn(async move {
            loop {
                let (at, bytes) = last.get();
                sleep_until(at + limits.time_for(bytes)).await;
                if last.get().0 == at {
                    let rate = limits.min_transfer_rate;
                    log::warn!("an answer is cut off: it was read more slowly than {rate} bytes a second");
                    // it may be closed already
                    let _ = socket.0.shutdown(Shutdown::Both);
                    return;
                }
            }
        });
        Some(Self { handed_over, watch })
    }

    /// The connection has taken everything before, and gets so many bytes more.
    pub fn hand_over(&self, bytes: u64) {
        self.handed_over.set((Instant::now(), bytes));
    }
}

impl Drop for ReaderWatch {
    fn drop(&mut self) {
        self.watch.abort();
    }
}
