//! A cluster of three nodes, which are killed in turn, and gateways that are lost with their disks.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::json;

use crate::harness::{
    AmqpFarm, Arrivals, Cluster, Connection, SOON, eventually, holds, post_frame, send_frame, try_send_frame,
};

const WORKERS: usize = 4;
/// As many are acknowledged before a node is killed, and after it.
const FRAMES: usize = 40;
/// As many wait in a queue, or come through it.
const ORDERS: u64 = 20;
/// For the cluster to notice the death of a node and to elect other leaders, and for the gateway to connect anew.
const ANOTHER_NODE: Duration = Duration::from_secs(60);
/// The pause of a worker after each frame.
const PACE: Duration = Duration::from_millis(10);

/// A gateway that tries the nodes in turn, beginning with `first`. Its peer is at the next one.
fn gateway(cluster: &Cluster, first: usize, args: &[&str]) -> AmqpFarm {
    let urls: Vec<String> = (0..Cluster::NODES).map(|step| cluster.url((first + step) % Cluster::NODES)).collect();
    let mut all = vec!["--amqp-settle", "0"];
    all.extend(urls.iter().flat_map(|url| ["--amqp-url", url]));
    all.extend(args);
    let amqp = AmqpFarm::with(&urls[1], &all);
    amqp.wait_until_consuming();
    amqp
}

/// The user manager's queue exists from now on, and nobody consumes from it.
fn declare_quorum_queue(amqp: &mut AmqpFarm) {
    amqp.call("user_manager_start", json!({ "quorum": true }));
    amqp.call("user_manager_stop", json!({}));
}

/// Waits until both connections of the gateway have been made at this node, at least once.
fn wait_until_it_was_at(amqp: &AmqpFarm, cluster: &Cluster, node: usize) {
    let address = cluster.address(node);
    eventually(&format!("the gateway has two connections to {address}"), ANOTHER_NODE, || {
        let log = amqp.farm.log();
        let connected = log.lines().filter(|line| line.contains("connected to") && line.contains(&address)).count();
        holds(connected >= 2, log)
    });
}

/// Posts frames, from this number on, until one is confirmed. Returns the number of that.
fn confirmed_again(by: &AmqpFarm, mut number: usize) -> usize {
    eventually("a frame is confirmed again", ANOTHER_NODE, || {
        let answer = send_frame(&mut Connection::open(by.farm.http), number, 100);
        if answer.status == 200 {
            return Ok(number);
        }
        number += 1;
        Err((answer, by.farm.readyz()))
    })
}

/// Workers that post frames, each number once, until the gateway is gone or they are ended.
struct Workers {
    end: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<BTreeSet<usize>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    fn start(to: SocketAddr, next: &Arc<AtomicUsize>) -> Self {
        let (end, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(BTreeSet::new())));
        let threads = (0..WORKERS).map(|_| {
            let (next, end, acknowledged) = (Arc::clone(next), Arc::clone(&end), Arc::clone(&acknowledged));
            thread::spawn(move || work(to, &next, &end, &acknowledged))
        });
        Self { threads: threads.collect(), end, acknowledged }
    }

    /// Waits until this many more are acknowledged.
    #[track_caller]
    fn wait_for_more(&self, count: usize, by: &AmqpFarm) {
        let acknowledged = || self.acknowledged.lock().expect("no worker has panicked").len();
        let goal = acknowledged() + count;
        eventually("frames are acknowledged", ANOTHER_NODE, || {
            let now = acknowledged();
            holds(now >= goal, (now, goal, by.farm.readyz()))
        });
    }

    /// Ends them, and returns the numbers of the frames that were answered 200.
    fn finish(mut self) -> BTreeSet<usize> {
        self.end.store(true, Ordering::SeqCst);
        self.threads.drain(..).for_each(|worker| worker.join().expect("no other answer than 200 and 503"));
        std::mem::take(&mut self.acknowledged.lock().expect("no worker has panicked"))
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
    }
}

