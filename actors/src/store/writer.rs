//! The thread that owns a store: it gathers the changes that wait and commits them together, so that many requests
//! share one `fdatasync`.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::task::{Context, Poll, ready};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::payload::Payload;
use crate::store::puts::PutOutcome;
use crate::store::{Change, Durable, NO_RECORD, Seq, Store, StoreError, Tidied};

/// How many bytes of bodies one commit takes at the most before it is closed: past a few MiB the disk's throughput
/// decides and a larger group only makes its first member wait longer.
const MAX_GROUP_BYTES: usize = 8 << 20;

/// How many changes one commit takes at the most. At 64 a commit the sync already costs less than the writing
/// (245,000 records of 300 B a second against 9,100 with one a commit); past a thousand nothing is gained. Nor is
/// anything by waiting for more than have come: with 32 connections a commit takes 14.
const MAX_GROUP_CHANGES: usize = 1_024;

/// How long removals wait for others, or for a put to go with: nobody waits for them.
const REMOVAL_DELAY: Duration = Duration::from_millis(1);

/// How long after removals are written they are synced, unless a put comes first: until then a crash of the machine may
/// bring them back, one of the process does not. A sync takes about 90 µs of a processor, and a stream of fetched
/// messages would have one each millisecond.
const SYNC_DELAY: Duration = Duration::from_millis(10);

/// For how many bytes of bodies that a commit takes the store gives space back once: it is to keep pace, and whoever
/// waits for the next commit waits no longer for it than for the bodies.
const TIDIED_TOGETHER: usize = 4 << 20;

/// How often a full store is tried again while nobody asks it for anything.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// What the owner of a store is told besides the answers to its calls.
#[derive(Debug)]
pub enum StoreEvent {
    /// Bodies have moved; see [`Tidied::moved`](crate::store::Tidied::moved). The outcome of each of their puts was there
    /// before.
    Moved(Vec<(Seq, Payload)>),
    /// The outcome of commits has changed: `None` when they succeed again.
    Status(Option<StoreError>),
}

type Reply = oneshot::Sender<PutOutcome>;

/// Whether removals are durable.
type Removed = oneshot::Sender<Result<(), StoreError>>;

enum Command {
    Put { meta: Bytes, body: Vec<Bytes>, reply: Reply },
    Remove(Seq),
    RemoveDurably(Seq, Removed),
    Flush(Removed),
}

/// Hands changes to the store's thread. The thread ends when the last handle is dropped and everything that was
/// handed over before is committed.
#[derive(Clone, Debug)]
pub struct StoreHandle(Arc<Line>);

/// The way to the thread.
#[derive(Debug)]
struct Line {
    commands: Option<Sender<Command>>,
    writer: Thread,
    /// The thread sleeps until it is woken.
    idle: Arc<AtomicBool>,
}

impl Line {
    fn send(&self, command: Command) {
        // without its thread the store has failed, and has said so
        let _ = self.commands.as_ref().map(|commands| commands.send(command));
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.commands = None;
        self.writer.unpark();
    }
}

impl StoreHandle {
    /// Starts the thread. `next_seq` is the number of the first record that will be put; `on_event` is called on
    /// the thread.
    pub fn start(
        name: &str,
        store: Box<dyn Store>,
        next_seq: Seq,
        on_event: impl Fn(StoreEvent) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (commands, queue) = mpsc::channel();
        let idle = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            store,
            next_seq,
            queue,
            idle: Arc::clone(&idle),
            removals: Vec::new(),
            due: None,
            sync_due: None,
            failure: None,
            untidy: true,
            on_event,
        };
        let writer = thread::Builder::new().name(format!("{name}-store")).spawn(move || writer.run())?;
        Ok(Self(Arc::new(Line { commands: Some(commands), writer: writer.thread().clone(), idle })))
    }

    /// Puts a record. The future resolves when it is durable. Where it is dropped before, the record is removed
    /// again: nobody knows its number.
    pub fn put(&self, meta: Bytes, body: Vec<Bytes>) -> Put {
        let (reply, answer) = oneshot::channel();
        // where the thread has ended, `reply` is dropped, and the answer says so
        self.0.send(Command::Put { meta, body, reply });
        self.0.writer.unpark();
        Put(answer)
    }

    /// Removes a record, soon: a crash of the process within a millisecond may bring it back, one of the machine within
    /// ten. While there is no space even for that, it is kept in mind and done as soon as there is.
    pub fn remove(&self, seq: Seq) {
        self.0.send(Command::Remove(seq));
        fence(Ordering::SeqCst);
        if self.0.idle.load(Ordering::Relaxed) {
            self.0.writer.unpark();
        }
    }

    /// Removes a record. Resolves when that is durable; where it is refused, the record stays.
    ///
    /// # Errors
    /// Why the removal could not be written. After [`StoreError::Failed`] the next start may find the record or not.
    pub fn remove_durably(&self, seq: Seq) -> impl Future<Output = Result<(), StoreError>> + use<> {
        self.ask(move |reply| Command::RemoveDurably(seq, reply))
    }

    /// Resolves when everything handed over before is settled.
    ///
    /// # Errors
    /// Why removals handed over before are not durable. They are kept in mind, and done when they can be; what became
    /// of a put is told by itself.
    pub fn flush(&self) -> impl Future<Output = Result<(), StoreError>> + use<> {
        self.ask(Command::Flush)
    }

    fn ask<F>(&self, command: F) -> impl Future<Output = Result<(), StoreError>> + use<F>
    where
        F: FnOnce(Removed) -> Command,
    {
        let (reply, answer) = oneshot::channel();
        self.0.send(command(reply));
        self.0.writer.unpark();
        async move { answer.await.unwrap_or_else(|_| Err(thread_has_ended())) }
    }
}

