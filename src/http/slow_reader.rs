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
        let socket = Socket::of(request)?;
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
        Some(Self { handed_over, watch })
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
