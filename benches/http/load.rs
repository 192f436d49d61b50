//! The clients: connections that are kept, each with one request under way at any time.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZero;
use std::thread;
use std::time::{Duration, Instant};

/// How long a client waits for a server before it gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Stands in a request for a UUID of its own.
pub const NUMBER: &str = "00000000-0000-4000-8000-############";

/// The last group of a UUID, the part that differs.
const DIGITS: usize = 12;

/// A request as it is sent.
#[derive(Clone)]
pub struct Request {
    bytes: Vec<u8>,
    /// Where the digits of its number stand.
    digits_at: Option<usize>,
    series: u64,
}

impl Request {
    pub fn get(target: &str) -> Self {
        Self::new(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    }

    pub fn post(target: &str, json: &str) -> Self {
        let length = json.len();
        Self::new(format!(
            "POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: \
             {length}\r\n\r\n{json}"
        ))
    }

    fn new(text: String) -> Self {
        let digits_at = text.find(NUMBER).map(|start| start + NUMBER.len() - DIGITS);
        Self { bytes: text.into_bytes(), digits_at, series: 0 }
    }

    /// The same request, with numbers that this one never has.
    pub fn with_other_numbers(&self) -> Self {
        Self { series: self.series + 1, ..self.clone() }
    }

    /// Writes the number that belongs to a turn of a connection: the same for all requests of a series.
    fn set_number(&mut self, connection: u64, turn: u64) {
        if let Some(start) = self.digits_at {
            let number = self.series << 44 | connection << 32 | turn;
            let mut digits = &mut self.bytes[start..start + DIGITS];
            write!(digits, "{number:0DIGITS$x}").expect("as many digits as there is room for");
        }
    }
}

/// When it is enough.
#[derive(Clone, Copy)]
pub enum Limit {
    At(Instant),
    /// After as many requests on each connection.
    Count(u64),
}

impl Limit {
    pub fn after(time: Duration) -> Self {
        Self::At(Instant::now() + time)
    }

    fn is_reached(self, turns: u64) -> bool {
        match self {
            Self::At(end) => Instant::now() >= end,
            Self::Count(count) => turns >= count,
        }
    }
}

struct Connection {
    number: u64,
    stream: TcpStream,
    request: Request,
    buffer: Vec<u8>,
}

impl Connection {
    fn open(address: SocketAddr, request: &Request, number: u64, buffer: usize) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        stream.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a write timeout");
        Self { number, stream, request: request.clone(), buffer: vec![0; buffer] }
    }

    fn send(&mut self, turn: u64) {
        self.request.set_number(self.number, turn);
        self.stream.write_all(&self.request.bytes).expect("a request sent");
    }

    fn read(&mut self, offset: usize) -> usize {
        let read = self.stream.read(&mut self.buffer[offset..]).expect("an answer in time");
        assert!(read > 0, "the server has closed the connection");
        read
    }

    /// Reads an answer to its end; its status and how long its body is.
    fn receive(&mut self) -> (u16, u64) {
        let mut filled = 0;
        let (status, head, length) = loop {
            filled += self.read(filled);
            if let Some(head) = head(&self.buffer[..filled]) {
                break head;
            }
        };
        let mut left = head as u64 + length - filled as u64;
        while left > 0 {
            left -= self.read(0) as u64;
        }
        (status, length)
    }
}

/// Status, length of the head and length of the body, when the head is whole.
fn head(answer: &[u8]) -> Option<(u16, usize, u64)> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let mut lines = str::from_utf8(&answer[..end]).ok()?.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    Some((status, end + 4, length.expect("a Content-Length in every answer")))
}

/// Requests per second. The connections are shared out to as many threads as there are cores; a thread takes up the
/// answers of its connections in turn and sends the next request of each at once.
pub fn drive(address: SocketAddr, request: &Request, status: u16, connections: u64, limit: Limit) -> f64 {
    let mut opened: Vec<_> =
        (0..connections).map(|number| Connection::open(address, request, number, 16 << 10)).collect();
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let start = Instant::now();
    let answers: u64 = thread::scope(|scope| {
        let share = opened.len().div_ceil(threads);
        let running: Vec<_> =
            opened.chunks_mut(share).map(|own| scope.spawn(move || take_turns(own, status, limit))).collect();
        running.into_iter().map(|thread| thread.join().expect("the answers of some connections")).sum()
    });
    answers as f64 / start.elapsed().as_secs_f64()
}

fn take_turns(connections: &mut [Connection], status: u16, limit: Limit) -> u64 {
    let receive = |connection: &mut Connection| {
        let (answered, _) = connection.receive();
        assert_eq!(answered, status, "the status of an answer");
    };
    let mut turns = 0;
    while turns == 0 || !limit.is_reached(turns) {
        for connection in &mut *connections {
            if turns > 0 {
                receive(connection);
            }
            connection.send(turns);
        }
        turns += 1;
    }
    connections.iter_mut().for_each(receive);
    turns * connections.len() as u64
}

/// Asks once, on a connection of its own; the status, and how long the body is.
pub fn fetch(address: SocketAddr, request: &Request) -> (u16, u64) {
    let mut connection = Connection::open(address, request, 0, 1 << 20);
    connection.send(0);
    connection.receive()
}

/// Fetches something large; how long its body is, and the time until its last byte.
pub fn download(address: SocketAddr, request: &Request) -> (u64, Duration) {
    let start = Instant::now();
    let (status, length) = fetch(address, request);
    assert_eq!(status, 200, "the status of a download");
    (length, start.elapsed())
}
