//! The state that a connection shares with its requests: the transport, the received bytes, and the framing of the
//! current request's body. All of it stays on one thread.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, ready};

use actix_http::error::PayloadError;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::Stream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use crate::http::connection::framing::{Framing, Part};
use crate::http::connection::transport::Transport;
use crate::http::metrics::Traffic;

/// How many bytes of a head are received at once. A small body arrives with it.
const HEAD_STEP: usize = 4 << 10;

/// How many bytes of a body are received at once: initially and at most. Each read that fills its buffer makes the next
/// buffer four times as large, so that slow clients get no large buffers.
const BODY_STEPS: (usize, usize) = (4 << 10, 256 << 10);

/// How many bytes are received before they are needed, to notice when a client hangs up.
const MAX_AHEAD: usize = 16 << 10;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The transport and state of one connection.
pub struct Wire<S> {
    transport: Transport<S>,
    traffic: Traffic,
    /// Received but not yet decoded.
    pub received: BytesMut,
    /// Whether the client has closed its sending side, or the connection is broken.
    pub has_ended: bool,
    /// The framing of what remains of the current request's body.
    body: Option<Framing>,
    /// The unsent part of the interim answer (100) that the client waits for before it sends the body.
    interim: &'static [u8],
    body_step: usize,
    /// The number of the current request. If the body of an earlier one still exists, it reads nothing.
    request: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub fn new(transport: Transport<S>, traffic: Traffic) -> Self {
        Self {
            transport,
            traffic,
            received: BytesMut::new(),
            has_ended: false,
            body: None,
            interim: b"",
            body_step: BODY_STEPS.0,
            request: 0,
        }
    }

    /// Begins a request with this body.
    pub fn begin(&mut self, body: Option<Framing>, expects_continue: bool) {
        self.body = body;
        self.interim = if expects_continue { CONTINUE } else { b"" };
        self.body_step = BODY_STEPS.0;
    }

    /// Ends the request. Its body reads nothing after this.
    pub fn end(&mut self) {
        self.request += 1;
    }

    /// Receives available bytes; 0 at the end.
    pub fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.has_ended {
            return Poll::Ready(Ok(0));
        }
        let mut bytes = [const { MaybeUninit::uninit() }; HEAD_STEP];
        let mut buffer = ReadBuf::uninit(&mut bytes);
        let read = ready!(Pin::new(&mut self.transport).poll_read(cx, &mut buffer));
        self.received.extend_from_slice(buffer.filled());
        self.traffic.received.increment(buffer.filled().len() as u64);
        let read = read.map(|()| buffer.filled().len());
        self.has_ended = !matches!(read, Ok(1..));
        Poll::Ready(read)
    }

    /// The next part of the current request's body; `None` at its end.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, PayloadError>>> {
        while self.body.is_some() && !self.interim.is_empty() {
            let sent = ready!(Pin::new(&mut self.transport).poll_write(cx, self.interim))?;
            self.traffic.sent.increment(sent as u64);
            self.interim.advance(sent);
            ready!(Pin::new(&mut self.transport).poll_flush(cx))?;
        }
        loop {
            let Some(framing) = &mut self.body else { return Poll::Ready(None) };
            match framing.decode(&mut self.received) {
                Ok(Some(Part::Bytes(bytes))) => {
                    if *framing == Framing::Length(0) {
                        self.body = None;
                    }
                    return Poll::Ready(Some(Ok(bytes)));
                }
                Ok(Some(Part::End)) => {
                    self.body = None;
                    return Poll::Ready(None);
                }
                Ok(None) => {}
                Err(why) => {
                    let error = io::Error::new(io::ErrorKind::InvalidData, why);
                    return Poll::Ready(Some(Err(PayloadError::Io(error))));
                }
            }
            let wanted = framing.wanted().min(self.body_step);
            match ready!(self.poll_receive_body(cx, wanted)) {
                Ok(0) => return Poll::Ready(Some(Err(PayloadError::Incomplete(None)))),
                Ok(read) if read == self.body_step => self.body_step = BODY_STEPS.1.min(4 * read),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(PayloadError::Incomplete(Some(error))))),
            }
        }
    }

    /// Receives up to `wanted` bytes directly into `received`; 0 at the end.
    fn poll_receive_body(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        if self.has_ended {
            return Poll::Ready(Ok(0));
        }
        self.received.reserve(wanted);
        let mut buffer = (&mut self.received).limit(wanted);
        let read = ready!(pin!(self.transport.read_buf(&mut buffer)).poll(cx));
        self.traffic.received.increment(read.as_ref().map_or(0, |read| *read as u64));
        self.has_ended = !matches!(read, Ok(1..));
        Poll::Ready(read)
    }

    /// Discards what remains of the body. False if that is more than `budget` bytes, or not all of it has been
    /// received.
    pub fn discard_body(&mut self, cx: &mut Context<'_>, mut budget: usize) -> bool {
        if self.body.is_some() && !self.interim.is_empty() {
            // The client waits for the interim answer before it sends the body.
            return false;
        }
        loop {
            match self.poll_body(cx) {
                Poll::Ready(None) => return true,
                Poll::Ready(Some(Ok(bytes))) if bytes.len() <= budget => budget -= bytes.len(),
                _ => return false,
            }
        }
    }

    /// What must be sent before an answer: the end of an interim answer, if its start has been sent.
    pub fn end_of_interim(&mut self) -> &'static [u8] {
        let rest = std::mem::take(&mut self.interim);
        if rest.len() < CONTINUE.len() { rest } else { b"" }
    }

    /// Receives available bytes and discards them; 0 at the end. Takes no memory between calls, because there may be
    /// many such clients.
    pub fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.received = BytesMut::new();
        self.poll_receive(cx)
    }

    /// Writes `head` and then `chunk`, and removes from them what was written; ready once the socket has all of it.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, head: &mut &[u8], chunk: &mut &[u8]) -> Poll<io::Result<()>> {
        let mut transport = Pin::new(&mut self.transport);
        while !head.is_empty() || !chunk.is_empty() {
            let sent = if head.is_empty() {
                ready!(transport.as_mut().poll_write(cx, chunk))?
            } else if chunk.is_empty() {
                ready!(transport.as_mut().poll_write(cx, head))?
            } else {
                let both = [IoSlice::new(head), IoSlice::new(chunk)];
                ready!(transport.as_mut().poll_write_vectored(cx, &both))?
            };
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.traffic.sent.increment(sent as u64);
            let of_head = sent.min(head.len());
            head.advance(of_head);
            chunk.advance(sent - of_head);
        }
        transport.poll_flush(cx)
    }

    /// Closes the sending side.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }

    /// Resolves when the client has closed its sending side, the connection is broken, or the client has sent so much
    /// ahead that its end would not be noticed.
    fn poll_hung_up(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.has_ended && self.received.len() < MAX_AHEAD {
            // An error counts as the end.
            let _ = ready!(self.poll_receive(cx));
        }
        Poll::Ready(())
    }
}

