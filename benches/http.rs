//! Requests per second of the small requests, beside a bare actix-web handler whose answers are as long, and beside a
//! service of the same contract in Python that keeps all in memory.
//!
//! All run as child processes and take turns round by round. Every round starts them anew: the product with an empty
//! data directory, without a broker.
use std::error::Error;
use std::fs;
use std::io;
use std::process::Command;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};

#[path = "support/mod.rs"]
mod support;

use support::bench::{Bench, Options, Target, cores};
use support::load::{self, Limit, Request};
use support::server::Server;
use support::{bare, frames, messages};

/// What a round begins with, unmeasured.
const WARM_UP: Duration = Duration::from_millis(300);

/// How long a buffered message is.
const SMALL: usize = 300;

/// How much faster than the service in Python the product is to be.
const TIMES_FASTAPI: f64 = 10.0;

#[derive(Clone, Parser)]
struct Http {
    #[command(flatten)]
    common: Options,
    /// How long a round lasts
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Connections at the same time
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=4096))]
    connections: u64,
    /// Only beside this peer
    #[arg(long)]
    peer: Option<Peer>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Peer {
    Bare,
    Fastapi,
}

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare actix-web",
            Self::Fastapi => "FastAPI",
        }
    }

    fn start(self, bench: &Bench, row: &Row) -> io::Result<Server> {
        match self {
            Self::Bare => Server::bare(bench.scratch(), row.status, row.length),
            Self::Fastapi => Server::fastapi(bench.scratch(), None),
        }
    }

    /// How many messages are there to be fetched, for each second that a round lasts.
    fn hits_per_second(self) -> u64 {
        match self {
            Self::Bare => 40_000,
            Self::Fastapi => 1_000,
        }
    }
}

/// One row of the table.
struct Row {
    name: &'static str,
    request: Request,
    /// Sent to the API server instead of the worker server.
    api: bool,
    /// What the answer has to be.
    status: u16,
    /// How long the bare handler's answer to a `GET` is.
    length: u64,
    /// What is stored beforehand under each number that is requested.
    stored: Option<Request>,
    /// Beside the bare handler.
    target: Target,
}

fn main() -> Result<(), Box<dyn Error>> {
    if bare::serve_if_asked()? {
        return Ok(());
    }
    let options = Http::parse();
    let mut bench = Bench::start("http", options.common.clone())?;
    for row in rows(&bench)? {
        if bench.wants(row.name) {
            measure_row(&mut bench, &row, &options)?;
        }
    }
    if bench.wants("load generator") {
        compare_with_wrk(&mut bench, &options)?;
    }
    Ok(())
}

fn measure_row(bench: &mut Bench, row: &Row, options: &Http) -> Result<(), Box<dyn Error>> {
    let peers: Vec<Peer> = [Peer::Bare, Peer::Fastapi]
        .into_iter()
        .filter(|&peer| options.peer.is_none_or(|wanted| wanted == peer))
        .collect();
    let mut product = Vec::new();
    let mut others = vec![Vec::new(); peers.len()];
    for _ in 0..bench.rounds() {
        product.push(measure(row, &Server::product(bench.scratch())?, Peer::Bare.hits_per_second(), options));
        for (peer, rates) in peers.iter().zip(&mut others) {
            rates.push(measure(row, &peer.start(bench, row)?, peer.hits_per_second(), options));
        }
    }
    for (peer, rates) in peers.iter().zip(&others) {
        let target = if *peer == Peer::Fastapi { Target::AtLeast(TIMES_FASTAPI) } else { row.target };
        bench.compare(row.name, "requests/s", &product, (peer.name(), rates), target);
    }
    Ok(())
}

