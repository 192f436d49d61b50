//! Requests with idempotency keys: each message once, in any order of arrivals, answers, kills and disk errors.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use user_http_actors::broker::{Outcome, PublisherEvent};
use user_http_actors::messages::{CountUserMessage, PublishParkedMessage, UnforwardedMessage};
use user_http_actors::publisher::FrameAck;
use user_http_actors::store::StoreError;
use user_http_actors::{Accepted, Error, IdempotencyKey, RequestKey};

use crate::confirm_through::harness::{Disk, Gateway, in_paused_time};

fn key(key: u8, body: u8) -> IdempotencyKey {
    IdempotencyKey::new(b"worker", RequestKey { key: &[key], body_sha256: [body; 32] })
}

fn is_first(answer: &Option<Result<Accepted, Error>>) -> bool {
    matches!(answer, Some(Ok(Accepted::First { .. })))
}

fn is_replay(answer: &Option<Result<Accepted, Error>>) -> bool {
    matches!(answer, Some(Ok(Accepted::Replayed { .. })))
}

fn is_reused(answer: &Option<Result<Accepted, Error>>) -> bool {
    matches!(answer, Some(Err(Error::KeyReused)))
}

#[test]
fn a_retry_gets_the_first_answer_and_its_message_is_not_published_even_after_a_kill() {
    in_paused_time(async {
        let mut gateway = Gateway::connected(FrameAck::Stored).await;
        let first = gateway.post_with(Some(key(1, 1)));
        let waiting = gateway.post_with(Some(key(1, 1)));
        let other = gateway.post_with(Some(key(1, 2)));
        gateway.settle().await;
        assert_eq!(gateway.outstanding(), [first]);
        assert!(gateway.accepted(first).is_none() && gateway.accepted(waiting).is_none());
        assert!(is_reused(&gateway.accepted(other)));
        gateway.outcome(first, Outcome::Confirmed);
        gateway.settle().await;
        let Some(Ok(Accepted::First { at_ms })) = gateway.accepted(first) else { panic!("it is the first one") };
        let replayed = Accepted::Replayed { at_ms };
        assert!(matches!(gateway.accepted(waiting), Some(Ok(answer)) if answer == replayed));
        assert_eq!(gateway.disk.puts(), 0, "only the key is written");
        for _ in 0..2 {
            let (retry, other) = (gateway.post_with(Some(key(1, 1))), gateway.post_with(Some(key(1, 2))));
            gateway.settle().await;
            assert!(matches!(gateway.accepted(retry), Some(Ok(answer)) if answer == replayed));
            assert!(is_reused(&gateway.accepted(other)));
            assert!(gateway.outstanding().is_empty());
            gateway.kill_and_start_again();
            gateway.connect().await;
        }
        assert_eq!(gateway.state().await.idempotency_keys, 1);
        assert_eq!(*gateway.ids(), [(first, key(1, 1).message_id())].into());
        gateway.advance(Duration::from_secs(3_600)).await;
        let within_an_hour = gateway.post_with(Some(key(1, 1)));
        gateway.settle().await;
        assert!(is_replay(&gateway.accepted(within_an_hour)));
        gateway.advance(Duration::from_secs(600)).await;
        assert_eq!(gateway.state().await.idempotency_keys, 0);
        let later = gateway.post_with(Some(key(1, 2)));
        gateway.settle().await;
        assert_eq!(gateway.outstanding(), [later]);
    });
}

#[test]
fn a_kill_between_publication_and_answer_leads_to_a_repeat_with_the_same_message_id() {
    in_paused_time(async {
        let mut gateway = Gateway::connected(FrameAck::Stored).await;
        let first = gateway.post_with(Some(key(1, 1)));
        gateway.settle().await;
        gateway.disk.set(Disk::Hangs);
        gateway.outcome(first, Outcome::Confirmed);
        gateway.settle().await;
        assert!(gateway.accepted(first).is_none(), "a 200 is given when the key is durable");
        gateway.kill_and_start_again();
        gateway.connect().await;
        let retry = gateway.post_with(Some(key(1, 1)));
        gateway.settle().await;
        gateway.outcome(retry, Outcome::Confirmed);
        gateway.settle().await;
        assert!(is_first(&gateway.accepted(retry)));
        let id = key(1, 1).message_id();
        assert_eq!(*gateway.ids(), [(first, id), (retry, id)].into());
    });
}

