//! Reads the body of a request within the limits.

use actix_web::error::PayloadError;
use actix_web::http::header;
use actix_web::{HttpRequest, web};
use bytes::Bytes;
use futures::StreamExt;
use tokio::time::{Instant, timeout_at};

use crate::http::Gateway;
use crate::http::error::Failure;
use crate::http::limits::{InflightPermit, Pace};

/// How much memory is reserved at once for a body of declared length, in bytes. A sender may declare more than it
/// sends.
const RESERVED: usize = 1 << 20;

/// A body with the permit for its memory.
struct Permitted<B> {
    content: B,
    _permit: InflightPermit,
}

impl<B: AsRef<[u8]>> AsRef<[u8]> for Permitted<B> {
    fn as_ref(&self) -> &[u8] {
        self.content.as_ref()
    }
}

/// Reads the whole body. The in-flight permit is part of the returned bytes: it counts until their last slice is
/// dropped, for a body that is on its way to the disk takes memory even if the client has hung up.
///
/// # Errors
/// 413 as soon as the body is known to exceed the limit, 415 if it has a content encoding, 503 if `max_inflight` is
/// reached, 408 if it is too slow, 400 if it breaks off.
pub async fn read(request: &HttpRequest, mut payload: web::Payload, gateway: &Gateway) -> Result<Bytes, Failure> {
    let limits = &gateway.limits;
    let limit = limits.max_body;
    let headers = request.headers();
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return Err(Failure::content_encoding(&String::from_utf8_lossy(encoding.as_bytes())));
    }
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|declared| declared > limit) {
        return Err(Failure::too_large(limit));
    }
    let mut permit = gateway.inflight.permit();
    if !permit.fits(declared.unwrap_or(0), limits.max_inflight) {
        return Err(Failure::too_much_inflight());
    }
    let mut pace = Pace::new(limits, Instant::now());
    let mut first = None;
    let mut body = Vec::new();
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
        // a body that arrives in one chunk is not copied
        if read == 0 {
            if !permit.grow_to(chunk.len() as u64, limits.max_inflight) {
                return Err(Failure::too_much_inflight());
            }
            first = Some(chunk);
            continue;
        }
        let needed = read + chunk.len();
        if body.capacity() < needed {
            let capacity = capacity(needed, body.capacity(), declared, limit);
            if !permit.grow_to(capacity as u64, limits.max_inflight) {
                return Err(Failure::too_much_inflight());
            }
            body.reserve_exact(capacity - body.len());
        }
        body.extend_from_slice(&first.take().unwrap_or_default());
        body.extend_from_slice(&chunk);
    }
    Ok(match first {
        Some(content) => Bytes::from_owner(Permitted { content, _permit: permit }),
        None => Bytes::from_owner(Permitted { content: body, _permit: permit }),
    })
}

/// The next capacity of a body that needs more memory: twice the current one, at most the length that the body can
/// have.
fn capacity(needed: usize, has: usize, declared: Option<u64>, limit: u64) -> usize {
    let least = if declared.is_some() { RESERVED } else { 0 };
    let most = usize::try_from(declared.unwrap_or(limit)).unwrap_or(usize::MAX);
    (2 * has).max(least).min(most).max(needed)
}

fn broken_off(error: &PayloadError) -> Failure {
    Failure::bad_request(match error {
        PayloadError::Incomplete(_) => "the body broke off: the connection ended before its last byte".to_owned(),
        error => format!("the body cannot be read: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::limits::Inflight;

    #[test]
    fn a_body_counts_until_its_last_slice_is_dropped() {
        let inflight = Inflight::default();
        let mut permit = inflight.permit();
        assert!(permit.grow_to(1_000, 1_000));
        let body = Bytes::from_owner(Permitted { content: vec![0; 1_000], _permit: permit });
        let part = body.slice(10..20);
        drop(body);
        assert!(!inflight.permit().fits(1, 1_000), "a slice is left");
        drop(part);
        assert!(inflight.permit().fits(1_000, 1_000));
    }

    #[test]
    fn a_body_gets_no_more_memory_than_it_will_need() {
        assert_eq!(capacity(40_000, 0, Some(700_000), 1 << 30), 700_000);
        assert_eq!(capacity(40_000, 0, Some(1 << 28), 1 << 30), RESERVED);
        assert_eq!(capacity(RESERVED + 1, RESERVED, Some(1 << 28), 1 << 30), 2 * RESERVED);
        assert_eq!(capacity((200 << 20) + 1, 200 << 20, Some(256 << 20), 1 << 30), 256 << 20);
        assert_eq!(capacity(40_000, 0, None, 1 << 30), 40_000);
        assert_eq!(capacity(60_000, 40_000, None, 70_000), 70_000);
    }
}
