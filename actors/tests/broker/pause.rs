//! A consumer that is told to pause while its connection breaks.

use std::sync::atomic::{AtomicBool, Ordering};

use user_http_actors::broker::{ConsumerEvent, ConsumerLink, Settlement};

use crate::broker::harness::{Consuming, Peer, SHARED, SOON, config};
use crate::broker::proxy::{PASS, behind_proxy};

/// Class and method of `basic.cancel`.
const CANCEL: [u8; 4] = [0, 60, 0, 30];

#[test]
fn a_pause_that_a_lost_connection_interrupts_is_reported_and_ends() {
    static IS_CUT: AtomicBool = AtomicBool::new(false);
    let from_client = |sent: &mut [u8]| {
        let is_cancel = sent.windows(CANCEL.len()).any(|method| method == CANCEL);
        // the first cancel does not reach the broker
        !is_cancel || IS_CUT.swap(true, Ordering::Relaxed)
    };
    let config = behind_proxy(config(&SHARED, "pause"), from_client, PASS);
    let mut consuming = Consuming::start(&config, 1);
    consuming.connected(SOON);
    consuming.handle.consume(0);
    consuming.disconnected(SOON);
    consuming.connected(SOON);
    consuming.events.wait("Cancelled", SOON, |event| matches!(event, ConsumerEvent::Cancelled).then_some(()));
    let peer = Peer::connect(&SHARED);
    peer.send(&config, b"{}", Default::default());
    peer.wait_for_depth(&config.consume_queue, 1);
    consuming.handle.consume(1);
    consuming.delivered().settler.settle(Settlement::Ack);
    assert!(consuming.handle.stop(SOON));
    peer.delete_queue(&config.consume_queue);
}
