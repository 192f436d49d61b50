//! What an application sets on its own [`HttpServer`](actix_web::HttpServer) when it mounts the routes there. The
//! servers of [`UserHttpServer`](crate::UserHttpServer) have connections of their own and need none of it.

use std::any::Any;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;

use actix_web::dev::Extensions;
use actix_web::{HttpRequest, rt};

/// The `h1_write_buffer_size` that makes the end of a delivery exact: the server asks an answer's body for the next
/// chunk only after the socket has taken all bytes before it. So when it asks for a chunk after the last one, the
/// socket has the whole answer. The cost: head and body of an answer are two packets. Over TLS, rustls may still hold
/// the last 64 KiB.
pub const H1_WRITE_BUFFER_SIZE: usize = 1;

/// The socket of a connection.
#[derive(Clone)]
pub struct Socket(Arc<TcpStream>);

impl Socket {
    /// That of the connection on which the request came, if [`remember_socket`] has seen it.
    pub fn of(request: &HttpRequest) -> Option<Self> {
        request.conn_data::<Self>().cloned()
    }

    /// Closes the connection at once.
    pub fn close(&self) {
        // fails only if it is closed already
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// Makes the socket of a connection known to its requests, so that a client that reads an answer too slowly can be
/// disconnected. For [`HttpServer::on_connect`]; without it, such a client can hold a message forever. Each connection
/// takes a second file descriptor for this.
///
/// [`HttpServer::on_connect`]: actix_web::HttpServer::on_connect
pub fn remember_socket(connection: &dyn Any, extensions: &mut Extensions) {
    let socket = connection.downcast_ref::<rt::net::TcpStream>();
    if let Some(Ok(socket)) = socket.map(|socket| socket.as_fd().try_clone_to_owned()) {
        extensions.insert(Socket(Arc::new(socket.into())));
    }
}
