//! Bits that change in the files of a store while nobody uses it: the next start sees them, or they change nothing.
//!
//! `TEST_DAMAGES` sets how often a larger store is damaged, `TEST_SEED` how.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use user_http_actors::store::log::LogStore;
use user_http_actors::store::{Change, Durable, OpenError, Put, Seq, Store};

use crate::store::{body, pattern, put, records, segments};
use crate::support::in_file::in_file;
use crate::support::unsynced_disk::UnsyncedDisk;

const SEGMENT_HEADER: usize = 28;

/// The meta and the body of each record.
type Content = BTreeMap<Seq, (Bytes, Vec<u8>)>;

/// Makes the changes of one commit.
type Commit = Box<dyn FnOnce(&LogStore) -> Vec<Change>>;

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    InOrder,
    Killed,
}

/// A store on the disk, as its process has left it.
struct Left {
    directory: tempfile::TempDir,
    files: BTreeMap<PathBuf, Vec<u8>>,
    segment_bytes: u64,
    /// The content before the first change, and after each.
    states: Vec<Content>,
    /// For each commit: its segment, where it begins there, and how many changes were made before.
    commits: Vec<(PathBuf, usize, usize)>,
}

fn open(directory: &Path, segment_bytes: u64) -> Result<(LogStore, Content), OpenError> {
    let (store, found) = LogStore::open_on(Arc::new(UnsyncedDisk), directory, segment_bytes)?;
    let content = found.iter().map(|record| (record.seq, (record.meta.clone(), body(&record.body)))).collect();
    Ok((store, content))
}

/// A directory in memory if there is one: the files are written some ten thousand times.
fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

fn files_in(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let files = files.into_iter().map(|path| (path.clone(), fs::read(path).expect("a file")));
    files.chain(folders.iter().flat_map(|folder| files_in(folder))).collect()
}

/// Where the records of each segment end.
fn ends(directory: &Path) -> BTreeMap<PathBuf, usize> {
    segments(directory).into_iter().map(|path| (path.clone(), records(&path).len())).collect()
}

impl Left {
    /// Makes `commits` in segments of about `segment_bytes` bytes. No body ends with a zero.
    fn after(segment_bytes: u64, end: End, commits: impl IntoIterator<Item = Commit>) -> Self {
        let directory = in_memory();
        let (mut store, content) = open(directory.path(), segment_bytes).expect("a new store opens");
        let (mut states, mut made) = (vec![content.clone()], Vec::new());
        let mut content = content;
        for commit in commits {
            let before = ends(directory.path());
            let changes = commit(&store);
            for change in &changes {
                match change {
                    Change::Put(Put { seq, meta, body: put }) => {
                        drop(content.insert(*seq, (meta.clone(), body(put))));
                    }
                    Change::Remove(seq) => drop(content.remove(seq)),
                }
                states.push(content.clone());
            }
            store.commit(&changes, Durable::Now).expect("space");
            let newest = segments(directory.path()).pop().expect("a segment");
            let begins_at = before.get(&newest).copied().unwrap_or(SEGMENT_HEADER);
            made.push((newest, begins_at, states.len() - 1 - changes.len()));
        }
        if end == End::InOrder {
            store.stop().expect("a sound disk");
        }
        drop(store);
        // a start that cannot write the reserve is faster
        let reserve = directory.path().join("RESERVE");
        fs::remove_file(&reserve).and_then(|()| fs::create_dir(&reserve)).expect("writable");
        let files = files_in(directory.path());
        Self { directory, files, segment_bytes, states, commits: made }
    }

    /// Puts back what the process has left.
    fn restore(&self) {
        for path in files_in(self.directory.path()).into_keys().filter(|path| !self.files.contains_key(path)) {
            fs::remove_file(path).expect("deletable");
        }
        for (path, content) in &self.files {
            fs::write(path, content).expect("writable");
        }
    }

    fn open(&self) -> Result<Content, OpenError> {
        open(self.directory.path(), self.segment_bytes).map(|(_, content)| content)
    }

    /// Gives the segments the form in which version 3 wrote them.
    fn into_version_3(mut self) -> Self {
        for (path, content) in &mut self.files {
            if path.extension().is_some_and(|end| end == "log") {
                content[6..8].copy_from_slice(&3_u16.to_le_bytes());
                content[12..16].fill(0);
            }
        }
        self.restore();
        self
    }

    fn content(&self) -> &Content {
        self.states.last().expect("that before the first change")
    }

