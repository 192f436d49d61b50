//! The thread that owns a store. It takes the changes that wait and commits them together, so that many requests share
//! one `fdatasync` (group commit), and reports to the owner of the store in the order in which things happened.

use std::mem::discriminant;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::payload::Payload;
use crate::store::metrics::StoreMetrics;
use crate::store::{Change, Compacted, Durable, NO_RECORD, Put, Seq, Store, StoreError};

/// How many bytes of bodies close a group. Past a few MiB the throughput of the disk decides, and a larger group only
/// makes its first member wait longer.
const MAX_GROUP_BYTES: usize = 8 << 20;

/// How many commands close a group. With 64 changes a commit the sync already costs less than the writing (245,000
/// records of 300 B a second, against 9,100 with one a commit); past a thousand nothing is gained. Waiting for
/// more than have come gains nothing either: with 32 connections a commit has 14 changes.
const MAX_GROUP_COMMANDS: usize = 1_024;

/// How long removals that nobody waits for are held back, so that they share a commit with others or with a put.
const REMOVAL_DELAY: Duration = Duration::from_millis(1);

/// How long after removals are written they are synced, unless a put comes first. Until then a crash of the machine may
/// bring the records back; a crash of the process does not. A sync takes about 90 µs of a processor, and a stream of
/// fetched messages would need one each millisecond.
const SYNC_DELAY: Duration = Duration::from_millis(10);

/// One compaction step follows for each so many bytes of bodies in a commit. So compaction keeps pace, and the next
/// commit waits for it no longer than for the bodies.
const BYTES_PER_COMPACTION: usize = 4 << 20;

/// How often a full store is probed while nobody puts anything.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// What has become of the requests to a store. The owner gets one event for each commit and for each compaction step
/// that concerns it, in the order in which they happened: a record is reported as stored before it is reported as
/// moved.
#[derive(Debug, Default)]
pub struct StoreEvent {
    /// The outcomes of [`StoreHandle::put`]: where the body is, once the record is durable, or why the record was
    /// refused.
    pub stored: Vec<(Seq, Result<Payload, StoreError>)>,
    /// The outcomes of [`StoreHandle::remove_durably`]. A record whose removal was refused is still there. After
    /// [`StoreError::Failed`] the next start may find it or not.
    pub removed: Vec<(Seq, Result<(), StoreError>)>,
    /// The outcomes of [`StoreHandle::flush`] and [`StoreHandle::stop`]: whether all removals requested
    /// before are durable. Those that are not are retried.
    pub flushed: Vec<(Seq, Result<(), StoreError>)>,
    /// See [`Compacted::moved`].
    pub moved: Vec<(Seq, Payload)>,
    /// Why the store refuses puts; `None` while it accepts them. After an error that [is final](StoreError::is_final)
    /// requests without an outcome get none.
    pub failure: Option<StoreError>,
}

impl StoreEvent {
    fn is_empty(&self) -> bool {
        self.stored.is_empty() && self.removed.is_empty() && self.flushed.is_empty() && self.moved.is_empty()
    }
}

/// A request to the thread.
enum Command {
    Put(Put),
    PutBoth(Box<[Put; 2]>),
    Remove(Seq),
    RemoveDurably(Seq),
    Flush(Seq),
    Stop(Seq),
    Probe { refused: u64 },
}

/// Sends changes to the store's thread. The thread ends when the last handle is dropped and everything that was sent
/// before is committed.
#[derive(Clone, Debug)]
pub struct StoreHandle(Arc<WriterChannel>);

#[derive(Debug)]
struct WriterChannel {
    /// `None` once the channel is being dropped.
    commands: Option<Sender<Command>>,
    next_seq: AtomicU64,
    writer: Thread,
    /// The thread sleeps until it is woken.
    idle: Arc<AtomicBool>,
    busy: Arc<Busy>,
}

/// Since when the thread has been busy with a commit, for those who watch the disk.
#[derive(Debug)]
struct Busy {
    started: Instant,
    /// Milliseconds after `started`; [`Busy::NOT`] between commits.
    since: AtomicU64,
}

