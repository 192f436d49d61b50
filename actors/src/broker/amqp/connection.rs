//! One connection to the broker, opened and closed within bounded time.

use std::convert::Infallible;
use std::io;
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::Duration;

use amiquip::{Auth, Connection, ConnectionOptions, ConnectionTuning, Error};
use crossbeam_channel::{Receiver, bounded, select};
use rustix::net::sockopt;

use super::sanitize::{HEARTBEAT_SECONDS, Sanitized};
use super::tls::{TlsStream, shake_hands};
use super::topology::UNEXPECTED_FRAME;
use super::{AmqpConfig, AmqpUrl};

/// How long one attempt to connect may take. There is one for each address that the host name resolves to.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the broker may be silent during the AMQP handshake, and how long the TLS handshake may take. RabbitMQ
/// disconnects a client with a wrong password after 3 s; with a shorter time than that, the error would be a timeout.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// The operating system probes a silent peer after this time, and then after each third of it. AMQP's heartbeats detect
/// a broker that has stopped, these probes a machine that has.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 3;
/// How long sent bytes may stay unacknowledged by the peer's machine, or wait for space in its receive buffer. Long
/// because a broker with a slow disk sometimes does not read for some seconds.
const USER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the broker may take to confirm a close. A broker that blocks the connection does not read from it, so it
/// never confirms; amiquip would wait forever, because the broker's heartbeats still arrive.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// RabbitMQ's own default. amiquip counts channel numbers up to the maximum before it reuses one, and at 65,535 its
/// counter would overflow. Each check of a downstream queue that does not exist costs a channel.
const CHANNEL_MAX: u16 = 2_047;
/// How many frames the channel to amiquip's I/O thread holds, of up to 128 KiB each (RabbitMQ's `frame_max`): at most
/// 2 MiB. Enough to keep that thread busy. When the channel is full, the thread that publishes waits.
const FRAMES_TO_IO_THREAD: usize = 16;
/// When amiquip's I/O thread has buffered this many bytes, it takes no more frames until it has written all but
/// [`LOW_WATER_BYTES`] of them. So a body of 50 MiB is not in memory twice. Also, amiquip moves the remaining buffer to
/// the front after each partial write, so the cost of a large buffer grows with its square.
const HIGH_WATER_BYTES: usize = 4 << 20;
/// Above zero, so that the socket has bytes to send while the I/O thread fetches the next frames.
const LOW_WATER_BYTES: usize = 1 << 20;

/// Why a session has ended by itself.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("{0}")]
    Amqp(#[from] Error),
    #[error("the broker has cancelled the consumer; its queue has been deleted")]
    ConsumerCancelled,
    #[error("the broker has returned a message that was not published")]
    UnknownReturn,
    /// The broker has closed the channel because of a publication that it will never accept.
    #[error("{0}")]
    Poison(Error),
    #[error("{0}")]
    Tls(String),
    /// The queue to consume exists with another type.
    #[error(
        "queue {queue:?} exists with another type than --amqp-queue-type says; once it is empty, delete it, and it is \
         declared anew, or leave that option out: {message}"
    )]
    QueueType { queue: String, message: String },
    #[error("no thread could be started: {0}")]
    Thread(io::Error),
}

impl SessionError {
    /// Whether the broker was running and only refused something. It closes the channel, or the connection: when it
    /// closes a channel, amiquip stops in the middle of a body, and RabbitMQ closes the connection because of that
    /// unfinished message.
    fn is_refusal(&self) -> bool {
        match self {
            Self::Amqp(error) => matches!(
                error,
                Error::ServerClosedChannel { .. } | Error::ServerClosedConnection { code: UNEXPECTED_FRAME, .. }
            ),
            Self::UnknownReturn | Self::Poison(_) | Self::QueueType { .. } => true,
            Self::ConsumerCancelled | Self::Tls(_) | Self::Thread(_) => false,
        }
    }

    /// Whether this only says that amiquip's I/O thread has ended. Another error says why.
    fn is_symptom(&self) -> bool {
        matches!(
            self,
            Self::Amqp(
                Error::EventLoopDropped
                    | Error::EventLoopClientDropped
                    | Error::ClientClosedChannel
                    | Error::ClientClosedConnection
            )
        )
    }
}

