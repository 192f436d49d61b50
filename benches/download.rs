//! Downloads of 1 GiB, beside nginx with `sendfile` and the same file; and the latency of a small answer meanwhile.
//!
//! The file is in the page cache for both. The same clients read from both, into memory, as a worker does.
use std::error::Error;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;

#[path = "support/mod.rs"]
mod support;

use support::bench::{Bench, Options, Target};
use support::latency::{percentile, probe};
use support::load::{self, Request};
use support::messages;
use support::nginx::Nginx;
use support::server::{Server, write_file};

const BLEND_FILE: &str = "scene.blend";
const BLEND_BYTES: u64 = 1 << 30;

/// How many downloads run while the latency of a small answer is measured.
const AROUND: usize = 8;

#[derive(Clone, Parser)]
struct Download {
    #[command(flatten)]
    common: Options,
    /// How many downloads each client makes in a round, one after another
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=1000))]
    downloads: u64,
    /// How many small answers are timed in a round
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    samples: u32,
    /// How many small answers are asked for in a second
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Download::parse();
    let mut bench = Bench::start("download", options.common.clone())?;
    let rows = [
        ("GET 1 GiB .blend, one client", 1, Target::AtLeast(1.0)),
        ("GET 1 GiB .blend, four clients", 4, Target::AtLeast(1.0)),
    ];
    let wanted = rows.map(|(row, ..)| bench.wants(row));
    let latency = format!("p99 of a small GET under {AROUND} downloads");
    let wants_latency = bench.wants(&latency);
    if !wants_latency && wanted == [false, false] {
        return Ok(());
    }
    let file = write_file(bench.scratch(), BLEND_FILE, BLEND_BYTES)?;
    for ((row, clients, target), _) in rows.into_iter().zip(wanted).filter(|(_, wanted)| *wanted) {
        compare_downloads(&mut bench, &options, row, clients, target, &file)?;
    }
    if wants_latency {
        compare_latency(&mut bench, &options, &latency, &file)?;
    }
    Ok(())
}

/// A source of repeated downloads.
#[derive(Clone, Copy)]
enum Origin<'a> {
    Product(&'a Server),
    Nginx(&'a Nginx),
}

impl Origin<'_> {
    /// Downloads once; returns the number of bytes.
    fn download(self, number: u64) -> u64 {
        let (address, request): (SocketAddr, Request) = match self {
            Self::Nginx(nginx) => (nginx.address, Request::get("/file")),
            Self::Product(server) => {
                // a message is fetched once
                let uuid = format!("blend-{number}");
                let add = messages::add_buffer_msg(&uuid, &messages::blend(BLEND_FILE));
                assert_eq!(load::fetch(server.api, &add).0, 200, "the status of AddBufferMsg");
                (server.http, messages::get_of(&uuid))
            }
        };
        let (status, bytes) = load::fetch(address, &request);
        assert_eq!(status, 200, "the status of a download");
        assert!(bytes >= BLEND_BYTES, "an answer of {bytes} bytes is no whole .blend file");
        bytes
    }

    /// Megabytes per second of `clients` parallel clients that download `times` times each.
    fn throughput(self, clients: u64, downloads: u64) -> f64 {
        let start = Instant::now();
        let bytes: u64 = thread::scope(|scope| {
            let all = |client: u64| move || (0..downloads).map(|n| self.download(client * downloads + n)).sum::<u64>();
            let running: Vec<_> = (0..clients).map(|client| scope.spawn(all(client))).collect();
            running.into_iter().map(|client| client.join().expect("a client's downloads")).sum()
        });
        bytes as f64 / 1e6 / start.elapsed().as_secs_f64()
    }

    /// Runs `during` while other clients download without end; returns its result and their megabytes per second.
    fn under_downloads<T>(self, during: impl FnOnce() -> T) -> (T, f64) {
        let (end, number) = (AtomicBool::new(false), AtomicU64::new(0));
        let start = Instant::now();
        let (result, bytes) = thread::scope(|scope| {
            let again = || {
                let mut bytes = 0;
                while !end.load(Ordering::Relaxed) {
                    bytes += self.download(number.fetch_add(1, Ordering::Relaxed));
                }
                bytes
            };
            let running: Vec<_> = (0..AROUND).map(|_| scope.spawn(again)).collect();
            thread::sleep(Duration::from_millis(300));
            let result = during();
            end.store(true, Ordering::Relaxed);
            let bytes = running.into_iter().map(|client| client.join().expect("a client's downloads")).sum::<u64>();
            (result, bytes)
        });
        (result, bytes as f64 / 1e6 / start.elapsed().as_secs_f64())
    }
}

fn compare_downloads(
    bench: &mut Bench,
    options: &Download,
    row: &str,
    clients: u64,
    target: Target,
    file: &Path,
) -> Result<(), Box<dyn Error>> {
    let (mut product, mut nginx, mut growth) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.rounds() {
        let server = Server::product(bench.scratch())?;
        let before = server.memory("VmRSS")?;
        product.push(Origin::Product(&server).throughput(clients, options.downloads));
        growth.push((server.memory("VmHWM")? - before).max(0.0) / clients as f64);
        drop(server);
        let server = Nginx::start(bench.scratch(), file, 1)?;
        nginx.push(Origin::Nginx(&server).throughput(clients, options.downloads));
    }
    bench.compare(row, "MB/s", &product, ("nginx", &nginx), target);
    bench.figure(&format!("memory a stream: {row}"), "MiB", &growth, Target::AtMost(16.0));
    Ok(())
}

fn compare_latency(bench: &mut Bench, options: &Download, row: &str, file: &Path) -> Result<(), Box<dyn Error>> {
    let Download { rate, samples, .. } = *options;
    let small = messages::get_of("nobody-has-left-this");
    let (mut product, mut nginx) = (Percentiles::default(), Percentiles::default());
    for _ in 0..bench.rounds() {
        let server = Server::product(bench.scratch())?;
        let length = load::fetch(server.http, &small).1 as usize;
        let ask = || probe(server.http, &small, 400, rate, samples);
        product.push(Origin::Product(&server).under_downloads(ask));
        drop(server);
        let server = Nginx::start(bench.scratch(), file, length)?;
        let ask = || probe(server.address, &Request::get("/small"), 200, rate, samples);
        nginx.push(Origin::Nginx(&server).under_downloads(ask));
    }
    bench.compare(row, "ms", &product.p99, ("nginx", &nginx.p99), Target::AtMost(1.5));
    bench.compare(&row.replace("p99", "p50"), "ms", &product.p50, ("nginx", &nginx.p50), Target::None);
    bench.compare("the downloads meanwhile", "MB/s", &product.rate, ("nginx", &nginx.rate), Target::None);
    Ok(())
}

/// Of each round, in ms; and MB/s.
#[derive(Default)]
struct Percentiles {
    p50: Vec<f64>,
    p99: Vec<f64>,
    rate: Vec<f64>,
}

impl Percentiles {
    fn push(&mut self, (mut times, rate): (Vec<Duration>, f64)) {
        self.p50.push(percentile(&mut times, 50).as_secs_f64() * 1e3);
        self.p99.push(percentile(&mut times, 99).as_secs_f64() * 1e3);
        self.rate.push(rate);
    }
}
