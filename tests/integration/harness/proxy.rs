//! A TCP proxy in front of a broker, or of the server itself, that delays, cuts and swallows what passes.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The size of one read. Data is swallowed in units of one read.
const CHUNK_BYTES: usize = 16 << 10;
/// Chunks in transit in one direction. While it is full, the reader waits, as on a congested network.
const CHUNKS: usize = 256;

/// A direction through the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToBroker,
    ToServer,
}

/// A proxy on a port of its own. At first it forwards everything at once.
pub struct Proxy {
    address: SocketAddr,
    url: String,
    shared: Arc<Shared>,
}

struct Shared {
    broker: SocketAddr,
    rules: Mutex<Rules>,
    links: Mutex<Vec<Arc<Link>>>,
    /// How many bytes the server has got from the broker.
    to_server: AtomicU64,
    ended: AtomicBool,
}

#[derive(Default)]
struct Rules {
    delay: Duration,
    swallowed: Vec<Direction>,
    /// The byte counts after which the next connections are cut, in their order.
    cuts: VecDeque<usize>,
}

/// A connection from the server, and the connection to the broker that belongs to it.
struct Link {
    server: TcpStream,
    broker: TcpStream,
    /// How many bytes may still pass, in both directions together, before it is cut.
    left: Mutex<Option<usize>>,
    /// Directions in which bytes have been swallowed. Nothing may follow a gap, so they never pass bytes again.
    broken: Mutex<Vec<Direction>>,
}

impl Proxy {
    /// A proxy in front of the broker of an AMQP URL whose host is an address.
    pub fn to(url: &str) -> Self {
        let (before, rest) = url.rsplit_once('@').expect("a user in the URL");
        let (broker, vhost) = rest.split_once('/').expect("a vhost in the URL");
        Self::start(broker.parse().expect("an address and a port"), |address| format!("{before}@{address}/{vhost}"))
    }

    /// A proxy between a worker and a TLS server: the worker is what this file calls the server, and the server what it
    /// calls the broker.
    pub fn to_https(server: SocketAddr) -> Self {
        Self::start(server, |address| format!("https://{address}/"))
    }

    /// A proxy in front of a server, seen from a proxy that speaks HTTP.
    pub fn to_http(server: SocketAddr) -> Self {
        Self::start(server, |address| format!("http://{address}/"))
    }

    /// Where it is reached.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn start(broker: SocketAddr, url: impl Fn(SocketAddr) -> String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("the address of a bound socket");
        let shared = Arc::new(Shared {
            broker,
            rules: Mutex::default(),
            links: Mutex::default(),
            to_server: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || accepting.accept(&listener));
        Self { address, url: url(address), shared }
    }

    /// The URL of the broker or server through this proxy.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// How many bytes have passed to the server from the broker, or to the worker from the server.
    pub fn bytes_to_server(&self) -> u64 {
        self.shared.to_server.load(Ordering::Relaxed)
    }

    /// Adds this delay in each direction from now on.
    pub fn delay(&self, delay: Duration) {
        self.shared.rules().delay = delay;
    }

    /// Cuts every connection.
    pub fn cut(&self) {
        for link in locked(&self.shared.links).drain(..) {
            link.cut();
        }
    }

    /// Cuts every connection, and then each coming one after so many bytes of both directions together; those that come
    /// when the numbers have run out live on.
    pub fn cut_each_after(&self, bytes: impl IntoIterator<Item = usize>) {
        self.shared.rules().cuts = bytes.into_iter().collect();
        self.cut();
    }

    /// How many cuts are still pending, including those of open connections.
    pub fn cuts_left(&self) -> usize {
        let rules = self.shared.rules();
        let living = locked(&self.shared.links).iter().filter(|link| locked(&link.left).is_some()).count();
        rules.cuts.len() + living
    }

    /// From now on everything in these directions is swallowed, including the ends of connections.
    pub fn swallow(&self, directions: &[Direction]) {
        self.shared.rules().swallowed = directions.to_vec();
    }

