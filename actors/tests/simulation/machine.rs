//! A machine: a disk for each store, which outlives the processes, and the thread of each store, which commits only
//! when the simulation says so.
//!
//! A store's thread waits before each commit. While it waits, the simulation moves everything else. When it lets the
//! commit pass, it waits itself until the thread waits before the next one. So the two never run at the same time, and
//! what a commit has in it depends on nothing but the order of the simulation's steps.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use tempfile::TempDir;
use user_http_actors::payload::Payload;
use user_http_actors::store::disk::Disk;
use user_http_actors::store::log::LogStore;
use user_http_actors::store::{Change, Compacted, Durable, Recovered, Seq, Store, StoreError, StoreEvent, StoreHandle};

use crate::disk::{EIO, Fault, FaultKind, RecordingDisk, Unsynced, rebuild};

/// So small that compaction has something to do.
const SEGMENT_BYTES: u64 = 8 << 10;

/// In real time: a thread that takes longer is stuck.
const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct GateState {
    waits: bool,
    passes: bool,
    closed: bool,
    ended: bool,
}

/// Where a store's thread waits before each commit.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<GateState>, Condvar)>);

impl Gate {
    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread waits here. Returns whether it may commit.
    fn enter(&self) -> bool {
        let mut state = self.lock();
        state.waits = true;
        self.0.1.notify_all();
        let waited = self.0.1.wait_while(state, |state| !state.passes && !state.closed);
        state = waited.unwrap_or_else(PoisonError::into_inner);
        (state.waits, state.passes) = (false, false);
        !state.closed
    }

    /// No commit passes any more: the process has ended.
    pub fn close(&self) {
        self.lock().closed = true;
        self.0.1.notify_all();
    }

    fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn wait_until(&self, what: &str, reached: impl Fn(&GateState) -> bool) {
        let waited = self.0.1.wait_timeout_while(self.lock(), DEADLINE, |state| !reached(state));
        let timed_out = waited.unwrap_or_else(PoisonError::into_inner).1.timed_out();
        assert!(!timed_out, "a store's thread is stuck: {what}");
    }

    /// Waits until the thread waits.
    fn wait_for_thread(&self) {
        self.wait_until("it does not reach its next commit", |state| state.waits || state.ended);
    }

    /// Waits until the thread has closed its files.
    pub fn wait_for_end(&self) {
        self.wait_until("it does not end", |state| state.ended);
    }

    fn pass(&self) {
        let mut state = self.lock();
        (state.waits, state.passes) = (false, true);
        drop(state);
        self.0.1.notify_all();
        self.wait_for_thread();
    }
}

/// A log behind a gate.
struct GatedStore {
    log: Option<LogStore>,
    gate: Gate,
}

impl GatedStore {
    fn log(&mut self) -> Result<&mut LogStore, StoreError> {
        let is_open = !self.gate.is_closed();
        self.log.as_mut().filter(|_| is_open).ok_or_else(|| StoreError::Failed("the process has ended".into()))
    }
}

impl Store for GatedStore {
    fn commit(&mut self, changes: &[Change], durable: Durable) -> Result<Vec<Payload>, StoreError> {
        self.gate.enter();
        self.log()?.commit(changes, durable)
    }

    fn check_space(&mut self) -> Result<(), StoreError> {
        self.log()?.check_space()
    }

    fn space_was_refused(&mut self, bytes: u64) {
        if let Ok(log) = self.log() {
            log.space_was_refused(bytes);
        }
    }

    fn compact(&mut self) -> Result<Compacted, StoreError> {
        self.log()?.compact()
    }

    fn stop(&mut self) -> Result<(), StoreError> {
        self.log()?.stop()
    }

    fn disk_bytes(&self) -> u64 {
        self.log.as_ref().map_or(0, Store::disk_bytes)
    }
}

impl Drop for GatedStore {
    fn drop(&mut self) {
        self.log = None;
        self.gate.lock().ended = true;
        self.gate.0.1.notify_all();
    }
}

/// What a store has reported of the flushes, and of itself.
#[derive(Default)]
struct Reported {
    flushed: Vec<(Seq, bool)>,
    has_failed: bool,
    is_full: bool,
}

/// The store of a running process.
pub struct RunningStore {
    handle: StoreHandle,
    pub gate: Gate,
    reported: Arc<Mutex<Reported>>,
    disk: RecordingDisk,
    /// What was completed since the last commit: its removal is on its way to the store.
    completed: Vec<u64>,
    /// What was completed before each flush that has no outcome yet.
    flushing: Vec<(Seq, Vec<u64>)>,
}

impl RunningStore {
    fn reported(&self) -> MutexGuard<'_, Reported> {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the actor that owns it.
    pub fn handle(&self) -> StoreHandle {
        self.handle.clone()
    }

    /// Nothing can be promised any more.
    pub fn has_failed(&self) -> bool {
        self.reported().has_failed
    }

    /// It has refused something for want of space since it was opened.
    pub fn was_full(&self) -> bool {
        self.reported().is_full
    }

    /// The owner has asked for the removal of this one.
    pub fn complete(&mut self, number: u64) {
        self.completed.push(number);
    }

