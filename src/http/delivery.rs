//! The streaming answer: a message in parts, from memory and from files, whose delivery is settled by its last byte.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use actix_web::body::{BodySize, MessageBody};
use bytes::Bytes;
use tokio::task::JoinHandle;
use user_http_actors::blend::BlendFile;
use user_http_actors::buffer::BufferLease;
use user_http_actors::payload::Payload;
use user_http_actors::publisher::MessageLease;

use crate::http::reader::ReaderWatch;

/// The `h1_write_buffer_size` that makes a delivery exact: the connection asks the body for more only when everything
/// before has been taken by the socket, so that the question after the last chunk says that all of it has. With
/// actix-web's own TLS, rustls may still have the last 64 KiB; [`UserHttpServer`](crate::UserHttpServer) sees to that.
pub const H1_WRITE_BUFFER_SIZE: usize = 1;

/// How many bytes of a file are read at once. Streaming 1 GiB over loopback was measured at 0.8 GB/s with 64 KiB, 1.5
/// with 256 KiB, 2.7 with 1 MiB; each stream holds two of them, one on its way out and one being read.
const CHUNK: usize = 1 << 20;

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

    fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.slice(offset as usize..offset as usize + len)),
            Self::Payload(payload, start, _) => payload.read(start + offset, len),
            Self::Blend(file) => file.read(offset, len),
        }
    }
}

/// The length of all parts together in bytes.
pub fn total_len(sources: &[Source]) -> u64 {
    sources.iter().map(Source::len).sum()
}

/// The right to deliver: dropped, the message is offered again.
pub trait Lease: Unpin + 'static {
    /// The last chunk is about to be handed over.
    fn finishing(&self);
    /// The last byte is with the connection.
    fn delivered(self);
}

impl Lease for BufferLease {
    fn finishing(&self) {
        BufferLease::finishing(self);
    }

    fn delivered(self) {
        BufferLease::delivered(self);
    }
}

impl Lease for MessageLease {
    fn finishing(&self) {}

    fn delivered(self) {
        MessageLease::delivered(self);
    }
}

/// The body of an answer that delivers a message.
pub struct DeliveryBody<L> {
    sources: VecDeque<Source>,
    /// Where the next chunk starts in the first source.
    offset: u64,
    /// How many bytes are still to be handed over, those being read among them.
    left: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    /// Settled when `left` has come to nothing, where that is the end of the message.
    lease: Option<L>,
    reaches_end: bool,
    watch: Option<ReaderWatch>,
}

impl<L: Lease> DeliveryBody<L> {
    /// Hands over, to a reader that `watch` watches, the bytes of `sources` from `start` up to, without, `end`.
    pub fn new(sources: Vec<Source>, start: u64, end: u64, lease: L, watch: Option<ReaderWatch>) -> Self {
        let reaches_end = end == total_len(&sources);
        let mut sources = VecDeque::from(sources);
        let mut offset = start;
        while let Some(first) = sources.front()
            && first.len() <= offset
        {
            offset -= first.len();
            sources.pop_front();
        }
        Self { sources, offset, left: end - start, reading: None, lease: Some(lease), reaches_end, watch }
    }

    /// Whether reading the next chunk would block; false at the end.
    fn would_block(&mut self) -> bool {
        while self.sources.front().is_some_and(|first| first.len() == self.offset) {
            self.sources.pop_front();
            self.offset = 0;
        }
        self.sources.front().is_some_and(Source::may_block)
    }

    /// What reads the next chunk.
    fn next_chunk(&mut self) -> impl FnOnce() -> io::Result<Bytes> + Send + use<L> {
        let source = self.sources.front().cloned();
        let offset = self.offset;
        let left = source.as_ref().map_or(0, |source| source.len() - offset);
        let len = left.min(self.left).min(CHUNK as u64) as usize;
        self.offset += len as u64;
        move || source.map_or(Err(io::ErrorKind::UnexpectedEof.into()), |source| source.read(offset, len))
    }

    fn hand_over(&mut self, chunk: Bytes) -> Bytes {
        self.left -= chunk.len() as u64;
        if let Some(watch) = &self.watch {
            watch.hand_over(chunk.len() as u64);
        }
        if self.left == 0
            && let Some(lease) = &self.lease
        {
            lease.finishing();
        }
        chunk
    }
}

impl<L: Lease> MessageBody for DeliveryBody<L> {
    type Error = io::Error;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.left)
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let this = self.get_mut();
        if this.left == 0 {
            if let Some(lease) = this.lease.take()
                && this.reaches_end
            {
                lease.delivered();
            }
            return Poll::Ready(None);
        }
        if this.reading.is_none() && this.would_block() {
            this.reading = Some(tokio::task::spawn_blocking(this.next_chunk()));
        }
        let chunk = match &mut this.reading {
            None => this.next_chunk()(),
            Some(reading) => {
                let chunk = ready!(Pin::new(reading).poll(cx));
                this.reading = None;
                chunk.unwrap_or_else(|gone| Err(io::Error::other(gone)))
            }
        };
        Poll::Ready(Some(match chunk {
            Ok(chunk) => {
                let chunk = this.hand_over(chunk);
                if this.left > 0 && this.would_block() {
                    // read ahead while this chunk goes out
                    this.reading = Some(tokio::task::spawn_blocking(this.next_chunk()));
                }
                Ok(chunk)
            }
            Err(error) => {
                log::warn!("a delivery has broken off: {error}");
                Err(error)
            }
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
