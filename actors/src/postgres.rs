//! A database that several gateways share as their buffer: PostgreSQL.
//!
//! Only the database's clock counts, so the clocks of gateways may differ. One thread drives all connections, and
//! each operation runs to its end there, even if nobody waits for it any more: a commit whose answer nobody takes is
//! not torn, and what it has claimed can be released.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle};
use tokio::sync::{Semaphore, oneshot, watch};

use crate::blend::SharedTagKey;
use crate::buffer_uuid::BufferUuid;
use crate::store::StoreError;

/// What a statement does with the messages that it removes, which its CTE `gone` returns: the chunks of large ones are
/// left to the next sweep, what brokers have delivered is remembered, and the totals of the stripe `$stripe` shrink.
/// `departed` has how many were removed.
macro_rules! after_removal {
    ($stripe:literal) => {
        concat!(
            "left_over AS (
                INSERT INTO lingering (id, epoch, until) SELECT id, -1, '-infinity' FROM gone WHERE in_chunks
            ), buried AS (
                INSERT INTO tombstones SELECT fingerprint, max(clock_timestamp()) FROM gone
                WHERE fingerprint IS NOT NULL GROUP BY fingerprint
                ON CONFLICT (fingerprint) DO UPDATE SET gone_at = excluded.gone_at
            ), departed AS (
                SELECT count(*) AS messages, coalesce(sum(cost), 0) AS bytes FROM gone
            ), counted AS (
                UPDATE totals SET messages = totals.messages - departed.messages, bytes = totals.bytes - departed.bytes
                FROM departed WHERE stripe = ",
            $stripe,
            " AND departed.messages > 0
            )"
        )
    };
}

mod administration;
mod body;
mod connections;
mod leases;
pub mod probe;
mod put;
mod references;
mod schema;
mod session;
mod tls;
mod upkeep;
mod url;

pub use administration::Discarded;
pub use body::DatabaseBody;
use connections::{Connection, Connections};
pub use leases::{Claim, ClaimId, Claimed, LEASE, Waited};
pub use put::Put;
pub use upkeep::{Swept, Totals};
pub use url::PostgresUrl;

/// How many bytes of a body are in one row, at most: the unit in which bodies are written and read.
pub(crate) const CHUNK: u64 = 1 << 20;

/// A body of at most this many bytes is stored in the row of its message, so that a claim brings it along. Those are
/// the messages that are sent as a single write.
const MAX_INLINE: u64 = 64 << 10;

/// How many bodies of more than [`MAX_INLINE`] are written at the same time. Each keeps a connection for as long as
/// that takes.
const MAX_LARGE_PUTS: usize = 4;

/// How often the database is asked how it is. It is back for requests as soon as one of them, or this, reaches it.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Where the database is, and what it must offer.
#[derive(Clone, Debug)]
pub struct PostgresConfig {
    /// The database.
    pub url: PostgresUrl,
    /// How many synchronous standbys must be connected to the primary. With fewer, nothing is accepted.
    pub require_sync: u32,
}

/// The messages in the database. Clones are the same.
#[derive(Clone)]
pub struct PostgresBuffer(Arc<Inner>);

struct Inner {
    runtime: Handle,
    connections: Connections,
    large_puts: Arc<Semaphore>,
    max_bytes: u64,
    ttl: Duration,
    /// Which gateway this is, among those that have claimed messages. Another one after each start.
    owner: i64,
    health: watch::Sender<Health>,
    /// Dropped with the last clone, which ends the thread.
    _stop: oneshot::Sender<()>,
}

/// What is known of the database.
#[derive(Clone, Debug)]
pub struct Health {
    /// Why it takes no messages at the moment; `None` if it does.
    pub failure: Option<StoreError>,
    /// What it held when it was last asked.
    pub totals: Totals,
    /// When it was last asked in vain.
    failed_at: Option<Instant>,
}

impl PostgresBuffer {
    /// Starts the thread of the database, and does not wait for the database. It holds messages that cost at most
    /// `max_bytes` bytes; each expires after `ttl`.
    ///
    /// # Errors
    /// The thread could not be started, or the CAs of the system could not be read.
    pub fn start(config: &PostgresConfig, max_bytes: u64, ttl: Duration) -> io::Result<Self> {
        let connections = Connections::new(config)?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let failure = Some(StoreError::Database("it has not answered yet".to_owned()));
        let health = watch::Sender::new(Health { failure, totals: Totals::default(), failed_at: None });
        let this = Self(Arc::new(Inner {
            runtime: runtime.handle().clone(),
            connections,
            large_puts: Arc::new(Semaphore::new(MAX_LARGE_PUTS)),
            max_bytes,
            ttl,
            owner: rand::random(),
            health,
            _stop: stop,
        }));
        let checking = Arc::downgrade(&this.0);
        thread::Builder::new().name("postgres".to_owned()).spawn(move || {
            runtime.spawn(async move {
                while let Some(inner) = checking.upgrade() {
                    Self(inner).check().await;
                    tokio::time::sleep(CHECK_INTERVAL).await;
                }
            });
            // an error, when the sender is dropped
            let _ = runtime.block_on(stopped);
        })?;
        Ok(this)
    }

    /// What is known of the database. Asks nobody.
    pub fn health(&self) -> Health {
        self.0.health.borrow().clone()
    }

    /// The key with which the gateways name versions of .blend files. Whoever has a message from the database has come
    /// by a connection that has read the key.
    pub fn tag_key(&self) -> &SharedTagKey {
        self.0.connections.tag_key()
    }

    /// How much the messages may cost, in bytes.
    pub fn max_bytes(&self) -> u64 {
        self.0.max_bytes
    }

    /// Asks the database how it is and what it holds.
    async fn check(&self) {
        let failure = match self.look().await {
            Ok(totals) => {
                self.0.health.send_modify(|health| health.totals = totals);
                None
            }
            Err(error) => Some(error),
        };
        let was = self.health().failure;
        match (&was, &failure) {
            (Some(_), None) => log::info!("the database takes messages"),
            (_, Some(error)) if was.as_ref().map(ToString::to_string) != Some(error.to_string()) => {
                log::warn!("{error}");
            }
            _ => {}
        }
        self.0.health.send_modify(|health| {
            if failure.is_some() {
                health.failed_at = Some(Instant::now());
            }
            health.failure = failure;
        });
    }

    /// A connection for an operation.
    async fn connection(&self) -> Result<Connection, StoreError> {
        self.0.connections.get().await
    }

    /// Runs an operation on the database's thread, to its end.
    async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let done = self.0.runtime.spawn(work).await;
        done.unwrap_or_else(|_| Err(StoreError::Database("the gateway stops".to_owned())))
    }

    /// The time after which a message expires, for statements.
    fn ttl_seconds(&self) -> f64 {
        self.0.ttl.as_secs_f64()
    }
}

impl fmt::Debug for PostgresBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresBuffer").field("health", &self.health()).finish_non_exhaustive()
    }
}

/// The key of a message's row: a UUID may be long, and have any character.
fn key_of(uuid: &BufferUuid) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    Sha256::digest(uuid.as_str()).to_vec()
}
