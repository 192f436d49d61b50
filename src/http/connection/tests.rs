//! Connections over an in-memory pipe, in front of a small service.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future;
use std::sync::Arc;
use std::task::{Context, Poll};

use actix_http::StatusCode;
use actix_http::body::{BodySize, BoxBody};
use actix_http::error::PayloadError;
use actix_http::header::{HeaderName, HeaderValue};
use actix_service::fn_service;
use bytes::Bytes;
use futures::StreamExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::TlsConnector;
use user_http_actors::tls::provider;

use super::*;
use crate::Metrics;
use crate::http::metrics::{RoutePattern, ServerMetrics};
use crate::tls::{Tls, TlsFiles, accept};

/// The capacity of the pipe in bytes.
const CAPACITY: usize = 1000;

fn settings() -> ConnectionSettings {
    ConnectionSettings { keep_alive: Duration::from_secs(5), limits: Limits::default(), inflight: Inflight::default() }
}

fn metrics() -> RequestMetrics {
    RequestMetrics::new(ServerMetrics::new(&Metrics::new(), "test", 1))
}

impl<B: MessageBody> Answer for Response<B> {
    type Body = B;

    fn into_parts(self) -> (Option<RoutePattern>, Self) {
        (None, self)
    }
}

/// A body of one chunk that records whether it is polled for another.
struct Noting {
    chunk: Option<Bytes>,
    is_over: Rc<Cell<bool>>,
}

impl MessageBody for Noting {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.chunk.as_ref().map_or(0, |chunk| chunk.len() as u64))
    }

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, Infallible>>> {
        let chunk = self.chunk.take();
        self.is_over.set(chunk.is_none());
        Poll::Ready(chunk.map(Ok))
    }
}

/// Serves a request whose answer is `len` bytes long, and checks that its body is not polled again before the socket
/// has all of it; `far` is the client's end of the pipe, below TLS.
async fn assert_polled_when_the_socket_has_all(transport: Transport<DuplexStream>, mut far: DuplexStream, len: usize) {
    let is_over = Rc::new(Cell::new(false));
    let noting = Rc::clone(&is_over);
    let app = fn_service(move |_: Request| {
        let body = Noting { chunk: Some(vec![7; len].into()), is_over: Rc::clone(&noting) };
        future::ready(Ok::<_, actix_web::Error>(Response::with_body(StatusCode::OK, body)))
    });
    let settings = settings();
    let metrics = metrics();
    let mut serving = pin!(serve(transport, None, &settings, &metrics, future::pending::<()>(), &app));
    let (mut left, mut buffer) = (0, [0; CAPACITY]);
    loop {
        assert!(futures::poll!(&mut serving).is_pending());
        if is_over.get() {
            break;
        }
        left += far.read(&mut buffer).await.expect("the answer");
    }
    assert!(left + CAPACITY >= len, "{left} bytes have left, and at most {CAPACITY} more are in the pipe");
}

#[actix_web::test]
async fn the_body_of_an_answer_is_polled_again_only_when_the_socket_has_all_of_it() {
    let (near, mut far) = duplex(CAPACITY);
    far.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("a request");
    assert_polled_when_the_socket_has_all(Transport::Plain(near), far, 60_000).await;
}

/// A body that yields before each chunk but the first, and notes the number of chunks.
struct Yielding {
    left: usize,
    has_yielded: bool,
    chunks: Rc<Cell<usize>>,
}

impl MessageBody for Yielding {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized((self.left * CAPACITY) as u64)
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let is_first = self.chunks.get() == 0;
        if !is_first && !std::mem::replace(&mut self.has_yielded, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.has_yielded = false;
        self.left -= 1;
        self.chunks.set(self.chunks.get() + 1);
        Poll::Ready(Some(Ok(vec![7; CAPACITY].into())))
    }
}

#[actix_web::test]
async fn a_body_that_yields_lets_the_other_connections_of_its_thread_run() {
    const CHUNKS: usize = 10;
    let chunks = Rc::new(Cell::new(0));
    let noting = Rc::clone(&chunks);
    let app = fn_service(move |_: Request| {
        let body = Yielding { left: CHUNKS, has_yielded: false, chunks: Rc::clone(&noting) };
        future::ready(Ok::<_, actix_web::Error>(Response::with_body(StatusCode::OK, body)))
    });
    // everything fits into the pipe, so the connection waits for nothing else
    let (near, mut far) = duplex(2 * CHUNKS * CAPACITY);
    far.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("a request");
    let (settings, metrics) = (settings(), metrics());
    let mut serving = pin!(serve(Transport::Plain(near), None, &settings, &metrics, future::pending::<()>(), &app));
    let mut polls = 0;
    while chunks.get() < CHUNKS {
        let before = chunks.get();
        assert!(futures::poll!(&mut serving).is_pending());
        polls += 1;
        assert!(chunks.get() <= before + 1, "{} chunks in one poll", chunks.get() - before);
        assert!(polls < 10 * CHUNKS, "{} chunks in {polls} polls", chunks.get());
    }
}

