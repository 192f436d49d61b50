//! Claims: who may deliver a message. Each of these operations is one statement, and those of a claim have no effect
//! once somebody else has claimed the message, because each claim increments its epoch.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::connections::Parameter;
use super::put::{check_standbys, stripe};
use super::{DatabaseBody, PostgresBuffer, key_of};
use crate::buffer_uuid::BufferUuid;
use crate::codec::BlendPlaceholder;
use crate::digest::{MessageDigest, Sha256Digest};
use crate::lease::{BufferMsgView, Progress};
use crate::payload::Payload;
use crate::store::StoreError;

/// How long a claim lasts unless it is renewed.
pub const LEASE: Duration = Duration::from_secs(30);

/// After the database has failed to answer a gateway, it claims nothing for this time whose end was being sent when its
/// claim ran out. The gateway that has delivered such a message removes it as soon as the database is back: it tries
/// again every second, and an attempt takes less than 10 s.
const GRACE: Duration = Duration::from_secs(30);

/// How often a message that is free is claimed in vain, because something happens to it between two statements.
const CLAIM_ATTEMPTS: usize = 5;

/// What a request for a message gets.
#[derive(Debug)]
pub enum Claim {
    /// There is none.
    Absent,
    /// Somebody else delivers it.
    InDelivery,
    /// The right to deliver it.
    Claimed(Box<Claimed>),
}

/// A claimed message.
#[derive(Debug)]
pub struct Claimed {
    /// The claim.
    pub id: ClaimId,
    /// What to deliver.
    pub view: BufferMsgView,
    /// How much of it was sent before.
    pub(crate) progress: Progress,
    /// When the claim was asked for. It lasts for [`LEASE`] from then on, or somewhat longer.
    pub since: Instant,
    /// Whether it lasts that long in any case: nobody takes it over, because the message is sent at once.
    pub is_ending: bool,
}

/// Identifies a claim of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimId {
    key: Vec<u8>,
    id: i64,
    epoch: i64,
}

/// A message that somebody waits for is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waited {
    /// Which of those that were asked for.
    pub index: usize,
    /// Whether nobody delivers it.
    pub free: bool,
}

/// When a message was stored, as in its [`version`].
macro_rules! stored_at_ms {
    () => {
        "(extract(epoch FROM stored_at) * 1000)::bigint"
    };
}

const VIEW: &str = concat!(
    "id, length, sha256, blend_at, blend_path, ",
    stored_at_ms!(),
    ", body, epoch, sent_version, sent_to, ending"
);

/// Whether nobody has claimed a message. `$3`: if its end was being sent, it counts as claimed although its claim is
/// over.
macro_rules! is_free {
    () => {
        "(lease_until <= clock_timestamp() AND NOT (ending AND $3))"
    };
}

/// A new claim of the gateway `$4`. A message that is sent at once is at its end from the start.
macro_rules! begin_claim {
    () => {
        "UPDATE messages SET lease_until = clock_timestamp() + interval '30 s', epoch = epoch + 1, owner = $4,
                             ending = body IS NOT NULL AND blend_at IS NULL
         WHERE key = $1 AND stored_at > clock_timestamp() - make_interval(secs => $2)"
    };
}

const CLAIM: &str = concat!(begin_claim!(), " AND ", is_free!(), " RETURNING ");

/// Not from the same gateway, which knows that the other connection is there.
const TAKE_OVER: &str = concat!(
    begin_claim!(),
    " AND id = $5 AND ",
    stored_at_ms!(),
    " = $6 AND (",
    is_free!(),
    " OR (owner <> $4 AND NOT ending)) RETURNING "
);

/// One that has expired is there until its delivery ends.
const IS_FREE: &str = concat!(
    "SELECT ",
    is_free!(),
    " FROM messages WHERE key = $1
    AND (lease_until > clock_timestamp() OR stored_at > clock_timestamp() - make_interval(secs => $2))"
);

const PEEK: &str = " FROM messages WHERE key = $1
    AND (lease_until > clock_timestamp() OR stored_at > clock_timestamp() - make_interval(secs => $2))";

