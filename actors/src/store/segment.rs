//! The format of the log's files: how a segment and its records are laid out, and how they are read.
//!
//! All numbers are little-endian. A segment starts with
//!
//! | bytes | what |
//! | --- | --- |
//! | 6 | `UHSLOG` |
//! | 2 | format version |
//! | 4 | number of the segment |
//! | 4 | CRC-32C of the rest of this header |
//! | 8 | sequence number of the next record when the segment was begun |
//! | 4 | random salt |
//!
//! Before version 4 there is no checksum, and the number has 8 bytes.
//!
//! and goes on with records:
//!
//! | bytes | what |
//! | --- | --- |
//! | 4 | CRC-32C of the salt, the rest of this header and the meta |
//! | 4 | kind: 1 put, 2 removed, 3 composed (since version 3); plus 256 at the start of a commit, see below |
//! | 8 | sequence number of the record |
//! | 4 | length of the meta |
//! | 4 | CRC-32C of the body |
//! | 8 | length of the body |
//! | … | meta, then body |
//!
//! A composed record is a put whose body is in a file of its own: in place of the body it has a
//! [composition], which refers to the file.
//!
//! In the newest segment, zeros may follow them up to the end of the file.
//!
//! A record is marked as the first of its commit only if everything before it was synced. So the mark proves that no
//! crash has torn what stands before it. The salt prevents a sender from forging such a record inside a body.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use bytes::{Bytes, BytesMut};

use crate::payload::Payload;
use crate::store::{MAX_META, MAX_SEQ, Seq};

pub mod composition;
mod search;

use composition::{Composition, MAX_COMPOSITION};

/// The version that this program writes.
pub const VERSION: u16 = 4;

/// The oldest version that this program reads.
const OLDEST_VERSION: u16 = 2;

/// The version since which there are composed records.
const COMPOSED_SINCE: u16 = 3;

/// The version since which a segment's header has a checksum.
const HEADER_CHECKED_SINCE: u16 = 4;

/// The length of a segment's header in bytes.
pub const SEGMENT_HEADER: u64 = 28;

/// The length of a record's header in bytes.
pub const RECORD_HEADER: u64 = 32;

const MAGIC: &[u8; 6] = b"UHSLOG";

/// What a record does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Put,
    Removed,
    Composed,
}

/// Added to the kind of a record that is the first of its commit.
const BEGINS_COMMIT: u32 = 256;

/// What marks a record as one of its segment, and of its commit.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    pub salt: u32,
    pub begins_commit: bool,
}

/// A record's header.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    pub kind: Kind,
    pub seq: Seq,
    pub meta_len: u32,
    pub body_crc: u32,
    pub body_len: u64,
}

impl Record {
    /// The header of a record.
    ///
    /// # Errors
    /// What reading the body reports.
    pub fn of(kind: Kind, seq: Seq, meta: &[u8], body: &Payload) -> io::Result<Self> {
        let mut body_crc = 0;
        body.for_each_part(|part| {
            body_crc = crc32c::crc32c_append(body_crc, part);
            Ok(())
        })?;
        Ok(Self { kind, seq, meta_len: meta.len() as u32, body_crc, body_len: body.len() })
    }

    /// The length of the whole record in the file.
    pub fn len(&self) -> u64 {
        RECORD_HEADER + u64::from(self.meta_len) + self.body_len
    }

    /// The offset of the body of a record that starts at `offset`.
    pub fn body_offset(&self, offset: u64) -> u64 {
        offset + RECORD_HEADER + u64::from(self.meta_len)
    }

    /// The length of header and meta together, according to the header `head`.
    pub fn head_len(head: &[u8]) -> u64 {
        RECORD_HEADER + u64::from(u32_at(head, 16))
    }

