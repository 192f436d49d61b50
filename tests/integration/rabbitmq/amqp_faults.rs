//! A broker that is away, goes, and comes back; and a server that is killed meanwhile.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    AmqpFarm, Arrivals, Broker, Connection, Farm, FaultyBroker, Posting, Proxy, SOON, Setup, Version, eventually,
    for_each_broker, holds, order, post_frame, request, send_frame,
};

for_each_broker!(
    the_server_starts_and_takes_work_while_the_broker_is_away_and_it_flows_later,
    a_restart_of_the_broker_is_survived_in_both_directions,
    frames_in_the_outbox_of_a_killed_server_arrive_after_its_restart,
    a_server_killed_while_it_consumes_has_what_it_has_acknowledged,
    a_broker_that_blocks_is_reported_and_what_was_accepted_meanwhile_arrives_later,
    a_frozen_broker_delays_no_answer_and_everything_arrives_when_it_goes_on,
    connections_that_the_broker_closes_under_load_lose_nothing,
    a_frame_larger_than_the_broker_takes_is_refused_and_all_others_arrive,
    a_wrong_password_is_logged_once_a_pause_without_itself_and_work_is_taken,
    the_password_is_not_logged_at_the_most_talkative_level_either,
);

/// While the broker is frozen. Less than two heartbeats, so that the connection lives on.
const FROZEN: Duration = Duration::from_secs(4);
/// What HTTP takes at most while the broker is frozen: a frame waits for its confirm for a second before it is stored.
const NO_DELAY: Duration = Duration::from_secs(3);
/// How long the network takes in each direction, so that under load there is always something in transit.
const ON_THE_WAY: Duration = Duration::from_millis(20);
/// No user has it.
const PASSWORD: &str = "not-the-pass-word";

fn the_server_starts_and_takes_work_while_the_broker_is_away_and_it_flows_later(version: Version) {
    let mut broker = FaultyBroker::of(version);
    broker.kill9();
    let url = broker.url.clone();
    let mut amqp = AmqpFarm::away(&url);
    let ready = request(amqp.farm.api, "GET", "/readyz", &[], b"");
    let json = ready.json();
    assert_eq!(
        (ready.status, &json["ready"], &json["broker"]),
        (200, &json!(true), &json!("disconnected")),
        "{ready:?}"
    );
    amqp.farm.leave("id-1", "'served'");
    assert_eq!(amqp.farm.fetch_value("id-1"), "'served'");
    amqp.post_frames(0..10);

    broker.launch();
    amqp.wait_until_consuming();
    amqp.user_manager();
    Arrivals::default().receive_all(&mut amqp, 0..10);
    amqp.publish_value(&order("id-2", "'consumed'"));
    assert_eq!(amqp.fetch_when_there("id-2"), "'consumed'");
}

fn a_restart_of_the_broker_is_survived_in_both_directions(version: Version) {
    let mut broker = FaultyBroker::of(version);
    let url = broker.url.clone();
    let mut amqp = AmqpFarm::at(&url);
    let mut arrivals = amqp.first_frames(10);

    broker.kill9();
    amqp.wait_until("disconnected");
    amqp.post_frames(10..20);
    broker.launch();
    amqp.wait_until_consuming();
    amqp.user_manager();
    amqp.post_frames(20..30);
    arrivals.receive_all(&mut amqp, 10..30);
    amqp.wait_for_own_queue(1, 0);
    amqp.publish_value(&order("id-1", "'consumed'"));
    assert_eq!(amqp.fetch_when_there("id-1"), "'consumed'");
}

fn frames_in_the_outbox_of_a_killed_server_arrive_after_its_restart(version: Version) {
    let mut broker = FaultyBroker::of(version);
    broker.kill9();
    let url = broker.url.clone();
    let mut amqp = AmqpFarm::away(&url);
    amqp.post_frames(0..10);
    amqp.farm.kill9();
    amqp.farm.server.restart();
    amqp.post_frames(10..12);
    amqp.farm.kill9();
    broker.launch();
    amqp.farm.server.restart();
    amqp.wait_until_consuming();
    amqp.user_manager();
    Arrivals::default().receive_all(&mut amqp, 0..12);
}