    /// From now on everything passes, except on connections that have lost bytes.
    pub fn forward(&self) {
        self.swallow(&[]);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.cut();
        // Wakes the thread that accepts.
        TcpStream::connect(self.address).ok();
    }
}

impl Shared {
    fn rules(&self) -> MutexGuard<'_, Rules> {
        locked(&self.rules)
    }

    fn accept(self: Arc<Self>, listener: &TcpListener) {
        for server in listener.incoming() {
            if self.ended.load(Ordering::Relaxed) {
                return;
            }
            let Ok(server) = server else { continue };
            // Dropped where there is no broker, which refuses the server, a moment later than the broker would.
            let Ok(broker) = TcpStream::connect(self.broker) else { continue };
            for stream in [&server, &broker] {
                stream.set_nodelay(true).expect("TCP_NODELAY");
            }
            // Locked until the connection is in the list, so that a cut cannot miss it.
            let mut rules = self.rules();
            let left = Mutex::new(rules.cuts.pop_front());
            let link = Arc::new(Link { server, broker, left, broken: Mutex::default() });
            locked(&self.links).push(Arc::clone(&link));
            drop(rules);
            for direction in [Direction::ToBroker, Direction::ToServer] {
                let (shared, link) = (Arc::clone(&self), Arc::clone(&link));
                thread::spawn(move || shared.pump(&link, direction));
            }
        }
    }

    /// Reads one direction of a connection, while another thread writes the chunks that are due.
    fn pump(&self, link: &Link, direction: Direction) {
        let (mut from, _) = link.ends(direction);
        let (queue, queued) = sync_channel(CHUNKS);
        thread::scope(|scope| {
            scope.spawn(|| self.write(link, direction, queued));
            let mut chunk = vec![0; CHUNK_BYTES];
            loop {
                let read = from.read(&mut chunk).unwrap_or(0);
                let due = Instant::now() + self.rules().delay;
                if queue.send((due, chunk[..read].to_vec())).is_err() || read == 0 {
                    break;
                }
            }
            drop(queue);
        });
    }

    /// Writes chunks when they are due. An empty chunk marks the end.
    fn write(&self, link: &Link, direction: Direction, queued: Receiver<(Instant, Vec<u8>)>) {
        let (_, mut to) = link.ends(direction);
        for (due, chunk) in queued {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if self.swallows(link, direction) {
                continue;
            }
            if chunk.is_empty() {
                to.shutdown(Shutdown::Write).ok();
                *locked(&link.left) = None;
                return;
            }
            let passing = link.allowed(chunk.len());
            let written = to.write_all(&chunk[..passing]);
            if direction == Direction::ToServer {
                self.to_server.fetch_add(passing as u64, Ordering::Relaxed);
            }
            if written.is_err() || passing < chunk.len() {
                link.cut();
                // Only a closed socket resets the connection: one that is shut down accepts the peer's bytes.
                locked(&self.links).retain(|other| !std::ptr::eq(&**other, link));
                return;
            }
        }
    }

    fn swallows(&self, link: &Link, direction: Direction) -> bool {
        let mut broken = locked(&link.broken);
        if self.rules().swallowed.contains(&direction) && !broken.contains(&direction) {
            broken.push(direction);
        }
        broken.contains(&direction)
    }
}

impl Link {
    /// The source and the target of this direction.
    fn ends(&self, direction: Direction) -> (&TcpStream, &TcpStream) {
        match direction {
            Direction::ToBroker => (&self.server, &self.broker),
            Direction::ToServer => (&self.broker, &self.server),
        }
    }

    /// How many of these bytes may pass.
    fn allowed(&self, bytes: usize) -> usize {
        let mut left = locked(&self.left);
        let Some(left) = left.as_mut() else { return bytes };
        let passing = bytes.min(*left);
        *left -= passing;
        passing
    }

    fn cut(&self) {
        *locked(&self.left) = None;
        for stream in [&self.server, &self.broker] {
            // An error says that it has ended already.
            stream.shutdown(Shutdown::Both).ok();
        }
    }
}

/// Ignores poisoning, so that the panic of a failed test is the one that is reported.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
