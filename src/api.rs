//! The routes for the farm's services.

use actix_web::http::Method;
use actix_web::{guard, web};
use serde::Serialize;

use crate::http::{Gateway, method_not_allowed};

mod buffer;
mod health;
mod parked;
mod user_manager;

/// What was asked for is done.
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
            .service(resource("/healthz", Method::GET, web::route().to(health::healthz)))
            .service(resource("/readyz", Method::GET, web::route().to(health::readyz)));
    }
}
