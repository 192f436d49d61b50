//! The switch between the broker's confirm and the store, in any order of events.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use user_http_actors::Error;
use user_http_actors::broker::{Outcome, PublisherEvent};
use user_http_actors::messages::PublishParkedMessage;
use user_http_actors::publisher::FrameAck;
use user_http_actors::store::StoreError;

use crate::confirm_through::harness::{Disk, Gateway, in_paused_time};

/// After this time every sender has an answer, unless the disk hangs.
const LONGEST_WAIT: Duration = Duration::from_secs(11);

#[derive(Clone, Copy, Debug)]
enum Step {
    Post,
    Connect,
    Disconnect {
        lost: bool,
    },
    Block(bool),
    WaitFor(bool),
    /// Of the outstanding message at this position, counted round.
    Confirm(usize),
    Nack(usize),
    Return(usize),
    /// One of the outstanding messages is poison.
    Suspect,
    HangUp(u64),
    Advance(Duration),
    SetDisk(Disk),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let times = [10, 200, 1_000, 2_500].map(Duration::from_millis);
    let step = prop_oneof![
        8 => Just(Step::Post),
        3 => Just(Step::Connect),
        1 => any::<bool>().prop_map(|lost| Step::Disconnect { lost }),
        1 => any::<bool>().prop_map(Step::Block),
        1 => any::<bool>().prop_map(Step::WaitFor),
        6 => (0..8_usize).prop_map(Step::Confirm),
        1 => (0..8_usize).prop_map(Step::Nack),
        1 => (0..8_usize).prop_map(Step::Return),
        1 => Just(Step::Suspect),
        1 => (1..20_u64).prop_map(Step::HangUp),
        4 => proptest::sample::select(times.to_vec()).prop_map(Step::Advance),
        1 => Just(Step::Advance(LONGEST_WAIT)),
        2 => proptest::sample::select(vec![Disk::Writes, Disk::Full, Disk::Hangs]).prop_map(Step::SetDisk),
    ];
    proptest::collection::vec(step, 0..60)
}

struct Run {
    gateway: Gateway,
    frame_ack: FrameAck,
    is_connected: bool,
    confirmed: BTreeSet<u64>,
    hung_up: BTreeSet<u64>,
}

impl Run {
    async fn take(&mut self, step: Step) {
        let outstanding = self.gateway.outstanding();
        let pick = |at: usize| outstanding.get(at % outstanding.len().max(1)).copied();
        match step {
            Step::Post => drop(self.gateway.post()),
            Step::Connect if !self.is_connected => {
                self.is_connected = true;
                self.gateway.connect().await;
            }
            Step::Disconnect { lost } if self.is_connected => self.disconnect(lost),
            Step::Block(blocked) if self.is_connected => self.gateway.event(PublisherEvent::Blocked(blocked)),
            Step::WaitFor(waits) if self.is_connected => {
                self.gateway.event(PublisherEvent::WaitingFor(waits.then(|| "a queue".to_owned())));
            }
            Step::Confirm(at) => pick(at).into_iter().for_each(|number| self.confirm(number)),
            Step::Nack(at) => pick(at).into_iter().for_each(|number| self.gateway.outcome(number, Outcome::Nacked)),
            Step::Return(at) => pick(at)
                .into_iter()
                .for_each(|number| self.gateway.outcome(number, Outcome::Returned("312 NO_ROUTE".into()))),
            Step::Suspect if !outstanding.is_empty() => {
                self.gateway.event(PublisherEvent::Suspected { reason: "406".into() });
                self.disconnect(false);
            }
            Step::HangUp(number) => {
                if self.gateway.posted().any(|posted| posted == number) && self.gateway.answer(number).is_none() {
                    self.gateway.hang_up(number);
                    self.hung_up.insert(number);
                }
            }
            Step::Advance(time) => self.gateway.advance(time).await,
            Step::SetDisk(disk) => self.gateway.disk.set(disk),
            Step::Connect | Step::Disconnect { .. } | Step::Block(_) | Step::WaitFor(_) | Step::Suspect => {}
        }
        self.gateway.settle().await;
        self.check(matches!(step, Step::Advance(LONGEST_WAIT)));
    }