/// Picks the cause from two results of one end: `second` if `first` is `Ok` or only a symptom.
pub(super) fn cause(first: Result<(), SessionError>, second: Result<(), SessionError>) -> Result<(), SessionError> {
    match (first, second) {
        (Err(first), Err(second)) if first.is_symptom() && !second.is_symptom() => Err(second),
        (Err(first), _) => Err(first),
        (Ok(()), second) => second,
    }
}

/// Why a connection has ended, or could not be made.
pub(super) struct ConnectionEnd {
    /// Does not contain the password.
    pub(super) reason: String,
    /// Whether the broker may have been restarted.
    pub(super) lost: bool,
    /// Whether a poison message was the reason. Each such end parks one message or narrows the suspects down, so the
    /// next attempt need not wait for long.
    pub(super) by_poison: bool,
}

impl ConnectionEnd {
    /// The end of a connection that was lost or could not be made.
    pub(super) fn lost(reason: String) -> Self {
        Self { reason, lost: true, by_poison: false }
    }
}

/// Connects, runs `session` and closes the connection. The session opens its channels and closes them.
///
/// Once `stop` is disconnected, this returns within [`CLOSE_TIMEOUT`], whatever the broker does. Only the look-up of
/// its address and the attempts to connect cannot be interrupted. If a session ends by itself, its connection is closed
/// within the same time.
///
/// # Errors
/// Why the session has ended, unless it ended without an error. Never contains the password.
pub(super) fn run_session(
    config: &AmqpConfig,
    stop: &Receiver<Infallible>,
    session: impl FnOnce(&mut Connection, &Socket) -> Result<(), SessionError>,
) -> Result<(), ConnectionEnd> {
    config.validate().map_err(ConnectionEnd::lost)?;
    let stream = connect(&config.url)
        .map_err(|error| ConnectionEnd::lost(format!("cannot connect to {}: {error}", config.url)))?;
    let socket = Socket(stream.try_clone().map_err(|error| ConnectionEnd::lost(error.to_string()))?);
    let (phase, phases) = bounded(1);
    let ended = thread::scope(|scope| {
        // Dropped on every return from this closure, also by unwinding, so that the guard ends before the scope does.
        let phase = phase;
        thread::Builder::new()
            .name("amqp-guard".to_owned())
            .spawn_scoped(scope, || guard(&socket, stop, &phases))
            .map_err(SessionError::Thread)?;
        let mut connection = open(config, stream)?;
        let ended = session(&mut connection, &socket);
        let _ = phase.send(Closing);
        cause(ended, connection.close().map_err(SessionError::from))
    });
    let lost = !ended.as_ref().is_err_and(SessionError::is_refusal);
    let by_poison = matches!(ended, Err(SessionError::Poison(_)));
    let reason = |error| match error {
        SessionError::Amqp(Error::InvalidCredentials) => {
            format!("{} has disconnected during the login: the user or password is probably wrong", config.url)
        }
        SessionError::Amqp(Error::ConnectionTimeout) => {
            format!("{} does not answer the AMQP handshake within {HANDSHAKE_TIMEOUT:?}", config.url)
        }
        error => format!("{}: {error}", config.url),
    };
    ended.map_err(|error| ConnectionEnd { reason: reason(error), lost, by_poison })
}

/// A second handle to the socket that amiquip uses.
pub(super) struct Socket(TcpStream);

impl Socket {
    /// Adapts the socket to whether the broker blocks the connection. While it does, it does not read, and the kernel
    /// would take it for dead.
    pub(super) fn set_blocked(&self, blocked: bool) {
        let timeout = if blocked { Duration::ZERO } else { USER_TIMEOUT };
        if let Err(error) = set_user_timeout(&self.0, timeout) {
            log::debug!("cannot set the timeout of the broker's socket: {error}");
        }
    }
}

fn set_user_timeout(stream: &TcpStream, timeout: Duration) -> io::Result<()> {
    Ok(sockopt::set_tcp_user_timeout(stream, timeout.as_millis() as u32)?)
}

/// Notifies the guard that the connection is being closed.
struct Closing;

