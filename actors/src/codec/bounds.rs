//! The bounds of what the codec accepts. A message that exceeds one is refused, and the error names the bound.

/// How deep containers may be nested; the outermost dict of the message counts as 1. CPython's `repr`, `json` and
/// `pickle.dumps` recurse, and fail at a depth of 1,000 frames.
pub const MAX_DEPTH: usize = 256;

/// How many values a message may have, and how many positions (items of lists, keys and values of dicts) its containers
/// may have together. While the message is decoded, a value costs 16 bytes and a position 8.
pub const MAX_VALUES: usize = 4_194_304;

/// How many digits a decimal integer may have. Converting them to binary takes time that grows with their square: some
/// milliseconds at this bound.
pub const MAX_INT_DIGITS: usize = 65_536;

/// How many digits all decimal integers longer than [`MAX_PEER_INT_DIGITS`] may have together, because converting each
/// of them takes milliseconds.
pub const MAX_LONG_INT_DIGITS: usize = 4_194_304;

/// How many decimal digits CPython's `int` accepts by default (`sys.int_info.default_max_str_digits`). The peers can
/// receive a longer integer only in binary, in a pickle.
pub const MAX_PEER_INT_DIGITS: usize = 4_300;

/// How far a memo number of a pickle may exceed the number of values made before it. `pickle.dumps` uses consecutive
/// numbers; CPython allocates a table as long as the largest number.
pub const MAX_MEMO_GAP: usize = 65_536;

/// How long the dict keys and set items of a pickle may keep CPython's `pickle.loads` busy with hashing, probing and
/// comparing, in nanoseconds. [`KEY_WORK_NS_PER_BYTE`] comes on top. An ordinary dict key takes 50 to 500 ns; a
/// megabyte of keys that are chosen by their hashes could take hours. The goal is that a pickle of *b* MiB loads within
/// 0.5 s + *b* s. More than half of that time is left for the other opcodes and for slower processors.
pub const KEY_WORK_BASE_NS: u64 = 64_000_000;

/// The time for each byte of the pickle, in nanoseconds; see [`KEY_WORK_BASE_NS`].
pub const KEY_WORK_NS_PER_BYTE: u64 = 300;

/// How many bytes of a pickle count at most towards [`KEY_WORK_NS_PER_BYTE`] for each value and each position in a
/// container. Otherwise a large byte string would buy time for a hash flood.
pub const KEY_WORK_BYTES_PER_VALUE: usize = 8;

/// How much of that time may be simulated on an event loop, in nanoseconds. The simulation takes about a quarter of the
/// time that it simulates.
pub const KEY_WORK_BRIEF_NS: u64 = 1_000_000;

/// The time that CPython needs to make a set or a frozenset, in nanoseconds. An empty one takes 200 bytes, and if there
/// are a million of them, the garbage collector visits each several times.
pub const SET_WORK_NS: u64 = 1_000;

/// How many values one key may contain. An int counts once more for every [`INT_BYTES_PER_HASHED_VALUE`] of its bytes.
pub const MAX_KEY_VALUES: usize = u16::MAX as usize - 1;

/// How many bytes of an int CPython hashes in the time that it takes to hash another value. Unlike the hash of a str or
/// a bytes, the hash of an int is not cached.
pub const INT_BYTES_PER_HASHED_VALUE: usize = 20;

/// How many bytes the calls of `_codecs.encode` and `builtins.bytearray` in a pickle may create, as a multiple of the
/// pickle's length. `pickle.dumps` stays below 2, but calls that share an argument could fill the peer's memory.
pub const MAX_CALL_GROWTH: usize = 4;

/// How long a body may be, in bytes. Offsets in it are stored in 32 bits.
pub const MAX_BODY_BYTES: usize = u32::MAX as usize;

/// How many bytes of a body in a file are read at once, unless a longer value is needed whole: a key that has to be
/// hashed, a `USER_ID`, a path of a .blend file, a float with that many digits, a string that a writer has to decode.
pub const READ_WINDOW_BYTES: usize = 64 * 1024;

/// How long the data of a pickle may become as JSON, as a multiple of the body's length, in addition to
/// [`MAX_JSON_BASE_BYTES`]. Without sharing the factor is less than 8; keys that many dicts share make it larger. A
/// message that would become longer is forwarded as a pickle.
pub const MAX_JSON_RATIO: u64 = 16;

/// See [`MAX_JSON_RATIO`].
pub const MAX_JSON_BASE_BYTES: u64 = 64 * 1024;

/// How many bytes of JSON may be written on an event loop.
pub const BRIEF_JSON_BYTES: u64 = 96 * 1024;

/// How many floats with more digits than `repr` writes may be parsed on an event loop. Each takes up to 10 µs.
pub const BRIEF_LONG_FLOATS: usize = 64;

/// How long a `BUFFER_UUID` may be, in bytes.
pub const MAX_BUFFER_UUID_BYTES: usize = 4_096;

/// How long the path of a .blend file may be, in bytes of UTF-8: Linux's `PATH_MAX`. A longer path cannot be opened.
pub const MAX_BLEND_PATH_BYTES: usize = 4_096;

/// How many characters of a `USER_ID` or of an unknown `TYPE` are kept for logs and lists. Forwarded messages have them
/// in full.
pub const MAX_LABEL_CHARS: usize = 1_024;

/// How long the data of a `TEST` message may be in the log, in bytes.
pub const MAX_PREVIEW_BYTES: usize = 1_024;
