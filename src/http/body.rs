//! Receives the body of a request within the limits: a short one into memory, a long one into a file.

use actix_web::error::PayloadError;
use actix_web::http::header;
use actix_web::{HttpRequest, web};
use bytes::Bytes;
use futures::StreamExt;
use tokio::task::{spawn_blocking, yield_now};
use tokio::time::{Instant, timeout_at};
use user_http_actors::Error;
use user_http_actors::body_file::BodyDirectory;
use user_http_actors::codec::Body;

use crate::http::Gateway;
use crate::http::digest::{Algorithm, Digests, Expected, Hasher};
use crate::http::error::Failure;
use crate::http::limits::Pace;

mod memory;
mod upload;

use memory::MemoryBody;
use upload::Upload;

/// A longer body, in bytes, goes into a file while it arrives. In a file, a frame of 256 KiB took 984 µs of processor
/// time up to the broker's confirm, in memory 512 µs; a frame of just over 1 MiB 3,100 µs and 2,760 µs
/// (`benches/broker.rs` with frames of these sizes and limits of 64 KiB, 1 MiB and 16 MiB). A higher limit would gain
/// little more, and would let fewer uploads into the memory of `--max-inflight`.
const MAX_IN_MEMORY: u64 = 1 << 20;

/// After so many bytes the other connections of the thread have their turn, although more is there: as many as an
/// answer sends from the page cache at a time.
const YIELD_AFTER: u64 = 512 << 10;

/// A body in memory of at most this length, in bytes, is hashed on the event loop: 17 µs for SHA-256 with the
/// processor's SHA instructions (1 GiB takes 1.1 s), which is about as long as two thread switches.
const MAX_HASHED_IN_PLACE: usize = 16 << 10;

/// What has been received of a body.
enum Received<'a> {
    /// With what will compute its digests.
    InMemory(MemoryBody<'a>, Hasher),
    InFile(Upload<'a>),
}

/// Receives the whole body. A long one goes into a file in `directory`, if there is one.
///
/// # Errors
/// 413 as soon as the body is known to exceed the limit, 415 if it has a content encoding, 503 if `max_inflight` or
/// `max_upload_space` is reached or the disk is full, 408 if it is too slow, 400 if it breaks off or does not have a
/// digest that the headers name. Nothing of it is left then.
pub async fn read(
    request: &HttpRequest,
    payload: web::Payload,
    gateway: &Gateway,
    directory: Option<&BodyDirectory>,
) -> Result<Body, Failure> {
    Ok(read_hashed(request, payload, gateway, directory, &[]).await?.0)
}

/// As [`read`]; also returns the digests of the body for these algorithms, which are computed while it arrives.
///
/// # Errors
/// As [`read`].
pub async fn read_hashed(
    request: &HttpRequest,
    mut payload: web::Payload,
    gateway: &Gateway,
    directory: Option<&BodyDirectory>,
    algorithms: &[Algorithm],
) -> Result<(Body, Digests), Failure> {
    let limits = &gateway.limits;
    let limit = limits.max_body;
    let headers = request.headers();
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return Err(Failure::content_encoding(&String::from_utf8_lossy(encoding.as_bytes())));
    }
    let expected = Expected::of(headers)?;
    let hasher = Hasher::of(expected.algorithms().chain(algorithms.iter().copied()));
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|declared| declared > limit) {
        return Err(Failure::too_large(limit));
    }
    let mut body = match directory {
        Some(directory) if declared.is_some_and(|declared| declared > MAX_IN_MEMORY) => {
            Received::InFile(Upload::create(directory, gateway, declared, hasher).await?)
        }
        _ => Received::InMemory(MemoryBody::new(gateway, declared)?, hasher),
    };
    let (mut received, mut unyielded) = (0, 0);
    let mut pace = Pace::new(limits, Instant::now());
    loop {
        let next = timeout_at(pace.end, payload.next()).await;
        if !pace.is_kept(Instant::now()) {
            return Err(Failure::too_slow(limits.min_transfer_rate));
        }
        let Ok(next) = next else { continue };
        let Some(chunk) = next else { break };
        let chunk = chunk.map_err(|error| broken_off(&error))?;
        let len = chunk.len() as u64;
        received += len;
        if received > limit {
            return Err(Failure::too_large(limit));
        }
        pace.add(len);
        let adding = Instant::now();
        body = body.add(chunk, received, directory, gateway).await?;
        unyielded += len;
        if unyielded >= YIELD_AFTER {
            unyielded = 0;
            yield_now().await;
        }
        // a slow disk is not the client's fault
        pace.pause(adding.elapsed());
    }
    let (body, digests) = match body {
        Received::InMemory(body, hasher) => {
            let body = body.finish();
            let digests = hash(hasher, body.clone()).await?;
            (Body::Memory(body), digests)
        }
        Received::InFile(upload) => {
            let (file, digests) = upload.finish().await?;
            (file.into(), digests)
        }
    };
    expected.check(&digests)?;
    Ok((body, digests))
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
            (Self::InMemory(body, hasher), Some(directory)) if received > MAX_IN_MEMORY => {
                let mut upload = Upload::create(directory, gateway, None, hasher).await?;
                upload.append(body.finish()).await?;
                upload
            }
            (Self::InMemory(mut body, hasher), _) => {
                body.append(chunk)?;
                return Ok(Self::InMemory(body, hasher));
            }
        };
        upload.append(chunk).await?;
        Ok(Self::InFile(upload))
    }
}

/// The digests of a body in memory; computed on another thread unless that is quick.
async fn hash(mut hasher: Hasher, body: Bytes) -> Result<Digests, Failure> {
    let is_quick = hasher.is_idle() || body.len() <= MAX_HASHED_IN_PLACE;
    let compute = move || {
        hasher.update(&body);
        hasher.finish()
    };
    if is_quick {
        return Ok(compute());
    }
    Ok(spawn_blocking(compute).await.map_err(|_| Error::Stopping)?)
}

fn broken_off(error: &PayloadError) -> Failure {
    Failure::bad_request(match error {
        PayloadError::Incomplete(_) => "the body broke off: the connection ended before its last byte".to_owned(),
        error => format!("the body cannot be read: {error}"),
    })
}
