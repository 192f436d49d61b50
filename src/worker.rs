//! The routes for workers.

use actix_web::web;

use crate::http::{Gateway, method_not_allowed};

mod fetch;
mod post;

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
                .route(web::get().to(fetch::get_data_from_server))
                .route(web::head().to(fetch::head_data_from_server))
                .route(web::post().to(post::send_data_to_server))
                .default_service(web::to(|request| method_not_allowed(request, "GET, HEAD, POST")));
            routes.service(root);
        }
    }
}
