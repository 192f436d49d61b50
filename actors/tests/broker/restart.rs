//! A broker that restarts at an awkward moment, and one that only refuses something.

use std::time::Duration;

use amiquip::{ConsumerOptions, QueueDeclareOptions};
use user_http_actors::broker::amqp::AmqpConfig;
use user_http_actors::broker::{Outcome, PublisherEvent};
use user_http_actors::codec::Format;

use crate::broker::harness::{Peer, Publishing, SOON, config};
use crate::broker::rabbitmq::RabbitMq;

const LIMIT: usize = 1 << 20;

/// For RabbitMQ 3.10, which reads it when a channel is opened.
fn set_max_message_size(broker: &RabbitMq, limit: usize) {
    broker.ctl(&["eval", &format!("application:set_env(rabbit, max_message_size, {limit}).")]);
}

/// What the next connection waits for before it publishes.
fn next_connection(publishing: &mut Publishing) -> (u64, Option<String>) {
    let mut waiting_for = None;
    publishing.events.wait("Connected", SOON, |event| match event {
        PublisherEvent::WaitingFor(held) => {
            waiting_for = held;
            None
        }
        PublisherEvent::Connected { epoch } => Some((epoch, waiting_for.take())),
        _ => None,
    })
}

#[test]
fn a_broker_that_was_away_at_the_start_is_given_time_to_settle() {
    let mut broker = RabbitMq::prepare();
    let mut publishing = Publishing::start(&config(&broker, "late"));
    publishing.disconnected(SOON);
    broker.launch();
    let (_, waiting_for) = next_connection(&mut publishing);
    assert!(waiting_for.is_some_and(|what| what.contains("--amqp-settle")));
}

#[test]
fn a_restart_right_after_a_refused_message_is_a_lost_connection() {
    let mut broker = RabbitMq::start();
    set_max_message_size(&broker, LIMIT);
    let config = AmqpConfig { settle: Duration::from_millis(500), ..config(&broker, "refused") };
    Peer::connect(&broker).bind_queue(&config, "refused");
    let mut publishing = Publishing::start(&config);
    let (epoch, waiting_for) = next_connection(&mut publishing);
    assert_eq!(waiting_for, None, "nothing has been lost");
    publishing.publish(epoch, 1, Format::Pickle, vec![0; LIMIT + 1]);
    assert!(matches!(publishing.outcome(1), Outcome::Refused(_)));
    // Before the next connection is made, or after it: the broker has been away in both cases.
    broker.kill9();
    publishing.events.wait("a lost connection", SOON, |event| {
        matches!(event, PublisherEvent::Disconnected { lost: true, .. }).then_some(())
    });
    broker.launch();
    let (epoch, waiting_for) = next_connection(&mut publishing);
    assert!(waiting_for.is_some_and(|what| what.contains("--amqp-settle")));
    Peer::connect(&broker).bind_queue(&config, "refused");
    publishing.publish(epoch, 2, Format::Pickle, vec![0; LIMIT + 1]);
    assert_eq!(publishing.outcome(2), Outcome::Confirmed, "the limit ended with the broker that had it");
}

#[test]
fn refused_messages_cause_no_settle_delay() {
    let broker = RabbitMq::start();
    set_max_message_size(&broker, LIMIT);
    let config = config(&broker, "channels");
    Peer::connect(&broker).bind_queue(&config, "channels");
    let mut publishing = Publishing::start(&config);
    let (mut epoch, _) = next_connection(&mut publishing);
    for number in 0..5 {
        publishing.publish(epoch, 2 * number, Format::Pickle, vec![0; LIMIT + 1]);
        publishing.publish(epoch, 2 * number + 1, Format::Json, "{}");
        let (next, waiting_for) = publishing.events.wait("the next connection", SOON, {
            let mut held = None;
            let mut refused = 0;
            move |event| {
                match event {
                    PublisherEvent::Outcome { outcome: Outcome::Refused(_), seq } if seq == 2 * number => refused += 1,
                    PublisherEvent::Disconnected { lost, .. } => assert!(!lost, "the broker is there"),
                    PublisherEvent::WaitingFor(waiting_for) => held = waiting_for,
                    PublisherEvent::Connected { epoch } => {
                        assert_eq!(refused, 1);
                        return Some((epoch, held.take()));
                    }
                    _ => {}
                }
                None
            }
        });
        assert!(next > epoch, "{next} is greater than {epoch}");
        assert_eq!(waiting_for, None, "nothing has been lost");
        epoch = next;
    }
    publishing.publish(epoch, 99, Format::Json, "{}");
    assert_eq!(publishing.outcome(99), Outcome::Confirmed);
    assert!(publishing.link.stop(SOON));
}

