//! The streaming answer: a message in parts, from memory and from files, whose delivery is settled by its last byte.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use actix_web::body::{BodySize, MessageBody};
use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder};
use bytes::Bytes;
use tokio::task::JoinHandle;
use user_http_actors::blend::BlendFile;
use user_http_actors::lease::{BufferLease, OutboxLease};
use user_http_actors::payload::Payload;

use crate::http::limits::Limits;
use crate::http::slow_reader::ReaderWatch;

/// A message of at most this many bytes is sent as a single chunk, which usually fits into the socket's buffer.
pub const MAX_SINGLE_WRITE: u64 = 64 << 10;

/// How many bytes of a file are read at once by a thread that waits for the disk. Streaming 1 GiB over loopback was
/// measured at 0.8 GB/s with 64 KiB, 1.5 with 256 KiB, 2.7 with 1 MiB; each stream holds two of them, one on its way out
/// and one being read.
const CHUNK: usize = 1 << 20;

/// How many bytes are read at once from the page cache, where no thread has to wait. Of 128 KiB to 1 MiB, the larger the
/// faster one download (0.9 to 1.2 of nginx), and the later others' requests get their turn: with eight downloads the
/// median is 0.7 ms with 128 KiB, 1.2 with this, 3.0 with 1 MiB.
const CACHED_CHUNK: usize = 512 << 10;

/// Where a part of an answer comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A few bytes.
    Bytes(Bytes),
    /// A stored body from an offset up to another.
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

    /// What can be had without waiting for the disk; see [`BlendFile::read_cached`].
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

    /// What is in memory.
    fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.slice(offset as usize..offset as usize + len)),
            Self::Payload(payload, start, _) => payload.read(start + offset, len),
            Self::Blend(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// What the disk has to be waited for, on threads that may wait: those of the blend root for a .blend file, so that
    /// a dead file server holds nobody else's.
    fn read_from_disk(self, offset: u64, len: usize) -> JoinHandle<io::Result<Bytes>> {
        match self {
            Self::Blend(file) => tokio::spawn(file.read(offset, len)),
            source => tokio::task::spawn_blocking(move || source.read(offset, len)),
        }
    }
}

/// The length of all parts together in bytes.
pub fn total_len(sources: &[Source]) -> u64 {
    sources.iter().map(Source::len).sum()
}

/// The start of an answer that delivers, or says what would be delivered: no proxy may keep it or take it in at once, since
/// what a proxy has taken counts as delivered.
pub fn response() -> HttpResponseBuilder {
    let mut response = HttpResponse::Ok();
    response.insert_header((header::CACHE_CONTROL, "no-store")).insert_header(("X-Accel-Buffering", "no"));
    response
}

/// The right to deliver: dropped, the message is offered again.
pub trait Lease: Unpin + 'static {
    /// The last chunk is about to be handed over.
    fn finishing(&self);
    /// So many bytes more are with the connection.
    fn handed_over(&mut self, bytes: u64);
    /// The whole answer is with the connection.
    fn over(self);
    /// The message could not be read.
    fn unreadable(self, error: &io::Error);
}

impl Lease for BufferLease {
    fn finishing(&self) {
        BufferLease::finishing(self);
    }

    fn handed_over(&mut self, bytes: u64) {
        BufferLease::handed_over(self, bytes);
    }

    fn over(self) {
        if self.completes() {
            self.delivered();
        }
    }

    /// Nobody waits behind it: it is offered again to whoever asks for it.
    fn unreadable(self, _: &io::Error) {}
}

impl Lease for OutboxLease {
    fn finishing(&self) {}

    fn handed_over(&mut self, _: u64) {}

    fn over(self) {
        self.delivered();
    }

    fn unreadable(self, error: &io::Error) {
        OutboxLease::unreadable(self, error);
    }
}

