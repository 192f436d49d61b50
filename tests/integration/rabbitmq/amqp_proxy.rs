//! A network between the server and the broker that is slow, breaks, or swallows what it is given.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::harness::{
    AmqpFarm, Arrivals, Broker, Direction, Posting, Proxy, SOON, Version, eventually, for_each_broker, holds, order,
};

const BOTH_WAYS: [Direction; 2] = [Direction::ToBroker, Direction::ToServer];
/// Two heartbeat intervals of 10 s, and what a busy machine adds.
const NOTICED: Duration = Duration::from_secs(25);

for_each_broker!(
    connections_cut_after_random_numbers_of_bytes_under_load_lose_nothing,
    a_network_that_swallows_everything_is_noticed_by_heartbeats_and_survived,
    a_slow_network_delays_many_messages_no_longer_than_one,
    a_message_whose_acknowledgement_is_lost_is_delivered_again_and_not_lost,
);

fn connections_cut_after_random_numbers_of_bytes_under_load_lose_nothing(version: Version) {
    const CUTS: usize = 12;
    let seed: u64 = rand::random();
    println!("the seed is {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    // As many small numbers, which end a connection in its handshake, as large ones.
    let bytes: Vec<usize> = (0..CUTS).map(|_| 10_f64.powf(random.random_range(1.0..5.5)) as usize).collect();
    println!("cut after {bytes:?} bytes");

    let url = Broker::of(version).url;
    let proxy = Proxy::to(&url);
    let mut amqp = AmqpFarm::behind(&proxy, &url);
    amqp.user_manager();
    amqp.orders_start();
    let posting = Posting::start(amqp.farm.http);
    posting.wait_for_more(20);
    proxy.cut_each_after(bytes);
    // after each there is a connection to make and a pause before it
    eventually("all cuts", 4 * SOON, || holds(proxy.cuts_left() == 0, (proxy.cuts_left(), amqp.farm.log())));
    amqp.wait_until_consuming();
    posting.wait_for_more(20);
    let posted = posting.finish();
    Arrivals::default().receive_all(&mut amqp, 0..posted);
    let orders = amqp.orders_stop();
    println!("{posted} frames and {orders} orders");
}

fn a_network_that_swallows_everything_is_noticed_by_heartbeats_and_survived(version: Version) {
    let url = Broker::of(version).url;
    let proxy = Proxy::to(&url);
    let mut amqp = AmqpFarm::behind(&proxy, &url);
    let mut arrivals = amqp.first_frames(10);

    proxy.swallow(&BOTH_WAYS);
    let swallowed = Instant::now();
    amqp.post_frames(10..30);
    amqp.publish_value(&order("id-1", "'swallowed'"));
    eventually("both connections are given up", NOTICED, || {
        let ready = amqp.farm.readyz();
        let both = ready["broker"] == "disconnected" && ready["consumer"]["connected"] == false;
        holds(both, (ready, amqp.farm.log()))
    });
    let noticed = swallowed.elapsed();
    // The next attempts are swallowed from their first byte on.
    amqp.farm.wait_for_log("does not answer the AMQP handshake");
    amqp.post_frames(30..40);

    proxy.forward();
    let forwarded = Instant::now();
    amqp.wait_until_consuming();
    println!("noticed after {noticed:?}, connected {:?} after the network's return", forwarded.elapsed());
    arrivals.receive_all(&mut amqp, 0..40);
    assert_eq!(amqp.fetch_when_there("id-1"), "'swallowed'");
}

fn a_slow_network_delays_many_messages_no_longer_than_one(version: Version) {
    const DELAY: Duration = Duration::from_millis(50);
    const FRAMES: usize = 300;
    /// A frame is answered when the broker has confirmed it, so one worker alone posts one by one.
    const WORKERS: usize = 30;
    let url = Broker::of(version).url;
    let proxy = Proxy::to(&url);
    let mut amqp = AmqpFarm::behind(&proxy, &url);
    amqp.user_manager();
    proxy.delay(DELAY);
    let began = Instant::now();
    amqp.orders_start();
    std::thread::scope(|scope| {
        let each = FRAMES / WORKERS;
        let amqp = &amqp;
        (0..WORKERS).for_each(|worker| drop(scope.spawn(move || amqp.post_frames(worker * each..(worker + 1) * each))));
    });
    Arrivals::in_any_order().receive_all(&mut amqp, 0..FRAMES);
    let orders = amqp.orders_stop();
    let took = began.elapsed();
    println!("{FRAMES} frames and {orders} orders in {took:?}");
    let one_by_one = 2 * DELAY * FRAMES as u32;
    assert!(took > 2 * DELAY, "{took:?}: the network is not slow");
    assert!(took < one_by_one / 3, "{took:?}, and one by one it is {one_by_one:?}");
}

fn a_message_whose_acknowledgement_is_lost_is_delivered_again_and_not_lost(version: Version) {
    let broker = Broker::of(version);
    let proxy = Proxy::to(&broker.url);
    let mut amqp = AmqpFarm::behind(&proxy, &broker.url);
    amqp.lose_the_acknowledgement_of(&proxy, &order("id-1", "'kept'"));
    proxy.forward();
    amqp.wait_until_consuming();
    broker.wait_until_all_is_acknowledged();
    assert_eq!(amqp.fetch_when_there("id-1"), "'kept'");
    amqp.publish_value(&order("id-2", "'after it'"));
    assert_eq!(amqp.fetch_when_there("id-2"), "'after it'");
}
