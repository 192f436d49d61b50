//! The streaming answer: a message from memory and files, whose delivery is complete with its last byte.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use actix_web::body::{BodySize, MessageBody};
use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder};
use bytes::Bytes;
use tokio::task::JoinHandle;
use user_http_actors::blend::BlendFile;
use user_http_actors::lease::{BufferLease, OutboxLease, Term};
use user_http_actors::payload::Payload;

use crate::http::Gateway;
use crate::http::error::Failure;
use crate::http::limits::Limits;
use crate::http::range::{self, Selected};
use crate::http::slow_reader::ReaderWatch;
use crate::status::{InProgress, Sent};

/// A message of at most this many bytes is sent as a single chunk, which usually fits into the socket's buffer.
pub const MAX_SINGLE_WRITE: u64 = 64 << 10;

/// How many bytes a disk thread reads from a file at once. Streaming 1 GiB over loopback: 0.8 GB/s with 64 KiB, 1.5
/// with 256 KiB, 2.7 with 1 MiB. Each stream has two such chunks in memory: one being sent and one being read.
const CHUNK: usize = 1 << 20;

/// How many bytes are read at once from the page cache, on the event loop. From 128 KiB to 1 MiB a single download
/// gets faster (0.9 to 1.2 times nginx), but other requests wait longer: with eight downloads their median latency is
/// 0.7 ms with 128 KiB, 1.2 ms with 512 KiB, 3.0 ms with 1 MiB.
const CACHED_CHUNK: usize = 512 << 10;

/// How many bytes at the end of a message in a shared database are held back until its lease has just been confirmed.
/// The kernel sends the bytes that it has even while the gateway is frozen, so these must be a part of the message
/// that the worker notices the lack of, and no more.
const HELD_BACK: u64 = 64 << 10;

/// The source of a part of an answer.
#[derive(Clone, Debug)]
pub enum Source {
    /// A few bytes in memory.
    Bytes(Bytes),
    /// The bytes between two offsets of a stored body.
    Payload(Payload, u64, u64),
    /// A whole .blend file.
    Blend(Arc<BlendFile>),
}

impl Source {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Payload(_, start, end) => end - start,
            Self::Blend(file) => file.len(),
        }
    }

    fn may_block(&self) -> bool {
        match self {
            Self::Bytes(_) => false,
            Self::Payload(payload, ..) => !payload.is_in_memory(),
            Self::Blend(_) => true,
        }
    }

    /// Reads what needs no wait for the disk; see [`BlendFile::read_cached`].
    fn read_cached(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Bytes(_) => Ok(0),
            Self::Payload(payload, start, end) => {
                let len = (end - start - offset).min(buffer.len() as u64) as usize;
                Ok(payload.read_cached(start + offset, &mut buffer[..len]))
            }
            Self::Blend(file) => file.read_cached(offset, buffer),
        }
    }

    /// Reads bytes and payloads. Blocks, if they are not in memory.
    fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.slice(offset as usize..offset as usize + len)),
            Self::Payload(payload, start, _) => payload.read(start + offset, len),
            Self::Blend(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Reads from the disk on a thread that may block: a .blend file on the threads of its blend root, so that a file
    /// server that does not answer blocks no other root. A database needs no thread.
    fn read_from_disk(self, offset: u64, len: usize) -> JoinHandle<io::Result<Bytes>> {
        match self {
            Self::Blend(file) => tokio::spawn(file.read(offset, len)),
            Self::Payload(Payload::Database(body), start, _) => tokio::spawn(body.read(start + offset, len)),
            source => tokio::task::spawn_blocking(move || source.read(offset, len)),
        }
    }
}

/// The total length of the parts in bytes.
pub fn total_len(sources: &[Source]) -> u64 {
    sources.iter().map(Source::len).sum()
}

/// The start of an answer that delivers a message or describes one. Proxies must not cache it, or buffer it, because
/// bytes that a proxy has accepted count as delivered.
pub fn response() -> HttpResponseBuilder {
    let mut response = HttpResponse::Ok();
    response.insert_header((header::CACHE_CONTROL, "no-store")).insert_header(("X-Accel-Buffering", "no"));
    response
}

/// The part of `what`, of `len` bytes, that `request` asks for. Makes `response` a 206 if it is not the whole.
///
/// # Errors
/// 416 if the part starts after the end.
pub fn select(
    request: &HttpRequest,
    response: &mut HttpResponseBuilder,
    what: &str,
    len: u64,
    etag: &str,
) -> Result<Range<u64>, Failure> {
    match range::select(request.headers(), len, etag) {
        Selected::Whole => Ok(0..len),
        Selected::Part { start, end } => {
            response.status(StatusCode::PARTIAL_CONTENT);
            response.insert_header((header::CONTENT_RANGE, format!("bytes {start}-{}/{len}", end - 1)));
            Ok(start..end)
        }
        Selected::Nothing => Err(Failure::range_not_satisfiable(what, len)),
    }
}