fn a_server_killed_while_it_consumes_has_what_it_has_acknowledged(version: Version) {
    let mut amqp = AmqpFarm::start(version);
    amqp.wait_until_consuming();
    amqp.farm.kill9();
    amqp.large_orders_start();
    for round in 0..3 {
        // As much as takes longer to be stored than the kill takes to come.
        eventually("orders wait in the queue", SOON, || {
            let state = amqp.call("queue_state", json!({ "name": "UHTTPSE_CI" }));
            holds(state["messages"].as_u64() > Some(150), state)
        });
        amqp.farm.server.restart();
        eventually(&format!("round {round}: messages are consumed"), SOON, || {
            let ready = amqp.farm.readyz();
            holds(ready["consumer"]["stored_total"].as_u64() > Some(0), (ready, amqp.farm.log()))
        });
        amqp.farm.kill9();
    }
    amqp.farm.server.restart();
    let orders = amqp.orders_stop();
    println!("{orders} orders");
}

fn a_broker_that_blocks_is_reported_and_what_was_accepted_meanwhile_arrives_later(version: Version) {
    let mut broker = FaultyBroker::of(version);
    let url = broker.url.clone();
    let mut amqp = AmqpFarm::at(&url);
    amqp.user_manager();
    let mut arrivals = Arrivals::default();
    amqp.post_frames(0..1);
    arrivals.receive_all(&mut amqp, 0..1);
    broker.ctl(&["set_vm_memory_high_watermark", "0.0000001"]);
    // The broker blocks a connection when it next publishes.
    amqp.post_frames(1..2);
    amqp.wait_until("blocked");
    amqp.post_frames(2..10);
    assert_eq!(request(amqp.farm.api, "GET", "/readyz", &[], b"").status, 200);
    broker.ctl(&["set_vm_memory_high_watermark", "0.6"]);
    amqp.wait_until("connected");
    arrivals.receive_all(&mut amqp, 1..10);
}

/// Runs `act`, which must not wait for the broker.
#[track_caller]
fn at_once<T>(what: &str, act: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let outcome = act();
    assert!(began.elapsed() < NO_DELAY, "{what} took {:?}", began.elapsed());
    outcome
}

#[track_caller]
fn wait_for_outbox(farm: &Farm, what: &str, expected: u64) -> Value {
    eventually(&format!("outbox.{what} is {expected}"), SOON, || {
        let ready = farm.readyz();
        if ready["outbox"][what] == expected { Ok(ready) } else { Err((ready, farm.log())) }
    })
}

fn a_frozen_broker_delays_no_answer_and_everything_arrives_when_it_goes_on(version: Version) {
    // All of them together are more than the sockets and the client's buffers hold.
    const IMAGE: usize = 256 << 10;
    let mut broker = FaultyBroker::of(version);
    let url = broker.url.clone();
    let mut amqp = AmqpFarm::at(&url);
    let mut arrivals = amqp.first_frames(10);
    wait_for_outbox(&amqp.farm, "messages", 0);
    amqp.orders_start();

    broker.freeze();
    let frozen = Instant::now();
    let mut worker = Connection::open(amqp.farm.http);
    let mut posted = 10;
    while frozen.elapsed() < FROZEN {
        at_once("POST", || post_frame(&mut worker, posted, IMAGE));
        posted += 1;
        at_once("AddBufferMsg and GET", || {
            let json = br#"{"TYPE": "ADD_BUFFER_MSG", "DATA": {"BUFFER_UUID": "id-1", "BUFFER_MSG": 1}}"#;
            assert_eq!(amqp.farm.order_bytes("application/json", json).status, 200);
            assert_eq!(amqp.farm.ask("GET", "id-1", &[]).status, 200);
        });
        let ready = at_once("/readyz", || request(amqp.farm.api, "GET", "/readyz", &[], b""));
        let held = &ready.json()["outbox"]["messages"];
        assert_eq!((ready.status, held), (200, &json!(posted - 10)), "{ready:?}");
        std::thread::sleep(FROZEN / 60);
    }
    broker.thaw();
    arrivals.receive_all(&mut amqp, 0..posted);
    wait_for_outbox(&amqp.farm, "messages", 0);
    amqp.orders_stop();
}

fn connections_that_the_broker_closes_under_load_lose_nothing(version: Version) {
    let broker = Broker::of(version);
    let proxy = Proxy::to(&broker.url);
    let mut amqp = AmqpFarm::behind(&proxy, &broker.url);
    proxy.delay(ON_THE_WAY);
    // Its own connection is closed too. So its queue, which stays, collects everything meanwhile.
    amqp.call("user_manager_start", json!({ "durable": true }));
    amqp.call("user_manager_stop", json!({}));
    amqp.orders_start();
    let posting = Posting::start(amqp.farm.http);
    for round in 0..3 {
        posting.wait_for_more(50);
        let reason = format!("round-{round}");
        broker.rabbitmq.ctl(&["close_all_connections", "--vhost", broker.vhost(), &reason]);
        eventually("both connections are closed", SOON, || {
            let log = amqp.farm.log();
            let closed = |end: &str| log.lines().any(|line| line.contains(end) && line.contains(&reason));
            holds(closed("no connection to the broker") && closed("not consuming messages"), log.clone())
        });
        amqp.wait_until_consuming();
    }
    posting.wait_for_more(50);
    let posted = posting.finish();
    let orders = amqp.orders_stop();
    assert!(orders > 50, "{orders} orders are a load");
    amqp.call("user_manager_start", json!({ "durable": true }));
    Arrivals::default().receive_all(&mut amqp, 0..posted);
}

