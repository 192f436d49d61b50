//! The bounds within which a message is understood. Whatever exceeds one is refused by an error that names it.

/// How deep containers may be nested, counted from the whole message's own dict. CPython's `repr`, `json` and
/// `pickle.dumps` recurse, and give up at 1,000 frames.
pub const MAX_DEPTH: usize = 256;

/// How many values a message may hold, and how many places (a list's item, a dict's key, a dict's value) may hold
/// one. A value costs 16 bytes while the message is decoded, a place 8.
pub const MAX_VALUES: usize = 4_194_304;

/// How many decimal digits an integer may have where it is written in decimal: turning them into binary takes time
/// that grows with their square, some milliseconds at this bound.
pub const MAX_INT_DIGITS: usize = 65_536;

/// How many digits integers of more than [`MAX_PEER_INT_DIGITS`] decimal digits may have together: what takes
/// milliseconds once must not be asked for a thousand times over.
pub const MAX_LONG_INT_DIGITS: usize = 4_194_304;

/// How many decimal digits CPython's `int` takes with its default settings (`sys.int_info.default_max_str_digits`).
/// A longer integer reaches the peers in binary only, inside a pickle.
pub const MAX_PEER_INT_DIGITS: usize = 4_300;

/// How far a memo number of a pickle may exceed the number of values made before it. `pickle.dumps` numbers them in
/// a row; CPython allocates a table as long as the largest number.
pub const MAX_MEMO_GAP: usize = 65_536;

/// How many values a pickle may have hashed in all: a dict's key or a set's item counts as often as it is used, a
/// tuple for all that it holds. CPython hashes a tuple anew at each use, so that shared tuples in a pickle of one
/// kilobyte could keep it busy for years.
pub const MAX_HASHED_VALUES: usize = 16_777_216;

/// How many values a pickle's keys may make CPython compare with one another because their hashes are equal: half a
/// second's work. The number grows with the square of the keys, so that a megabyte of them could take hours.
pub const MAX_KEY_COMPARISONS: usize = 16_777_216;

/// How many values one key may hold; an int counts once more for every 64 bytes.
pub const MAX_KEY_VALUES: usize = u16::MAX as usize - 1;

/// How many times a pickle's own length its calls of `_codecs.encode` and `builtins.bytearray` may make, in bytes.
/// `pickle.dumps` never exceeds twice the length, but a shared argument could fill the peer's memory.
pub const MAX_CALL_GROWTH: usize = 4;

/// How long a body may be, in bytes: positions in it are kept in 32 bits.
pub const MAX_BODY_BYTES: usize = u32::MAX as usize;

/// How many bytes of JSON the sharing inside a pickle may add. Without sharing, the JSON has less than
/// [`MAX_JSON_RATIO`] times the pickle's length; past both together, the pickle is forwarded as it is.
pub const MAX_JSON_SHARED_BYTES: u64 = 16 * 1024 * 1024;

/// See [`MAX_JSON_SHARED_BYTES`].
pub const MAX_JSON_RATIO: u64 = 8;

/// How long a `BUFFER_UUID` may be, in bytes.
pub const MAX_BUFFER_UUID_BYTES: usize = 4_096;

/// How long the path of a .blend file may be, in bytes of UTF-8: `PATH_MAX` of Linux, beyond which no path can be opened.
pub const MAX_BLEND_PATH_BYTES: usize = 4_096;

/// How many characters of a user's name or of an unknown type are kept for logs and lists. What is forwarded
/// carries them whole.
pub const MAX_LABEL_CHARS: usize = 1_024;

/// How long the text of a `TEST` message's data may get in the log, in bytes.
pub const MAX_PREVIEW_BYTES: usize = 1_024;
