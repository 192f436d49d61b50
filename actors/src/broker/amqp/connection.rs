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

/// For each address that the host's name resolves to.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest silence of the broker during the handshake of AMQP, and the time for that of TLS before it. RabbitMQ
/// makes a client with a wrong password wait for 3 s before it hangs up, so less would hide the reason.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// The operating system probes a silent peer after this time, and then after each third of it. AMQP's heartbeats find a
/// broker that is gone, this finds a machine that is gone.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 3;
/// How long sent bytes may stay unacknowledged by the peer's machine, or wait for space in its receive buffer. A broker
/// with a slow disk does not read for some seconds now and then.
const USER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the broker has to confirm a close. It never does while it blocks the connection, because it does not read
/// from it then; and amiquip would wait forever, because the broker's heartbeats still come.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// RabbitMQ's own default. amiquip counts channel numbers up to the maximum before it reuses one, and at 65,535 its
/// counter would overflow. Each look at a downstream queue that does not exist costs a channel.
const CHANNEL_MAX: u16 = 2_047;
/// Frames on their way to amiquip's I/O thread, of up to 128 KiB each (RabbitMQ's `frame_max`): with 16, at most
/// 2 MiB. Enough to keep that thread busy; when it is full, the thread that publishes waits.
const FRAMES_TO_IO_THREAD: usize = 16;
/// Above this many bytes, amiquip's I/O thread takes no more frames until it has written all but [`LOW_WATER_BYTES`] of
/// them. So a body of 50 MiB is not held twice. amiquip also moves the remaining buffer forward after each partial
/// write, so the cost of a large buffer grows with its square.
const HIGH_WATER_BYTES: usize = 4 << 20;
/// Above zero, so that the socket does not run dry while the next frames are fetched.
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
    /// Over a publication that the broker never takes.
    #[error("{0}")]
    Poison(Error),
    #[error("{0}")]
    Tls(String),
    #[error("no thread: {0}")]
    Thread(io::Error),
}

impl SessionError {
    /// Whether the broker was there at the end. It has only refused something on a channel, or the message that the
    /// close of this channel has cut short: amiquip stops in the middle of a body then, over which RabbitMQ closes the
    /// connection.
    fn is_refusal(&self) -> bool {
        match self {
            Self::Amqp(error) => matches!(
                error,
                Error::ServerClosedChannel { .. } | Error::ServerClosedConnection { code: UNEXPECTED_FRAME, .. }
            ),
            Self::UnknownReturn | Self::Poison(_) => true,
            Self::ConsumerCancelled | Self::Tls(_) | Self::Thread(_) => false,
        }
    }

    /// Whether this says only that amiquip's I/O thread has ended, and another error says why.
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

/// The cause among two results of the same end: `second` where `first` is `Ok` or only a symptom.
pub(super) fn cause(first: Result<(), SessionError>, second: Result<(), SessionError>) -> Result<(), SessionError> {
    match (first, second) {
        (Err(first), Err(second)) if first.is_symptom() && !second.is_symptom() => Err(second),
        (Err(first), _) => Err(first),
        (Ok(()), second) => second,
    }
}

/// Why a connection has ended, or could not be made.
pub(super) struct ConnectionEnd {
    /// Without any password.
    pub(super) reason: String,
    /// Whether the broker may have been restarted.
    pub(super) lost: bool,
    /// Whether a poison message was the reason. Each time one is parked or fewer are suspected, so the next attempt
    /// need not wait for long.
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
/// Once `stop` is disconnected, this returns within [`CLOSE_TIMEOUT`], whatever the broker does; only the look-up of
/// its address and the attempts to connect are not cut short. When a session ends by itself, its connection is closed
/// within the same time.
///
/// # Errors
/// Why it has ended, unless the session has ended without an error. Never holds the password.
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
        // Dropped however this closure ends, so that the guard ends before the scope does.
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
            format!("{} has hung up during the login: wrong user or password, most likely", config.url)
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
    /// Notes whether the broker blocks the connection. While it does, it does not read, and the kernel would take that
    /// for a dead peer.
    pub(super) fn set_blocked(&self, blocked: bool) {
        let timeout = if blocked { Duration::ZERO } else { USER_TIMEOUT };
        if let Err(error) = set_user_timeout(&self.0, timeout) {
            log::debug!("the socket's timeout cannot be set: {error}");
        }
    }
}

fn set_user_timeout(stream: &TcpStream, timeout: Duration) -> io::Result<()> {
    Ok(sockopt::set_tcp_user_timeout(stream, timeout.as_millis() as u32)?)
}

/// To the guard: the connection is being closed.
struct Closing;

/// Shuts `socket` down if the orderly close of the connection takes too long. Every wait inside amiquip ends with the
/// socket, also the wait for space in its buffer.
fn guard(socket: &Socket, stop: &Receiver<Infallible>, phases: &Receiver<Closing>) {
    select! {
        recv(stop) -> _ => {}
        recv(phases) -> phase => if phase.is_err() { return },
    }
    // A second message at most: where `stop` came first, `Closing` does not prolong the time.
    let deadline = crossbeam_channel::after(CLOSE_TIMEOUT);
    loop {
        select! {
            recv(phases) -> phase => if phase.is_err() { return },
            recv(deadline) -> _ => break,
        }
    }
    log::warn!("the broker has not confirmed the close within {CLOSE_TIMEOUT:?}; the connection is shut down");
    // An error says that it is shut down already.
    let _ = socket.0.shutdown(Shutdown::Both);
}

fn connect(url: &AmqpUrl) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    for address in (url.host.as_str(), url.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => {
                // amiquip does not set it. Without it, each message waits for the TCP acknowledgement of the one
                // before: 35 messages a second, confirmed one at a time, against 1,590 (RabbitMQ 3.10, loopback).
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

fn open(config: &AmqpConfig, stream: TcpStream) -> Result<Connection, SessionError> {
    let url = &config.url;
    let session = url.tls.then(|| shake_hands(config, &stream)).transpose().map_err(SessionError::Tls)?;
    let options = ConnectionOptions::default()
        .auth(Auth::Plain { username: url.user.clone(), password: url.password.clone() })
        .virtual_host(url.vhost.as_str())
        .heartbeat(HEARTBEAT_SECONDS)
        .channel_max(CHANNEL_MAX)
        .connection_timeout(Some(HANDSHAKE_TIMEOUT))
        // RabbitMQ's list of connections shows it beside amiquip's own name.
        .information(Some(concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).to_owned()));
    let tuning = ConnectionTuning::default()
        .mem_channel_bound(FRAMES_TO_IO_THREAD)
        .buffered_writes_high_water(HIGH_WATER_BYTES)
        .buffered_writes_low_water(LOW_WATER_BYTES);
    let stream = mio::net::TcpStream::from_stream(stream).map_err(|source| Error::IoErrorWritingSocket { source })?;
    // amiquip calls a stream that it does not encrypt itself "insecure".
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
