//! One connection of a server, over TCP or TLS: HTTP/1.1 requests, strictly one after another.
//!
//! The head of a request is decoded only after the socket has accepted the whole answer to the previous request. So
//! each answer has the form that its own request asks for, and pipelined requests wait in the kernel. The body of an
//! answer is polled for its next chunk only after the socket has accepted all bytes before it: when it is polled after
//! its last chunk, the socket has the whole answer.
//!
//! | the connection waits for | at most |
//! | --- | --- |
//! | the TLS handshake | 10 s (`tls::greet`) |
//! | the head of the first request | [`HEAD_TIMEOUT`] from the accept or the end of the handshake |
//! | the next request | `--keep-alive` |
//! | the rest of its head | [`HEAD_TIMEOUT`] from its first byte |
//! | its body | no limit while it arrives at `--min-transfer-rate`, else 408 (`http::body::read`) |
//! | a handler, the next chunk of an answer | no limit: these are parts of the gateway |
//! | a client that reads an answer | for each write 30 s, plus the time for its length at `--min-transfer-rate` |
//! | a client that still sends after its last answer | [`LINGER_UNREAD`] after an unread body, else [`LINGER_READ`] |

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

use crate::http::metrics::{Answer, RequestMetrics, method_label};
use crate::http::{Failure, Inflight, Limits, RequestId};

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

/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long closing the sending side may take: over TLS it sends a `close_notify`.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a connection stays open after its last answer while the client still sends. If the socket were closed at
/// once, the kernel would answer further bytes with a reset, which can make the client discard the answer.
#[derive(Clone, Copy, Debug)]
struct Linger {
    /// Since the last received byte.
    idle: Duration,
    /// In total.
    total: Duration,
}

/// After an answer to a request that was not read completely.
const LINGER_UNREAD: Linger = Linger { idle: Duration::from_secs(5), total: Duration::from_secs(30) };

/// After an answer to a request that was read completely. The client may already have sent another request.
const LINGER_READ: Linger = Linger { idle: Duration::from_secs(1), total: Duration::from_secs(1) };

/// How many bytes of an unread body are received and discarded to keep the connection usable.
const MAX_DISCARDED: usize = 64 << 10;

/// A chunk of up to this length, in bytes, is copied into the buffer of the head. A longer one is passed to the same
/// vectored write without a copy.
const MAX_COPIED: usize = 16 << 10;

/// The initial capacity for the head of an answer and a small body after it, in bytes.
const HEAD_CAPACITY: usize = 512;

/// The settings of all connections of a server.
#[derive(Clone, Debug)]
pub struct ConnectionSettings {
    /// How long an idle connection stays open.
    pub keep_alive: Duration,
    /// The minimum rate at which a client must read, and the limit of memory.
    pub limits: Limits,
    /// Counts the bytes of unfinished heads.
    pub inflight: Inflight,
}

/// Serves a connection with `app` until it ends, or until it is idle after `stopping` has resolved.
pub async fn serve<S, A>(
    transport: Transport<S>,
    peer: Option<SocketAddr>,
    settings: &ConnectionSettings,
    metrics: &RequestMetrics,
    stopping: impl Future,
    app: &A,
) where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    A: Service<Request>,
    A::Response: Answer,
    A::Error: Into<actix_web::Error>,
{
    let mut connection = Connection::new(transport, settings, metrics);
    let mut stopping = pin!(stopping);
    let mut is_first = true;
    loop {
        let head = match connection.next_head(is_first, stopping.as_mut()).await {
            Next::Head(head) => head,
            Next::Refused(failure) => return connection.refuse(failure).await,
            Next::Nothing => return connection.close(None).await,
        };
        is_first = false;
        let began = Instant::now();
        let (form, method) = (RequestForm::of(&head), method_label(head.request.method()));
        let id = form.id.clone();
        let request = connection.begin(head, peer);
        let answered = {
            let handling = pin!(async {
                let (answered, answering) = match respond(app, request).await {
                    Ok(response) => {
                        let (route, response) = response.into_parts();
                        let answering = metrics.answering(route, method, response.status());
                        (connection.answer(response, &form).await, answering)
                    }
                    Err(error) => {
                        let response = Response::<BoxBody>::from(error.into().error_response());
                        let answering = metrics.answering(None, method, response.status());
                        (connection.answer(response, &form).await, answering)
                    }
                };
                answering.finished(began.elapsed());
                answered.inspect_err(|error| log::debug!("answer broken off: {error}"))
            });
            id.scope(handling).await
        };
        connection.wire.borrow_mut().end();
        match answered {
            Ok(After::Next) => {}
            Ok(After::Close(linger)) => return connection.close(Some(linger)).await,
            Err(_) => return,
        }
    }
}

