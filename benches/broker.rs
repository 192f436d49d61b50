//! Frames per second, from the first `POST` until the broker has confirmed the last, beside amiquip alone, which
//! publishes the same bodies without a server in front of it and without keeping them first.
//!
//! Both have the same broker, with a durable queue behind the exchange, persistent messages, confirms, and as much
//! unconfirmed at once. All of them are processes of their own, and take turns round by round. Beside large frames
//! stands what the disk does alone when each is written to it twice, as product and broker together do.
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

const CONNECTIONS: u64 = 32;

/// From this size on, the disk limits the throughput.
const LARGE: usize = 1 << 20;

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
    /// How many frames each connection posts.
    each: u64,
    target: f64,
    /// How many each connection posts to the service in Python.
    fastapi: Option<u64>,
}

const ROWS: [Row; 3] = [
    Row { name: "FRAME_RENDERED 1 KiB to the broker", image: 1 << 10, each: 1_000, target: 0.7, fastapi: Some(150) },
    Row { name: "FRAME_RENDERED 1 MiB to the broker", image: 1 << 20, each: 12, target: 0.6, fastapi: None },
    Row { name: "FRAME_RENDERED 8 MiB to the broker", image: 8 << 20, each: 2, target: 0.6, fastapi: None },
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
    for _ in 0..bench.rounds() {
        let server = Server::product_with(bench.scratch(), &["--amqp-url", url])?;
        product.push(to_the_broker(&server, &post, each, channel, queue)?);
        drop(server);
        alone.push(amiquip_alone::run(url, &body, each * CONNECTIONS)?);
        expect_depth(channel, each * CONNECTIONS)?;
        queue.purge()?;
        if row.image >= LARGE {
            disk.push(disk_twice(bench.scratch(), &body, each * CONNECTIONS)?);
        }
        if let Some(each) = row.fastapi.filter(|_| !options.without_fastapi) {
            let server = Server::fastapi(bench.scratch(), Some(url))?;
            fastapi.push(to_the_broker(&server, &post, each * options.length, channel, queue)?);
        }
    }
    bench.compare(row.name, "frames/s", &product, ("amiquip alone", &alone), Target::AtLeast(row.target));
    if !disk.is_empty() {
        bench.compare(row.name, "frames/s", &product, ("the disk, twice", &disk), Target::None);
    }
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
    each: u64,
    channel: &Channel,
    queue: &Queue<'_>,
) -> Result<f64, Box<dyn Error>> {
    wait_until_connected(server)?;
    let start = Instant::now();
    load::drive(server.http, post, 200, CONNECTIONS, Limit::Count(each));
    while outbox(server)? > 0 {
        if start.elapsed() > PATIENCE {
            return Err("the outbox does not become empty".into());
        }
        thread::sleep(Duration::from_millis(5));
    }
    let time = start.elapsed();
    expect_depth(channel, each * CONNECTIONS)?;
    queue.purge()?;
    Ok((each * CONNECTIONS) as f64 / time.as_secs_f64())
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
