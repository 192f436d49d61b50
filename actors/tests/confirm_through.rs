//! Messages for the user manager that the broker confirms before they are stored, and the switch between the two.

mod books_tests;
mod harness;
mod keys;
mod model;

use std::time::Duration;

use harness::{Disk, Gateway, in_paused_time};
use user_http_actors::Error;
use user_http_actors::broker::{Outcome, PublisherEvent};
use user_http_actors::messages::{BrokerState, Drain, StopLeasing};
use user_http_actors::publisher::FrameAck;
use user_http_actors::store::StoreError;

const SECOND: Duration = Duration::from_secs(1);

fn is_no_space(answer: &Option<Result<(), Error>>) -> bool {
    matches!(answer, Some(Err(Error::Store(StoreError::NoSpace(_)))))
}

fn is_not_confirmed(answer: &Option<Result<(), Error>>, why: &str) -> bool {
    matches!(answer, Some(Err(Error::NotConfirmed { reason })) if reason.contains(why))
}

#[test]
fn a_confirm_answers_a_message_that_is_written_nowhere() {
    in_paused_time(async {
        let mut gateway = Gateway::connected(FrameAck::Stored).await;
        let (first, second) = (gateway.post(), gateway.post());
        gateway.settle().await;
        assert_eq!(gateway.outstanding(), [first, second], "published at once");
        assert_eq!(gateway.state().await.unstored, 2);
        assert!(gateway.answer(first).is_none() && gateway.answer(second).is_none());
        gateway.outcome(second, Outcome::Confirmed);
        gateway.settle().await;
        assert!(gateway.answer(first).is_none());
        assert!(matches!(gateway.answer(second), Some(Ok(()))));
        gateway.outcome(first, Outcome::Confirmed);
        gateway.settle().await;
        assert!(matches!(gateway.answer(first), Some(Ok(()))));
        assert_eq!(gateway.disk.puts(), 0);
        let state = gateway.state().await;
        assert_eq!((state.messages, state.bytes, state.unstored, state.forwarded_total), (0, 0, 0, 2));
    });
}

#[test]
fn what_a_silent_broker_has_not_confirmed_within_a_second_is_stored_and_what_comes_then_is_stored_at_once() {
    in_paused_time(async {
        let mut gateway = Gateway::connected(FrameAck::Stored).await;
        let early = gateway.post();
        gateway.settle().await;
        gateway.advance(SECOND / 2).await;
        assert!(gateway.answer(early).is_none());
        gateway.advance(SECOND).await;
        assert!(matches!(gateway.answer(early), Some(Ok(()))));
        assert!(gateway.disk.holds(early));
        let late = gateway.post();
        gateway.settle().await;
        assert!(matches!(gateway.answer(late), Some(Ok(()))), "it does not wait for a second");
        assert_eq!(gateway.outstanding(), [early, late], "it is published all the same, once, in order");
        // an answer of the broker ends that
        gateway.outcome(early, Outcome::Confirmed);
        gateway.outcome(late, Outcome::Confirmed);
        let next = gateway.post();
        gateway.settle().await;
        assert!(gateway.answer(next).is_none());
        gateway.outcome(next, Outcome::Confirmed);
        gateway.settle().await;
        assert_eq!((gateway.disk.puts(), gateway.disk.records()), (2, vec![]));
    });
}

#[test]
fn while_the_broker_confirms_others_a_message_is_unstored_for_five_seconds() {
    in_paused_time(async {
        let mut gateway = Gateway::connected(FrameAck::Stored).await;
        let slow = gateway.post();
        for _ in 0..8 {
            assert!(gateway.answer(slow).is_none());
            let other = gateway.post();
            gateway.settle().await;
            gateway.outcome(other, Outcome::Confirmed);
            gateway.advance(SECOND * 6 / 10).await;
        }
        assert_eq!(gateway.disk.puts(), 0);
        gateway.advance(SECOND).await;
        assert!(matches!(gateway.answer(slow), Some(Ok(()))));
        assert_eq!(gateway.disk.records(), [slow]);
    });
}