impl Busy {
    const NOT: u64 = u64::MAX;

    fn begin(&self) {
        self.since.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn end(&self) {
        self.since.store(Self::NOT, Ordering::Relaxed);
    }

    fn time(&self) -> Option<Duration> {
        let since = Some(self.since.load(Ordering::Relaxed)).filter(|since| *since != Self::NOT)?;
        Some(self.started.elapsed().saturating_sub(Duration::from_millis(since)))
    }
}

impl WriterChannel {
    fn next_seq(&self) -> Seq {
        self.next_seq.fetch_add(1, Ordering::Relaxed)
    }

    fn send(&self, command: Command) {
        // if the thread has ended, the store has failed and has reported that
        let _ = self.commands.as_ref().map(|commands| commands.send(command));
    }

    fn send_and_wake(&self, command: Command) {
        self.send(command);
        self.writer.unpark();
    }
}

impl Drop for WriterChannel {
    fn drop(&mut self) {
        self.commands = None;
        self.writer.unpark();
    }
}

impl StoreHandle {
    /// Starts the thread. `next_seq` is the number of the first record that will be put. The thread calls `on_event`
    /// with what has become of the requests.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start(
        name: &str,
        store: Box<dyn Store>,
        next_seq: Seq,
        on_event: impl Fn(StoreEvent) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (handle, begin) = Self::prepare(name, next_seq, on_event)?;
        begin.with(store);
        Ok(handle)
    }

    /// As [`StoreHandle::start`], but what is requested waits until the thread [begins](Begin::with) with its store.
    ///
    /// # Errors
    /// As for [`StoreHandle::start`].
    pub fn prepare(
        name: &str,
        next_seq: Seq,
        on_event: impl Fn(StoreEvent) + Send + 'static,
    ) -> std::io::Result<(Self, Begin)> {
        let (commands, queue) = mpsc::channel();
        let (begin, begun) = mpsc::channel();
        let idle = Arc::new(AtomicBool::new(false));
        let busy = Arc::new(Busy { started: Instant::now(), since: AtomicU64::new(Busy::NOT) });
        let (is_idle, is_busy, metrics) = (Arc::clone(&idle), Arc::clone(&busy), StoreMetrics::register(name));
        let write = move || {
            // without a store it never began
            let Ok(store) = begun.recv() else { return };
            let writer = Writer {
                store,
                queue,
                idle: is_idle,
                busy: is_busy,
                removals: Vec::new(),
                due: None,
                sync_due: None,
                failure: None,
                failure_changed: false,
                uncompacted: true,
                metrics,
                on_event,
            };
            writer.run();
        };
        let writer = thread::Builder::new().name(format!("{name}-store")).spawn(write)?.thread().clone();
        let next_seq = AtomicU64::new(next_seq);
        Ok((Self(Arc::new(WriterChannel { commands: Some(commands), next_seq, writer, idle, busy })), Begin(begin)))
    }

    /// How long the thread has been busy with its current commit, if it is.
    pub fn busy_for(&self) -> Option<Duration> {
        self.0.busy.time()
    }

    /// Puts a record. Its number is known at once; [`StoreEvent::stored`] reports the outcome.
    pub fn put(&self, meta: Bytes, body: Payload) -> Seq {
        let seq = self.take_seq();
        self.put_as(seq, meta, body);
        seq
    }

    /// Takes the number of a record that is put later, or never.
    pub fn take_seq(&self) -> Seq {
        self.0.next_seq()
    }

    /// Puts a record under a number from [`StoreHandle::take_seq`]; [`StoreEvent::stored`] reports the outcome.
    pub fn put_as(&self, seq: Seq, meta: Bytes, body: Payload) {
        self.0.send_and_wake(Command::Put(Put { seq, meta, body }));
    }

