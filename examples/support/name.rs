//! Names of files for what others have named.

use sha2::{Digest, Sha256};

/// The longest text that is its own name, in bytes; of a longer one so much begins its name.
const MAX_BYTES: usize = 100;

/// How many bytes of a hash tell one name from another.
const HASH_BYTES: usize = 16;

/// What Windows takes for a device, whatever stands behind a dot.
const DEVICES: [&str; 4] = ["con", "prn", "aux", "nul"];

/// A file's name for a text: different ones for different texts, on file systems that take `A` for `a` too, and nothing
/// that means something in a path. Texts of lower-case letters, digits, `-`, `_` and `.`, as UUIDs are, are names
/// already; any other is made safe, and `~` and its hash follow.
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

/// A short text for bytes, another for any others.
pub fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(HASH_BYTES).map(|byte| format!("{byte:02x}")).collect()
}

fn is_device(text: &str) -> bool {
    let name = text.split('.').next().unwrap_or_default();
    let is_port = |kind: &str| name.strip_prefix(kind).is_some_and(|port| port.len() == 1);
    DEVICES.contains(&name) || is_port("com") || is_port("lpt")
}
