//! How fast the server is, beside a bare actix-web handler whose answers are as long: requests per second of the small
//! requests, and megabytes per second of a .blend file of 1 GiB.
//!
//! Both run as child processes with as many workers each, and take turns round by round. Every round starts them
//! anew: the server with an empty data directory below the target directory, without a broker.
use std::error::Error;
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZero;
use std::path::Path;
use std::thread;
use std::time::Duration;

use clap::Parser;

#[path = "http/bare.rs"]
mod bare;
#[path = "http/load.rs"]
mod load;
#[path = "http/server.rs"]
mod server;

use load::{Limit, NUMBER, Request};
use server::Server;

/// What a round begins with, unmeasured.
const WARM_UP: Duration = Duration::from_millis(300);

/// How many messages are there to be fetched, for each second that a round lasts.
const HITS_PER_SECOND: u64 = 10_000;

const BLEND_FILE: &str = "scene.blend";
const BLEND_BYTES: u64 = 1 << 30;

#[derive(Clone, Copy, Parser)]
struct Options {
    /// How long a round lasts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Connections at the same time
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=4096))]
    connections: u64,
    /// Rounds of which the median is taken
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
    rounds: u64,
    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,
}

/// One row of the table.
struct Row {
    name: String,
    request: Request,
    /// Asked of the API server, not of that for workers.
    api: bool,
    /// What the answer has to be.
    status: u16,
    /// How long the bare handler's answer to a `GET` is.
    length: u64,
    /// What is stored before under each number that is asked for.
    stored: Option<Request>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    if let [_, flag, status, length, file] = args.as_slice()
        && flag == bare::FLAG
    {
        return bare::serve(status.parse()?, length.parse()?, file.into());
    }
    let options = Options::parse();
    let Options { seconds, connections, rounds, .. } = options;
    println!("cargo bench --bench http -- --seconds {seconds} --connections {connections} --rounds {rounds}");
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    println!("{cores} cores, shared by the server and the load; median (min .. max) of the rounds; ratio of medians\n");
    // on a real file system, which a temporary directory often is not
    let scratch = tempfile::Builder::new().prefix("bench-http-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let scratch = scratch.path();

    println!("{:<31} {:>27} {:>27} {:>7}", "requests/s", "product", "bare actix-web", "ratio");
    for row in rows(scratch)? {
        let (mut product, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            product.push(measure(&row, &Server::product(scratch)?, options));
            bare.push(measure(&row, &Server::bare(scratch, row.status, row.length, BLEND_FILE)?, options));
        }
        print_row(&row.name, product, bare);
    }

    // written and synced, so that all of it is in the page cache from the first round on, and nothing is left to write
    let mut blend_file = File::create(scratch.join(BLEND_FILE))?;
    io::copy(&mut io::repeat(0x5a).take(BLEND_BYTES), &mut blend_file)?;
    blend_file.sync_all()?;
    let (mut product, mut bare, mut growth) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let server = Server::product(scratch)?;
        growth.extend(download_blend(&server, &mut product));
        let server = Server::bare(scratch, 200, 0, BLEND_FILE)?;
        bare.push(megabytes_per_second(&server, &Request::get(bare::FILE)));
    }
    println!("\n{:<31} {:>27} {:>27} {:>7}", "MB/s, one client", "product", "bare actix-web", "ratio");
    print_row("GET .blend 1 GiB", product, bare);
    match growth.iter().max() {
        Some(kib) => println!("resident memory of the product grew by {:.1} MiB at the most", *kib as f64 / 1024.0),
        None => println!("resident memory of the product: not known here"),
    }
    Ok(())
}

