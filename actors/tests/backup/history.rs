//! What a store has held at each moment, and what a copy of it may therefore hold.

use std::collections::{BTreeMap, BTreeSet};

use user_http_actors::store::{Recovered, Seq};

/// A change of a store. What a record holds depends on its number alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Put(Seq),
    Remove(Seq),
}

/// The changes that were committed together.
#[derive(Clone, Debug)]
struct Commit {
    steps: Vec<Step>,
    /// Whether they have had an effect; not known while they are being written.
    outcome: Option<bool>,
}

/// Every commit, in order.
#[derive(Clone, Debug, Default)]
pub struct History {
    commits: Vec<Commit>,
}

pub type State = BTreeSet<Seq>;

impl History {
    /// A commit begins.
    pub fn begin(&mut self, steps: Vec<Step>) {
        self.commits.push(Commit { steps, outcome: None });
    }

    /// The commit that was begun last has succeeded, or has been refused.
    pub fn end(&mut self, outcome: bool) {
        self.commits.last_mut().expect("a commit").outcome = Some(outcome);
    }

    /// What a new process has found. The last process may have been killed in the middle of a commit.
    pub fn found(&mut self, state: &State) {
        if let Some(last) = self.commits.last_mut() {
            last.outcome.get_or_insert(false);
        }
        let before = self.state_before(self.commits.len());
        let appeared = state.difference(&before).copied().map(Step::Put);
        let steps = appeared.chain(before.difference(state).copied().map(Step::Remove)).collect();
        self.commits.push(Commit { steps, outcome: Some(true) });
    }

    /// How many commits have ended.
    pub fn ended(&self) -> usize {
        self.commits.len() - usize::from(self.commits.last().is_some_and(|last| last.outcome.is_none()))
    }

    /// What was there before this commit.
    pub fn state_before(&self, commit: usize) -> State {
        let mut state = State::new();
        let effective = self.commits[..commit].iter().filter(|commit| commit.outcome == Some(true));
        effective.flat_map(|commit| &commit.steps).for_each(|step| apply(&mut state, *step));
        state
    }

    /// Whether the store has held exactly `copy` at some moment since `begun` commits had ended, the moments within a
    /// commit included.
    pub fn has_been(&self, copy: &State, begun: usize) -> bool {
        let mut state = self.state_before(begun);
        for commit in &self.commits[begun..] {
            let mut within = state.clone();
            for step in &commit.steps {
                if within == *copy {
                    return true;
                }
                apply(&mut within, *step);
            }
            if within == *copy {
                return true;
            }
            if commit.outcome == Some(true) {
                state = within;
            }
        }
        state == *copy
    }

    /// What the copy lacks although nothing has removed it, and what it has that was never put.
    pub fn differences(&self, copy: &State, begun: usize) -> (Vec<Seq>, Vec<Seq>) {
        let acknowledged = self.state_before(begun);
        let later = self.commits[begun..].iter().flat_map(|commit| &commit.steps);
        let removed: State =
            later.filter_map(|step| if let Step::Remove(seq) = step { Some(*seq) } else { None }).collect();
        let all = self.commits.iter().flat_map(|commit| &commit.steps);
        let put: State = all.filter_map(|step| if let Step::Put(seq) = step { Some(*seq) } else { None }).collect();
        let lost = acknowledged.iter().filter(|seq| !copy.contains(seq) && !removed.contains(seq)).copied().collect();
        (lost, copy.difference(&put).copied().collect())
    }
}

fn apply(state: &mut State, step: Step) {
    match step {
        Step::Put(seq) => drop(state.insert(seq)),
        Step::Remove(seq) => drop(state.remove(&seq)),
    }
}

/// Checks each record, and returns their numbers.
#[track_caller]
pub fn numbers(found: &[Recovered]) -> State {
    let read = |record: &Recovered| {
        let body = record.body.read_all().expect("a body can be read");
        assert_eq!(record.meta, meta(record.seq), "the meta of {}", record.seq);
        assert!(body == pattern(record.seq, body.len()), "the body of {}", record.seq);
        record.seq
    };
    let bodies: BTreeMap<Seq, ()> = found.iter().map(|record| (read(record), ())).collect();
    bodies.into_keys().collect()
}

/// The meta of each record.
pub fn meta(seq: Seq) -> Vec<u8> {
    seq.to_string().into_bytes()
}

/// The first bytes of the body of each record.
pub fn pattern(seq: Seq, len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| (at.wrapping_mul(31) ^ at >> 8).wrapping_add(seq.wrapping_mul(7)) as u8).collect()
}
