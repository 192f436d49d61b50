//! The routes of the API server.

use actix_web::http::Method;
use actix_web::{guard, web};
use serde::Serialize;

use crate::http::metrics::RoutePattern;
use crate::http::{Form, Gateway, method_not_allowed};

mod admin;
mod buffer;
mod health;
mod metrics;
mod parked;
mod status;
mod user_manager;

/// The body of the answer to a successful request.
#[derive(Serialize)]
pub struct Success {
    #[serde(rename = "STATUS")]
    status: &'static str,
}

impl Success {
    pub fn new() -> Self {
        Self { status: "SUCCESS" }
    }
}

/// Mounts the routes for the farm's services (`ConfigureAPIRoutes` of the specification) below the app or scope.
///
/// The routes themselves check neither tokens nor the origin of requests. Wrap them in
/// [`Authentication::for_services`](crate::auth::Authentication::for_services) and in a
/// [`CrossOriginGuard`](crate::CrossOriginGuard). Wrap in the guard last, so that it checks first:
///
/// ```
/// use actix_web::{App, test, web};
/// use user_http_actors::UserHttpActors;
/// use user_http_server::auth::Authentication;
/// use user_http_server::{Config, CrossOriginGuard, Gateway, configure_api_routes};
///
/// # #[actix_web::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = Config::load(["gateway", "--memory"].map(Into::into), [])?;
/// let gateway = Gateway::new(UserHttpActors::start(config.actors)?, config.limits);
/// let services = web::scope("/services")
///     .wrap(Authentication::for_services(config.api_tokens))
///     .wrap(CrossOriginGuard::new())
///     .configure(configure_api_routes(gateway));
/// let app = test::init_service(App::new().service(services)).await;
///
/// let request = test::TestRequest::get().uri("/services/readyz").to_request();
/// assert_eq!(test::call_service(&app, request).await.status(), 200);
/// # Ok(())
/// # }
/// ```
pub fn configure_api_routes(gateway: Gateway) -> impl FnOnce(&mut web::ServiceConfig) {
    move |routes| {
        let metrics = gateway.metrics.clone();
        let gateway = web::Data::new(gateway);
        let resource = |path: &'static str, method: Method, route: actix_web::Route| {
            let (allowed, route) = if method == Method::POST {
                ("POST", route.method(method))
            } else if method == Method::DELETE {
                ("DELETE", route.method(method))
            } else {
                // The connection omits the body of an answer to HEAD.
                ("GET, HEAD", route.guard(guard::Any(guard::Get()).or(guard::Head())))
            };
            let form = Form::of_route(path);
            web::resource(path)
                .app_data(gateway.clone())
                .app_data(RoutePattern(path))
                .route(route)
                .default_service(web::to(move |request| method_not_allowed(request, allowed, form)))
        };
        routes
            .service(resource(
                "/CommunicationInterface/AddBufferMsg",
                Method::POST,
                web::route().to(buffer::add_buffer_msg),
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
            .service(resource("/admin/buffer", Method::GET, web::route().to(admin::list_buffer)))
            // a UUID may contain slashes
            .service(resource("/admin/buffer/{uuid:.*}", Method::DELETE, web::route().to(admin::discard_buffered)))
            .service(resource("/admin/outbox", Method::GET, web::route().to(admin::list_outbox)))
            .service(resource("/admin/outbox/{id}", Method::DELETE, web::route().to(admin::discard_outbox)))
            .service(resource("/healthz", Method::GET, web::route().to(health::healthz)))
            .service(resource("/readyz", Method::GET, web::route().to(health::readyz)))
            .service(resource("/status", Method::GET, web::route().to(status::status)))
            .service(resource("/events", Method::GET, web::route().to(status::events)));
        if let Some(metrics) = metrics {
            let route = web::route().to(metrics::metrics);
            routes.service(resource("/metrics", Method::GET, route).app_data(web::Data::new(metrics)));
        }
    }
}
