//! The outbox without a broker: messages are leased to the user manager, who deletes them when it is done.

use std::time::Duration;

use actix::Recipient;

use crate::error::Error;
use crate::lease::{NextMessage, OutboxLease, OutboxLeaseEvent};
use crate::publisher::outbox::{Outbox, OutboxMessage};
use crate::reply::Reply;
use crate::wait_queue::WaitQueue;

/// The requests for the next message, in the order in which they came.
#[derive(Debug, Default)]
pub struct NextMessageRequests {
    waiting: WaitQueue<NextMessageRequest>,
    stopped: bool,
}

#[derive(Debug)]
struct NextMessageRequest {
    /// Zero shows the message without leasing it.
    visibility_timeout: Duration,
    reply: Reply<Result<Option<NextMessage>, Error>>,
}

impl NextMessageRequests {
    /// Adds a request; after [`NextMessageRequests::stop`] it is answered that there is no message.
    pub fn push(&mut self, visibility_timeout: Duration, reply: Reply<Result<Option<NextMessage>, Error>>) {
        if self.stopped {
            return reply.send(Ok(None));
        }
        let request = NextMessageRequest { visibility_timeout, reply };
        self.waiting.push(request, |request| request.reply.is_closed());
    }

    /// Answers all requests, and from now on every new one, that there is no message.
    pub fn stop(&mut self) {
        self.stopped = true;
        while let Some(request) = self.waiting.pop() {
            request.reply.send(Ok(None));
        }
    }

    /// Whether `outbox` has a message for a request that comes now.
    pub fn has_next(&self, outbox: &Outbox) -> bool {
        !self.stopped && self.waiting.first().is_none() && outbox.first_waiting().is_some()
    }

    /// Answers as many requests as there are messages that wait. The leases report their end to `owner`.
    pub fn answer(&mut self, outbox: &mut Outbox, owner: &Recipient<OutboxLeaseEvent>) {
        while let Some(request) = self.waiting.pop() {
            if request.reply.is_closed() {
                continue;
            }
            let lease = |seq, id| OutboxLease::new(owner.clone(), seq, id);
            let next = if request.visibility_timeout.is_zero() {
                outbox.first_waiting().map(|(seq, message)| (seq, next_message(message, lease(seq, None))))
            } else {
                let leased = outbox.lease_first(request.visibility_timeout);
                leased.map(|(seq, id, message)| (seq, next_message(message, lease(seq, Some(id)))))
            };
            let Some((seq, next)) = next else {
                self.waiting.push_first(request);
                break;
            };
            outbox.begin_reading(seq);
            // if nobody waits for it any more, its drop ends the lease
            request.reply.send(Ok(Some(next)));
        }
    }
}

fn next_message(message: &OutboxMessage, lease: OutboxLease) -> NextMessage {
    NextMessage {
        message_id: message.meta.message_id,
        format: message.meta.format,
        payload: message.payload.clone(),
        delivery_count: message.leased,
        lease,
    }
}