#[actix_web::test]
async fn over_tls_too_although_rustls_buffers_some_of_it() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let folder = tempfile::tempdir().expect("a folder");
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).expect("a certificate");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("a key");
    let tls = Tls::load(TlsFiles { cert, key, client_ca: None }).expect("TLS");
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a root");
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (near, far) = duplex(CAPACITY);
    let name = ServerName::try_from("localhost").expect("a name");
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, far);
    let (server, client) = futures::join!(accept(tls, near), connecting);
    let mut client = client.expect("a handshake");
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("a request");
    client.flush().await.expect("space in the pipe");
    let (far, _) = client.into_inner();
    // less than what rustls buffers
    let transport = Transport::Tls(Box::new(server.expect("a handshake")));
    assert_polled_when_the_socket_has_all(transport, far, 60_000).await;
}

#[actix_web::test]
async fn a_body_that_outlives_its_request_reads_nothing_of_the_next() {
    let kept = Rc::new(RefCell::new(None));
    let answered = Rc::new(Cell::new(0));
    let (keeping, answering) = (Rc::clone(&kept), Rc::clone(&answered));
    let app = fn_service(move |mut request: Request| {
        let (kept, answered) = (Rc::clone(&keeping), Rc::clone(&answering));
        async move {
            // The body of the first request is polled while the second is handled.
            let earlier = kept.replace(Some(request.take_payload()));
            if let Some(mut earlier) = earlier {
                assert!(matches!(earlier.next().await, Some(Err(PayloadError::Incomplete(_)))));
            }
            answered.set(answered.get() + 1);
            Ok::<_, actix_web::Error>(Response::with_body(StatusCode::OK, ""))
        }
    });
    let (near, mut far) = duplex(CAPACITY);
    let request = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello";
    far.write_all(request.repeat(2).as_bytes()).await.expect("two requests");
    far.shutdown().await.expect("an end");
    serve(Transport::Plain(near), None, &settings(), &metrics(), future::pending::<()>(), &app).await;
    assert_eq!(answered.get(), 2);
    // It is also polled after the connection has ended.
    let mut last = kept.take().expect("a body");
    assert!(matches!(last.next().await, Some(Err(PayloadError::Incomplete(_)))));
}