/// What the product answers to a `GET` is how long the bare handler's answer is.
fn rows(bench: &Bench) -> Result<Vec<Row>, Box<dyn Error>> {
    let add = messages::add(SMALL);
    let get = messages::get();
    let server = Server::product(bench.scratch())?;
    load::fetch(server.api, &add);
    let (hit, hit_length) = load::fetch(server.http, &get);
    let (miss, miss_length) = load::fetch(server.http, &get);
    assert_eq!((hit, miss), (200, 400), "the statuses of a hit and a miss");
    let posted = |name, request, api, target| Row { name, request, api, status: 200, length: 0, stored: None, target };
    let got = |name, status, length, stored, target| Row {
        name,
        request: get.clone(),
        api: false,
        status,
        length,
        stored,
        target,
    };
    Ok(vec![
        got("GET hit 300 B", 200, hit_length, Some(add.clone()), Target::AtLeast(0.5)),
        got("GET miss", 400, miss_length, None, Target::AtLeast(0.6)),
        posted("AddBufferMsg 300 B", add, true, Target::AtLeast(0.4)),
        posted("POST TEST", messages::test(), false, Target::None),
        posted("POST FRAME_RENDERED 1 KiB", frames::post(1 << 10), false, Target::None),
    ])
}

/// Requests per second.
fn measure(row: &Row, server: &Server, hits_per_second: u64, options: &Http) -> f64 {
    let Http { seconds, connections, .. } = *options;
    let address = if row.api { server.api } else { server.http };
    let drive =
        |address, request: &Request, status: u16, limit| load::drive(address, request, status, connections, limit);
    let Some(stored) = &row.stored else {
        drive(address, &row.request.with_other_numbers(), row.status, Limit::after(WARM_UP));
        return drive(address, &row.request, row.status, Limit::after(Duration::from_secs(seconds)));
    };
    let each = (hits_per_second * seconds).div_ceil(connections);
    // all sides: storing wakes the connections' threads and the disk alike
    drive(server.api, &stored.with_other_numbers(), 200, Limit::after(WARM_UP));
    drive(server.api, stored, 200, Limit::Count(each));
    drive(address, &row.request, row.status, Limit::Count(each))
}

/// Compares this load with wrk: requests per second of the bare handler, and the processor time of the load itself.
fn compare_with_wrk(bench: &mut Bench, options: &Http) -> Result<(), Box<dyn Error>> {
    let Http { seconds, connections, .. } = *options;
    let (mut own, mut wrk) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    for _ in 0..bench.rounds() {
        let server = Server::bare(bench.scratch(), 200, SMALL as u64)?;
        let (start, before) = (Instant::now(), processor_time()?);
        let rate =
            load::drive(server.http, &messages::get(), 200, connections, Limit::after(Duration::from_secs(seconds)));
        own.1.push((processor_time()?.0 - before.0) * 1e6 / (rate * start.elapsed().as_secs_f64()));
        own.0.push(rate);

        let (start, before) = (Instant::now(), processor_time()?);
        let mut command = Command::new("wrk");
        command.args(["-t", &cores().to_string(), "-c", &connections.to_string(), "-d", &format!("{seconds}s")]);
        let output = command.arg(format!("http://{}/?bufferUUID=x", server.http)).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let rate = text.lines().find_map(|line| line.strip_prefix("Requests/sec:")?.trim().parse::<f64>().ok());
        let rate = rate.ok_or_else(|| format!("wrk prints no rate:\n{text}"))?;
        wrk.1.push((processor_time()?.1 - before.1) * 1e6 / (rate * start.elapsed().as_secs_f64()));
        wrk.0.push(rate);
    }
    bench.compare("load generator, bare handler", "requests/s", &own.0, ("wrk", &wrk.0), Target::None);
    bench.compare("load generator, its own cost", "µs/request", &own.1, ("wrk", &wrk.1), Target::None);
    Ok(())
}

/// Seconds on a processor: of this process, and of its children that have ended.
fn processor_time() -> Result<(f64, f64), Box<dyn Error>> {
    // USER_HZ, which the kernel has fixed for programs
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').ok_or("no name in /proc/self/stat")?;
    let ticks: Vec<f64> = fields.split_whitespace().skip(11).take(4).flat_map(str::parse).collect();
    let [user, system, child_user, child_system] = ticks[..] else { return Err("no times in /proc/self/stat".into()) };
    Ok(((user + system) / TICKS, (child_user + child_system) / TICKS))
}
