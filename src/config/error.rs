//! Why there is no configuration.

use std::fmt;
use std::path::PathBuf;

/// Why there is no configuration.
#[derive(Debug)]
pub enum ConfigError {
    /// The command line cannot be read, or asks for help: clap's own answer.
    CommandLine(clap::Error),
    /// The file cannot be read.
    File(PathBuf, String),
    /// A key of the file that is no setting.
    UnknownKey {
        /// The key.
        key: String,
        /// The file.
        file: PathBuf,
        /// The setting whose name is nearest.
        nearest: &'static str,
        /// All settings.
        known: Vec<&'static str>,
    },
    /// A value that is not accepted.
    BadValue {
        /// Setting, value and origin, as the user wrote them.
        place: String,
        /// What is wrong with it, or what would be accepted.
        why: String,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine(error) => error.fmt(f),
            Self::File(path, why) => write!(f, "cannot read the configuration file {}: {why}", path.display()),
            Self::UnknownKey { key, file, nearest, known } => {
                let (file, known) = (file.display(), known.join(", "));
                write!(f, "unknown key {key:?} in {file}; did you mean {nearest:?}? known are {known}")
            }
            Self::BadValue { place, why } => write!(f, "{place}: {why}"),
        }
    }
}

impl std::error::Error for ConfigError {}