/// The body of an answer that delivers a message.
pub struct DeliveryBody<L> {
    sources: VecDeque<Source>,
    /// Where the next chunk starts in the first source.
    offset: u64,
    /// How many bytes are still to be handed over, those being read among them.
    left: u64,
    /// How long the last chunk is, until the connection has taken it.
    in_hand: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    /// The page cache did not have it all: a thread reads the rest.
    cold: bool,
    /// The chunk before, whose memory is used again once the connection has copied it.
    last: Bytes,
    /// Lets the thread's other connections have their turn.
    pause: Option<Pin<Box<dyn Future<Output = ()>>>>,
    /// Settled when the connection has taken the last byte.
    lease: Option<L>,
    watch: Option<ReaderWatch>,
}

impl<L: Lease> DeliveryBody<L> {
    /// Answers `request` with the bytes of `sources` from `start` up to, without, `end`; whoever takes them more slowly
    /// than `limits` allow is cut off.
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
            in_hand: 0,
            reading: None,
            cold: false,
            last: Bytes::new(),
            pause: None,
            lease: Some(lease),
            watch,
        }
    }

    /// Whether reading the next chunk would block; false at the end.
    fn would_block(&mut self) -> bool {
        while self.sources.front().is_some_and(|first| first.len() == self.offset) {
            self.sources.pop_front();
            self.offset = 0;
        }
        self.sources.front().is_some_and(Source::may_block)
    }

    /// The next chunk, as far as that can be had without waiting for the disk.
    fn cached_chunk(&mut self) -> io::Result<Option<Bytes>> {
        let Some(source) = self.sources.front().filter(|_| !self.cold) else { return Ok(None) };
        let len = (source.len() - self.offset).min(self.left).min(CACHED_CHUNK as u64) as usize;
        let mut buffer = std::mem::take(&mut self.last).try_into_mut().unwrap_or_default();
        buffer.resize(len, 0);
        let read = source.read_cached(self.offset, &mut buffer)?;
        if read == 0 {
            self.cold = true;
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

    /// Has a thread read the next chunk.
    fn read_ahead(&mut self) {
        self.reading = self.next_chunk().map(|(source, offset, len)| source.read_from_disk(offset, len));
    }

    /// Reads the next chunk from memory.
    fn read_now(&mut self) -> io::Result<Bytes> {
        let (source, offset, len) = self.next_chunk().ok_or(io::ErrorKind::UnexpectedEof)?;
        source.read(offset, len)
    }

    /// Where the next chunk is, and its length.
    fn next_chunk(&mut self) -> Option<(Source, u64, usize)> {
        let source = self.sources.front()?.clone();
        let offset = self.offset;
        let len = (source.len() - offset).min(self.left).min(CHUNK as u64) as usize;
        self.offset += len as u64;
        Some((source, offset, len))
    }

    fn hand_over(&mut self, chunk: Bytes) -> Bytes {
        self.left -= chunk.len() as u64;
        self.in_hand = chunk.len() as u64;
        if let Some(watch) = &self.watch {
            watch.hand_over(chunk.len() as u64);
        }
        if self.left == 0 {
            self.lease.iter().for_each(Lease::finishing);
        }
        chunk
    }

    fn break_off(&mut self, error: io::Error) -> io::Error {
        log::warn!("a delivery has broken off: {error}");
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
        // asked for more, the connection has taken what it had
        let taken = std::mem::take(&mut this.in_hand);
        this.lease.iter_mut().for_each(|lease| lease.handed_over(taken));
        if this.left == 0 {
            this.lease.take().into_iter().for_each(Lease::over);
            return Poll::Ready(None);
        }
        if let Some(pause) = &mut this.pause {
            ready!(pause.as_mut().poll(cx));
            this.pause = None;
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
                // of the runtime, which says nothing of the message
                chunk.unwrap_or_else(|gone| Err(io::Error::new(io::ErrorKind::Interrupted, gone)))
            }
        };
        Poll::Ready(Some(match chunk {
            Ok(chunk) => {
                let chunk = this.hand_over(chunk);
                if this.left > 0 && this.cold && this.would_block() {
                    // while this chunk goes out
                    this.read_ahead();
                }
                Ok(chunk)
            }
            Err(error) => Err(this.break_off(error)),
        }))
    }
}

/// The body of an answer to `HEAD`: its length alone.
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
