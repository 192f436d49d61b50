//! What the database holds, and the removal of what is too old. Every gateway does this, and skips what another one is
//! about to remove.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::PostgresBuffer;
use super::put::{check_standbys, stripe};
use crate::buffer_uuid::BufferUuid;
use crate::store::StoreError;

/// What the database holds, for all gateways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// How many messages there are.
    pub messages: u64,
    /// What they cost, in bytes.
    pub bytes: u64,
    /// The age of the oldest one.
    pub oldest: Option<Duration>,
}

/// The messages that have expired and were removed.
#[derive(Clone, Debug, Default)]
pub struct Swept {
    /// How many.
    pub messages: u64,
    /// One of them.
    pub example: Option<BufferUuid>,
}

/// The oldest one by the order of the index: a plan for `min()` may read all of it.
const TOTALS: &str = "
    SELECT coalesce(sum(messages), 0)::bigint, coalesce(sum(bytes), 0)::bigint,
           extract(epoch FROM clock_timestamp() - (SELECT stored_at FROM messages ORDER BY stored_at LIMIT 1))::float8
    FROM totals";

/// At most 1,000, so that the transaction is short. `now()` is when the statement began, so that an index finds what is
/// due; `clock_timestamp()` is another value in each row.
const SWEEP: &str = concat!(
    "
    WITH due AS (
        SELECT key FROM messages
        WHERE stored_at <= now() - make_interval(secs => $1) AND lease_until <= now()
        ORDER BY stored_at LIMIT 1000 FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM messages USING due WHERE messages.key = due.key
        RETURNING id, uuid, cost, fingerprint, body IS NULL AS in_chunks
    ), ",
    after_removal!("$2"),
    " SELECT messages, (SELECT uuid FROM gone LIMIT 1) FROM departed"
);

/// How many chunks a statement removes at most. That takes a second on a busy machine.
const CHUNKS_AT_ONCE: i64 = 64;

/// The chunks of messages that were delivered, replaced, discarded or have expired, and of replaced ones whose
/// deliveries have ended without a word.
const SWEEP_LINGERING: &str = "
    WITH due AS (
        SELECT id FROM lingering WHERE until <= now() LIMIT 1000 FOR UPDATE SKIP LOCKED
    ), part AS (
        SELECT found.message, found.number
        FROM due, LATERAL (SELECT message, number FROM chunks WHERE message = due.id LIMIT $1) found LIMIT $1
    ), gone AS (
        DELETE FROM chunks USING part WHERE chunks.message = part.message AND chunks.number = part.number RETURNING 1
    ), counted AS (
        SELECT count(*) AS chunks FROM gone
    ), ended AS (
        DELETE FROM lingering USING due, counted WHERE lingering.id = due.id AND chunks < $1
    )
    SELECT chunks FROM counted";

const SWEEP_TOMBSTONES: &str = "
    DELETE FROM tombstones WHERE fingerprint IN (
        SELECT fingerprint FROM tombstones WHERE gone_at <= now() - interval '1 hour'
        LIMIT 1000 FOR UPDATE SKIP LOCKED)";

const SWEEP_REFERENCES: &str = "
    DELETE FROM blend_references WHERE (sha256, path_key) IN (
        SELECT sha256, path_key FROM blend_references
        WHERE referred_at <= now() - make_interval(secs => $1 + 1) LIMIT 1000 FOR UPDATE SKIP LOCKED)";

impl PostgresBuffer {
    /// What the database holds, if it takes messages.
    ///
    /// # Errors
    /// Why it takes none.
    pub(super) async fn look(&self) -> Result<Totals, StoreError> {
        let mut connection = self.connection().await?;
        let row = connection.one(TOTALS, &[]).await?;
        let (messages, bytes, oldest): (i64, i64, Option<f64>) = (row.get(0), row.get(1), row.get(2));
        let checked = check_standbys(&mut connection).await;
        connection.give_back();
        checked?;
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        let oldest = oldest.map(|seconds| Duration::from_secs_f64(seconds.max(0.0)));
        Ok(Totals { messages: count(messages), bytes: count(bytes), oldest })
    }

    /// Removes some of the messages that have expired.
    ///
    /// # Errors
    /// Whether any was removed is unknown.
    pub async fn sweep(&self) -> Result<Swept, StoreError> {
        let this = self.clone();
        let sweeping = async move {
            let (ttl, stripe) = (this.ttl_seconds(), stripe());
            let mut connection = this.connection().await?;
            let row = connection.one_anew(SWEEP, &[(&ttl, Type::FLOAT8), (&stripe, Type::INT4)]).await?;
            connection.give_back();
            let (messages, example): (i64, Option<&[u8]>) = (row.get(0), row.get(1));
            let example = example.map(|uuid| String::from_utf8_lossy(uuid).into_owned().into());
            Ok(Swept { messages: messages as u64, example })
        };
        self.run(sweeping).await
    }

    /// Removes what messages have left behind: all chunks that nobody sends, and some of what is remembered of broker
    /// deliveries and .blend files for too long.
    ///
    /// # Errors
    /// Some of it may still be there.
    pub async fn clean_up(&self) -> Result<(), StoreError> {
        let this = self.clone();
        let cleaning = async move {
            let mut connection = this.connection().await?;
            let mut chunks = CHUNKS_AT_ONCE;
            while chunks == CHUNKS_AT_ONCE {
                connection.extend();
                chunks = connection.one_anew(SWEEP_LINGERING, &[(&CHUNKS_AT_ONCE, Type::INT8)]).await?.get(0);
            }
            connection.extend();
            connection.query_anew(SWEEP_TOMBSTONES, &[]).await?;
            connection.query_anew(SWEEP_REFERENCES, &[(&this.ttl_seconds(), Type::FLOAT8)]).await?;
            connection.give_back();
            Ok(())
        };
        self.run(cleaning).await
    }
}
