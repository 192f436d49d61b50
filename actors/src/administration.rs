//! What an operator's tools ask of the actors: pages of the messages that they hold, and the removal of single ones.
//!
//! Pages are ordered by sequence number. A message keeps its number as long as it is held, so a message that is there
//! throughout is on exactly one page, whatever arrives and leaves meanwhile.

use std::time::Duration;

use actix::Message;
use uuid::Uuid;

use crate::buffer_uuid::BufferUuid;
use crate::codec::ForwardedType;
use crate::error::Error;
use crate::store::Seq;
use crate::system::UserHttpActors;

/// How many bytes of names a page may have; the message that exceeds it is the last one. A name has up to 4,096 bytes,
/// which JSON may write as 24 KiB.
const MAX_PAGE_TEXT: usize = 1 << 20;

/// Which part of a list to return.
#[derive(Clone, Copy, Debug)]
pub struct PageRequest {
    /// Only messages with greater sequence numbers; 0 for the first page.
    pub after: Seq,
    /// How many messages at most.
    pub limit: usize,
}

/// A part of a list, oldest messages first.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// At most as many as were asked for. There may be fewer on any page.
    pub messages: Vec<T>,
    /// [`PageRequest::after`] of the next page; `None` on the last one.
    pub next: Option<Seq>,
}

impl<T> Page<T> {
    /// Takes the page from `held`, which begins with the first message after [`PageRequest::after`]. `None` stands for
    /// one that is not shown. `text_len` is the length of the names of a message.
    pub(crate) fn take(
        held: impl Iterator<Item = (Seq, Option<T>)>,
        limit: usize,
        text_len: impl Fn(&T) -> usize,
    ) -> Self {
        let (mut messages, mut last, mut text) = (Vec::new(), None, 0);
        let mut held = held.peekable();
        for _ in 0..limit {
            let Some((seq, message)) = held.next_if(|_| text < MAX_PAGE_TEXT) else { break };
            last = Some(seq);
            text += message.as_ref().map_or(0, &text_len);
            messages.extend(message);
        }
        Self { messages, next: held.peek().and(last) }
    }
}

/// To the [buffer](crate::AnyBuffer): list the buffered messages.
#[derive(Debug, Message)]
#[rtype(result = "Result<Page<BufferEntry>, Error>")]
pub struct ListBufferMsgs(pub PageRequest);

/// A buffered message in a list.
#[derive(Clone, Debug)]
pub struct BufferEntry {
    /// Its name.
    pub buffer_uuid: BufferUuid,
    /// The length of its body in bytes, without the .blend file.
    pub bytes: u64,
    /// How long it has been in the buffer.
    pub age: Duration,
    /// The path of its .blend file, as the message names it.
    pub blend: Option<String>,
    /// Whether it is being delivered.
    pub in_delivery: bool,
}

/// To the [buffer](crate::AnyBuffer): remove a buffered message. The reply comes when the removal is on stable
/// storage. Until then, requests for the message wait as for the end of a delivery.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Error>")]
pub struct DiscardBufferMsg {
    /// Its name.
    pub buffer_uuid: BufferUuid,
    /// Who asks for it.
    pub requester: Requester,
}

/// To [`UserManagerPublisher`](crate::UserManagerPublisher): list the messages of the outbox.
#[derive(Debug, Message)]
#[rtype(result = "Page<OutboxEntry>")]
pub struct ListOutboxMessages(pub PageRequest);

/// An outbox message in a list.
#[derive(Clone, Debug)]
pub struct OutboxEntry {
    /// Its `message-id`.
    pub message_id: Uuid,
    /// Its sender.
    pub user_id: String,
    /// Its type.
    pub kind: ForwardedType,
    /// The length of its body in bytes.
    pub bytes: u64,
    /// How long it has been in the outbox.
    pub age: Duration,
    /// What it waits for.
    pub state: OutboxEntryState,
}

