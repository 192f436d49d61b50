//! Who may ask: requests without a valid token are answered 401 before anything of them is read.

use actix_web::HttpMessage;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::{Method, header};
use futures::future::Either;

use crate::auth::Tokens;
use crate::http::error::Failure;

/// How a server tells a worker or a service that it has to authenticate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Workers, whose `GET` is answered with pickles.
    Workers,
    /// The farm's services.
    Services,
}

/// Lets a request pass that carries a valid token, where tokens are asked for, and tells its handler whose it is.
/// Answers any other.
pub fn authenticate(
    tokens: Option<&Tokens>,
    audience: Audience,
    request: ServiceRequest,
) -> Either<ServiceRequest, ServiceResponse> {
    let Some(tokens) = tokens else { return Either::Left(request) };
    // whoever restarts a service that is dead, or sends it no work while it is not ready, has no token
    if audience == Audience::Services && ["/healthz", "/readyz"].contains(&request.path()) {
        return Either::Left(request);
    }
    let authorization = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if let Some(bearer) = tokens.check(authorization) {
        request.extensions_mut().insert(bearer);
        return Either::Left(request);
    }
    let in_pickle = audience == Audience::Workers && [Method::GET, Method::HEAD].contains(request.method());
    let failure = Failure::unauthorized();
    let answer = if in_pickle { failure.pickle() } else { failure.json() };
    Either::Right(request.into_response(answer))
}
