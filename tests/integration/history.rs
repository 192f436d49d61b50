//! What workers and services have seen of gateways that act as one, and whether it is what was promised.
//!
//! The check is a function of the recorded history alone. It says what is wrong with each message and each frame, and
//! counts what the documents permit.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Since 1970, by the clock of the machine on which everything runs.
pub type Time = Duration;

/// A refusal may mean that a message is stored a moment later: a gateway waits at most 5 s for its database, which goes
/// on with the statement when a standby is back.
const TAKES_EFFECT: Duration = Duration::from_secs(30);

/// How long a gateway may still have to say that it has sent the last byte, after the worker has read it.
const SAYS_SO: Duration = Duration::from_secs(2);

/// What may lie between a gateway and a worker behind a proxy, and counts as delivered: more than `docs/proxies.md`
/// says of HAProxy with the cluster's configuration.
const ON_THE_WAY: u64 = 10 << 20;

/// What somebody did, from the first byte sent to the last one received.
#[derive(Clone, Debug)]
pub struct Operation {
    pub began: Time,
    pub ended: Time,
    pub what: What,
}

#[derive(Clone, Debug)]
pub enum What {
    /// A service leaves the message of this UUID.
    Add(String, Answer),
    /// A worker fetches it.
    Fetch(String, Fetched),
    /// A worker posts the frame of this number. No other request has the same number.
    Post(usize, Answer),
    /// The user manager receives a frame, with this `message-id`.
    Arrival(usize, String),
    /// A part is killed, and is gone at the end.
    Death(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Accepted,
    /// A 503, or no answer: it may have been accepted.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// Every byte was received, from this gateway.
    Whole { gateway: String },
    /// The transfer broke off with so many bytes missing.
    Broken { missing: u64, hung_up: bool },
    /// There is no such message.
    Absent,
    /// It is in delivery, or the gateway cannot say.
    NotNow,
}

/// What is wrong, with the history of each; and how much has happened.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Messages that were accepted and are gone.
    pub lost: Vec<String>,
    /// Messages that two workers have received.
    pub doubles: Vec<String>,
    /// Messages that were accepted, and were absent before anybody could have received them.
    pub hidden: Vec<String>,
    /// Frames that were accepted and have not come.
    pub lost_frames: Vec<usize>,
    /// Frames that have come with several ids, or were never posted.
    pub strange_frames: Vec<usize>,
    pub counts: Counts,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub operations: usize,
    pub messages: usize,
    pub deliveries: usize,
    pub broken: usize,
    pub unknown: usize,
    pub frames: usize,
    pub arrivals: usize,
    /// Messages that were received twice since the gateway died before it could say that the last byte was sent.
    pub permitted_doubles: usize,
    /// Messages that were on the way to a worker that hung up.
    pub permitted_losses: usize,
    /// By the names of the parts.
    pub deaths: BTreeMap<String, usize>,
}

impl Verdict {
    pub fn is_good(&self) -> bool {
        [&self.lost, &self.doubles, &self.hidden].into_iter().all(Vec::is_empty)
            && [&self.lost_frames, &self.strange_frames].into_iter().all(Vec::is_empty)
    }
}