/// The rows of the small requests. What the product answers to a `GET` is how long the bare handler's answer is.
fn rows(scratch: &Path) -> Result<Vec<Row>, Box<dyn Error>> {
    let user_message = |kind: &str, data: &str| {
        let body = format!(r#"{{"USER_ID":"bench","MAIN_DATA":{{"TYPE":"{kind}","DATA":"{data}"}}}}"#);
        Request::post("/", &body)
    };
    let render = format!(r#"{{"TYPE":"RENDER","DATA":{{"JOB":"{}","FRAMES":[1,2,3,4]}}}}"#, "x".repeat(246));
    let add = add_buffer_msg(NUMBER, &render);
    let get = Request::get(&format!("/?bufferUUID={NUMBER}"));

    let server = Server::product(scratch)?;
    load::fetch(server.api, &add);
    let (hit, hit_length) = load::fetch(server.http, &get);
    let (miss, miss_length) = load::fetch(server.http, &get);
    assert_eq!((hit, miss), (200, 400), "the statuses of a hit and a miss");

    let posted =
        |name: String, request: Request, api: bool| Row { name, request, api, status: 200, length: 0, stored: None };
    let got = |name: &str, status: u16, length: u64, stored: Option<Request>| Row {
        name: format!("{name} {length} B"),
        request: get.clone(),
        api: false,
        status,
        length,
        stored,
    };
    Ok(vec![
        posted("POST TEST".to_owned(), user_message("TEST", "hello"), false),
        posted(format!("AddBufferMsg {} B, durable", render.len()), add.clone(), true),
        got("GET hit", 200, hit_length, Some(add)),
        got("GET miss", 400, miss_length, None),
        posted("FRAME_RENDERED 1 KiB, durable".to_owned(), user_message("FRAME_RENDERED", &"x".repeat(1024)), false),
    ])
}

fn add_buffer_msg(buffer_uuid: &str, message: &str) -> Request {
    let data = format!(r#"{{"BUFFER_UUID":"{buffer_uuid}","BUFFER_MSG":{message}}}"#);
    Request::post("/CommunicationInterface/AddBufferMsg", &format!(r#"{{"TYPE":"ADD_BUFFER_MSG","DATA":{data}}}"#))
}

/// Requests per second.
fn measure(row: &Row, server: &Server, options: Options) -> f64 {
    let address = if row.api { server.api } else { server.http };
    let drive = |address, request: &Request, status: u16, limit| {
        load::drive(address, request, status, options.connections, limit)
    };
    let Some(stored) = &row.stored else {
        drive(address, &row.request.with_other_numbers(), row.status, Limit::after(WARM_UP));
        return drive(address, &row.request, row.status, Limit::after(Duration::from_secs(options.seconds)));
    };
    let each = (HITS_PER_SECOND * options.seconds).div_ceil(options.connections);
    // both sides: storing wakes the connections' threads and the disk alike
    drive(server.api, &stored.with_other_numbers(), 200, Limit::after(WARM_UP));
    drive(server.api, stored, 200, Limit::Count(each));
    drive(address, &row.request, row.status, Limit::Count(each))
}

/// Adds one download to `speeds`; by how many KiB the server's resident memory was larger meanwhile.
fn download_blend(server: &Server, speeds: &mut Vec<f64>) -> Option<u64> {
    let message =
        format!(r#"{{"DATA":{{"META_DATA":"EXTRACT_BLEND_FILE_FROM_PATH","BINARY_BLEND_FILE":"{BLEND_FILE}"}}}}"#);
    assert_eq!(load::fetch(server.api, &add_buffer_msg("blend", &message)).0, 200, "the status of AddBufferMsg");
    let before = server.memory("VmRSS")?;
    speeds.push(megabytes_per_second(server, &Request::get("/?bufferUUID=blend")));
    Some(server.memory("VmHWM")?.saturating_sub(before))
}

fn megabytes_per_second(server: &Server, request: &Request) -> f64 {
    let (bytes, time) = load::download(server.http, request);
    assert!(bytes >= BLEND_BYTES, "an answer of {bytes} bytes is no whole .blend file");
    bytes as f64 / 1e6 / time.as_secs_f64()
}

fn print_row(name: &str, product: Vec<f64>, bare: Vec<f64>) {
    let cell = |mut rates: Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        let middle = rates.len() / 2;
        let median = if rates.len() % 2 == 1 { rates[middle] } else { rates[middle - 1].midpoint(rates[middle]) };
        (median, format!("{median:.0} ({:.0} .. {:.0})", rates[0], rates[rates.len() - 1]))
    };
    let ((product, product_cell), (bare, bare_cell)) = (cell(product), cell(bare));
    println!("{name:<31} {product_cell:>27} {bare_cell:>27} {:>7.2}", product / bare);
}
