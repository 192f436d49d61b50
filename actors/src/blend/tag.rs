//! The ETag of a file's version: a keyed hash, so that it reveals neither device nor inode.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::file::Stamp;

/// The file in the data directory that has the key.
pub(crate) const KEY_FILE: &str = "etag.key";

/// How many bytes of the hash are used. Enough to rule out that two versions of a file have the same tag.
const SHOWN_BYTES: usize = 16;

/// The key of the hash. It survives restarts, so that a transfer can be resumed after one.
#[derive(Clone)]
pub struct TagKey([u8; 32]);

impl std::fmt::Debug for TagKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TagKey(..)")
    }
}

impl TagKey {
    /// A new key, for use until the process ends.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// The key in `data_dir`. A missing or damaged key is replaced by a new one; transfers in progress cannot be
    /// resumed then, and start again.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn kept_in(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join(KEY_FILE);
        match fs::read(&path) {
            Ok(bytes) => {
                if let Ok(key) = bytes.try_into() {
                    return Ok(Self(key));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let key = Self::random();
        let new = data_dir.join(format!("{KEY_FILE}.new"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&key.0)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        Ok(key)
    }

    /// The tag of a version, in hexadecimal digits.
    pub fn tag(&self, stamp: &Stamp) -> String {
        // Every part has a fixed length and the hash is truncated, so length extension is impossible.
        let mut hash = Sha256::new().chain_update(self.0);
        for part in [stamp.device, stamp.inode, stamp.len] {
            hash.update(part.to_le_bytes());
        }
        for part in [stamp.modified.0, stamp.modified.1] {
            hash.update(part.to_le_bytes());
        }
        hash.finalize()[..SHOWN_BYTES].iter().fold(String::new(), |mut digits, byte| {
            // Writing to a String never fails.
            let _ = write!(digits, "{byte:02x}");
            digits
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{KEY_FILE, TagKey};
    use crate::blend::file::Stamp;

    const STAMP: Stamp = Stamp { len: 10, device: 0xfe01, inode: 0x4_2424, modified: (1_700_000_000, 5) };

    #[test]
    fn a_tag_differs_with_every_part_of_the_version_and_with_the_key() {
        let key = TagKey([7; 32]);
        let tags = [
            key.tag(&STAMP),
            key.tag(&Stamp { len: 11, ..STAMP }),
            key.tag(&Stamp { device: 1, ..STAMP }),
            key.tag(&Stamp { inode: 1, ..STAMP }),
            key.tag(&Stamp { modified: (1_700_000_001, 5), ..STAMP }),
            key.tag(&Stamp { modified: (1_700_000_000, 6), ..STAMP }),
            TagKey([8; 32]).tag(&STAMP),
        ];
        for (at, tag) in tags.iter().enumerate() {
            assert!(!tags[..at].contains(tag), "{tags:?}");
            assert!(tag.len() == 32 && !tag.contains("42424") && !tag.contains("fe01"), "{tag}");
        }
    }

    #[test]
    fn the_key_is_kept_and_a_damaged_one_is_made_anew() {
        let dir = tempfile::tempdir().expect("a folder");
        let data_dir = dir.path();
        let first = TagKey::kept_in(data_dir).expect("a key");
        assert_eq!(TagKey::kept_in(data_dir).expect("a key").0, first.0);
        std::fs::write(data_dir.join(KEY_FILE), b"short").expect("a damaged key");
        let second = TagKey::kept_in(data_dir).expect("a key");
        assert_ne!(second.0, first.0);
        assert_eq!(TagKey::kept_in(data_dir).expect("a key").0, second.0);
    }
}