/// A lease, as needed by the body of an answer. Dropping it releases the message.
pub trait Lease: Unpin + 'static {
    /// How long the lease lasts, if somebody else may have the message after that.
    fn term(&self) -> Option<&Arc<Term>> {
        None
    }

    /// The last chunk is about to be handed to the connection.
    fn finishing(&self);
    /// The socket has accepted this many more bytes.
    fn handed_over(&mut self, bytes: u64);
    /// The socket has accepted the whole answer.
    fn complete(self);
    /// The message cannot be read.
    fn unreadable(self, error: &io::Error);
}

impl Lease for BufferLease {
    fn term(&self) -> Option<&Arc<Term>> {
        BufferLease::term(self)
    }

    fn finishing(&self) {
        BufferLease::finishing(self);
    }

    fn handed_over(&mut self, bytes: u64) {
        BufferLease::handed_over(self, bytes);
    }

    fn complete(self) {
        if self.completes() {
            self.delivered();
        }
    }

    /// The message is released: the next request may be able to read it, and no other message waits behind it.
    fn unreadable(self, _: &io::Error) {}
}

impl Lease for OutboxLease {
    fn finishing(&self) {}

    fn handed_over(&mut self, _: u64) {}

    fn complete(self) {
        self.delivered();
    }

    fn unreadable(self, error: &io::Error) {
        let _is_parked = OutboxLease::unreadable(self, error);
    }
}

/// A lease whose delivery the status page shows.
pub struct Shown<L> {
    lease: L,
    shown: InProgress,
}

impl<L> Shown<L> {
    /// The answer to `request` sends `total` bytes of the message or file with this id.
    pub fn new(lease: L, gateway: &Gateway, request: &HttpRequest, what: Sent, id: &str, total: u64) -> Self {
        Self { lease, shown: gateway.status.deliveries().begin(what, id, total, request.peer_addr()) }
    }
}

impl<L: Lease> Lease for Shown<L> {
    fn term(&self) -> Option<&Arc<Term>> {
        self.lease.term()
    }

    fn finishing(&self) {
        self.lease.finishing();
    }

    fn handed_over(&mut self, bytes: u64) {
        self.shown.add(bytes);
        self.lease.handed_over(bytes);
    }

    fn complete(self) {
        self.lease.complete();
    }

    fn unreadable(self, error: &io::Error) {
        self.lease.unreadable(error);
    }
}

/// The lease of an answer that delivers no message. Holds its value until the answer ends.
pub struct NoLease<T>(pub T);

impl<T: Unpin + 'static> Lease for NoLease<T> {
    fn finishing(&self) {}

    fn handed_over(&mut self, _: u64) {}

    fn complete(self) {}

    fn unreadable(self, _: &io::Error) {}
}

/// The body of an answer that delivers a message, or a file.
pub struct DeliveryBody<L> {
    sources: VecDeque<Source>,
    /// The offset of the next chunk in the first source.
    offset: u64,
    /// How many bytes are still to be handed over, including those being read.
    left: u64,
    /// The length of the last chunk until the socket has accepted it, then 0.
    unconfirmed: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    /// Whether the page cache does not have the next bytes, so that a thread reads them.
    uncached: bool,
    /// The previous chunk, whose memory is reused after the connection has dropped it.
    last: Bytes,
    /// Yields to the other connections of the thread.
    pause: Option<Pin<Box<dyn Future<Output = ()>>>>,
    /// Resolves when the lease is confirmed, or over.
    confirming: Option<Pin<Box<dyn Future<Output = ()>>>>,
    /// `None` after the end of the delivery.
    lease: Option<L>,
    watch: Option<ReaderWatch>,
}

impl<L: Lease> DeliveryBody<L> {
    /// Answers `request` with the bytes `start..end` of `sources`. A client that reads them more slowly than `limits`
    /// allow is disconnected.
    pub fn new(
        request: &HttpRequest,
        limits: Limits,
        sources: Vec<Source>,
        Range { start, end }: Range<u64>,
        lease: L,
    ) -> Self {
        let watch = ReaderWatch::start(request, limits);
        let mut sources = VecDeque::from(sources);
        let mut offset = start;
        while let Some(first) = sources.front()
            && first.len() <= offset
        {
            offset -= first.len();
            sources.pop_front();
        }
        Self {
            sources,
            offset,
            left: end - start,
            unconfirmed: 0,
            reading: None,
            uncached: false,
            last: Bytes::new(),
            pause: None,
            confirming: None,
            lease: Some(lease),
            watch,
        }
    }

    /// Whether reading the next chunk may block; false at the end.
    fn would_block(&mut self) -> bool {
        while self.sources.front().is_some_and(|first| first.len() == self.offset) {
            self.sources.pop_front();
            self.offset = 0;
        }
        self.sources.front().is_some_and(Source::may_block)
    }

    /// The next chunk as far as the page cache has it; `None` if it has nothing.
    fn cached_chunk(&mut self) -> io::Result<Option<Bytes>> {
        let Some(source) = self.sources.front().filter(|_| !self.uncached) else { return Ok(None) };
        let len = (source.len() - self.offset).min(self.before_the_end()).min(CACHED_CHUNK as u64) as usize;
        let mut buffer = std::mem::take(&mut self.last).try_into_mut().unwrap_or_default();
        buffer.resize(len, 0);
        let read = source.read_cached(self.offset, &mut buffer)?;
        if read == 0 {
            self.uncached = true;
            return Ok(None);
        }
        buffer.truncate(read);
        self.offset += read as u64;
        self.last = buffer.freeze();
        if self.left > read as u64 {
            self.pause = Some(Box::pin(tokio::task::yield_now()));
        }
        Ok(Some(self.last.clone()))
    }