#[test]
fn a_client_that_hangs_up_cancels_nothing_and_the_next_one_gets_the_outcome() {
    in_paused_time(async {
        let mut gateway = Gateway::connected(FrameAck::Stored).await;
        let first = gateway.post_with(Some(key(1, 1)));
        gateway.settle().await;
        let waiting = gateway.post_with(Some(key(1, 1)));
        gateway.settle().await;
        gateway.hang_up(first);
        gateway.settle().await;
        gateway.outcome(first, Outcome::Confirmed);
        gateway.settle().await;
        assert!(is_replay(&gateway.accepted(waiting)));
        let late = gateway.post_with(Some(key(1, 1)));
        gateway.settle().await;
        assert!(is_replay(&gateway.accepted(late)) && gateway.outstanding().is_empty());
    });
}

#[test]
fn a_failure_is_the_outcome_of_those_who_wait_and_is_not_remembered() {
    in_paused_time(async {
        let mut gateway = Gateway::start(FrameAck::Broker);
        let refused = gateway.post_with(Some(key(1, 1)));
        gateway.settle().await;
        assert!(matches!(gateway.accepted(refused), Some(Err(Error::NotConfirmed { .. }))));
        gateway.connect().await;
        let (first, waiting) = (gateway.post_with(Some(key(1, 2))), gateway.post_with(Some(key(1, 2))));
        gateway.settle().await;
        gateway.outcome(first, Outcome::Nacked);
        gateway.settle().await;
        for number in [first, waiting] {
            assert!(matches!(gateway.accepted(number), Some(Err(Error::NotConfirmed { .. }))));
        }
        gateway.advance(Duration::from_secs(1)).await;
        let retry = gateway.post_with(Some(key(1, 1)));
        gateway.settle().await;
        gateway.outcome(retry, Outcome::Confirmed);
        gateway.settle().await;
        assert!(is_first(&gateway.accepted(retry)), "another body was refused, so the key is free");
    });
}

#[test]
fn a_message_that_is_refused_while_it_is_being_stored_outlives_its_key() {
    in_paused_time(async {
        let mut gateway = Gateway::connected(FrameAck::Stored).await;
        gateway.disk.set(Disk::Hangs);
        let refused = gateway.post_with(Some(key(1, 1)));
        gateway.settle().await;
        gateway.advance(Duration::from_secs(10)).await;
        gateway.event(PublisherEvent::SizeLimit(0));
        gateway.outcome(refused, Outcome::Refused("406".into()));
        gateway.settle().await;
        assert!(matches!(gateway.accepted(refused), Some(Err(Error::TooLargeForBroker { .. }))));
        gateway.disk.set(Disk::Writes);
        gateway.settle().await;
        gateway.advance(Duration::from_secs(1)).await;
        assert_eq!(gateway.disk.removed_messages(), [false, true], "the key before its message");
    });
}

#[test]
fn on_a_full_disk_a_message_with_a_key_is_refused_before_it_is_published() {
    in_paused_time(async {
        let mut gateway = Gateway::connected(FrameAck::Stored).await;
        gateway.disk.set(Disk::Full);
        let first = gateway.post_with(Some(key(1, 1)));
        gateway.settle().await;
        gateway.outcome(first, Outcome::Confirmed);
        gateway.settle().await;
        let is_no_space = |answer| matches!(answer, Some(Err(Error::Store(StoreError::NoSpace(_)))));
        assert!(is_no_space(gateway.accepted(first)), "its key cannot be written");
        let (keyed, unkeyed) = (gateway.post_with(Some(key(1, 1))), gateway.post());
        gateway.settle().await;
        assert!(is_no_space(gateway.accepted(keyed)));
        assert_eq!(gateway.outstanding(), [unkeyed]);
        gateway.disk.set(Disk::Writes);
        gateway.advance(Duration::from_secs(2)).await;
        // the store finds out by itself, in real time
        let taken = loop {
            let retry = gateway.post_with(Some(key(1, 1)));
            gateway.settle().await;
            if gateway.outstanding().contains(&retry) {
                break retry;
            }
            std::thread::yield_now();
        };
        gateway.outcome(taken, Outcome::Confirmed);
        gateway.settle().await;
        assert!(is_first(&gateway.accepted(taken)));
        assert!(
            gateway.ids().iter().filter(|(number, _)| *number != unkeyed).all(|(_, id)| *id == key(1, 1).message_id())
        );
    });
}

