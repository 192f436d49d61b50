//! Frames per second, from the first `POST` until the broker has confirmed the last, beside amiquip alone, which
//! publishes the same bodies without a server in front of it and without keeping them first.
//!
//! Both have the same broker, with a durable queue behind the exchange, persistent messages, confirms, and as much
//! unconfirmed at once. All of them are processes of their own, and take turns round by round. Beside large frames
//! stands what the disk does alone when each is written to it twice, which is the limit of a server that stores each
//! frame before the broker does. The product writes little while the broker confirms: that is a figure of its own.
use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use amiquip::{Channel, Connection, ExchangeDeclareOptions, ExchangeType, FieldTable, Queue, QueueDeclareOptions};
use clap::Parser;
use serde_json::Value;

#[path = "support/amiquip_alone.rs"]
mod amiquip_alone;
#[path = "../tests/support/ports.rs"]
mod ports;
#[path = "../tests/support/rabbitmq.rs"]
mod rabbitmq;
#[path = "support/mod.rs"]
mod support;

use amiquip_alone::{EXCHANGE, ROUTING_KEY};
use rabbitmq::RabbitMq;
use support::bench::{Bench, Options, Target};
use support::load::{self, Limit, Request};
use support::server::Server;
use support::{disk, frames};

const QUEUE: &str = "bench";

/// From this size on, the disk limits the throughput.
const LARGE: usize = 1 << 20;

/// How many bytes the product may write to its disk for each byte of an image while the broker confirms.
const MAX_WRITTEN: f64 = 0.1;

/// How long the broker and a server may take to process everything.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Parser)]
struct Broker {
    #[command(flatten)]
    common: Options,
    /// Not beside the service in Python
    #[arg(long)]
    without_fastapi: bool,
    /// How much longer a round is than 2 to 5 s
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100))]
    length: u64,
}

struct Row {
    name: &'static str,
    /// Bytes of an image.
    image: usize,
    /// Each posts its next frame when the broker has confirmed the last, so as many are unconfirmed. amiquip has 1,000
    /// or 32 MiB unconfirmed.
    connections: u64,
    /// How many frames each connection posts.
    each: u64,
    target: f64,
    /// How many each connection posts to the service in Python.
    fastapi: Option<u64>,
}

const ROWS: [Row; 3] = [
    Row {
        name: "FRAME_RENDERED 1 KiB to the broker",
        image: 1 << 10,
        connections: 512,
        each: 63,
        target: 0.9,
        fastapi: Some(10),
    },
    Row {
        name: "FRAME_RENDERED 1 MiB to the broker",
        image: 1 << 20,
        connections: 32,
        each: 12,
        target: 0.9,
        fastapi: None,
    },
    Row {
        name: "FRAME_RENDERED 8 MiB to the broker",
        image: 8 << 20,
        connections: 32,
        each: 2,
        target: 0.85,
        fastapi: None,
    },
];

fn main() -> Result<(), Box<dyn Error>> {
    if amiquip_alone::publish_if_asked()? {
        return Ok(());
    }
    let options = Broker::parse();
    let mut bench = Bench::start("broker", options.common.clone())?;
    let wanted: Vec<_> = ROWS.into_iter().filter(|row| bench.wants(row.name)).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let broker = RabbitMq::start();
    let url = broker.url();
    let mut connection = Connection::insecure_open(&url)?;
    let channel = connection.open_channel(None)?;
    channel.exchange_declare(ExchangeType::Direct, EXCHANGE, ExchangeDeclareOptions::default())?;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare(QUEUE, durable)?;
    channel.queue_bind(QUEUE, EXCHANGE, ROUTING_KEY, FieldTable::new())?;
    for row in wanted {
        measure_row(&mut bench, &options, &row, &url, &channel, &queue)?;
    }
    Ok(connection.close()?)
}

