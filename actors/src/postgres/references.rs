//! The .blend files that were handed out by reference.

use sha2::{Digest, Sha256};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::PostgresBuffer;
use super::connections::failure;
use crate::blend::BlendDigest;
use crate::messages::FileReference;
use crate::store::StoreError;

/// One that was written within the last second is not written again.
const ADD: &str = "
    INSERT INTO blend_references (sha256, path, path_key, stamp, referred_at)
    VALUES ($1, $2, $3, $4, clock_timestamp())
    ON CONFLICT (sha256, path_key) DO UPDATE SET stamp = excluded.stamp, referred_at = excluded.referred_at
    WHERE blend_references.stamp <> excluded.stamp
       OR blend_references.referred_at < clock_timestamp() - interval '1 s'";

/// Files of the same content are alike; those that have changed since cost an attempt to open them.
const FIND: &str = "
    SELECT path, stamp FROM blend_references
    WHERE sha256 = $1 AND referred_at > clock_timestamp() - make_interval(secs => $2 + 1)
    ORDER BY referred_at DESC LIMIT 64";

impl PostgresBuffer {
    /// Remembers that a file was handed out.
    ///
    /// # Errors
    /// It may not be remembered.
    pub async fn add_reference(&self, reference: FileReference) -> Result<(), StoreError> {
        let this = self.clone();
        let adding = async move {
            let FileReference { digest, path, stamp } = reference;
            let stamp = serde_json::to_vec(&stamp).map_err(|error| failure(error.to_string()))?;
            let (path, sha256) = (path.as_bytes(), digest.as_bytes().to_vec());
            let path_key = Sha256::digest(path).to_vec();
            let parameters = [
                (&sha256 as _, Type::BYTEA),
                (&path as _, Type::BYTEA),
                (&path_key as _, Type::BYTEA),
                (&stamp as _, Type::BYTEA),
            ];
            let mut connection = this.connection().await?;
            connection.query(ADD, &parameters).await?;
            connection.give_back();
            Ok(())
        };
        self.run(adding).await
    }

    /// The files that were handed out with this digest, newest first.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn find_references(&self, digest: BlendDigest) -> Result<Vec<FileReference>, StoreError> {
        let this = self.clone();
        let finding = async move {
            let sha256 = digest.as_bytes().to_vec();
            let mut connection = this.connection().await?;
            let parameters = [(&sha256 as _, Type::BYTEA), (&this.ttl_seconds() as _, Type::FLOAT8)];
            let rows = connection.query_anew(FIND, &parameters).await?;
            connection.give_back();
            let reference = |row: &Row| {
                let path = String::from_utf8_lossy(row.get(0)).into_owned();
                let stamp = serde_json::from_slice(row.get(1)).ok()?;
                Some(FileReference { digest, path, stamp })
            };
            Ok(rows.iter().filter_map(reference).collect())
        };
        self.run(finding).await
    }
}