/// Holds a history against the promises. Every message has to have been fetched until it was received or absent, and
/// every frame has to have had the time to arrive.
pub fn check(history: &[Operation]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut messages: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    let (mut deaths, mut posts, mut arrivals) = (Vec::new(), BTreeMap::new(), BTreeMap::<_, BTreeSet<_>>::new());
    let counts = &mut verdict.counts;
    for operation in history {
        match &operation.what {
            What::Add(uuid, _) | What::Fetch(uuid, _) => messages.entry(uuid).or_default().push(operation),
            What::Post(number, answer) => drop(posts.insert(*number, *answer)),
            What::Arrival(number, id) => drop(arrivals.entry(*number).or_default().insert(id)),
            What::Death(part) => {
                deaths.push((part.as_str(), operation));
                *counts.deaths.entry(part.clone()).or_default() += 1;
                continue;
            }
        }
        counts.operations += 1;
        match &operation.what {
            What::Add(_, Answer::Unknown) | What::Post(_, Answer::Unknown) | What::Fetch(_, Fetched::NotNow) => {
                counts.unknown += 1;
            }
            What::Fetch(_, Fetched::Whole { .. }) => counts.deliveries += 1,
            What::Fetch(_, Fetched::Broken { .. }) => counts.broken += 1,
            What::Arrival(..) => counts.arrivals += 1,
            _ => {}
        }
    }
    (counts.messages, counts.frames) = (messages.len(), posts.len());
    for (uuid, operations) in messages {
        Message { uuid, operations, deaths: &deaths }.check(&mut verdict);
    }
    let accepted = posts.iter().filter(|(_, answer)| **answer == Answer::Accepted).map(|(number, _)| *number);
    verdict.lost_frames = accepted.filter(|number| !arrivals.contains_key(number)).collect();
    let is_strange = |number: &usize, ids: &BTreeSet<&String>| ids.len() > 1 || !posts.contains_key(number);
    verdict.strange_frames = arrivals.iter().filter(|(number, ids)| is_strange(number, ids)).map(|(n, _)| *n).collect();
    verdict
}

/// What has happened to the message of one UUID.
struct Message<'h> {
    uuid: &'h str,
    operations: Vec<&'h Operation>,
    deaths: &'h [(&'h str, &'h Operation)],
}

impl Message<'_> {
    fn check(mut self, verdict: &mut Verdict) {
        self.operations.sort_by_key(|operation| operation.ended);
        let received: Vec<_> = self.fetched(|fetched| matches!(fetched, Fetched::Whole { .. })).collect();
        for pair in received.windows(2) {
            match self.may_be_received_again(pair[0]) {
                Some(Permission::StoredAgain) => {}
                Some(Permission::GatewayDied) => verdict.counts.permitted_doubles += 1,
                None => verdict.doubles.push(self.told()),
            }
        }
        // each time that it was accepted, somebody receives it afterwards, or might have
        let Some(accepted) = self.accepted().last() else { return };
        if !received.iter().any(|fetch| fetch.ended >= accepted.began) {
            if self.was_on_the_way(accepted.began, Time::MAX) {
                verdict.counts.permitted_losses += 1;
            } else {
                verdict.lost.push(self.told());
            }
        }
        if self.fetched(|fetched| *fetched == Fetched::Absent).any(|fetch| self.is_hidden_from(fetch)) {
            verdict.hidden.push(self.told());
        }
    }

    fn accepted(&self) -> impl Iterator<Item = &Operation> {
        self.operations.iter().copied().filter(|operation| matches!(operation.what, What::Add(_, Answer::Accepted)))
    }

    fn fetched(&self, is: impl Fn(&Fetched) -> bool) -> impl Iterator<Item = &Operation> {
        self.operations.iter().copied().filter(move |operation| match &operation.what {
            What::Fetch(_, fetched) => is(fetched),
            _ => false,
        })
    }

    /// Why somebody may receive it after it was received once.
    fn may_be_received_again(&self, first: &Operation) -> Option<Permission> {
        let stored_again = self.operations.iter().any(|operation| match operation.what {
            What::Add(_, Answer::Accepted) => operation.ended >= first.began,
            What::Add(_, Answer::Unknown) => operation.ended + TAKES_EFFECT >= first.began,
            _ => false,
        });
        let What::Fetch(_, Fetched::Whole { gateway }) = &first.what else { return None };
        let died = self
            .deaths
            .iter()
            .any(|(part, death)| part == gateway && death.ended >= first.began && death.began <= first.ended + SAYS_SO);
        if stored_again { Some(Permission::StoredAgain) } else { died.then_some(Permission::GatewayDied) }
    }

    /// Whether a worker hung up in this time, when all the bytes that it had not read may have been sent.
    fn was_on_the_way(&self, from: Time, to: Time) -> bool {
        self.fetched(|fetched| matches!(fetched, Fetched::Broken { missing, hung_up: true } if *missing <= ON_THE_WAY))
            .any(|fetch| fetch.ended >= from && fetch.began <= to)
    }

    /// Whether this worker was told that it is absent although it was accepted, and received by nobody else.
    fn is_hidden_from(&self, absent: &Operation) -> bool {
        let Some(accepted) = self.accepted().filter(|accepted| accepted.ended < absent.began).last() else {
            return false;
        };
        let mut received = self.fetched(|fetched| matches!(fetched, Fetched::Whole { .. }));
        !received.any(|fetch| fetch.ended >= accepted.began && fetch.began <= absent.ended)
            && !self.was_on_the_way(accepted.began, absent.ended)
    }

    /// Its history, for a report.
    fn told(&self) -> String {
        let from = self.operations.first().map_or(Time::ZERO, |first| first.began);
        let lines = self.operations.iter().map(|operation| {
            let [began, ended] = [operation.began, operation.ended].map(|time| time.saturating_sub(from));
            format!("  {began:.3?} to {ended:.3?}: {:?}\n", operation.what)
        });
        let deaths = self
            .deaths
            .iter()
            .filter(|(_, death)| death.ended >= from)
            .take(8)
            .map(|(part, death)| format!("  {:.3?}: {part} is killed\n", death.began.saturating_sub(from)));
        format!("{} (from {from:.3?})\n{}{}", self.uuid, lines.collect::<String>(), deaths.collect::<String>())
    }
}

