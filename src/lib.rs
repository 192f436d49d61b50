//! The user HTTP server of a Blender render farm: two HTTP servers in front of the actors of `user-http-actors`.
//!
//! [`UserHttpServer::start_service`] is the whole service as a function of its configuration, its listeners and a
//! shutdown signal; [`configure_http_routes`] and [`configure_api_routes`] mount its routes in somebody else's `App`.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod api;
pub mod config;
mod http;
pub mod service;
mod worker;

pub use api::configure_api_routes;
pub use config::Config;
pub use http::{GRACE, Gateway, H1_WRITE_BUFFER_SIZE, HostName, Limits, auth, remember_socket, tls};
pub use service::{Listeners, ServiceError, UserHttpServer};
pub use worker::configure_http_routes;
