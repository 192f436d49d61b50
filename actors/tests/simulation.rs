//! The actors together, in a world that a seed moves: a disk that loses power, fails or is full, a broker that
//! confirms late or not at all, workers that hang up, services, an operator, and a clock that only the seed moves.
//!
//! `TEST_SEEDS` is how many seeds are run, `TEST_SEED` the first of them (1 if it is not set). A run depends on its
//! seed alone; see `docs/decisions/0024-simulation.md` for how far.

#[path = "support/books.rs"]
mod books;
#[path = "crash/disk.rs"]
#[allow(dead_code, reason = "the file is shared with the tests of the store")]
mod disk;
#[path = "simulation/exchange.rs"]
mod exchange;
#[path = "simulation/life.rs"]
mod life;
#[path = "simulation/machine.rs"]
mod machine;
#[path = "simulation/outgoing.rs"]
mod outgoing;
#[path = "simulation/process.rs"]
mod process;
#[path = "simulation/queue.rs"]
mod queue;
#[path = "simulation/requests.rs"]
mod requests;
#[path = "support/scripted_broker.rs"]
mod scripted_broker;
#[path = "simulation/steps.rs"]
mod steps;
#[path = "simulation/story.rs"]
mod story;
#[path = "simulation/workers.rs"]
mod workers;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Instant;

use story::Story;

/// Take about 20 s. `tests/run` sets more, since the optimized store takes less time for each.
const SEEDS: u64 = 30;

/// How much of a history is printed if it fails.
const SHOWN: usize = 100;

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

/// Runs a seed; returns its history.
fn run(seed: u64) -> Vec<String> {
    let mut story = Story::new(seed);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| story.run())) {
        let history = &story.history;
        history[history.len().saturating_sub(SHOWN)..].iter().for_each(|line| eprintln!("{line}"));
        eprintln!("repeat with: TEST_SEED={seed} TEST_SEEDS=1 cargo test --workspace --test simulation -- whatever");
        resume_unwind(panic);
    }
    story.history
}

#[test]
fn whatever_happens_nothing_acknowledged_is_lost_and_nothing_completed_comes_again() {
    let first = from_environment("TEST_SEED").unwrap_or(1);
    let (count, start) = (from_environment("TEST_SEEDS").unwrap_or(SEEDS), Instant::now());
    let steps: usize = (first..first + count).map(|seed| run(seed).len()).sum();
    println!("{count} seeds from {first} on, {steps} steps, {:?}", start.elapsed());
}

#[test]
fn a_seed_repeats_its_history() {
    for seed in 1..=2 {
        let (first, second) = (run(seed), run(seed));
        let differs = first.iter().zip(&second).position(|(first, second)| first != second);
        if let Some(at) = differs {
            panic!("seed {seed}, line {at}: {:?} and {:?}", first[at], second[at]);
        }
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
}