enum Permission {
    /// It was left again, or that may be.
    StoredAgain,
    /// The gateway that sent it died before it could say so.
    GatewayDied,
}

#[cfg(test)]
mod tests {
    use super::Answer::{Accepted, Unknown};
    use super::*;

    /// Things that happen one after the other, each for 80 ms of 100.
    fn checked(happened: impl IntoIterator<Item = What>) -> Verdict {
        let history: Vec<_> = (0..).zip(happened).map(|(at, what)| during(at * 100, at * 100 + 80, what)).collect();
        check(&history)
    }

    fn during(began: u64, ended: u64, what: What) -> Operation {
        let [began, ended] = [began, ended].map(|ms| Time::from_secs(1_000_000) + Time::from_millis(ms));
        Operation { began, ended, what }
    }

    fn add(answer: Answer) -> What {
        What::Add("a".to_owned(), answer)
    }

    fn fetch(fetched: Fetched) -> What {
        What::Fetch("a".to_owned(), fetched)
    }

    fn whole() -> What {
        fetch(Fetched::Whole { gateway: "gateway1".to_owned() })
    }

    fn broken(missing: u64, hung_up: bool) -> What {
        fetch(Fetched::Broken { missing, hung_up })
    }

    fn absent() -> What {
        fetch(Fetched::Absent)
    }

    fn death(part: &str) -> What {
        What::Death(part.to_owned())
    }

    fn arrival(number: usize, id: &str) -> What {
        What::Arrival(number, id.to_owned())
    }

    /// The numbers of messages that are lost, received twice and hidden.
    fn faults(verdict: &Verdict) -> [usize; 3] {
        [&verdict.lost, &verdict.doubles, &verdict.hidden].map(Vec::len)
    }

    #[test]
    fn what_is_received_once_is_good() {
        let verdict = checked([add(Accepted), whole(), absent(), What::Post(1, Accepted), arrival(1, "x")]);
        assert!(verdict.is_good(), "{verdict:?}");
        assert_eq!((verdict.counts.operations, verdict.counts.deliveries, verdict.counts.arrivals), (5, 1, 1));
    }

    #[test]
    fn an_accepted_message_that_nobody_receives_is_lost() {
        assert_eq!(faults(&checked([add(Accepted), absent()])), [1, 0, 1]);
        assert_eq!(faults(&checked([add(Accepted)])), [1, 0, 0]);
        // the one that was received is not the one that was left after it
        assert_eq!(faults(&checked([add(Accepted), whole(), add(Accepted), absent()])), [1, 0, 1]);
        // the transfer broke, and nobody hung up
        assert_eq!(faults(&checked([add(Accepted), broken(100, false), death("gateway1"), absent()])), [1, 0, 1]);
        // more is missing than could have been on the way
        assert_eq!(faults(&checked([add(Accepted), broken(ON_THE_WAY + 1, true), absent()])), [1, 0, 1]);
    }

