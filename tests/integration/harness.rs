//! What the tests drive: the server as a child process, the farm's Python programs, brokers, and bare HTTP.

mod amqp;
mod broker;
mod browser;
mod cluster;
mod farm;
mod front;
mod http;
mod manager;
mod metrics;
mod process;
mod program;
mod proxy;
mod python;
mod server;
mod setup;
mod tls;
mod traffic;

use std::fmt::Debug;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

pub use amqp::AmqpFarm;
pub(crate) use broker::for_each_broker;
pub use broker::{Broker, FaultyBroker, Version};
pub use browser::{Page, Scheme};
pub use cluster::Cluster;
pub use farm::{Farm, Referred, forwarded, frame, order, referred};
pub use front::{Front, Kind};
pub use http::{Connection, Response, connect, request};
pub use manager::{Manager, listening, passing};
pub use metrics::{PREFIX, Scrape, assert_balanced, eventually_scraped};
pub use process::io_bytes;
pub use program::{Ended, Program, example, gateway, outside_cargo, without_settings};
pub use proxy::{Direction, Proxy};
pub use python::{Answer, Peer, hex, peer_command, python};
pub use server::{Server, files_below};
pub(crate) use setup::for_each_host;
pub use setup::{Host, Setup, new_mount_namespace};
pub use tls::{Ca, Client, Identity};
pub use traffic::{
    Arrivals, Posting, add_buffer_msg, frame_number, order_in_json, post_frame, post_user_msg, send_frame,
    try_send_frame,
};

use crate::ports::free_port;

/// Makes a module of tests: each function of the module around it, called with the value.
macro_rules! tests_with {
    ($module:ident, $value:expr, $($test:ident),*) => {
        mod $module {
            $(#[test]
            fn $test() {
                super::$test($value);
            })*
        }
    };
}
pub(crate) use tests_with;

/// The deadline for what is immediate on an idle machine.
pub const SOON: Duration = Duration::from_secs(30);

/// An address that stays free, for a server that has to have the same one after a restart, or whose log does not show
/// it.
pub fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

/// Calls `probe` until it returns a value, and returns that; panics after `deadline` with the last state.
#[track_caller]
pub fn eventually<T, S: Debug>(what: &str, deadline: Duration, mut probe: impl FnMut() -> Result<T, S>) -> T {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(value) => return value,
            Err(state) if start.elapsed() > deadline => panic!("not within {deadline:?}: {what}; stuck in: {state:?}"),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// `Ok` when a fact holds, else the state, for [`eventually`].
pub fn holds<S>(fact: bool, state: S) -> Result<(), S> {
    if fact { Ok(()) } else { Err(state) }
}
