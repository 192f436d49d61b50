//! What the publisher counts, path by path. In all tests of this folder, the books balance whenever nothing is in
//! progress.

use std::time::Duration;

use user_http_actors::administration::{DiscardOutboxMessage, Requester};
use user_http_actors::broker::{Outcome, PublisherEvent};
use user_http_actors::messages::PublishParkedMessage;
use user_http_actors::publisher::FrameAck;

use crate::confirm_through::harness::{Disk, Gateway, in_paused_time};

/// Accepted, forwarded, discarded, held.
fn books(gateway: &Gateway) -> [f64; 4] {
    let scrape = gateway.books.scrape();
    let accepted = scrape.sum("outbox_accepted_total", &[("type", "FRAME_RENDERED")]);
    let of = |name: &str| scrape.value(&format!("outbox_{name}"));
    [accepted, of("forwarded_total"), of("discarded_total"), of("messages")]
}

#[test]
fn a_message_that_the_broker_confirms_first_is_accepted_and_forwarded_once_even_if_the_store_writes_it_too() {
    in_paused_time(async {
        let mut gateway = Gateway::connected(FrameAck::Stored).await;
        let confirmed = gateway.post();
        gateway.settle().await;
        assert_eq!(books(&gateway), [0.0, 0.0, 0.0, 1.0], "its sender waits");
        gateway.outcome(confirmed, Outcome::Confirmed);
        gateway.settle().await;
        assert_eq!(books(&gateway), [1.0, 1.0, 0.0, 0.0]);

        gateway.disk.set(Disk::Hangs);
        let written = gateway.post();
        gateway.advance(Duration::from_secs(6)).await;
        gateway.outcome(written, Outcome::Confirmed);
        gateway.settle().await;
        assert_eq!(books(&gateway), [2.0, 2.0, 0.0, 0.0]);
        gateway.disk.set(Disk::Writes);
        gateway.settle().await;
        assert_eq!(books(&gateway), [2.0, 2.0, 0.0, 0.0]);
    });
}

#[test]
fn a_message_that_is_refused_is_neither_accepted_nor_forwarded() {
    in_paused_time(async {
        let mut gateway = Gateway::start(FrameAck::Stored);
        gateway.disk.set(Disk::Full);
        let refused = gateway.post();
        gateway.settle().await;
        assert!(matches!(gateway.answer(refused), Some(Err(_))));
        assert_eq!(books(&gateway), [0.0; 4]);

        let mut gateway = Gateway::connected(FrameAck::Broker).await;
        let refused = gateway.post();
        gateway.settle().await;
        gateway.event(PublisherEvent::Blocked(true));
        gateway.advance(Duration::from_secs(2)).await;
        assert!(matches!(gateway.answer(refused), Some(Err(_))));
        // the broker has it all the same
        gateway.event(PublisherEvent::Blocked(false));
        gateway.outcome(refused, Outcome::Confirmed);
        gateway.settle().await;
        assert_eq!(books(&gateway), [0.0; 4]);
    });
}

#[test]
fn a_parked_message_is_held_until_it_is_published_or_discarded() {
    in_paused_time(async {
        let mut gateway = Gateway::connected(FrameAck::Stored).await;
        for _ in 0..2 {
            let poison = gateway.post();
            gateway.settle().await;
            gateway.outcome(poison, Outcome::Refused("406".into()));
            gateway.settle().await;
        }
        assert_eq!(books(&gateway), [2.0, 0.0, 0.0, 2.0]);
        assert_eq!(gateway.books.scrape().value("outbox_parked"), 2.0);
        let [published, discarded] = gateway.parked().await.try_into().expect("two");
        let publish = PublishParkedMessage { message_id: published.message_id };
        gateway.publisher.send(publish).await.expect("alive").expect("it is parked");
        gateway.settle().await;
        assert_eq!(gateway.books.scrape().value("outbox_parked"), 1.0);
        let number = gateway.outstanding()[0];
        gateway.outcome(number, Outcome::Confirmed);
        let requester = Requester { name: "a test".into(), request_id: String::new() };
        let discard = DiscardOutboxMessage { message_id: discarded.message_id, requester };
        gateway.publisher.send(discard).await.expect("alive").expect("it is there");
        gateway.settle().await;
        assert_eq!(books(&gateway), [2.0, 1.0, 1.0, 0.0]);
        gateway.post();
        gateway.event(PublisherEvent::Disconnected { reason: "lost".into(), lost: true });
        gateway.settle().await;
        gateway.kill_and_start_again();
        gateway.settle().await;
        assert_eq!(gateway.books.scrape().value("outbox_recovered_messages"), 1.0);
        assert_eq!(books(&gateway), [0.0, 0.0, 0.0, 1.0]);
    });
}

#[test]
fn the_connection_and_the_answers_of_the_broker_are_counted() {
    in_paused_time(async {
        let mut gateway = Gateway::start(FrameAck::Stored);
        let broker = |gateway: &Gateway| {
            let scrape = gateway.books.scrape();
            ["connected", "blocked", "connections_total", "returned_total", "nacked_total"]
                .map(|name| scrape.value(&format!("broker_{name}")))
        };
        assert_eq!(broker(&gateway), [0.0; 5]);
        gateway.connect().await;
        gateway.event(PublisherEvent::Blocked(true));
        gateway.settle().await;
        assert_eq!(broker(&gateway), [1.0, 1.0, 1.0, 0.0, 0.0]);
        gateway.event(PublisherEvent::Blocked(false));
        let number = gateway.post();
        for outcome in [Outcome::Returned("312 NO_ROUTE".into()), Outcome::Nacked] {
            gateway.advance(Duration::from_secs(2)).await;
            gateway.outcome(number, outcome);
            gateway.settle().await;
        }
        gateway.advance(Duration::from_secs(2)).await;
        gateway.advance(Duration::from_secs(3)).await;
        gateway.outcome(number, Outcome::Confirmed);
        gateway.settle().await;
        let scrape = gateway.books.scrape();
        assert_eq!(scrape.value("publish_confirm_seconds_count"), 1.0, "of the hand-over that was confirmed");
        assert!(scrape.value("publish_confirm_seconds_sum") >= 3.0, "{}", scrape.text);
        gateway.event(PublisherEvent::Disconnected { reason: "lost".into(), lost: true });
        gateway.settle().await;
        gateway.connect().await;
        assert_eq!(broker(&gateway), [1.0, 0.0, 2.0, 1.0, 1.0]);
    });
}
