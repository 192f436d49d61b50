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

/// How long a pickle's keys may keep CPython's `pickle.loads` busy (hashing, probing, comparing), in nanoseconds,
/// whatever the pickle's length. [`KEY_WORK_NS_PER_BYTE`] comes on top. A key of a dict as programs make them takes 50
/// to 500 ns; keys chosen by their hashes could make hours of a megabyte. The whole pickle is to load within 0.5 s and
/// 1 s for each MiB, which leaves more than half of that time for the rest of its opcodes and for slower processors.
pub const KEY_WORK_BASE_NS: u64 = 64_000_000;

/// See [`KEY_WORK_BASE_NS`]: for each byte of the pickle.
pub const KEY_WORK_NS_PER_BYTE: u64 = 300;

/// How many bytes of a pickle count at most towards [`KEY_WORK_NS_PER_BYTE`] for each value and place: a large byte
/// string is no reason to spend time on keys.
pub const KEY_WORK_BYTES_PER_PLACE: usize = 8;

/// How much of that work, in nanoseconds, is looked into on an event loop; that takes about a quarter of the time that
/// it stands for.
pub const KEY_WORK_BRIEF_NS: u64 = 1_000_000;

/// What it takes CPython to make a set or a frozenset, in nanoseconds: it has 200 bytes when it is empty, and among a
/// million of them the garbage collector passes it several times.
pub const SET_WORK_NS: u64 = 1_000;

/// How many values one key may hold; an int counts once more for every [`INT_BYTES_PER_HASHED_VALUE`].
pub const MAX_KEY_VALUES: usize = u16::MAX as usize - 1;

/// How many bytes of an int CPython hashes in the time that it takes for another value. Unlike a str's or a bytes', an
/// int's hash is worked out anew each time.
pub const INT_BYTES_PER_HASHED_VALUE: usize = 20;

/// How many times a pickle's own length its calls of `_codecs.encode` and `builtins.bytearray` may make, in bytes.
/// `pickle.dumps` never exceeds twice the length, but a shared argument could fill the peer's memory.
pub const MAX_CALL_GROWTH: usize = 4;

/// How long a body may be, in bytes: positions in it are kept in 32 bits.
pub const MAX_BODY_BYTES: usize = u32::MAX as usize;

/// How many times the body's length its data may have as JSON, [`MAX_JSON_BASE_BYTES`] aside. Without sharing it is
/// less than 8 times; names that many dicts share make more of it. A pickle past that is forwarded as it is.
pub const MAX_JSON_RATIO: u64 = 16;

/// See [`MAX_JSON_RATIO`].
pub const MAX_JSON_BASE_BYTES: u64 = 64 * 1024;

/// How many bytes of JSON are written on an event loop.
pub const BRIEF_JSON_BYTES: u64 = 96 * 1024;

/// How many floats with more digits than needed are read on an event loop. One takes up to 10 µs.
pub const BRIEF_LONG_FLOATS: usize = 64;

/// How long a `BUFFER_UUID` may be, in bytes.
pub const MAX_BUFFER_UUID_BYTES: usize = 4_096;

/// How long the path of a .blend file may be, in bytes of UTF-8: `PATH_MAX` of Linux, beyond which no path can be
/// opened.
pub const MAX_BLEND_PATH_BYTES: usize = 4_096;

/// How many characters of a user's name or of an unknown type are kept for logs and lists. What is forwarded
/// carries them whole.
pub const MAX_LABEL_CHARS: usize = 1_024;

/// How long the text of a `TEST` message's data may get in the log, in bytes.
pub const MAX_PREVIEW_BYTES: usize = 1_024;