fn work(to: SocketAddr, next: &AtomicUsize, end: &AtomicBool, acknowledged: &Mutex<BTreeSet<usize>>) {
    while let (false, Ok(mut worker)) = (end.load(Ordering::SeqCst), Connection::try_open(to)) {
        let number = next.fetch_add(1, Ordering::SeqCst);
        let image = if number.is_multiple_of(64) { 150_000 } else { 100 };
        // without an answer it may have arrived or not
        if let Ok(answer) = try_send_frame(&mut worker, number, image, None) {
            match answer.status {
                200 => drop(acknowledged.lock().expect("no worker has panicked").insert(number)),
                _ => drop(answer.failure(503)),
            }
        }
        thread::sleep(PACE);
    }
}

#[test]
fn a_frame_that_the_broker_has_confirmed_survives_any_node_and_the_gateway_with_its_disk() {
    let mut cluster = Cluster::get();
    // it stays, stores what is not confirmed soon, and sends it again
    let mut storing = gateway(&cluster, 0, &[]);
    // its leader is at the next node
    declare_quorum_queue(&mut storing);
    let next = Arc::new(AtomicUsize::new(0));
    let mut acknowledged = BTreeSet::new();
    for node in 0..Cluster::NODES {
        let mut lost = gateway(&cluster, node, &["--frame-ack", "broker"]);
        wait_until_it_was_at(&lost, &cluster, node);
        let confirmed = Workers::start(lost.farm.http, &next);
        let stored = Workers::start(storing.farm.http, &next);
        confirmed.wait_for_more(FRAMES, &lost);
        cluster.kill9(node);
        match node {
            0 => {
                wait_until_it_was_at(&lost, &cluster, 1);
                confirmed.wait_for_more(FRAMES, &lost);
            }
            // the gateway at the same time
            1 => {}
            // no majority: whoever answers 200 now has nothing but a disk
            _ => {
                cluster.kill9(0);
                stored.wait_for_more(FRAMES, &storing);
            }
        }
        lost.farm.kill9();
        acknowledged.extend(confirmed.finish());
        fs::remove_dir_all(lost.farm.server.setup().data_dir()).expect("the data directory of the gateway");
        stored.wait_for_more(FRAMES, &storing);
        acknowledged.extend(stored.finish());
        cluster.make_whole();
    }
    // the node where the queue was declared: only what the others have of it counts
    cluster.kill9(1);
    storing.url = cluster.url(2);
    storing.call("user_manager_start", json!({ "quorum": true }));
    let (mut arrivals, mut arrived) = (Arrivals::in_any_order(), BTreeSet::new());
    while !acknowledged.is_subset(&arrived) {
        // a repeat has the id of the first
        let Some(number) = arrivals.try_receive(&mut storing) else {
            let missing: Vec<_> = acknowledged.difference(&arrived).collect();
            panic!("frames {missing:?} have not come; {}", storing.farm.readyz());
        };
        assert!(number < next.load(Ordering::SeqCst), "{number} was never posted");
        arrived.insert(number);
    }
    println!("{} frames posted, {} acknowledged", next.load(Ordering::SeqCst), acknowledged.len());
}

#[test]
fn a_frame_that_the_broker_has_confirmed_survives_a_node_that_is_lost_with_its_disk_and_replaced_by_an_empty_one() {
    const BEFORE: usize = 20;
    /// As many are confirmed while the node is missing.
    const WITHOUT: usize = 20;
    let mut cluster = Cluster::get();
    let mut amqp = gateway(&cluster, 0, &["--frame-ack", "broker"]);
    // its leader is at the node that is lost
    declare_quorum_queue(&mut amqp);
    amqp.post_frames(0..BEFORE);
    cluster.lose(1);
    amqp.url = cluster.url(2);
    let first = confirmed_again(&amqp, BEFORE);
    amqp.post_frames(first + 1..first + WITHOUT);
    cluster.replace(1, 0);
    cluster.make_whole();
    // the majority needs the new member now
    cluster.kill9(0);
    amqp.call("user_manager_start", json!({ "quorum": true }));
    let mut arrivals = Arrivals::in_any_order();
    arrivals.lost.extend(BEFORE..first);
    arrivals.receive_all(&mut amqp, 0..BEFORE);
    arrivals.receive_all(&mut amqp, first..first + WITHOUT);
}

