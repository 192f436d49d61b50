//! The routes of the worker server.

use actix_web::web;

use crate::http::metrics::RoutePattern;
use crate::http::{Form, Gateway, method_not_allowed};

mod blends;
mod fetch;
mod idempotency;
mod post;

/// A path of several segments is no digest either.
const BLENDS: &str = "/blends/{digest:.*}";

/// The routes and their methods, as in `Allow`. `api/openapi/workers.json` describes them. A single pattern for the
/// first two would be a regular expression, which is slower.
pub(crate) const ROUTES: [(&str, &str); 3] = [("", "GET, HEAD, POST"), ("/", "GET, HEAD, POST"), (BLENDS, "GET, HEAD")];

/// Mounts the routes for workers (`ConfigureHTTPRoutes` of the specification): `GET`, `HEAD` and `POST` on the root of
/// the app or scope, and `GET` and `HEAD` on `/blends/SHA256` below it.
///
/// ```
/// use actix_web::{App, HttpServer, test, web};
/// use user_http_actors::UserHttpActors;
/// use user_http_server::{Config, Gateway, H1_WRITE_BUFFER_SIZE, configure_http_routes, remember_socket};
///
/// # #[actix_web::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = Config::load(["gateway", "--memory"].map(Into::into), [])?;
/// let gateway = Gateway::new(UserHttpActors::start(config.actors)?, config.limits);
/// let app = move || App::new().service(web::scope("/workers").configure(configure_http_routes(gateway.clone())));
///
/// let message = r#"{"USER_ID": "me", "MAIN_DATA": {"TYPE": "TEST", "DATA": 1}}"#;
/// let request = test::TestRequest::post().uri("/workers").set_payload(message).to_request();
/// assert_eq!(test::call_service(&test::init_service(app()).await, request).await.status(), 200);
///
/// let server = HttpServer::new(app)
///     .h1_write_buffer_size(H1_WRITE_BUFFER_SIZE)
///     .on_connect(remember_socket)
///     .bind("127.0.0.1:0")?;
/// # drop(server);
/// # Ok(())
/// # }
/// ```
///
/// The server must have these two settings, for a message counts as delivered when the server asks the answer's body
/// for a chunk after the last one. With [`H1_WRITE_BUFFER_SIZE`](crate::H1_WRITE_BUFFER_SIZE) that is when the socket
/// has the last byte; with actix-web's default it can be 32 KiB too early. With
/// [`remember_socket`](crate::remember_socket) clients that read too slowly are disconnected.
///
/// actix-web's server gives the answer to a pipelined request the form of a later one in some cases. The connections of
/// [`UserHttpServer`](crate::UserHttpServer) do not.
///
/// The routes check no tokens: wrap them in [`Authentication::for_workers`](crate::auth::Authentication::for_workers).
pub fn configure_http_routes(gateway: Gateway) -> impl FnOnce(&mut web::ServiceConfig) {
    move |routes| {
        let gateway = web::Data::new(gateway);
        for (path, allowed) in ROUTES {
            let resource = web::resource(path)
                .app_data(gateway.clone())
                .app_data(RoutePattern::of(path))
                .default_service(web::to(move |request| method_not_allowed(request, allowed, Form::Contract)));
            routes.service(match path {
                BLENDS => {
                    resource.route(web::get().to(blends::get_blend_file)).route(web::head().to(blends::get_blend_file))
                }
                _ => resource
                    .route(web::get().to(fetch::get_data_from_server))
                    .route(web::head().to(fetch::head_data_from_server))
                    .route(web::post().to(post::send_data_to_server)),
            });
        }
    }
}