/// Shuts `socket` down if the orderly close of the connection takes too long. That ends every wait inside amiquip, also
/// the wait for space in the socket's buffer.
fn guard(socket: &Socket, stop: &Receiver<Infallible>, phases: &Receiver<Closing>) {
    select! {
        recv(stop) -> _ => {}
        recv(phases) -> phase => if phase.is_err() { return },
    }
    // `Closing` may arrive here if `stop` came first. It does not prolong the time.
    let deadline = crossbeam_channel::after(CLOSE_TIMEOUT);
    loop {
        select! {
            recv(phases) -> phase => if phase.is_err() { return },
            recv(deadline) -> _ => break,
        }
    }
    log::warn!("the broker has not confirmed the close within {CLOSE_TIMEOUT:?}; the connection is shut down");
    // Fails if the socket is shut down already.
    let _ = socket.0.shutdown(Shutdown::Both);
}

pub(super) fn connect(url: &AmqpUrl) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    for address in (url.host.as_str(), url.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => {
                // amiquip does not set it. Without it, each message waits for the TCP acknowledgement of the previous
                // one: 35 messages per second, confirmed one at a time, instead of 1,590 (RabbitMQ 3.10, loopback).
                stream.set_nodelay(true)?;
                sockopt::set_socket_keepalive(&stream, true)?;
                sockopt::set_tcp_keepidle(&stream, KEEPALIVE)?;
                sockopt::set_tcp_keepintvl(&stream, KEEPALIVE / KEEPALIVE_PROBES)?;
                sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_PROBES)?;
                set_user_timeout(&stream, USER_TIMEOUT)?;
                return Ok(stream);
            }
            Err(error) => failed = io::Error::new(error.kind(), format!("{address}: {error}")),
        }
    }
    Err(failed)
}

pub(super) fn open(config: &AmqpConfig, stream: TcpStream) -> Result<Connection, SessionError> {
    let url = &config.url;
    let session = url.tls.then(|| shake_hands(config, &stream)).transpose().map_err(SessionError::Tls)?;
    let options = ConnectionOptions::default()
        .auth(Auth::Plain { username: url.user.clone(), password: url.password.clone() })
        .virtual_host(url.vhost.as_str())
        .heartbeat(HEARTBEAT_SECONDS)
        .channel_max(CHANNEL_MAX)
        .connection_timeout(Some(HANDSHAKE_TIMEOUT))
        // RabbitMQ's list of connections shows this beside amiquip's own name.
        .information(Some(concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).to_owned()));
    let tuning = ConnectionTuning::default()
        .mem_channel_bound(FRAMES_TO_IO_THREAD)
        .buffered_writes_high_water(HIGH_WATER_BYTES)
        .buffered_writes_low_water(LOW_WATER_BYTES);
    let stream = mio::net::TcpStream::from_stream(stream).map_err(|source| Error::IoErrorWritingSocket { source })?;
    // "insecure" means only that amiquip does not encrypt the stream itself.
    Ok(match session {
        None => Connection::insecure_open_stream(Sanitized::new(stream), options, tuning)?,
        Some(session) => {
            Connection::insecure_open_stream(Sanitized::new(TlsStream::new(session, stream)), options, tuning)?
        }
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_kernel_watches_the_peer_unless_the_broker_has_blocked_the_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("amqp://{}", listener.local_addr().expect("its address"));
        let stream = connect(&url.parse().expect("a valid URL")).expect("a connection");
        assert_eq!(sockopt::socket_keepalive(&stream), Ok(true));
        assert_eq!(sockopt::tcp_keepidle(&stream), Ok(KEEPALIVE));
        assert_eq!(sockopt::tcp_keepintvl(&stream), Ok(Duration::from_secs(5)));
        assert_eq!(sockopt::tcp_keepcnt(&stream), Ok(KEEPALIVE_PROBES));
        let timeout = |socket: &Socket| sockopt::tcp_user_timeout(&socket.0);
        let socket = Socket(stream);
        assert_eq!(timeout(&socket), Ok(60_000));
        socket.set_blocked(true);
        assert_eq!(timeout(&socket), Ok(0));
        socket.set_blocked(false);
        assert_eq!(timeout(&socket), Ok(60_000));
    }
}