/// A claim whose time is over is renewed too, if nobody has claimed the message since.
const RENEW: &str = "
    WITH held AS (
        UPDATE messages SET lease_until = clock_timestamp() + interval '30 s', ending = ending OR $4
        WHERE key = $1 AND id = $2 AND epoch = $3 RETURNING 1
    ), lingering AS (
        UPDATE lingering SET until = clock_timestamp() + interval '30 s' WHERE id = $2 AND epoch = $3 RETURNING 1
    )
    SELECT EXISTS (SELECT FROM held) OR EXISTS (SELECT FROM lingering)";

/// A renewal that arrives later has no effect. What has lingered is removed by the next sweep: that of a large body may
/// take seconds.
const RELEASE: &str = "
    WITH held AS (
        UPDATE messages SET lease_until = '-infinity', epoch = epoch + 1, ending = false,
                            sent_version = coalesce($4, sent_version), sent_to = coalesce($5, sent_to)
        WHERE key = $1 AND id = $2 AND epoch = $3
    )
    UPDATE lingering SET epoch = -1, until = '-infinity' WHERE id = $2 AND epoch = $3";

/// See [`RELEASE`] for what lingers.
const DELIVER: &str = concat!(
    "
    WITH gone AS (
        DELETE FROM messages WHERE key = $1 AND id = $2 AND epoch = $3
        RETURNING id, cost, fingerprint, body IS NULL AS in_chunks
    ), ended AS (
        UPDATE lingering SET epoch = -1, until = '-infinity' WHERE id = $2 AND epoch = $3 RETURNING id
    ), ",
    after_removal!("$4"),
    " SELECT EXISTS (SELECT FROM gone), EXISTS (SELECT FROM ended)"
);

const AVAILABLE: &str = concat!(
    "SELECT key, ",
    is_free!(),
    " FROM messages WHERE key = ANY ($1) AND stored_at > clock_timestamp() - make_interval(secs => $2)"
);

impl PostgresBuffer {
    /// Claims a message, unless somebody else has.
    ///
    /// # Errors
    /// If it is claimed nevertheless, that ends by itself.
    pub async fn claim(&self, uuid: &BufferUuid) -> Result<Claim, StoreError> {
        let (this, key) = (self.clone(), key_of(uuid));
        let claiming = async move {
            let mut connection = this.connection().await?;
            // one that a standby does not have would be another gateway's after a failover
            check_standbys(&mut connection).await?;
            let (ttl, owner, is_unsettled) = (this.ttl_seconds(), this.0.owner, this.is_unsettled());
            let of_message: [Parameter<'_>; 3] =
                [(&key, Type::BYTEA), (&ttl, Type::FLOAT8), (&is_unsettled, Type::BOOL)];
            let of_claim = [&of_message[..], &[(&owner as _, Type::INT8)]].concat();
            let mut claim = Claim::InDelivery;
            for _ in 0..CLAIM_ATTEMPTS {
                let since = Instant::now();
                if let Some(row) = connection.first(&format!("{CLAIM}{VIEW}"), &of_claim).await? {
                    claim = Claim::Claimed(Box::new(this.claimed(key.clone(), &row, since)));
                    break;
                }
                match connection.first(IS_FREE, &of_message).await?.map(|row| row.get::<_, bool>(0)) {
                    Some(false) => break,
                    None => {
                        claim = Claim::Absent;
                        break;
                    }
                    // it was released, or has taken the place of another one, since
                    Some(true) => {}
                }
            }
            connection.give_back();
            Ok(claim)
        };
        self.run(claiming).await
    }

    /// Takes a message over from another gateway that delivers it, for a worker that comes back from there. It proves
    /// that by an ETag of the message, `seen`, without quotes. The other gateway can no longer complete its delivery.
    /// [`Claim::InDelivery`] if it is another message, if this gateway delivers it, or if its end is being sent.
    ///
    /// # Errors
    /// As [`claim`](Self::claim).
    pub async fn take_over(&self, uuid: &BufferUuid, seen: &str) -> Result<Claim, StoreError> {
        let Some((id, stored_at_ms)) = parse_version(seen) else { return Ok(Claim::InDelivery) };
        let (this, key) = (self.clone(), key_of(uuid));
        let taking = async move {
            let mut connection = this.connection().await?;
            check_standbys(&mut connection).await?;
            let parameters = [
                (&key as _, Type::BYTEA),
                (&this.ttl_seconds() as _, Type::FLOAT8),
                (&this.is_unsettled() as _, Type::BOOL),
                (&this.0.owner as _, Type::INT8),
                (&id as _, Type::INT8),
                (&stored_at_ms as _, Type::INT8),
            ];
            let since = Instant::now();
            let row = connection.first(&format!("{TAKE_OVER}{VIEW}"), &parameters).await?;
            connection.give_back();
            let claimed = row.map(|row| this.claimed(key.clone(), &row, since));
            Ok(claimed.map_or(Claim::InDelivery, |claimed| Claim::Claimed(Box::new(claimed))))
        };
        self.run(taking).await
    }

    /// Whether the database has failed to answer this gateway within [`GRACE`].
    fn is_unsettled(&self) -> bool {
        self.0.health.borrow().failed_at.is_some_and(|failed| failed.elapsed() < GRACE)
    }

    fn claimed(&self, key: Vec<u8>, row: &Row, since: Instant) -> Claimed {
        let id = ClaimId { key, id: row.get(0), epoch: row.get(7) };
        let (version, sent_to): (Option<String>, Option<i64>) = (row.get(8), row.get(9));
        let progress = version.zip(sent_to).map(|(version, sent_to)| Progress::of(version, sent_to as u64));
        Claimed { id, view: self.view(row), progress: progress.unwrap_or_default(), since, is_ending: row.get(10) }
    }

    /// The message of this UUID; `None` if there is none.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn peek(&self, uuid: &BufferUuid) -> Result<Option<BufferMsgView>, StoreError> {
        let (this, key) = (self.clone(), key_of(uuid));
        let looking = async move {
            let mut connection = this.connection().await?;
            let of_message = [(&key as _, Type::BYTEA), (&this.ttl_seconds() as _, Type::FLOAT8)];
            let row = connection.first(&format!("SELECT {VIEW}{PEEK}"), &of_message).await?;
            connection.give_back();
            Ok(row.map(|row| this.view(&row)))
        };
        self.run(looking).await
    }

