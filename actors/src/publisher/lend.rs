//! The outbox without a broker: messages are lent to the user manager, who deletes them when it is done.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use actix::{Addr, Message};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::codec::Format;
use crate::payload::Payload;
use crate::publisher::UserManagerPublisher;
use crate::publisher::outbox::Outbox;
use crate::store::Seq;

/// The side of the outbox that faces a user manager who comes for its messages.
#[derive(Debug, Default)]
pub struct Lender {
    /// Which loan of a message is the current one.
    loans: BTreeMap<Seq, Loan>,
    last_loan: u64,
    by_id: HashMap<Uuid, Seq>,
    takers: VecDeque<Taker>,
    stopped: bool,
}

/// The number of a loan.
type Loan = u64;

#[derive(Debug)]
struct Taker {
    lease: Duration,
    reply: oneshot::Sender<NextMessage>,
}

/// A loan that was made; it ends after `lease`.
#[derive(Clone, Copy, Debug)]
pub struct Lent {
    pub seq: Seq,
    pub loan: Loan,
    pub lease: Duration,
}

impl Lender {
    pub fn new(outbox: &Outbox) -> Self {
        let by_id = outbox.iter().map(|(seq, message)| (message.meta.message_id, seq)).collect();
        Self { by_id, ..Self::default() }
    }

    pub fn added(&mut self, message_id: Uuid, seq: Seq) {
        self.by_id.insert(message_id, seq);
    }

    pub fn queue(&mut self, lease: Duration, reply: oneshot::Sender<NextMessage>) {
        self.takers.retain(|taker| !taker.reply.is_closed());
        if !self.stopped {
            self.takers.push_back(Taker { lease, reply });
        }
    }

    /// Tells all who wait, and all who will, that nothing more comes.
    pub fn stop(&mut self) {
        self.stopped = true;
        self.takers.clear();
    }

    /// Lends waiting messages to waiting takers. Returns the loans that were made.
    pub fn lend(&mut self, outbox: &mut Outbox, publisher: &Addr<UserManagerPublisher>) -> Vec<Lent> {
        let mut lent = Vec::new();
        while let Some(taker) = self.takers.pop_front() {
            if taker.reply.is_closed() {
                continue;
            }
            let Some((seq, message)) = outbox.take_first_waiting() else {
                self.takers.push_front(taker);
                break;
            };
            self.last_loan += 1;
            let loan = self.last_loan;
            self.loans.insert(seq, loan);
            message.lent = message.lent.saturating_add(1);
            let next = NextMessage {
                message_id: message.meta.message_id,
                format: message.meta.format,
                payload: message.payload.clone(),
                delivery_count: message.lent,
                lease: MessageLease { publisher: publisher.clone(), seq, loan, kept: false },
            };
            lent.push(Lent { seq, loan, lease: taker.lease });
            // if the taker has gone, the lease in what comes back puts the message back
            drop(taker.reply.send(next));
        }
        lent
    }

    /// A loan has ended; the message waits again, unless it was lent anew since or is gone.
    pub fn end_loan(&mut self, seq: Seq, loan: Loan, outbox: &mut Outbox) {
        if self.loans.get(&seq) == Some(&loan) {
            self.loans.remove(&seq);
            outbox.put_back(seq);
        }
    }

    /// Finds a message that is done with.
    pub fn delete(&mut self, message_id: Uuid) -> Option<Seq> {
        let seq = self.by_id.remove(&message_id)?;
        self.loans.remove(&seq);
        Some(seq)
    }
}

/// A message for the user manager, lent.
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
}

impl Drop for MessageLease {
    fn drop(&mut self) {
        if !self.kept {
            self.publisher.do_send(EndLoan { seq: self.seq, loan: self.loan });
        }
    }
}

/// To [`UserManagerPublisher`], from a lease.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub(super) struct EndLoan {
    pub seq: Seq,
    pub loan: Loan,
}
