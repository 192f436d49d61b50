//! `user-http-server messages` and the messages that the broker refuses.

use serde_json::Value;

use crate::harness::{
    AmqpFarm, Connection, Ended, FaultyBroker, Program, SOON, Version, eventually, for_each_broker, gateway, holds,
    post_frame,
};

for_each_broker!(parked_messages_are_listed_shown_published_and_dropped);

fn run(amqp: &AmqpFarm, args: &[&str]) -> Ended {
    let url = amqp.farm.api_url("");
    Program::start(gateway(&["messages", "--url", &url]).args(args)).end()
}

#[track_caller]
fn succeed(amqp: &AmqpFarm, args: &[&str]) -> String {
    let ended = run(amqp, args);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{args:?}: {ended:?}");
    ended.stdout
}

fn parked(amqp: &AmqpFarm) -> Vec<Value> {
    let list: Value = serde_json::from_str(&succeed(amqp, &["parked", "--json"])).expect("JSON");
    list.as_array().expect("a list").clone()
}

fn parked_messages_are_listed_shown_published_and_dropped(version: Version) {
    const LIMIT: usize = 1 << 20;
    let mut broker = FaultyBroker::of(version);
    broker.set_max_message_size(LIMIT);
    let mut amqp = AmqpFarm::at(&broker.url);
    amqp.user_manager();
    // both are taken before the broker refuses one
    broker.freeze();
    for number in [0, 1] {
        post_frame(&mut Connection::open(amqp.farm.http), number, LIMIT);
    }
    broker.thaw();
    let listed = eventually("both are parked", SOON, || {
        let listed = parked(&amqp);
        if listed.len() == 2 { Ok(listed) } else { Err((listed, amqp.farm.log())) }
    });
    let ids: Vec<_> = listed.iter().map(|message| message["id"].as_str().expect("an id")).collect();
    let table = succeed(&amqp, &["parked"]);
    for id in &ids {
        let line = table.lines().find(|line| line.contains(id)).unwrap_or_else(|| panic!("no {id}: {table}"));
        assert!(line.contains("FRAME_RENDERED") && line.contains("worker-1") && line.contains("406"), "{line}");
    }
    let shown = succeed(&amqp, &["show", ids[0]]);
    assert!(shown.contains("state   parked\n") && shown.contains("reason  ") && shown.contains("406"), "{shown}");
    assert!(succeed(&amqp, &["list"]).contains("outbox  parked"));

    assert!(succeed(&amqp, &["drop", ids[1]]).contains("is discarded from the outbox"));
    broker.set_max_message_size(16 << 20);
    // the limit is read when a channel is opened
    broker.ctl(&["close_all_connections", "a larger limit"]);
    eventually("it has arrived", SOON, || {
        // parked again if it was published too early
        let ended = run(&amqp, &["publish", ids[0]]);
        let ready = amqp.farm.readyz();
        holds(ready["outbox"]["messages"] == 0, (ended, ready, amqp.farm.log()))
    });
    let gone = run(&amqp, &["publish", ids[1]]);
    assert!(gone.code == Some(1) && gone.stderr.contains("404"), "{gone:?}");
    assert_eq!(parked(&amqp), Vec::<Value>::new());
}