#[test]
fn a_message_that_is_held_without_its_key_is_not_taken_again() {
    in_paused_time(async {
        let mut gateway = Gateway::start(FrameAck::Stored);
        let stored = gateway.post_with(Some(key(1, 1)));
        gateway.settle().await;
        assert!(is_first(&gateway.accepted(stored)), "there is no connection");
        // longer than a key is remembered
        gateway.advance(Duration::from_secs(5_000)).await;
        assert_eq!(gateway.state().await.idempotency_keys, 0);
        let retry = gateway.post_with(Some(key(1, 1)));
        gateway.settle().await;
        assert!(is_replay(&gateway.accepted(retry)));
        assert_eq!((gateway.disk.records(), gateway.state().await.idempotency_keys), (vec![stored], 1));
        gateway.connect().await;
        assert_eq!(gateway.outstanding(), [stored]);
    });
}

#[test]
fn a_message_that_is_not_forwarded_is_counted_once() {
    in_paused_time(async {
        let mut gateway = Gateway::start(FrameAck::Stored);
        let message = UnforwardedMessage::Test { user_id: "worker".into(), data: "1".into() };
        let count = |key| CountUserMessage { message: message.clone(), key: Some(key) };
        for attempt in 0..4 {
            let (body, publisher) = (1 + attempt % 2, gateway.publisher.clone());
            let mut sent = Box::pin(publisher.send(count(key(1, body))));
            let answer = loop {
                if let std::task::Poll::Ready(answer) = futures::poll!(&mut sent) {
                    break answer.expect("alive");
                }
                tokio::task::yield_now().await;
            };
            match (attempt, body) {
                (0, _) => assert!(is_first(&Some(answer))),
                (_, 1) => assert!(is_replay(&Some(answer))),
                _ => assert!(is_reused(&Some(answer))),
            }
            if attempt < 2 {
                assert_eq!(gateway.state().await.test_total, 1);
            } else {
                gateway.kill_and_start_again();
            }
        }
        // a key is one for all types
        let frame = gateway.post_with(Some(key(1, 1)));
        gateway.settle().await;
        assert!(is_replay(&gateway.accepted(frame)));
    });
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Post {
        key: u8,
        body: u8,
    },
    Connect,
    Disconnect,
    /// Of the outstanding message at this position, counted round.
    Confirm(usize),
    Return(usize),
    HangUp(u64),
    Advance(u64),
    SetDisk(Disk),
    Kill,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        10 => (0..3_u8, 0..8_u8).prop_map(|(key, body)| Step::Post { key, body: body / 7 }),
        3 => Just(Step::Connect),
        1 => Just(Step::Disconnect),
        6 => (0..8_usize).prop_map(Step::Confirm),
        1 => (0..8_usize).prop_map(Step::Return),
        1 => (1..30_u64).prop_map(Step::HangUp),
        3 => proptest::sample::select(vec![10, 200, 1_000, 2_500, 11_000]).prop_map(Step::Advance),
        2 => proptest::sample::select(vec![Disk::Writes, Disk::Full, Disk::Hangs]).prop_map(Step::SetDisk),
        2 => Just(Step::Kill),
    ];
    proptest::collection::vec(step, 0..60)
}

struct Run {
    gateway: Gateway,
    is_connected: bool,
    posted: BTreeMap<u64, (u8, u8)>,
    /// The key of each message whose request was answered 200, with its body and the time in the answer.
    accepted: BTreeMap<u8, (u8, u64)>,
    /// Posted when their key was known to be accepted.
    retries: Vec<u64>,
    confirmed: BTreeMap<(u8, u8), u32>,
}

