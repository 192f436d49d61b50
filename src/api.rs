//! The routes of the API server.

use actix_web::{guard, web};
use serde::Serialize;

use crate::http::metrics::RoutePattern;
use crate::http::{Form, Gateway, method_not_allowed};

mod admin;
mod buffer;
mod docs;
mod health;
mod metrics;
mod openapi;
mod page;
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
        let resource = |Route { path, allowed, route }| {
            let form = Form::of_route(path);
            web::resource(path)
                .app_data(gateway.clone())
                .app_data(RoutePattern::of(path))
                .route(route)
                .default_service(web::to(move |request| method_not_allowed(request, allowed, form)))
        };
        for route in self::routes() {
            match &metrics {
                _ if route.path != METRICS => routes.service(resource(route)),
                Some(metrics) => routes.service(resource(route).app_data(web::Data::new(metrics.clone()))),
                None => routes,
            };
        }
    }
}

/// Mounted only if the gateway has metrics.
const METRICS: &str = "/metrics";

/// A route, and the methods that it has, as in `Allow`.
struct Route {
    path: &'static str,
    allowed: &'static str,
    route: actix_web::Route,
}

/// All routes. `openapi/services.json` describes them.
fn routes() -> Vec<Route> {
    // The connection omits the body of an answer to HEAD.
    let get = |path| (path, "GET, HEAD", web::route().guard(guard::Any(guard::Get()).or(guard::Head())));
    let post = |path| (path, "POST", web::post());
    let delete = |path| (path, "DELETE", web::delete());
    macro_rules! table {
        ($($route:expr => $handler:path,)*) => {
            vec![$({
                let (path, allowed, route) = $route;
                Route { path, allowed, route: route.to($handler) }
            }),*]
        };
    }
    table![
        post("/CommunicationInterface/AddBufferMsg") => buffer::add_buffer_msg,
        get("/UserManager/NextMessage") => user_manager::next_message,
        delete("/UserManager/Messages/{id}") => user_manager::delete_message,
        get("/UserManager/Parked") => parked::list,
        delete("/UserManager/Parked/{id}") => parked::delete,
        post("/UserManager/Parked/{id}/Publish") => parked::publish,
        get("/admin/buffer") => admin::list_buffer,
        // a UUID may contain slashes
        delete("/admin/buffer/{uuid:.*}") => admin::discard_buffered,
        get("/admin/outbox") => admin::list_outbox,
        delete("/admin/outbox/{id}") => admin::discard_outbox,
        get("") => page::page,
        get("/") => page::page,
        get("/healthz") => health::healthz,
        get("/readyz") => health::readyz,
        get("/status") => status::status,
        get("/events") => status::events,
        get(METRICS) => metrics::metrics,
        get("/openapi.json") => openapi::services,
        get("/openapi-worker.json") => openapi::workers,
        get("/docs") => docs::page,
        get("/docs/{file}") => docs::file,
    ]
}
