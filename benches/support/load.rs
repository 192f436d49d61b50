//! The clients: persistent connections, each with one request in progress at any time.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::bench::cores;

/// How long a client waits for a server before it gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// The servers close connections that have been idle for 5 s; others wait that long only when a disk stalls.
const KEPT: Duration = Duration::from_secs(4);

/// Bodies from here on are sent by a thread for each connection: no socket takes one at once.
const LARGE: usize = 64 << 10;

/// Placeholder in a request for a UUID that differs for each request.
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
        Self::post_bytes(target, "application/json", json.as_bytes())
    }

    pub fn post_bytes(target: &str, kind: &str, body: &[u8]) -> Self {
        let length = body.len();
        let mut request = Self::new(format!(
            "POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
        ));
        let head = request.bytes.len();
        request.bytes.extend(body);
        // a number is looked for where it may be, not in a large body
        let first = &body[..body.len().min(1024)];
        let found = first.windows(NUMBER.len()).position(|window| window == NUMBER.as_bytes());
        request.digits_at = found.map(|start| head + start + NUMBER.len() - DIGITS);
        request
    }

    fn new(head: String) -> Self {
        let digits_at = head.find(NUMBER).map(|start| start + NUMBER.len() - DIGITS);
        Self { bytes: head.into_bytes(), digits_at, series: 0 }
    }

    /// The same request, with numbers that this one never has.
    pub fn with_other_numbers(&self) -> Self {
        self.with_series(self.series + 1)
    }

    /// The same request, with the numbers of one of 16 series.
    pub fn with_series(&self, series: u64) -> Self {
        assert!(series < 16, "a UUID's last group has 48 bits");
        Self { series, ..self.clone() }
    }

    /// Writes the number that belongs to a turn of a connection: the same for all requests of a series.
    fn set_number(&mut self, connection: u64, turn: u64) {
        if let Some(start) = self.digits_at {
            let number = self.series << 44 | connection << 32 | turn;
            let mut digits = &mut self.bytes[start..start + DIGITS];
            write!(digits, "{number:0DIGITS$x}").expect("as many digits as fit");
        }
    }
}

/// When a run ends.
#[derive(Clone, Copy)]
pub enum Limit {
    At(Instant),
    /// After this many requests on each connection.
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

pub struct Connection {
    address: SocketAddr,
    number: u64,
    /// When the last request was sent.
    sent: Instant,
    stream: TcpStream,
    request: Request,
    buffer: Vec<u8>,
}

impl Connection {
    pub fn open(address: SocketAddr, request: &Request, number: u64, buffer: usize) -> io::Result<Self> {
        let (request, buffer) = (request.clone(), vec![0; buffer]);
        Ok(Self { address, number, sent: Instant::now(), stream: connect(address)?, request, buffer })
    }

    pub fn send(&mut self, turn: u64) -> io::Result<()> {
        let now = Instant::now();
        if now - self.sent > KEPT {
            self.stream = connect(self.address)?;
        }
        self.sent = now;
        self.request.set_number(self.number, turn);
        self.stream.write_all(&self.request.bytes)
    }

    /// Reads an answer to its end; its status and how long its body is.
    pub fn receive(&mut self) -> io::Result<(u16, u64)> {
        let mut filled = 0;
        let (status, head, length) = loop {
            filled += some(self.stream.read(&mut self.buffer[filled..])?)?;
            if let Some(head) = head(&self.buffer[..filled]) {
                break head;
            }
        };
        let mut left = head as u64 + length - filled as u64;
        while left > 0 {
            let most = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            left -= some(self.stream.read(&mut self.buffer[..most])?)? as u64;
        }
        Ok((status, length))
    }
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn some(read: usize) -> io::Result<usize> {
    if read > 0 { Ok(read) } else { Err(io::Error::other("the server has closed the connection")) }
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

/// Requests per second. The connections are shared out to as many threads as there are cores.
pub fn drive(address: SocketAddr, request: &Request, status: u16, connections: u64, limit: Limit) -> f64 {
    let mut opened: Vec<_> = (0..connections)
        .map(|number| Connection::open(address, request, number, 64 << 10).expect("a connection"))
        .collect();
    let threads = if request.bytes.len() < LARGE { cores() } else { opened.len() };
    let start = Instant::now();
    let answers: u64 = thread::scope(|scope| {
        let share = opened.len().div_ceil(threads);
        let running: Vec<_> =
            opened.chunks_mut(share).map(|own| scope.spawn(move || keep_busy(own, status, limit))).collect();
        running.into_iter().map(|thread| thread.join().expect("the answers of some connections")).sum()
    });
    answers as f64 / start.elapsed().as_secs_f64()
}

/// Keeps each connection busy until the limit: it sends its next request as soon as it has its answer.
fn keep_busy(connections: &mut [Connection], status: u16, limit: Limit) -> u64 {
    let mut busy: Vec<(&mut Connection, u64)> = connections.iter_mut().map(|connection| (connection, 0)).collect();
    for (connection, turns) in &mut busy {
        connection.send(*turns).expect("a request sent");
    }
    let mut answers = 0;
    while !busy.is_empty() {
        // from behind, so that one that is taken out moves none of those that are still to come
        for at in ready(&busy).into_iter().rev() {
            let (connection, turns) = &mut busy[at];
            let (answer, _) = connection.receive().expect("an answer in time");
            assert_eq!(answer, status, "the status of an answer");
            (*turns, answers) = (*turns + 1, answers + 1);
            if limit.is_reached(*turns) {
                busy.swap_remove(at);
            } else {
                connection.send(*turns).expect("a request sent");
            }
        }
    }
    answers
}

/// The connections that have something to read; waits until there is one.
fn ready(busy: &[(&mut Connection, u64)]) -> Vec<usize> {
    let mut polled: Vec<_> =
        busy.iter().map(|(connection, _)| PollFd::new(&connection.stream, PollFlags::IN)).collect();
    let patience = Timespec::try_from(PATIENCE).expect("a time that the kernel can represent");
    let count = poll(&mut polled, Some(&patience)).expect("a poll");
    assert!(count > 0, "no answer in time");
    polled.iter().enumerate().filter(|(_, polled)| !polled.revents().is_empty()).map(|(at, _)| at).collect()
}

/// Asks once, on a connection of its own; the status, and how long the body is.
pub fn fetch(address: SocketAddr, request: &Request) -> (u16, u64) {
    try_fetch(address, request).expect("an answer")
}

pub fn try_fetch(address: SocketAddr, request: &Request) -> io::Result<(u16, u64)> {
    let mut connection = Connection::open(address, request, 0, 1 << 20)?;
    connection.send(0)?;
    connection.receive()
}

/// Asks once; the body of a small answer.
pub fn read(address: SocketAddr, request: &Request) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&request.bytes)?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let read = some(stream.read(&mut buffer)?)?;
        answer.extend(&buffer[..read]);
        if let Some((_, head, length)) = head(&answer)
            && answer.len() as u64 >= head as u64 + length
        {
            return Ok(answer.split_off(head));
        }
    }
}
