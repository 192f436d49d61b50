//! Messages that nobody fetches in time go, a slice at a time.

use std::time::Duration;

use actix::prelude::*;

use crate::buffer::age::Since;
use crate::buffer::lease::Asker;
use crate::buffer::{BufferActor, Held};
use crate::buffer_uuid::BufferUuid;
use crate::store::Seq;
use crate::wait_queue::WaitQueue;

/// How often expired messages are looked for: often enough that an hour's time to live is kept to the second, seldom
/// enough to cost nothing.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);

/// How many messages expire, or are forgotten, in one turn of the event loop. 300,000 at once took 0.76 s; so 1,000 take
/// about 3 ms.
const EXPIRY_SLICE: usize = 1_000;

/// When the next slice follows, where more is due: others have their turn meanwhile.
const NEXT_SLICE: Duration = Duration::from_millis(1);

impl BufferActor {
    pub(super) fn is_expired(&self, held: &Held) -> bool {
        held.since <= self.due()
    }

    /// What began now or before is too old.
    fn due(&self) -> Since {
        self.clock.now().saturating_sub_unsigned(self.ttl.as_millis() as u64)
    }

    /// Forgets what was not fetched in time, a slice at a time. What is being delivered stays until that is over.
    pub(super) fn expire(&mut self, ctx: &mut Context<Self>) {
        let now = self.clock.now();
        let forgotten = self.brought.forget_old(now, EXPIRY_SLICE);
        let mut more = forgotten.len() == EXPIRY_SLICE;
        forgotten.into_iter().for_each(|record| self.store.remove(record));
        let due = self.due();
        let mut expired = Vec::new();
        for _ in 0..EXPIRY_SLICE {
            let Some(seq) = self.by_age.pop_due(due) else { break };
            if let Some(uuid) = self.names.get(&seq).filter(|_| !self.leases.contains_key(&seq)).cloned() {
                self.remove(&uuid);
                expired.push(uuid);
            }
        }
        self.count_expired(&expired);
        more |= self.by_age.is_due(due);
        let next = if more { NEXT_SLICE } else { EXPIRY_INTERVAL };
        ctx.run_later(next, Self::expire);
    }

    fn count_expired(&mut self, expired: &[BufferUuid]) {
        self.expired_total += expired.len() as u64;
        match expired {
            [] => {}
            [uuid] => log::info!("message {uuid:?} has expired: nobody fetched it"),
            [first, .., last] => {
                log::info!("{} messages have expired, {first:?} to {last:?}: nobody fetched them", expired.len());
            }
        }
    }

    /// A delivery is over without success. What has become too old meanwhile is not offered again.
    pub(super) fn offer_again(&mut self, uuid: &BufferUuid, seq: Seq) -> WaitQueue<Asker> {
        if self.messages.get(uuid).is_some_and(|held| self.is_expired(held)) {
            self.count_expired(std::slice::from_ref(uuid));
            return self.remove(uuid);
        }
        self.end_lease(seq)
    }
}
