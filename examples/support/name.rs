//! Safe file names for arbitrary text.

use sha2::{Digest, Sha256};

/// The longest text that is used unchanged, in bytes; a longer one is cut to this length.
const MAX_BYTES: usize = 100;

/// How many bytes of the hash make a name unique.
const HASH_BYTES: usize = 16;

/// Device names of Windows, with any extension.
const DEVICES: [&str; 4] = ["con", "prn", "aux", "nul"];

/// A file name for a text, different for different texts even on file systems that ignore case, and without special
/// meaning in a path. A text of lower-case letters, digits, `-`, `_` and `.`, such as a UUID, is used unchanged; in
/// any other one, unsafe characters are replaced, and `~` and a hash are appended.
pub fn file_name(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
    let is_name = (1..=MAX_BYTES).contains(&text.len())
        && text.chars().all(is_plain)
        && !text.starts_with('.')
        && !text.ends_with('.')
        && !is_device(text);
    if is_name {
        return text.to_owned();
    }
    let safe = |c: char| if is_plain(c) && c != '.' { c } else { '_' };
    let start: String = text.chars().take(MAX_BYTES).flat_map(char::to_lowercase).map(safe).collect();
    format!("{start}~{}", hash(text.as_bytes()))
}

/// A short hash.
pub fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(HASH_BYTES).map(|byte| format!("{byte:02x}")).collect()
}

fn is_device(text: &str) -> bool {
    let name = text.split('.').next().unwrap_or_default();
    let is_port = |kind: &str| name.strip_prefix(kind).is_some_and(|port| port.len() == 1);
    DEVICES.contains(&name) || is_port("com") || is_port("lpt")
}
