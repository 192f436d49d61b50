//! The interface for applications: a method of [`UserHttpActors`] for each operation of the actors.
//!
//! Each method sends one message of [`messages`](crate::messages) and waits for its reply. If the actor has stopped,
//! the result is [`Error::Stopping`].

use std::sync::Arc;
use std::time::Duration;

use futures::future::OptionFuture;
use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

use crate::any_buffer::AnyBuffer;
use crate::blend::digest::GetBlendDigest;
use crate::blend::{BlendDigest, BlendFile, refine_data_from_metadata};
use crate::body_file::BodyDirectory;
use crate::buffer_uuid::BufferUuid;
use crate::codec::{
    self, BlendPlaceholder, Body, BufferMsg, CommunicationInterfaceMessage, Format, OutgoingMessage, PostedMessage,
    UserMessage,
};
use crate::decoder::Decoder;
use crate::error::Error;
use crate::idempotency::{Accepted, IdempotencyKey, RequestKey};
use crate::large_body::{FileSync, prepare};
use crate::lease::{BufferMsgView, LeasedBufferMsg, NextMessage};
use crate::messages::{
    AddBufferMsg, AddFileReference, BufferState, ConsumerState, CountUserMessage, DeleteMessage, DeleteParkedMessage,
    FileReference, FindFileReferences, GetBufferState, GetConsumerState, GetOutboxState, GetParkedMessages,
    LeaseBufferMsg, OutboxState, ParkedMessage, PeekBufferMsg, ProbeStore, PublishParkedMessage,
    SendMessageToUserManager, StopLeasing, StopWaiting, TakeNextMessage, UnforwardedMessage,
};
use crate::system::UserHttpActors;

/// A snapshot of all actors.
#[derive(Clone, Debug)]
pub struct ActorsState {
    /// The buffer.
    pub buffer: BufferState,
    /// The outbox.
    pub outbox: OutboxState,
    /// The consumer, if there is a broker.
    pub consumer: Option<ConsumerState>,
}

/// A .blend file that was handed out by reference.
#[derive(Debug)]
pub struct ReferredBlendFile {
    /// The file.
    pub file: Arc<BlendFile>,
    /// Hold this while the file is sent. It bounds how many files are sent at the same time; no lease does.
    pub permit: OwnedSemaphorePermit,
}

impl UserHttpActors {
    /// Handles a body that a worker has posted (`handleUserMessage` of the specification). If the message is of a type
    /// that is forwarded, `Ok` means that the broker has confirmed it, or that it is on stable storage and will be
    /// forwarded; see [`FrameAck`](crate::publisher::FrameAck). If the sender is authenticated as `bound_user_id`, the
    /// message must not name another user. The message of a request with a `key` is taken once: for an hour, retries
    /// with the same key and the same body are [`Accepted::Replayed`].
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn handle_user_message(
        &self,
        bound_user_id: Option<&str>,
        format: Format,
        body: impl Into<Body>,
        key: Option<RequestKey<'_>>,
    ) -> Result<Accepted, Error> {
        let taken = self.take_user_message(bound_user_id, format, body.into(), key).await;
        taken.inspect_err(|error| self.refused_for_user_manager.count(error))
    }

    async fn take_user_message(
        &self,
        bound_user_id: Option<&str>,
        format: Format,
        body: Body,
        key: Option<RequestKey<'_>>,
    ) -> Result<Accepted, Error> {
        let permit = self.large_bodies.permit(&body).await;
        let decoded = self.decoder.decode(format, body, codec::posted_message).await?;
        let PostedMessage { user_id, message } = decoded;
        if bound_user_id.is_some_and(|bound| bound.as_bytes() != user_id.as_bytes()) {
            return Err(Error::OtherUser { claimed: message.user_id().to_owned() });
        }
        let key = key.map(|key| IdempotencyKey::new(user_id.as_bytes(), key));
        // it may be as long as the body
        drop(user_id);
        let unforwarded = match message {
            UserMessage::Forward(message) => {
                let sync = if self.consumer.is_some() { FileSync::InStore } else { FileSync::Now };
                let body = prepare(message.body, self.outbox_bodies(), sync).await?;
                // in memory, it counts towards no other limit until it is stored
                let _permit = permit.filter(|_| body.is_in_memory());
                let message = OutgoingMessage { body, ..message };
                return self.publisher.send(SendMessageToUserManager { message, key }).await?;
            }
            UserMessage::Test { user_id, data } => UnforwardedMessage::Test { user_id, data },
            UserMessage::Other { user_id, kind } => UnforwardedMessage::Other { user_id, kind },
        };
        if key.is_some() {
            return self.publisher.send(CountUserMessage { message: unforwarded, key }).await?;
        }
        unforwarded.log();
        self.publisher.do_send(CountUserMessage { message: unforwarded, key });
        Ok(Accepted::Unkeyed)
    }

