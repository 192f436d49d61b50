//! The routes with which the user manager fetches its messages if there is no broker.

use std::pin::pin;
use std::time::Duration;

use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, web};
use futures::future::{self, Either};
use user_http_actors::Error;
use user_http_actors::codec::Format;
use user_http_actors::lease::NextMessage;
use uuid::Uuid;

use crate::http::delivery::{self, DeliveryBody, LengthOnly, Source};
use crate::http::error::Failure;
use crate::http::{Gateway, request};

/// The longest `wait`, in seconds. Fixed by the wire contract.
const MAX_WAIT: f64 = 60.0;

/// The default of `lease`, in seconds. Fixed by the wire contract.
const DEFAULT_LEASE: f64 = 60.0;

/// The longest `lease`, in seconds: a client that has not deleted the message after a day has failed.
const MAX_LEASE: f64 = 86_400.0;

/// `GET /UserManager/NextMessage?wait=S&lease=S`: leases the oldest message that is not leased, and returns it. With
/// `lease=0` it is returned without a lease. `HEAD` is answered as `GET` with `lease=0`.
pub async fn next_message(request: HttpRequest, gateway: web::Data<Gateway>) -> HttpResponse {
    lease_next(&request, &gateway).await.unwrap_or_else(Failure::json)
}

async fn lease_next(request: &HttpRequest, gateway: &Gateway) -> Result<HttpResponse, Failure> {
    let wait = seconds(request, "wait", 0.0, 0.0, MAX_WAIT)?;
    let lease = seconds(request, "lease", DEFAULT_LEASE, 0.0, MAX_LEASE)?;
    let is_head = request.method() == Method::HEAD;
    let lease = if is_head { Duration::ZERO } else { lease };
    let next = pin!(gateway.actors.next_message(lease, wait));
    let taken = match future::select(next, pin!(request::hung_up(request))).await {
        Either::Left((next, _)) => next?,
        // If a message arrives now, its lease is dropped, which releases it.
        Either::Right(_) => None,
    };
    let Some(NextMessage { message_id, format, payload, delivery_count, lease }) = taken else {
        return Ok(delivery::response().status(StatusCode::NO_CONTENT).finish());
    };
    let mut response = delivery::response();
    response.insert_header(("Message-Id", message_id.to_string()));
    response.insert_header(("Delivery-Count", delivery_count.to_string()));
    match format {
        Format::Json => response.content_type("application/json"),
        Format::Pickle => response.content_type("application/octet-stream").insert_header(("DATA_FORMAT", "BYTES")),
    };
    let len = payload.len();
    if is_head {
        return Ok(response.body(LengthOnly(len)));
    }
    let source = Source::Payload(payload, 0, len);
    Ok(response.body(DeliveryBody::new(request, gateway.limits, vec![source], 0..len, lease)))
}

fn seconds(request: &HttpRequest, name: &str, default: f64, min: f64, max: f64) -> Result<Duration, Failure> {
    let seconds = match request::query_values(request, name).as_slice() {
        [] => Some(default),
        [value] => value.parse().ok().filter(|seconds| (min..=max).contains(seconds)),
        _ => None,
    };
    let wrong =
        || Failure::bad_request(format!("{name} must be given once, as a number of seconds from {min} to {max}"));
    seconds.map(Duration::from_secs_f64).ok_or_else(wrong)
}

/// `DELETE /UserManager/Messages/{Message-Id}`: removes a message that the user manager has processed.
pub async fn delete_message(id: web::Path<String>, gateway: web::Data<Gateway>) -> HttpResponse {
    delete(&id, &gateway).await.unwrap_or_else(Failure::json)
}

async fn delete(id: &str, gateway: &Gateway) -> Result<HttpResponse, Failure> {
    let reply = gateway.actors.delete_message(message_id(id)).await;
    found(reply, "message", id)?;
    Ok(HttpResponse::NoContent().finish())
}

/// The id in a path. A text that is not an id becomes the nil id, which no message has, so that the actor decides
/// whether the answer is 404 or, with a broker, 409.
pub fn message_id(id: &str) -> Uuid {
    Uuid::try_parse(id).unwrap_or(Uuid::nil())
}

/// Converts the reply of an actor. If there is no such message, the failure names `what` is missing.
pub fn found(reply: Result<(), Error>, what: &str, id: &str) -> Result<(), Failure> {
    reply.map_err(|error| match error {
        Error::NoSuchMessage => Failure::not_found(format!("there is no {what} {id:?}")),
        error => error.into(),
    })
}
