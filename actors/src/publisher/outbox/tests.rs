//! The outbox against a model of its states.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::codec::{Format, ForwardedType};
use crate::reply::deferred;

/// Longer than a test.
const LONG: Duration = Duration::from_secs(3_600);

#[derive(Clone, Debug)]
enum Step {
    Arrive {
        has_broker: bool,
    },
    BeginStoring(Seq),
    Stored(Seq),
    Publish,
    Return(Seq),
    Lease,
    /// Of this message, by the lease with this number.
    Release(Seq, OutboxLeaseId),
    Expire(Seq, OutboxLeaseId),
    Park(Seq),
    Mark(Seq),
    Unpark(Seq),
    BeginRemoval(Seq),
    RemovalRefused(Seq),
    Remove(Seq),
}

/// What a message is, as the model knows it, and whether it is being removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Model {
    state: ModelState,
    is_being_removed: bool,
    kept: Kept,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ModelState {
    Arriving,
    Waiting,
    InFlight,
    Leased(OutboxLeaseId),
    Parked,
}
use ModelState::{InFlight, Leased, Waiting};

impl Model {
    fn is(self, state: ModelState) -> bool {
        self.state == state && !self.is_being_removed
    }
}

/// Whether it is stored, as the model knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    Unstored,
    Storing,
    Stored,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let seq = 1..6u64;
    let step = prop_oneof![
        any::<bool>().prop_map(|has_broker| Step::Arrive { has_broker }),
        seq.clone().prop_map(Step::BeginStoring),
        seq.clone().prop_map(Step::Stored),
        Just(Step::Publish),
        seq.clone().prop_map(Step::Return),
        Just(Step::Lease),
        (seq.clone(), 1..6u64).prop_map(|(seq, lease)| Step::Release(seq, lease)),
        (seq.clone(), 1..6u64).prop_map(|(seq, lease)| Step::Expire(seq, lease)),
        seq.clone().prop_map(Step::Park),
        seq.clone().prop_map(Step::Mark),
        seq.clone().prop_map(Step::Unpark),
        seq.clone().prop_map(Step::BeginRemoval),
        seq.clone().prop_map(Step::RemovalRefused),
        seq.prop_map(Step::Remove),
    ];
    proptest::collection::vec(step, 0..60)
}

/// The state of each message after a step, by the rules of this file. Returns whether the step ends the wait of a
/// sender.
fn follow(model: &mut BTreeMap<Seq, Model>, added: &mut Seq, leases: &mut OutboxLeaseId, step: &Step) -> bool {
    let first = model.iter().find(|(_, state)| state.is(Waiting)).map(|(seq, _)| *seq);
    match step {
        Step::Arrive { has_broker } => {
            *added += 1;
            let state = if *has_broker { Waiting } else { ModelState::Arriving };
            model.insert(*added, Model { state, is_being_removed: false, kept: Kept::Unstored });
        }
        Step::Remove(seq) => return model.remove(seq).is_some_and(|message| message.kept != Kept::Stored),
        Step::Publish | Step::Lease => {
            let lease = *leases + 1;
            let Some(message) = first.and_then(|seq| model.get_mut(&seq)) else { return false };
            message.state = if let Step::Publish = step { InFlight } else { Leased(lease) };
            *leases += u64::from(message.state == Leased(lease));
        }
        Step::BeginStoring(seq)
        | Step::Stored(seq)
        | Step::Return(seq)
        | Step::Release(seq, _)
        | Step::Expire(seq, _)
        | Step::Park(seq)
        | Step::Mark(seq)
        | Step::Unpark(seq)
        | Step::BeginRemoval(seq)
        | Step::RemovalRefused(seq) => {
            let Some(Model { state, is_being_removed, kept }) = model.get_mut(seq) else { return false };
            match step {
                Step::BeginStoring(_) if *kept == Kept::Unstored => *kept = Kept::Storing,
                Step::Stored(_) if *kept == Kept::Storing => {
                    *kept = Kept::Stored;
                    *state = if *state == ModelState::Arriving { Waiting } else { *state };
                    return true;
                }
                Step::Return(_) if *state == InFlight => *state = Waiting,
                // also during its removal
                Step::Release(_, lease) | Step::Expire(_, lease) if *state == Leased(*lease) => *state = Waiting,
                Step::Park(_) if !*is_being_removed => *state = ModelState::Parked,
                Step::Unpark(_) if *state == ModelState::Parked && !*is_being_removed => *state = Waiting,
                Step::BeginRemoval(_) if !matches!(state, ModelState::Arriving | InFlight) => *is_being_removed = true,
                Step::RemovalRefused(_) => *is_being_removed = false,
                _ => {}
            }
        }
    }
    false
}

