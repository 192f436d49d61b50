//! The owner of a store, as a server is: it puts, removes and compacts, is killed and started again.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;
use user_http_actors::payload::Payload;
use user_http_actors::store::disk::{Disk, SystemDisk};
use user_http_actors::store::log::LogStore;
use user_http_actors::store::{Change, Durable, Put, Recovered, Seq, Store};

use crate::backup::history::{History, State, Step, meta, numbers, pattern};
use crate::support::in_file::in_file;

/// A body that is longer is relocated by a compaction of its own.
const SEGMENT_BYTES: u64 = 3_000;

/// How much the owner keeps, in records.
const MANY: usize = 30;

/// What is wrong with the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    Fair,
    /// Now and then there is no space for what is written.
    NoSpaceToWrite,
    /// Now and then a sync finds that there is no space.
    NoSpaceToSync,
    /// Now and then the process is killed.
    Kills,
}

/// A disk that is never waited for, and that calls a function before each change.
pub struct SteppingDisk {
    step: Box<dyn Fn() + Send + Sync>,
    weather: Weather,
    random: Mutex<StdRng>,
    /// How many operations fail from now on.
    short_of_space: AtomicU32,
    is_killed: AtomicBool,
}

impl std::fmt::Debug for SteppingDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SteppingDisk").finish_non_exhaustive()
    }
}

impl SteppingDisk {
    pub fn new(step: impl Fn() + Send + Sync + 'static, weather: Weather, random: StdRng) -> Self {
        let (short_of_space, is_killed) = (AtomicU32::new(0), AtomicBool::new(false));
        Self { step: Box::new(step), weather, random: Mutex::new(random), short_of_space, is_killed }
    }

    fn chance(&self, one_in: u32) -> bool {
        self.random.lock().expect("not poisoned").random_ratio(1, one_in)
    }

    fn step(&self) -> io::Result<()> {
        (self.step)();
        if self.weather == Weather::Kills && self.chance(300) {
            self.is_killed.store(true, Ordering::Relaxed);
        }
        if self.is_killed.load(Ordering::Relaxed) { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    }

    fn needs_space(&self, weather: Weather) -> io::Result<()> {
        self.step()?;
        if self.weather != weather {
            return Ok(());
        }
        let short = self.short_of_space.load(Ordering::Relaxed);
        if short > 0 {
            self.short_of_space.store(short - 1, Ordering::Relaxed);
            return Err(io::ErrorKind::StorageFull.into());
        }
        if self.chance(60) {
            let many = if self.chance(4) { 40 } else { 2 };
            self.short_of_space
                .store(self.random.lock().expect("not poisoned").random_range(0..many), Ordering::Relaxed);
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

impl Disk for SteppingDisk {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        SystemDisk.create_directory(path)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        self.step()?;
        SystemDisk.create(path)
    }

    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        // in parts, as another process may see it
        let mut parts = bytes.chunks(1 + bytes.len() / 2).scan(offset, |at, part| {
            let from = *at;
            *at += part.len() as u64;
            Some((part, from))
        });
        parts.try_for_each(|(part, at)| {
            self.needs_space(Weather::NoSpaceToWrite)?;
            SystemDisk.write(file, part, at)
        })
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        self.step()?;
        SystemDisk.set_len(file, len)
    }

    fn sync(&self, _: &File) -> io::Result<()> {
        self.needs_space(Weather::NoSpaceToSync)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        SystemDisk.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        SystemDisk.rename(from, to)
    }

    fn check_space(&self, _: &File, _: u64) -> io::Result<()> {
        self.needs_space(Weather::NoSpaceToWrite)
    }

    fn sync_directory(&self, _: &Path) -> io::Result<()> {
        self.step()
    }
}

/// A server with one store.
pub struct Owner {
    directory: PathBuf,
    disk: Arc<SteppingDisk>,
    /// `None` while no process runs.
    store: Option<LogStore>,
    live: State,
    next: Seq,
    history: Arc<Mutex<History>>,
    random: StdRng,
}

impl Owner {
    pub fn start(directory: &Path, disk: SteppingDisk, history: Arc<Mutex<History>>, random: StdRng) -> Self {
        let disk = Arc::new(disk);
        let store = Some(open(&disk, directory).0);
        Self { directory: directory.to_owned(), disk, store, live: State::new(), next: 1, history, random }
    }

    /// Does anything that a server does.
    pub fn act(&mut self) {
        match self.random.random_range(0..60) {
            0..29 => self.commit(),
            29..59 => self.compact(),
            _ => self.restart(),
        }
    }

    fn store(&mut self) -> &mut LogStore {
        self.store.as_mut().expect("a process runs")
    }

    fn history(&self) -> std::sync::MutexGuard<'_, History> {
        self.history.lock().expect("not poisoned")
    }

    fn commit(&mut self) {
        let (mut changes, mut steps) = (Vec::new(), Vec::new());
        let (mut live, mut next) = (self.live.clone(), self.next);
        for _ in 0..self.random.random_range(1..6) {
            let removes = self.random.random_range(0..2 * MANY) < live.len();
            let oldest = live.iter().nth(self.random.random_range(0..MANY)).or(live.first()).copied();
            match oldest.filter(|_| removes) {
                Some(seq) => {
                    live.remove(&seq);
                    steps.push(Step::Remove(seq));
                    changes.push(Change::Remove(seq));
                }
                None => {
                    let Some(body) = self.body(next) else { continue };
                    live.insert(next);
                    steps.push(Step::Put(next));
                    changes.push(Change::Put(Put { seq: next, meta: meta(next).into(), body }));
                    next += 1;
                }
            }
        }
        // a put is always waited for
        let may_wait = steps.iter().all(|step| matches!(step, Step::Remove(_)));
        let durable = if may_wait && self.random.random() { Durable::Later } else { Durable::Now };
        self.history().begin(steps);
        let committed = self.store().commit(&changes, durable);
        // no number is ever used for another body
        self.next = next;
        match committed {
            Ok(_) => {
                self.live = live;
                self.history().end(true);
            }
            Err(error) if error.is_final() => self.restart(),
            Err(_) => self.history().end(false),
        }
    }

    /// Small ones, some in files, and some that are too large for a compaction step.
    fn body(&mut self, seq: Seq) -> Option<Payload> {
        match self.random.random_range(0..10) {
            0..2 => {
                let body = pattern(seq, self.random.random_range(11..3_000));
                in_file(self.store().bodies(), &body).ok()
            }
            2 => Some(Payload::from_parts(vec![Bytes::from(pattern(seq, self.random.random_range(800..5_000)))])),
            _ => Some(Payload::from_parts(vec![Bytes::from(pattern(seq, self.random.random_range(0..200)))])),
        }
    }

    fn compact(&mut self) {
        for _ in 0..self.random.random_range(1..6) {
            match self.store().compact() {
                Ok(compacted) if compacted.more => {}
                Err(error) if error.is_final() => return self.restart(),
                _ => return,
            }
        }
    }

    /// Ends the process, in the middle of whatever it does, and starts another.
    fn restart(&mut self) {
        self.store = None;
        let (store, found) = open(&self.disk, &self.directory);
        self.store = Some(store);
        self.live = numbers(&found);
        self.history().found(&self.live);
    }
}

/// Starts processes until one of them is not killed while it opens the store.
fn open(disk: &Arc<SteppingDisk>, directory: &Path) -> (LogStore, Vec<Recovered>) {
    loop {
        disk.is_killed.store(false, Ordering::Relaxed);
        if let Ok(opened) = LogStore::open_on(disk.clone(), directory, SEGMENT_BYTES) {
            return opened;
        }
    }
}