fn thread_has_ended() -> StoreError {
    StoreError::Failed("its thread has ended".into())
}

/// A put on its way; see [`StoreHandle::put`].
#[derive(Debug)]
pub struct Put(oneshot::Receiver<PutOutcome>);

impl Future for Put {
    type Output = PutOutcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<PutOutcome> {
        let answer = ready!(Pin::new(&mut self.0).poll(cx));
        Poll::Ready(answer.unwrap_or_else(|_| Err(thread_has_ended())))
    }
}

struct Writer<F: Fn(StoreEvent)> {
    store: Box<dyn Store>,
    next_seq: Seq,
    queue: Receiver<Command>,
    /// See [`Line`].
    idle: Arc<AtomicBool>,
    /// Removals that no commit has taken yet.
    removals: Vec<Seq>,
    /// When it commits at the latest, whatever has come: removals that wait, or another try on a full disk.
    due: Option<Instant>,
    /// When removals that are written are synced at the latest.
    sync_due: Option<Instant>,
    failure: Option<StoreError>,
    /// The store may have space to give back.
    untidy: bool,
    on_event: F,
}

impl<F: Fn(StoreEvent)> Drop for Writer<F> {
    fn drop(&mut self) {
        if thread::panicking() {
            // a bug: as after a disk that fails, nobody knows what is on it
            (self.on_event)(StoreEvent::Status(Some(StoreError::Failed("its thread has panicked".into()))));
        }
    }
}

/// What is committed together.
#[derive(Default)]
struct Group {
    puts: Vec<Change>,
    replies: Vec<(Seq, Reply)>,
    /// Removals that somebody waits for.
    removals: Vec<(Seq, Removed)>,
    flushes: Vec<Removed>,
    commands: usize,
    bytes: usize,
}

impl<F: Fn(StoreEvent)> Writer<F> {
    fn run(mut self) {
        if let Err(error) = self.store.check_space() {
            self.failed(&error);
            self.due = Some(Instant::now() + PROBE_INTERVAL);
        }
        let mut open = true;
        while open {
            let mut group = Group::default();
            open = self.gather(&mut group);
            let is_due = |due: Option<Instant>| due.is_some_and(|due| due <= Instant::now());
            let asked = !group.puts.is_empty() || !group.removals.is_empty() || !group.flushes.is_empty();
            let now = !open || is_due(self.sync_due) || asked;
            if now || is_due(self.due) {
                self.idle.store(false, Ordering::Relaxed);
                // a full disk is tried once a second: a sync of its own would be another try
                let durable = if now || self.failure.is_some() { Durable::Now } else { Durable::Later };
                let steps = 1 + group.bytes / TIDIED_TOGETHER;
                self.commit_group(group, durable);
                (0..steps).for_each(|_| self.tidy());
            } else if self.untidy {
                self.tidy();
            } else if let Some(due) = self.due.into_iter().chain(self.sync_due).min() {
                self.idle.store(false, Ordering::Relaxed);
                thread::park_timeout(due.saturating_duration_since(Instant::now()));
            } else if self.idle.load(Ordering::Relaxed) {
                thread::park();
            } else {
                // whoever has not seen this yet has left a removal, or is seen now
                self.idle.store(true, Ordering::Relaxed);
                fence(Ordering::SeqCst);
            }
        }
    }

