//! Storing a message: its body, its row and the totals, in one transaction.

use std::path::Path;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_postgres::types::Type;

use super::connections::{Connection, failure};
use super::schema::STRIPES;
use super::{CHECK_INTERVAL, CHUNK, MAX_INLINE, PostgresBuffer, key_of};
use crate::buffer_uuid::BufferUuid;
use crate::codec::BufferMsg;
use crate::messages::BrokerDelivery;
use crate::payload::Payload;
use crate::store::{StoreError, cost};

/// What has become of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is committed.
    Stored {
        /// Whether it has taken the place of another one.
        replaced: bool,
    },
    /// A broker has delivered it before, and it was stored then.
    Duplicate,
    /// There is no space for it.
    Full {
        /// What it costs, in bytes.
        size: u64,
        /// What the others cost, in bytes.
        held: u64,
    },
}

/// What the messages cost, without the one that would be replaced. One that is being delivered is there until that
/// delivery ends.
const HELD: &str = "
    SELECT (coalesce(sum(bytes), 0) - coalesce((SELECT cost FROM messages WHERE key = $1
                                                AND lease_until <= clock_timestamp()), 0))::bigint FROM totals";

/// Whether a message with this fingerprint is there, or has left within the last hour.
const IS_KNOWN: &str = "
    SELECT EXISTS (SELECT FROM messages WHERE fingerprint = $1)
        OR EXISTS (SELECT FROM tombstones WHERE fingerprint = $1 AND gone_at > clock_timestamp() - interval '1 hour')";

/// Removes the message that is replaced. One that is being delivered lingers until that delivery ends, and the chunks
/// of any other until the next sweep.
const REPLACE: &str = "
    WITH old AS (
        DELETE FROM messages WHERE key = $1
        RETURNING id, cost, fingerprint, body IS NULL AS in_chunks, epoch, lease_until,
                  lease_until > clock_timestamp() AS leased
    ), left_over AS (
        INSERT INTO lingering (id, epoch, until)
        SELECT id, CASE WHEN leased THEN epoch ELSE -1 END, CASE WHEN leased THEN lease_until ELSE '-infinity' END
        FROM old WHERE leased OR in_chunks
    ), buried AS (
        INSERT INTO tombstones SELECT fingerprint, clock_timestamp() FROM old WHERE fingerprint IS NOT NULL
        ON CONFLICT (fingerprint) DO UPDATE SET gone_at = excluded.gone_at
    )
    SELECT cost FROM old";

const INSERT: &str = "
    INSERT INTO messages (key, uuid, id, length, cost, sha256, blend_at, blend_path, fingerprint, body)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";

const COUNT: &str = "UPDATE totals SET messages = messages + $2, bytes = bytes + $3 WHERE stripe = $1";

/// How many synchronous standbys have everything that the primary has flushed.
pub(super) const STANDBYS: &str = "
    SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state IN ('sync', 'quorum')";

impl PostgresBuffer {
    /// Stores a message. When this returns [`Put::Stored`], it is committed.
    ///
    /// # Errors
    /// Whether it is stored is unknown.
    pub async fn put(
        &self,
        uuid: BufferUuid,
        message: BufferMsg,
        delivery: Option<BrokerDelivery>,
    ) -> Result<Put, StoreError> {
        let this = self.clone();
        self.run(async move { this.write(uuid, message, delivery).await }).await
    }

