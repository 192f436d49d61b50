//! What both servers share: the server, its connections, TLS, authentication, limits, and the answers.

use actix_web::{HttpRequest, HttpResponse};

pub mod auth;
pub(crate) mod body;
pub(crate) mod connection;
mod cross_origin;
pub(crate) mod delivery;
pub(crate) mod error;
mod gateway;
mod limits;
pub(crate) mod range;
pub(crate) mod request;
pub(crate) mod server;
mod slow_reader;
pub mod tls;

pub use cross_origin::HostName;
pub(crate) use cross_origin::PageGuard;
pub use delivery::H1_WRITE_BUFFER_SIZE;
pub(crate) use error::Failure;
pub use gateway::Gateway;
pub(crate) use limits::Inflight;
pub use limits::{GRACE, Limits};
pub use slow_reader::remember_socket;

/// Answers whatever has no route.
pub(crate) async fn not_found(request: HttpRequest) -> HttpResponse {
    Failure::not_found(format!("there is no {:?} here", request.path())).json()
}

pub(crate) async fn method_not_allowed(request: HttpRequest, allowed: &'static str) -> HttpResponse {
    Failure::method_not_allowed(request.method(), allowed).json()
}
