//! The HTTP edge: the routes, for this server and for any scope of somebody else's `App`.

use std::time::Duration;

use actix_web::http::Method;
use actix_web::{HttpRequest, HttpResponse, guard, web};
use user_http_actors::UserHttpActors;

use crate::connection::Terms;

mod api;
mod authenticate;
mod delivery;
mod error;
mod limits;
mod pages;
mod parked;
mod range;
mod reader;
mod request;
mod user_manager;
mod worker;

pub(crate) use authenticate::{Audience, authenticate};
pub(crate) use error::Failure;
pub(crate) use limits::Inflight;
pub use pages::HostName;
pub(crate) use pages::PageGuard;

pub use delivery::H1_WRITE_BUFFER_SIZE;
pub use limits::{GRACE, Limits};
pub use reader::remember_socket;

/// What the routes have to know.
#[derive(Clone, Debug)]
pub struct Gateway {
    actors: UserHttpActors,
    limits: Limits,
    inflight: Inflight,
}

impl Gateway {
    /// Routes in front of `actors`. All clones share `limits`.
    pub fn new(actors: UserHttpActors, limits: Limits) -> Self {
        Self { actors, limits, inflight: Inflight::default() }
    }

    /// What the connections of a server in front of these routes are to keep to.
    pub(crate) fn terms(&self, keep_alive: Duration) -> Terms {
        Terms { keep_alive, limits: self.limits, inflight: self.inflight.clone() }
    }
}

/// Mounts the routes for workers (`ConfigureHTTPRoutes` of the specification): `GET`, `HEAD` and `POST` on the root
/// of the app or scope.
///
/// A delivery counts as done when the server asks the answer's body for more than there is. Set
/// [`HttpServer::h1_write_buffer_size`](actix_web::HttpServer::h1_write_buffer_size) to [`H1_WRITE_BUFFER_SIZE`], and
/// that is when the last byte is with the connection; with actix-web's default it can be 32 KiB too early. Readers that
/// take an answer too slowly are cut off where [`remember_socket`] is the server's `on_connect`. What actix-web's server
/// makes of requests that a client sends ahead is its own affair: where an answer must not be written as a later request
/// wants it, [`UserHttpServer`](crate::UserHttpServer) has connections of its own.
pub fn configure_http_routes(gateway: Gateway) -> impl FnOnce(&mut web::ServiceConfig) {
    move |routes| {
        let gateway = web::Data::new(gateway);
        // one pattern for both would be matched by a regular expression
        for root in ["", "/"] {
            let root = web::resource(root)
                .app_data(gateway.clone())
                .route(web::get().to(worker::get_data_from_server))
                .route(web::head().to(worker::head_data_from_server))
                .route(web::post().to(worker::send_data_to_server))
                .default_service(web::to(|request| method_not_allowed(request, "GET, HEAD, POST")));
            routes.service(root);
        }
    }
}

/// Mounts the routes for the farm's services (`ConfigureAPIRoutes` of the specification) below the app or scope.
///
/// Tokens, and the refusal of requests from other servers' web pages, belong to [`UserHttpServer`](crate::UserHttpServer)
/// and not to these routes: an application that mounts them has to guard them itself.
pub fn configure_api_routes(gateway: Gateway) -> impl FnOnce(&mut web::ServiceConfig) {
    move |routes| {
        let gateway = web::Data::new(gateway);
        let resource = |path: &str, method: Method, route: actix_web::Route| {
            let (allowed, route) = if method == Method::POST {
                ("POST", route.method(method))
            } else if method == Method::DELETE {
                ("DELETE", route.method(method))
            } else {
                // an answer to HEAD is encoded without its body
                ("GET, HEAD", route.guard(guard::Any(guard::Get()).or(guard::Head())))
            };
            web::resource(path)
                .app_data(gateway.clone())
                .route(route)
                .default_service(web::to(move |request| method_not_allowed(request, allowed)))
        };
        routes
            .service(resource(
                "/CommunicationInterface/AddBufferMsg",
                Method::POST,
                web::route().to(api::add_buffer_msg),
            ))
            .service(resource("/UserManager/NextMessage", Method::GET, web::route().to(user_manager::next_message)))
            .service(resource(
                "/UserManager/Messages/{id}",
                Method::DELETE,
                web::route().to(user_manager::delete_message),
            ))
            .service(resource("/UserManager/Parked", Method::GET, web::route().to(parked::list)))
            .service(resource("/UserManager/Parked/{id}", Method::DELETE, web::route().to(parked::delete)))
            .service(resource("/UserManager/Parked/{id}/Publish", Method::POST, web::route().to(parked::publish)))
            .service(resource("/healthz", Method::GET, web::route().to(api::healthz)))
            .service(resource("/readyz", Method::GET, web::route().to(api::readyz)));
    }
}

/// Answers whatever has no route.
pub(crate) async fn not_found(request: HttpRequest) -> HttpResponse {
    Failure::not_found(format!("there is no {:?} here", request.path())).json()
}

async fn method_not_allowed(request: HttpRequest, allowed: &'static str) -> HttpResponse {
    Failure::method_not_allowed(request.method(), allowed).json()
}
