//! What operators list and discard.

use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::put::stripe;
use super::{PostgresBuffer, key_of};
use crate::administration::{BufferEntry, PageRequest};
use crate::buffer_uuid::BufferUuid;
use crate::store::{Seq, StoreError};

/// What has become of a message that an operator discards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discarded {
    /// It is removed.
    Gone,
    /// There is none.
    Absent,
    /// It stays, because it is being delivered.
    InDelivery,
}

/// The ids of messages are their sequence numbers.
const LIST: &str = "
    SELECT id, uuid, length, extract(epoch FROM clock_timestamp() - stored_at)::float8, blend_path,
           lease_until > clock_timestamp()
    FROM messages WHERE id > $1
      AND (lease_until > clock_timestamp() OR stored_at > clock_timestamp() - make_interval(secs => $3))
    ORDER BY id LIMIT $2";

const DISCARD: &str = concat!(
    "
    WITH found AS (
        SELECT key, lease_until > clock_timestamp() AS leased FROM messages WHERE key = $1
        AND (lease_until > clock_timestamp() OR stored_at > clock_timestamp() - make_interval(secs => $3))
        FOR UPDATE
    ), gone AS (
        DELETE FROM messages USING found WHERE messages.key = found.key AND NOT leased
        RETURNING id, cost, fingerprint, body IS NULL AS in_chunks
    ), ",
    after_removal!("$2"),
    " SELECT leased FROM found"
);

impl PostgresBuffer {
    /// The messages after the one with this number, at most `limit` and one: that there is one more.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn list(&self, page: PageRequest) -> Result<Vec<(Seq, BufferEntry)>, StoreError> {
        let this = self.clone();
        let listing = async move {
            let (after, limit) = (i64::try_from(page.after).unwrap_or(i64::MAX), page.limit as i64 + 1);
            let mut connection = this.connection().await?;
            let parameters =
                [(&after as _, Type::INT8), (&limit as _, Type::INT8), (&this.ttl_seconds() as _, Type::FLOAT8)];
            let rows = connection.query_anew(LIST, &parameters).await?;
            connection.give_back();
            Ok(rows.iter().map(entry).collect())
        };
        self.run(listing).await
    }

    /// Removes a message that nobody delivers.
    ///
    /// # Errors
    /// Whether it is removed is unknown.
    pub async fn discard(&self, uuid: &BufferUuid) -> Result<Discarded, StoreError> {
        let (this, key) = (self.clone(), key_of(uuid));
        let removing = async move {
            let stripe = stripe();
            let mut connection = this.connection().await?;
            let parameters =
                [(&key as _, Type::BYTEA), (&stripe as _, Type::INT4), (&this.ttl_seconds() as _, Type::FLOAT8)];
            let found = connection.query_anew(DISCARD, &parameters).await?.into_iter().next();
            connection.give_back();
            Ok(match found.map(|row| row.get::<_, bool>(0)) {
                None => Discarded::Absent,
                Some(true) => Discarded::InDelivery,
                Some(false) => Discarded::Gone,
            })
        };
        self.run(removing).await
    }
}

fn entry(row: &Row) -> (Seq, BufferEntry) {
    let (id, length): (i64, i64) = (row.get(0), row.get(2));
    let path: Option<&[u8]> = row.get(4);
    let entry = BufferEntry {
        buffer_uuid: String::from_utf8_lossy(row.get(1)).into_owned().into(),
        bytes: length as u64,
        age: Duration::from_secs_f64(row.get::<_, f64>(3).max(0.0)),
        blend: path.map(|path| String::from_utf8_lossy(path).into_owned()),
        in_delivery: row.get(5),
    };
    (id as Seq, entry)
}