/// The epoch of another connection, if the event is one. No connection may be lost meanwhile, and nothing has to wait.
fn next_epoch(event: PublisherEvent) -> Option<u64> {
    match event {
        PublisherEvent::Disconnected { lost, reason } => assert!(!lost, "{reason}"),
        PublisherEvent::WaitingFor(what) => assert_eq!(what, None),
        PublisherEvent::Connected { epoch } => return Some(epoch),
        _ => {}
    }
    None
}

/// When the broker closes a channel, the client stops in the middle of the body behind the refused one, over which
/// RabbitMQ closes the connection (505).
#[test]
fn a_message_that_is_cut_short_by_the_close_of_its_channel_is_no_lost_connection() {
    let broker = RabbitMq::start();
    set_max_message_size(&broker, LIMIT);
    let config = config(&broker, "cut");
    Peer::connect(&broker).bind_queue(&config, "cut");
    let mut publishing = Publishing::start(&config);
    let (mut epoch, _) = next_connection(&mut publishing);
    for round in 0..10 {
        let (refused, cut, small) = (3 * round, 3 * round + 1, 3 * round + 2);
        publishing.publish(epoch, refused, Format::Pickle, vec![0; LIMIT + 1]);
        publishing.publish(epoch, cut, Format::Pickle, vec![0; 16 * LIMIT]);
        let mut left = vec![refused, cut];
        while !left.is_empty() {
            publishing.events.wait("the refusals", SOON, |event| match event {
                PublisherEvent::Outcome { seq, outcome } => {
                    assert!(matches!(outcome, Outcome::Refused(_)), "{outcome:?} of {seq}");
                    left.retain(|left| *left != seq);
                    Some(())
                }
                // the one behind was not sent before the channel was closed
                event => next_epoch(event).map(|next| epoch = next),
            });
            if left.contains(&cut) && !left.contains(&refused) {
                publishing.publish(epoch, cut, Format::Pickle, vec![0; 16 * LIMIT]);
            }
        }
        // until a connection stays
        let mut arrived = false;
        while !arrived {
            publishing.publish(epoch, small, Format::Json, "{}");
            publishing.events.wait("a confirm, or another connection", SOON, |event| match event {
                PublisherEvent::Outcome { seq, outcome: Outcome::Confirmed } if seq == small => {
                    arrived = true;
                    Some(())
                }
                event => next_epoch(event).map(|next| epoch = next),
            });
        }
    }
    let seen = publishing.events.all();
    println!("{} times 505", seen.iter().filter(|event| event.contains("505")).count());
}

#[test]
fn messages_wait_for_a_downstream_queue_through_a_restart_of_the_broker() {
    const QUEUE: &str = "restart-user-manager";
    let mut broker = RabbitMq::start();
    let config = AmqpConfig { await_queues: vec![QUEUE.to_owned()], ..config(&broker, "waiting") };
    let mut publishing = Publishing::start(&config);
    let (_, waiting_for) = next_connection(&mut publishing);
    assert!(waiting_for.is_some_and(|what| what.contains(QUEUE)));
    broker.restart();
    let (epoch, waiting_for) = next_connection(&mut publishing);
    assert!(waiting_for.is_some_and(|what| what.contains(QUEUE)), "still, and not for the settle delay");
    let peer = Peer::connect(&broker);
    peer.bind_queue(&config, "waiting");
    publishing.publish(epoch, 1, Format::Json, "{}");
    peer.channel.queue_declare(QUEUE, QueueDeclareOptions::default()).expect("the queue");
    let user_manager = Peer::connect(&broker);
    let _consumer = user_manager.channel.basic_consume(QUEUE, ConsumerOptions::default()).expect("a consumer");
    let outcome = publishing.events.wait("an outcome, after the queue is there", SOON, {
        let mut open = false;
        move |event| match event {
            PublisherEvent::WaitingFor(held) => {
                open = held.is_none();
                None
            }
            PublisherEvent::Outcome { seq: 1, outcome } => {
                assert!(open, "nothing is published before");
                Some(outcome)
            }
            _ => None,
        }
    });
    assert_eq!(outcome, Outcome::Confirmed);
}
