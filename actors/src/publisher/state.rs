//! The state of the outbox, for health checks and the status page.

use actix::prelude::*;

use super::{FrameAck, Route, UserManagerPublisher};
use crate::age;
use crate::messages::{BrokerState, GetOutboxState, OutboxState};

impl Handler<GetOutboxState> for UserManagerPublisher {
    type Result = OutboxState;

    fn handle(&mut self, _: GetOutboxState, _: &mut Self::Context) -> Self::Result {
        OutboxState {
            messages: self.outbox.len(),
            bytes: self.outbox.bytes(),
            parked: self.outbox.parked_len(),
            unstored: self.outbox.unstored_len(),
            idempotency_keys: self.keys.len(),
            max_bytes: self.max_bytes,
            full: self.full,
            oldest: self.outbox.oldest().map(age::of),
            broker: match &self.route {
                Route::Broker(forwarder) => forwarder.state(),
                Route::UserManager(_) => BrokerState::None,
            },
            broker_for: self.broker_changed.elapsed(),
            waiting_for: match &self.route {
                Route::Broker(forwarder) => forwarder.waiting_for().map(str::to_owned),
                Route::UserManager(_) => None,
            },
            frames_refused: self.obstacle().filter(|_| self.frame_ack == FrameAck::Broker),
            arrived_total: self.arrived_total,
            arrived_bytes_total: self.arrived_bytes_total,
            forwarded_total: self.metrics.forwarded.value(),
            discarded_total: self.metrics.discarded.value(),
            test_total: self.test_total,
            unknown_total: self.unknown_total,
            store_failure: self.store_failure.clone(),
            store_busy: self.store.busy_for(),
        }
    }
}