    /// Puts two records in one commit: after a crash that tears it, the second one is there only if the first one is.
    /// The outcomes are equal: if one is refused, so is the other.
    pub fn put_both(&self, first: Put, second: Put) {
        self.0.send_and_wake(Command::PutBoth(Box::new([first, second])));
    }

    /// Removes a record soon: a crash of the process within a millisecond may bring it back, a crash of the machine
    /// within ten. While there is no space even for that, the removal is retried until it succeeds.
    pub fn remove(&self, seq: Seq) {
        self.0.send(Command::Remove(seq));
        fence(Ordering::SeqCst);
        if self.0.idle.load(Ordering::Relaxed) {
            self.0.writer.unpark();
        }
    }

    /// Removes a record. [`StoreEvent::removed`] reports when that is durable; if the removal is refused, the record
    /// stays.
    pub fn remove_durably(&self, seq: Seq) {
        self.0.send_and_wake(Command::RemoveDurably(seq));
    }

    /// Finds out whether the store still works and has space, after `refused` bytes could not be written beside it. The
    /// next event has the result as its [`StoreEvent::failure`], if that has changed.
    pub fn probe(&self, refused: u64) {
        self.0.send_and_wake(Command::Probe { refused });
    }

    /// Asks for a report when everything requested before has its outcome: [`StoreEvent::flushed`], under the number
    /// that this returns, which no record has.
    pub fn flush(&self) -> Seq {
        let seq = self.0.next_seq();
        self.0.send_and_wake(Command::Flush(seq));
        seq
    }

    /// As [`StoreHandle::flush`], for an owner that will request nothing more: the next start may rely on finding
    /// everything.
    pub fn stop(&self) -> Seq {
        let seq = self.0.next_seq();
        self.0.send_and_wake(Command::Stop(seq));
        seq
    }
}

/// A thread that waits for its store. If this is dropped, the thread ends, and nothing that was requested is done.
#[derive(Debug)]
pub struct Begin(Sender<Box<dyn Store>>);

impl Begin {
    /// Gives the thread its store.
    pub fn with(self, store: Box<dyn Store>) {
        // it does nothing but wait for this
        let _ = self.0.send(store);
    }
}

struct Writer<F: Fn(StoreEvent)> {
    store: Box<dyn Store>,
    queue: Receiver<Command>,
    /// See [`WriterChannel`].
    idle: Arc<AtomicBool>,
    /// See [`WriterChannel`].
    busy: Arc<Busy>,
    /// Removals that nobody waits for, and that are in no commit yet.
    removals: Vec<Seq>,
    /// The time of the next commit, whatever has come until then: removals wait, or a full disk is probed.
    due: Option<Instant>,
    /// The time until which written removals must be synced.
    sync_due: Option<Instant>,
    failure: Option<StoreError>,
    /// The owner does not know of the failure, or of its end.
    failure_changed: bool,
    /// The store may have space to give back.
    uncompacted: bool,
    metrics: StoreMetrics,
    on_event: F,
}

impl<F: Fn(StoreEvent)> Drop for Writer<F> {
    fn drop(&mut self) {
        if thread::panicking() {
            // A bug. As after a failed sync, nobody knows what is on the disk.
            let failure = Some(StoreError::Failed("its thread has panicked".into()));
            (self.on_event)(StoreEvent { failure, ..StoreEvent::default() });
        }
    }
}

/// What is committed together.
#[derive(Default)]
struct Group {
    puts: Vec<Put>,
    /// Puts that are larger than a record may be.
    refused: Vec<(Seq, Result<Payload, StoreError>)>,
    /// Removals that somebody waits for.
    removals: Vec<Seq>,
    flushes: Vec<Seq>,
    /// Nothing will follow, as far as the owner knows.
    stop: bool,
    /// How many bytes could not be written beside the store, if it has to be probed for them.
    probe: Option<u64>,
    commands: usize,
    bytes: usize,
}