#[test]
fn whatever_keeps_the_broker_from_taking_a_message_has_it_stored() {
    let disconnect = |lost| PublisherEvent::Disconnected { reason: "gone".into(), lost };
    in_paused_time(async move {
        for obstacle in [
            disconnect(true),
            disconnect(false),
            PublisherEvent::Blocked(true),
            PublisherEvent::WaitingFor(Some("a queue".into())),
        ] {
            let mut gateway = Gateway::connected(FrameAck::Stored).await;
            let what = format!("{obstacle:?}");
            gateway.event(obstacle);
            let late = gateway.post();
            gateway.settle().await;
            assert!(matches!(gateway.answer(late), Some(Ok(()))), "{what}");
            assert!(gateway.disk.holds(late) && gateway.outstanding().is_empty(), "{what}");
        }
        for outcome in [Outcome::Nacked, Outcome::Returned("312 NO_ROUTE".into())] {
            let mut gateway = Gateway::connected(FrameAck::Stored).await;
            let (first, second) = (gateway.post(), gateway.post());
            gateway.settle().await;
            let what = format!("{outcome:?}");
            gateway.outcome(first, outcome);
            let late = gateway.post();
            gateway.settle().await;
            assert!(matches!(gateway.answer(first), Some(Ok(()))), "{what}");
            assert!(matches!(gateway.answer(late), Some(Ok(()))), "{what}");
            assert!(gateway.answer(second).is_none(), "{what}: the broker may have taken this one");
            assert_eq!(gateway.disk.records(), [first, late], "{what}");
        }
        let mut gateway = Gateway::connected(FrameAck::Stored).await;
        let sent = gateway.post();
        gateway.settle().await;
        gateway.event(disconnect(true));
        gateway.settle().await;
        assert!(matches!(gateway.answer(sent), Some(Ok(()))));
        assert_eq!(gateway.disk.records(), [sent]);
    });
}

#[test]
fn a_confirm_that_comes_while_the_store_is_writing_answers_and_the_record_does_not_stay() {
    in_paused_time(async {
        let mut gateway = Gateway::connected(FrameAck::Stored).await;
        gateway.disk.set(Disk::Hangs);
        let message = gateway.post();
        gateway.settle().await;
        gateway.advance(SECOND).await;
        assert!(gateway.answer(message).is_none());
        gateway.outcome(message, Outcome::Confirmed);
        gateway.settle().await;
        assert!(matches!(gateway.answer(message), Some(Ok(()))));
        assert_eq!(gateway.state().await.messages, 0);
        gateway.disk.set(Disk::Writes);
        gateway.settle().await;
        assert_eq!((gateway.disk.puts(), gateway.disk.records()), (1, vec![]));
    });
}

#[test]
fn a_message_that_the_full_disk_refuses_before_the_broker_confirms_it_is_refused_and_forgotten() {
    in_paused_time(async {
        let mut gateway = Gateway::connected(FrameAck::Stored).await;
        gateway.disk.set(Disk::Full);
        let sent = gateway.post();
        gateway.settle().await;
        gateway.advance(SECOND).await;
        assert!(is_no_space(&gateway.answer(sent)));
        gateway.event(PublisherEvent::Disconnected { reason: "gone".into(), lost: true });
        let late = gateway.post();
        gateway.settle().await;
        assert!(is_no_space(&gateway.answer(late)));
        gateway.connect().await;
        assert!(gateway.outstanding().is_empty(), "neither is sent again");
        assert_eq!((gateway.state().await.messages, gateway.state().await.bytes), (0, 0));
        // what the broker confirms needs no disk
        let confirmed = gateway.post();
        gateway.settle().await;
        gateway.outcome(confirmed, Outcome::Confirmed);
        gateway.settle().await;
        assert!(matches!(gateway.answer(confirmed), Some(Ok(()))));
    });
}

#[test]
fn a_message_that_is_too_large_for_the_broker_is_refused_if_its_sender_still_waits() {
    in_paused_time(async {
        let mut gateway = Gateway::connected(FrameAck::Stored).await;
        let message = gateway.post();
        gateway.settle().await;
        gateway.event(PublisherEvent::SizeLimit(0));
        gateway.outcome(message, Outcome::Refused("406".into()));
        gateway.settle().await;
        assert!(matches!(gateway.answer(message), Some(Err(Error::TooLargeForBroker { size: 1, limit: 0 }))));
        let state = gateway.state().await;
        assert_eq!((state.messages, state.parked, gateway.disk.puts()), (0, 0, 0));
    });
}

