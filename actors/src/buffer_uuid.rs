//! The name of a buffered message.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The name of a buffered message: any string that the communication interface has chosen.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct BufferUuid(Arc<str>);

impl BufferUuid {
    /// The name as a string.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for BufferUuid {
    fn from(name: String) -> Self {
        Self(name.into())
    }
}

impl From<&str> for BufferUuid {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl From<BufferUuid> for String {
    fn from(name: BufferUuid) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Debug for BufferUuid {
    /// Escaped, because the name comes from outside and may appear in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