fn measure_row(
    bench: &mut Bench,
    options: &Broker,
    row: &Row,
    url: &str,
    channel: &Channel,
    queue: &Queue<'_>,
) -> Result<(), Box<dyn Error>> {
    let post = frames::post(row.image);
    let each = row.each * options.length;
    let body = bench.scratch().join("body");
    fs::write(&body, published(bench, &post, url, queue)?)?;
    let (mut product, mut alone, mut fastapi, mut disk) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut written, mut costs) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds() {
        let server = Server::product_with(bench.scratch(), &["--amqp-url", url])?;
        let before = (server.written_bytes()?, server.processor_seconds()?);
        product.push(to_the_broker(&server, &post, (row.connections, each), channel, queue)?);
        let frames = (each * row.connections) as f64;
        written.push((server.written_bytes()? - before.0) as f64 / (frames * row.image as f64));
        costs.push((server.processor_seconds()? - before.1) * 1e6 / frames);
        drop(server);
        alone.push(amiquip_alone::run(url, &body, each * row.connections)?);
        expect_depth(channel, each * row.connections)?;
        queue.purge()?;
        if row.image >= LARGE {
            disk.push(disk_twice(bench.scratch(), &body, each * row.connections)?);
        }
        if let Some(each) = row.fastapi.filter(|_| !options.without_fastapi) {
            let server = Server::fastapi(bench.scratch(), Some(url))?;
            fastapi.push(to_the_broker(&server, &post, (row.connections, each * options.length), channel, queue)?);
        }
    }
    bench.compare(row.name, "frames/s", &product, ("amiquip alone", &alone), Target::AtLeast(row.target));
    if !disk.is_empty() {
        bench.compare(row.name, "frames/s", &product, ("the disk, twice", &disk), Target::None);
    }
    bench.figure(&format!("{}, written", row.name), "bytes/byte", &written, Target::AtMost(MAX_WRITTEN));
    bench.figure(&format!("{}, processor time", row.name), "µs/frame", &costs, Target::None);
    if !fastapi.is_empty() {
        bench.compare(row.name, "frames/s", &product, ("FastAPI", &fastapi), Target::None);
    }
    Ok(())
}

/// Frames per second when all of them are written twice, by two threads.
fn disk_twice(scratch: &Path, body: &Path, count: u64) -> io::Result<f64> {
    Ok(count as f64 / disk::write_from_two_threads(scratch, &fs::read(body)?, count)?.as_secs_f64())
}

/// What the product publishes for a frame.
fn published(bench: &Bench, post: &Request, url: &str, queue: &Queue<'_>) -> Result<Vec<u8>, Box<dyn Error>> {
    queue.purge()?;
    let server = Server::product_with(bench.scratch(), &["--amqp-url", url])?;
    assert_eq!(load::fetch(server.http, post).0, 200, "the status of FRAME_RENDERED");
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(got) = queue.get(true)? {
            return Ok(got.delivery.body);
        }
        thread::sleep(Duration::from_millis(5));
    }
    Err("nothing has arrived at the broker".into())
}

/// Frames per second, until the outbox is empty and the broker has all messages.
fn to_the_broker(
    server: &Server,
    post: &Request,
    (connections, each): (u64, u64),
    channel: &Channel,
    queue: &Queue<'_>,
) -> Result<f64, Box<dyn Error>> {
    wait_until_connected(server)?;
    let start = Instant::now();
    load::drive(server.http, post, 200, connections, Limit::Count(each));
    while outbox(server)? > 0 {
        if start.elapsed() > PATIENCE {
            return Err("the outbox does not become empty".into());
        }
        thread::sleep(Duration::from_millis(5));
    }
    let time = start.elapsed();
    expect_depth(channel, each * connections)?;
    queue.purge()?;
    Ok((each * connections) as f64 / time.as_secs_f64())
}

/// What `GET /readyz` says.
fn state(server: &Server) -> Result<Value, Box<dyn Error>> {
    Ok(serde_json::from_slice(&load::read(server.api, &Request::get("/readyz"))?)?)
}

fn outbox(server: &Server) -> Result<u64, Box<dyn Error>> {
    state(server)?["outbox"]["messages"].as_u64().ok_or_else(|| "no number of messages in GET /readyz".into())
}

fn wait_until_connected(server: &Server) -> Result<(), Box<dyn Error>> {
    let deadline = Instant::now() + PATIENCE;
    // the service in Python is connected before it says where it listens
    while state(server)?.get("broker").is_some_and(|broker| broker != "connected") {
        if Instant::now() > deadline {
            return Err("the server does not connect to the broker".into());
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Every confirmed message is in the queue, once.
fn expect_depth(channel: &Channel, expected: u64) -> Result<(), Box<dyn Error>> {
    let depth = channel.queue_declare_passive(QUEUE)?.declared_message_count();
    match depth {
        Some(depth) if u64::from(depth) == expected => Ok(()),
        other => Err(format!("the broker has {other:?} messages instead of {expected}").into()),
    }
}
