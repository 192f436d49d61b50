//! TLS for AMQP: the handshake, and a stream for amiquip's I/O thread.

use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Instant;

use amiquip::IoStream;
use mio::{Evented, Poll, PollOpt, Ready, Token};
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig, ClientConnection, Error};

use super::AmqpConfig;
use super::connection::HANDSHAKE_TIMEOUT;
use crate::tls::{explained, provider, roots, system_roots};

/// Performs the TLS handshake with the broker, and checks its certificate and name.
///
/// # Errors
/// Why the handshake failed.
pub(super) fn shake_hands(config: &AmqpConfig, socket: &TcpStream) -> Result<ClientConnection, String> {
    let mut session = session(config)?;
    let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
    let mut shake = || -> io::Result<()> {
        let mut socket = socket;
        while session.is_handshaking() {
            while session.wants_write() {
                session.write_tls(&mut socket)?;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            socket.set_read_timeout(Some(left))?;
            if session.read_tls(&mut socket)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            if let Err(error) = session.process_new_packets() {
                // Sends the alert to the broker. If that fails, `error` is still the one to report.
                let _ = session.write_tls(&mut socket);
                return Err(io::Error::new(ErrorKind::InvalidData, error));
            }
        }
        while session.wants_write() {
            session.write_tls(&mut socket)?;
        }
        Ok(())
    };
    match shake() {
        Ok(()) => Ok(session),
        Err(error) => Err(match error.get_ref().and_then(|error| error.downcast_ref::<Error>()) {
            Some(error) => refusal(error, config),
            None => match error.kind() {
                ErrorKind::TimedOut | ErrorKind::WouldBlock => {
                    format!("the TLS handshake did not finish within {HANDSHAKE_TIMEOUT:?}")
                }
                ErrorKind::UnexpectedEof => "the broker has disconnected during the TLS handshake".to_owned(),
                _ => format!("the TLS handshake has failed: {error}"),
            },
        }),
    }
}

fn session(config: &AmqpConfig) -> Result<ClientConnection, String> {
    let roots = match &config.ca_file {
        Some(path) => roots(path).map_err(|why| format!("{}: {why}", path.display()))?,
        None => system_roots().map_err(|why| format!("no certificate can be verified: {why} (set --amqp-ca-file)"))?,
    };
    let name = ServerName::try_from(config.url.host.clone())
        .map_err(|_| format!("{:?} is not a host name or address that a certificate can name", config.url.host))?;
    let tls = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    ClientConnection::new(Arc::new(tls), name).map_err(|error| error.to_string())
}

fn refusal(error: &Error, config: &AmqpConfig) -> String {
    match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            let trusted = match &config.ca_file {
                Some(path) => format!("a CA in {}", path.display()),
                None => "a CA that the system trusts".to_owned(),
            };
            format!("the broker's certificate is not trusted: it was not issued by {trusted}")
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => format!("the name does not match: the broker's certificate is not for {:?}", config.url.host),
        Error::InvalidCertificate(_) => format!("the broker's certificate is not accepted: {}", explained(error)),
        Error::InvalidMessage(_) => format!("the server at this address does not speak TLS: {error}"),
        error => format!("the TLS handshake has failed: {error}"),
    }
}

/// A connection after its handshake.
///
/// amiquip waits for a writable socket only while it has bytes to write itself, and reads only when the socket is
/// readable. So no bytes may stay in this buffer: a write returns once the socket has accepted all encrypted bytes, and
/// a read goes on until the socket is empty.
pub(super) struct TlsStream {
    session: ClientConnection,
    socket: mio::net::TcpStream,
    /// How many of the caller's bytes are encrypted but not yet accepted by the socket.
    taken: usize,
}

impl TlsStream {
    pub(super) fn new(session: ClientConnection, socket: mio::net::TcpStream) -> Self {
        Self { session, socket, taken: 0 }
    }
}

impl IoStream for TlsStream {}

impl Read for TlsStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.session.reader().read(buf) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return done,
            }
            // AMQP frames have a length, so a stream that ends without a TLS alert cannot truncate one unnoticed.
            if self.session.read_tls(&mut self.socket)? == 0 {
                return Ok(0);
            }
            self.session.process_new_packets().map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        }
    }
}

impl Write for TlsStream {
    /// After an error of the kind `WouldBlock`, the next call must pass the same bytes, or these and more.
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.taken == 0 {
            self.taken = self.session.writer().write(buf)?;
        }
        self.flush()?;
        Ok(mem::take(&mut self.taken))
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            if self.session.write_tls(&mut self.socket)? == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }
}

impl Evented for TlsStream {
    fn register(&self, poll: &Poll, token: Token, interest: Ready, opts: PollOpt) -> io::Result<()> {
        self.socket.register(poll, token, interest, opts)
    }

    fn reregister(&self, poll: &Poll, token: Token, interest: Ready, opts: PollOpt) -> io::Result<()> {
        self.socket.reregister(poll, token, interest, opts)
    }

    fn deregister(&self, poll: &Poll) -> io::Result<()> {
        self.socket.deregister(poll)
    }
}
