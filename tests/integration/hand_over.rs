//! A new process takes over the sockets of the old one under load, and no client notices. With `TEST_OTHER_PROGRAM`,
//! two programs replace each other in turn.

mod load;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use procfs::process::Process;
use procfs::ticks_per_second;

use crate::harness::{Connection, Scrape, Server, Setup, assert_balanced, listening, passing, request};
use crate::kill::{Seed, from_environment};
use load::{BLEND_BYTES, BLEND_FILE, End, Run, take_the_rest};

/// How often the process is replaced; `TEST_HAND_OVERS` sets another number.
const HAND_OVERS: u64 = 4;

/// How long the load lasts before each replacement, and after the last one.
const LOAD: Duration = Duration::from_millis(1500);

fn server_with_passed_sockets() -> Server {
    let sockets = [listening("127.0.0.1"), listening("127.0.0.1")];
    passing(Setup::default(), "worker:api", sockets.map(Into::into).into()).start()
}

/// The revision of the program that answers. It must have found its store as after a stop in order.
#[track_caller]
fn revision_after_a_stop(server: &Server) -> String {
    let scrape = Scrape::of(server.api);
    assert_eq!(scrape.value("unclean_starts_total"), 0.0, "{}", server.log());
    scrape.labels("build_info", "revision").concat()
}

/// How long the threads of this program have run: the clients, and other tests that run at the same time.
fn processor_time() -> Duration {
    let stat = Process::myself().and_then(|process| process.stat()).expect("this process");
    Duration::from_secs_f64((stat.utime + stat.stime) as f64 / ticks_per_second() as f64)
}

#[test]
fn no_request_fails_and_nothing_is_lost_while_a_process_replaces_another_under_load() {
    let seed = Seed::get();
    let hand_overs = from_environment("TEST_HAND_OVERS").unwrap_or(HAND_OVERS);
    let mut server = server_with_passed_sockets();
    server.sparse_blend_file(BLEND_FILE, BLEND_BYTES);
    let (http, api) = (server.http, server.api);
    let run = Run::default();
    let (start, used) = (Instant::now(), processor_time());
    let (mut replaced, mut revisions) = (Vec::new(), BTreeSet::from([revision_after_a_stop(&server)]));
    std::thread::scope(|scope| {
        run.start(scope, http, api, seed.0);
        let _end = End(&run);
        for _ in 0..hand_overs {
            std::thread::sleep(LOAD);
            let begun = Instant::now();
            server.replace();
            replaced.push(begun.elapsed());
            revisions.insert(revision_after_a_stop(&server));
        }
        std::thread::sleep(LOAD);
    });
    let (lasted, used) = (start.elapsed(), processor_time() - used);
    let requests = run.requests.load(Ordering::Relaxed);
    println!(
        "{hand_overs} hand-overs ({replaced:.1?}) between {revisions:?}: {requests} requests in {lasted:.1?}, {:.0} a \
         second, with {:.0} % of a core; {run}",
        requests as f64 / lasted.as_secs_f64(),
        100.0 * used.as_secs_f64() / lasted.as_secs_f64(),
    );
    let failures = run.failures.lock().expect("the failures").clone();
    assert!(failures.is_empty(), "{} of {requests}: {failures:#?}; log:\n{}", failures.len(), server.log());
    assert_eq!((server.http, server.api), (http, api));
    take_the_rest(&run, api);
    let posted = run.posted.into_inner().expect("the frames");
    let taken = run.taken.into_inner().expect("the frames");
    let taken: BTreeSet<_> = taken.into_iter().collect();
    assert_eq!(taken.len(), posted.len(), "each frame has one id");
    assert_eq!(taken.into_iter().map(|(name, _)| name).collect::<BTreeSet<_>>(), posted);
    let books = assert_balanced(api);
    assert_eq!((books.value("buffer_messages"), books.value("outbox_messages")), (0.0, 0.0), "all was fetched");
    assert!(requests as u64 > 100 * hand_overs, "{requests} requests");
}

#[test]
fn idle_connections_are_kept_open_while_the_sockets_are_handed_over() {
    let mut server = server_with_passed_sockets();
    let mut idle = Connection::open(server.http);
    assert_eq!(idle.request("GET", "/?bufferUUID=x", &[], b"").header("connection"), None);
    server.terminate();
    server.wait_for_log("handing over");
    // a new connection is accepted, and answered for the last time at once
    let last = request(server.http, "GET", "/?bufferUUID=x", &[], b"");
    assert_eq!((last.status, last.header("connection")), (400, Some("close")));
    let last = idle.request("GET", "/?bufferUUID=x", &[], b"");
    assert_eq!((last.status, last.header("connection")), (400, Some("close")));
    assert_eq!(server.wait_for_exit(Duration::from_secs(10)).code(), Some(0));
}

#[test]
fn an_idle_connection_and_a_long_poll_hold_up_a_hand_over_for_a_bounded_time() {
    let mut server = passing(
        Setup::default().args(["--keep-alive", "1h"]),
        "worker:api",
        vec![listening("127.0.0.1").into(), listening("127.0.0.1").into()],
    )
    .start();
    let mut idle = Connection::open(server.http);
    assert_eq!(idle.request("GET", "/?bufferUUID=x", &[], b"").status, 400);
    let mut waiting = Connection::open(server.api);
    waiting.send_head("GET", "/UserManager/NextMessage?wait=60", &[]);
    assert_eq!(request(server.api, "GET", "/healthz", &[], b"").status, 200);
    server.terminate();
    let answer = waiting.read_response();
    assert_eq!(answer.status, 204, "{answer:?}");
    assert_eq!(server.wait_for_exit(Duration::from_secs(15)).code(), Some(0));
}