    /// The record at the start of `bytes`, if its header and its meta are sound. Its body is not checked.
    pub fn parse(bytes: &[u8], salt: u32) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(RECORD_HEADER as usize)?;
        let meta = rest.get(..u32_at(head, 16) as usize)?;
        if header_crc(salt, head, meta) != u32_at(head, 0) { None } else { Self::of_header(head, VERSION) }
    }

    /// The record of a header; `None` if a segment of this version has none of its kind.
    fn of_header(head: &[u8], version: u16) -> Option<Self> {
        let kind = match u32_at(head, 4) & !BEGINS_COMMIT {
            1 => Kind::Put,
            2 => Kind::Removed,
            3 if version >= COMPOSED_SINCE => Kind::Composed,
            _ => return None,
        };
        let (seq, meta_len) = (u64_at(head, 8), u32_at(head, 16));
        Some(Self { kind, seq, meta_len, body_crc: u32_at(head, 20), body_len: u64_at(head, 24) })
    }

    /// Appends header and meta to `out`; the body follows them.
    pub fn write(&self, meta: &[u8], mark: Mark, out: &mut Vec<u8>) {
        let mut head = [0; RECORD_HEADER as usize];
        let kind: u32 = match self.kind {
            Kind::Put => 1,
            Kind::Removed => 2,
            Kind::Composed => 3,
        };
        let kind = if mark.begins_commit { kind + BEGINS_COMMIT } else { kind };
        head[4..8].copy_from_slice(&kind.to_le_bytes());
        head[8..16].copy_from_slice(&self.seq.to_le_bytes());
        head[16..20].copy_from_slice(&self.meta_len.to_le_bytes());
        head[20..24].copy_from_slice(&self.body_crc.to_le_bytes());
        head[24..32].copy_from_slice(&self.body_len.to_le_bytes());
        let crc = header_crc(mark.salt, &head, meta);
        head[..4].copy_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&head);
        out.extend_from_slice(meta);
    }
}

fn header_crc(salt: u32, head: &[u8], meta: &[u8]) -> u32 {
    crc32c::crc32c_append(head_crc(salt, head), meta)
}

/// The checksum of a record up to its meta.
fn head_crc(salt: u32, head: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), &head[4..])
}

/// The header of a segment.
pub fn segment_header(number: u32, next_seq: Seq, salt: u32) -> [u8; SEGMENT_HEADER as usize] {
    let mut head = [0; SEGMENT_HEADER as usize];
    head[..6].copy_from_slice(MAGIC);
    head[6..8].copy_from_slice(&VERSION.to_le_bytes());
    head[8..12].copy_from_slice(&number.to_le_bytes());
    head[16..24].copy_from_slice(&next_seq.to_le_bytes());
    head[24..28].copy_from_slice(&salt.to_le_bytes());
    let crc = segment_header_crc(&head);
    head[12..16].copy_from_slice(&crc.to_le_bytes());
    head
}

fn segment_header_crc(head: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&head[..12]), &head[16..])
}

/// What stands where a record should.
#[derive(Debug)]
pub enum Entry {
    /// A sound record, with its meta, and what a composed one has in place of the body.
    Record { offset: u64, begins_commit: bool, record: Record, meta: Bytes, composition: Option<Composition> },
    /// The end of the file, right after the last record.
    End,
    /// Zeros up to the end of the file, right after the last record.
    Zeros { offset: u64 },
    /// Something else: torn by a crash, if that `may_be_torn`, or damaged.
    Bad { offset: u64, what: &'static str, may_be_torn: bool },
}

/// What stands where a segment's header should.
#[derive(Debug)]
pub enum FoundHeader {
    Sound { next_seq: Seq, version: u16 },
    OtherVersion(u16),
    Bad(&'static str),
}

/// Memory for metas that are read one after another: few large blocks, each of which goes back to the system when all
/// of its metas are dropped. A million small blocks would fragment the memory of the process.
#[derive(Default)]
pub struct MetaMemory(BytesMut);

/// The size of such a block in bytes: the allocator gives each a mapping of its own.
const META_BLOCK: usize = 4 << 20;

impl MetaMemory {
    /// Memory for one meta of at most [`MAX_META`] bytes.
    fn take(&mut self, len: usize) -> BytesMut {
        if self.0.len() < len {
            self.0 = BytesMut::zeroed(META_BLOCK);
        }
        self.0.split_to(len)
    }
}

/// Reads a segment from its start to its end.
pub struct Reader<'a> {
    file: BufReader<&'a File>,
    metas: &'a mut MetaMemory,
    offset: u64,
    len: u64,
    salt: u32,
    version: u16,
}

impl<'a> Reader<'a> {
    pub fn new(file: &'a File, metas: &'a mut MetaMemory) -> io::Result<Self> {
        let len = file.metadata()?.len();
        let mut file = BufReader::with_capacity(256 * 1024, file);
        file.seek(SeekFrom::Start(0))?;
        Ok(Self { file, metas, offset: 0, len, salt: 0, version: VERSION })
    }

