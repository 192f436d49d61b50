//! Uploads of large frames: how much memory they take, how much they delay others, and how fast they are stored.
//!
//! Without a broker, so that each frame is on this disk before its answer. Beside it stands what the disk does alone
//! with the same bytes, one sync each.

use std::error::Error;
use std::io::{self, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;

#[path = "support/mod.rs"]
mod support;

use support::bench::{Bench, Options, Target};
use support::latency::{percentile, probe};
use support::load::{self, Limit};
use support::messages;
use support::server::Server;
use support::{disk, frames};

const CONNECTIONS: u64 = 32;

/// Bytes of an upload.
const UPLOAD: usize = 16 << 20;

/// Bytes that a slow upload sends at once, and how often a second it does.
const SLICE: usize = 16 << 10;
const SLICES: u32 = 4;

const MEMORY: &str = "memory, 2,000 slow uploads";
const LATENCY: &str = "p99 of a small GET under 200 uploads";

#[derive(Clone, Parser)]
struct Uploads {
    #[command(flatten)]
    common: Options,
    /// How long 2,000 uploads of 64 KiB/s are watched, in seconds; they end after 256
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=256))]
    seconds: u32,
    /// Samples of the latency in a round, 200 a second
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(100..=100_000))]
    samples: u32,
}

struct Row {
    name: &'static str,
    image: usize,
    /// How many frames each connection posts.
    each: u64,
}

const ROWS: [Row; 2] = [
    Row { name: "FRAME_RENDERED 1 MiB, stored", image: 1 << 20, each: 12 },
    Row { name: "FRAME_RENDERED 8 MiB, stored", image: 8 << 20, each: 2 },
];

fn main() -> Result<(), Box<dyn Error>> {
    let options = Uploads::parse();
    let mut bench = Bench::start("uploads", options.common.clone())?;
    for row in ROWS {
        if bench.wants(row.name) {
            measure_storing(&mut bench, &row)?;
        }
    }
    if bench.wants(MEMORY) {
        let mut peaks = Vec::new();
        for _ in 0..bench.rounds() {
            let server = Server::product(bench.scratch())?;
            let mut uploads = Slow::begin(&server, 2_000)?;
            for _ in 0..options.seconds * SLICES {
                uploads.send_slices(Duration::from_secs(1) / SLICES)?;
            }
            peaks.push(server.memory("VmHWM")?);
        }
        bench.figure(MEMORY, "MiB", &peaks, Target::AtMost(600.0));
    }
    if bench.wants(LATENCY) {
        measure_latency(&mut bench, &options)?;
    }
    Ok(())
}

fn measure_storing(bench: &mut Bench, row: &Row) -> Result<(), Box<dyn Error>> {
    let post = frames::post(row.image);
    let (mut product, mut disk) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds() {
        let server = Server::product(bench.scratch())?;
        product.push(load::drive(server.http, &post, 200, CONNECTIONS, Limit::Count(row.each)));
        drop(server);
        disk.push(disk_alone(bench.scratch(), row.image, row.each * CONNECTIONS)?);
    }
    bench.compare(row.name, "frames/s", &product, ("the disk alone", &disk), Target::AtLeast(0.85));
    Ok(())
}

/// Frames per second when two threads write half of them each.
fn disk_alone(scratch: &Path, len: usize, count: u64) -> io::Result<f64> {
    Ok(count as f64 / disk::write_from_two_threads(scratch, &vec![0x5a; len], count / 2)?.as_secs_f64())
}

/// Uploads that have been announced, and that go on as slowly as they are told to.
struct Slow(Vec<TcpStream>);

impl Slow {
    fn begin(server: &Server, count: usize) -> io::Result<Self> {
        let head = format!(
            "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\nContent-Length: \
             {UPLOAD}\r\n\r\n"
        );
        let begin = |_| {
            let mut stream = TcpStream::connect(server.http)?;
            stream.write_all(head.as_bytes())?;
            Ok(stream)
        };
        (0..count).map(begin).collect::<io::Result<_>>().map(Self)
    }

    /// Sends a slice of each, over a time of `interval`.
    fn send_slices(&mut self, interval: Duration) -> io::Result<()> {
        let end = Instant::now() + interval;
        let slice = [0x42; SLICE];
        self.0.iter_mut().try_for_each(|upload| upload.write_all(&slice))?;
        thread::sleep(end.saturating_duration_since(Instant::now()));
        Ok(())
    }
}

fn measure_latency(bench: &mut Bench, options: &Uploads) -> Result<(), Box<dyn Error>> {
    let small = messages::get_of("nobody-has-left-this");
    let p99 = |server: &Server| {
        let mut times = probe(server.http, &small, 400, 200, options.samples);
        percentile(&mut times, 99).as_secs_f64() * 1e3
    };
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds() {
        let server = Server::product(bench.scratch())?;
        alone.push(p99(&server));
        beside.push(under_uploads(&server, || p99(&server))?);
    }
    bench.compare(LATENCY, "ms", &beside, ("without uploads", &alone), Target::AtMost(5.0));
    Ok(())
}

/// Runs `during` while 200 uploads go on at 64 KiB/s each.
fn under_uploads<T>(server: &Server, during: impl FnOnce() -> T) -> io::Result<T> {
    let end = AtomicBool::new(false);
    let mut uploads = Slow::begin(server, 200)?;
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                uploads.send_slices(Duration::from_secs(1) / SLICES)?;
            }
            io::Result::Ok(())
        });
        let result = during();
        end.store(true, Ordering::Relaxed);
        sending.join().unwrap_or_else(|_| Err(io::Error::other("the uploads have failed")))?;
        Ok(result)
    })
}