impl<F: Fn(StoreEvent)> Writer<F> {
    fn run(mut self) {
        self.metrics.takes(self.store.disk_bytes());
        if let Err(error) = self.store.check_space() {
            self.fail(&error);
            self.due = Some(Instant::now() + PROBE_INTERVAL);
            self.report(StoreEvent::default());
        }
        let mut open = true;
        while open {
            let mut group = Group::default();
            open = self.gather(&mut group);
            let is_due = |due: Option<Instant>| due.is_some_and(|due| due <= Instant::now());
            let now = !open || is_due(self.sync_due) || group.is_awaited();
            if now || is_due(self.due) {
                self.idle.store(false, Ordering::Relaxed);
                // A full disk is probed once a second. A sync of its own would be a second probe.
                let durable = if now || self.failure.is_some() { Durable::Now } else { Durable::Later };
                let steps = 1 + group.bytes / BYTES_PER_COMPACTION;
                self.busy.begin();
                self.commit_group(group, durable);
                (0..steps).for_each(|_| self.compact());
                self.busy.end();
            } else if self.uncompacted {
                self.compact();
            } else if let Some(due) = self.due.into_iter().chain(self.sync_due).min() {
                self.idle.store(false, Ordering::Relaxed);
                thread::park_timeout(due.saturating_duration_since(Instant::now()));
            } else if self.idle.load(Ordering::Relaxed) {
                thread::park();
            } else {
                // One more round: whoever did not see this flag has sent its removal before, and the round finds it.
                self.idle.store(true, Ordering::Relaxed);
                fence(Ordering::SeqCst);
            }
        }
    }