    /// Reads the segment's header; called first, once.
    pub fn header(&mut self, number: u32) -> io::Result<FoundHeader> {
        let mut head = [0; SEGMENT_HEADER as usize];
        if self.len < SEGMENT_HEADER {
            return Ok(FoundHeader::Bad("the segment's header is cut off"));
        }
        self.file.read_exact(&mut head)?;
        self.offset = SEGMENT_HEADER;
        if &head[..6] != MAGIC {
            return Ok(FoundHeader::Bad("this is no segment of a message store"));
        }
        let version = u16::from_le_bytes([head[6], head[7]]);
        if !(OLDEST_VERSION..=VERSION).contains(&version) {
            return Ok(FoundHeader::OtherVersion(version));
        }
        let found = if version < HEADER_CHECKED_SINCE {
            u64_at(&head, 8)
        } else if u32_at(&head, 12) == segment_header_crc(&head) {
            u32_at(&head, 8).into()
        } else {
            return Ok(FoundHeader::Bad("the segment's header does not match its checksum"));
        };
        if found != u64::from(number) {
            return Ok(FoundHeader::Bad("the segment has another number than its file name"));
        }
        let next_seq = u64_at(&head, 16);
        if next_seq > MAX_SEQ {
            return Ok(FoundHeader::Bad("the number of the segment's next record is one that no store reaches"));
        }
        (self.salt, self.version) = (u32_at(&head, 24), version);
        Ok(FoundHeader::Sound { next_seq, version })
    }

    /// The segment's salt, once its header has been read.
    pub fn salt(&self) -> u32 {
        self.salt
    }

    /// Whether a sound header of a record that begins a commit stands anywhere behind `offset`.
    pub fn has_commit_after(&self, offset: u64) -> io::Result<bool> {
        search::has_commit_after(self.file.get_ref(), self.salt, offset)
    }

    /// Whether sound records alone stand between `from`, where one starts, and `end`; called after the header was read.
    pub fn is_sound(&mut self, from: u64, end: u64) -> io::Result<bool> {
        (self.offset, self.len) = (self.file.seek(SeekFrom::Start(from))?, end);
        loop {
            match self.next()? {
                Entry::Record { .. } => {}
                Entry::End => return Ok(true),
                Entry::Zeros { .. } | Entry::Bad { .. } => return Ok(false),
            }
        }
    }

