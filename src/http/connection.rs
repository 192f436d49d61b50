//! One connection of a server, over TCP or TLS: HTTP/1.1 requests, strictly one after another.
//!
//! The head of a request is not decoded before the answer to the one before is with the socket, whole. So an answer is
//! written as its own request wants it, and what a client sends ahead waits where it is. The body of an answer is asked
//! for more only when all before is with the socket: asked after its last byte, it knows that this has been handed over.
//!
//! | what the connection waits for | how long at the most |
//! | --- | --- |
//! | the handshake of TLS | 10 s (`tls::accept`) |
//! | the head of the first request | [`HEAD_TIMEOUT`] from when the connection is accepted, or the handshake over |
//! | the next request | `--keep-alive` |
//! | the rest of its head | [`HEAD_TIMEOUT`] from its first byte |
//! | its body | as `--min-transfer-rate` says, 408 (`http::request::body`) |
//! | a handler, the body of an answer: our own side | as long as they take |
//! | a client that takes an answer, however short | 30 s for each hand-over, and what `--min-transfer-rate` makes of its length |
//! | a client that reads its last answer while it still sends | [`LINGER`], which is shorter where nothing is due from it |

use std::cell::{OnceCell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use actix_http::body::{BoxBody, MessageBody};
use actix_http::{ConnectionType, HttpMessage, Method, Payload, Request, Response, Version};
use actix_service::Service;
use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::http::{Failure, Inflight, Limits};

mod answer;
mod deadline;
mod framing;
mod head;
#[cfg(test)]
mod tests;
mod transport;
mod wire;

use answer::Writing;
use deadline::Deadline;
use head::Head;
pub use transport::Transport;
pub use wire::Client;
use wire::{RequestBody, Wire};

/// How long the head of a request may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long closing the sending side may take, which with TLS has something to say.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a client may go on sending after its last answer. If the socket were closed at once, what it still sends
/// would be answered with a reset, which can overtake the answer.
#[derive(Clone, Copy, Debug)]
struct Linger {
    /// Without a byte.
    idle: Duration,
    /// In all.
    total: Duration,
}

/// Where more of its request is to come.
const LINGER: Linger = Linger { idle: Duration::from_secs(5), total: Duration::from_secs(30) };

/// Where nothing is due from it, but it may have sent another request ahead.
const LAST_WORDS: Linger = Linger { idle: Duration::from_secs(1), total: Duration::from_secs(1) };

/// How much of a body that nobody wants is received so that the connection can be kept, in bytes.
const DISCARDED: usize = 64 << 10;

/// How long a chunk may be to be copied behind the head, in bytes, rather than handed over beside it.
const COPIED: usize = 16 << 10;

/// What room the head of an answer gets, and the small body behind it, in bytes.
const HEAD_ROOM: usize = 512;

/// What all connections of a server have in common.
#[derive(Clone, Debug)]
pub struct Terms {
    /// How long a connection is kept without a request.
    pub keep_alive: Duration,
    /// How slowly an answer may be taken, and how much may be held in memory.
    pub limits: Limits,
    /// Counts what is held in memory, unfinished heads among it.
    pub inflight: Inflight,
}

/// Serves a connection with `app` until it ends, or is idle when `stopping` resolves.
pub async fn serve<S, A, B>(
    transport: Transport<S>,
    peer: Option<SocketAddr>,
    terms: &Terms,
    stopping: impl Future,
    app: &A,
) where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    A: Service<Request>,
    A::Response: Into<Response<B>>,
    A::Error: Into<actix_web::Error>,
    B: MessageBody,
{
    let mut connection = Connection::new(transport, terms);
    let mut stopping = pin!(stopping);
    let mut is_first = true;
    loop {
        let head = match connection.next_head(is_first, stopping.as_mut()).await {
            Next::Head(head) => head,
            Next::Refused(failure) => return connection.refuse(failure).await,
            Next::Nothing => return connection.close(None).await,
        };
        is_first = false;
        let asked = Asked::of(&head);
        let request = connection.begin(head, peer);
        let answered = match respond(app, request).await {
            Ok(response) => connection.answer(response.into(), asked).await,
            Err(error) => connection.answer(Response::<BoxBody>::from(error.into().error_response()), asked).await,
        };
        connection.wire.borrow_mut().end();
        match answered {
            Ok(After::Next) => {}
            Ok(After::Close(linger)) => return connection.close(Some(linger)).await,
            Err(error) => return log::debug!("an answer is not sent whole: {error}"),
        }
    }
}

/// Answers a client that is not served at all, and closes its connection.
pub async fn refuse<S>(transport: Transport<S>, terms: &Terms, failure: Failure)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    Connection::new(transport, terms).refuse(failure).await;
}