#[test]
fn a_poison_message_is_stored_before_it_is_parked() {
    in_paused_time(async {
        let mut gateway = Gateway::connected(FrameAck::Stored).await;
        let poison = gateway.post();
        gateway.settle().await;
        gateway.event(PublisherEvent::Suspected { reason: "406 for a reason of its own".into() });
        gateway.event(PublisherEvent::Disconnected { reason: "406".into(), lost: false });
        gateway.settle().await;
        assert!(matches!(gateway.answer(poison), Some(Ok(()))));
        assert_eq!((gateway.state().await.parked, gateway.disk.records()), (1, vec![poison]));
    });
}

#[test]
fn nobody_is_parked_for_a_poison_message_that_was_forgotten_while_it_was_in_flight() {
    in_paused_time(async {
        let mut gateway = Gateway::connected(FrameAck::Stored).await;
        gateway.disk.set(Disk::Full);
        let poison = gateway.post();
        gateway.settle().await;
        gateway.advance(SECOND).await;
        assert!(is_no_space(&gateway.answer(poison)));
        gateway.disk.set(Disk::Writes);
        let good = gateway.post();
        gateway.settle().await;
        assert_eq!(gateway.outstanding(), [poison, good]);
        gateway.event(PublisherEvent::Suspected { reason: "406 for a reason of its own".into() });
        gateway.event(PublisherEvent::Disconnected { reason: "406".into(), lost: false });
        gateway.connect().await;
        assert_eq!(gateway.state().await.parked, 0);
        assert_eq!(gateway.outstanding(), [good]);
    });
}

#[test]
fn a_stop_stores_what_the_broker_has_not_confirmed() {
    in_paused_time(async {
        let mut gateway = Gateway::connected(FrameAck::Stored).await;
        let (confirmed, unconfirmed) = (gateway.post(), gateway.post());
        gateway.settle().await;
        gateway.outcome(confirmed, Outcome::Confirmed);
        let drained = actix::spawn(gateway.publisher.send(Drain));
        gateway.settle_answers().await;
        assert!(matches!(gateway.answer(confirmed), Some(Ok(()))));
        gateway.wait_for_answer(unconfirmed).await;
        assert!(matches!(gateway.answer(unconfirmed), Some(Ok(()))));
        assert_eq!(gateway.disk.records(), [unconfirmed]);
        drained.await.expect("no panic").expect("it stops");
    });
}

#[test]
fn a_sender_that_hangs_up_changes_nothing() {
    in_paused_time(async {
        for is_confirmed in [true, false] {
            let mut gateway = Gateway::connected(FrameAck::Stored).await;
            let message = gateway.post();
            gateway.settle().await;
            gateway.hang_up(message);
            if is_confirmed {
                gateway.outcome(message, Outcome::Confirmed);
                gateway.settle().await;
                assert_eq!((gateway.state().await.messages, gateway.disk.puts()), (0, 0));
            } else {
                gateway.advance(SECOND).await;
                assert_eq!(gateway.disk.records(), [message]);
            }
        }
    });
}

#[test]
fn what_comes_behind_ten_thousand_others_is_stored_at_once_and_published_in_order() {
    in_paused_time(async {
        let mut gateway = Gateway::connected(FrameAck::Stored).await;
        let posted: Vec<u64> = (0..11_010).map(|_| gateway.post()).collect();
        gateway.settle().await;
        assert_eq!(gateway.state().await.unstored, 11_000);
        assert_eq!(gateway.disk.records(), posted[11_000..]);
        while let outstanding @ [_, ..] = &gateway.outstanding()[..] {
            outstanding.iter().for_each(|number| gateway.outcome(*number, Outcome::Confirmed));
            gateway.settle().await;
        }
        assert_eq!(gateway.first_published(), posted);
        assert_eq!((gateway.disk.puts(), gateway.disk.records()), (10, vec![]));
    });
}

