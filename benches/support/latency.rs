//! How long single answers take, at a rate that does not depend on the answers.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use super::load::{Connection, Request};

/// With this many, a request waits for an earlier one only if answers take longer than 160 ms at 200 requests a second.
const CONNECTIONS: u32 = 32;

/// The probe gives up after this multiple of the time that all requests should take.
const PATIENCE: u32 = 3;

/// Asks `rate` times a second, whatever the answers do; the times from the moment at which each request was due, so
/// that waiting for an earlier answer counts.
pub fn probe(address: SocketAddr, request: &Request, status: u16, rate: u32, samples: u32) -> Vec<Duration> {
    let interval = Duration::from_secs(1) / rate;
    let start = Instant::now() + Duration::from_millis(10);
    let end = start + interval * samples * PATIENCE;
    let ask = |first: u32| {
        let mut connection = Connection::open(address, request, 0, 16 << 10).expect("a connection");
        let mut times = Vec::new();
        for turn in (first..samples).step_by(CONNECTIONS as usize) {
            let due = start + interval * turn;
            if Instant::now() > end {
                break;
            }
            thread::sleep(due.saturating_duration_since(Instant::now()));
            connection.send(0).expect("a request sent");
            let (answered, _) = connection.receive().expect("an answer in time");
            times.push(due.elapsed());
            assert_eq!(answered, status, "the status of an answer");
        }
        times
    };
    thread::scope(|scope| {
        let probes: Vec<_> = (0..CONNECTIONS).map(|first| scope.spawn(move || ask(first))).collect();
        probes.into_iter().flat_map(|probe| probe.join().expect("the times of one connection")).collect()
    })
}

/// This percentile of the times.
pub fn percentile(times: &mut [Duration], hundredths: usize) -> Duration {
    times.sort();
    times[(times.len() * hundredths).div_ceil(100) - 1]
}