    async fn write(
        &self,
        uuid: BufferUuid,
        message: BufferMsg,
        delivery: Option<BrokerDelivery>,
    ) -> Result<Put, StoreError> {
        let BufferMsg { pickle, blend, sha256 } = message;
        let key = key_of(&uuid);
        let path = blend.as_ref().and_then(|blend| blend.path.as_ref()).map(|path| path.as_bytes());
        let cost = cost(uuid.as_str().len() + path.map_or(0, <[u8]>::len), pickle.len());
        let is_large = pickle.len() > MAX_INLINE;
        let turn = if is_large { Some(self.turn().await?) } else { None };
        let mut connection = self.connection().await?;
        // before a large body is written in vain
        if is_large && let Some(full) = self.is_full(&mut connection, &key, cost).await? {
            connection.give_back();
            return Ok(full);
        }
        connection.begin().await?;
        check_standbys(&mut connection).await?;
        let id: i64 = connection.one("SELECT nextval('message_ids')", &[]).await?.get(0);
        let (body, sha256) = if is_large {
            (None, write_chunks(&mut connection, id, &pickle).await?)
        } else {
            let (body, hash) = part(pickle.clone(), 0, Sha256::new()).await?;
            (Some(body), sha256.unwrap_or_else(|| hash.finalize().into()))
        };
        let fingerprint = delivery.map(|delivery| delivery.fingerprint.to_bytes().to_vec());
        // the message of one UUID, and of one fingerprint, are stored one after the other
        for lock in fingerprint.iter().chain([&key]) {
            let lock = lock.iter().take(8).fold(0, |number, &byte| number << 8 | i64::from(byte));
            connection.query("SELECT pg_advisory_xact_lock($1)", &[(&lock, Type::INT8)]).await?;
        }
        if delivery.is_some_and(|delivery| delivery.redelivered) {
            let is_known: bool = connection.one(IS_KNOWN, &[(&fingerprint, Type::BYTEA)]).await?.get(0);
            if is_known {
                connection.roll_back().await?;
                connection.give_back();
                return Ok(Put::Duplicate);
            }
        }
        if let Some(full) = self.is_full(&mut connection, &key, cost).await? {
            connection.roll_back().await?;
            connection.give_back();
            return Ok(full);
        }
        let replaced: Option<i64> = connection.first(REPLACE, &[(&key, Type::BYTEA)]).await?.map(|row| row.get(0));
        let blend_at = blend.as_ref().map(|blend| blend.offset as i64);
        let sha256 = sha256.to_vec();
        let body = body.as_deref();
        connection
            .query(
                INSERT,
                &[
                    (&key, Type::BYTEA),
                    (&uuid.as_str().as_bytes(), Type::BYTEA),
                    (&id, Type::INT8),
                    (&(pickle.len() as i64), Type::INT8),
                    (&(cost as i64), Type::INT8),
                    (&sha256, Type::BYTEA),
                    (&blend_at, Type::INT8),
                    (&path, Type::BYTEA),
                    (&fingerprint, Type::BYTEA),
                    (&body, Type::BYTEA),
                ],
            )
            .await?;
        let (messages, bytes) = (i64::from(replaced.is_none()), cost as i64 - replaced.unwrap_or(0));
        let stripe = stripe();
        connection.query(COUNT, &[(&stripe, Type::INT4), (&messages, Type::INT8), (&bytes, Type::INT8)]).await?;
        connection.commit().await?;
        connection.give_back();
        drop(turn);
        Ok(Put::Stored { replaced: replaced.is_some() })
    }

    /// Waits until another large body may be written, while the database works.
    async fn turn(&self) -> Result<OwnedSemaphorePermit, StoreError> {
        loop {
            let turn = timeout(CHECK_INTERVAL, self.0.large_puts.clone().acquire_owned()).await;
            match (turn, self.health().failure) {
                (Ok(Ok(turn)), _) => return Ok(turn),
                (_, Some(failure)) => return Err(failure),
                (_, None) => {}
            }
        }
    }

    /// Whether there is no space for a message of this cost.
    async fn is_full(&self, connection: &mut Connection, key: &Vec<u8>, cost: u64) -> Result<Option<Put>, StoreError> {
        let held: i64 = connection.one(HELD, &[(key, Type::BYTEA)]).await?.get(0);
        let held = u64::try_from(held).unwrap_or(0);
        Ok((held + cost > self.0.max_bytes).then_some(Put::Full { size: cost, held }))
    }
}

/// Refuses a primary with fewer synchronous standbys than are demanded: a commit would wait for them, or would be on
/// this machine alone.
pub(super) async fn check_standbys(connection: &mut Connection) -> Result<(), StoreError> {
    let demanded = connection.require_sync();
    if demanded == 0 {
        return Ok(());
    }
    let found: i64 = connection.one(STANDBYS, &[]).await?.get(0);
    if found >= demanded {
        return Ok(());
    }
    Err(failure(format!(
        "its primary has {found} synchronous standbys, but {demanded} are demanded (--postgres-require-sync); the role \
         of the gateway sees them if it has pg_monitor"
    )))
}

/// Writes a body in chunks. Returns its SHA-256.
async fn write_chunks(connection: &mut Connection, id: i64, body: &Payload) -> Result<[u8; 32], StoreError> {
    let (mut offset, mut hash, mut number) = (0, Sha256::new(), 0_i32);
    while offset < body.len() {
        let (bytes, hashed) = part(body.clone(), offset, hash).await?;
        hash = hashed;
        let sql = "INSERT INTO chunks (message, number, bytes) VALUES ($1, $2, $3)";
        let bytes = &bytes[..];
        connection.extend();
        connection.query(sql, &[(&id, Type::INT8), (&number, Type::INT4), (&bytes, Type::BYTEA)]).await?;
        offset += bytes.len() as u64;
        number += 1;
    }
    connection.extend();
    Ok(hash.finalize().into())
}

/// Reads the chunk of a body at `offset`, and adds it to its hash. On another thread, unless that is quick.
async fn part(body: Payload, offset: u64, mut hash: Sha256) -> Result<(Bytes, Sha256), StoreError> {
    let is_quick = body.is_in_memory() && body.len() <= MAX_INLINE;
    let read = move || {
        let bytes = body.read(offset, CHUNK as usize)?;
        hash.update(&bytes);
        Ok((bytes, hash))
    };
    let read = if is_quick { read() } else { spawn_blocking(read).await.map_err(|_| failure("the gateway stops"))? };
    read.map_err(|error| StoreError::of_io(Path::new("a received body"), &error))
}

/// The row of the totals for one transaction.
pub(super) fn stripe() -> i32 {
    rand::random_range(0..STRIPES)
}