    fn view(&self, row: &Row) -> BufferMsgView {
        let (id, len): (i64, i64) = (row.get(0), row.get(1));
        let sha256: Option<Sha256Digest> = row.get::<_, &[u8]>(2).try_into().ok();
        let blend_at: Option<i64> = row.get(3);
        let path: Option<&[u8]> = row.get(4);
        let path = path.map(|path| String::from_utf8_lossy(path).into_owned());
        let stored_at_ms: i64 = row.get(5);
        let body: Option<&[u8]> = row.get(6);
        let payload = match body {
            Some(body) => Payload::from_parts(vec![Bytes::copy_from_slice(body)]),
            None => Payload::Database(DatabaseBody::new(self.clone(), id, len as u64)),
        };
        let blend = blend_at.map(|offset| BlendPlaceholder { offset: offset as u64, path });
        BufferMsgView {
            version: version(id, stored_at_ms),
            payload,
            digest: sha256.filter(|_| blend.is_none()).map(MessageDigest::Known),
            blend,
        }
    }

    /// Renews a claim. If the message `is_ending`, nobody takes it over from now on. Returns when it was asked for;
    /// `None` if somebody else has claimed the message since, or it is gone.
    ///
    /// # Errors
    /// Whether it is renewed is unknown.
    pub async fn renew(&self, claim: ClaimId, is_ending: bool) -> Result<Option<Instant>, StoreError> {
        let this = self.clone();
        let renewing = async move {
            let mut connection = this.connection().await?;
            let mut renewed = None;
            // a statement that has waited until the message was replaced does not see yet that it lingers
            for _ in 0..2 {
                let since = Instant::now();
                let [key, id, epoch] = claim.parameters();
                if connection.one(RENEW, &[key, id, epoch, (&is_ending as _, Type::BOOL)]).await?.get(0) {
                    renewed = Some(since);
                    break;
                }
            }
            connection.give_back();
            Ok(renewed)
        };
        self.run(renewing).await
    }

