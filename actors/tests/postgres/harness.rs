//! Gateways without HTTP: an actor over a database.

use std::time::Duration;

use actix::{Actor, Addr};
use bytes::Bytes;
use user_http_actors::broker::Fingerprint;
use user_http_actors::codec::{BlendPlaceholder, BufferMsg};
use user_http_actors::lease::{BufferLease, BufferMsgView, LeasedBufferMsg};
use user_http_actors::messages::{AddBufferMsg, BrokerDelivery, GetBufferState, LeaseBufferMsg, PeekBufferMsg};
use user_http_actors::payload::Payload;
use user_http_actors::postgres::{PostgresBuffer, PostgresConfig};
use user_http_actors::store::StoreError;
use user_http_actors::{Error, SharedBuffer};

use crate::postgres::server::Postgres;

pub const DAY: Duration = Duration::from_secs(86_400);
pub const CAPACITY: u64 = 1 << 30;
pub const NOW: Duration = Duration::ZERO;

/// How long a test waits for a fact.
pub const SOON: Duration = Duration::from_secs(30);

/// A gateway.
pub struct Gateway {
    pub buffer: Addr<SharedBuffer>,
    pub database: PostgresBuffer,
}

/// The layer below the actor.
pub fn database_at(url: &str, require_sync: u32, max_bytes: u64, ttl: Duration) -> PostgresBuffer {
    let config = PostgresConfig { url: url.parse().expect("a URL"), require_sync };
    PostgresBuffer::start(&config, max_bytes, ttl).expect("a thread")
}

pub fn payload(bytes: impl Into<Bytes>) -> Payload {
    Payload::from_parts(vec![bytes.into()])
}

/// Bytes that differ everywhere.
pub fn long_body(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8 ^ (at / 65_536) as u8).collect()
}

pub fn message(bytes: impl Into<Bytes>) -> BufferMsg {
    BufferMsg { pickle: payload(bytes), blend: None, sha256: None }
}

impl Gateway {
    pub fn start(url: &str) -> Self {
        Self::with(url, CAPACITY, DAY)
    }

    pub fn with(url: &str, max_bytes: u64, ttl: Duration) -> Self {
        let database = database_at(url, 0, max_bytes, ttl);
        Self { buffer: SharedBuffer::new(database.clone()).start(), database }
    }

    pub async fn put(&self, uuid: &str, message: BufferMsg, delivery: Option<BrokerDelivery>) -> Result<(), Error> {
        self.buffer.send(AddBufferMsg { buffer_uuid: uuid.into(), message, delivery }).await.expect("alive")
    }

    pub async fn add(&self, uuid: &str, body: impl Into<Bytes>) {
        self.put(uuid, message(body), None).await.expect("stored");
    }

    pub async fn lease(&self, uuid: &str, wait: Duration) -> Result<LeasedBufferMsg, Error> {
        self.resume(uuid, None, wait).await
    }

    /// For a worker that has seen this ETag before.
    pub async fn resume(&self, uuid: &str, etag: Option<String>, wait: Duration) -> Result<LeasedBufferMsg, Error> {
        let lease = LeaseBufferMsg { buffer_uuid: uuid.into(), max_single_write: 64 << 10, wait, seen: etag };
        self.buffer.send(lease).await.expect("alive")
    }

    pub async fn peek(&self, uuid: &str, wait: Duration) -> Result<BufferMsgView, Error> {
        self.buffer.send(PeekBufferMsg { buffer_uuid: uuid.into(), wait }).await.expect("alive")
    }

    /// Takes a message, and returns its body.
    pub async fn fetch(&self, uuid: &str) -> Result<Vec<u8>, Error> {
        let LeasedBufferMsg { view, lease } = self.lease(uuid, NOW).await?;
        let body = read(&view).await;
        deliver(lease, &view);
        Ok(body)
    }

    /// Waits until nothing of this gateway is on its way to the database.
    pub async fn is_absent(&self, uuid: &str) -> bool {
        matches!(self.lease(uuid, NOW).await, Err(Error::NoBufferMsg))
    }

    pub async fn in_delivery(&self) -> usize {
        self.buffer.send(GetBufferState).await.expect("alive").in_delivery
    }
}

/// Ends a delivery after all bytes were sent.
pub fn deliver(mut lease: BufferLease, view: &BufferMsgView) {
    let len = view.payload.len();
    lease.begin(&view.version, len, 0, false);
    lease.handed_over(len);
    assert!(lease.completes());
    lease.delivered();
}

/// Reads a body in parts, as it is sent.
pub async fn read(view: &BufferMsgView) -> Vec<u8> {
    let Payload::Database(body) = &view.payload else { return view.payload.read_all().expect("in memory").to_vec() };
    let mut read = Vec::new();
    while (read.len() as u64) < body.len() {
        // not at the boundaries of the chunks in the database
        read.extend_from_slice(&body.clone().read(read.len() as u64, 700_000).await.expect("it is there"));
    }
    read
}

pub fn blend(path: &str) -> BlendPlaceholder {
    BlendPlaceholder { offset: 2, path: Some(path.to_owned()) }
}

pub fn from_broker(text: &str, redelivered: bool) -> Option<BrokerDelivery> {
    Some(BrokerDelivery { fingerprint: Fingerprint::new(text.as_bytes(), None), redelivered })
}

/// Waits until `holds` returns a value.
pub async fn eventually<T>(what: &str, mut holds: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = std::time::Instant::now() + SOON;
    loop {
        if let Some(value) = holds().await {
            return value;
        }
        assert!(std::time::Instant::now() < deadline, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn is_database_error(error: &Error) -> bool {
    matches!(error, Error::Store(StoreError::Database(_)))
}

/// Asserts that the totals are those of the messages that are there.
pub fn assert_books_balance(server: &Postgres) {
    let totals = server.ask("SELECT sum(messages), sum(bytes) FROM user_http_server.totals");
    let held = server.ask("SELECT count(*), coalesce(sum(cost), 0) FROM user_http_server.messages");
    assert_eq!(totals, held);
}
