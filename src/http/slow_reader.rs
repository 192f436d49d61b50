//! Disconnects clients that read an answer too slowly, so that they do not keep a message leased forever. Used only in
//! an application's own server: the connections of [`UserHttpServer`](crate::UserHttpServer) do this themselves.

use std::cell::Cell;
use std::rc::Rc;

use actix_web::{HttpRequest, rt};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::http::embedding::Socket;
use crate::http::limits::Limits;

/// Watches the progress of an answer until this is dropped.
pub struct ReaderWatch {
    /// When the last chunk was handed over, and its length.
    handed_over: Rc<Cell<(Instant, u64)>>,
    watch: JoinHandle<()>,
}

impl ReaderWatch {
    /// Closes the request's connection as soon as the client takes a chunk of the answer more slowly than `limits`
    /// allow. `None` if the request's socket is not known: nothing is watched then.
    pub fn start(request: &HttpRequest, limits: Limits) -> Option<Self> {
        Some(Self::over(Socket::of(request)?, limits))
    }

    fn over(socket: Socket, limits: Limits) -> Self {
        let handed_over = Rc::new(Cell::new((Instant::now(), 0)));
        let last = Rc::clone(&handed_over);
        let watch = rt::spawn(async move {
            loop {
                let (at, bytes) = last.get();
                sleep_until(at + limits.time_for(bytes)).await;
                if last.get().0 == at {
                    limits.log_slow_reader();
                    socket.close();
                    return;
                }
            }
        });
        Self { handed_over, watch }
    }

    /// Records that the connection has taken all earlier chunks and now gets one of this many bytes.
    pub fn hand_over(&self, bytes: u64) {
        self.handed_over.set((Instant::now(), bytes));
    }
}

impl Drop for ReaderWatch {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::time::Duration;

    use actix_web::dev::Extensions;
    use tokio::time::sleep;

    use super::*;
    use crate::http::embedding::remember_socket;
    use crate::http::limits::GRACE;

    const SECOND: Duration = Duration::from_secs(1);

    fn in_paused_time(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        tokio::task::LocalSet::new().block_on(&runtime.expect("a runtime"), test);
    }

    /// A connection: the server's socket, and the client's.
    fn connection() -> (Socket, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let client = TcpStream::connect(listener.local_addr().expect("its address")).expect("it is listening");
        client.set_nonblocking(true).expect("a socket");
        let (server, _) = listener.accept().expect("it has connected");
        server.set_nonblocking(true).expect("a socket");
        let mut extensions = Extensions::new();
        remember_socket(&rt::net::TcpStream::from_std(server).expect("a socket"), &mut extensions);
        (extensions.get::<Socket>().expect("remembered").clone(), client)
    }

    fn is_closed(mut client: &TcpStream) -> bool {
        matches!(client.read(&mut [0]), Ok(0))
    }

    #[test]
    fn a_client_is_disconnected_when_it_stalls_and_not_while_it_reads() {
        in_paused_time(async {
            let (socket, client) = connection();
            let watch = ReaderWatch::over(socket.clone(), Limits::default());
            for _ in 0..5 {
                sleep(GRACE - SECOND).await;
                assert!(!is_closed(&client));
                watch.hand_over(1);
            }
            sleep(GRACE + SECOND).await;
            assert!(is_closed(&client));
        });
    }

    #[test]
    fn the_connection_stays_open_after_the_answer() {
        in_paused_time(async {
            let (socket, client) = connection();
            drop(ReaderWatch::over(socket.clone(), Limits::default()));
            sleep(2 * GRACE).await;
            assert!(!is_closed(&client));
        });
    }
}
