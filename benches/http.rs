//! Requests per second and processor time of the small requests, beside a bare actix-web handler whose answers are as
//! long, beside a service of the same contract in Python that keeps all in memory, and beside another build of the
//! product.
//!
//! All run as child processes and take turns round by round. Every round starts them anew: the product with an empty
//! data directory, without a broker.
use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};

#[path = "support/mod.rs"]
mod support;

use support::bench::{Bench, Options, Target, cores};
use support::load::{self, Limit, Request};
use support::server::{Server, processor_seconds};
use support::{bare, frames, messages};

/// What a round begins with, unmeasured.
const WARM_UP: Duration = Duration::from_millis(300);

/// How long a buffered message is.
const SMALL: usize = 300;

/// The unit of a processor time.
const PROCESSOR_TIME: &str = "µs/request";

/// The product is to take this many times less processor time than the service in Python. Requests per second depend
/// on the load too, which shares the cores.
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
    /// Another build of the product, such as one of an earlier commit, as one more peer
    #[arg(long, value_name = "FILE", required_if_eq("peer", "build"))]
    build: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Peer {
    Bare,
    Fastapi,
    Build,
}

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare actix-web",
            Self::Fastapi => "FastAPI",
            Self::Build => "other build",
        }
    }

    fn start(self, bench: &Bench, row: &Row, options: &Http) -> io::Result<Server> {
        match self {
            Self::Bare => Server::bare(bench.scratch(), row.status, row.length),
            Self::Fastapi => Server::fastapi(bench.scratch(), None),
            Self::Build => Server::build(options.build.as_deref().expect("a peer's program"), bench.scratch()),
        }
    }

    fn target(self, row: &Row) -> Target {
        match self {
            Self::Bare => row.target,
            Self::Fastapi | Self::Build => Target::None,
        }
    }

    /// How many messages are there to be fetched, for each second that a round lasts.
    fn hits_per_second(self) -> u64 {
        match self {
            Self::Bare | Self::Build => 40_000,
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
    let peers: Vec<Peer> = [Peer::Bare, Peer::Fastapi, Peer::Build]
        .into_iter()
        .filter(|&peer| options.peer.is_none_or(|wanted| wanted == peer))
        .filter(|&peer| peer != Peer::Build || options.build.is_some())
        .collect();
    let mut product = Figures::default();
    let mut others = vec![Figures::default(); peers.len()];
    for _ in 0..bench.rounds() {
        product.add(measure(row, &Server::product(bench.scratch())?, Peer::Bare.hits_per_second(), options)?);
        for (peer, figures) in peers.iter().zip(&mut others) {
            figures.add(measure(row, &peer.start(bench, row, options)?, peer.hits_per_second(), options)?);
        }
    }
    for (peer, figures) in peers.iter().zip(&others) {
        bench.compare(row.name, "requests/s", &product.rates, (peer.name(), &figures.rates), peer.target(row));
        let target = if *peer == Peer::Fastapi { Target::AtMost(1.0 / TIMES_FASTAPI) } else { Target::None };
        bench.compare(row.name, PROCESSOR_TIME, &product.costs, (peer.name(), &figures.costs), target);
    }
    Ok(())
}

/// Requests per second, and the server's processor time per request in µs, user and system: one value for each round.
#[derive(Clone, Default)]
struct Figures {
    rates: Vec<f64>,
    costs: Vec<f64>,
}

impl Figures {
    fn add(&mut self, (rate, cost): (f64, f64)) {
        self.rates.push(rate);
        self.costs.push(cost);
    }
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
        got("GET hit 300 B", 200, hit_length, Some(add.clone()), Target::AtLeast(0.6)),
        got("GET miss", 400, miss_length, None, Target::AtLeast(0.85)),
        posted("AddBufferMsg 300 B", add, true, Target::AtLeast(0.5)),
        posted("POST TEST", messages::test(), false, Target::None),
        posted("POST FRAME_RENDERED 1 KiB", frames::post(1 << 10), false, Target::None),
    ])
}

/// Requests per second, and the server's processor time per request in µs.
fn measure(row: &Row, server: &Server, hits_per_second: u64, options: &Http) -> io::Result<(f64, f64)> {
    let Http { seconds, connections, .. } = *options;
    let address = if row.api { server.api } else { server.http };
    let drive =
        |address, request: &Request, status: u16, limit| load::drive(address, request, status, connections, limit);
    let mut limit = Limit::Count((hits_per_second * seconds).div_ceil(connections));
    if let Some(stored) = &row.stored {
        // all sides: storing wakes the connections' threads and the disk alike
        drive(server.api, &stored.with_other_numbers(), 200, Limit::after(WARM_UP));
        drive(server.api, stored, 200, limit);
    } else {
        drive(address, &row.request.with_other_numbers(), row.status, Limit::after(WARM_UP));
        limit = Limit::after(Duration::from_secs(seconds));
    }
    let (start, before) = (Instant::now(), server.processor_seconds()?);
    let rate = drive(address, &row.request, row.status, limit);
    let requests = rate * start.elapsed().as_secs_f64();
    Ok((rate, (server.processor_seconds()? - before) * 1e6 / requests))
}

/// Compares this load with wrk: requests per second of the bare handler, and the processor time of the load itself.
fn compare_with_wrk(bench: &mut Bench, options: &Http) -> Result<(), Box<dyn Error>> {
    let Http { seconds, connections, .. } = *options;
    let (mut own, mut wrk) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    for _ in 0..bench.rounds() {
        let server = Server::bare(bench.scratch(), 200, SMALL as u64)?;
        let (start, before) = (Instant::now(), processor_seconds("self")?);
        let rate =
            load::drive(server.http, &messages::get(), 200, connections, Limit::after(Duration::from_secs(seconds)));
        own.1.push((processor_seconds("self")?.own - before.own) * 1e6 / (rate * start.elapsed().as_secs_f64()));
        own.0.push(rate);

        let (start, before) = (Instant::now(), processor_seconds("self")?);
        let mut command = Command::new("wrk");
        command.args(["-t", &cores().to_string(), "-c", &connections.to_string(), "-d", &format!("{seconds}s")]);
        let output = command.arg(format!("http://{}/?bufferUUID=x", server.http)).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let rate = text.lines().find_map(|line| line.strip_prefix("Requests/sec:")?.trim().parse::<f64>().ok());
        let rate = rate.ok_or_else(|| format!("wrk prints no rate:\n{text}"))?;
        wrk.1.push(
            (processor_seconds("self")?.children - before.children) * 1e6 / (rate * start.elapsed().as_secs_f64()),
        );
        wrk.0.push(rate);
    }
    bench.compare("load generator, bare handler", "requests/s", &own.0, ("wrk", &wrk.0), Target::None);
    bench.compare("load generator, its own cost", PROCESSOR_TIME, &own.1, ("wrk", &wrk.1), Target::None);
    Ok(())
}
