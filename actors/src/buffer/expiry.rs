//! Removes expired messages and references, a slice at a time.

use std::time::Duration;

use actix::prelude::*;

use crate::age::Since;
use crate::buffer::BufferActor;
use crate::buffer::message::BufferedMsg;
use crate::buffer::metrics::Departure;
use crate::buffer_uuid::BufferUuid;
use crate::store::Seq;

/// How often expired messages are removed. Messages expire at most a second late, and a check without any costs almost
/// nothing.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);

/// How many messages, tombstones or references are removed in one turn of the event loop: 300,000 took 0.76 s, so 1,000
/// take about 3 ms.
const EXPIRY_SLICE: usize = 1_000;

/// The pause before the next slice, if more is due, so that other events are handled in between.
const NEXT_SLICE: Duration = Duration::from_millis(1);

impl BufferActor {
    pub(super) fn is_expired(&self, message: &BufferedMsg) -> bool {
        message.since <= self.due()
    }

    /// Messages that were stored at this time or before have expired.
    pub(super) fn due(&self) -> Since {
        let ttl = self.ttl.as_millis().try_into().unwrap_or(u64::MAX);
        self.clock.now().saturating_sub_unsigned(ttl)
    }

    /// Removes a slice of the expired messages, references and old tombstones. A message that is being delivered stays
    /// until the delivery ends.
    pub(super) fn expire(&mut self, ctx: &mut Context<Self>) {
        let now = self.clock.now();
        let tombstones = self.redeliveries.remove_old(now, EXPIRY_SLICE);
        let mut more = tombstones.len() == EXPIRY_SLICE;
        tombstones.into_iter().for_each(|record| self.store.remove(record));
        let (references, more_references) = self.references.remove_due(self.references_due(), EXPIRY_SLICE);
        more |= more_references;
        references.into_iter().for_each(|record| self.store.remove(record));
        let due = self.due();
        let mut expired = Vec::new();
        for _ in 0..EXPIRY_SLICE {
            let Some(seq) = self.by_age.pop_due(due) else { break };
            if let Some(uuid) = self.uuids.get(&seq).filter(|_| !self.leases.contains_key(&seq)).cloned() {
                self.remove(&uuid, Departure::Expired);
                expired.push(uuid);
            }
        }
        log_expired(&expired);
        more |= self.by_age.is_due(due);
        let next = if more { NEXT_SLICE } else { EXPIRY_INTERVAL };
        ctx.run_later(next, Self::expire);
    }

    /// Ends a delivery that did not succeed. If the message has expired meanwhile, removes it.
    pub(super) fn offer_again(&mut self, uuid: &BufferUuid, seq: Seq) {
        if self.messages.get(uuid).is_some_and(|message| self.is_expired(message)) {
            log_expired(std::slice::from_ref(uuid));
            self.remove(uuid, Departure::Expired);
        }
        self.leases.remove(&seq);
        self.metrics.holds(self.held());
    }
}

fn log_expired(expired: &[BufferUuid]) {
    match expired {
        [] => {}
        [uuid] => log::info!("message {uuid:?} has expired: nobody fetched it"),
        [first, .., last] => {
            log::info!("{} messages have expired, {first:?} to {last:?}: nobody fetched them", expired.len());
        }
    }
}
