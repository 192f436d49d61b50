//! What must hold for the messages for workers, whatever happens.

use std::collections::BTreeMap;

/// What the sender of a message knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It has no answer yet.
    Sent,
    /// It was accepted, or was seen in the buffer.
    Accepted,
    /// It was refused.
    Refused,
    /// The answer got lost, or says nothing about what the disk has.
    Perhaps,
}

/// Whether a message has left the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    No,
    /// It had, and a crash may have brought it back.
    Perhaps,
    /// It has, and only a crash may bring it back.
    Now,
    /// It has, on stable storage.
    ForGood,
}

#[derive(Debug)]
struct Message {
    name: String,
    known: Known,
    gone: Gone,
    /// The broker may deliver it again.
    from_broker: bool,
}

/// The messages for workers. Their numbers grow in the order in which they were sent.
#[derive(Default)]
pub struct Buffered {
    messages: BTreeMap<u64, Message>,
    /// For each name the latest message that is known to have been stored.
    latest: BTreeMap<String, u64>,
    /// A tombstone may be missing, since the disk was full: the broker may bring something a second time.
    tombstones_are_missing: bool,
}

impl Buffered {
    fn get(&mut self, number: u64) -> &mut Message {
        self.messages.get_mut(&number).unwrap_or_else(|| panic!("message {number} was never sent"))
    }

    pub fn sent(&mut self, number: u64, name: &str, from_broker: bool) {
        let message = Message { name: name.to_owned(), known: Known::Sent, gone: Gone::No, from_broker };
        self.messages.insert(number, message);
    }

    /// It is stored: it takes the place of earlier ones of its name.
    pub fn accepted(&mut self, number: u64) {
        let message = self.get(number);
        message.gone = match (message.known, message.gone) {
            (Known::Accepted, gone) => gone,
            // it expired, if it was there: this may be the answer to a second delivery
            (_, Gone::ForGood) => Gone::Perhaps,
            (_, gone) => gone,
        };
        message.known = Known::Accepted;
        let name = message.name.clone();
        let latest = self.latest.entry(name).or_insert(number);
        *latest = number.max(*latest);
    }

    /// It was refused, and is not stored if that `is_certain`.
    pub fn refused(&mut self, number: u64, is_certain: bool) {
        let message = self.get(number);
        if message.known == Known::Sent {
            message.known = if is_certain { Known::Refused } else { Known::Perhaps };
        }
    }

    /// Somebody gets it.
    pub fn offered(&mut self, name: &str, number: u64) {
        let may_come_twice = self.tombstones_are_missing;
        let latest = self.latest.get(name).copied().unwrap_or_default();
        let message = self.get(number);
        assert_eq!(message.name, name, "message {number} has another name");
        assert!(message.known != Known::Refused, "message {number} was refused, and is offered");
        // one that was never stored, as far as is known, comes from the broker again
        let is_first = message.from_broker && message.known != Known::Accepted;
        let is_back = matches!(message.gone, Gone::Now | Gone::ForGood) && !is_first;
        assert!(!is_back || (may_come_twice && message.from_broker), "message {number} is back: {message:?}");
        assert!(number >= latest, "message {number} is offered, but {latest} has taken its place");
        self.accepted(number);
        self.get(number).gone = Gone::No;
    }

    /// A start has found this message of that name, and no other.
    pub fn only_found(&mut self, name: &str, found: Option<u64>) {
        for (number, message) in self.messages.iter_mut().filter(|(_, message)| message.name == name) {
            let is_elsewhere = message.from_broker || message.known != Known::Perhaps;
            if !is_elsewhere && Some(*number) != found {
                message.known = Known::Refused;
            }
        }
    }

    /// The number of the message that must be there under this name, if there is one.
    pub fn expected(&self, name: &str) -> Option<u64> {
        let latest = self.latest.get(name)?;
        let message = &self.messages[latest];
        (message.known == Known::Accepted && message.gone == Gone::No).then_some(*latest)
    }

    /// Its delivery is complete, or it has expired.
    pub fn completed(&mut self, number: u64) {
        self.get(number).gone = Gone::Now;
    }

    /// It is no longer there, on stable storage.
    pub fn gone_for_good(&mut self, number: u64) {
        let message = self.get(number);
        if message.gone == Gone::Now {
            message.gone = Gone::ForGood;
        }
    }

    /// Its removal was requested, and the answer got lost.
    pub fn perhaps_gone(&mut self, number: u64) {
        let message = self.get(number);
        if message.gone == Gone::No {
            message.gone = Gone::Perhaps;
        }
    }

    /// The disk was full.
    pub fn disk_was_full(&mut self) {
        self.tombstones_are_missing = true;
    }

    /// The process has ended without a stop.
    pub fn killed(&mut self) {
        for message in self.messages.values_mut() {
            if message.known == Known::Sent {
                message.known = Known::Perhaps;
            }
            if message.gone == Gone::Now {
                message.gone = Gone::Perhaps;
            }
        }
    }

    /// All messages under these names have expired, and the process has ended in order.
    pub fn all_expired(&mut self) {
        self.messages.values_mut().filter(|message| message.gone != Gone::ForGood).for_each(|message| {
            message.gone = Gone::ForGood;
        });
    }
}