#[test]
fn a_message_behind_a_short_backlog_waits_for_its_confirm() {
    in_paused_time(async {
        let mut gateway = Gateway::start(FrameAck::Stored);
        let backlog: Vec<u64> = (0..1_001).map(|_| gateway.post()).collect();
        gateway.settle().await;
        gateway.connect().await;
        assert_eq!(gateway.outstanding(), backlog[..1_000], "the window is full");
        let late = gateway.post();
        gateway.settle().await;
        assert!(gateway.answer(late).is_none());
        backlog[..1_000].iter().for_each(|number| gateway.outcome(*number, Outcome::Confirmed));
        gateway.settle().await;
        assert_eq!(gateway.outstanding(), [backlog[1_000], late]);
        [backlog[1_000], late].into_iter().for_each(|number| gateway.outcome(number, Outcome::Confirmed));
        gateway.settle().await;
        assert!(matches!(gateway.answer(late), Some(Ok(()))));
        assert_eq!(gateway.disk.puts(), backlog.len(), "it was not stored");
        assert_eq!(gateway.first_published(), [&backlog[..], &[late]].concat());
    });
}

#[test]
fn a_broker_that_was_not_asked_for_long_is_not_silent() {
    in_paused_time(async {
        for (frame_ack, patience) in [(FrameAck::Stored, SECOND), (FrameAck::Broker, 10 * SECOND)] {
            let mut gateway = Gateway::connected(frame_ack).await;
            gateway.advance(60 * SECOND).await;
            let message = gateway.post();
            gateway.settle().await;
            gateway.advance(patience - SECOND / 10).await;
            assert!(gateway.answer(message).is_none(), "{frame_ack:?}");
            gateway.outcome(message, Outcome::Confirmed);
            gateway.settle().await;
            assert!(matches!(gateway.answer(message), Some(Ok(()))), "{frame_ack:?}");
        }
    });
}

#[test]
fn a_broker_that_is_slow_never_owes_more_answers_than_the_window_has() {
    in_paused_time(async {
        let mut gateway = Gateway::connected(FrameAck::Broker).await;
        let first: Vec<u64> = (0..1_500).map(|_| gateway.post()).collect();
        gateway.settle().await;
        for round in 0..3 {
            gateway.advance(11 * SECOND).await;
            assert_eq!(gateway.outstanding().len(), 1_000, "in round {round}");
            let more: Vec<u64> = (0..1_000).map(|_| gateway.post()).collect();
            gateway.settle().await;
            assert_eq!(gateway.outstanding(), first[..1_000], "in round {round}");
            assert!(more.into_iter().all(|number| is_not_confirmed(&gateway.answer(number), "does not answer")));
        }
        // each answer lets one more message out
        gateway.outcome(first[0], Outcome::Confirmed);
        let next = gateway.post();
        gateway.settle().await;
        assert_eq!(gateway.outstanding(), [&first[1..1_000], &[next]].concat());
    });
}

#[test]
fn the_broker_has_the_time_that_the_transfer_of_a_large_message_takes() {
    in_paused_time(async {
        const SIZE: usize = 64 << 20;
        // it takes 8 s at 8 MiB/s
        for (frame_ack, seconds) in [(FrameAck::Stored, 5), (FrameAck::Broker, 10 + 8)] {
            let mut gateway = Gateway::connected(frame_ack).await;
            let large = gateway.post_of(SIZE);
            gateway.settle().await;
            for _ in 1..seconds {
                gateway.advance(SECOND).await;
                assert!(gateway.answer(large).is_none(), "{frame_ack:?}");
            }
            gateway.advance(SECOND).await;
            match frame_ack {
                FrameAck::Stored => assert!(matches!(gateway.answer(large), Some(Ok(()))), "it is stored"),
                FrameAck::Broker => assert!(is_not_confirmed(&gateway.answer(large), "does not answer")),
            }
        }
    });
}