    /// Lets one commit pass. The next one waits by then, with everything that was requested before this call.
    pub fn commit(&mut self) {
        let flush = self.handle.flush();
        self.flushing.push((flush, std::mem::take(&mut self.completed)));
        self.gate.pass();
    }

    /// What was completed, and cannot come back whatever happens.
    pub fn gone_for_good(&mut self) -> Vec<u64> {
        let flushed = std::mem::take(&mut self.reported().flushed);
        let mut gone = Vec::new();
        for (seq, is_durable) in flushed {
            let Some(at) = self.flushing.iter().position(|(flush, _)| *flush == seq) else { continue };
            let (_, completed) = self.flushing.remove(at);
            if is_durable { gone.extend(completed) } else { self.completed.extend(completed) }
        }
        gone
    }

    pub fn set_fault(&self, fault: Option<Fault>) {
        self.disk.set_fault(fault);
    }

    /// The process is killed after this many more operations of the disk in the current commit.
    pub fn kill_after(&mut self, operations: usize) {
        let fault = Fault { kind: FaultKind::Any, at: operations + 1, error: EIO, for_good: true };
        self.disk.set_fault(Some(fault));
        self.commit();
        self.gate.close();
    }
}

/// A directory on a disk.
struct StoreDisk {
    name: &'static str,
    path: PathBuf,
    disk: RecordingDisk,
}

impl StoreDisk {
    fn open(&self, on_event: impl Fn(StoreEvent) + Send + 'static) -> (RunningStore, Vec<Recovered>) {
        self.disk.set_fault(None);
        let (log, recovered) = LogStore::open_on(Arc::new(self.disk.clone()), &self.path, SEGMENT_BYTES)
            .unwrap_or_else(|error| panic!("{} does not open: {error}", self.name));
        let (gate, reported, next_seq) = (Gate::default(), Arc::<Mutex<Reported>>::default(), log.next_seq());
        let reports = Arc::clone(&reported);
        let report = move |event: StoreEvent| {
            let mut reported = reports.lock().unwrap_or_else(PoisonError::into_inner);
            reported.flushed.extend(event.flushed.iter().map(|(seq, outcome)| (*seq, outcome.is_ok())));
            reported.has_failed |= event.failure.as_ref().is_some_and(StoreError::is_final);
            reported.is_full |= event.failure.is_some();
            drop(reported);
            on_event(event);
        };
        let store = Box::new(GatedStore { log: Some(log), gate: gate.clone() });
        let handle = StoreHandle::start(self.name, store, next_seq, report).expect("a thread");
        let (completed, mut flushing) = (Vec::new(), Vec::new());
        flushing.push((handle.flush(), Vec::new()));
        gate.wait_for_thread();
        (RunningStore { handle, gate, reported, disk: self.disk.clone(), completed, flushing }, recovered)
    }
}

/// Copies the files of a directory onto a new disk, and syncs them.
fn copy(image: &Path, to: &Path, disk: &RecordingDisk) {
    let mut entries: Vec<PathBuf> = fs::read_dir(image).expect("readable").map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for from in entries {
        let path = to.join(from.file_name().expect("a name"));
        if from.is_dir() {
            disk.create_directory(&path).expect("no fault");
            copy(&from, &path, disk);
        } else {
            let (file, content) = (disk.create(&path).expect("no fault"), fs::read(&from).expect("readable"));
            if !content.is_empty() {
                disk.write(&file, &content, 0).expect("no fault");
            }
            disk.sync(&file).expect("no fault");
        }
    }
    disk.sync_directory(to).expect("no fault");
}

/// The machine. Its stores are those of the actors, in their order.
pub struct Machine {
    root: TempDir,
    stores: Vec<StoreDisk>,
    images: usize,
}

impl Machine {
    pub fn new(names: &[&'static str]) -> Self {
        // in memory, if there is such a file system
        let memory = Path::new("/dev/shm");
        let root = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.expect("a directory");
        let store = |name: &&'static str| {
            let path = root.path().join(name);
            fs::create_dir(&path).expect("space");
            StoreDisk { name, path, disk: RecordingDisk::default() }
        };
        Self { stores: names.iter().map(store).collect(), root, images: 0 }
    }

    /// Opens the store with this index, and starts its thread, which waits before its first commit.
    pub fn open(&self, index: usize, on_event: impl Fn(StoreEvent) + Send + 'static) -> (RunningStore, Vec<Recovered>) {
        self.stores[index].open(on_event)
    }

    /// The power fails: of what was not synced, the disks keep a part, or nothing. No process runs.
    pub fn lose_power(&mut self, random: &mut StdRng) {
        for store in &mut self.stores {
            self.images += 1;
            let unsynced = if random.random_bool(0.3) { Unsynced::Nothing } else { Unsynced::Some };
            let names = [format!("image-{}", self.images), format!("{}-{}", store.name, self.images)];
            let [image, path] = names.map(|name| self.root.path().join(name));
            [&image, &path].into_iter().for_each(|path| fs::create_dir(path).expect("space"));
            rebuild(&store.disk.events(), unsynced, random, &image);
            let disk = RecordingDisk::default();
            copy(&image, &path, &disk);
            [&image, &store.path].into_iter().for_each(|path| fs::remove_dir_all(path).expect("it is there"));
            (store.path, store.disk) = (path, disk);
        }
    }
}