    /// The newest segment, and where the last commit begins in it.
    fn last_commit(&self) -> (&Path, usize) {
        let (path, begins_at, _) = self.commits.last().expect("a commit");
        (path, *begins_at)
    }

    /// What a crash may have left that has torn everything from the first damaged byte on. Nothing, unless the last
    /// commit is damaged: no crash tears what was synced before another commit.
    fn torn_at(&self, damaged: &[(&Path, usize)]) -> &[Content] {
        let (newest, last) = self.last_commit();
        let in_newest = damaged.iter().filter(|(path, _)| *path == newest).map(|(_, at)| *at);
        let Some(first) = in_newest.clone().min().filter(|_| in_newest.max().is_some_and(|at| at >= last)) else {
            return &[];
        };
        let torn = self.commits.iter().rfind(|(path, begins_at, _)| path == newest && *begins_at <= first);
        torn.map_or(&[], |(.., changes)| &self.states[*changes..self.states.len() - 1])
    }
}

/// What has become of the damage.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    refused: u32,
    harmless: u32,
    /// The last commit is cut off, as if a crash had torn it.
    cut_off: u32,
}

impl Tally {
    /// Opens the store, which is damaged at these bytes of its files.
    fn add(&mut self, left: &Left, damaged: &[(&Path, usize)], may_cut_off: bool) {
        match left.open() {
            Err(error) => {
                let error = error.to_string();
                let is_named = damaged.iter().any(|(path, _)| error.contains(&path.display().to_string()));
                assert!(is_named, "{:?} to {:?}: {error}", damaged.first(), damaged.last());
                self.refused += 1;
            }
            Ok(found) if found == *left.content() => self.harmless += 1,
            Ok(found) => {
                let is_torn = may_cut_off && left.torn_at(damaged).contains(&found);
                assert!(is_torn, "{:?} to {:?}: {:?} were found", damaged.first(), damaged.last(), found.keys());
                self.cut_off += 1;
            }
        }
    }

    /// Flips every bit of every file.
    fn of_every_bit(left: &Left, may_cut_off: bool) -> Self {
        let mut tally = Self::default();
        for (path, content) in &left.files {
            let mut damaged = content.clone();
            for bit in 0..8 * content.len() {
                damaged[bit / 8] ^= 1 << (bit % 8);
                fs::write(path, &damaged).expect("writable");
                let refused = tally.refused;
                tally.add(left, &[(path, bit / 8)], may_cut_off);
                damaged[bit / 8] ^= 1 << (bit % 8);
                if tally.refused > refused {
                    fs::write(path, content).expect("writable");
                } else {
                    left.restore();
                }
            }
        }
        assert_eq!(
            left.open().expect("it is sound").len(),
            left.content().len(),
            "a refused start has changed something"
        );
        left.restore();
        tally
    }
}

fn in_a_file(seq: Seq) -> Commit {
    Box::new(move |store| {
        let body = in_file(store.bodies(), &pattern(seq, 20)).expect("space");
        vec![Change::Put(Put { seq, meta: Bytes::from_static(b"m"), body })]
    })
}

fn of(changes: Vec<Change>) -> Commit {
    Box::new(|_| changes)
}

/// Commits of small records, among them one with a body file, in three segments.
fn small_commits() -> Vec<Commit> {
    vec![
        of(vec![put(1, "first", b"gone"), put(2, "empty", b"")]),
        of(vec![put(3, "", &pattern(3, 30))]),
        of(vec![put(4, "m", b"fourth"), Change::Remove(1)]),
        in_a_file(5),
        of(vec![put(6, "m", b"sixth")]),
        of(vec![put(7, "m", b"seventh"), Change::Remove(3), put(8, "m", b"eighth")]),
    ]
}

#[test]
fn every_bit_that_flips_after_a_stop_in_order_is_seen_or_changes_nothing() {
    let left = Left::after(170, End::InOrder, small_commits());
    assert_eq!(segments(left.directory.path()).len(), 3, "{:?}", ends(left.directory.path()));
    let tally = Tally::of_every_bit(&left, false);
    println!("{tally:?}");
    let newest = left.last_commit().0;
    let zeros = left.files[newest].len() - ends(left.directory.path())[newest];
    assert_eq!(tally.harmless, 8 * zeros as u32, "{tally:?}");
}

