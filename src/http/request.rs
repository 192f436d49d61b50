//! What a request says: its body, how that is written, and its query.

use std::future;

use actix_web::error::PayloadError;
use actix_web::http::header::{self, HeaderMap};
use actix_web::{HttpMessage, HttpRequest, web};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::time::{Instant, timeout_at};
use user_http_actors::codec::Format;

use crate::connection::Client;
use crate::http::Gateway;
use crate::http::error::Failure;
use crate::http::limits::{Held, Pace};

/// How much is reserved for a body at once, whatever its sender says that its length will be.
const RESERVED: u64 = 1 << 20;

/// How the body is written: a pickle under `application/octet-stream`, else JSON.
pub fn format(headers: &HeaderMap) -> Format {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if media_type.eq_ignore_ascii_case("application/octet-stream") { Format::Pickle } else { Format::Json }
}

/// A whole body; its bytes count as held in memory until this is dropped.
pub struct Body {
    pub bytes: Bytes,
    _held: Held,
}

/// Reads the whole body.
///
/// # Errors
/// 413 as soon as it is known to be longer than the limit, 415 where it is encoded, 503 where there is no memory for
/// it, 408 where it comes too slowly, 400 where it breaks off.
pub async fn body(request: &HttpRequest, mut payload: web::Payload, gateway: &Gateway) -> Result<Body, Failure> {
    let limits = &gateway.limits;
    let limit = limits.max_body;
    let headers = request.headers();
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return Err(Failure::encoded(&String::from_utf8_lossy(encoding.as_bytes())));
    }
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|declared| declared > limit) {
        return Err(Failure::too_large(limit));
    }
    let mut held = gateway.inflight.hold();
    if !held.fits(declared.unwrap_or(0), limits.max_inflight) {
        return Err(Failure::no_memory());
    }
    let mut pace = Pace::new(limits, Instant::now());
    let mut first = None;
    let mut body = BytesMut::new();
    loop {
        let next = timeout_at(pace.end, payload.next()).await;
        if !pace.is_kept(Instant::now()) {
            return Err(Failure::too_slow(limits.min_transfer_rate));
        }
        let Ok(next) = next else { continue };
        let Some(chunk) = next else { break };
        let read = first.as_ref().map_or(0, Bytes::len) + body.len();
        let chunk = chunk.map_err(|error| broken_off(&error))?;
        if (read + chunk.len()) as u64 > limit {
            return Err(Failure::too_large(limit));
        }
        pace.add(chunk.len() as u64);
        if !held.grow(chunk.len() as u64, limits.max_inflight) {
            return Err(Failure::no_memory());
        }
        // a body that comes in one piece is not copied
        if read == 0 {
            first = Some(chunk);
            continue;
        }
        if let Some(first) = first.take() {
            let needed = read + chunk.len();
            body.reserve(declared.map_or(needed, |declared| declared.min(RESERVED) as usize).max(needed));
            body.extend_from_slice(&first);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Body { bytes: first.unwrap_or_else(|| body.freeze()), _held: held })
}

fn broken_off(error: &PayloadError) -> Failure {
    Failure::bad_request(match error {
        PayloadError::Incomplete(_) => "the body broke off: the connection ended before its last byte".to_owned(),
        error => format!("the body cannot be read: {error}"),
    })
}

/// The values of a parameter of the query, decoded, in their order.
pub fn query_values(request: &HttpRequest, name: &str) -> Vec<String> {
    let query = web::Query::<Vec<(String, String)>>::from_query(request.query_string());
    let pairs = query.map(web::Query::into_inner).unwrap_or_default();
    pairs.into_iter().filter(|(key, _)| key == name).map(|(_, value)| value).collect()
}

/// Resolves when the client of `request` has closed its sending side, or its connection is broken: it waits no longer.
///
/// In the server of an application that mounts the routes it never does: there the handler is dropped instead.
pub async fn hung_up(request: &HttpRequest) {
    let client = request.extensions().get::<Client>().cloned();
    match client {
        Some(client) => client.hung_up().await,
        None => future::pending().await,
    }
}
