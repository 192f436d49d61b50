//! A received body as the readers and the writers see it: bytes in memory, or a file that is read part by part.
//!
//! A body in memory is never copied. Of a file, only what has to be looked at is read: the operands of opcodes, the
//! content of strings (part by part), and the values that a writer copies. The content of byte strings is skipped.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use super::bounds::READ_WINDOW_BYTES;
use crate::body_file::BodyFile;
use crate::payload::Piece;

/// The size of the first read of a range, in bytes. Each read that continues it is twice as large, up to the window.
/// Large first reads would waste work: of most ranges, only the start is needed.
const FIRST_READ: usize = 4_096;

/// A received body.
#[derive(Clone, Debug)]
pub enum Body {
    /// In memory.
    Memory(Bytes),
    /// In a file. Decoding it blocks.
    File {
        /// The file.
        file: Arc<BodyFile>,
        /// How many bytes are read at once; see [`READ_WINDOW_BYTES`]. A longer value is read at once only if it is
        /// needed whole.
        window: usize,
    },
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::Memory(bytes)
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Memory(bytes.into())
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self::Memory(text.into())
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Self::Memory(text.into())
    }
}

impl From<Arc<BodyFile>> for Body {
    fn from(file: Arc<BodyFile>) -> Self {
        Self::File { file, window: READ_WINDOW_BYTES }
    }
}

/// The bytes that are decoded: a body, or what is left of it behind a byte order mark.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Memory(Bytes),
    File {
        file: Rc<OpenFile>,
        /// The offset in the file of the first byte.
        start: usize,
    },
}

impl From<String> for Source {
    fn from(text: String) -> Self {
        Self::Memory(text.into())
    }
}

impl Source {
    /// Opens a body. If that fails, [`Source::failure`] has the reason.
    pub(super) fn of(body: Body) -> Source {
        match body {
            Body::Memory(bytes) => Source::Memory(bytes),
            Body::File { file, window } => Source::File { file: Rc::new(OpenFile::of(file, window)), start: 0 },
        }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        match self {
            Source::Memory(bytes) => bytes.len(),
            Source::File { file, start } => file.len() - start,
        }
    }

    /// The same without the first `count` bytes.
    pub(super) fn without_first(&self, count: usize) -> Source {
        match self {
            Source::Memory(bytes) => Source::Memory(bytes.slice(count..)),
            Source::File { file, start } => Source::File { file: file.clone(), start: start + count },
        }
    }

    pub(super) fn byte(&self, at: usize) -> u8 {
        match self {
            Source::Memory(bytes) => bytes[at],
            Source::File { .. } => self.read(at..at + 1)[0],
        }
    }

    /// A range as a whole.
    pub(super) fn read(&self, range: Range<usize>) -> Cow<'_, [u8]> {
        match self {
            Source::Memory(bytes) => Cow::Borrowed(&bytes[range]),
            Source::File { .. } => {
                let mut bytes = Vec::new();
                self.append_to(&mut bytes, range);
                Cow::Owned(bytes)
            }
        }
    }

    /// Copies a range behind what `out` has.
    pub(super) fn append_to(&self, out: &mut Vec<u8>, range: Range<usize>) {
        match self {
            Source::Memory(bytes) => out.extend_from_slice(&bytes[range]),
            Source::File { file, start } => file.append_to(out, start + range.start..start + range.end),
        }
    }

    /// A range as bytes of their own, which keep a body in memory alive.
    pub(super) fn slice(&self, range: Range<usize>) -> Bytes {
        match self {
            Source::Memory(bytes) => bytes.slice(range),
            Source::File { .. } => self.read(range).into_owned().into(),
        }
    }

    /// A range as a piece of a payload, without reading it.
    pub(super) fn piece(&self, range: Range<usize>) -> Piece {
        match self {
            Source::Memory(bytes) => Piece::Memory(bytes.slice(range)),
            Source::File { file, start } => {
                Piece::File { file: file.body.clone(), offset: (start + range.start) as u64, len: range.len() as u64 }
            }
        }
    }

    /// A range, to be read from its start on.
    pub(super) fn parts(&self, range: Range<usize>) -> Parts<'_> {
        match self {
            Source::Memory(bytes) => Parts::Memory { end: range.end, unread: &bytes[range] },
            Source::File { file, start } => Parts::File(FileParts {
                file,
                start: *start,
                loaded: Vec::new(),
                pos: 0,
                rest: start + range.start..start + range.end,
                ahead: FIRST_READ,
            }),
        }
    }

    /// Why the body could not be read. All reads from then on have given zeros, so nothing that was decoded counts.
    pub(super) fn failure(&self) -> Option<String> {
        match self {
            Source::Memory(_) => None,
            Source::File { file, .. } => file.file.borrow().as_ref().err().cloned(),
        }
    }
}

/// A body file that is open.
#[derive(Debug)]
pub(super) struct OpenFile {
    body: Arc<BodyFile>,
    window: usize,
    /// After a failure, its text.
    file: RefCell<Result<File, String>>,
    /// What was read last, for the short ranges near it.
    kept: RefCell<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    start: usize,
    bytes: Vec<u8>,
}

impl OpenFile {
    fn of(body: Arc<BodyFile>, window: usize) -> OpenFile {
        let opened = File::open(body.path()).and_then(|file| match file.metadata()?.len() {
            len if len < body.len() => Err(shorter()),
            _ => Ok(file),
        });
        let file = RefCell::new(opened.map_err(|error| failed(&body, &error)));
        OpenFile { body, window: window.max(1), file, kept: RefCell::default() }
    }

    fn len(&self) -> usize {
        self.body.len() as usize
    }

