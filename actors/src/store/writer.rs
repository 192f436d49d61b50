//! The thread that owns a store: it gathers the changes that wait and commits them together, so that many requests
//! share one `fdatasync`.

use std::pin::Pin;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::payload::Payload;
use crate::store::puts::PutOutcome;
use crate::store::{Change, NO_RECORD, Seq, Store, StoreError};

/// How many bytes of bodies one commit takes at the most before it is closed: past a few MiB the disk's throughput
/// decides and a larger group only makes its first member wait longer.
const MAX_GROUP_BYTES: usize = 8 << 20;

/// How many changes one commit takes at the most. At 64 a commit the sync already costs less than the writing
/// (245,000 records of 300 B a second against 9,100 with one a commit); past a thousand nothing is gained.
const MAX_GROUP_CHANGES: usize = 1_024;

/// How often a full store is tried again while nobody asks it for anything.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// What the owner of a store is told besides the answers to its calls.
#[derive(Debug)]
pub enum StoreEvent {
    /// Bodies have moved; see [`Committed::moved`](crate::store::Committed::moved).
    Moved(Vec<(Seq, Payload)>),
    /// The outcome of commits has changed: `None` when they succeed again.
    Status(Option<StoreError>),
}

type Reply = oneshot::Sender<PutOutcome>;

enum Command {
    Put { meta: Bytes, body: Vec<Bytes>, reply: Reply },
    Remove(Seq),
    Flush(oneshot::Sender<()>),
}

/// Hands changes to the store's thread. The thread ends when the last handle is dropped and everything that was
/// handed over before is committed.
#[derive(Clone, Debug)]
pub struct StoreHandle {
    commands: Sender<Command>,
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
        let writer = Writer { store, next_seq, removals: Vec::new(), failure: None, on_event };
        thread::Builder::new().name(format!("{name}-store")).spawn(move || writer.run(&queue))?;
        Ok(Self { commands })
    }

    /// Puts a record. The future resolves when it is durable. Where it is dropped before, the record is removed
    /// again: nobody knows its number.
    pub fn put(&self, meta: Bytes, body: Vec<Bytes>) -> Put {
        let (reply, answer) = oneshot::channel();
        // where the thread has ended, `reply` is dropped, and the answer says so
        let _ = self.commands.send(Command::Put { meta, body, reply });
        Put(answer)
    }

    /// Removes a record, soon: a crash may bring it back. While there is no space even for that, it is kept in
    /// mind and done as soon as there is.
    pub fn remove(&self, seq: Seq) {
        // without its thread the store has failed, and has said so
        let _ = self.commands.send(Command::Remove(seq));
    }

    /// Resolves when everything handed over before is settled.
    pub fn flush(&self) -> impl Future<Output = ()> + use<> {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Flush(reply));
        async move {
            let _ = answer.await;
        }
    }
}

/// A put on its way; see [`StoreHandle::put`].
#[derive(Debug)]
pub struct Put(oneshot::Receiver<PutOutcome>);

impl Future for Put {
    type Output = PutOutcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<PutOutcome> {
        let answer = ready!(Pin::new(&mut self.0).poll(cx));
        Poll::Ready(answer.unwrap_or_else(|_| Err(StoreError::Failed("its thread has ended".into()))))
    }
}

struct Writer<F> {
    store: Box<dyn Store>,
    next_seq: Seq,
    /// Removals that no commit has taken yet.
    removals: Vec<Seq>,
    failure: Option<StoreError>,
    on_event: F,
}

impl<F: Fn(StoreEvent)> Writer<F> {
    fn run(mut self, queue: &Receiver<Command>) {
        loop {
            let first = if self.failure.is_some() {
                match queue.recv_timeout(PROBE_INTERVAL) {
                    Ok(command) => Some(command),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            } else {
                match queue.recv() {
                    Ok(command) => Some(command),
                    Err(_) => return,
                }
            };
            self.commit_group(first, queue);
        }
    }

    /// Commits `first` and whatever waits behind it. While the disk is full and nobody puts anything, it finds out
    /// whether there is room again.
    fn commit_group(&mut self, first: Option<Command>, queue: &Receiver<Command>) {
        let mut puts = Vec::new();
        let mut replies = Vec::new();
        let mut flushes = Vec::new();
        let mut bytes = 0;
        let mut next = first;
        while let Some(command) = next {
            match command {
                Command::Put { meta, body, reply } => {
                    bytes += body.iter().map(Bytes::len).sum::<usize>();
                    puts.push(Change::Put { seq: self.next_seq, meta, body });
                    replies.push((self.next_seq, reply));
                    self.next_seq += 1;
                }
                Command::Remove(seq) => self.removals.push(seq),
                Command::Flush(reply) => flushes.push(reply),
            }
            let full = bytes >= MAX_GROUP_BYTES || puts.len() + self.removals.len() >= MAX_GROUP_CHANGES;
            next = if full { None } else { queue.try_recv().ok() };
        }
        // removals go first: they are small and make room
        let mut changes: Vec<Change> = self.removals.iter().copied().map(Change::Remove).collect();
        let removals = changes.len();
        let probe = puts.is_empty() && self.failure.is_some();
        changes.append(&mut puts);
        if !changes.is_empty() {
            self.commit_and_reply(&changes, removals, replies);
        }
        if probe {
            // what comes of it is told by the status
            let _ = self.commit(&[Change::Remove(NO_RECORD)]);
        }
        for flush in flushes {
            // the asker may have gone
            let _ = flush.send(());
        }
    }

    /// Commits all changes together; where there is no space for that, the removals at their head alone.
    fn commit_and_reply(&mut self, changes: &[Change], removals: usize, replies: Vec<(Seq, Reply)>) {
        match self.commit(changes) {
            Ok(bodies) => {
                self.removals.clear();
                for ((seq, reply), body) in replies.into_iter().zip(bodies) {
                    if reply.send(Ok((seq, body))).is_err() {
                        // nobody knows of the record, so nobody else would ever remove it
                        self.removals.push(seq);
                    }
                }
            }
            Err(error) => {
                let alone = 0 < removals && removals < changes.len() && !error.is_final();
                if alone && self.commit(&changes[..removals]).is_ok() {
                    self.removals.clear();
                }
                for (_, reply) in replies {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
    }

    fn commit(&mut self, changes: &[Change]) -> Result<Vec<Payload>, StoreError> {
        match self.store.commit(changes) {
            Ok(committed) => {
                // that there is room for removals alone says nothing
                let took = changes.iter().any(|change| !matches!(change, Change::Remove(seq) if *seq != NO_RECORD));
                if took && self.failure.take().is_some() {
                    (self.on_event)(StoreEvent::Status(None));
                }
                if !committed.moved.is_empty() {
                    (self.on_event)(StoreEvent::Moved(committed.moved));
                }
                Ok(committed.bodies)
            }
            Err(error) => {
                if self.failure.is_none() {
                    (self.on_event)(StoreEvent::Status(Some(error.clone())));
                }
                self.failure = Some(error.clone());
                Err(error)
            }
        }
    }
}
