//! Backups of a store that is written, compacted, deleted from and killed meanwhile: between any two steps of one, any
//! steps of the other.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use user_http_actors::backup::{BackupError, Options, back_up};

use crate::backup::history::{History, numbers};
use crate::backup::owner::{Owner, SteppingDisk, Weather};
use crate::backup::turns::{Side, Turns};
use crate::backup::{folder, opened};

/// How many backups are made, unless `TEST_BACKUPS` says otherwise.
const BACKUPS: usize = 100;

/// How many of them are made of one store.
const BACKUPS_OF_ONE: usize = 15;

/// The average number of steps of a turn, of the server and of the backup. With more steps of the server for each of
/// the backup, no backup would end: segments have 3 kB here, so a few steps fill one.
const STEPS: [[u32; 2]; 6] = [[1, 1], [1, 3], [2, 10], [10, 20], [30, 60], [200, 200]];

fn from_environment<T: std::str::FromStr>(name: &str) -> Option<T> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// What has happened in the backups of one store.
#[derive(Debug, Default)]
struct Counts {
    backups: usize,
    records: u64,
    /// The store has changed while the backup was made.
    changed: usize,
    segments_begun: usize,
}

#[test]
fn a_backup_is_what_the_store_was_at_one_moment_after_it_began() {
    let seed: u64 = from_environment("TEST_SEED").unwrap_or_else(rand::random);
    let backups = from_environment("TEST_BACKUPS").unwrap_or(BACKUPS);
    let mut counts = Counts::default();
    for round in 0.. {
        if counts.backups >= backups {
            break;
        }
        let seed = seed.wrapping_add(round);
        let made = thread::spawn(move || back_up_one(seed)).join();
        let made = made.unwrap_or_else(|_| panic!("repeat with TEST_SEED={seed} TEST_BACKUPS=1"));
        counts.backups += made.backups;
        counts.records += made.records;
        counts.changed += made.changed;
        counts.segments_begun += made.segments_begun;
    }
    println!("seed {seed}: {counts:?}");
    assert!(counts.changed > counts.backups / 2, "the store hardly changes meanwhile: {counts:?}");
    assert!(counts.segments_begun > counts.backups, "there is hardly any compaction: {counts:?}");
}

/// Makes backups of one store while its owner works.
fn back_up_one(seed: u64) -> Counts {
    let mut random = StdRng::seed_from_u64(seed);
    let weathers = [Weather::Fair, Weather::NoSpaceToWrite, Weather::NoSpaceToSync, Weather::Kills];
    let weather = weathers[random.random_range(0..4)];
    let steps = STEPS[random.random_range(0..STEPS.len())];
    // with few open files, the others are opened when they are copied
    let max_open = if random.random_ratio(1, 4) { 6 } else { 1_000 };
    let folder = folder();
    let directory = folder.path().join("data/buffer");
    let (turns, history) = (Arc::new(Turns::new(random.random(), steps)), Arc::new(Mutex::new(History::default())));
    let of_disk = Arc::clone(&turns);
    let step = move || of_disk.step(Side::Server);
    let disk = SteppingDisk::new(step, weather, StdRng::seed_from_u64(random.random()));
    let owner_random = StdRng::seed_from_u64(random.random());
    let warm_up = random.random_range(0..200);
    let (is_warm, is_over, mut counts) = (AtomicBool::new(false), AtomicBool::new(false), Counts::default());
    thread::scope(|scope| {
        scope.spawn(|| {
            let _turn = turns.begin(Side::Server);
            let mut owner = Owner::start(&directory, disk, Arc::clone(&history), owner_random);
            (0..warm_up).for_each(|_| owner.act());
            is_warm.store(true, Ordering::Relaxed);
            while !is_over.load(Ordering::Relaxed) {
                owner.act();
            }
        });
        let _turn = turns.begin(Side::Backup);
        let _over = Over(&is_over);
        while !is_warm.load(Ordering::Relaxed) {
            turns.step(Side::Backup);
        }
        let newest = || crate::backup::segments(&directory).last().map_or(0, |segment| number(segment));
        let first = newest();
        for number in 0..BACKUPS_OF_ONE {
            let target = folder.path().join(format!("backup-{number}"));
            let begun = history.lock().expect("not poisoned").ended();
            let options = Options { max_open, chunk: 512, before_access: &|| turns.step(Side::Backup) };
            let made = back_up(&folder.path().join("data"), &target, &options);
            let made = made.unwrap_or_else(|error: BackupError| panic!("{weather:?}, {steps:?}, {max_open}: {error}"));
            let history = history.lock().expect("not poisoned");
            let state = numbers(&opened(&target).1);
            let (lost, unknown) = history.differences(&state, begun);
            assert!(
                lost.is_empty() && unknown.is_empty(),
                "{weather:?}, {steps:?}: lost {lost:?}, unknown {unknown:?}"
            );
            // a removal that was not synced yet may be undone by a sync that finds no space
            assert!(
                weather == Weather::NoSpaceToSync || history.has_been(&state, begun),
                "{weather:?}, {steps:?}: {state:?} since {begun} of {history:?}"
            );
            assert_eq!(made.buffer.records, state.len() as u64);
            fs::remove_dir_all(&target).expect("a backup");
            counts.backups += 1;
            counts.records += made.buffer.records;
            counts.changed += usize::from(history.ended() > begun);
        }
        counts.segments_begun = newest() - first;
    });
    counts
}

/// Ends the server, also if a backup fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn number(segment: &Path) -> usize {
    segment.file_stem().and_then(|stem| stem.to_str()?.parse().ok()).expect("the name of a segment")
}