#[test]
fn every_bit_that_flips_after_a_kill_is_seen_or_changes_nothing_or_is_in_the_last_commit() {
    let left = Left::after(170, End::Killed, small_commits());
    let tally = Tally::of_every_bit(&left, true);
    println!("{tally:?}");
    let (newest, begins_at) = left.last_commit();
    let last = 8 * (left.files[newest].len() - begins_at) as u32;
    assert!(tally.refused > tally.cut_off && (1..=last).contains(&tally.cut_off), "{tally:?} of {last}");
}

#[test]
fn every_bit_of_a_header_that_flips_in_a_segment_with_one_commit_is_seen_or_changes_nothing() {
    for last in [of(vec![put(1, "m", b"only")]), in_a_file(1)] {
        let left = Left::after(1 << 20, End::Killed, [last]);
        for (left, is_old) in
            [(left, false), (Left::after(1 << 20, End::Killed, [in_a_file(1)]).into_version_3(), true)]
        {
            let (path, content) =
                left.files.iter().find(|(path, _)| path.as_path() == left.last_commit().0).expect("a segment");
            let mut tally = Tally::default();
            for bit in 0..8 * SEGMENT_HEADER {
                let mut damaged = content.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                fs::write(path, &damaged).expect("writable");
                tally.add(&left, &[(path, bit / 8)], false);
                left.restore();
            }
            // the older header has no checksum: its next number may change, which changes nothing, unless it is then
            // one that no store reaches
            let harmless = if is_old { 63 } else { 0 };
            assert_eq!((tally.harmless, tally.cut_off), (harmless, 0), "{tally:?}");
        }
    }
}

/// A store of several segments and some body files.
fn larger(end: End) -> Left {
    let commits = (1..=60).map(|seq: Seq| match seq % 10 {
        3 => in_a_file(seq),
        7 => of(vec![put(seq, "m", &pattern(seq, 3_000)), Change::Remove(seq - 5)]),
        _ => of(vec![put(seq, "meta", &pattern(seq, 50 * seq as usize)), put(seq + 1_000, "second", b"small")]),
    });
    Left::after(16 << 10, end, commits)
}

/// Damages some bytes of a file. Returns those that are no longer what they were.
fn damage(content: &mut [u8], random: &mut SmallRng) -> Vec<usize> {
    let sound = content.to_vec();
    let at = random.random_range(0..content.len());
    let len = random.random_range(1..=1_000).min(content.len() - at);
    match random.random_range(0..4) {
        0 => {
            for _ in 0..random.random_range(2..=64) {
                let bit = random.random_range(0..8 * content.len());
                content[bit / 8] ^= 1 << (bit % 8);
            }
        }
        1 => random.fill(&mut content[at..at + len]),
        // as a sector that is lost
        2 => content[at..at + len].fill(0),
        _ => {
            let other = random.random_range(0..=content.len() - len);
            content.copy_within(other..other + len, at);
        }
    }
    (0..sound.len()).filter(|&at| sound[at] != content[at]).collect()
}

#[test]
fn damage_of_many_bits_is_seen_or_changes_nothing_or_is_in_the_last_commit_before_a_kill() {
    let from_environment = |name| std::env::var(name).ok().map(|value| value.parse().expect("a number"));
    let rounds: u64 = from_environment("TEST_DAMAGES").unwrap_or(300);
    let seed: u64 = from_environment("TEST_SEED").unwrap_or_else(rand::random);
    println!("TEST_SEED={seed}");
    for end in [End::InOrder, End::Killed] {
        let left = larger(end);
        assert!(segments(left.directory.path()).len() > 3, "{:?}", ends(left.directory.path()));
        let mut random = SmallRng::seed_from_u64(seed);
        let mut tally = Tally::default();
        let paths: Vec<&PathBuf> =
            left.files.iter().filter(|(_, file)| !file.is_empty()).map(|(path, _)| path).collect();
        for _ in 0..rounds {
            let files = random.random_range(1..=2);
            let mut damaged = Vec::new();
            for &path in paths.choose_multiple(&mut random, files) {
                let mut content = left.files[path].clone();
                damaged.extend(damage(&mut content, &mut random).into_iter().map(|at| (path.as_path(), at)));
                fs::write(path, content).expect("writable");
            }
            tally.add(&left, &damaged, end == End::Killed);
            left.restore();
        }
        println!("{end:?}: {tally:?}");
        assert!(u64::from(tally.refused) > rounds / 2, "{tally:?}");
    }
}
