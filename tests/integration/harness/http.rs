//! Bare HTTP/1.1, for what ordinary clients hide: exact headers, half-sent bodies, slow and vanishing readers.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::SOON;

/// One answer.
pub struct Response {
    pub status: u16,
    /// Names in lower case, in the order of the answer.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    /// The length that the answer declares.
    #[track_caller]
    pub fn content_length(&self) -> u64 {
        let text = self.header("content-length").unwrap_or_else(|| panic!("no Content-Length: {self:?}"));
        text.parse().expect("a length")
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }

    /// Checks that this is a failure in the contract's form; gives its `ERROR`.
    #[track_caller]
    pub fn failure(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        let json = self.json();
        assert_eq!(json["STATUS"], "FAILED", "{self:?}");
        json["ERROR"].as_str().filter(|error| !error.is_empty()).unwrap_or_else(|| panic!("{self:?}")).to_owned()
    }
}

impl std::fmt::Debug for Response {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = &self.body[..self.body.len().min(1000)];
        write!(f, "{} {:?} {}", self.status, self.headers, shown.escape_ascii())
    }
}

/// One connection.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub fn open(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).unwrap_or_else(|error| panic!("{to}: {error}"));
        stream.set_read_timeout(Some(SOON)).expect("a read timeout");
        stream.set_write_timeout(Some(SOON)).expect("a write timeout");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        Self { stream: BufReader::with_capacity(1 << 20, stream) }
    }

    /// Sends bytes as they are.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).expect("the server to read");
    }

    /// Sends the head of a request.
    #[track_caller]
    pub fn send_head(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) {
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.stream.get_ref().peer_addr().expect("an address"));
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.send(head.as_bytes());
    }

    /// Sends a request and reads its answer.
    #[track_caller]
    pub fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        let length = body.len().to_string();
        let mut all = headers.to_vec();
        if !body.is_empty() || method == "POST" {
            all.push(("Content-Length", &length));
        }
        self.send_head(method, path, &all);
        self.send(body);
        if method == "HEAD" { self.read_head() } else { self.read_response() }
    }

    /// Reads an answer's head; its body is left unread.
    #[track_caller]
    pub fn read_head(&mut self) -> Response {
        let mut status_line = self.read_line();
        while status_line.starts_with("HTTP/1.1 100") {
            self.read_line();
            status_line = self.read_line();
        }
        let status = status_line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let mut response = Response {
            status: status.unwrap_or_else(|| panic!("no status line: {status_line:?}")),
            headers: Vec::new(),
            body: Vec::new(),
        };
        loop {
            let line = self.read_line();
            if line.is_empty() {
                return response;
            }
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("no header: {line:?}"));
            response.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// Reads an answer with its body.
    #[track_caller]
    pub fn read_response(&mut self) -> Response {
        let mut response = self.read_head();
        if response.header("transfer-encoding") == Some("chunked") {
            loop {
                let line = self.read_line();
                let size = usize::from_str_radix(&line, 16).unwrap_or_else(|_| panic!("no chunk: {line:?}"));
                response.body.extend(self.read_exact(size));
                self.read_line();
                if size == 0 {
                    return response;
                }
            }
        }
        if response.status != 204 {
            response.body = self.read_exact(response.content_length() as usize);
        }
        response
    }

    /// Reads just so many bytes of a body.
    #[track_caller]
    pub fn read_exact(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).expect("the rest of the answer");
        bytes
    }

    /// Reads what there is, at most `buffer.len()` bytes; 0 at the connection's end.
    #[track_caller]
    pub fn read(&mut self, buffer: &mut [u8]) -> usize {
        self.stream.read(buffer).expect("the rest of the answer")
    }

    fn read_line(&mut self) -> String {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).expect("a line of the answer");
        assert!(line.ends_with(b"\r\n"), "the connection ended within a head: {:?}", line.escape_ascii().to_string());
        line.truncate(line.len() - 2);
        String::from_utf8(line).expect("a head in ASCII")
    }
}

/// Sends one request over a connection of its own.
#[track_caller]
pub fn request(to: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
    Connection::open(to).request(method, path, headers, body)
}
