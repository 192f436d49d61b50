//! The thread of a store: what it commits together, and when.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use user_http_actors::payload::Payload;
use user_http_actors::store::log::LogStore;
use user_http_actors::store::memory::MemoryStore;
use user_http_actors::store::{
    Change, Compacted, Durable, MAX_META, OpenError, Put, Seq, Store, StoreError, StoreEvent, StoreHandle,
};

use crate::support::owner::Owner;

const DEADLINE: Duration = Duration::from_secs(20);

/// What a commit makes, and when it is durable.
type Seen = (Vec<Change>, Durable);

/// Tells of each commit, and makes it once it may; one that makes nothing, at once.
struct WatchedStore {
    commits: Sender<Seen>,
    permits: Receiver<()>,
}

impl Store for WatchedStore {
    fn commit(&mut self, changes: &[Change], durable: Durable) -> Result<Vec<Payload>, StoreError> {
        let _ = self.commits.send((changes.to_vec(), durable));
        if !changes.is_empty() {
            // a test that has ended lets everything pass
            let _ = self.permits.recv();
        }
        MemoryStore.commit(changes, durable)
    }
}

/// The next commit that makes something.
fn next(commits: &Receiver<Seen>) -> Seen {
    let mut all = std::iter::repeat_with(|| commits.recv_timeout(DEADLINE).expect("a commit"));
    all.find(|(changes, _)| !changes.is_empty()).expect("there is no end")
}

/// A store, its commits, and the permits for them.
fn start() -> (Owner, Receiver<Seen>, Sender<()>) {
    let (commits, seen) = channel();
    let (permit, permits) = channel();
    (Owner::start(WatchedStore { commits, permits }, 1), seen, permit)
}

fn removed(changes: &[Change]) -> Vec<Seq> {
    changes.iter().map(|change| if let Change::Remove(seq) = change { *seq } else { panic!("{change:?}") }).collect()
}

fn body() -> Payload {
    Payload::from_parts(vec![Bytes::from_static(b"body")])
}

#[test]
fn puts_that_come_while_a_commit_is_made_are_committed_together() {
    let (mut store, commits, permit) = start();
    let put = |store: &Owner| store.handle.put(Bytes::new(), body());
    let first = put(&store);
    assert_eq!(next(&commits).0.len(), 1);
    let later: Vec<_> = (0..9).map(|_| put(&store)).collect();
    permit.send(()).expect("the thread");
    let (together, durable) = next(&commits);
    assert_eq!((together.len(), durable), (9, Durable::Now));
    permit.send(()).expect("the thread");
    let puts = [first].into_iter().chain(later);
    let numbers: Vec<Seq> = puts.map(|seq| store.outcome(seq).expect("space").0).collect();
    assert_eq!(numbers, (1..=10).collect::<Vec<_>>());
}

#[test]
fn a_removal_is_committed_soon_by_a_thread_with_nothing_else_to_do() {
    let (store, commits, permit) = start();
    for seq in 1..=50 {
        // long enough for the thread to fall asleep, most times
        thread::sleep(Duration::from_millis(2));
        permit.send(()).expect("the thread");
        store.handle.remove(seq);
        assert_eq!(removed(&next(&commits).0), [seq]);
    }
}

#[test]
fn a_removal_is_written_first_and_synced_a_little_later() {
    let (store, commits, permit) = start();
    for seq in 1..=5 {
        permit.send(()).expect("the thread");
        store.handle.remove(seq);
        let (changes, durable) = next(&commits);
        assert_eq!((removed(&changes), durable), (vec![seq], Durable::Later));
        let (changes, durable) = commits.recv_timeout(DEADLINE).expect("a commit");
        assert_eq!((changes.len(), durable), (0, Durable::Now));
    }
}

#[test]
fn removals_wait_for_the_commit_of_a_put_and_follow_it() {
    let (mut store, commits, permit) = start();
    let put = store.handle.put(Bytes::new(), Payload::empty());
    assert_eq!(next(&commits).0.len(), 1);
    store.handle.remove(1);
    store.handle.remove(2);
    let later = store.handle.put(Bytes::new(), Payload::empty());
    permit.send(()).expect("the thread");
    permit.send(()).expect("the thread");
    let (together, durable) = next(&commits);
    assert_eq!(durable, Durable::Now);
    assert!(matches!(together[..1], [Change::Put(Put { seq: 2, .. })]), "{together:?}");
    assert_eq!(removed(&together[1..]), [1, 2]);
    for seq in [put, later] {
        store.outcome(seq).expect("space");
    }
}

