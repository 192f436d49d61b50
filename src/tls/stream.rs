//! One connection over TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{TlsAcceptor, server};

use super::Tls;

/// How long a client may take for the handshake. Until then it has a socket and a few KiB, nothing that others wait
/// for.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Shakes hands with a client.
///
/// # Errors
/// Why it did not come to that.
pub(crate) async fn accept<S>(tls: Tls, socket: S) -> io::Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = TlsAcceptor::from(tls.current()).accept(socket);
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await.map_err(io::Error::from)??;
    Ok(TlsStream { stream, taken: 0 })
}

/// A connection that says of bytes that they are written when the socket has taken all of them.
///
/// rustls itself would say so with up to 64 KiB in its own buffer, and a delivery would count as done before it is.
pub(crate) struct TlsStream<S> {
    stream: server::TlsStream<S>,
    /// How many bytes, the first ones of what is to be written, rustls has encrypted and the socket not yet taken.
    taken: usize,
}

impl<S> TlsStream<S> {
    /// What it is spoken over.
    pub fn socket(&self) -> &S {
        self.stream.get_ref().0
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    /// Until it is ready, each call must be with the same bytes, or with more behind them.
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.taken == 0 {
            self.taken = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        }
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        Poll::Ready(Ok(std::mem::take(&mut self.taken)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, RootCertStore};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio_rustls::TlsConnector;
    use user_http_actors::tls::provider;

    use super::*;
    use crate::tls::TlsFiles;

    /// How many bytes the connection below takes before somebody reads.
    const ROOM: usize = 1000;
    /// Less than what rustls would keep for itself.
    const LEN: usize = 60_000;

    #[actix_web::test]
    async fn bytes_are_written_when_all_of_them_have_left() {
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
        let mut server = server.expect("a handshake");

        let bytes = [7; LEN];
        let mut writing = pin!(server.write_all(&bytes));
        let (mut left, mut buffer) = (0, [0; ROOM]);
        while futures::poll!(&mut writing).is_pending() {
            left += far.read(&mut buffer).await.expect("what is encrypted");
        }
        assert!(left + ROOM >= LEN, "{left} bytes have left, {ROOM} more at most are on their way");
    }
}
