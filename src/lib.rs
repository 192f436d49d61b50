//! The user HTTP server of a Blender render farm: two HTTP servers in front of the actors of `user-http-actors`.
//!
//! An application can embed it in two forms:
//!
//! - [`UserHttpServer::start_service`] runs the whole service, as the program does: a function of a [`Config`], its
//!   [`Listeners`] and a shutdown signal.
//! - [`configure_http_routes`] and [`configure_api_routes`] mount the routes in an `App` of the application.
//!   [`Authentication`](auth::Authentication) and [`CrossOriginGuard`] protect them there.
#![deny(missing_docs)]
#![forbid(unsafe_code)]
// A library writes to the log, never to the terminal of its application.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod api;
pub mod config;
pub mod doctor;
mod http;
mod metrics;
pub mod service;
mod status;
mod worker;

pub use api::configure_api_routes;
pub use config::Config;
pub use http::{
    CrossOriginGuard, GRACE, Gateway, H1_WRITE_BUFFER_SIZE, HostName, Limits, auth, current_request_id,
    remember_socket, tls,
};
pub use metrics::Metrics;
pub use service::{Listeners, Pulse, ServiceError, StartedService, UserHttpServer};
pub use status::RecentEvents;
pub use worker::configure_http_routes;
