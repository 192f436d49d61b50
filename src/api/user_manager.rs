//! The routes with which the user manager fetches its messages if there is no broker.

use std::time::Duration;

use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, web};
use user_http_actors::Error;
use user_http_actors::codec::Format;
use user_http_actors::lease::NextMessage;
use uuid::Uuid;

use crate::http::Gateway;
use crate::http::delivery::{self, DeliveryBody, LengthOnly, Source};
use crate::http::error::Failure;
use crate::http::request::{self, MAX_WAIT, Notation, Query};

/// The default of `lease`. Fixed by the wire contract.
const DEFAULT_LEASE: Duration = Duration::from_secs(60);

/// The longest `lease`, in seconds: a client that has not deleted the message after a day has failed.
const MAX_LEASE: u32 = 86_400;

/// `GET /UserManager/NextMessage?wait=S&lease=S`: leases the oldest message that is not leased, and returns it. With
/// `lease=0` it is returned without a lease. `HEAD` is answered as `GET` with `lease=0`.
pub async fn next_message(request: HttpRequest, gateway: web::Data<Gateway>) -> HttpResponse {
    lease_next(&request, &gateway).await.unwrap_or_else(Failure::json)
}

async fn lease_next(request: &HttpRequest, gateway: &Gateway) -> Result<HttpResponse, Failure> {
    let query = Query::of(request);
    let wait = query.seconds("wait", MAX_WAIT, Notation::Float)?.unwrap_or_default();
    let lease = query.seconds("lease", MAX_LEASE, Notation::Float)?.unwrap_or(DEFAULT_LEASE);
    let is_head = request.method() == Method::HEAD;
    let lease = if is_head { Duration::ZERO } else { lease };
    // the drop of a message that nobody waits for any more releases its lease
    let taking = next_readable(gateway, lease, wait);
    let taken = request::wait_unless_hung_up(request, wait, taking).await.transpose()?.flatten();
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

/// The next message that can be read, and that matches its checksum.
async fn next_readable(gateway: &Gateway, lease: Duration, wait: Duration) -> Result<Option<NextMessage>, Error> {
    while let Some(mut next) = gateway.actors.next_message(lease, wait).await? {
        match next.payload.verified(&gateway.hashing).await {
            Ok(payload) => {
                next.payload = payload;
                return Ok(Some(next));
            }
            // it is parked, and another one is next
            Err(error) if next.lease.unreadable(&error) => {}
            Err(error) => {
                log::error!("message {} for the user manager cannot be read: {error}", next.message_id);
                return Err(Error::Unreadable);
            }
        }
    }
    Ok(None)
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
