//! The ETag of a file's version: a keyed hash, so that it reveals neither device nor inode.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use sha2::{Digest, Sha256};

use super::file::Stamp;
use crate::small_file::{self, ReadError};
use crate::store::disk::{SystemDisk, create_private, sync_directory};

/// The file in the data directory that has the key.
const KEY_FILE: &str = "etag.key";

/// How many bytes of the hash are used. Enough to rule out that two versions of a file have the same tag.
const SHOWN_BYTES: usize = 16;

/// The key of the hash. It survives restarts, so that a transfer can be resumed after one.
#[derive(Clone)]
pub struct TagKey([u8; 32]);

/// The key of the gateways that share a database. It is in the database, so that a transfer can be resumed at another
/// gateway. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct SharedTagKey(Arc<RwLock<Option<TagKey>>>);

/// How the versions of files are named.
#[derive(Clone, Debug)]
pub(super) enum Tags {
    /// With the key of this gateway.
    OfGateway(TagKey),
    /// With that of all gateways.
    OfAll(SharedTagKey),
}

impl Tags {
    /// The tag of a version, in hexadecimal digits.
    pub fn tag(&self, stamp: &Stamp) -> String {
        match self {
            Self::OfGateway(key) => key.tag(stamp),
            // each machine has a number of its own for the file system that they all mount
            Self::OfAll(key) => key.get().tag(&Stamp { device: 0, ..*stamp }),
        }
    }
}

impl SharedTagKey {
    /// The database has this key.
    pub(crate) fn set(&self, key: [u8; 32]) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(TagKey(key));
    }

    /// The key. While the database has not answered yet, a new one each time, so that no two tags are equal.
    fn get(&self) -> TagKey {
        let key = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        key.unwrap_or_else(TagKey::random)
    }
}

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

    /// The key in `data_dir`, which is created if there is none.
    ///
    /// # Errors
    /// As [`TagKey::read`], or it cannot be created.
    pub(super) fn kept_in(data_dir: &Path) -> Result<Self, (PathBuf, io::Error)> {
        if let Some(key) = Self::read(data_dir)? {
            return Ok(key);
        }
        let key = Self::random();
        key.write(data_dir)?;
        Ok(key)
    }

    /// The key in `data_dir`; `None` if it has none.
    ///
    /// # Errors
    /// The path of the file, and why it is not used: it cannot be read, or is damaged.
    pub fn read(data_dir: &Path) -> Result<Option<Self>, (PathBuf, io::Error)> {
        let path = data_dir.join(KEY_FILE);
        let error = match small_file::read(&path).map(TryInto::try_into) {
            Ok(Ok(key)) => return Ok(Some(Self(key))),
            Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(ReadError::Io(error)) => error,
            Ok(Err(_)) | Err(_) => io::Error::new(
                io::ErrorKind::InvalidData,
                "it is damaged: a key has exactly 32 bytes; delete it, and the next start makes a new one, with which \
                 transfers in progress start again",
            ),
        };
        Err((path, error))
    }

    /// Writes the key into a data directory, whole or not at all.
    ///
    /// # Errors
    /// The path of a file, and what the file system reports.
    pub(crate) fn write(&self, data_dir: &Path) -> Result<(), (PathBuf, io::Error)> {
        let (path, new) = (data_dir.join(KEY_FILE), data_dir.join(format!("{KEY_FILE}.new")));
        let write = || {
            let mut file = create_private(&new)?;
            file.write_all(&self.0)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            sync_directory(&SystemDisk, data_dir)
        };
        write().map_err(|error| (new.clone(), error))
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
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::{KEY_FILE, SharedTagKey, TagKey, Tags};
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
    fn gateways_with_the_key_of_their_database_give_a_file_the_same_tag_whatever_number_its_file_system_has() {
        let gateways = [(); 2].map(|()| SharedTagKey::default());
        let tags = |stamp| gateways.each_ref().map(|key| Tags::OfAll(key.clone()).tag(&stamp));
        let [one, other] = tags(STAMP);
        assert_ne!(one, other, "the key is not known yet");
        gateways.iter().for_each(|key| key.set([7; 32]));
        let [one, other] = tags(STAMP);
        assert_eq!(one, other);
        assert_eq!(tags(Stamp { device: 1, ..STAMP }), [one.clone(), other]);
        for changed in [
            Stamp { len: 11, ..STAMP },
            Stamp { inode: 1, ..STAMP },
            Stamp { modified: (1_700_000_001, 5), ..STAMP },
            Stamp { modified: (1_700_000_000, 6), ..STAMP },
        ] {
            assert!(!tags(changed).contains(&one), "{changed:?}");
        }
    }

    #[test]
    fn the_key_is_kept_and_a_damaged_one_is_an_error_that_says_what_to_do() {
        let dir = tempfile::tempdir().expect("a folder");
        let (data_dir, path) = (dir.path(), dir.path().join(KEY_FILE));
        assert!(TagKey::read(data_dir).expect("no file").is_none());
        let first = TagKey::kept_in(data_dir).expect("a key");
        assert_eq!(TagKey::kept_in(data_dir).expect("a key").0, first.0);
        let assert_damaged = || {
            for read in [TagKey::kept_in(data_dir).map(Some), TagKey::read(data_dir)] {
                let (named, why) = read.expect_err("damaged");
                assert!(named == path && why.to_string().contains("delete it"), "{}: {why}", named.display());
            }
        };
        for damaged in [&b""[..], b"short", &[7; 33]] {
            std::fs::write(&path, damaged).expect("a damaged key");
            assert_damaged();
        }
        std::fs::remove_file(&path).expect("a file");
        // neither is read to its end
        std::os::unix::fs::symlink("/dev/zero", &path).expect("a link");
        assert_damaged();
        std::fs::remove_file(&path).expect("a link");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).expect("a named pipe");
        assert_damaged();
        std::fs::remove_file(&path).expect("a pipe");
        assert_ne!(TagKey::kept_in(data_dir).expect("a new key").0, first.0);
    }
}
