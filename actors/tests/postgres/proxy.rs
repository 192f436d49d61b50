//! A connection to the database that breaks, or is slow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Passes bytes on to a server.
pub struct Proxy {
    port: u16,
    conditions: Arc<Conditions>,
    accepting: tokio::task::JoinHandle<()>,
}

struct Conditions {
    /// Each connection is cut after this many bytes, of both directions.
    cut_after: AtomicUsize,
    /// By how much each answer of the server is delayed, in milliseconds.
    delay: AtomicU64,
}

impl Proxy {
    /// A proxy for the server at this port.
    pub async fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let conditions = Arc::new(Conditions { cut_after: usize::MAX.into(), delay: 0.into() });
        let of_all = Arc::clone(&conditions);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let conditions = Arc::clone(&of_all);
                tokio::spawn(async move {
                    if let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await {
                        pass(client, server, &conditions).await;
                    }
                });
            }
        });
        Self { port, conditions, accepting }
    }

    /// The URL of the database behind it.
    pub fn url(&self) -> String {
        format!("postgres://farm@127.0.0.1:{}/farm", self.port)
    }

    /// Cuts new connections after this many bytes.
    pub fn cut_after(&self, bytes: usize) {
        self.conditions.cut_after.store(bytes, Ordering::SeqCst);
    }

    /// Delays each answer of the server by this.
    pub fn delay(&self, delay: Duration) {
        self.conditions.delay.store(delay.as_millis() as u64, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Returns when the connection is cut, or has ended. Both sockets are closed then.
async fn pass(client: TcpStream, server: TcpStream, conditions: &Conditions) {
    client.set_nodelay(true).expect("a socket");
    server.set_nodelay(true).expect("a socket");
    let left = AtomicUsize::new(conditions.cut_after.load(Ordering::SeqCst));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let no_delay = AtomicU64::new(0);
    tokio::select! {
        () = copy(from_client, to_server, &left, &no_delay) => {}
        () = copy(from_server, to_client, &left, &conditions.delay) => {}
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    left: &AtomicUsize,
    delay: &AtomicU64,
) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        tokio::time::sleep(Duration::from_millis(delay.load(Ordering::SeqCst))).await;
        let may = left.load(Ordering::SeqCst).min(read);
        left.fetch_sub(may, Ordering::SeqCst);
        if to.write_all(&buffer[..may]).await.is_err() || may < read {
            return;
        }
    }
}