async fn respond<A: Service<Request>>(app: &A, request: Request) -> Result<A::Response, A::Error> {
    poll_fn(|cx| app.poll_ready(cx)).await?;
    app.call(request).await
}

/// What comes next on a connection.
enum Next {
    Head(Head),
    /// What came is no request.
    Refused(Failure),
    /// The client has gone, or was idle for too long.
    Nothing,
}

/// What an answer has to know of its request.
#[derive(Clone, Copy, Debug)]
struct Asked {
    is_head: bool,
    version: Version,
    keep_alive: bool,
}

impl Asked {
    fn of(head: &Head) -> Self {
        let request = &head.request;
        Self { is_head: request.method() == Method::HEAD, version: request.version(), keep_alive: head.keep_alive }
    }
}

/// What follows an answer.
enum After {
    Next,
    Close(Linger),
}

struct Connection<'a, S> {
    wire: Rc<RefCell<Wire<S>>>,
    deadline: Deadline,
    terms: &'a Terms,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin + 'static> Connection<'a, S> {
    fn new(transport: Transport<S>, terms: &'a Terms) -> Self {
        Self { wire: Rc::new(RefCell::new(Wire::new(transport))), deadline: Deadline::default(), terms }
    }

    /// Waits for a request and receives its head.
    async fn next_head(&mut self, is_first: bool, mut stopping: Pin<&mut impl Future>) -> Next {
        let Self { wire, deadline, terms } = self;
        let end = OnceCell::new();
        let head_end = || *end.get_or_init(|| Instant::now() + HEAD_TIMEOUT);
        if wire.borrow().received.is_empty() {
            let idle_end = || if is_first { head_end() } else { Instant::now() + terms.keep_alive };
            let come = deadline.limit(idle_end, |cx| {
                let mut wire = wire.borrow_mut();
                if let Poll::Ready(received) = wire.poll_receive(cx) {
                    return Poll::Ready(matches!(received, Ok(1..)));
                }
                // a connection that is idle holds no memory
                wire.received = BytesMut::new();
                stopping.as_mut().poll(cx).map(|_| false)
            });
            if come.await != Some(true) {
                return Next::Nothing;
            }
        }
        let mut held = terms.inflight.hold();
        let mut counted = 0;
        loop {
            match head::decode(&mut wire.borrow_mut().received) {
                Ok(Some(head)) => return Next::Head(head),
                Ok(None) => {}
                Err(failure) => return Next::Refused(failure),
            }
            let (len, is_blank) = {
                let received = &wire.borrow().received;
                (received.len(), received.iter().all(|byte| head::is_line_break(*byte)))
            };
            if !held.grow((len - counted) as u64, terms.limits.max_inflight) {
                return Next::Refused(Failure::no_memory());
            }
            counted = len;
            match deadline.limit(head_end, |cx| wire.borrow_mut().poll_receive(cx)).await {
                Some(Ok(1..)) => {}
                _ if is_blank => return Next::Nothing,
                Some(_) => return Next::Refused(Failure::head_broken_off()),
                None => return Next::Refused(Failure::head_too_slow(HEAD_TIMEOUT)),
            }
        }
    }

    /// Makes a whole request of a head.
    fn begin(&mut self, head: Head, peer: Option<SocketAddr>) -> Request {
        let Head { mut request, body, expects_continue, .. } = head;
        request.head_mut().peer_addr = peer;
        request.extensions_mut().insert(Client::new(&self.wire));
        if body.is_some() {
            *request.payload() = Payload::Stream { payload: Box::pin(RequestBody::new(&self.wire)) };
        }
        self.wire.borrow_mut().begin(body, expects_continue);
        request
    }

    /// Sends an answer, whole.
    async fn answer<B: MessageBody>(&mut self, response: Response<B>, asked: Asked) -> io::Result<After> {
        let (response, body) = response.into_parts();
        let (head, size) = (response.head(), body.size());
        let is_received = poll_fn(|cx| Poll::Ready(self.wire.borrow_mut().discard_body(cx, DISCARDED))).await;
        let writing = Writing::of(head, size, asked.version, asked.is_head);
        let keep_alive = asked.keep_alive
            && is_received
            && writing != Writing::ToTheEnd
            && head.connection_type() == ConnectionType::KeepAlive;
        let mut out = Vec::with_capacity(HEAD_ROOM);
        out.extend_from_slice(self.wire.borrow_mut().rest_of_interim());
        answer::write_head(&mut out, head, asked.version, size, keep_alive);
        if writing != Writing::Nothing {
            self.send_body(&mut out, pin!(body), writing).await?;
        }
        self.send(&out, &[]).await?;
        Ok(match (keep_alive, is_received) {
            (true, _) => After::Next,
            (false, true) => After::Close(LAST_WORDS),
            (false, false) => After::Close(LINGER),
        })
    }

    /// Sends the body of an answer behind what is in `out`, and leaves there what has to be sent behind the body.
    async fn send_body<B: MessageBody>(
        &mut self,
        out: &mut Vec<u8>,
        mut body: Pin<&mut B>,
        writing: Writing,
    ) -> io::Result<()> {
        let mut left = if let Writing::Sized(len) = writing { Some(len) } else { None };
        loop {
            let mut next = poll_fn(|cx| Poll::Ready(body.as_mut().poll_next(cx))).await;
            if next.is_pending() {
                // the head need not wait for the body
                self.send(out, &[]).await?;
                out.clear();
                next = Poll::Ready(poll_fn(|cx| body.as_mut().poll_next(cx)).await);
            }
            let chunk = match next {
                Poll::Ready(Some(chunk)) => chunk.map_err(|error| io::Error::other(error.into().to_string()))?,
                _ => break,
            };
            if let Some(left) = &mut left {
                *left = left.checked_sub(chunk.len() as u64).ok_or_else(|| misfit("longer"))?;
            }
            match writing {
                _ if chunk.is_empty() => continue,
                Writing::Chunked => answer::write_chunk(out, &chunk),
                _ if out.is_empty() || chunk.len() > COPIED => {
                    self.send(out, &chunk).await?;
                    out.clear();
                    continue;
                }
                _ => out.extend_from_slice(&chunk),
            }
            self.send(out, &[]).await?;
            out.clear();
        }
        match (writing, left) {
            (Writing::Chunked, _) => answer::write_last_chunk(out),
            (_, Some(1..)) => return Err(misfit("shorter")),
            _ => {}
        }
        Ok(())
    }

    /// Hands over bytes to the socket, all of them.
    async fn send(&mut self, mut head: &[u8], mut chunk: &[u8]) -> io::Result<()> {
        if head.is_empty() && chunk.is_empty() {
            return Ok(());
        }
        let Self { wire, deadline, terms } = self;
        let time = terms.limits.time_for((head.len() + chunk.len()) as u64);
        let sent =
            deadline.limit(|| Instant::now() + time, |cx| wire.borrow_mut().poll_send(cx, &mut head, &mut chunk)).await;
        sent.unwrap_or_else(|| {
            let rate = terms.limits.min_transfer_rate;
            log::warn!("an answer is cut off: it was read more slowly than {rate} bytes a second");
            Err(io::ErrorKind::TimedOut.into())
        })
    }

    /// Answers what is no request, and closes the connection.
    async fn refuse(mut self, failure: Failure) {
        let asked = Asked { is_head: false, version: Version::HTTP_11, keep_alive: false };
        if self.answer(Response::<BoxBody>::from(failure.json()), asked).await.is_ok() {
            self.close(Some(LINGER)).await;
        }
    }

    /// Closes the sending side, and then all of the connection once the client has closed its own, or lingers too long.
    async fn close(mut self, linger: Option<Linger>) {
        let Self { wire, deadline, .. } = &mut self;
        let shut_down = || Instant::now() + SHUTDOWN_TIMEOUT;
        let closed = deadline.limit(shut_down, |cx| wire.borrow_mut().poll_shutdown(cx)).await;
        let (Some(Ok(())), Some(linger)) = (closed, linger) else { return };
        let end = Instant::now() + linger.total;
        loop {
            let now = Instant::now();
            let patience = || end.min(now + linger.idle);
            match deadline.limit(patience, |cx| wire.borrow_mut().poll_discard(cx)).await {
                Some(Ok(1..)) if now < end => {}
                _ => return,
            }
        }
    }
}

fn misfit(how: &str) -> io::Error {
    log::error!("an answer is cut off: its body is {how} than the length that its head has told");
    io::ErrorKind::InvalidData.into()
}