    /// Takes what waits, as far as there is room. Says whether there may ever be more.
    fn gather(&mut self, group: &mut Group) -> bool {
        while group.bytes < MAX_GROUP_BYTES && group.commands < MAX_GROUP_CHANGES {
            match self.queue.try_recv() {
                Ok(Command::Put { meta, body, reply }) => {
                    let bytes = body.iter().map(Bytes::len).sum::<usize>();
                    let put = Change::Put { seq: self.next_seq, meta, body };
                    match put.check() {
                        Ok(()) => {
                            group.bytes += bytes;
                            group.puts.push(put);
                            group.replies.push((self.next_seq, reply));
                            self.next_seq += 1;
                        }
                        // not those that would be committed with it
                        Err(error) => drop(reply.send(Err(error))),
                    }
                }
                Ok(Command::Remove(seq)) => {
                    self.removals.push(seq);
                    let soon = Instant::now() + REMOVAL_DELAY;
                    self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
                }
                Ok(Command::RemoveDurably(seq, reply)) => group.removals.push((seq, reply)),
                Ok(Command::Flush(reply)) => group.flushes.push(reply),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
            group.commands += 1;
        }
        true
    }

    /// Commits a group and the removals that wait. While the disk is full and nobody puts anything, it finds out
    /// whether there is room again.
    fn commit_group(&mut self, group: Group, durable: Durable) {
        let Group { mut puts, replies, removals: asked, flushes, .. } = group;
        // removals go first: they are small and make room
        let all = self.removals.iter().chain(asked.iter().map(|(seq, _)| seq));
        let mut changes: Vec<Change> = all.copied().map(Change::Remove).collect();
        let removals = changes.len();
        let probe = puts.is_empty() && self.failure.is_some();
        changes.append(&mut puts);
        let removed = self.commit_and_reply(changes, durable, removals, replies);
        if probe {
            // what comes of it is told by the status
            let _ = self.commit(&[Change::Remove(NO_RECORD)], Durable::Now);
        }
        self.due = match &self.failure {
            Some(_) => Some(Instant::now() + PROBE_INTERVAL),
            None if self.removals.is_empty() => None,
            None => Some(Instant::now() + REMOVAL_DELAY),
        };
        for reply in asked.into_iter().map(|(_, reply)| reply).chain(flushes) {
            // the asker may have gone
            let _ = reply.send(removed.clone());
        }
    }

    /// Commits all changes together; where there is no space for that, the removals at their head alone, and where there
    /// is none for these, what was written before. Says whether the removals are durable.
    fn commit_and_reply(
        &mut self,
        mut changes: Vec<Change>,
        durable: Durable,
        removals: usize,
        replies: Vec<(Seq, Reply)>,
    ) -> Result<(), StoreError> {
        let error = match self.commit(&changes, durable) {
            Ok(bodies) => {
                // before anybody hears of it: the memory is free by then
                drop(changes);
                self.removals.clear();
                for ((seq, reply), body) in replies.into_iter().zip(bodies) {
                    if reply.send(Ok((seq, body))).is_err() {
                        // nobody knows of the record, so nobody else would ever remove it
                        self.removals.push(seq);
                    }
                }
                return Ok(());
            }
            Err(error) => error,
        };
        let alone = removals == changes.len();
        changes.truncate(removals);
        for (_, reply) in replies {
            let _ = reply.send(Err(error.clone()));
        }
        if error.is_final() {
            return Err(error);
        }
        if alone {
            let _ = self.commit(&[], durable);
            return Err(error);
        }
        self.commit(&changes, durable)?;
        self.removals.clear();
        Ok(())
    }

    fn commit(&mut self, changes: &[Change], durable: Durable) -> Result<Vec<Payload>, StoreError> {
        let committed = self.store.commit(changes, durable);
        self.untidy |= !changes.is_empty();
        self.sync_due = match durable {
            Durable::Now => None,
            Durable::Later if committed.is_ok() => self.sync_due.or_else(|| Some(Instant::now() + SYNC_DELAY)),
            Durable::Later => self.sync_due,
        };
        match committed {
            Ok(bodies) => {
                // that there is room for removals alone says nothing
                let took = changes.iter().any(|change| !matches!(change, Change::Remove(seq) if *seq != NO_RECORD));
                if took && self.failure.take().is_some() {
                    (self.on_event)(StoreEvent::Status(None));
                }
                Ok(bodies)
            }
            Err(error) => {
                self.failed(&error);
                Err(error)
            }
        }
    }

    fn failed(&mut self, error: &StoreError) {
        let kind = std::mem::discriminant(error);
        if self.failure.as_ref().is_none_or(|known| std::mem::discriminant(known) != kind) {
            (self.on_event)(StoreEvent::Status(Some(error.clone())));
        }
        self.failure = Some(error.clone());
    }

    /// Lets the store give some space back.
    fn tidy(&mut self) {
        if !self.untidy {
            return;
        }
        match self.store.tidy() {
            Ok(Tidied { moved, more }) => {
                self.untidy = more;
                if !moved.is_empty() {
                    (self.on_event)(StoreEvent::Moved(moved));
                }
            }
            Err(error) => {
                self.untidy = false;
                log::warn!("cannot give disk space back: {error}");
                if error.is_final() {
                    self.failed(&error);
                }
            }
        }
    }
}
