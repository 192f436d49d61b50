//! What comes back without telling what it is.

use user_http_actors::broker::{Outcome, PublisherEvent};
use user_http_actors::codec::Format;

use crate::broker::harness::{Publishing, SHARED, SOON, config};
use crate::broker::proxy::{PASS, behind_proxy};

/// The message-ids are the only texts with four dashes at these distances.
fn spoil_ids(bytes: &mut [u8]) -> bool {
    for at in 0..bytes.len().saturating_sub(15) {
        if [0, 5, 10, 15].iter().all(|offset| bytes[at + offset] == b'-') {
            bytes[at] = b'x';
        }
    }
    true
}

#[test]
fn a_message_that_comes_back_without_its_id_does_not_count_as_delivered() {
    const COUNT: u64 = 20;
    let mut publishing = Publishing::start(&behind_proxy(config(&SHARED, "no_id"), PASS, spoil_ids));
    let epoch = publishing.connected(SOON);
    for seq in 0..COUNT {
        publishing.publish(epoch, seq, Format::Json, vec![b'x'; seq as usize % 3]);
    }
    let mut left = COUNT;
    publishing.events.wait("all outcomes", SOON, |event| {
        let PublisherEvent::Outcome { seq, outcome } = event else { return None };
        assert!(matches!(outcome, Outcome::Returned(_)), "{outcome:?} of message {seq}");
        left -= 1;
        (left == 0).then_some(())
    });
}
