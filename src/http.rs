//! What both servers share: server, connections, TLS, authentication, cross-origin guard, limits, delivery, errors.

use actix_web::{HttpRequest, HttpResponse};

pub mod auth;
pub(crate) mod body;
pub(crate) mod connection;
mod cross_origin;
pub(crate) mod delivery;
pub(crate) mod digest;
mod embedding;
pub(crate) mod error;
mod gate;
mod gateway;
mod limits;
pub(crate) mod metrics;
pub(crate) mod prefer;
pub(crate) mod range;
pub(crate) mod request;
mod request_id;
pub(crate) mod server;
pub(crate) mod slow_reader;
pub(crate) mod supervision;
pub mod tls;

pub use cross_origin::{CrossOriginGuard, HostName};
pub use embedding::{H1_WRITE_BUFFER_SIZE, remember_socket};
pub(crate) use error::{Failure, Form};
pub use gateway::Gateway;
pub(crate) use limits::Inflight;
pub use limits::{GRACE, Limits};
pub use request_id::current_request_id;
pub(crate) use request_id::{RequestId, X_REQUEST_ID};

/// Whether a path is this one, or below it.
pub(crate) fn is_within(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Answers a request whose path has no route.
pub(crate) async fn not_found(request: HttpRequest) -> HttpResponse {
    let failure = Failure::not_found(format!("there is no {:?} here", request.path()));
    failure.in_form(Form::of_route(request.path()))
}

/// Answers a request whose path has no route for its method.
pub(crate) async fn method_not_allowed(request: HttpRequest, allowed: &'static str, form: Form) -> HttpResponse {
    Failure::method_not_allowed(request.method(), allowed).in_form(form)
}
