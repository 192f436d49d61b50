//! Settings for the [`HttpServer`](actix_web::HttpServer) of an application that mounts the routes there. The servers
//! of [`UserHttpServer`](crate::UserHttpServer) have their own connections and need none of this.

use std::any::Any;
use std::future;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;

use actix_web::dev::Extensions;
use actix_web::{HttpRequest, rt};
use tokio::io::Interest;

/// The `h1_write_buffer_size` that makes the end of a delivery exact: the server asks an answer's body for the next
/// chunk only after the socket has accepted all bytes before it. So when it asks for a chunk after the last one, the
/// socket has the whole answer. The cost: head and body of an answer are two packets. Over TLS, the last 64 KiB may
/// still be in rustls's buffer.
pub const H1_WRITE_BUFFER_SIZE: usize = 1;

/// The socket of a connection.
#[derive(Clone)]
pub struct Socket(Arc<TcpStream>);

impl Socket {
    /// The socket of a request's connection, if [`remember_socket`] has recorded it.
    pub fn of(request: &HttpRequest) -> Option<Self> {
        request.conn_data::<Self>().cloned()
    }

    /// Resolves when the client has closed its sending side or the connection is broken.
    pub async fn hung_up(&self) {
        // Fails only if the system lacks descriptors or memory. Then the client counts as one that waits.
        let Ok(socket) = self.0.try_clone().and_then(rt::net::TcpStream::from_std) else {
            return future::pending().await;
        };
        loop {
            match socket.ready(Interest::READABLE).await {
                // bytes have arrived, which the server will read; waits for the next event
                Ok(ready) if !ready.is_read_closed() => {
                    let _ = socket.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
                }
                _ => return,
            }
        }
    }

    /// Closes the connection at once.
    pub fn close(&self) {
        // Fails only if it is closed already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// Records the socket of a connection for its requests, so that a client that reads an answer too slowly can be
/// disconnected, and one that hangs up while it waits for a message gets none. For [`HttpServer::on_connect`]; without
/// it, a slow client can keep a message leased forever. Each connection takes a second file descriptor for this, and a
/// third one while it waits.
///
/// [`HttpServer::on_connect`]: actix_web::HttpServer::on_connect
pub fn remember_socket(connection: &dyn Any, extensions: &mut Extensions) {
    let socket = connection.downcast_ref::<rt::net::TcpStream>();
    if let Some(Ok(socket)) = socket.map(|socket| socket.as_fd().try_clone_to_owned()) {
        extensions.insert(Socket(Arc::new(socket.into())));
    }
}
