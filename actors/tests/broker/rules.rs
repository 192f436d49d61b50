//! What RabbitMQ's guide to acknowledgements and confirms lets a broker do, and what a real one does only now and then.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use amiquip::AmqpProperties;
use user_http_actors::broker::{Outcome, PublisherEvent, Settlement};
use user_http_actors::codec::Format;

use crate::broker::harness::{Consuming, Peer, Publishing, SHARED, SOON, config};
use crate::broker::proxy::{PASS, behind_frames, behind_proxy};

const METHOD: u8 = 1;
const FRAME_END: u8 = 0xce;
/// Class and method of `basic.ack` and `basic.nack`.
const ACK: [u8; 4] = [0, 60, 0, 80];
const NACK: [u8; 4] = [0, 60, 0, 120];
const MULTIPLE: u8 = 1;
/// The broker's nacks may have it; it means nothing there.
const REQUEUE: u8 = 2;

/// The method and the delivery tag of a frame with an ack or a nack, and its bits.
fn settled(frame: &[u8]) -> Option<([u8; 4], u64, u8)> {
    let method: [u8; 4] = frame.get(7..11)?.try_into().ok()?;
    let is_settlement = frame[0] == METHOD && [ACK, NACK].contains(&method);
    let tag = frame.get(11..19)?.try_into().map(u64::from_be_bytes).ok()?;
    is_settlement.then_some((method, tag, frame[19]))
}

fn settlement(channel: &[u8], method: [u8; 4], tag: u64, bits: u8) -> Vec<u8> {
    [&[METHOD], channel, &[0, 0, 0, 13], &method, &tag.to_be_bytes(), &[bits, FRAME_END]].concat()
}

/// "The broker may also set the multiple field", "acknowledgements can arrive in a different order", "fields of the
/// basic.nack have the same meaning", "the requeue field should be ignored", "no message will be both confirmed and
/// nack'd".
#[test]
fn confirms_of_several_messages_in_any_order_and_refusals_count_once_for_each_that_they_name() {
    const COUNT: u64 = 9;
    let said =
        [(NACK, 3, MULTIPLE | REQUEUE), (ACK, 5, 0), (ACK, 4, 0), (NACK, 9, REQUEUE), (ACK, 7, MULTIPLE), (ACK, 8, 0)];
    let mut confirmed = 0;
    let names = config(&SHARED, "any_order");
    Peer::connect(&SHARED).bind_queue(&names, "any_order");
    let mut publishing = Publishing::start(&behind_frames(names, move |frame| match settled(&frame) {
        None => frame,
        Some((_, tag, bits)) => {
            confirmed = if bits & MULTIPLE > 0 { tag } else { confirmed + 1 };
            let all = said.iter().filter(|_| confirmed == COUNT);
            all.flat_map(|(method, tag, bits)| settlement(&frame[1..3], *method, *tag, *bits)).collect()
        }
    }));
    let epoch = publishing.connected(SOON);
    for seq in 1..=COUNT {
        publishing.publish(epoch, seq, Format::Json, "{}");
    }
    let mut outcomes = BTreeMap::new();
    publishing.events.wait("all outcomes", SOON, |event| {
        let PublisherEvent::Outcome { seq, outcome } = event else { return None };
        assert!(outcomes.insert(seq, outcome).is_none(), "a second outcome of message {seq}");
        (outcomes.len() as u64 == COUNT).then_some(())
    });
    for (seq, outcome) in outcomes {
        let expected = if [1, 2, 3, 9].contains(&seq) { Outcome::Nacked } else { Outcome::Confirmed };
        assert_eq!(outcome, expected, "of message {seq}");
    }
}

/// Breaks the first connection on which a delivery is acknowledged, before the broker hears of it.
fn lose_the_first_ack(bytes: &mut [u8]) -> bool {
    static LOST: AtomicBool = AtomicBool::new(false);
    !bytes.windows(ACK.len()).any(|window| window == ACK) || LOST.swap(true, Ordering::Relaxed)
}

/// "Any delivery that was not acked is automatically requeued", "redeliveries will have redeliver set to true",
/// "delivery tags are scoped per channel".
#[test]
fn what_was_delivered_on_a_lost_connection_comes_again_and_is_not_settled_by_what_was_meant_for_it_there() {
    let names = config(&SHARED, "scoped_tags");
    let mut consuming = Consuming::start(&behind_proxy(names.clone(), lose_the_first_ack, PASS), 10);
    consuming.connected(SOON);
    let peer = Peer::connect(&SHARED);
    for body in [b"first", b"other"] {
        peer.send(&names, body, AmqpProperties::default());
    }
    let [first, other] = [consuming.delivered(), consuming.delivered()];
    assert!(!first.redelivered && !other.redelivered);
    first.settler.settle(Settlement::Ack);
    consuming.disconnected(SOON);

    let [first_again, other_again] = [consuming.delivered(), consuming.delivered()];
    assert_eq!((&first_again.body[..], &other_again.body[..]), (&b"first"[..], &b"other"[..]));
    assert!(first_again.redelivered && other_again.redelivered);
    // both deliveries of this message have the tag 2
    other.settler.settle(Settlement::Ack);
    first_again.settler.settle(Settlement::Ack);
    assert!(consuming.handle.stop(SOON));
    peer.wait_for_depth(&names.consume_queue, 1);
    assert_eq!(peer.get(&names.consume_queue).delivery.body, b"other");
    drop(other_again);
}
