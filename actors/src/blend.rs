//! `RefineDataFromMetaData`: opens the .blend file that a message names, if it is in a blend root.
//!
//! | to find | look in |
//! | --- | --- |
//! | the blend roots, and how a request for a file goes through them | `roots` |
//! | from a path to an open file, link by link | `resolve` |
//! | files that are never sent, wherever they are | `never_sent` |
//! | the threads that may block on a file system | `io_pool` |
//! | an open file, and the ETag of its version | `file`, `tag` |
//! | the SHA-256 of a file's version | `digest` |
//! | what is wrong with a path that names no file | `error_text` |
//!
//! ```
//! use std::sync::Arc;
//!
//! use user_http_actors::blend::{BlendConfig, BlendError, BlendRoots, refine_data_from_metadata};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let root = std::env::temp_dir().join(format!("blend-example-{}", std::process::id()));
//! std::fs::create_dir_all(&root)?;
//! std::fs::write(root.join("scene.blend"), "BLENDER")?;
//! let (roots, private_files) = (vec![root.clone()], Vec::new());
//! let config = BlendConfig { roots, data_dir: None, shared_key: None, private_files, max_open: 10 };
//! let roots = BlendRoots::new(config).map_err(|(path, error)| format!("{}: {error}", path.display()))?;
//! actix::System::new().block_on(async {
//!     let file = Arc::new(refine_data_from_metadata(&roots, Some("scene.blend")).await?);
//!     assert_eq!(file.len(), 7);
//!     assert_eq!(file.read(0, 5).await?, "BLEND");
//!
//!     let error = refine_data_from_metadata(&roots, Some("../secret.blend")).await.unwrap_err();
//!     assert!(matches!(error, BlendError::Outside(..)), "{error}");
//!     Ok::<(), Box<dyn std::error::Error>>(())
//! })?;
//! # std::fs::remove_dir_all(root)?;
//! # Ok(())
//! # }
//! ```

use std::fmt;

pub mod digest;
mod error_text;
mod file;
mod io_pool;
mod never_sent;
mod resolve;
mod roots;
mod tag;

pub use digest::{BlendDigest, BlendDigests};
pub use file::{BlendFile, Stamp};
use resolve::Refusal;
pub use roots::{BlendConfig, BlendRoots, DEFAULT_MAX_OPEN_BLEND_FILES, check_root};
pub use tag::{SharedTagKey, TagKey};

/// Why a .blend file cannot be sent. The texts name the path as the sender has written it, and no other path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlendError {
    /// The message has a blend reference without a path.
    #[error("DATA.BINARY_BLEND_FILE is missing, empty or not a str; the path of a .blend file is expected")]
    NoPath,
    /// The path leads out of the blend roots, by itself or through a link.
    #[error("blend file {0} is outside the permitted folders{1}")]
    Outside(SentPath, Hint),
    /// No file has this path.
    #[error("blend file {0} is missing{1}")]
    Missing(SentPath, Hint),
    /// The path is that of a folder, a device, a pipe or the like.
    #[error("blend file {0} is not a regular file")]
    NoRegularFile(SentPath),
    /// The file system refuses to open it, for the reason given.
    #[error("blend file {0} is unreadable: {1}")]
    Unreadable(SentPath, String),
    /// It has changed while its digest was computed; the same request may succeed later.
    #[error("blend file {0} has changed while its SHA-256 was computed; try again later")]
    Changing(SentPath),
    /// It cannot be opened at the moment, for the reason given; the same request may succeed later.
    #[error("blend file {0} cannot be opened at the moment: {1}; try again later")]
    NotNow(SentPath, String),
}

impl BlendError {
    /// Whether the same request may succeed later without any change.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::NotNow(..) | Self::Changing(..))
    }
}

/// A path as the sender has written it. It is displayed in quotes, escaped, and truncated if it is long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentPath(String);

impl SentPath {
    /// How many characters are displayed.
    const SHOWN: usize = 300;
}

impl From<&str> for SentPath {
    fn from(path: &str) -> Self {
        Self(path.to_owned())
    }
}

impl fmt::Display for SentPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(Self::SHOWN) {
            None => write!(f, "{:?}", self.0),
            Some((end, _)) => write!(f, "{:?}… ({} bytes)", &self.0[..end], self.0.len()),
        }
    }
}

/// What the sender may have meant, and what would be right. Empty if there is no guess.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hint(Option<String>);

impl<S: Into<String>> From<S> for Hint {
    fn from(text: S) -> Self {
        Self(Some(text.into()))
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |text| write!(f, ": {text}"))
    }
}

/// Opens the file that a message names as `path` (`RefineDataFromMetaData` of the specification). Waits for the file
/// system on threads of `roots`, never on the caller's thread, and for at most 5 s.
///
/// # Errors
/// See [`BlendError`].
pub async fn refine_data_from_metadata(roots: &BlendRoots, path: Option<&str>) -> Result<BlendFile, BlendError> {
    let path = path.filter(|path| !path.is_empty()).ok_or(BlendError::NoPath)?;
    let sent = || SentPath::from(path);
    if let Some(why) = error_text::impossible(path) {
        return Err(BlendError::Missing(sent(), why.into()));
    }
    let hint_or = |hint: Hint| error_text::hint(path).map_or(hint, Hint::from);
    roots.open(path).await.map_err(|refusal| match refusal {
        Refusal::Outside { by_link: true } => BlendError::Outside(sent(), error_text::LINK_LEAVES.into()),
        Refusal::Outside { by_link: false } => BlendError::Outside(sent(), hint_or(Hint::default())),
        Refusal::Missing(hint) => BlendError::Missing(sent(), hint_or(hint)),
        Refusal::NoRegularFile => BlendError::NoRegularFile(sent()),
        Refusal::Unreadable(why) => BlendError::Unreadable(sent(), why),
        Refusal::NotNow(why) => BlendError::NotNow(sent(), why),
    })
}
