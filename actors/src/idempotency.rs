//! Idempotency keys: what makes the retry of a request the same request.
//!
//! A key is known by digests of fixed size, so that a million keys take the same memory whatever their senders choose.

use sha2::{Digest as _, Sha256};
use uuid::{Builder, Uuid};

/// A shortened SHA-256. Two values with the same one are infeasible to find for somebody who chooses only one of them.
/// Who chooses both, which takes 2^64 attempts, confuses only requests of one `USER_ID`.
pub(crate) type Digest = [u8; 16];

/// The idempotency key that a client has sent with a request, and the body of that request.
#[derive(Clone, Copy, Debug)]
pub struct RequestKey<'a> {
    /// The key as the client has sent it.
    pub key: &'a [u8],
    /// The SHA-256 of the whole body.
    pub body_sha256: [u8; 32],
}

/// What identifies a request with an idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// Of `USER_ID` and key.
    pub(crate) key: Digest,
    /// Of the body.
    pub(crate) body: Digest,
    /// See [`IdempotencyKey::message_id`].
    pub(crate) message_id: Uuid,
}

impl IdempotencyKey {
    /// The key of a request of this user. Keys of different users are independent.
    pub fn new(user_id: &[u8], RequestKey { key, body_sha256 }: RequestKey<'_>) -> Self {
        // the length, because otherwise a user could choose an id that ends with the start of another's key
        let named = Sha256::new().chain_update((user_id.len() as u64).to_le_bytes()).chain_update(user_id);
        let named = named.chain_update(key).finalize();
        let message_id = Sha256::new().chain_update(b"message-id").chain_update(named).chain_update(body_sha256);
        let message_id = Builder::from_custom_bytes(shortened(&message_id.finalize())).into_uuid();
        Self { key: shortened(&named), body: shortened(&body_sha256), message_id }
    }

    /// The id of the message in such a request: a UUID of version 8 that depends only on user, key and body. So a retry
    /// after a kill has the `message-id` that the message may have been published with.
    pub fn message_id(&self) -> Uuid {
        self.message_id
    }
}

fn shortened(sha256: &[u8]) -> Digest {
    let mut digest = Digest::default();
    digest.copy_from_slice(&sha256[..16]);
    digest
}

/// A request was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It has no idempotency key.
    Unkeyed,
    /// It is the first one with its key.
    First {
        /// When it arrived, in milliseconds since 1970.
        at_ms: u64,
    },
    /// An earlier one with its key was accepted, and this one has had no effect.
    Replayed {
        /// When that one arrived, in milliseconds since 1970.
        at_ms: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(user_id: &str, key: &str, body: u8) -> IdempotencyKey {
        IdempotencyKey::new(user_id.as_bytes(), RequestKey { key: key.as_bytes(), body_sha256: [body; 32] })
    }

    #[test]
    fn user_key_and_body_together_make_the_message_id_and_nothing_else_does() {
        let first = key("anna", "7", 1);
        assert_eq!(first, key("anna", "7", 1));
        assert_eq!(first.message_id().get_version_num(), 8);
        for other in [key("anna7", "", 1), key("ann", "a7", 1), key("", "anna7", 1), key("bert", "7", 1)] {
            assert!(other.key != first.key && other.message_id() != first.message_id(), "{other:?}");
        }
        let other_body = key("anna", "7", 2);
        assert_eq!(other_body.key, first.key);
        assert!(other_body.body != first.body && other_body.message_id() != first.message_id());
    }

    /// Retries may come after an update of the gateway.
    #[test]
    fn the_message_id_is_the_same_in_every_version() {
        assert_eq!(key("anna", "7", 1).message_id().to_string(), "1ae180ce-9084-847a-bf42-f93c54c0fd3d");
    }
}
