//! Server and broker are killed, frozen, blocked and cut off at random while workers post frames of all sizes.
//!
//! `TEST_FAULTS` sets how many faults there are, `TEST_SEED` which.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::harness::{
    AmqpFarm, Arrivals, Connection, FaultyBroker, Proxy, SOON, Server, Version, eventually, for_each_broker, holds,
    try_send_frame,
};
use crate::kill::{Seed, from_environment};

for_each_broker!(no_acknowledged_frame_is_lost_whatever_happens_to_server_and_broker);

const WORKERS: usize = 4;

const FAULTS: u64 = 3;

/// Sizes of images in bytes, as powers of two: from 1 KiB to 32 MiB, or to what RabbitMQ 4.0 takes, which is 16 MiB for
/// the whole message. Most are small. A larger frame would be parked if it is stored before the broker has refused one.
fn sizes(version: Version) -> Range<f64> {
    match version {
        Version::Debian => 10.0..25.0,
        Version::V4_0 => 10.0..23.9,
    }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    None,
    KillBroker,
    FreezeBroker,
    BlockPublishers,
    CutConnections,
}

const ALL: [Fault; 5] =
    [Fault::None, Fault::KillBroker, Fault::FreezeBroker, Fault::BlockPublishers, Fault::CutConnections];

/// What one worker has posted in one run of the server, in order.
#[derive(Default)]
struct Posted {
    acknowledged: Vec<usize>,
    /// Without an answer.
    others: Vec<usize>,
}

/// Posts frames with the next numbers until the server goes away, or the end.
fn work(to: &Server, next: &AtomicUsize, end: &AtomicBool, sizes: &Range<f64>, seed: u64) -> Posted {
    let mut random = StdRng::seed_from_u64(seed);
    let mut posted = Posted::default();
    let mut worker = Connection::open(to.http);
    while !end.load(Ordering::SeqCst) {
        let number = next.fetch_add(1, Ordering::SeqCst);
        let exponent = sizes.start + (sizes.end - sizes.start) * random.random::<f64>().powi(3);
        match try_send_frame(&mut worker, number, exponent.exp2() as usize, None) {
            Ok(answer) if answer.status == 200 => posted.acknowledged.push(number),
            Ok(answer) => panic!("{answer:?}"),
            Err(_) => {
                posted.others.push(number);
                break;
            }
        }
    }
    posted
}

fn no_acknowledged_frame_is_lost_whatever_happens_to_server_and_broker(version: Version) {
    let seed = Seed::get();
    let mut random = StdRng::seed_from_u64(seed.0);
    let (sizes, mut broker) = (sizes(version), FaultyBroker::of(version));
    let url = broker.url.clone();
    let proxy = Proxy::to(&url);
    let mut amqp = AmqpFarm::behind(&proxy, &url);
    start_user_manager(&mut amqp);
    let next = AtomicUsize::new(0);
    // of each worker in each round without a killed broker, which may lose what it has not confirmed in any order
    let mut ordered: Vec<Vec<usize>> = Vec::new();
    let (mut acknowledged, mut others) = (BTreeSet::new(), BTreeSet::new());
    for round in 0..from_environment("TEST_FAULTS").unwrap_or(FAULTS) {
        let fault = ALL[random.random_range(0..ALL.len())];
        let kills_server = random.random();
        println!("round {round}: {fault:?}, the server {}", if kills_server { "is killed" } else { "goes on" });
        let end = AtomicBool::new(false);
        let goal = next.load(Ordering::SeqCst) + random.random_range(8..24);
        let pause = |random: &mut StdRng| std::thread::sleep(Duration::from_millis(random.random_range(0..1_500)));
        let posted: Vec<Posted> = std::thread::scope(|scope| {
            let (farm, end, next, sizes) = (&amqp.farm, &end, &next, &sizes);
            let seeds: Vec<u64> = (0..WORKERS).map(|_| random.random()).collect();
            let workers: Vec<_> =
                seeds.into_iter().map(|seed| scope.spawn(move || work(farm, next, end, sizes, seed))).collect();
            eventually("frames are posted", SOON, || {
                let begun = next.load(Ordering::SeqCst);
                holds(begun >= goal, begun)
            });
            match fault {
                Fault::None => {}
                Fault::KillBroker => broker.kill9(),
                Fault::FreezeBroker => broker.freeze(),
                Fault::BlockPublishers => broker.ctl(&["set_vm_memory_high_watermark", "0.0000001"]),
                Fault::CutConnections => proxy.cut(),
            }
            pause(&mut random);
            if kills_server {
                amqp.farm.signal("KILL");
            }
            end.store(true, Ordering::SeqCst);
            workers.into_iter().map(|worker| worker.join().expect("no other answer")).collect()
        });
        match fault {
            Fault::None | Fault::CutConnections => {}
            Fault::KillBroker => {
                broker.launch();
                start_user_manager(&mut amqp);
            }
            Fault::FreezeBroker => broker.thaw(),
            Fault::BlockPublishers => broker.ctl(&["set_vm_memory_high_watermark", "0.6"]),
        }
        if kills_server {
            amqp.farm.kill9();
            amqp.farm.server.restart();
        }
        amqp.wait_until_consuming();
        for Posted { acknowledged: of_worker, others: without } in posted {
            println!("acknowledged {of_worker:?}, not {without:?}");
            acknowledged.extend(&of_worker);
            others.extend(without);
            if !matches!(fault, Fault::KillBroker) {
                ordered.push(of_worker);
            }
        }
    }
    let (mut arrivals, mut arrived, mut order) = (Arrivals::in_any_order(), BTreeSet::new(), Vec::new());
    while !acknowledged.is_subset(&arrived) {
        // a repeat has the id of the first
        let Some(number) = arrivals.try_receive(&mut amqp) else {
            let missing: Vec<_> = acknowledged.difference(&arrived).collect();
            let queue = amqp.call("queue_state", json!({ "name": "CI_FROM_USER_HTTP_SERVER" }));
            let (ready, log) = (amqp.farm.readyz(), amqp.farm.log());
            panic!(
                "log of the server:\n{log}\nframes {missing:?} have not come; {ready}; the user manager's queue: {queue}"
            );
        };
        assert!(acknowledged.contains(&number) || others.contains(&number), "{number} was never posted");
        if arrived.insert(number) {
            order.push(number);
        }
    }
    for posted in ordered {
        let first: Vec<usize> = order.iter().copied().filter(|number| posted.contains(number)).collect();
        assert_eq!(first, posted, "a worker's frames arrive first in the order in which it has posted them");
    }
    println!("{} frames acknowledged, {} not", acknowledged.len(), others.len());
}

/// The user manager takes frames, from a queue that survives the broker. What it took before is kept.
fn start_user_manager(amqp: &mut AmqpFarm) {
    amqp.call("user_manager_start", json!({ "durable": true }));
}
