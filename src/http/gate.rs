//! Middleware that either passes a request on or answers it at once, before any of its body is read.

use std::future::{Ready, ready};

use actix_web::HttpResponse;
use actix_web::body::EitherBody;
use actix_web::dev::{Service, ServiceRequest, ServiceResponse, forward_ready};
use futures::TryFutureExt;
use futures::future::{Either, MapOk};

/// Decides which requests pass.
pub trait Gate {
    /// The answer to a request that does not pass.
    fn refuse(&self, request: &ServiceRequest) -> Option<HttpResponse>;
}

/// A service behind a [`Gate`].
#[derive(Debug)]
pub struct Gated<G, S> {
    gate: G,
    service: S,
}

impl<G, S> Gated<G, S> {
    pub fn new(gate: G, service: S) -> Self {
        Self { gate, service }
    }
}

/// The answer of the service behind the gate, as one of the two kinds of answers.
type Passed<F, B> = MapOk<F, fn(ServiceResponse<B>) -> ServiceResponse<EitherBody<B>>>;

impl<G, S, B> Service<ServiceRequest> for Gated<G, S>
where
    G: Gate,
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = actix_web::Error>,
{
    type Response = ServiceResponse<EitherBody<B>>;
    type Error = actix_web::Error;
    type Future = Either<Passed<S::Future, B>, Ready<Result<Self::Response, Self::Error>>>;

    forward_ready!(service);

    fn call(&self, request: ServiceRequest) -> Self::Future {
        match self.gate.refuse(&request) {
            None => Either::Left(self.service.call(request).map_ok(ServiceResponse::map_into_left_body)),
            Some(answer) => Either::Right(ready(Ok(request.into_response(answer).map_into_right_body()))),
        }
    }
}

/// Makes a middleware of a type that is [`Clone`] and a [`Gate`].
macro_rules! impl_transform {
    ($gate:ty) => {
        impl<S, B> actix_web::dev::Transform<S, actix_web::dev::ServiceRequest> for $gate
        where
            S: actix_web::dev::Service<
                    actix_web::dev::ServiceRequest,
                    Response = actix_web::dev::ServiceResponse<B>,
                    Error = actix_web::Error,
                >,
        {
            type Response = actix_web::dev::ServiceResponse<actix_web::body::EitherBody<B>>;
            type Error = actix_web::Error;
            type Transform = $crate::http::gate::Gated<Self, S>;
            type InitError = ();
            type Future = std::future::Ready<Result<Self::Transform, ()>>;

            fn new_transform(&self, service: S) -> Self::Future {
                std::future::ready(Ok($crate::http::gate::Gated::new(self.clone(), service)))
            }
        }
    };
}

pub(crate) use impl_transform;
