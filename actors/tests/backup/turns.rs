//! Two threads that take turns at each step, in an order that a seed decides.

use std::sync::{Condvar, Mutex, MutexGuard};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Server,
    Backup,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Server => Self::Backup,
            Self::Backup => Self::Server,
        }
    }
}

/// Whose turn it is.
#[derive(Debug)]
pub struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    turn: Side,
    /// A side that has ended takes no more turns.
    ended: [bool; 2],
    /// One in so many steps of each side is its last before the other's turn.
    steps: [u32; 2],
    random: StdRng,
}

impl Turns {
    /// The server begins. `steps` are the average numbers of steps of a turn, of the server and of the backup.
    pub fn new(seed: u64, steps: [u32; 2]) -> Self {
        let random = StdRng::seed_from_u64(seed);
        let state = State { turn: Side::Server, ended: [false; 2], steps, random };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test has panicked inside")
    }

    /// Waits for the first turn. The end of the guard is the end of this side.
    pub fn begin(&self, side: Side) -> Guard<'_> {
        self.wait(self.state(), side);
        Guard { turns: self, side }
    }

    /// Before a step of `side`, whose turn it is.
    pub fn step(&self, side: Side) {
        let mut state = self.state();
        let steps = state.steps[side as usize];
        if !state.ended[side.other() as usize] && state.random.random_ratio(1, steps) {
            state.turn = side.other();
            self.changed.notify_all();
            self.wait(state, side);
        }
    }

    fn wait(&self, state: MutexGuard<'_, State>, side: Side) {
        let is_waiting = |state: &mut State| state.turn != side && !state.ended[side.other() as usize];
        drop(self.changed.wait_while(state, is_waiting).expect("no test has panicked inside"));
    }
}

/// Ends a side, also if it panics.
pub struct Guard<'a> {
    turns: &'a Turns,
    side: Side,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.turns.state().ended[self.side as usize] = true;
        self.turns.changed.notify_all();
    }
}
