//! Receives the body of a request within the limits: a short one into memory, a long one into a file.

use actix_web::error::PayloadError;
use actix_web::http::header;
use actix_web::{HttpRequest, web};
use bytes::Bytes;
use futures::StreamExt;
use tokio::time::{Instant, timeout_at};
use user_http_actors::body_file::BodyDirectory;
use user_http_actors::codec::Body;

use crate::http::Gateway;
use crate::http::error::Failure;
use crate::http::limits::Pace;

mod memory;
mod upload;

use memory::MemoryBody;
use upload::Upload;

/// A longer body, in bytes, goes into a file while it arrives: most frames are longer, and a small message should not
/// cost a file of its own. Not chosen by measurement yet.
const MAX_IN_MEMORY: u64 = 1 << 20;

/// What has been received of a body.
enum Received<'a> {
    InMemory(MemoryBody<'a>),
    InFile(Upload<'a>),
}

/// Receives the whole body. A long one goes into a file in `directory`, if there is one.
///
/// # Errors
/// 413 as soon as the body is known to exceed the limit, 415 if it has a content encoding, 503 if `max_inflight` or
/// `max_upload_space` is reached or the disk is full, 408 if it is too slow, 400 if it breaks off. Nothing of it is
/// left then.
pub async fn read(
    request: &HttpRequest,
    mut payload: web::Payload,
    gateway: &Gateway,
    directory: Option<&BodyDirectory>,
) -> Result<Body, Failure> {
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
    let mut body = match directory {
        Some(directory) if declared.is_some_and(|declared| declared > MAX_IN_MEMORY) => {
            Received::InFile(Upload::create(directory, gateway, declared).await?)
        }
        _ => Received::InMemory(MemoryBody::new(gateway, declared)?),
    };
    let mut received = 0;
    let mut pace = Pace::new(limits, Instant::now());
    loop {
        let next = timeout_at(pace.end, payload.next()).await;
        if !pace.is_kept(Instant::now()) {
            return Err(Failure::too_slow(limits.min_transfer_rate));
        }
        let Ok(next) = next else { continue };
        let Some(chunk) = next else { break };
        let chunk = chunk.map_err(|error| broken_off(&error))?;
        received += chunk.len() as u64;
        if received > limit {
            return Err(Failure::too_large(limit));
        }
        pace.add(chunk.len() as u64);
        let adding = Instant::now();
        body = body.add(chunk, received, directory, gateway).await?;
        // a slow disk is not the client's fault
        pace.pause(adding.elapsed());
    }
    match body {
        Received::InMemory(body) => Ok(Body::Memory(body.finish())),
        Received::InFile(upload) => upload.finish().await.map(Body::from),
    }
}

impl<'a> Received<'a> {
    /// Adds a chunk, after which there are `received` bytes. A body of unknown length may turn out to be long.
    async fn add(
        self,
        chunk: Bytes,
        received: u64,
        directory: Option<&BodyDirectory>,
        gateway: &'a Gateway,
    ) -> Result<Self, Failure> {
        let mut upload = match (self, directory) {
            (Self::InFile(upload), _) => upload,
            (Self::InMemory(body), Some(directory)) if received > MAX_IN_MEMORY => {
                let mut upload = Upload::create(directory, gateway, None).await?;
                upload.append(body.finish()).await?;
                upload
            }
            (Self::InMemory(mut body), _) => {
                body.append(chunk)?;
                return Ok(Self::InMemory(body));
            }
        };
        upload.append(chunk).await?;
        Ok(Self::InFile(upload))
    }
}

fn broken_off(error: &PayloadError) -> Failure {
    Failure::bad_request(match error {
        PayloadError::Incomplete(_) => "the body broke off: the connection ended before its last byte".to_owned(),
        error => format!("the body cannot be read: {error}"),
    })
}
