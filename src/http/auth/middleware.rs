//! The middleware that answers 401 to requests without a valid token.

use std::sync::Arc;

use actix_web::dev::ServiceRequest;
use actix_web::http::{Method, header};
use actix_web::{HttpMessage, HttpResponse};

use crate::auth::Tokens;
use crate::http::error::{Failure, Form};
use crate::http::gate::{Gate, impl_transform};
use crate::http::is_within;

/// The paths that need no token, because supervisors and load balancers have none.
const PROBES: [&str; 2] = ["/healthz", "/readyz"];

/// The viewer of the descriptions, which are below the same tokens as the other routes: it asks for one.
const VIEWER: &str = "/docs";

/// The status page, which holds no data. It needs no token itself, and asks for one for its own requests.
const PAGE: [&str; 2] = ["", "/"];

/// In the extensions of a request for the status page: the other routes need a token.
pub struct TokenNeeded;

/// Middleware that asks for a bearer token: `Authorization: Bearer TOKEN`. A request without a valid one is answered
/// 401 before any of its body is read.
///
/// Without tokens (`None`) every request passes.
///
/// The routes do not check tokens themselves. [`UserHttpServer`](crate::UserHttpServer) wraps its two servers in this
/// middleware; an application that mounts the routes wraps the scopes that it mounts them in:
///
/// ```
/// use std::sync::Arc;
///
/// use actix_web::{App, test, web};
/// use user_http_actors::UserHttpActors;
/// use user_http_server::auth::{Authentication, Tokens, new_token};
/// use user_http_server::{Config, Gateway, configure_api_routes};
///
/// # #[actix_web::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (token, hash) = new_token();
/// let file = tempfile::NamedTempFile::new()?;
/// std::fs::write(file.path(), hash)?;
/// let tokens = Arc::new(Tokens::read(file.path())?);
///
/// let config = Config::load(["gateway", "--memory"].map(Into::into), [])?;
/// let gateway = Gateway::new(UserHttpActors::start(config.actors)?, config.limits);
/// let services = web::scope("/farm/services")
///     .wrap(Authentication::for_services(tokens))
///     .configure(configure_api_routes(gateway));
/// let app = test::init_service(App::new().service(services)).await;
///
/// let ask = |path: &str| test::TestRequest::get().uri(path);
/// let parked = "/farm/services/UserManager/Parked";
/// assert_eq!(test::call_service(&app, ask(parked).to_request()).await.status(), 401);
/// let authorized = ask(parked).insert_header(("Authorization", format!("Bearer {token}")));
/// assert_eq!(test::call_service(&app, authorized.to_request()).await.status(), 200);
/// // a supervisor has no token
/// assert_eq!(test::call_service(&app, ask("/farm/services/healthz").to_request()).await.status(), 200);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Authentication {
    tokens: Option<Arc<Tokens>>,
    audience: Audience,
}

/// Whose tokens are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Audience {
    Workers,
    Services,
}

impl Authentication {
    /// For [`configure_http_routes`](crate::configure_http_routes). A refused `GET` or `HEAD` is answered with
    /// a pickle, as the other failures of these routes are. A message that is posted with a token that is bound to a
    /// `USER_ID` must have that `USER_ID`.
    pub fn for_workers(tokens: impl Into<Option<Arc<Tokens>>>) -> Self {
        Self { tokens: tokens.into(), audience: Audience::Workers }
    }

    /// For [`configure_api_routes`](crate::configure_api_routes). `/healthz`, `/readyz`, `/docs` and the status page
    /// (`/`) below the scope that this wraps need no token.
    pub fn for_services(tokens: impl Into<Option<Arc<Tokens>>>) -> Self {
        Self { tokens: tokens.into(), audience: Audience::Services }
    }
}

impl Gate for Authentication {
    fn refuse(&self, request: &ServiceRequest) -> Option<HttpResponse> {
        let tokens = self.tokens.as_ref()?;
        let path = request.match_info().unprocessed();
        let is_read = [Method::GET, Method::HEAD].contains(request.method());
        if self.audience == Audience::Services && (is_within(path, VIEWER) || PROBES.contains(&path)) {
            return None;
        }
        if self.audience == Audience::Services && PAGE.contains(&path) && is_read {
            request.extensions_mut().insert(TokenNeeded);
            return None;
        }
        let authorization = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        if let Some(bearer) = tokens.check(authorization) {
            request.extensions_mut().insert(bearer);
            return None;
        }
        let as_pickle = self.audience == Audience::Workers && is_read;
        let failure = Failure::unauthorized();
        let form = Form::of_route(path);
        Some(if as_pickle { failure.pickle() } else { failure.in_form(form) })
    }
}

impl_transform!(Authentication);
