//! The outbox without a broker: messages are lent to the user manager, who deletes them when it is done.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::time::Duration;

use actix::{Addr, Message};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::codec::Format;
use crate::deadlines::{Deadline, Deadlines};
use crate::payload::{Payload, may_be_readable_later};
use crate::publisher::UserManagerPublisher;
use crate::publisher::outbox::{Outbox, OutboxMessage};
use crate::store::Seq;
use crate::wait_queue::WaitQueue;

/// The side of the outbox that faces a user manager who comes for its messages.
#[derive(Debug, Default)]
pub struct Lender {
    /// The current loan of each message that is out.
    loans: BTreeMap<Seq, Current>,
    last_loan: Loan,
    deadlines: Deadlines<EndLoan>,
    by_id: HashMap<Uuid, Seq>,
    takers: WaitQueue<Taker>,
    stopped: bool,
}

/// The number of a loan.
type Loan = u64;

#[derive(Debug)]
struct Taker {
    lease: Duration,
    reply: oneshot::Sender<NextMessage>,
}

#[derive(Debug)]
struct Current {
    loan: Loan,
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

    pub fn queue(&mut self, lease: Duration, reply: oneshot::Sender<NextMessage>) {
        if !self.stopped {
            self.takers.push(Taker { lease, reply }, |taker| taker.reply.is_closed());
        }
    }

    /// Tells all who wait, and all who will, that nothing more comes.
    pub fn stop(&mut self) {
        self.stopped = true;
        self.takers = WaitQueue::default();
    }

    /// Lends waiting messages to waiting takers; who takes one for no time only sees it.
    pub fn lend(&mut self, outbox: &mut Outbox, publisher: &Addr<UserManagerPublisher>) {
        while let Some(taker) = self.takers.pop() {
            if taker.reply.is_closed() {
                continue;
            }
            let lease = |seq, loan, kept| MessageLease { publisher: publisher.clone(), seq, loan, kept };
            let next = if taker.lease.is_zero() {
                let first = outbox.first_waiting();
                // nothing is lent, and nothing has to come back
                first.map(|(seq, message)| NextMessage::of(message, lease(seq, 0, true)))
            } else {
                outbox.take_first_waiting().map(|(seq, message)| {
                    self.last_loan += 1;
                    let loan = self.last_loan;
                    let deadline = self.deadlines.add(EndLoan { seq, loan }, taker.lease);
                    self.loans.insert(seq, Current { loan, deadline });
                    message.lent = message.lent.saturating_add(1);
                    NextMessage::of(message, lease(seq, loan, false))
                })
            };
            let Some(next) = next else {
                self.takers.push_first(taker);
                break;
            };
            // if the taker has gone, the lease in what comes back puts the message back
            drop(taker.reply.send(next));
        }
    }

    /// The time of a loan is over; the message waits again.
    pub fn expire(&mut self, seq: Seq, outbox: &mut Outbox) {
        self.loans.remove(&seq);
        outbox.put_back(seq);
    }

    /// A loan has ended early; the message waits again, unless it was lent anew since or is gone.
    pub fn end_loan(&mut self, seq: Seq, loan: Loan, outbox: &mut Outbox) {
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

/// A message for the user manager, lent or only shown.
#[derive(Debug)]
pub struct NextMessage {
    /// The same at every delivery.
    pub message_id: Uuid,
    /// How the body is written.
    pub format: Format,
    /// The body.
    pub payload: Payload,
    /// How often the message has been lent since the service started, this time included.
    pub delivery_count: u32,
    /// Puts the message back if it does not get away.
    pub lease: MessageLease,
}

impl NextMessage {
    fn of(message: &OutboxMessage, lease: MessageLease) -> Self {
        Self {
            message_id: message.meta.message_id,
            format: message.meta.format,
            payload: message.payload.clone(),
            delivery_count: message.lent,
            lease,
        }
    }
}

/// A loan that has not got away yet. Dropped, it puts the message back at once.
#[derive(Debug)]
pub struct MessageLease {
    publisher: Addr<UserManagerPublisher>,
    seq: Seq,
    loan: Loan,
    kept: bool,
}

impl MessageLease {
    /// The message has been handed over: nobody else gets it until the time of the lease is over.
    pub fn delivered(mut self) {
        self.kept = true;
    }

    /// The message could not be read. Unless that may change, it is parked: otherwise the others would wait behind it for
    /// ever.
    pub fn unreadable(mut self, error: &io::Error) {
        if !may_be_readable_later(error) {
            self.kept = true;
            self.publisher
                .do_send(ParkUnreadable { seq: self.seq, reason: format!("its body cannot be read: {error}") });
        }
    }
}

impl Drop for MessageLease {
    fn drop(&mut self) {
        if !self.kept {
            self.publisher.do_send(EndLoan { seq: self.seq, loan: self.loan });
        }
    }
}

/// To [`UserManagerPublisher`]: a message that was handed over cannot be read.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ParkUnreadable {
    pub seq: Seq,
    pub reason: String,
}

/// A loan ends: to [`UserManagerPublisher`], from a lease or at the loan's deadline.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct EndLoan {
    pub seq: Seq,
    pub loan: Loan,
}