#[actix_web::test]
async fn an_interim_answer_that_is_sent_in_part_is_completed_before_the_answer() {
    let app = fn_service(|mut request: Request| async move {
        let mut body = request.take_payload();
        // One poll, which sends as much as fits into the pipe.
        assert!(futures::poll!(body.next()).is_pending());
        Ok::<_, actix_web::Error>(Response::with_body(StatusCode::FORBIDDEN, ""))
    });
    for capacity in [1, 10, 24, 25, 26, 1000] {
        let (near, mut far) = duplex(capacity);
        let settings = settings();
        let metrics = metrics();
        let serving = serve(Transport::Plain(near), None, &settings, &metrics, future::pending::<()>(), &app);
        let asking = async {
            let head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
            far.write_all(head).await.expect("a request");
            // The server fills the pipe before anything is read from it.
            tokio::task::yield_now().await;
            let mut answers = String::new();
            while !answers.ends_with("\r\n\r\n") || !answers.contains("403") {
                answers.push(far.read_u8().await.expect("an answer").into());
            }
            drop(far);
            answers
        };
        let ((), answers) = futures::join!(serving, asking);
        assert!(answers.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 "), "{capacity}: {answers}");
    }
}

/// Answers in the form that the path names.
async fn various(mut request: Request) -> Result<Response<BoxBody>, actix_web::Error> {
    let path = request.path().to_owned();
    let mut body = Vec::new();
    if path != "/unread" {
        let mut payload = request.take_payload();
        while let Some(chunk) = payload.next().await {
            body.extend_from_slice(&chunk?);
        }
    }
    let answer = format!("{} {path} {}", request.method(), String::from_utf8_lossy(&body));
    let mut response = match path.as_str() {
        "/nothing" => Response::with_body(StatusCode::NO_CONTENT, BoxBody::new(())),
        "/stream" => {
            let chunks: Vec<_> = answer.bytes().map(|byte| Ok::<_, Infallible>(Bytes::from(vec![byte]))).collect();
            let stream = actix_http::body::BodyStream::new(futures::stream::iter(chunks));
            Response::with_body(StatusCode::OK, BoxBody::new(stream))
        }
        "/large" => Response::with_body(StatusCode::OK, BoxBody::new(answer.repeat(3_000))),
        _ => Response::with_body(StatusCode::BAD_REQUEST, BoxBody::new(answer)),
    };
    // the real date could differ between two answers
    response.headers_mut().insert(HeaderName::from_static("date"), HeaderValue::from_static("today"));
    Ok(response)
}

/// The answers to `pieces` that are sent one after another.
async fn answers(pieces: Vec<Vec<u8>>) -> String {
    let (near, far) = duplex(1 << 16);
    let (mut reading, mut writing) = tokio::io::split(far);
    let sending = async {
        for piece in pieces {
            // the server may have closed
            if writing.write_all(&piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let _ = writing.shutdown().await;
    };
    let settings = settings();
    let metrics = metrics();
    let app = fn_service(various);
    let serving = serve(Transport::Plain(near), None, &settings, &metrics, future::pending::<()>(), &app);
    let mut answers = Vec::new();
    let receiving = reading.read_to_end(&mut answers);
    futures::join!(sending, serving, async { receiving.await.expect("an end") });
    String::from_utf8(answers).expect("UTF-8")
}

fn any_request(random: &mut StdRng) -> String {
    let pick = |random: &mut StdRng, from: &[&str]| from[random.random_range(0..from.len())].to_owned();
    let method = pick(random, &["GET", "HEAD", "POST", "PUT"]);
    let path = pick(random, &["/nothing", "/stream", "/large", "/unread", "/other"]);
    let offer = pick(random, &["", "", "Connection: Upgrade\r\nUpgrade: websocket\r\n", "Connection: keep-alive\r\n"]);
    let body = "x".repeat(random.random_range(0..50));
    let body = match random.random_range(0..3) {
        0 => "\r\n".to_owned(),
        1 => format!("Content-Length: {}\r\n\r\n{body}", body.len()),
        _ => {
            let chunk = |of: &[u8]| format!("{:x}\r\n{}\r\n", of.len(), "x".repeat(of.len()));
            let chunks: String = body.as_bytes().chunks(7).map(chunk).collect();
            format!("Transfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")
        }
    };
    // a generated id would differ from answer to answer
    let id = random.random_range(0..u32::MAX);
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\nX-Request-Id: {id}\r\n{offer}{body}")
}

#[actix_web::test]
async fn pipelined_requests_in_any_pieces_get_the_answers_that_each_gets_alone() {
    for seed in 0..300 {
        let mut random = StdRng::seed_from_u64(seed);
        let requests: Vec<String> = (0..random.random_range(1..8)).map(|_| any_request(&mut random)).collect();
        let mut alone = Vec::new();
        for request in &requests {
            alone.push(answers(vec![request.clone().into_bytes()]).await);
        }
        let all = requests.concat().into_bytes();
        let mut pieces = Vec::new();
        let mut rest = &all[..];
        while !rest.is_empty() {
            let longest = if random.random_bool(0.5) { 5 } else { 500 };
            let (piece, others) = rest.split_at(random.random_range(1..=longest.min(rest.len())));
            pieces.push(piece.to_vec());
            rest = others;
        }
        let together = answers(pieces).await;
        let mut rest = together.as_str();
        for (request, answer) in requests.iter().zip(&alone) {
            if let Some(others) = rest.strip_prefix(answer.as_str()) {
                rest = others;
                continue;
            }
            // an unread body that has not arrived yet ends the connection
            let (head, body) = answer.split_once("date").expect("a head");
            assert_eq!(
                rest,
                format!("{head}connection: close\r\ndate{body}"),
                "seed {seed}: {request:?} of {requests:?}"
            );
            assert!(request.contains("/unread"), "seed {seed}: {request:?} of {requests:?}");
            rest = "";
            break;
        }
        assert_eq!(rest, "", "seed {seed}: {requests:?}");
    }
}