/// What an outbox message waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutboxEntryState {
    /// Its turn. Its sender may still wait for an answer.
    Waiting,
    /// The broker's answer.
    InFlight,
    /// Its deletion by the user manager, or the end of the visibility timeout.
    Leased,
    /// An operator.
    Parked,
}

/// To [`UserManagerPublisher`](crate::UserManagerPublisher): remove a message, leased or parked ones too. The reply
/// comes when the removal is on stable storage.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Error>")]
pub struct DiscardOutboxMessage {
    /// Its `message-id`.
    pub message_id: Uuid,
    /// Who asks for it.
    pub requester: Requester,
}

/// Who asks for the removal of a message, for the log.
#[derive(Clone, Debug)]
pub struct Requester {
    /// Such as the label of a token, or an address.
    pub name: String,
    /// The id of the request; empty if it has none.
    pub request_id: String,
}

impl UserHttpActors {
    /// A page of the buffered messages. Messages that have expired are not shown.
    ///
    /// # Errors
    /// [`Error::Stopping`].
    pub async fn list_buffer_msgs(&self, page: PageRequest) -> Result<Page<BufferEntry>, Error> {
        self.buffer.send(ListBufferMsgs(page)).await?
    }

    /// Removes a buffered message. `Ok` means that the removal is on stable storage.
    ///
    /// # Errors
    /// [`Error::NoBufferMsg`]; [`Error::InDelivery`] while it is being delivered; or an error of the store.
    pub async fn discard_buffer_msg(&self, buffer_uuid: BufferUuid, requester: Requester) -> Result<(), Error> {
        self.buffer.send(DiscardBufferMsg { buffer_uuid, requester }).await?
    }

    /// A page of the outbox.
    ///
    /// # Errors
    /// [`Error::Stopping`].
    pub async fn list_outbox_messages(&self, page: PageRequest) -> Result<Page<OutboxEntry>, Error> {
        Ok(self.publisher.send(ListOutboxMessages(page)).await?)
    }

    /// Removes a message from the outbox. `Ok` means that the removal is on stable storage. A user manager that has
    /// leased the message can no longer delete it.
    ///
    /// # Errors
    /// [`Error::NoSuchMessage`]; [`Error::InFlight`] while the broker owes an answer for it; [`Error::SenderWaits`]
    /// while its sender has no answer; or an error of the store.
    pub async fn discard_outbox_message(&self, message_id: Uuid, requester: Requester) -> Result<(), Error> {
        self.publisher.send(DiscardOutboxMessage { message_id, requester }).await?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(held: &[(Seq, Option<&'static str>)], limit: usize) -> (Vec<&'static str>, Option<Seq>) {
        let Page { messages, next } = Page::take(held.iter().copied(), limit, |name| name.len());
        (messages, next)
    }

    #[test]
    fn a_page_ends_at_its_limit_and_the_last_one_has_no_next() {
        let held = [(2, Some("a")), (5, Some("b")), (7, Some("c"))];
        assert_eq!(page(&held, 2), (vec!["a", "b"], Some(5)));
        assert_eq!(page(&held, 3), (vec!["a", "b", "c"], None));
        assert_eq!(page(&held, 4), (vec!["a", "b", "c"], None));
        assert_eq!(page(&[], 1), (vec![], None));
    }

    #[test]
    fn a_message_that_is_not_shown_counts_towards_the_limit_so_that_a_page_takes_bounded_time() {
        let held = [(1, None), (2, None), (3, Some("c"))];
        assert_eq!(page(&held, 2), (vec![], Some(2)));
        assert_eq!(page(&held, 3), (vec!["c"], None));
    }

    #[test]
    fn a_page_ends_early_if_the_names_on_it_are_long() {
        let long = "x".repeat(MAX_PAGE_TEXT / 2 + 1);
        let held: Vec<(Seq, Option<&str>)> = (1..=4).map(|seq| (seq, Some(long.as_str()))).collect();
        let page = Page::take(held.into_iter(), 4, |name| name.len());
        assert_eq!((page.messages.len(), page.next), (2, Some(2)));
    }
}
