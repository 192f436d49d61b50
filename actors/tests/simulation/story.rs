//! A run: processes follow one another on a machine, and each step of what happens to them is chosen by the seed.

use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use user_http_actors::publisher::FrameAck;

use crate::exchange::Ids;
use crate::life::Life;
use crate::machine::{Gate, Machine};
use crate::outgoing::Outgoing;
use crate::process::{STORES, in_a_process};
use crate::queue::{Order, Queue};
use crate::requests::Requests;
use crate::workers::Buffered;

const DAY: Duration = Duration::from_secs(86_400);

/// Keys are remembered for an hour; a part of that may have passed before the simulation knows of a key.
const KEYS_ARE_REMEMBERED: Duration = Duration::from_secs(3_000);

/// How many steps are taken before all is well again.
const STEPS: usize = 160;

/// How long everything that is left takes then, in rounds.
const ROUNDS: usize = 600;

/// The names that services use over HTTP, and those over the broker: the order between the two is not known.
pub const NAMES: [&str; 4] = ["h0", "h1", "h2", "h3"];
pub const NAMES_OF_BROKER: [&str; 3] = ["a0", "a1", "a2"];

/// Longer than any worker waits beyond the time that it asks for: a delivery that is finishing has a second.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// In order.
    Stop,
    /// It is killed during a commit of the store with this index, and the power fails if that is `true`.
    Kill(usize, bool),
}

/// The whole run.
pub struct Story {
    pub random: StdRng,
    pub history: Vec<String>,
    pub machine: Machine,
    pub queue: Queue,
    pub buffered: Buffered,
    pub outgoing: Outgoing,
    pub ids: Ids,
    /// `None` if the user manager fetches its messages.
    pub frame_ack: Option<FrameAck>,
    pub numbers: u64,
    /// By the simulated clock, in all processes.
    pub elapsed: Duration,
    steps_left: usize,
}

/// The text in the body of a message.
pub fn text_of(number: u64, size: usize) -> String {
    format!("#{number}#{}", ".".repeat(size))
}

impl Story {
    pub fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let frame_ack = [None, Some(FrameAck::Broker), Some(FrameAck::Stored), Some(FrameAck::Stored)];
        let frame_ack = frame_ack[random.random_range(0..frame_ack.len())];
        Self {
            random,
            history: vec![format!("seed {seed}, {frame_ack:?}")],
            machine: Machine::new(&STORES),
            queue: Queue::new(if seed.is_multiple_of(2) { Order::AsReturned } else { Order::Kept }),
            buffered: Buffered::default(),
            outgoing: Outgoing::new(frame_ack.unwrap_or_default()),
            ids: Ids::default(),
            frame_ack,
            numbers: 0,
            elapsed: Duration::ZERO,
            steps_left: STEPS,
        }
    }

    pub fn next_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Whether keys that were accepted may be forgotten by now.
    pub fn is_long_ago(&self) -> bool {
        self.elapsed > KEYS_ARE_REMEMBERED
    }

    pub fn chance(&mut self, of: f64) -> bool {
        self.random.random_bool(of)
    }

    pub fn run(&mut self) {
        while self.steps_left > 0 {
            self.queue.start_over();
            let (end, gates) = in_a_process(self.live());
            gates.iter().for_each(|gate| gate.wait_for_end());
            if let End::Kill(_, true) = end {
                self.machine.lose_power(&mut self.random);
            }
            self.history.push(format!("--- {end:?}"));
            if end == End::Stop && self.chance(0.3) {
                in_a_process(self.expire()).iter().for_each(|gate| gate.wait_for_end());
            }
        }
        self.queue.start_over();
        in_a_process(self.finish()).iter().for_each(|gate| gate.wait_for_end());
        in_a_process(self.find_nothing()).iter().for_each(|gate| gate.wait_for_end());
    }

    /// A process, until it ends.
    async fn live(&mut self) -> (End, [Gate; 2]) {
        let mut life = Life::start(self, DAY).await;
        loop {
            let has_failed = life.process.stores.iter().any(|store| store.has_failed());
            if self.steps_left == 0 || self.chance(if has_failed { 0.3 } else { 0.02 }) {
                break;
            }
            self.steps_left -= 1;
            let step = life.step(self).await;
            life.settle(self).await;
            life.record(self, &step).await;
        }
        // what a failed sync has not written is still in the page cache, and nothing writes it any more
        let power_fails = life.sync_has_failed || self.chance(0.5);
        let end = match self.random.random_range(0..3) {
            0 if !life.sync_has_failed => End::Stop,
            _ => End::Kill(self.random.random_range(0..STORES.len()), power_fails),
        };
        match end {
            End::Stop => life.stop(self).await,
            End::Kill(store, _) => life.kill(self, store),
        }
        (end, life.gates())
    }

    /// A process in which everything is too old.
    async fn expire(&mut self) -> [Gate; 2] {
        let mut life = Life::start(self, Duration::ZERO).await;
        life.advance(self, Duration::from_secs(2)).await;
        assert_eq!(life.process.buffer_state().await.messages, 0, "everything is too old");
        life.stop(self).await;
        self.buffered.all_expired();
        self.history.push("--- everything has expired".into());
        life.gates()
    }

    /// All is well from now on: nothing is left.
    async fn finish(&mut self) -> [Gate; 2] {
        let mut life = Life::start(self, DAY).await;
        for round in 0.. {
            life.do_all(self).await;
            life.advance(self, Duration::from_secs(1)).await;
            let (buffer, outbox) = life.process.check().await;
            let is_done = buffer.messages == 0 && outbox.messages == 0 && outbox.unstored == 0;
            if is_done && self.queue.is_empty() && life.requests.posts.is_empty() && life.requests.adds.is_empty() {
                break;
            }
            assert!(round < ROUNDS, "stuck: {buffer:?}, {outbox:?}");
        }
        // some wait for nothing until they have their answers, and the others give up
        life.requests = Requests::default();
        life.wait_for_nothing();
        life.settle(self).await;
        life.advance(self, Duration::from_secs(120)).await;
        let (buffer, outbox) = life.process.check().await;
        assert_eq!((buffer.in_delivery, buffer.waiting, buffer.bytes), (0, 0, 0), "{buffer:?}");
        assert_eq!((outbox.parked, outbox.bytes), (0, 0), "{outbox:?}");
        assert_eq!(buffer.free_bytes, buffer.max_bytes, "{buffer:?}");
        assert_eq!(life.process.books.scrape().unbalanced(0), Vec::<String>::new());
        for name in NAMES.into_iter().chain(NAMES_OF_BROKER) {
            assert_eq!(self.buffered.expected(name), None, "{name} is lost");
        }
        self.outgoing.check_all_arrived();
        life.stop(self).await;
        life.gates()
    }

    /// Another start finds nothing.
    async fn find_nothing(&mut self) -> [Gate; 2] {
        let mut life = Life::start(self, DAY).await;
        let (buffer, outbox) = life.process.check().await;
        assert_eq!((buffer.messages, outbox.messages), (0, 0), "{buffer:?}, {outbox:?}");
        life.stop(self).await;
        life.gates()
    }
}

/// The body of a message of the communication interface.
pub fn body_for_queue(name: &str, text: &str) -> Bytes {
    let data = format!(r#"{{"BUFFER_UUID": "{name}", "BUFFER_MSG": "{text}"}}"#);
    format!(r#"{{"TYPE": "ADD_BUFFER_MSG", "DATA": {data}}}"#).into()
}