fn a_frame_larger_than_the_broker_takes_is_refused_and_all_others_arrive(version: Version) {
    /// No other frame has this number.
    const REFUSED: usize = 1_000_000;
    let (url, limit, mut broker) = match version {
        // RabbitMQ 4.0 has this limit by itself; 3.10 has one of 128 MiB.
        Version::V4_0 => (Broker::of(version).url, 16 << 20, None),
        Version::Debian => {
            let broker = FaultyBroker::of(version);
            (broker.url.clone(), 1 << 20, Some(broker))
        }
    };
    if let Some(broker) = &mut broker {
        broker.set_max_message_size(limit);
    }
    let proxy = Proxy::to(&url);
    let mut amqp = AmqpFarm::behind(&proxy, &url);
    proxy.delay(ON_THE_WAY);
    amqp.user_manager();
    let posting = Posting::start(amqp.farm.http);
    posting.wait_for_more(20);
    let refused = send_frame(&mut Connection::open(amqp.farm.http), REFUSED, limit).failure(413);
    assert!(refused.contains(&limit.to_string()) && refused.contains("broker"), "{refused}");
    posting.wait_for_more(20);
    let posted = posting.finish();
    Arrivals::default().receive_all(&mut amqp, 0..posted);
    let ready = wait_for_outbox(&amqp.farm, "messages", 0);
    assert_eq!((&ready["outbox"]["parked"], &ready["ready"]), (&json!(0), &json!(true)), "{ready}");
    if let Some(broker) = &mut broker {
        broker.set_max_message_size(128 << 20);
    }
}

fn a_wrong_password_is_logged_once_a_pause_without_itself_and_work_is_taken(version: Version) {
    let url = with_wrong_password(&Broker::of(version).url);
    let began = Instant::now();
    let mut farm = Farm::of(Setup::default().args(["--amqp-url", &url]));
    farm.leave("id-1", "'served'");
    assert_eq!(farm.fetch_value("id-1"), "'served'");
    let mut worker = Connection::open(farm.http);
    for number in 0..10 {
        post_frame(&mut worker, number, 100);
    }
    // Three for the publisher and three for the consumer. Their pauses are 50 ms at least, then 100 ms, and RabbitMQ
    // takes its time before it refuses.
    let log = eventually("the refusals are logged", SOON, || {
        let log = farm.log();
        let refusals = |end: &str| log.lines().filter(|line| line.contains(end)).count();
        let all = refusals("no connection to the broker") >= 3 && refusals("not consuming messages") >= 3;
        if all { Ok(log) } else { Err(log) }
    });
    let seconds = began.elapsed().as_secs_f64();
    let refusals = log.lines().filter(|line| line.contains("user or password is probably wrong")).count();
    let lines = log.lines().count();
    println!("{lines} lines, {refusals} of them refusals, in {seconds:.1} s");
    assert!(refusals >= 6, "{log}");
    // Each of the two may log one refusal at the start, and one for every 2 s.
    assert!(refusals as f64 <= 2.0 + seconds, "{refusals} refusals in {seconds} s: {log}");
    assert!(lines <= refusals + 10, "nothing else is logged for each attempt: {log}");
    assert!(!log.contains(PASSWORD), "{log}");
    let ready = farm.readyz();
    let state = (&ready["ready"], &ready["broker"], &ready["outbox"]["messages"]);
    assert_eq!(state, (&json!(true), &json!("disconnected"), &json!(10)), "{ready}");
}

fn the_password_is_not_logged_at_the_most_talkative_level_either(version: Version) {
    let url = with_wrong_password(&Broker::of(version).url);
    let farm = Farm::of(Setup::default().args(["--amqp-url", &url]).env("RUST_LOG", "trace"));
    farm.wait_for_log("user or password is probably wrong");
    let log = farm.log();
    let shown: Vec<_> = log.lines().filter(|line| line.contains(PASSWORD)).collect();
    assert!(shown.is_empty(), "{shown:?}");
}

fn with_wrong_password(url: &str) -> String {
    url.replace("guest:guest", &format!("guest:{PASSWORD}"))
}