impl Run {
    async fn take(&mut self, step: Step) {
        let outstanding = self.gateway.outstanding();
        let pick = |at: usize| outstanding.get(at % outstanding.len().max(1)).copied();
        match step {
            Step::Post { key: name, body } => {
                let number = self.gateway.post_with(Some(key(name, body)));
                self.posted.insert(number, (name, body));
                if self.accepted.contains_key(&name) {
                    self.retries.push(number);
                }
            }
            Step::Connect if !self.is_connected => {
                self.is_connected = true;
                self.gateway.connect().await;
            }
            Step::Disconnect if self.is_connected => {
                self.is_connected = false;
                self.gateway.event(PublisherEvent::Disconnected { reason: "gone".into(), lost: true });
            }
            Step::Confirm(at) => {
                if let Some(number) = pick(at) {
                    *self.confirmed.entry(self.posted[&number]).or_default() += 1;
                    self.gateway.outcome(number, Outcome::Confirmed);
                }
            }
            Step::Return(at) => pick(at)
                .into_iter()
                .for_each(|number| self.gateway.outcome(number, Outcome::Returned("312 NO_ROUTE".into()))),
            Step::HangUp(number) => {
                if self.posted.contains_key(&number) && self.gateway.accepted(number).is_none() {
                    self.gateway.hang_up(number);
                }
            }
            Step::Advance(milliseconds) => self.gateway.advance(Duration::from_millis(milliseconds)).await,
            Step::SetDisk(disk) => self.gateway.disk.set(disk),
            Step::Kill => {
                self.is_connected = false;
                self.gateway.kill_and_start_again();
            }
            Step::Connect | Step::Disconnect => {}
        }
        self.gateway.settle().await;
        self.check();
    }

    fn check(&mut self) {
        for (&number, &(name, body)) in &self.posted {
            let (at_ms, is_first) = match self.gateway.accepted(number) {
                Some(Ok(Accepted::First { at_ms })) => (at_ms, true),
                Some(Ok(Accepted::Replayed { at_ms })) => (at_ms, false),
                Some(Ok(Accepted::Unkeyed)) => panic!("{number} has a key"),
                Some(Err(error)) => {
                    let is_retry = self.retries.contains(&number);
                    let is_same = self.accepted.get(&name).is_some_and(|accepted| accepted.0 == body);
                    assert!(!(is_retry && is_same), "retry {number} of an accepted request: {error}");
                    continue;
                }
                None => continue,
            };
            let accepted = *self.accepted.entry(name).or_insert((body, at_ms));
            assert_eq!(accepted, (body, at_ms), "{number}: one body and one answer for each key");
            assert!(!(is_first && self.retries.contains(&number)), "{number} is not the first one");
            let is_held = self.gateway.disk.records().iter().any(|held| self.posted[held] == (name, body));
            assert!(is_held || self.confirmed.contains_key(&(name, body)), "{number} is acknowledged, and nowhere");
        }
        for (number, id) in self.gateway.ids() {
            let (name, body) = self.posted[number];
            assert_eq!(*id, key(name, body).message_id());
            assert!(!self.retries.contains(number), "{number} is a retry, and is published");
        }
    }

    /// All is well from now on.
    async fn finish(mut self) {
        self.take(Step::SetDisk(Disk::Writes)).await;
        for _ in 0..200 {
            self.take(Step::Connect).await;
            for parked in self.gateway.parked().await {
                let publish = PublishParkedMessage { message_id: parked.message_id };
                self.gateway.publisher.send(publish).await.expect("alive").expect("it is parked");
            }
            self.take(Step::Advance(1_000)).await;
            if self.gateway.outstanding().is_empty() && self.gateway.state().await.messages == 0 {
                break;
            }
            while !self.gateway.outstanding().is_empty() {
                self.take(Step::Confirm(0)).await;
            }
        }
        self.take(Step::Kill).await;
        // those of clients that have hung up too
        assert!(self.gateway.state().await.idempotency_keys >= self.accepted.len());
        for (name, (body, _)) in self.accepted.clone() {
            assert!(self.confirmed.contains_key(&(name, body)), "the message of key {name} is lost");
            for retried in 0..2 {
                let retry = self.gateway.post_with(Some(key(name, retried)));
                self.posted.insert(retry, (name, retried));
                self.retries.push(retry);
                self.gateway.settle().await;
                let answer = self.gateway.accepted(retry);
                assert!(if retried == body { is_replay(&answer) } else { is_reused(&answer) }, "{answer:?}");
            }
        }
        self.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) })]

    #[test]
    fn no_message_is_lost_or_published_for_a_retry_or_under_two_ids(steps in steps(), is_broker: bool) {
        in_paused_time(async {
            let gateway = Gateway::start(if is_broker { FrameAck::Broker } else { FrameAck::Stored });
            let (posted, accepted, confirmed) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
            let mut run = Run { gateway, is_connected: false, posted, accepted, retries: Vec::new(), confirmed };
            for step in steps {
                run.take(step).await;
            }
            run.finish().await;
        });
    }
}