    /// Starts reading the next chunk on another thread.
    fn read_ahead(&mut self) {
        self.reading = self.next_chunk().map(|(source, offset, len)| source.read_from_disk(offset, len));
    }

    /// Reads the next chunk from memory.
    fn read_now(&mut self) -> io::Result<Bytes> {
        let (source, offset, len) = self.next_chunk().ok_or(io::ErrorKind::UnexpectedEof)?;
        source.read(offset, len)
    }

    /// The source, offset and length of the next chunk.
    fn next_chunk(&mut self) -> Option<(Source, u64, usize)> {
        let source = self.sources.front()?.clone();
        let offset = self.offset;
        let len = (source.len() - offset).min(self.before_the_end()).min(CHUNK as u64) as usize;
        self.offset += len as u64;
        Some((source, offset, len))
    }

    fn term(&self) -> Option<&Arc<Term>> {
        self.lease.as_ref()?.term()
    }

    /// How many bytes the next chunk may have: what is held back begins with a chunk of its own.
    fn before_the_end(&self) -> u64 {
        let held_back = if self.term().is_some() { HELD_BACK } else { 0 };
        match self.left.checked_sub(held_back) {
            Some(before) if before > 0 => before,
            _ => self.left,
        }
    }

    /// Whether the next chunk may be handed over, as far as the lease is concerned.
    fn poll_lease(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        const LAPSED: &str = "the lease is over: the database has not renewed it, or another gateway has the message";
        let Some(term) = self.term().cloned() else { return Poll::Ready(Ok(())) };
        if self.confirming.is_none() && self.left <= HELD_BACK && !term.may_end() {
            let term = Arc::clone(&term);
            self.confirming = Some(Box::pin(async move {
                term.confirm().await;
            }));
        }
        if let Some(confirming) = &mut self.confirming {
            ready!(confirming.as_mut().poll(cx));
            self.confirming = None;
        }
        // it may have ended since it was confirmed
        if term.holds() { Poll::Ready(Ok(())) } else { Poll::Ready(Err(io::Error::other(LAPSED))) }
    }

    fn hand_over(&mut self, chunk: Bytes) -> Bytes {
        self.left -= chunk.len() as u64;
        self.unconfirmed = chunk.len() as u64;
        if let Some(watch) = &self.watch {
            watch.hand_over(chunk.len() as u64);
        }
        if self.left == 0 {
            self.lease.iter().for_each(Lease::finishing);
        }
        chunk
    }

    fn break_off(&mut self, error: io::Error) -> io::Error {
        log::warn!("delivery broken off: {error}");
        self.lease.take().into_iter().for_each(|lease| lease.unreadable(&error));
        error
    }
}

impl<L: Lease> MessageBody for DeliveryBody<L> {
    type Error = io::Error;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.left)
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let this = self.get_mut();
        // A poll for the next chunk means that the socket has accepted the previous one.
        let taken = std::mem::take(&mut this.unconfirmed);
        this.lease.iter_mut().for_each(|lease| lease.handed_over(taken));
        if this.left == 0 {
            this.lease.take().into_iter().for_each(Lease::complete);
            return Poll::Ready(None);
        }
        if let Some(pause) = &mut this.pause {
            ready!(pause.as_mut().poll(cx));
            this.pause = None;
        }
        if let Err(error) = ready!(this.poll_lease(cx)) {
            return Poll::Ready(Some(Err(this.break_off(error))));
        }
        if this.reading.is_none() && this.would_block() {
            match this.cached_chunk() {
                Ok(Some(chunk)) => return Poll::Ready(Some(Ok(this.hand_over(chunk)))),
                Ok(None) => this.read_ahead(),
                Err(error) => return Poll::Ready(Some(Err(this.break_off(error)))),
            }
        }
        let chunk = match &mut this.reading {
            None => this.read_now(),
            Some(reading) => {
                let chunk = ready!(Pin::new(reading).poll(cx));
                this.reading = None;
                // The runtime stops. This is not an error of the message.
                chunk.unwrap_or_else(|stopped| Err(io::Error::new(io::ErrorKind::Interrupted, stopped)))
            }
        };
        Poll::Ready(Some(match chunk {
            Ok(chunk) => {
                let chunk = this.hand_over(chunk);
                if this.left > 0 && this.uncached && this.would_block() {
                    // Reads the next chunk while this one is sent.
                    this.read_ahead();
                }
                Ok(chunk)
            }
            Err(error) => Err(this.break_off(error)),
        }))
    }
}

/// The body of an answer to `HEAD`: only its length.
pub struct LengthOnly(pub u64);

impl MessageBody for LengthOnly {
    type Error = std::convert::Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.0)
    }

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Poll::Ready(None)
    }
}