/// Takes a step. Returns whether it ends the wait of a sender. `is_storing` says whether the store writes the message
/// that is reported as stored: no other can be.
fn take(outbox: &mut Outbox, added: Seq, step: Step, is_storing: bool) -> bool {
    match step {
        Step::Arrive { has_broker } => {
            let meta = OutboxMeta {
                message_id: Uuid::from_u128(added.into()),
                format: Format::Json,
                kind: ForwardedType::FrameRendered,
                user_id: "a user".into(),
                stored_at_ms: 0,
            };
            let sender = Sender::Unkeyed(deferred().0);
            let payload = Payload::from_parts(vec![vec![0; added as usize].into()]);
            outbox.arrive(
                added,
                Arrival { meta, encoded: Bytes::new(), payload, cost: 10 * added, sender },
                has_broker,
            );
            outbox.await_confirm(added, LONG);
        }
        Step::BeginStoring(seq) => drop(outbox.begin_storing(seq)),
        Step::Stored(seq) => {
            let payload = Payload::from_parts(vec![vec![0; seq as usize].into()]);
            return is_storing && outbox.stored(seq, payload).is_some();
        }
        Step::Publish => drop(outbox.publish_first()),
        Step::Return(seq) => outbox.return_to_queue(seq),
        Step::Lease => drop(outbox.lease_first(LONG)),
        Step::Release(seq, lease) => outbox.release(seq, lease),
        Step::Expire(seq, lease) => outbox.expire_lease(seq, lease),
        Step::Park(seq) => drop(outbox.park(seq, "a reason".into(), 1)),
        Step::Mark(seq) => drop(outbox.marker_stored(seq, 1_000 + seq)),
        Step::Unpark(seq) => drop(outbox.unpark(seq)),
        Step::BeginRemoval(seq) => outbox.begin_removal(seq),
        Step::RemovalRefused(seq) => outbox.removal_refused(seq),
        Step::Remove(seq) => return outbox.remove(seq).1.is_some(),
    }
    false
}

fn model_of(OutboxMessage { state, durability, .. }: &OutboxMessage) -> Model {
    let (state, is_being_removed) = match state {
        State::Removing(before) => (&**before, true),
        state => (state, false),
    };
    let state = match state {
        State::Arriving => ModelState::Arriving,
        State::Waiting => Waiting,
        State::InFlight => InFlight,
        State::Leased { lease, .. } => Leased(*lease),
        State::Parked(_) => ModelState::Parked,
        State::Removing(_) => panic!("{state:?} is being removed twice"),
    };
    let kept = match durability {
        Durability::Unstored { .. } => Kept::Unstored,
        Durability::Storing(_) => Kept::Storing,
        Durability::Stored => Kept::Stored,
    };
    Model { state, is_being_removed, kept }
}

proptest! {
    #[test]
    fn each_message_is_in_one_state_and_every_sum_is_that_of_the_states(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let _entered = runtime.enter();
        let (mut outbox, mut model, mut added, mut leases) = (Outbox::default(), BTreeMap::<_, Model>::new(), 0, 0);
        // these have left the queue of deadlines by themselves, which this test cannot wait for
        let mut expired = 0;
        for step in steps {
            if let Step::Expire(seq, lease) = step {
                expired += usize::from(model.get(&seq).is_some_and(|message| message.state == Leased(lease)));
            }
            let is_storing = matches!(&step, Step::Stored(seq)
                if model.get(seq).is_some_and(|message| message.kept == Kept::Storing));
            let answers = follow(&mut model, &mut added, &mut leases, &step);
            prop_assert_eq!(take(&mut outbox, added, step, is_storing), answers);
            let found: BTreeMap<_, _> =
                outbox.messages.iter().map(|(seq, message)| (*seq, model_of(message))).collect();
            prop_assert_eq!(&found, &model);
            let of = |wanted: fn(Model) -> bool| -> BTreeSet<Seq> {
                model.iter().filter(|(_, message)| wanted(**message)).map(|(seq, _)| *seq).collect()
            };
            let waiting = of(|message| message.is(Waiting));
            prop_assert_eq!(&outbox.waiting, &waiting);
            prop_assert_eq!(outbox.waiting_bytes(), waiting.iter().sum::<u64>());
            let in_flight = of(|message| message.is(InFlight));
            prop_assert_eq!(&outbox.in_flight().collect::<BTreeSet<Seq>>(), &in_flight);
            // a message's number is its length
            prop_assert_eq!(outbox.in_flight_bytes(), in_flight.iter().sum::<u64>());
            let parked = of(|message| message.state == ModelState::Parked);
            prop_assert_eq!(&outbox.parked, &parked);
            prop_assert!(outbox.parked().all(|(_, parked)| parked.reason == "a reason"));
            prop_assert_eq!(outbox.bytes(), model.keys().map(|seq| 10 * seq).sum::<u64>());
            let ids: BTreeSet<_> = outbox.by_id.values().copied().collect();
            prop_assert_eq!(ids, model.keys().copied().collect());
            let unstored = of(|message| message.kept == Kept::Unstored);
            prop_assert_eq!(&outbox.unstored, &unstored);
            prop_assert_eq!(outbox.unstored_and_not_in_flight().collect::<BTreeSet<_>>(), &unstored - &in_flight);
            prop_assert_eq!(outbox.awaited().collect::<BTreeSet<_>>(), of(|message| message.kept != Kept::Stored));
            let leased = of(|message| matches!(message.state, Leased(_)));
            prop_assert_eq!(outbox.deadlines.len(), leased.len() + expired + unstored.len());
        }
    }
}
