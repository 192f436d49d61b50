//! One connection of a server, over TCP or TLS, which knows when the socket has taken all that was written.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// A connection. It does not say that bytes are flushed until the socket has them: what rustls keeps in a buffer of
/// its own is not.
pub struct Connection<S = TcpStream> {
    stream: Stream<S>,
    flush: FlushSignal,
}

enum Stream<S> {
    Plain(S),
    Tls(Box<TlsStream<S>>),
}

impl<S> Connection<S> {
    /// Without encryption.
    pub fn plain(socket: S) -> Self {
        Self { stream: Stream::Plain(socket), flush: FlushSignal::default() }
    }

    /// After a handshake.
    pub fn tls(stream: TlsStream<S>) -> Self {
        Self { stream: Stream::Tls(Box::new(stream)), flush: FlushSignal::default() }
    }

    /// What it goes over.
    pub fn socket(&self) -> &S {
        match &self.stream {
            Stream::Plain(socket) => socket,
            Stream::Tls(stream) => stream.get_ref().0,
        }
    }

    /// Tells when what is written to it has been flushed.
    pub fn flush_signal(&self) -> FlushSignal {
        self.flush.clone()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(socket) => Pin::new(socket).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(socket) => Pin::new(socket).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    /// actix-http calls this whenever its own buffer is empty, and only then.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(socket) => ready!(Pin::new(socket).poll_flush(cx))?,
            Stream::Tls(stream) => ready!(Pin::new(stream).poll_flush(cx))?,
        }
        self.flush.is_over();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Tells the answer that is being written to a connection when the socket has all of it. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct FlushSignal(Rc<RefCell<State>>);

#[derive(Debug, Default)]
enum State {
    #[default]
    Over,
    /// Who waits for the flush, if anybody does already.
    Due(Option<Waker>),
}

impl FlushSignal {
    /// Bytes are about to be written.
    pub fn is_due(&self) {
        *self.0.borrow_mut() = State::Due(None);
    }

    /// Resolves when the socket has everything that was written since [`FlushSignal::is_due`].
    pub fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        match &mut *self.0.borrow_mut() {
            State::Over => Poll::Ready(()),
            State::Due(waiting) => {
                *waiting = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn is_over(&self) {
        if let State::Due(Some(waiting)) = std::mem::take(&mut *self.0.borrow_mut()) {
            waiting.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::sync::Arc;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, RootCertStore};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio_rustls::TlsConnector;
    use user_http_actors::tls::provider;

    use super::*;
    use crate::tls::{Tls, TlsFiles, accept};

    /// How many bytes the connection below takes before somebody reads.
    const ROOM: usize = 1000;
    /// Less than what rustls keeps for itself.
    const LEN: usize = 60_000;

    #[actix_web::test]
    async fn a_flush_is_over_when_the_socket_has_all_that_tls_has_made_of_the_bytes() {
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
        let (near, far) = duplex(ROOM);
        let name = ServerName::try_from("localhost").expect("a name");
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, far);
        let (server, client) = futures::join!(accept(tls, near), connecting);
        let (mut far, _) = client.expect("a handshake").into_inner();
        let mut server = Connection::tls(server.expect("a handshake"));

        let flush = server.flush_signal();
        flush.is_due();
        let mut flushed = pin!(poll_fn(|cx| flush.poll(cx)));
        server.write_all(&[7; LEN]).await.expect("bytes that rustls takes");
        assert!(futures::poll!(&mut flushed).is_pending(), "nobody has read");
        let mut flushing = pin!(server.flush());
        let (mut left, mut buffer) = (0, [0; ROOM]);
        while futures::poll!(&mut flushing).is_pending() {
            assert!(futures::poll!(&mut flushed).is_pending(), "{left} bytes have been read");
            left += far.read(&mut buffer).await.expect("what is encrypted");
        }
        assert!(left + ROOM >= LEN, "{left} bytes have left, {ROOM} more at most are on their way");
        assert!(futures::poll!(&mut flushed).is_ready());
    }

    #[actix_web::test]
    async fn a_flush_wakes_who_waits_for_it() {
        let (near, _far) = duplex(ROOM);
        let mut connection = Connection::plain(near);
        let flush = connection.flush_signal();
        assert!(futures::poll!(pin!(poll_fn(|cx| flush.poll(cx)))).is_ready(), "nothing was due");
        flush.is_due();
        let waiting = poll_fn(|cx| flush.poll(cx));
        let writing = async {
            tokio::task::yield_now().await;
            connection.write_all(&[7; 10]).await.expect("room");
            connection.flush().await.expect("a flush");
        };
        futures::join!(waiting, writing);
    }
}
