//! The thread of a store: what it commits together, and when.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use futures::executor::block_on;
use user_http_actors::payload::Payload;
use user_http_actors::store::memory::MemoryStore;
use user_http_actors::store::{Change, Durable, Seq, Store, StoreError, StoreEvent, StoreHandle};

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
fn start() -> (StoreHandle, Receiver<Seen>, Sender<()>) {
    let (commits, seen) = channel();
    let (permit, permits) = channel();
    let store = Box::new(WatchedStore { commits, permits });
    (StoreHandle::start("test", store, 1, |_| {}).expect("a thread"), seen, permit)
}

fn removed(changes: &[Change]) -> Vec<Seq> {
    changes.iter().map(|change| if let Change::Remove(seq) = change { *seq } else { panic!("{change:?}") }).collect()
}

#[test]
fn puts_that_come_while_a_commit_is_made_are_committed_together() {
    let (store, commits, permit) = start();
    let put = || store.put(Bytes::new(), vec![Bytes::from_static(b"body")]);
    let first = put();
    assert_eq!(next(&commits).0.len(), 1);
    let later: Vec<_> = (0..9).map(|_| put()).collect();
    permit.send(()).expect("the thread");
    let (together, durable) = next(&commits);
    assert_eq!((together.len(), durable), (9, Durable::Now));
    permit.send(()).expect("the thread");
    let outcomes = futures::executor::block_on(futures::future::join_all([first].into_iter().chain(later)));
    let numbers: Vec<Seq> = outcomes.into_iter().map(|outcome| outcome.expect("room").0).collect();
    assert_eq!(numbers, (1..=10).collect::<Vec<_>>());
}

#[test]
fn a_removal_is_committed_soon_by_a_thread_with_nothing_else_to_do() {
    let (store, commits, permit) = start();
    for seq in 1..=50 {
        // long enough for the thread to fall asleep, most times
        thread::sleep(Duration::from_millis(2));
        permit.send(()).expect("the thread");
        store.remove(seq);
        assert_eq!(removed(&next(&commits).0), [seq]);
    }
}

#[test]
fn a_removal_is_written_first_and_synced_a_little_later() {
    let (store, commits, permit) = start();
    for seq in 1..=5 {
        permit.send(()).expect("the thread");
        store.remove(seq);
        let (changes, durable) = next(&commits);
        assert_eq!((removed(&changes), durable), (vec![seq], Durable::Later));
        let (changes, durable) = commits.recv_timeout(DEADLINE).expect("a commit");
        assert_eq!((changes.len(), durable), (0, Durable::Now));
    }
}

#[test]
fn removals_wait_for_the_commit_of_a_put_and_go_first() {
    let (store, commits, permit) = start();
    let put = store.put(Bytes::new(), Vec::new());
    assert_eq!(next(&commits).0.len(), 1);
    store.remove(1);
    store.remove(2);
    let later = store.put(Bytes::new(), Vec::new());
    permit.send(()).expect("the thread");
    permit.send(()).expect("the thread");
    let (together, durable) = next(&commits);
    assert_eq!(durable, Durable::Now);
    assert_eq!(removed(&together[..2]), [1, 2]);
    assert!(matches!(together[2..], [Change::Put { seq: 2, .. }]), "{together:?}");
    futures::executor::block_on(futures::future::join(put, later)).1.expect("room");
}

#[test]
fn the_thread_ends_with_the_last_handle_and_commits_what_it_was_given() {
    let (store, commits, permit) = start();
    let clone = store.clone();
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

/// A store that refuses, panics or moves as it is told.
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

/// Such a store, its switches and what its owner is told of its state.
fn odd() -> (StoreHandle, Arc<AtomicBool>, Arc<AtomicBool>, Receiver<Option<StoreError>>) {
    let (refuses, panics) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
    let (tell, told) = channel();
    let on_event = move |event| {
        if let StoreEvent::Status(status) = event {
            let _ = tell.send(status);
        }
    };
    let store = Box::new(OddStore { refuses: Arc::clone(&refuses), panics: Arc::clone(&panics) });
    (StoreHandle::start("test", store, 1, on_event).expect("a thread"), refuses, panics, told)
}

#[test]
fn a_panic_of_the_thread_is_told_as_a_failure_for_good() {
    let (store, refuses, panics, told) = odd();
    refuses.store(true, Ordering::SeqCst);
    block_on(store.put(Bytes::new(), Vec::new())).expect_err("full");
    let full = told.recv_timeout(DEADLINE).expect("it is told").expect("full");
    assert!(!full.is_final(), "{full}");
    panics.store(true, Ordering::SeqCst);
    let refused = block_on(store.put(Bytes::new(), Vec::new())).expect_err("nobody is there");
    assert!(refused.is_final(), "{refused}");
    let failed = told.recv_timeout(DEADLINE).expect("it is told").expect("failed");
    assert!(failed.is_final(), "{failed}");
    assert!(block_on(store.flush()).is_err_and(|error| error.is_final()));
    assert!(block_on(store.remove_durably(1)).is_err_and(|error| error.is_final()));
}

#[test]
fn a_removal_that_is_not_durable_is_told_to_who_waits_for_it() {
    let (store, refuses, ..) = odd();
    block_on(store.put(Bytes::new(), Vec::new())).expect("room");
    refuses.store(true, Ordering::SeqCst);
    let refused = block_on(store.remove_durably(1)).expect_err("full");
    assert!(matches!(refused, StoreError::NoSpace(_)), "{refused}");
    store.remove(1);
    let refused = block_on(store.flush()).expect_err("full");
    assert!(matches!(refused, StoreError::NoSpace(_)), "{refused}");
    refuses.store(false, Ordering::SeqCst);
    block_on(store.flush()).expect("what was kept in mind is done");
    block_on(store.remove_durably(1)).expect("room");
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
    let store = StoreHandle::start("test", Box::new(Seeing(store, commits)), 1, |_| {}).expect("a thread");
    block_on(store.remove_durably(7)).expect_err("full");
    refuses.store(false, Ordering::SeqCst);
    block_on(store.remove_durably(8)).expect("room");
    let made = seen.try_iter().flatten().filter(|change| matches!(change, Change::Remove(7)));
    assert_eq!(made.count(), 0);
}