    #[test]
    fn a_message_that_was_perhaps_never_accepted_may_be_absent_or_received() {
        assert!(checked([add(Unknown), absent()]).is_good());
        assert!(checked([add(Unknown), whole(), absent()]).is_good());
    }

    #[test]
    fn what_was_on_the_way_to_a_worker_that_hung_up_may_be_lost_or_not() {
        let verdict = checked([add(Accepted), broken(ON_THE_WAY, true), absent()]);
        assert!(verdict.is_good() && verdict.counts.permitted_losses == 1, "{verdict:?}");
        assert!(checked([add(Accepted), broken(ON_THE_WAY, true), whole(), absent()]).is_good());
    }

    #[test]
    fn a_message_that_two_workers_receive_is_double() {
        assert_eq!(faults(&checked([add(Accepted), whole(), whole()])), [0, 1, 0]);
        assert_eq!(faults(&checked([add(Accepted), whole(), broken(5, false), whole()])), [0, 1, 0]);
        // at the same time
        let history = [during(0, 10, add(Accepted)), during(20, 90, whole()), during(30, 80, whole())];
        assert_eq!(faults(&check(&history)), [0, 1, 0]);
        // others have died, or this one much later
        let others = ["gateway2", "db1", "rabbit1"].map(death);
        assert_eq!(faults(&checked([vec![add(Accepted), whole()], others.into(), vec![whole()]].concat())), [0, 1, 0]);
        let history = [
            during(0, 10, add(Accepted)),
            during(20, 90, whole()),
            during(5_000, 5_010, death("gateway1")),
            during(9_000, 9_010, whole()),
        ];
        assert_eq!(faults(&check(&history)), [0, 1, 0]);
    }

    #[test]
    fn a_message_is_received_again_if_it_was_left_again_or_that_is_unknown() {
        assert!(checked([add(Accepted), whole(), add(Accepted), whole()]).is_good());
        assert!(checked([add(Unknown), add(Accepted), whole(), whole()]).is_good());
        let late = |at| [during(0, 10, add(Unknown)), during(at, at + 10, whole()), during(at + 20, at + 30, whole())];
        assert_eq!(faults(&check(&late(29_000))), [0, 0, 0]);
        assert_eq!(faults(&check(&late(31_000))), [0, 1, 0]);
    }

    #[test]
    fn a_message_is_received_again_if_its_gateway_died_before_it_could_say_so() {
        let verdict = checked([add(Accepted), whole(), death("gateway1"), whole(), absent()]);
        assert!(verdict.is_good() && verdict.counts.permitted_doubles == 1, "{verdict:?}");
        assert_eq!(verdict.counts.deaths, BTreeMap::from([("gateway1".to_owned(), 1)]));
    }

    #[test]
    fn an_accepted_message_is_not_hidden_before_somebody_receives_it() {
        assert_eq!(faults(&checked([add(Accepted), absent(), whole()])), [0, 0, 1]);
        // its last byte is received a moment later
        let history = [during(0, 10, add(Accepted)), during(20, 90, whole()), during(30, 40, absent())];
        assert!(check(&history).is_good());
        // it was not yet accepted
        let history = [during(0, 50, add(Accepted)), during(20, 40, absent()), during(60, 70, whole())];
        assert!(check(&history).is_good());
    }

    #[test]
    fn each_accepted_frame_arrives_and_repeats_have_the_id_of_the_first() {
        let posted = || [What::Post(1, Accepted), What::Post(2, Unknown)];
        let with = |arrivals: &[What]| checked(posted().into_iter().chain(arrivals.iter().cloned()));
        assert!(with(&[arrival(1, "x")]).is_good());
        assert!(with(&[arrival(1, "x"), arrival(2, "y"), arrival(1, "x")]).is_good());
        assert_eq!(with(&[arrival(2, "y")]).lost_frames, [1]);
        assert_eq!(with(&[arrival(1, "x"), arrival(1, "z")]).strange_frames, [1]);
        assert_eq!(with(&[arrival(1, "x"), arrival(3, "z")]).strange_frames, [3]);
    }
}