#[test]
fn the_thread_ends_with_the_last_handle_and_commits_what_it_was_given() {
    let (store, commits, permit) = start();
    let clone = store.handle.clone();
    drop(store);
    clone.remove(7);
    drop(clone);
    permit.send(()).expect("the thread");
    let (changes, durable) = next(&commits);
    assert_eq!((removed(&changes), durable), (vec![7], Durable::Now));
    assert!(
        commits.recv_timeout(DEADLINE).is_err_and(|error| error == std::sync::mpsc::RecvTimeoutError::Disconnected)
    );
}

/// A store that refuses or panics on command.
struct OddStore {
    refuses: Arc<AtomicBool>,
    panics: Arc<AtomicBool>,
}

impl Store for OddStore {
    fn commit(&mut self, changes: &[Change], durable: Durable) -> Result<Vec<Payload>, StoreError> {
        assert!(!self.panics.load(Ordering::SeqCst), "a bug in the store");
        if self.refuses.load(Ordering::SeqCst) {
            return Err(StoreError::NoSpace("full".into()));
        }
        MemoryStore.commit(changes, durable)
    }
}

/// Such a store with its owner, and its switches.
fn odd() -> (Owner, Arc<AtomicBool>, Arc<AtomicBool>) {
    let (refuses, panics) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
    let store = OddStore { refuses: Arc::clone(&refuses), panics: Arc::clone(&panics) };
    (Owner::start(store, 1), refuses, panics)
}

#[test]
fn a_panic_of_the_thread_is_reported_as_a_final_failure() {
    let (mut store, refuses, panics) = odd();
    refuses.store(true, Ordering::SeqCst);
    store.put(Bytes::new(), Vec::new()).expect_err("full");
    let full = store.next_failure(DEADLINE).expect("it is reported").expect("full");
    assert!(!full.is_final(), "{full}");
    panics.store(true, Ordering::SeqCst);
    let refused = store.put(Bytes::new(), Vec::new()).expect_err("nobody is there");
    assert!(refused.is_final(), "{refused}");
    let failed = store.next_failure(DEADLINE).expect("it is reported").expect("failed");
    assert!(failed.is_final(), "{failed}");
    assert!(store.flush().is_err_and(|error| error.is_final()));
    assert!(store.remove_durably(1).is_err_and(|error| error.is_final()));
}

#[test]
fn a_removal_that_is_not_durable_is_reported_to_who_waits_for_it() {
    let (mut store, refuses, _) = odd();
    store.put(Bytes::new(), Vec::new()).expect("accepted");
    refuses.store(true, Ordering::SeqCst);
    let refused = store.remove_durably(1).expect_err("full");
    assert!(matches!(refused, StoreError::NoSpace(_)), "{refused}");
    store.handle.remove(1);
    let refused = store.flush().expect_err("full");
    assert!(matches!(refused, StoreError::NoSpace(_)), "{refused}");
    refuses.store(false, Ordering::SeqCst);
    store.flush().expect("what was kept in mind is done");
    store.remove_durably(1).expect("accepted");
}

#[test]
fn a_removal_that_was_refused_is_not_made_later() {
    let (commits, seen) = channel();
    struct Seeing(OddStore, Sender<Vec<Change>>);
    impl Store for Seeing {
        fn commit(&mut self, changes: &[Change], durable: Durable) -> Result<Vec<Payload>, StoreError> {
            let committed = self.0.commit(changes, durable)?;
            let _ = self.1.send(changes.to_vec());
            Ok(committed)
        }
    }
    let refuses = Arc::new(AtomicBool::new(true));
    let store = OddStore { refuses: Arc::clone(&refuses), panics: Arc::default() };
    let mut store = Owner::start(Seeing(store, commits), 1);
    store.remove_durably(7).expect_err("full");
    refuses.store(false, Ordering::SeqCst);
    store.remove_durably(8).expect("accepted");
    let made = seen.try_iter().flatten().filter(|change| matches!(change, Change::Remove(7)));
    assert_eq!(made.count(), 0);
}

/// A store that refuses every second put and moves each record after the commit.
#[derive(Default)]
struct Moving(Vec<Seq>);

impl Store for Moving {
    fn commit(&mut self, changes: &[Change], durable: Durable) -> Result<Vec<Payload>, StoreError> {
        let puts: Vec<Seq> = changes.iter().filter_map(|change| Some(put_in(change)?.seq)).collect();
        if puts.iter().any(|seq| seq % 2 == 0) {
            return Err(StoreError::NoSpace("full".into()));
        }
        self.0.extend(puts);
        MemoryStore.commit(changes, durable)
    }

    fn compact(&mut self) -> Result<Compacted, StoreError> {
        let moved = self.0.drain(..).map(|seq| (seq, Payload::from_parts(vec![Bytes::from_static(b"moved")])));
        Ok(Compacted { moved: moved.collect(), more: false })
    }
}

fn put_in(change: &Change) -> Option<&Put> {
    if let Change::Put(put) = change { Some(put) } else { None }
}