#[test]
fn a_message_whose_body_cannot_be_read_is_refused_while_its_sender_waits() {
    in_paused_time(async {
        for frame_ack in [FrameAck::Stored, FrameAck::Broker] {
            let mut gateway = Gateway::connected(frame_ack).await;
            let message = gateway.post();
            gateway.settle().await;
            gateway.outcome(message, Outcome::Unreadable("EIO".into()));
            let next = gateway.post();
            gateway.settle().await;
            assert!(is_not_confirmed(&gateway.answer(message), "cannot be read"), "{frame_ack:?}");
            gateway.outcome(next, Outcome::Confirmed);
            gateway.settle().await;
            assert!(matches!(gateway.answer(next), Some(Ok(()))), "{frame_ack:?}");
            let state = gateway.state().await;
            assert_eq!((state.messages, state.parked, gateway.disk.puts()), (0, 0, 0), "{frame_ack:?}");
        }
    });
}

#[test]
fn a_stop_that_begins_has_every_sender_answered_within_a_second() {
    in_paused_time(async {
        for frame_ack in [FrameAck::Stored, FrameAck::Broker] {
            let mut gateway = Gateway::connected(frame_ack).await;
            let before = gateway.post();
            gateway.settle().await;
            gateway.publisher.send(StopLeasing).await.expect("alive");
            let during = gateway.post();
            gateway.settle().await;
            if frame_ack == FrameAck::Broker {
                gateway.advance(SECOND).await;
            }
            for number in [before, during] {
                match frame_ack {
                    FrameAck::Stored => assert!(matches!(gateway.answer(number), Some(Ok(()))), "{number} is stored"),
                    FrameAck::Broker => assert!(is_not_confirmed(&gateway.answer(number), "stops")),
                }
            }
        }
    });
}

#[test]
fn without_a_confirm_nothing_is_accepted_if_only_the_broker_answers() {
    in_paused_time(async {
        let mut gateway = Gateway::connected(FrameAck::Broker).await;
        let message = gateway.post();
        gateway.settle().await;
        gateway.advance(9 * SECOND).await;
        assert!(gateway.answer(message).is_none());
        gateway.advance(SECOND).await;
        assert!(is_not_confirmed(&gateway.answer(message), "does not answer"));
        let refused = gateway.post();
        gateway.settle().await;
        assert!(is_not_confirmed(&gateway.answer(refused), "does not answer"));
        // a late confirm of what is forgotten proves that the broker answers again
        gateway.outcome(message, Outcome::Confirmed);
        let taken = gateway.post();
        gateway.settle().await;
        gateway.outcome(taken, Outcome::Confirmed);
        gateway.settle().await;
        assert!(matches!(gateway.answer(taken), Some(Ok(()))));

        let (returned, other) = (gateway.post(), gateway.post());
        gateway.settle().await;
        gateway.outcome(returned, Outcome::Returned("312 NO_ROUTE".into()));
        gateway.settle().await;
        assert!(is_not_confirmed(&gateway.answer(returned), "refused or returned"));
        assert!(gateway.answer(other).is_none());
        gateway.outcome(other, Outcome::Confirmed);
        let early = gateway.post();
        gateway.settle().await;
        assert!(is_not_confirmed(&gateway.answer(early), "refused or returned"));
        gateway.advance(SECOND).await;
        let probe = gateway.post();
        gateway.settle().await;
        assert_eq!(gateway.outstanding(), [probe], "after the pause the broker is tried again");
        gateway.outcome(probe, Outcome::Confirmed);
        gateway.settle().await;
        assert!(matches!(gateway.answer(probe), Some(Ok(()))));

        for (obstacle, end, why) in [
            (PublisherEvent::Blocked(true), Some(PublisherEvent::Blocked(false)), "blocks"),
            (PublisherEvent::WaitingFor(Some("queue UM".into())), Some(PublisherEvent::WaitingFor(None)), "not ready"),
            (PublisherEvent::Disconnected { reason: "gone".into(), lost: true }, None, "no connection"),
        ] {
            gateway.event(obstacle);
            let refused = gateway.post();
            gateway.settle().await;
            assert!(is_not_confirmed(&gateway.answer(refused), why), "{why}");
            end.into_iter().for_each(|end| gateway.event(end));
        }
        let state = gateway.state().await;
        assert_eq!((state.messages, state.broker, gateway.disk.puts()), (0, BrokerState::Disconnected, 0));
    });
}
