//! The product alone: its memory, how soon it is ready, and how its throughput changes with what it holds, with the
//! size of what it is given, and with the number of connections. Plots `report.py` draws from the points.
use std::error::Error;
use std::time::Duration;

use clap::Parser;

#[path = "support/mod.rs"]
mod support;

use support::bench::{Bench, Options, Target};
use support::load::{self, Limit, Request};
use support::messages;
use support::server::Server;

/// How long a buffered message is, where its length is not what is varied.
const SMALL: usize = 300;

const MILLION: u64 = 1_000_000;

/// The last of those with a million messages in between; more connections fill the buffer sooner.
const HELD: [u64; 4] = [1_000, 10_000, 100_000, MILLION];
const FILLING_CONNECTIONS: u64 = 250;

const CONNECTIONS: u64 = 32;
const CONNECTION_COUNTS: [u64; 7] = [1, 3, 10, 32, 100, 320, 1_000];

const SIZES: [usize; 7] = [100, 1_000, 10_000, 100_000, 1 << 20, 10 << 20, 64 << 20];
/// So few that all of the largest fit into memory at once.
const SIZE_CONNECTIONS: u64 = 8;
/// How much is added, and then fetched, for a point; of small messages it is a number.
const SIZE_BYTES: usize = 512 << 20;
const SIZE_MESSAGES: usize = 16_000;

/// How many requests make a point of the other two plots.
const REQUESTS: u64 = 20_000;

#[derive(Clone, Parser)]
struct Scale {
    #[command(flatten)]
    common: Options,
}

const IDLE: &str = "memory, idle";
const FULL: &str = "memory, 1 million messages";
const FULL_AGAIN: &str = "memory, 1 million messages, restarted";
const START_EMPTY: &str = "start to ready, empty";
const START_FULL: &str = "start to ready, 1 million messages";
const GROWTH_HELD: &str = "growth, messages held";
const GROWTH_SIZE: &str = "growth, size";
const GROWTH_CONNECTIONS: &str = "growth, connections";

fn main() -> Result<(), Box<dyn Error>> {
    let mut bench = Bench::start("scale", Scale::parse().common)?;
    let [idle, start_empty] = [IDLE, START_EMPTY].map(|row| bench.wants(row));
    if idle || start_empty {
        empty(&mut bench, idle, start_empty)?;
    }
    let [held, full, again, start] = [GROWTH_HELD, FULL, FULL_AGAIN, START_FULL].map(|row| bench.wants(row));
    if held || full || again || start {
        million(&mut bench, held, full, again || start)?;
    }
    if bench.wants(GROWTH_SIZE) {
        sizes(&mut bench)?;
    }
    if bench.wants(GROWTH_CONNECTIONS) {
        connections(&mut bench)?;
    }
    Ok(())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn empty(bench: &mut Bench, idle: bool, start: bool) -> Result<(), Box<dyn Error>> {
    let (mut memory, mut times) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds() {
        let server = Server::product(bench.scratch())?;
        // again, since this one knows to the millisecond when it is ready
        let (server, time) = server.restart(bench.scratch(), &[])?;
        times.push(milliseconds(time));
        memory.push(server.memory("VmRSS")?);
    }
    if idle {
        bench.figure(IDLE, "MiB", &memory, Target::AtMost(25.0));
    }
    if start {
        bench.figure(START_EMPTY, "ms", &times, Target::AtMost(100.0));
    }
    Ok(())
}

/// One server, filled once up to a million messages. Measures the throughput at several numbers of messages.
fn million(bench: &mut Bench, growth: bool, memory: bool, restarts: bool) -> Result<(), Box<dyn Error>> {
    let server = Server::product(bench.scratch())?;
    let held = messages::add(SMALL);
    let mut count = 0;
    for (series, number) in (0..).zip(HELD) {
        if growth || number == MILLION {
            let connections = FILLING_CONNECTIONS.min(number - count);
            let each = (number - count).div_ceil(connections);
            load::drive(server.api, &held.with_series(series), 200, connections, Limit::Count(each));
            count = number;
        }
        if number == MILLION && memory {
            bench.figure(FULL, "MiB", &[server.memory("VmRSS")?], Target::AtMost(400.0));
        }
        if growth {
            let rates = add_and_get(bench, &server, CONNECTIONS);
            points(bench, "messages held", number as f64, "requests/s", &rates);
        }
    }
    if restarts {
        let (mut server, mut times, mut sizes) = (server, Vec::new(), Vec::new());
        for _ in 0..bench.rounds() {
            let (again, time) = server.restart(bench.scratch(), &[])?;
            server = again;
            times.push(milliseconds(time));
            sizes.push(server.memory("VmRSS")?);
        }
        bench.figure(START_FULL, "ms", &times, Target::AtMost(2_000.0));
        bench.figure(FULL_AGAIN, "MiB", &sizes, Target::AtMost(400.0));
    }
    Ok(())
}

/// Requests per second of AddBufferMsg and of GET, each message once, so that as many are left as there were.
fn add_and_get(bench: &Bench, server: &Server, connections: u64) -> [Vec<f64>; 2] {
    // a series of their own
    let (add, get) = (messages::add(SMALL).with_series(15), messages::get().with_series(15));
    let each = Limit::Count(REQUESTS.min(connections * 2_000) / connections);
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..bench.rounds() {
        rates[0].push(load::drive(server.api, &add, 200, connections, each));
        rates[1].push(load::drive(server.http, &get, 200, connections, each));
    }
    rates
}

fn points(bench: &mut Bench, plot: &str, x: f64, unit: &str, [add, get]: &[Vec<f64>; 2]) {
    bench.point(plot, "AddBufferMsg", x, unit, add);
    bench.point(plot, "GET hit", x, unit, get);
}

fn sizes(bench: &mut Bench) -> Result<(), Box<dyn Error>> {
    for size in SIZES {
        // the space of a fetched message is freed with a delay
        let server = Server::product_with(bench.scratch(), &["--max-buffered", "8GiB"])?;
        let add: Request = messages::add(size);
        let each = (SIZE_BYTES / size).clamp(1, SIZE_MESSAGES).div_ceil(SIZE_CONNECTIONS as usize) as u64;
        let megabytes = |rate: f64| rate * size as f64 / 1e6;
        let mut rates = [Vec::new(), Vec::new()];
        for _ in 0..bench.rounds() {
            let limit = Limit::Count(each);
            rates[0].push(megabytes(load::drive(server.api, &add, 200, SIZE_CONNECTIONS, limit)));
            rates[1].push(megabytes(load::drive(server.http, &messages::get(), 200, SIZE_CONNECTIONS, limit)));
        }
        points(bench, "message size", size as f64, "MB/s", &rates);
    }
    Ok(())
}

fn connections(bench: &mut Bench) -> Result<(), Box<dyn Error>> {
    for count in CONNECTION_COUNTS {
        let server = Server::product(bench.scratch())?;
        let rates = add_and_get(bench, &server, count);
        points(bench, "connections", count as f64, "requests/s", &rates);
    }
    Ok(())
}
