//! The server is killed under load, again and again, and keeps what it has promised; asked to stop under load, it
//! finishes what it has begun.
//!
//! `TEST_KILLS` and `TEST_STOPS` set how often, `TEST_SEED` what the clients do and when the kills come.

mod content;
mod load;
mod model;
mod survey;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::harness::{Server, Setup, files_below};
use load::{Client, Ending, Run};
use model::{Counts, Outbox};

const CLIENTS: usize = 8;

const KILLS: u64 = 30;

const STOPS: u64 = 5;

/// How long the load lasts before a signal, in milliseconds.
const LOAD_MS: std::ops::Range<u64> = 20..800;

/// What a start says about the torn end that a kill may leave.
const TORN_END: &str = "cut off, as a crash leaves it";

/// What actix says of a connection that comes while the server stops.
const TOO_LATE: &str = "actix_server::accept] No workers";

/// Told when a test fails, so that it can be repeated.
pub struct Seed(pub u64);

impl Seed {
    pub fn get() -> Self {
        Self(from_environment("TEST_SEED").unwrap_or_else(rand::random))
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- repeat with TEST_SEED={} ---", self.0);
        }
    }
}

pub fn from_environment(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|error| panic!("{name}={value}: {error}")))
}

/// A server, its clients, and what is known of it.
struct Campaign {
    seed: Seed,
    rng: StdRng,
    server: Server,
    clients: Vec<Client>,
    outbox: Mutex<Outbox>,
    counts: Counts,
}

impl Campaign {
    fn start() -> Self {
        let seed = Seed::get();
        let clients = (0..CLIENTS).map(|number| Client::new(number, seed.0)).collect();
        let rng = StdRng::seed_from_u64(seed.0);
        // more than this machine may have open would be a warning
        let server = Setup::default().args(["--max-connections", "100"]).start();
        let (outbox, counts) = (Mutex::default(), Counts::default());
        Self { seed, rng, server, clients, outbox, counts }
    }

    /// Lets the clients work until, at a random moment, `end` ends the server.
    fn load_until(&mut self, ending: Ending, end: impl FnOnce(&mut Server)) {
        let run = Run::new(&self.server, ending, &self.outbox, &self.counts);
        std::thread::scope(|scope| {
            for client in &mut self.clients {
                scope.spawn(|| run.work(client));
            }
            std::thread::sleep(Duration::from_millis(self.rng.random_range(LOAD_MS)));
            run.ending.begin();
            end(&mut self.server);
        });
        self.check_log();
    }

    /// Starts the server again and compares what it has with what it may have.
    fn restart(&mut self) {
        self.server.restart();
        self.check_log();
        let outbox = self.outbox.get_mut().expect("the outbox");
        survey::survey(&self.server, &mut self.clients, outbox, &self.counts);
    }

    /// Takes what is left; how it all went.
    fn finish(mut self, what: &str, start: Instant) {
        let outbox = self.outbox.get_mut().expect("the outbox");
        survey::drain(&self.server, &mut self.clients, outbox, &self.counts);
        for (store, what) in [("buffer", "buffer segments begun"), ("outbox", "outbox segments begun")] {
            let files = files_below(&self.server.setup().data_dir().join(store));
            let numbers = files.iter().filter_map(|(path, _)| path.file_stem()?.to_str()?.parse().ok());
            self.counts.add(what, numbers.max().unwrap_or_default());
        }
        println!("{what} in {:.1?}, seed {}: {}", start.elapsed(), self.seed.0, self.counts);
    }

    fn check_log(&self) {
        let log = self.server.log();
        let is_complaint = |line: &&str| [" WARN ", " ERROR ", "panicked"].iter().any(|sign| line.contains(sign));
        let mut complaints = log.lines().filter(is_complaint);
        assert!(complaints.all(|line| line.contains(TORN_END) || line.contains(TOO_LATE)), "{log}");
    }
}

#[test]
fn what_was_acknowledged_survives_one_kill_after_another_under_load() {
    let start = Instant::now();
    let mut campaign = Campaign::start();
    let kills = from_environment("TEST_KILLS").unwrap_or(KILLS);
    for _ in 0..kills {
        campaign.load_until(Ending::by_kill(), Server::kill9);
        campaign.restart();
        campaign.counts.add("torn ends", campaign.server.log().matches(TORN_END).count() as u64);
    }
    campaign.finish(&format!("{kills} kills"), start);
}

#[test]
fn a_stop_under_load_finishes_what_it_has_begun_and_loses_nothing() {
    let start = Instant::now();
    let mut campaign = Campaign::start();
    let stops = from_environment("TEST_STOPS").unwrap_or(STOPS);
    for _ in 0..stops {
        campaign.load_until(Ending::in_order(), |server| {
            let status = server.stop();
            assert_eq!(status.code(), Some(0), "{status}; log:\n{}", server.log());
        });
        campaign.restart();
        let counts = campaign.counts.to_string();
        assert!(!counts.contains("came back"), "a delivered or deleted message is there again: {counts}");
    }
    campaign.finish(&format!("{stops} stops"), start);
}
