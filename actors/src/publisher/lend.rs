//! The outbox without a broker: messages are lent to the user manager, who deletes them when it is done.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use actix::Recipient;
use uuid::Uuid;

use crate::deadlines::{Deadline, Deadlines};
use crate::error::Error;
use crate::lease::{NextMessage, OutboxLease, OutboxLeaseEvent, OutboxLeaseId};
use crate::publisher::outbox::{Outbox, OutboxMessage};
use crate::reply::Reply;
use crate::store::Seq;
use crate::wait_queue::WaitQueue;

/// The side of the outbox that faces a user manager who comes for its messages.
#[derive(Debug, Default)]
pub struct Lender {
    /// The current loan of each message that is out.
    loans: BTreeMap<Seq, Current>,
    last_loan: OutboxLeaseId,
    deadlines: Deadlines<EndLoan>,
    by_id: HashMap<Uuid, Seq>,
    takers: WaitQueue<Taker>,
    stopped: bool,
}

#[derive(Debug)]
struct Taker {
    lease: Duration,
    reply: Reply<TakeReply>,
}

/// The reply to [`TakeNextMessage`](crate::messages::TakeNextMessage).
type TakeReply = Result<Option<NextMessage>, Error>;

#[derive(Debug)]
struct Current {
    loan: OutboxLeaseId,
    /// When it ends by itself.
    deadline: Deadline,
}

impl Lender {
    pub fn new(outbox: &Outbox) -> Self {
        let by_id = outbox.iter().map(|(seq, message)| (message.meta.message_id, seq)).collect();
        Self { by_id, ..Self::default() }
    }

    /// The loans whose time is over, as they end.
    pub fn deadlines(&self) -> Deadlines<EndLoan> {
        self.deadlines.clone()
    }

    pub fn added(&mut self, message_id: Uuid, seq: Seq) {
        self.by_id.insert(message_id, seq);
    }

    /// `reply` gets the next message, as soon as there is one.
    pub fn queue(&mut self, lease: Duration, reply: Reply<TakeReply>) {
        if self.stopped {
            return reply.send(Ok(None));
        }
        self.takers.push(Taker { lease, reply }, |taker| taker.reply.is_closed());
    }

    /// Replies to all who wait, and to all who will, that there is no message.
    pub fn stop(&mut self) {
        self.stopped = true;
        self.answer_waiting();
    }

    fn answer_waiting(&mut self) {
        while let Some(taker) = self.takers.pop() {
            taker.reply.send(Ok(None));
        }
    }

    /// Whether `outbox` has a message for a request that comes now.
    pub fn has_next(&self, outbox: &Outbox) -> bool {
        !self.stopped && self.takers.first().is_none() && outbox.first_waiting().is_some()
    }

    /// Lends waiting messages to waiting takers; who takes one for no time only sees it.
    pub fn lend(&mut self, outbox: &mut Outbox, owner: &Recipient<OutboxLeaseEvent>) {
        while let Some(taker) = self.takers.pop() {
            if taker.reply.is_closed() {
                continue;
            }
            let lease = |seq, id| OutboxLease::new(owner.clone(), seq, id);
            let next = if taker.lease.is_zero() {
                let first = outbox.first_waiting();
                // nothing is lent, and nothing has to come back
                first.map(|(seq, message)| next_message(message, lease(seq, None)))
            } else {
                outbox.take_first_waiting().map(|(seq, message)| {
                    self.last_loan += 1;
                    let loan = self.last_loan;
                    let deadline = self.deadlines.add(EndLoan(seq), taker.lease);
                    self.loans.insert(seq, Current { loan, deadline });
                    message.lent = message.lent.saturating_add(1);
                    next_message(message, lease(seq, Some(loan)))
                })
            };
            let Some(next) = next else {
                self.takers.push_first(taker);
                break;
            };
            // if the taker has gone, the lease in what comes back puts the message back
            taker.reply.send(Ok(Some(next)));
        }
    }

    /// The time of a loan is over; the message waits again.
    pub fn expire(&mut self, seq: Seq, outbox: &mut Outbox) {
        self.loans.remove(&seq);
        outbox.put_back(seq);
    }

    /// A loan has ended early; the message waits again, unless it was lent anew since or is gone.
    pub fn end_loan(&mut self, seq: Seq, loan: OutboxLeaseId, outbox: &mut Outbox) {
        if self.loans.get(&seq).is_some_and(|current| current.loan == loan) {
            self.forget_loan(seq);
            outbox.put_back(seq);
        }
    }

    /// Ends the loan of a message, if it has one.
    pub fn forget_loan(&mut self, seq: Seq) {
        if let Some(current) = self.loans.remove(&seq) {
            self.deadlines.remove(current.deadline);
        }
    }

    /// Finds a message that is to be removed, and ends its loan.
    pub fn take_back(&mut self, message_id: Uuid) -> Option<Seq> {
        let seq = *self.by_id.get(&message_id)?;
        self.forget_loan(seq);
        Some(seq)
    }

    /// A message has been removed.
    pub fn forget(&mut self, message_id: Uuid) {
        self.by_id.remove(&message_id);
    }
}

fn next_message(message: &OutboxMessage, lease: OutboxLease) -> NextMessage {
    NextMessage {
        message_id: message.meta.message_id,
        format: message.meta.format,
        payload: message.payload.clone(),
        delivery_count: message.lent,
        lease,
    }
}

/// The time of a loan is over.
#[derive(Debug)]
pub struct EndLoan(pub Seq);