    fn disconnect(&mut self, lost: bool) {
        self.is_connected = false;
        self.gateway.event(PublisherEvent::Disconnected { reason: "gone".into(), lost });
    }

    fn confirm(&mut self, number: u64) {
        self.confirmed.insert(number);
        self.gateway.outcome(number, Outcome::Confirmed);
    }

    fn check(&self, has_waited: bool) {
        for number in self.gateway.posted() {
            match (self.gateway.answer(number), self.frame_ack) {
                (Some(Ok(())), FrameAck::Stored) => {
                    let is_kept = self.confirmed.contains(&number) || self.gateway.disk.holds(number);
                    assert!(is_kept, "{number} is acknowledged, and neither confirmed nor stored");
                }
                (Some(Ok(())), FrameAck::Broker) => {
                    assert!(self.confirmed.contains(&number), "{number} is acknowledged, and not confirmed");
                }
                (Some(Err(Error::NotConfirmed { .. })), FrameAck::Broker)
                | (Some(Err(Error::Store(StoreError::NoSpace(_)))), FrameAck::Stored) => {}
                (Some(Err(error)), _) => panic!("{number}: {error}"),
                (None, _) => {
                    let may_wait = !has_waited || self.gateway.disk.is(Disk::Hangs);
                    assert!(may_wait || self.hung_up.contains(&number), "{number} has no answer");
                }
            }
        }
        let published = self.gateway.first_published();
        assert!(published.is_sorted(), "first publications are out of order: {published:?}");
        if self.frame_ack == FrameAck::Broker {
            assert_eq!(self.gateway.disk.puts(), 0, "nothing is stored");
        }
    }

    /// All is well from now on: nothing remains.
    async fn finish(mut self) {
        self.take(Step::SetDisk(Disk::Writes)).await;
        for step in [Step::Connect, Step::Block(false), Step::WaitFor(false)] {
            self.take(step).await;
        }
        for _ in 0..200 {
            self.take(Step::Connect).await;
            for parked in self.gateway.parked().await {
                let publish = PublishParkedMessage { message_id: parked.message_id };
                self.gateway.publisher.send(publish).await.expect("alive").expect("it is parked");
            }
            self.take(Step::Advance(Duration::from_secs(1))).await;
            if self.gateway.outstanding().is_empty() && self.gateway.state().await.messages == 0 {
                break;
            }
            while !self.gateway.outstanding().is_empty() {
                self.take(Step::Confirm(0)).await;
            }
        }
        let state = self.gateway.state().await;
        assert_eq!((state.messages, state.bytes, state.unstored, state.parked), (0, 0, 0, 0), "stuck");
        assert_eq!(self.gateway.disk.records(), Vec::<u64>::new(), "what has arrived is not stored any more");
        for number in self.gateway.posted().filter(|number| !self.hung_up.contains(number)) {
            match self.gateway.answer(number) {
                None => panic!("{number} has no answer"),
                Some(Ok(())) => assert!(self.confirmed.contains(&number), "{number} is lost"),
                Some(Err(_)) => {}
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) })]

    #[test]
    fn no_message_is_lost_stuck_or_published_out_of_order(steps in steps(), is_broker: bool) {
        in_paused_time(async {
            let frame_ack = if is_broker { FrameAck::Broker } else { FrameAck::Stored };
            let gateway = Gateway::start(frame_ack);
            let (confirmed, hung_up) = (BTreeSet::new(), BTreeSet::new());
            let mut run = Run { gateway, frame_ack, is_connected: false, confirmed, hung_up };
            for step in steps {
                run.take(step).await;
            }
            run.finish().await;
        });
    }
}