    fn append_to(&self, out: &mut Vec<u8>, range: Range<usize>) {
        if range.len() >= self.window {
            let filled = out.len();
            out.resize(filled + range.len(), 0);
            self.fill(&mut out[filled..], range.start);
            return;
        }
        if range.is_empty() {
            return;
        }
        let kept = &mut *self.kept.borrow_mut();
        let kept_end = kept.start + kept.bytes.len();
        if range.start < kept.start || range.end > kept_end {
            let goes_on = (kept.start..=kept_end + FIRST_READ).contains(&range.start);
            let length = if goes_on { kept.bytes.len() * 2 } else { 0 }.max(FIRST_READ).min(self.window);
            let length = length.min(self.len().saturating_sub(range.start)).max(range.len());
            kept.start = range.start;
            kept.bytes.resize(length, 0);
            self.fill(&mut kept.bytes, range.start);
        }
        out.extend_from_slice(&kept.bytes[range.start - kept.start..range.end - kept.start]);
    }

    /// Fills a buffer from the offset `at` of the file on.
    fn fill(&self, buffer: &mut [u8], at: usize) {
        let mut file = self.file.borrow_mut();
        let read = match &*file {
            Ok(file) => file.read_exact_at(buffer, at as u64),
            Err(_) => return buffer.fill(0),
        };
        if let Err(error) = read {
            buffer.fill(0);
            let error = if error.kind() == io::ErrorKind::UnexpectedEof { shorter() } else { error };
            *file = Err(failed(&self.body, &error));
        }
    }
}

/// The text of a failure. The file's name is for the log alone.
fn failed(body: &BodyFile, error: &io::Error) -> String {
    log::error!("cannot read the body in {}: {error}", body.path().display());
    error.to_string()
}

fn shorter() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "its file has become shorter")
}

/// A range of the source that is read from its start on. In memory it is one part.
#[derive(Clone, Debug)]
pub(super) enum Parts<'a> {
    Memory {
        unread: &'a [u8],
        /// The offset in the source at which the range ends.
        end: usize,
    },
    File(FileParts<'a>),
}

/// See [`Parts`].
#[derive(Clone, Debug)]
pub(super) struct FileParts<'a> {
    file: &'a OpenFile,
    /// The offset in the file at which the source starts.
    start: usize,
    /// The current part, and how much of it has been skipped.
    loaded: Vec<u8>,
    pos: usize,
    /// What comes after that part, as offsets in the file.
    rest: Range<usize>,
    /// How much to read next.
    ahead: usize,
}

impl FileParts<'_> {
    fn peek(&mut self, wanted: usize) -> &[u8] {
        if self.loaded.len() - self.pos < wanted && !self.rest.is_empty() {
            self.loaded.drain(..self.pos);
            self.pos = 0;
            let length = self.ahead.min(self.file.window).max(wanted - self.loaded.len()).min(self.rest.len());
            let end = self.rest.start + length;
            self.file.append_to(&mut self.loaded, self.rest.start..end);
            self.rest.start = end;
            self.ahead = length * 2;
        }
        &self.loaded[self.pos..]
    }

    fn skip(&mut self, count: usize) {
        let left = self.loaded.len() - self.pos;
        if count <= left {
            self.pos += count;
            return;
        }
        self.pos = self.loaded.len();
        self.rest.start += count - left;
        self.ahead = FIRST_READ;
    }

    fn at(&self) -> usize {
        self.rest.start - (self.loaded.len() - self.pos) - self.start
    }
}

impl Parts<'_> {
    /// The next bytes: at least `wanted`, unless the range ends before.
    #[inline]
    pub(super) fn peek(&mut self, wanted: usize) -> &[u8] {
        match self {
            Parts::Memory { unread, .. } => unread,
            Parts::File(parts) => parts.peek(wanted),
        }
    }

    /// Moves on by `count` bytes, which the range has.
    #[inline]
    pub(super) fn skip(&mut self, count: usize) {
        match self {
            Parts::Memory { unread, .. } => *unread = &unread[count..],
            Parts::File(parts) => parts.skip(count),
        }
    }

    /// The offset in the source of the next byte.
    #[inline]
    pub(super) fn at(&self) -> usize {
        match self {
            Parts::Memory { unread, end } => end - unread.len(),
            Parts::File(parts) => parts.at(),
        }
    }

    /// Moves to the next byte that is as `is` says, and returns it. `None` if there is none; then this is at its end.
    #[inline]
    pub(super) fn skip_to(&mut self, is: impl Fn(u8) -> bool) -> Option<u8> {
        loop {
            let part = self.peek(1);
            if let Some(before) = part.iter().position(|byte| is(*byte)) {
                let byte = part[before];
                self.skip(before);
                return Some(byte);
            }
            let length = part.len();
            if length == 0 {
                return None;
            }
            self.skip(length);
        }
    }

    /// Whether all parts are as `is` says.
    pub(super) fn all(mut self, is: impl Fn(&[u8]) -> bool) -> bool {
        loop {
            let part = self.peek(1);
            let (length, holds) = (part.len(), is(part));
            if length == 0 || !holds {
                return length == 0 || holds;
            }
            self.skip(length);
        }
    }

    /// Moves to the first byte that is not UTF-8, or to the end.
    pub(super) fn skip_utf8(&mut self) {
        loop {
            // As long as any character, so that one at the end of a part is whole.
            let part = self.peek(4);
            let valid = match str::from_utf8(part) {
                Ok(text) => text.len(),
                Err(error) => error.valid_up_to(),
            };
            if valid == 0 {
                return;
            }
            self.skip(valid);
        }
    }
}
