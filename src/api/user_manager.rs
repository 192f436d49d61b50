//! The routes for a user manager who comes for its messages, where there is no broker.

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

/// How long a request may wait for a message, in seconds: the contract's bound.
const MAX_WAIT: f64 = 60.0;

/// How long a message is lent when nothing is said, in seconds: the contract's default.
const DEFAULT_LEASE: f64 = 60.0;

/// How long a message may be lent, in seconds: a day, after which whoever took it is not coming back.
const MAX_LEASE: f64 = 86_400.0;

/// `GET /UserManager/NextMessage?wait=S&lease=S`: lends the oldest message that nobody else has; with `lease=0` it only shows
/// it. `HEAD` tells what `GET` with `lease=0` would.
pub async fn next_message(request: HttpRequest, gateway: web::Data<Gateway>) -> HttpResponse {
    lend(&request, &gateway).await.unwrap_or_else(Failure::json)
}

async fn lend(request: &HttpRequest, gateway: &Gateway) -> Result<HttpResponse, Failure> {
    let wait = seconds(request, "wait", 0.0, 0.0, MAX_WAIT)?;
    let lease = seconds(request, "lease", DEFAULT_LEASE, 0.0, MAX_LEASE)?;
    let only_head = request.method() == Method::HEAD;
    let lease = if only_head { Duration::ZERO } else { lease };
    let next = pin!(gateway.actors.next_message(lease, wait));
    let taken = match future::select(next, pin!(request::hung_up(request))).await {
        Either::Left((next, _)) => next?,
        // a message that comes now is offered again by its lease
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
    if only_head {
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
    let wrong = || Failure::bad_request(format!("{name} is a number of seconds from {min} to {max}, given once"));
    seconds.map(Duration::from_secs_f64).ok_or_else(wrong)
}

/// `DELETE /UserManager/Messages/{Message-Id}`: the message is done with.
pub async fn delete_message(id: web::Path<String>, gateway: web::Data<Gateway>) -> HttpResponse {
    delete(&id, &gateway).await.unwrap_or_else(Failure::json)
}

async fn delete(id: &str, gateway: &Gateway) -> Result<HttpResponse, Failure> {
    let reply = gateway.actors.delete_message(message_id(id)).await;
    found(reply, "message", id)?;
    Ok(HttpResponse::NoContent().finish())
}

/// The id in a path. One that is none is asked for all the same, as that of no message: the answer may be another.
pub fn message_id(id: &str) -> Uuid {
    Uuid::try_parse(id).unwrap_or(Uuid::nil())
}

/// Names what there is none of, where that is the reply.
pub fn found(reply: Result<(), Error>, what: &str, id: &str) -> Result<(), Failure> {
    reply.map_err(|error| match error {
        Error::NoSuchMessage => Failure::not_found(format!("there is no {what} {id:?}")),
        error => error.into(),
    })
}