#[test]
fn the_owner_gets_one_event_for_each_commit_and_each_move_in_the_order_in_which_they_happened() {
    let (sender, events) = channel();
    let on_event = move |event| drop(sender.send(event));
    let store = StoreHandle::start("test", Box::new(Moving::default()), 1, on_event).expect("a thread");
    let next = || events.recv_timeout(DEADLINE).expect("an event");
    for first in [1, 3, 5] {
        let stored = store.put(Bytes::new(), body());
        assert_eq!(stored, first, "its number is known before it is stored");
        let StoreEvent { stored, moved, failure, .. } = next();
        assert!(matches!(&stored[..], [(seq, Ok(_))] if *seq == first) && moved.is_empty() && failure.is_none());
        let StoreEvent { stored, moved, .. } = next();
        assert!(stored.is_empty() && matches!(&moved[..], [(seq, _)] if *seq == first));
        let refused = store.put(Bytes::new(), Payload::empty());
        let StoreEvent { stored, failure, .. } = next();
        assert!(matches!(&stored[..], [(seq, Err(_))] if *seq == refused), "{stored:?}");
        assert!(failure.is_some_and(|error| !error.is_final()), "the state comes with it");
        // the next commit that succeeds says that the store accepts puts again
    }
    store.remove_durably(1);
    let StoreEvent { removed, failure, .. } = next();
    assert!(matches!(removed[..], [(1, Ok(()))]), "{removed:?}");
    let flush = store.flush();
    // the disk is probed meanwhile
    let flushed = std::iter::repeat_with(next).find(|event| !event.flushed.is_empty()).expect("it never ends").flushed;
    assert!(matches!(flushed[..], [(seq, Ok(()))] if seq == flush), "{flushed:?}; {failure:?}");
}

#[test]
fn a_record_that_recovery_would_not_read_is_refused_and_those_beside_it_are_kept() {
    let directory = tempfile::tempdir().expect("a directory");
    let (store, _) = LogStore::open(directory.path()).expect("the store opens");
    let mut owner = Owner::start(store, 1);
    let put = |meta: usize| owner.handle.put(Bytes::from(vec![b'm'; meta]), body());
    let puts = [put(MAX_META), put(MAX_META + 1), put(70_000), put(5)];
    let outcomes = puts.map(|seq| owner.outcome(seq));
    assert!(outcomes[0].is_ok() && outcomes[3].is_ok(), "{outcomes:?}");
    for (outcome, len) in [(&outcomes[1], MAX_META + 1), (&outcomes[2], 70_000)] {
        let error = outcome.as_ref().expect_err("too large");
        assert!(matches!(error, StoreError::TooLarge { size, .. } if *size == len as u64), "{error}");
        assert!(!error.is_final());
    }
    owner.flush().expect("nothing waits");
    drop(owner);
    let found = loop {
        match LogStore::open(directory.path()) {
            Ok((_, found)) => break found,
            Err(OpenError::InUse(_)) => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(found.len(), 2);
}

#[test]
fn two_records_that_belong_together_are_in_one_commit_in_their_order_or_in_none() {
    let (mut store, commits, permit) = start();
    let record = |store: &Owner, meta: usize| {
        let seq = store.handle.take_seq();
        Put { seq, meta: Bytes::from(vec![b'm'; meta]), body: body() }
    };
    // the others of this commit are not refused with them
    store.handle.put(Bytes::new(), body());
    next(&commits);
    let (first, too_long) = (record(&store, 1), record(&store, MAX_META + 1));
    let refused = [first.seq, too_long.seq];
    store.handle.put_both(first, too_long);
    let (second, first) = (record(&store, 1), record(&store, 1));
    let numbers = [first.seq, second.seq];
    store.handle.put_both(first, second);
    permit.send(()).expect("the thread");
    let (together, _) = next(&commits);
    permit.send(()).expect("the thread");
    let puts = together.iter().map(|change| if let Change::Put(put) = change { put.seq } else { panic!("{change:?}") });
    assert_eq!(puts.collect::<Vec<_>>(), numbers);
    for seq in refused {
        assert!(matches!(store.outcome(seq), Err(StoreError::TooLarge { .. })), "{seq}");
    }
    for seq in numbers {
        assert!(store.outcome(seq).is_ok(), "{seq}");
    }
}

#[test]
fn a_commit_that_the_disk_does_not_answer_shows_as_busy_until_it_does() {
    let (mut store, commits, permit) = start();
    let seq = store.handle.put(Bytes::new(), body());
    next(&commits);
    let busy = || store.handle.busy_for().expect("the disk has not answered");
    let before = busy();
    while busy() <= before {
        thread::yield_now();
    }
    permit.send(()).expect("the thread");
    store.outcome(seq).expect("space");
    while store.handle.busy_for().is_some() {
        thread::yield_now();
    }
}
