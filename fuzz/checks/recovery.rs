//! Segment files of any content are opened with exactly the records that are whole in them, or refused with words. What
//! was opened takes a further record, and is opened the same again.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;
use user_http_actors::payload::Payload;
use user_http_actors::store::log::LogStore;
use user_http_actors::store::{Change, Durable, OpenError, Put, Seq, Store};

#[path = "../../actors/tests/support/unsynced_disk.rs"]
mod unsynced_disk;

use unsynced_disk::UnsyncedDisk;

const SEGMENT_HEADER: usize = 28;
const RECORD_HEADER: usize = 32;

/// About how long a segment gets, in bytes.
const SEGMENT_BYTES: u64 = 4_096;

type MetaAndBody = (Vec<u8>, Vec<u8>);

type Content = BTreeMap<Seq, MetaAndBody>;

/// A directory in memory if there is one.
fn directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

fn open(directory: &Path) -> Result<(LogStore, Content), OpenError> {
    let (store, found) = LogStore::open_on(Arc::new(UnsyncedDisk), directory, SEGMENT_BYTES)?;
    let seqs: Vec<Seq> = found.iter().map(|record| record.seq).collect();
    assert!(seqs.is_sorted_by(|one, next| one < next), "{seqs:?}");
    let body = |body: &Payload| body.read_all().expect("readable").to_vec();
    Ok((store, found.iter().map(|record| (record.seq, (record.meta.to_vec(), body(&record.body)))).collect()))
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Gives a segment the header of its number, and the records that stand in it small lengths and right checksums, up to
/// one that is cut off. A record that says so in its checksum keeps a wrong one.
fn repair(segment: &mut [u8], of: u32) {
    const WRONG: [u8; 4] = [0xff; 4];
    if segment.len() < SEGMENT_HEADER {
        return;
    }
    let version = 2 + u16::from(segment[6] % 3);
    segment[..6].copy_from_slice(b"UHSLOG");
    segment[6..8].copy_from_slice(&version.to_le_bytes());
    segment[8..12].copy_from_slice(&of.to_le_bytes());
    segment[12..16].fill(0);
    let top = segment[23];
    segment[17..23].fill(top);
    if version == 4 {
        let crc = crc32c::crc32c_append(crc32c::crc32c(&segment[..12]), &segment[16..SEGMENT_HEADER]);
        segment[12..16].copy_from_slice(&crc.to_le_bytes());
    }
    let salt: [u8; 4] = segment[24..28].try_into().expect("4 bytes");
    let mut rest = &mut segment[SEGMENT_HEADER..];
    while rest.len() >= RECORD_HEADER && rest[..RECORD_HEADER] != [0; RECORD_HEADER] {
        rest[4] %= 4;
        rest[5] %= 2;
        rest[6..8].fill(0);
        // a small number, or the largest
        let top = if rest[8] == 0xff { 0xff } else { 0 };
        rest[9..16].fill(top);
        rest[17..20].fill(0);
        rest[25..32].fill(0);
        let (meta, body) = (usize::from(rest[16]), usize::from(rest[24]));
        if rest.len() < RECORD_HEADER + meta + body {
            return;
        }
        let (record, behind) = rest.split_at_mut(RECORD_HEADER + meta + body);
        let body_crc = crc32c::crc32c(&record[RECORD_HEADER + meta..]);
        if record[20..24] != WRONG {
            record[20..24].copy_from_slice(&body_crc.to_le_bytes());
        }
        if record[..4] != WRONG {
            let crc = crc32c::crc32c_append(crc32c::crc32c(&salt), &record[4..RECORD_HEADER + meta]);
            record[..4].copy_from_slice(&crc.to_le_bytes());
        }
        rest = behind;
    }
}

/// What a segment's records do, up to the first that is not whole.
struct Simple {
    /// What was put under each number, or `None` where it was removed.
    changes: Vec<(Seq, Option<MetaAndBody>)>,
    /// Nothing but zeros follows.
    is_whole: bool,
    /// It has a record whose body is in a file.
    is_composed: bool,
}

/// Reads a segment that was [repaired](repair); `None` if its header is cut off.
fn simple(segment: &[u8]) -> Option<Simple> {
    let salt = segment.get(24..SEGMENT_HEADER)?;
    let mut rest = &segment[SEGMENT_HEADER..];
    let mut read = Simple { changes: Vec::new(), is_whole: false, is_composed: false };
    while rest.len() >= RECORD_HEADER {
        let (meta, body) = (number(rest, 16, 4) as usize, number(rest, 24, 8) as usize);
        let Some(record) = rest.get(..RECORD_HEADER.saturating_add(meta).saturating_add(body)) else { break };
        let (head, body) = record.split_at(RECORD_HEADER + meta);
        let crc = crc32c::crc32c_append(crc32c::crc32c(salt), &head[4..]);
        if u64::from(crc) != number(head, 0, 4) || u64::from(crc32c::crc32c(body)) != number(head, 20, 4) {
            break;
        }
        let content = (head[RECORD_HEADER..].to_vec(), body.to_vec());
        match head[4] {
            1 => read.changes.push((number(head, 8, 8), Some(content))),
            2 => read.changes.push((number(head, 8, 8), None)),
            3 => read.is_composed = true,
            _ => break,
        }
        rest = &rest[record.len()..];
    }
    read.is_whole = rest.iter().all(|byte| *byte == 0);
    Some(read)
}

/// The content of a log with these segments. `None` if that is not simple to say.
fn expected(segments: &[Vec<u8>]) -> Option<Content> {
    let mut content = Content::new();
    for (at, segment) in segments.iter().enumerate() {
        if segment.is_empty() && at + 1 < segments.len() {
            continue;
        }
        let read = simple(segment)?;
        if read.is_composed {
            return None;
        }
        assert!(read.is_whole || at + 1 == segments.len(), "what is damaged before the newest segment is refused");
        for (seq, change) in read.changes {
            match change {
                Some(record) => drop(content.insert(seq, record)),
                None => drop(content.remove(&seq)),
            }
        }
    }
    Some(content)
}

/// The first byte says how many segments there are, whether they are repaired, and whether there is a mark of a stop in
/// order. Then each has two bytes with its length, and its bytes.
pub fn check(data: &[u8]) {
    let Some((&kind, mut rest)) = data.split_first() else { return };
    let is_repaired = kind & 4 != 0;
    let mut take = || {
        let (len, bytes) = rest.split_at_checked(2).unwrap_or((&[0, 0], rest));
        let (part, behind) = bytes.split_at(bytes.len().min(number(len, 0, 2) as usize));
        rest = behind;
        part.to_vec()
    };
    let mut segments: Vec<Vec<u8>> = (0..1 + kind % 3).map(|_| take()).collect();
    let folder = directory();
    for (segment, number) in segments.iter_mut().zip(1..) {
        if is_repaired {
            repair(segment, number);
        }
        fs::write(folder.path().join(format!("{number:016}.log")), segment).expect("a file");
    }
    if kind & 8 != 0 {
        let mut mark = take();
        if is_repaired && mark.len() >= 12 {
            let end = mark.len() - 4;
            mark[..8].copy_from_slice(b"UHSSTOP1");
            let crc = crc32c::crc32c(&mark[..end]);
            mark[end..].copy_from_slice(&crc.to_le_bytes());
        }
        fs::write(folder.path().join("STOPPED"), mark).expect("a file");
    }
    let (mut store, mut content) = match open(folder.path()) {
        Ok(opened) => opened,
        Err(error) => {
            assert!(error.to_string().contains(&folder.path().display().to_string()), "{error}");
            assert!(open(folder.path()).is_err(), "refused, and then accepted");
            return;
        }
    };
    if is_repaired && let Some(expected) = expected(&segments) {
        assert_eq!(content, expected);
    }
    let seq = store.next_seq();
    assert!(content.last_key_value().is_none_or(|(last, _)| *last < seq), "{seq} was taken before");
    let put = Put { seq, meta: b"meta".as_slice().into(), body: Payload::from_parts(vec![b"body".as_slice().into()]) };
    store.commit(&[Change::Put(put)], Durable::Now).expect("space");
    content.insert(seq, (b"meta".to_vec(), b"body".to_vec()));
    drop(store);
    let (_store, again) = open(folder.path()).expect("opened before");
    assert_eq!(again, content);
}