    /// Ends a claim whose delivery has broken off, and remembers how much was sent, if that has changed.
    ///
    /// # Errors
    /// It may end by itself only.
    pub(crate) async fn release(&self, claim: ClaimId, progress: Option<Progress>) -> Result<(), StoreError> {
        let this = self.clone();
        let releasing = async move {
            let mut connection = this.connection().await?;
            let version = progress.as_ref().map(Progress::version);
            let sent_to = progress.as_ref().map(|progress| progress.sent_to() as i64);
            let [key, id, epoch] = claim.parameters();
            let parameters = [key, id, epoch, (&version as _, Type::TEXT), (&sent_to as _, Type::INT8)];
            connection.query(RELEASE, &parameters).await?;
            connection.give_back();
            Ok(())
        };
        self.run(releasing).await
    }

    /// Removes a message that was delivered. Returns whether it was still there; not if it was replaced or claimed by
    /// somebody else meanwhile.
    ///
    /// # Errors
    /// Whether it is removed is unknown.
    pub async fn deliver(&self, claim: ClaimId) -> Result<bool, StoreError> {
        let this = self.clone();
        let removing = async move {
            let mut connection = this.connection().await?;
            let stripe = stripe();
            let [key, id, epoch] = claim.parameters();
            let row = connection.one(DELIVER, &[key, id, epoch, (&stripe as _, Type::INT4)]).await?;
            let (gone, lingered): (bool, bool) = (row.get(0), row.get(1));
            if !gone && !lingered {
                log::warn!("a message was delivered, and its claim was over: it may be delivered again");
            }
            connection.give_back();
            Ok(gone)
        };
        self.run(removing).await
    }

    /// Which of these messages are there.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn available(&self, uuids: &[BufferUuid]) -> Result<Vec<Waited>, StoreError> {
        let (this, keys) = (self.clone(), uuids.iter().map(key_of).collect::<Vec<_>>());
        let looking = async move {
            let mut connection = this.connection().await?;
            let parameters = [
                (&keys as _, Type::BYTEA_ARRAY),
                (&this.ttl_seconds() as _, Type::FLOAT8),
                (&this.is_unsettled() as _, Type::BOOL),
            ];
            let rows = connection.query(AVAILABLE, &parameters).await?;
            connection.give_back();
            // thousands may wait at a gateway, and many of their messages may have come
            let places: HashMap<&[u8], usize> = keys.iter().map(Vec::as_slice).zip(0..).collect();
            let waited = |row: &Row| Some(Waited { index: *places.get(row.get::<_, &[u8]>(0))?, free: row.get(1) });
            Ok(rows.iter().filter_map(waited).collect())
        };
        self.run(looking).await
    }
}

/// The version of a message.
fn version(id: i64, stored_at_ms: i64) -> String {
    format!("{id:x}-{stored_at_ms:x}")
}

/// The message that an ETag belongs to: its id, and when it was stored. An ETag is a [`version`], with the version of a
/// .blend file behind it if there is one.
fn parse_version(etag: &str) -> Option<(i64, i64)> {
    let mut parts = etag.splitn(3, '-').map(|part| i64::from_str_radix(part, 16).ok());
    parts.next().flatten().zip(parts.next().flatten())
}

impl ClaimId {
    fn parameters(&self) -> [Parameter<'_>; 3] {
        [(&self.key, Type::BYTEA), (&self.id, Type::INT8), (&self.epoch, Type::INT8)]
    }
}

#[cfg(test)]
mod tests {
    use super::{parse_version, version};

    #[test]
    fn an_etag_names_its_message_whichever_file_is_in_that() {
        let of_message = version(0x1f, 0x19a_0000_0001);
        assert_eq!(parse_version(&of_message), Some((0x1f, 0x19a_0000_0001)));
        assert_eq!(parse_version(&format!("{of_message}-00ff")), Some((0x1f, 0x19a_0000_0001)));
        for other in ["", "1f", "1f-", "-19a", "x-19a", "ffffffffffffffffff-1"] {
            assert_eq!(parse_version(other), None, "{other}");
        }
    }
}
