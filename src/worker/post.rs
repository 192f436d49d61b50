//! `POST /`: a worker sends a message for the user manager.

use std::time::{SystemTime, UNIX_EPOCH};

use actix_web::{HttpMessage, HttpRequest, HttpResponse, web};
use serde::Serialize;
use user_http_actors::metrics::Refusal;
use user_http_actors::{Accepted, RequestKey};

use crate::auth::Bearer;
use crate::http::digest::Algorithm;
use crate::http::error::Failure;
use crate::http::{Gateway, body, request};
use crate::worker::idempotency::{self, REPLAYED};

/// The body of the answer.
#[derive(Serialize)]
struct Received {
    #[serde(rename = "DATA")]
    data: &'static str,
    #[serde(rename = "TIME")]
    time: f64,
}

/// `POST /`: receives a message from a worker.
pub async fn send_data_to_server(
    request: HttpRequest,
    payload: web::Payload,
    gateway: web::Data<Gateway>,
) -> HttpResponse {
    receive(&request, payload, &gateway).await.unwrap_or_else(Failure::json)
}

async fn receive(request: &HttpRequest, payload: web::Payload, gateway: &Gateway) -> Result<HttpResponse, Failure> {
    let key = idempotency::key(request.headers())
        .inspect_err(|_| gateway.actors.count_refused_user_message(Refusal::Malformed))?;
    let algorithms: &[Algorithm] = if key.is_some() { &[Algorithm::Sha256] } else { &[] };
    let read = body::read_hashed(request, payload, gateway, gateway.actors.outbox_bodies(), algorithms).await;
    let (body, digests) = read.inspect_err(|failure| gateway.actors.count_refused_user_message(failure.refusal()))?;
    let key = key.zip(digests.sha256()).map(|(key, body_sha256)| RequestKey { key, body_sha256 });
    let bearer = request.extensions().get::<Bearer>().cloned().unwrap_or_default();
    let format = request::format(request.headers());
    let accepted = gateway.actors.handle_user_message(bearer.user_id.as_deref(), format, body, key).await?;
    let mut response = HttpResponse::Ok();
    let time = match accepted {
        Accepted::Unkeyed => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
        Accepted::First { at_ms } => seconds(at_ms),
        Accepted::Replayed { at_ms } => {
            response.insert_header((REPLAYED, "true"));
            seconds(at_ms)
        }
    };
    Ok(response.json(Received { data: "RECEIVED", time }))
}

/// The same number at every replay.
fn seconds(milliseconds: u64) -> f64 {
    milliseconds as f64 / 1_000.0
}
