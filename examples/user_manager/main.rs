//! The farm's user manager: receives what workers posted, saves the images, and prints a line for each message.

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

/// Receives what workers posted: saves each image as DIR/JOB/frame_0001.png and prints a line for each message.
///
/// A message is acknowledged once its image is on disk, and may arrive more than once: it is known by its ID.
#[derive(Parser)]
struct Args {
    /// Without a broker: the server's API
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:10001", value_parser = http::server_url)]
    api: Url,

    #[command(flatten)]
    access: Access,

    #[command(flatten)]
    identity: Identity,

    /// With a broker: its address, such as amqp://guest:guest@localhost:5672
    #[arg(long, value_name = "URL", conflicts_with_all = ["api", "token_file", "ca_file", "client_cert"])]
    amqp_url: Option<Url>,

    /// Folder to save images in
    #[arg(long, value_name = "DIR", default_value = "frames")]
    out: PathBuf,

    /// Exit once a RENDER_COMPLETED has arrived
    #[arg(long)]
    until_completed: bool,

    /// Of this job alone, for --until-completed
    #[arg(long, value_name = "UUID", requires = "until_completed")]
    job: Option<String>,

    /// Exit once so many different messages have arrived
    #[arg(long, value_name = "N")]
    count: Option<u64>,

    /// Give up, with an error, where that has not come after so long
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,

    /// API: how long a message is this program's before it is offered again
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    lease: u64,

    /// AMQP: the exchange that the server publishes to
    #[arg(long, value_name = "NAME", default_value = "COMMUNICATION_INTERFACE_EXCHANGE")]
    exchange: String,

    /// AMQP: the routing key that it publishes under
    #[arg(long, value_name = "KEY", default_value = "CIE_USER_HTTP_SERVER")]
    routing_key: String,

    /// AMQP: the queue, auto-delete; user managers that name the same one share the work [default: one of its own]
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    queue: String,
}

/// When to give up; without one, never.
#[derive(Clone, Copy)]
struct Deadline(Option<Instant>);

impl Deadline {
    fn left(self) -> Result<Duration> {
        const ALWAYS: Duration = Duration::from_secs(3600);
        match self.0 {
            None => Ok(ALWAYS),
            Some(at) => match at.saturating_duration_since(Instant::now()) {
                Duration::ZERO => Err("timed out before the last message came".into()),
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