    /// Handles a body that the communication interface has sent (`handleCommunicationInterfaceMessages` of the
    /// specification). `Ok` means that the message is on stable storage.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn handle_communication_interface_message(
        &self,
        format: Format,
        body: impl Into<Body>,
    ) -> Result<(), Error> {
        let taken = self.take_communication_interface_message(format, body.into()).await;
        taken.inspect_err(|error| self.refused_for_workers.count(error))
    }

    async fn take_communication_interface_message(&self, format: Format, body: Body) -> Result<(), Error> {
        // a database takes a body from the file in which it was received
        let directory = self.buffer_bodies().filter(|_| matches!(self.buffer, AnyBuffer::Own(_)));
        let permit = self.large_bodies.permit(&body).await;
        let message = decode_communication_interface_message(&self.decoder, directory, format, body).await?;
        // in memory, it counts towards no other limit until it is stored
        let _permit = permit.filter(|_| message.message.pickle.is_in_memory());
        self.buffer.send(message).await?
    }

    /// Leases a buffered message, in order to deliver it; see [`LeaseBufferMsg`] for `max_single_write`, `wait` and
    /// `seen`.
    ///
    /// # Errors
    /// [`Error::NoBufferMsg`] if there is none under this name, [`Error::InDelivery`] while somebody else delivers it.
    pub async fn lease_buffer_msg(
        &self,
        buffer_uuid: BufferUuid,
        max_single_write: u64,
        wait: Duration,
        seen: Option<String>,
    ) -> Result<LeasedBufferMsg, Error> {
        self.buffer.send(LeaseBufferMsg { buffer_uuid, max_single_write, wait, seen }).await?
    }

    /// Looks at a buffered message without delivering it. Waits for one at most for the time `wait`.
    ///
    /// # Errors
    /// [`Error::NoBufferMsg`] if there is none under this name.
    pub async fn peek_buffer_msg(&self, buffer_uuid: BufferUuid, wait: Duration) -> Result<BufferMsgView, Error> {
        self.buffer.send(PeekBufferMsg { buffer_uuid, wait }).await?
    }

    /// Opens the .blend file that a buffered message refers to.
    ///
    /// # Errors
    /// [`Error::Blend`] says why it cannot be sent.
    pub async fn open_blend_file(&self, placeholder: &BlendPlaceholder) -> Result<BlendFile, Error> {
        Ok(refine_data_from_metadata(&self.blend_roots, placeholder.path.as_deref()).await?)
    }

    /// The digest under which a worker can fetch the .blend file that a buffered message refers to, in place of the
    /// file itself. It is on stable storage that the file was handed out; see
    /// [`open_referred_blend_file`](Self::open_referred_blend_file).
    ///
    /// # Errors
    /// [`Error::Blend`] if the file cannot be read or has changed, or an error of the store.
    pub async fn refer_to_blend_file(
        &self,
        placeholder: &BlendPlaceholder,
        file: &Arc<BlendFile>,
    ) -> Result<BlendDigest, Error> {
        let path = placeholder.path.clone().unwrap_or_default();
        let digest = self.digests.send(GetBlendDigest(Arc::clone(file))).await?;
        let digest = digest.map_err(|error| error.named(&path))?;
        let reference = FileReference { digest, path, stamp: file.stamp() };
        self.buffer.send(AddFileReference(reference)).await??;
        Ok(digest)
    }

    /// Opens a .blend file that was handed out by reference within the buffer's TTL and has not changed since.
    ///
    /// # Errors
    /// [`Error::NoSuchBlendFile`]; [`Error::Blend`] if it cannot be opened at the moment, or if as many are being sent
    /// as may be.
    pub async fn open_referred_blend_file(&self, digest: BlendDigest) -> Result<ReferredBlendFile, Error> {
        let permit = self.blend_roots.download_permit(&format!("/blends/{digest}"))?;
        let mut error = Error::NoSuchBlendFile;
        for reference in self.buffer.send(FindFileReferences(digest)).await??.0 {
            match self.open_if_unchanged(&reference).await {
                Ok(Some(file)) => return Ok(ReferredBlendFile { file, permit }),
                Ok(None) => {}
                Err(Error::Blend(why)) if !why.is_transient() => {}
                Err(why) => error = why,
            }
        }
        Err(error)
    }

    /// The file of a reference, if it has the same content. Its stamp may differ nevertheless: the numbers of devices
    /// change when file systems are mounted again.
    async fn open_if_unchanged(&self, reference: &FileReference) -> Result<Option<Arc<BlendFile>>, Error> {
        let FileReference { digest, path, stamp } = reference;
        let file = Arc::new(refine_data_from_metadata(&self.blend_roots, Some(path)).await?);
        if file.stamp() == *stamp {
            return Ok(Some(file));
        }
        if file.len() != stamp.len {
            return Ok(None);
        }
        let found = self.digests.send(GetBlendDigest(Arc::clone(&file))).await?;
        let found = found.map_err(|error| error.named(path))?;
        Ok((found == *digest).then_some(file))
    }

    /// Leases the oldest message for the user manager for the time `lease`, and waits for one for the time `wait`. A
    /// zero `lease` shows the message without leasing it. `None` if there was none in that time, or if the service
    /// stops.
    ///
    /// # Errors
    /// [`Error::BrokerIsConfigured`]: messages go to the broker.
    pub async fn next_message(&self, lease: Duration, wait: Duration) -> Result<Option<NextMessage>, Error> {
        let next = self.publisher.send(TakeNextMessage { lease, wait: !wait.is_zero() });
        if wait.is_zero() {
            return next.await?;
        }
        // If a message arrives when nobody waits any more, the drop of its lease offers it again.
        tokio::time::timeout(wait, next).await.map_or(Ok(None), |next| next?)
    }

    /// Removes a message that the user manager has processed. `Ok` means that the removal is on stable storage.
    ///
    /// # Errors
    /// [`Error::NoSuchMessage`], [`Error::BrokerIsConfigured`], or an error of the store.
    pub async fn delete_message(&self, message_id: Uuid) -> Result<(), Error> {
        self.publisher.send(DeleteMessage { message_id }).await?
    }

    /// The parked messages, oldest first.
    ///
    /// # Errors
    /// [`Error::Stopping`].
    pub async fn parked_messages(&self) -> Result<Vec<ParkedMessage>, Error> {
        Ok(self.publisher.send(GetParkedMessages).await?.0)
    }

    /// Publishes a parked message again.
    ///
    /// # Errors
    /// [`Error::NoSuchMessage`].
    pub async fn publish_parked_message(&self, message_id: Uuid) -> Result<(), Error> {
        self.publisher.send(PublishParkedMessage { message_id }).await?
    }

    /// Removes a parked message. `Ok` means that the removal is on stable storage.
    ///
    /// # Errors
    /// [`Error::NoSuchMessage`], or an error of the store.
    pub async fn delete_parked_message(&self, message_id: Uuid) -> Result<(), Error> {
        self.publisher.send(DeleteParkedMessage { message_id }).await?
    }

    /// A snapshot of all actors.
    ///
    /// # Errors
    /// [`Error::Stopping`].
    pub async fn state(&self) -> Result<ActorsState, Error> {
        let (buffer, outbox, consumer) =
            futures::try_join!(self.buffer_state(), self.outbox_state(), self.consumer_state())?;
        Ok(ActorsState { buffer, outbox, consumer })
    }

    /// A snapshot of the buffer.
    ///
    /// # Errors
    /// [`Error::Stopping`].
    pub async fn buffer_state(&self) -> Result<BufferState, Error> {
        Ok(self.buffer.send(GetBufferState).await?)
    }

    /// A snapshot of the outbox.
    ///
    /// # Errors
    /// [`Error::Stopping`].
    pub async fn outbox_state(&self) -> Result<OutboxState, Error> {
        Ok(self.publisher.send(GetOutboxState).await?)
    }

    /// A snapshot of the consumer, if there is a broker.
    ///
    /// # Errors
    /// [`Error::Stopping`].
    pub async fn consumer_state(&self) -> Result<Option<ConsumerState>, Error> {
        let consumer = OptionFuture::from(self.consumer.as_ref().map(|consumer| consumer.send(GetConsumerState)));
        Ok(consumer.await.transpose()?)
    }

    /// Finds out whether the store with this directory still works and has space, after `refused` bytes of a body could
    /// not be written there. Afterwards [`state`](Self::state) and [`store_failure`](Self::store_failure) report the
    /// result.
    pub async fn probe_store(&self, directory: &BodyDirectory, refused: u64) {
        let is_outbox = self.outbox_bodies().is_some_and(|outbox| outbox.path() == directory.path());
        let probe = ProbeStore { refused };
        // a store that has failed, or an actor that has stopped, does not reply
        let _ = if is_outbox { self.publisher.send(probe).await } else { self.buffer.send(probe).await };
    }

    /// Ends all calls that wait for a message, and lets no further one wait: the first step of a stop. Afterwards
    /// [`next_message`](Self::next_message) leases nothing.
    pub async fn stop_waiting(&self) {
        // An actor that has stopped makes nobody wait.
        let _ = futures::join!(self.publisher.send(StopLeasing), self.buffer.send(StopWaiting));
    }
}

/// Decodes a body of the communication interface, for a caller that keeps many of them in order. A large message goes
/// into a file in `directory`, if there is one.
///
/// # Errors
/// [`Error::Decode`], and [`Error::Store`] if the file cannot be written.
pub(crate) async fn decode_communication_interface_message(
    decoder: &Decoder,
    directory: Option<&BodyDirectory>,
    format: Format,
    body: Body,
) -> Result<AddBufferMsg, Error> {
    let CommunicationInterfaceMessage { buffer_uuid, message } =
        decoder.decode(format, body, codec::communication_interface_message).await?;
    let pickle = prepare(message.pickle, directory, FileSync::Now).await?;
    Ok(AddBufferMsg { buffer_uuid: buffer_uuid.into(), message: BufferMsg { pickle, ..message }, delivery: None })
}