/// The body of a request. Nothing is received before it is polled.
pub struct RequestBody<S> {
    wire: Weak<RefCell<Wire<S>>>,
    request: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin> RequestBody<S> {
    pub fn new(wire: &Rc<RefCell<Wire<S>>>) -> Self {
        Self { wire: Rc::downgrade(wire), request: wire.borrow().request }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for RequestBody<S> {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.wire.upgrade() {
            Some(wire) if wire.borrow().request == self.request => wire.borrow_mut().poll_body(cx),
            // The request has been answered already.
            _ => Poll::Ready(Some(Err(PayloadError::Incomplete(None)))),
        }
    }
}

/// The client that waits for an answer, in the extensions of its request.
#[derive(Clone)]
pub struct Client {
    wire: Weak<dyn HangUp>,
    request: u64,
}

/// A [`Wire`] with any transport.
trait HangUp {
    fn poll_hung_up(&self, request: u64, cx: &mut Context<'_>) -> Poll<()>;
}

impl<S: AsyncRead + AsyncWrite + Unpin> HangUp for RefCell<Wire<S>> {
    fn poll_hung_up(&self, request: u64, cx: &mut Context<'_>) -> Poll<()> {
        let mut wire = self.borrow_mut();
        if wire.request == request { wire.poll_hung_up(cx) } else { Poll::Ready(()) }
    }
}

impl Client {
    pub fn new<S: AsyncRead + AsyncWrite + Unpin + 'static>(wire: &Rc<RefCell<Wire<S>>>) -> Self {
        let request = wire.borrow().request;
        let wire: Weak<RefCell<Wire<S>>> = Rc::downgrade(wire);
        Self { wire, request }
    }

    /// Resolves when the client has closed its sending side, the connection is broken, the client has sent
    /// [`MAX_AHEAD`] bytes ahead, or the request has been answered. Bytes that the client sends meanwhile are kept.
    pub async fn hung_up(&self) {
        poll_fn(|cx| match self.wire.upgrade() {
            Some(wire) => wire.poll_hung_up(self.request, cx),
            None => Poll::Ready(()),
        })
        .await;
    }
}
