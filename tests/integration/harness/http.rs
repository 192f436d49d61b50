//! Bare HTTP/1.1, for what ordinary clients hide: exact headers, half-sent bodies, slow and vanishing readers.

use std::io::{self, BufRead, BufReader, Read, Write};
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

    /// Checks that this is the head of a failure in JSON.
    #[track_caller]
    pub fn failure_head(&self, status: u16) {
        assert_eq!((self.status, self.header("content-type")), (status, Some("application/json")), "{self:?}");
    }

    /// Checks that this is a failure in the contract's form; returns its `ERROR`.
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

/// The transport of a connection.
pub trait Stream: Read + Write + Send {}

impl<S: Read + Write + Send> Stream for S {}

/// One connection. Methods named `try_…` return an error if the server has closed it.
pub struct Connection {
    to: SocketAddr,
    stream: BufReader<Box<dyn Stream>>,
}

impl Connection {
    #[track_caller]
    pub fn open(to: SocketAddr) -> Self {
        Self::try_open(to).unwrap_or_else(|error| panic!("{to}: {error}"))
    }

    pub fn try_open(to: SocketAddr) -> io::Result<Self> {
        Ok(Self::over(to, connect(to)?))
    }

    /// A connection over a connected transport.
    pub fn over(to: SocketAddr, stream: impl Stream + 'static) -> Self {
        Self { to, stream: BufReader::with_capacity(1 << 20, Box::new(stream)) }
    }

    /// Sends bytes as they are.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).expect("the server to read");
    }

    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Sends the head of a request.
    #[track_caller]
    pub fn send_head(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) {
        self.try_send_head(method, path, headers).expect("the server to read");
    }

    pub fn try_send_head(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> io::Result<()> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.to);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.try_send(head.as_bytes())
    }

    /// Sends a request and reads its answer.
    #[track_caller]
    pub fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.try_send_request(method, path, headers, body).expect("the server to read");
        if method == "HEAD" { self.read_head() } else { self.read_response() }
    }

    /// Sends a request, whole.
    pub fn try_send_request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<()> {
        let length = body.len().to_string();
        let mut all = headers.to_vec();
        if !body.is_empty() || method == "POST" {
            all.push(("Content-Length", &length));
        }
        self.try_send_head(method, path, &all)?;
        self.try_send(body)
    }

    /// Sends the head of a request with a body, and waits until the server has read it and asks for the body.
    pub fn try_announce(&mut self, method: &str, path: &str, headers: &[(&str, &str)], len: usize) -> io::Result<()> {
        let length = len.to_string();
        let announcing = [("Content-Length", length.as_str()), ("Expect", "100-continue")];
        self.try_send_head(method, path, &[headers, &announcing].concat())?;
        let line = self.try_read_line()?;
        assert!(line.starts_with("HTTP/1.1 100"), "the server does not ask for the body: {line}");
        self.try_read_line().map(drop)
    }

    /// Reads an answer's head; its body is left unread.
    #[track_caller]
    pub fn read_head(&mut self) -> Response {
        self.try_read_head().expect("an answer")
    }

    pub fn try_read_head(&mut self) -> io::Result<Response> {
        let mut status_line = self.try_read_line()?;
        while status_line.starts_with("HTTP/1.1 100") {
            self.try_read_line()?;
            status_line = self.try_read_line()?;
        }
        let status = status_line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let mut response = Response {
            status: status.unwrap_or_else(|| panic!("no status line: {status_line:?}")),
            headers: Vec::new(),
            body: Vec::new(),
        };
        loop {
            let line = self.try_read_line()?;
            if line.is_empty() {
                return Ok(response);
            }
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("no header: {line:?}"));
            response.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// Reads an answer with its body.
    #[track_caller]
    pub fn read_response(&mut self) -> Response {
        self.try_read_response().expect("a whole answer")
    }

    pub fn try_read_response(&mut self) -> io::Result<Response> {
        let mut response = self.try_read_head()?;
        self.try_read_body(&mut response)?;
        Ok(response)
    }

    /// Reads the body that follows a head.
    pub fn try_read_body(&mut self, response: &mut Response) -> io::Result<()> {
        if response.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.try_read_chunk()? {
                response.body.extend(chunk);
            }
            return Ok(());
        }
        if response.status != 204 {
            response.body = self.try_read_exact(response.content_length() as usize)?;
        }
        Ok(())
    }

    /// Reads the next chunk of a chunked body; `None` at its end.
    pub fn try_read_chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = self.try_read_line()?;
        let size = usize::from_str_radix(&line, 16).unwrap_or_else(|_| panic!("no chunk: {line:?}"));
        let chunk = self.try_read_exact(size)?;
        self.try_read_line()?;
        Ok((size > 0).then_some(chunk))
    }

    /// Reads exactly this many bytes of a body.
    #[track_caller]
    pub fn read_exact(&mut self, len: usize) -> Vec<u8> {
        self.try_read_exact(len).expect("the rest of the answer")
    }

    pub fn try_read_exact(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads what has arrived, at most `buffer.len()` bytes; 0 at the end of the connection.
    #[track_caller]
    pub fn read(&mut self, buffer: &mut [u8]) -> usize {
        self.stream.read(buffer).expect("the rest of the answer")
    }

    fn try_read_line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\r\n") {
            let what = format!("the connection ended within a head: {:?}", line.escape_ascii().to_string());
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        }
        line.truncate(line.len() - 2);
        Ok(String::from_utf8(line).expect("a head in ASCII"))
    }
}

/// A TCP connection with a timeout for every read and write.
pub fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.set_write_timeout(Some(SOON))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends one request over a connection of its own.
#[track_caller]
pub fn request(to: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
    Connection::open(to).request(method, path, headers, body)
}
