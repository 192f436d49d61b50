//! `RefineDataFromMetaData`: opens the .blend file that a message names, inside the permitted folders only.
//!
//! | to find | look in |
//! | --- | --- |
//! | the permitted folders, and what is opened below them | `roots` |
//! | the way from a path to an open file | `walk` |
//! | what is never sent, wherever it lies | `private` |
//! | the threads that wait for file systems | `lane` |
//! | a file that is being sent, and its version | `file`, `tag` |
//! | what is wrong with a path that names nothing | `words` |

use std::fmt;

mod error_text;
mod file;
mod io_pool;
mod never_sent;
mod resolve;
mod roots;
mod tag;

pub use file::BlendFile;
use resolve::Refusal;
pub use roots::{BlendConfig, BlendRoots, DEFAULT_MAX_OPEN_BLEND_FILES, check_root};

/// Why a .blend file cannot be sent. The texts name the path as the sender has written it, and no other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlendError {
    /// The message asks for a file and names none.
    #[error("DATA.BINARY_BLEND_FILE is missing, empty or no str; the path of a .blend file is expected")]
    NoPath,
    /// The path leads out of the permitted folders, by itself or by a link.
    #[error("blend file {0} is outside the permitted folders{1}")]
    Outside(SentPath, Hint),
    /// Nothing is there.
    #[error("blend file {0} is missing{1}")]
    Missing(SentPath, Hint),
    /// A folder, a device, a pipe.
    #[error("blend file {0} is no regular file")]
    NoRegularFile(SentPath),
    /// The file system refuses, for the reason given.
    #[error("blend file {0} is unreadable: {1}")]
    Unreadable(SentPath, String),
    /// It cannot be opened at the moment, for the reason given; the same request may succeed later.
    #[error("blend file {0} cannot be opened at the moment: {1}; try again later")]
    NotNow(SentPath, String),
}

impl BlendError {
    /// Whether the same request may succeed later although nobody changes anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::NotNow(..))
    }
}

/// A path as the sender has written it. Displayed in quotes, escaped, and cut where it is long.
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

/// What the sender may have meant, and what would be right; nothing where there is no guess.
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
/// system on threads of `roots`, never on the caller's, and for 5 s at the most.
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