/// Sends a failure to a client that is not served, and closes the connection.
pub async fn refuse<S>(
    transport: Transport<S>,
    settings: &ConnectionSettings,
    metrics: &RequestMetrics,
    failure: Failure,
) where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    Connection::new(transport, settings, metrics).refuse(failure).await;
}

async fn respond<A: Service<Request>>(app: &A, request: Request) -> Result<A::Response, A::Error> {
    poll_fn(|cx| app.poll_ready(cx)).await?;
    app.call(request).await
}

/// What arrived on a connection.
enum Next {
    Head(Head),
    /// Something that is not a request.
    Refused(Failure),
    /// Nothing: the client has disconnected or was idle for too long.
    Nothing,
}

/// The properties of a request that the form of its answer depends on.
#[derive(Debug)]
struct RequestForm {
    id: RequestId,
    is_head: bool,
    version: Version,
    keep_alive: bool,
}

impl RequestForm {
    fn of(head: &Head) -> Self {
        let request = &head.request;
        Self {
            id: RequestId::of(request.headers()),
            is_head: request.method() == Method::HEAD,
            version: request.version(),
            keep_alive: head.keep_alive,
        }
    }
}

/// What happens after an answer.
enum After {
    Next,
    Close(Linger),
}

struct Connection<'a, S> {
    wire: Rc<RefCell<Wire<S>>>,
    deadline: Deadline,
    settings: &'a ConnectionSettings,
    metrics: &'a RequestMetrics,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin + 'static> Connection<'a, S> {
    fn new(transport: Transport<S>, settings: &'a ConnectionSettings, metrics: &'a RequestMetrics) -> Self {
        let wire = Rc::new(RefCell::new(Wire::new(transport, metrics.traffic())));
        Self { wire, deadline: Deadline::default(), settings, metrics }
    }

    /// Waits for a request and receives its head.
    async fn next_head(&mut self, is_first: bool, mut stopping: Pin<&mut impl Future>) -> Next {
        let Self { wire, deadline, settings, .. } = self;
        let end = OnceCell::new();
        let head_end = || *end.get_or_init(|| Instant::now() + HEAD_TIMEOUT);
        if wire.borrow().received.is_empty() {
            let idle_end = || if is_first { head_end() } else { Instant::now() + settings.keep_alive };
            let arrived = deadline.limit(idle_end, |cx| {
                let mut wire = wire.borrow_mut();
                if let Poll::Ready(received) = wire.poll_receive(cx) {
                    return Poll::Ready(matches!(received, Ok(1..)));
                }
                // An idle connection takes no memory for a buffer.
                wire.received = BytesMut::new();
                stopping.as_mut().poll(cx).map(|_| false)
            });
            if arrived.await != Some(true) {
                return Next::Nothing;
            }
        }
        let mut permit = settings.inflight.permit();
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
            if !permit.grow((len - counted) as u64, settings.limits.max_inflight) {
                return Next::Refused(Failure::too_much_inflight());
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

    /// Makes a request from a head. Its body will be read from the connection.
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

    /// Sends a whole answer.
    async fn answer<B: MessageBody>(&mut self, response: Response<B>, form: &RequestForm) -> io::Result<After> {
        let (response, body) = response.into_parts();
        let (head, size) = (response.head(), body.size());
        let is_received = poll_fn(|cx| Poll::Ready(self.wire.borrow_mut().discard_body(cx, MAX_DISCARDED))).await;
        let writing = Writing::of(head, size, form.version, form.is_head);
        let keep_alive = form.keep_alive
            && is_received
            && writing != Writing::UntilClose
            && head.connection_type() == ConnectionType::KeepAlive;
        let mut out = Vec::with_capacity(HEAD_CAPACITY);
        out.extend_from_slice(self.wire.borrow_mut().end_of_interim());
        answer::write_head(&mut out, head, &form.id, form.version, size, keep_alive);
        if writing != Writing::Nothing {
            self.send_body(&mut out, pin!(body), writing).await?;
        }
        self.send(&out, &[]).await?;
        Ok(match (keep_alive, is_received) {
            (true, _) => After::Next,
            (false, true) => After::Close(LINGER_READ),
            (false, false) => After::Close(LINGER_UNREAD),
        })
    }

    /// Sends the content of `out`, and then the body of an answer. Leaves in `out` what must be sent after the body.
    async fn send_body<B: MessageBody>(
        &mut self,
        out: &mut Vec<u8>,
        mut body: Pin<&mut B>,
        writing: Writing,
    ) -> io::Result<()> {
        let mut left = if let Writing::Sized(len) = writing { Some(len) } else { None };
        loop {
            // A body that is pending may have yielded to the other connections of this thread, so it is polled again
            // only once it has woken this one. The head does not wait for it.
            let next = poll_fn(|cx| match body.as_mut().poll_next(cx) {
                Poll::Pending if !out.is_empty() => Poll::Ready(None),
                next => next.map(Some),
            });
            let Some(next) = next.await else {
                self.send(out, &[]).await?;
                out.clear();
                continue;
            };
            let Some(chunk) = next else { break };
            let chunk = chunk.map_err(|error| io::Error::other(error.into().to_string()))?;
            if let Some(left) = &mut left {
                *left = left.checked_sub(chunk.len() as u64).ok_or_else(|| wrong_length("longer"))?;
            }
            match writing {
                _ if chunk.is_empty() => continue,
                Writing::Chunked => answer::write_chunk(out, &chunk),
                _ if out.is_empty() || chunk.len() > MAX_COPIED => {
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
            (_, Some(1..)) => return Err(wrong_length("shorter")),
            _ => {}
        }
        Ok(())
    }

    /// Writes all of `head` and then all of `chunk` to the socket.
    async fn send(&mut self, mut head: &[u8], mut chunk: &[u8]) -> io::Result<()> {
        if head.is_empty() && chunk.is_empty() {
            return Ok(());
        }
        let Self { wire, deadline, settings, .. } = self;
        let time = settings.limits.time_for((head.len() + chunk.len()) as u64);
        let sent =
            deadline.limit(|| Instant::now() + time, |cx| wire.borrow_mut().poll_send(cx, &mut head, &mut chunk)).await;
        sent.unwrap_or_else(|| {
            settings.limits.log_slow_reader();
            Err(io::ErrorKind::TimedOut.into())
        })
    }

    /// Sends a failure as the last answer, and closes the connection.
    async fn refuse(mut self, failure: Failure) {
        let form =
            RequestForm { id: RequestId::generate(), is_head: false, version: Version::HTTP_11, keep_alive: false };
        let response = Response::<BoxBody>::from(failure.json());
        self.metrics.refused(response.status());
        if self.answer(response, &form).await.is_ok() {
            self.close(Some(LINGER_UNREAD)).await;
        }
    }

    /// Closes the sending side; then, once the client has closed its own or `linger` has passed, the connection.
    async fn close(mut self, linger: Option<Linger>) {
        let Self { wire, deadline, .. } = &mut self;
        let shut_down = || Instant::now() + SHUTDOWN_TIMEOUT;
        let closed = deadline.limit(shut_down, |cx| wire.borrow_mut().poll_shutdown(cx)).await;
        let (Some(Ok(())), Some(linger)) = (closed, linger) else { return };
        let end = Instant::now() + linger.total;
        loop {
            let now = Instant::now();
            let next_byte = || end.min(now + linger.idle);
            match deadline.limit(next_byte, |cx| wire.borrow_mut().poll_discard(cx)).await {
                Some(Ok(1..)) if now < end => {}
                _ => return,
            }
        }
    }
}

fn wrong_length(how: &str) -> io::Error {
    log::error!("answer broken off: its body is {how} than its Content-Length");
    io::ErrorKind::InvalidData.into()
}
