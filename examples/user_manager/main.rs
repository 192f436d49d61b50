//! A user manager: receives the messages of workers, saves the images, and prints a line for each message.

#[path = "../support/amqp.rs"]
mod amqp;
mod api;
mod broker;
#[path = "../support/http.rs"]
mod http;
mod inbox;
#[path = "../support/name.rs"]
mod name;
#[path = "../support/pickle.rs"]
#[allow(dead_code, reason = "shared with an example that uses more of it")]
mod pickle;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use url::Url;

use amqp::Result;
use http::{Access, Identity};
use inbox::{Goal, Inbox};

/// Receives the messages of workers: saves each image as DIR/JOB/frame_0001.png and prints a line for each message.
///
/// A message is acknowledged after its image is on disk. It may arrive more than once; copies have the same ID.
#[derive(Parser)]
struct Args {
    /// API server, for a farm without a broker
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:10001", value_parser = http::server_url)]
    api: Url,

    #[command(flatten)]
    access: Access,

    #[command(flatten)]
    identity: Identity,

    /// Broker, such as amqp://guest:guest@localhost:5672
    #[arg(long, value_name = "URL", conflicts_with_all = ["api", "token_file", "ca_file", "client_cert"])]
    amqp_url: Option<Url>,

    /// Directory to save images in
    #[arg(long, value_name = "DIR", default_value = "frames")]
    out: PathBuf,

    /// Exit after a RENDER_COMPLETED
    #[arg(long)]
    until_completed: bool,

    /// With --until-completed: only that of this job
    #[arg(long, value_name = "UUID", requires = "until_completed")]
    job: Option<String>,

    /// Exit after this many different messages
    #[arg(long, value_name = "N")]
    count: Option<u64>,

    /// Fail if they have not arrived after this long
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,

    /// API: visibility timeout of a received message
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    lease: u64,

    /// AMQP: exchange that the gateway publishes to
    #[arg(long, value_name = "NAME", default_value = "COMMUNICATION_INTERFACE_EXCHANGE")]
    exchange: String,

    /// AMQP: routing key that it publishes with
    #[arg(long, value_name = "KEY", default_value = "CIE_USER_HTTP_SERVER")]
    routing_key: String,

    /// AMQP: auto-delete queue; user managers with the same queue share the messages [default: a new queue]
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    queue: String,
}

/// When to give up, if ever.
#[derive(Clone, Copy)]
struct Deadline(Option<Instant>);

impl Deadline {
    fn left(self) -> Result<Duration> {
        const ALWAYS: Duration = Duration::from_secs(3600);
        match self.0 {
            None => Ok(ALWAYS),
            Some(at) => match at.saturating_duration_since(Instant::now()) {
                Duration::ZERO => Err("timed out before the last message arrived".into()),
                left => Ok(left.min(ALWAYS)),
            },
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let deadline = Deadline(args.timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds)));
    let goal = Goal { completed: args.until_completed, job: args.job.clone(), count: args.count };
    let mut inbox = Inbox::open(&args.out, goal)?;
    match &args.amqp_url {
        Some(url) => broker::receive(args, url, deadline, &mut inbox),
        None => api::receive(args, deadline, &mut inbox),
    }
}