#[test]
fn without_a_majority_a_frame_is_refused_or_stored_as_asked_and_all_flows_once_there_is_one() {
    const BEFORE: usize = 10;
    const STORED: usize = 20;
    /// Some of these are refused, and may arrive all the same.
    const ONLY_CONFIRMED: usize = 1_000;
    let mut cluster = Cluster::get();
    let mut strict = gateway(&cluster, 0, &["--frame-ack", "broker"]);
    let storing = gateway(&cluster, 0, &[]);
    declare_quorum_queue(&mut strict);
    storing.post_frames(0..BEFORE);
    post_frame(&mut Connection::open(strict.farm.http), ONLY_CONFIRMED, 100);

    cluster.kill9(1);
    cluster.kill9(2);
    let refused = send_frame(&mut Connection::open(strict.farm.http), ONLY_CONFIRMED + 1, 100);
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    let error = refused.failure(503);
    assert!(error.contains("not confirmed"), "{error}");
    storing.post_frames(BEFORE..STORED);
    let held = storing.farm.readyz();
    assert_eq!(held["outbox"]["messages"], STORED - BEFORE, "{held}");

    cluster.launch(1);
    let number = confirmed_again(&strict, ONLY_CONFIRMED + 2);
    strict.call("user_manager_start", json!({ "quorum": true }));
    let mut arrivals = Arrivals::in_any_order();
    arrivals.lost.extend(ONLY_CONFIRMED + 1..number);
    arrivals.receive_all(&mut strict, 0..STORED);
    arrivals.receive_all(&mut strict, ONLY_CONFIRMED..number + 1);
    eventually("the outbox is empty", SOON, || {
        let ready = storing.farm.readyz();
        holds(ready["outbox"]["messages"] == 0, (ready, storing.farm.log()))
    });
    strict.call("user_manager_stop", json!({}));
}

#[test]
fn messages_in_the_own_quorum_queue_survive_the_node_that_is_consumed_from_and_the_one_they_came_by() {
    let mut cluster = Cluster::get();
    let mut amqp = gateway(&cluster, 0, &["--amqp-queue-type", "quorum"]);
    wait_until_it_was_at(&amqp, &cluster, 0);
    assert_eq!(cluster.queue_types(1).split_whitespace().collect::<Vec<_>>(), ["UHTTPSE_CI", "quorum"]);
    let wait_for_more = |amqp: &AmqpFarm| {
        let stored = |amqp: &AmqpFarm| amqp.farm.readyz()["consumer"]["stored_total"].as_u64();
        let goal = stored(amqp).map(|stored| stored + ORDERS);
        eventually("messages are consumed", ANOTHER_NODE, || {
            holds(stored(amqp) >= goal, (amqp.farm.readyz(), amqp.farm.log()))
        });
    };
    // at the next node
    amqp.orders_start();
    wait_for_more(&amqp);
    cluster.kill9(0);
    wait_until_it_was_at(&amqp, &cluster, 1);
    wait_for_more(&amqp);
    cluster.make_whole();

    amqp.farm.kill9();
    eventually("messages wait in the queue", ANOTHER_NODE, || {
        let state = amqp.call("queue_state", json!({ "name": "UHTTPSE_CI" }));
        holds(state["messages"].as_u64() >= Some(ORDERS), state)
    });
    cluster.kill9(1);
    amqp.farm.server.restart();
    let orders = amqp.orders_stop();
    assert!(orders as u64 >= 3 * ORDERS, "{orders}");
}