    /// Takes the commands that wait, up to the bounds of a group. Returns whether more can ever come.
    fn gather(&mut self, group: &mut Group) -> bool {
        while group.bytes < MAX_GROUP_BYTES && group.commands < MAX_GROUP_COMMANDS {
            match self.queue.try_recv() {
                Ok(Command::Put(put)) => group.add([put]),
                Ok(Command::PutBoth(puts)) => group.add(*puts),
                Ok(Command::Remove(seq)) => {
                    self.removals.push(seq);
                    let soon = Instant::now() + REMOVAL_DELAY;
                    self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
                }
                Ok(Command::RemoveDurably(seq)) => group.removals.push(seq),
                Ok(Command::Flush(seq)) => group.flushes.push(seq),
                Ok(Command::Stop(seq)) => {
                    group.flushes.push(seq);
                    group.stop = true;
                }
                Ok(Command::Probe { refused }) => group.probe = group.probe.max(Some(refused)),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
            group.commands += 1;
        }
        true
    }

    /// Commits a group and the removals that wait, and reports the outcomes. While the disk is full and nobody puts
    /// anything, it also probes for space.
    fn commit_group(&mut self, group: Group, durable: Durable) {
        let Group { puts, refused, removals: awaited, flushes, stop, probe, .. } = group;
        let mut event = StoreEvent { stored: refused, ..StoreEvent::default() };
        let is_due = puts.is_empty() && self.failure.is_some();
        let seqs: Vec<Seq> = puts.iter().map(|put| put.seq).collect();
        // puts first: a torn commit must not remove a message without its tombstone
        let mut changes: Vec<Change> = puts.into_iter().map(Change::Put).collect();
        changes.extend(self.removals.iter().chain(&awaited).map(|&seq| Change::Remove(seq)));
        let removed = match self.commit(&changes, durable) {
            Ok(bodies) => {
                // the memory is free before anybody learns of the commit
                drop(changes);
                self.removals.clear();
                event.stored.extend(seqs.into_iter().zip(bodies.into_iter().map(Ok)));
                Ok(())
            }
            Err(error) => {
                let removals = &changes[seqs.len()..];
                let removed = self.commit_removals(removals, seqs.is_empty(), durable, error.clone());
                event.stored.extend(seqs.into_iter().map(|seq| (seq, Err(error.clone()))));
                removed
            }
        };
        if let Some(bytes) = probe {
            self.store.space_was_refused(bytes);
        }
        if probe.is_some() || is_due {
            // the event's `failure` says what has come of it
            let _ = self.commit(&[Change::Remove(NO_RECORD)], Durable::Now);
        }
        if stop
            && removed.is_ok()
            && self.failure.is_none()
            && let Err(error) = self.store.stop()
        {
            log::warn!("the next start will take this stop for a crash: {error}");
        }
        self.due = match &self.failure {
            Some(_) => Some(Instant::now() + PROBE_INTERVAL),
            None if self.removals.is_empty() => None,
            None => Some(Instant::now() + REMOVAL_DELAY),
        };
        event.removed = awaited.into_iter().map(|seq| (seq, removed.clone())).collect();
        event.flushed = flushes.into_iter().map(|seq| (seq, removed.clone())).collect();
        self.report(event);
    }

    /// Commits `removals` alone, after all changes together were refused with `error`. If they `were_alone`, syncs what
    /// was written before.
    fn commit_removals(
        &mut self,
        removals: &[Change],
        were_alone: bool,
        durable: Durable,
        error: StoreError,
    ) -> Result<(), StoreError> {
        if error.is_final() {
            return Err(error);
        }
        if were_alone {
            let _ = self.commit(&[], durable);
            return Err(error);
        }
        self.commit(removals, durable)?;
        self.removals.clear();
        Ok(())
    }

    fn commit(&mut self, changes: &[Change], durable: Durable) -> Result<Vec<Payload>, StoreError> {
        let began = Instant::now();
        let committed = self.store.commit(changes, durable);
        if committed.is_ok() && !changes.is_empty() {
            self.metrics.committed(changes.len(), began.elapsed());
        }
        self.metrics.takes(self.store.disk_bytes());
        self.uncompacted |= !changes.is_empty();
        self.sync_due = match durable {
            Durable::Now => None,
            Durable::Later if committed.is_ok() => self.sync_due.or_else(|| Some(Instant::now() + SYNC_DELAY)),
            Durable::Later => self.sync_due,
        };
        match &committed {
            Ok(_) => {
                // that there is space for removals alone proves nothing
                let proves_space =
                    changes.iter().any(|change| !matches!(change, Change::Remove(seq) if *seq != NO_RECORD));
                if proves_space {
                    self.failure_changed |= self.failure.take().is_some();
                }
            }
            Err(error) => self.fail(error),
        }
        committed
    }

    fn fail(&mut self, error: &StoreError) {
        self.failure_changed |= self.failure.as_ref().map(discriminant) != Some(discriminant(error));
        self.failure = Some(error.clone());
    }

    /// Lets the store give some space back.
    fn compact(&mut self) {
        if !self.uncompacted {
            return;
        }
        let mut event = StoreEvent::default();
        match self.store.compact() {
            Ok(Compacted { moved, more }) => {
                self.uncompacted = more;
                event.moved = moved;
                self.metrics.takes(self.store.disk_bytes());
            }
            Err(error) => {
                self.uncompacted = false;
                log::warn!("cannot give disk space back: {error}");
                if error.is_final() {
                    self.fail(&error);
                }
            }
        }
        self.report(event);
    }

    fn report(&mut self, mut event: StoreEvent) {
        if std::mem::take(&mut self.failure_changed) || !event.is_empty() {
            event.failure.clone_from(&self.failure);
            (self.on_event)(event);
        }
    }
}

impl Group {
    /// Adds puts that have one outcome.
    fn add<const N: usize>(&mut self, puts: [Put; N]) {
        match puts.iter().try_for_each(Put::check) {
            Ok(()) => {
                self.bytes += puts.iter().map(|put| put.body.unsynced_len() as usize).sum::<usize>();
                self.puts.extend(puts);
            }
            // not those that would be committed with them
            Err(error) => self.refused.extend(puts.map(|put| (put.seq, Err(error.clone())))),
        }
    }

    /// Whether somebody waits for the commit.
    fn is_awaited(&self) -> bool {
        let has_outcomes = !(self.puts.is_empty() && self.refused.is_empty() && self.removals.is_empty());
        has_outcomes || !self.flushes.is_empty() || self.probe.is_some()
    }
}
