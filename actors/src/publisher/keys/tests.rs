//! The keys, with a clock that the test moves.

use super::*;
use crate::idempotency::RequestKey;
use crate::reply::{Deferred, deferred};
use crate::store::now_ms;

fn key(number: u64, body: u8) -> IdempotencyKey {
    IdempotencyKey::new(b"anna", RequestKey { key: &number.to_le_bytes(), body_sha256: [body; 32] })
}

fn in_paused_time(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(test);
}

fn empty(max: usize) -> Keys {
    Keys::with_max(Vec::new(), max).0
}

/// The first request with a key is accepted; its record has the number `record`. Returns the records that are dropped.
fn accept(keys: &mut Keys, key: &IdempotencyKey, record: Seq) -> Vec<Seq> {
    keys.begin(key, record, true, deferred().0);
    let (number, _) = keys.begin_recording(key.key, || record).expect("it is in progress");
    keys.remember(key.key, number)
}

/// Whether a key is remembered with this body; `None` if it is not remembered at all.
fn is_replayed(keys: &mut Keys, key: &IdempotencyKey) -> Option<bool> {
    let (reply, _deferred): (_, Deferred<_>) = deferred();
    let known = keys.remembered.get(&key.key).map(|remembered| remembered.body == key.body);
    assert_eq!(keys.answer_known(key, reply).is_none(), known.is_some());
    known
}

#[test]
fn a_key_is_remembered_for_an_hour_and_forgotten_soon_after() {
    in_paused_time(async {
        let mut keys = empty(10);
        accept(&mut keys, &key(1, 1), 11);
        tokio::time::advance(Duration::from_secs(600)).await;
        accept(&mut keys, &key(2, 1), 12);
        tokio::time::advance(Duration::from_secs(3_000)).await;
        let Forgotten { records, next } = keys.forget_old();
        assert!(records.is_empty() && next.is_some_and(|next| next <= Duration::from_secs(600)), "{next:?}");
        assert_eq!(is_replayed(&mut keys, &key(1, 1)), Some(true));
        assert_eq!(is_replayed(&mut keys, &key(1, 2)), Some(false), "another body");
        tokio::time::advance(next.expect("a time")).await;
        let Forgotten { records, next } = keys.forget_old();
        assert_eq!((records, is_replayed(&mut keys, &key(1, 1))), (vec![11], None));
        assert_eq!(is_replayed(&mut keys, &key(2, 1)), Some(true));
        tokio::time::advance(next.expect("a time")).await;
        assert_eq!(keys.forget_old(), Forgotten { records: vec![12], next: None });
        assert_eq!(keys.len(), 0);
    });
}

#[test]
fn beyond_the_limit_the_oldest_key_is_dropped_for_each_new_one() {
    in_paused_time(async {
        let mut keys = empty(3);
        for number in 1..=3 {
            assert!(accept(&mut keys, &key(number, 1), number).is_empty());
        }
        for number in 4..=9 {
            assert_eq!(accept(&mut keys, &key(number, 1), number), [number - 3]);
            assert_eq!(keys.len(), 3);
            assert_eq!(is_replayed(&mut keys, &key(number - 3, 1)), None);
            assert_eq!(is_replayed(&mut keys, &key(number - 2, 1)), Some(true));
        }
    });
}

#[test]
fn many_old_keys_are_forgotten_in_slices() {
    in_paused_time(async {
        let mut keys = empty(100_000);
        (0..2_500).for_each(|number| drop(accept(&mut keys, &key(number, 1), number)));
        tokio::time::advance(REMEMBERED).await;
        let slices: Vec<_> = std::iter::from_fn(|| Some(keys.forget_old()))
            .map(|forgotten| (forgotten.records.len(), forgotten.next))
            .take(3)
            .collect();
        assert_eq!(slices, [(1_000, Some(NEXT_SLICE)), (1_000, Some(NEXT_SLICE)), (500, None)]);
    });
}

#[test]
fn after_a_restart_a_key_is_as_old_as_it_was() {
    in_paused_time(async {
        let (now, boot) = (now_ms(), AgeClock::start().boot_time());
        let record = |number: u64, since_ms, boot| {
            let IdempotencyKey { key, body, .. } = key(number, 1);
            (number, KeyRecord::new(key, body, since_ms, boot))
        };
        let minutes = |count: u64| now - count * 60_000;
        // the second one twice, as a kill may leave it
        let records = vec![
            record(1, minutes(80), None),
            record(2, minutes(70), None),
            record(3, minutes(59), None),
            // of this boot: the wall clock does not matter
            record(4, minutes(500), boot),
        ];
        let again = (5, KeyRecord::new(key(2, 1).key, key(2, 1).body, minutes(1), None));
        let (mut keys, useless) = Keys::with_max(records.into_iter().chain([again]).collect(), 10);
        assert_eq!((useless, keys.len()), (vec![2], 4));
        let Forgotten { records, next } = keys.forget_old();
        assert_eq!(records, [1]);
        assert!(next.is_some());
        assert_eq!(is_replayed(&mut keys, &key(2, 1)), Some(true), "it counts from its later record");
        assert_eq!(is_replayed(&mut keys, &key(3, 1)), Some(true));
        assert_eq!(is_replayed(&mut keys, &key(4, 1)), Some(true));
    });
}

#[test]
fn whoever_waits_for_a_request_in_progress_gets_its_outcome() {
    in_paused_time(async {
        for fails in [false, true] {
            let mut keys = empty(10);
            let first = key(1, 1);
            keys.begin(&first, 7, true, deferred().0);
            assert!(keys.answer_known(&first, deferred().0).is_none(), "it waits");
            assert!(keys.answer_known(&key(1, 2), deferred().0).is_none(), "another body is refused");
            let (record, _) = keys.begin_recording(first.key, || 5).expect("not yet");
            assert!(keys.begin_recording(first.key, || 6).is_none(), "it is being written");
            assert_eq!((keys.recorded(record), keys.recording().collect::<Vec<_>>()), (Some(first.key), vec![5]));
            if fails {
                assert_eq!(keys.fail(first.key, &Error::Stopping), Some(record));
                assert_eq!(is_replayed(&mut keys, &first), None, "a failure is not remembered");
            } else {
                keys.remember(first.key, record);
                assert_eq!(is_replayed(&mut keys, &first), Some(true));
            }
            assert_eq!((keys.recorded(record), keys.recording().count(), keys.in_progress.len()), (None, 0, 0));
        }
    });
}
