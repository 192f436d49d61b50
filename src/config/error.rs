//! The errors of loading the configuration.

use std::fmt;
use std::path::PathBuf;

/// Why the configuration cannot be loaded.
#[derive(Debug)]
pub enum ConfigError {
    /// The command line is wrong, or asks for help or the version. The text is clap's.
    CommandLine(clap::Error),
    /// The file cannot be read or parsed.
    File(PathBuf, String),
    /// A key in the file that is not a setting.
    UnknownKey {
        /// The key.
        key: String,
        /// The file.
        file: PathBuf,
        /// The setting with the most similar name.
        nearest: &'static str,
        /// All settings.
        known: Vec<&'static str>,
    },
    /// A value that is not accepted.
    BadValue {
        /// Setting, value and origin, as the user wrote them.
        given: String,
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
                write!(f, "unknown key {key:?} in {file}; did you mean {nearest:?}? the settings are {known}")
            }
            Self::BadValue { given, why } => write!(f, "{given}: {why}"),
        }
    }
}

impl std::error::Error for ConfigError {}