    /// Reads the next record, checksums verified.
    pub fn next(&mut self) -> io::Result<Entry> {
        let offset = self.offset;
        let left = self.len - offset;
        if left == 0 {
            return Ok(Entry::End);
        }
        let bad = |what| Ok(Entry::Bad { offset, what, may_be_torn: true });
        // what has its checksum was written whole
        let damaged = |what| Ok(Entry::Bad { offset, what, may_be_torn: false });
        let mut head = [0; RECORD_HEADER as usize];
        let head_len = left.min(RECORD_HEADER);
        self.file.read_exact(&mut head[..head_len as usize])?;
        if head == [0; RECORD_HEADER as usize] && self.are_zeros(left - head_len)? {
            return Ok(Entry::Zeros { offset });
        }
        if head_len < RECORD_HEADER {
            return bad("a record's header is cut off");
        }
        let meta_len = u32_at(&head, 16);
        if left - RECORD_HEADER < u64::from(meta_len) {
            return bad("a record's header is garbled");
        }
        let Some(meta) = self.meta(&head, offset + RECORD_HEADER, meta_len as usize)? else {
            if self.salt_has_changed(&head, meta_len)? {
                return damaged("the segment's salt has changed");
            }
            return bad("a record's header does not match its checksum");
        };
        let Some(record) = Record::of_header(&head, self.version) else {
            return damaged("a record is of an unknown kind");
        };
        if record.seq > MAX_SEQ {
            return damaged("a record has a number that no store reaches");
        }
        if left < record.len() {
            return bad("a record's body is cut off");
        }
        let composition = match record.kind {
            Kind::Composed if record.body_len > MAX_COMPOSITION => {
                return damaged("a record's composition is too long");
            }
            Kind::Composed => {
                let mut bytes = vec![0; record.body_len as usize];
                self.file.read_exact(&mut bytes)?;
                Some(Bytes::from(bytes))
            }
            Kind::Put | Kind::Removed => None,
        };
        let crc = match &composition {
            Some(bytes) => crc32c::crc32c(bytes),
            None => self.body_crc(record.body_len)?,
        };
        if crc != record.body_crc {
            return bad("a record's body does not match its checksum");
        }
        let composition = match composition.map(Composition::parse) {
            Some(None) => return damaged("a record's composition cannot be understood"),
            Some(sound) => sound,
            None => None,
        };
        self.offset = offset + record.len();
        let begins_commit = u32_at(&head, 4) & BEGINS_COMMIT != 0;
        Ok(Entry::Record { offset, begins_commit, record, meta, composition })
    }

    /// The meta of `len` bytes behind a record's header; `None` if the header's checksum does not match.
    fn meta(&mut self, head: &[u8], offset: u64, len: usize) -> io::Result<Option<Bytes>> {
        let expected = u32_at(head, 0);
        if len <= MAX_META {
            let mut meta = self.metas.take(len);
            self.file.read_exact(&mut meta)?;
            return Ok((header_crc(self.salt, head, &meta) == expected).then(|| meta.freeze()));
        }
        // Earlier versions wrote and acknowledged longer ones. Memory is allocated only after the checksum has matched.
        let mut crc = head_crc(self.salt, head);
        self.read_parts(len as u64, |part| crc = crc32c::crc32c_append(crc, part))?;
        if crc != expected {
            return Ok(None);
        }
        let mut meta = vec![0; len];
        self.file.get_ref().read_exact_at(&mut meta, offset)?;
        Ok(Some(meta.into()))
    }

    /// Whether the first record would be sound with one bit of the salt flipped. Only a header with a checksum tells
    /// that it has changed; one without looks as if a crash had torn the first record, and with it the only commit.
    fn salt_has_changed(&self, head: &[u8], meta_len: u32) -> io::Result<bool> {
        if self.version >= HEADER_CHECKED_SINCE || self.offset != SEGMENT_HEADER || meta_len as usize > MAX_META {
            return Ok(false);
        }
        let mut meta = vec![0; meta_len as usize];
        self.file.get_ref().read_exact_at(&mut meta, SEGMENT_HEADER + RECORD_HEADER)?;
        let salts = (0..u32::BITS).map(|bit| self.salt ^ 1 << bit);
        Ok(salts.into_iter().any(|salt| header_crc(salt, head, &meta) == u32_at(head, 0)))
    }

    fn body_crc(&mut self, len: u64) -> io::Result<u32> {
        let mut crc = 0;
        self.read_parts(len, |part| crc = crc32c::crc32c_append(crc, part))?;
        Ok(crc)
    }

    fn are_zeros(&mut self, len: u64) -> io::Result<bool> {
        let mut zeros = true;
        self.read_parts(len, |part| zeros = zeros && part.iter().all(|&byte| byte == 0))?;
        Ok(zeros)
    }

    fn read_parts(&mut self, len: u64, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        let mut left = len;
        while left > 0 {
            let buffered = self.file.fill_buf()?;
            let part = &buffered[..buffered.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
            if part.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            take(part);
            let read = part.len();
            self.file.consume(read);
            left -= read as u64;
        }
        Ok(())
    }
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}
