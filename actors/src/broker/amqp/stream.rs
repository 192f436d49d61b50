//! The stream that amiquip uses: a socket or TLS. What the broker sends is [sanitized](super::sanitize).

use std::io::{self, Write};

use amiquip::IoStream;
use mio::{Evented, Poll, PollOpt, Ready, Token};

use super::sanitize::Sanitized;

impl<S: IoStream> IoStream for Sanitized<S> {}

impl<S: Write> Write for Sanitized<S> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.stream.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl<S: Evented> Evented for Sanitized<S> {
    fn register(&self, poll: &Poll, token: Token, interest: Ready, opts: PollOpt) -> io::Result<()> {
        self.stream.register(poll, token, interest, opts)
    }

    fn reregister(&self, poll: &Poll, token: Token, interest: Ready, opts: PollOpt) -> io::Result<()> {
        self.stream.reregister(poll, token, interest, opts)
    }

    fn deregister(&self, poll: &Poll) -> io::Result<()> {
        self.stream.deregister(poll)
    }
}
