//! What is done with a message from outside: decoded, then handed to the actor that it concerns.

use actix::Addr;
use bytes::Bytes;

use crate::buffer::BufferActor;
use crate::codec::{self, Format, PostedMessage, UserMessage};
use crate::decoder::Decoder;
use crate::error::Error;
use crate::messages::{AddBufferMsg, CountUserMessage, SendMessageToUserManager};
use crate::publisher::UserManagerPublisher;

/// Handles what a worker has posted (`handleUserMessage` of the specification). `Ok` is the promise of 200: what is to
/// be forwarded is on stable storage and will reach the user manager. Where the sender is known to be `only` one user,
/// the message may claim no other.
///
/// # Errors
/// See [`Error`].
pub async fn handle_user_message(
    decoder: &Decoder,
    publisher: &Addr<UserManagerPublisher>,
    only: Option<&str>,
    format: Format,
    body: Bytes,
) -> Result<(), Error> {
    let PostedMessage { user_id, message } = decoder.decode(format, body, codec::posted_message).await?;
    if only.is_some_and(|only| only.as_bytes() != user_id.as_bytes()) {
        return Err(Error::OtherUser { claimed: message.user_id().to_owned() });
    }
    match message {
        UserMessage::Forward(message) => publisher.send(SendMessageToUserManager(message)).await?,
        UserMessage::Test { user_id, data } => {
            log::info!("TEST from {user_id:?}: {data}");
            publisher.do_send(CountUserMessage::Test);
            Ok(())
        }
        UserMessage::Other { user_id, kind } => {
            log::warn!("message of unknown type {kind:?} from {user_id:?} is not forwarded");
            publisher.do_send(CountUserMessage::Other);
            Ok(())
        }
    }
}

/// Handles what the communication interface has sent (`handleCommunicationInterfaceMessages`). `Ok` is the promise
/// of `SUCCESS`: the message is on stable storage.
///
/// # Errors
/// See [`Error`].
pub async fn handle_communication_interface_message(
    decoder: &Decoder,
    buffer: &Addr<BufferActor>,
    format: Format,
    body: Bytes,
) -> Result<(), Error> {
    let message = decode_communication_interface_message(decoder, format, body).await?;
    buffer.send(message).await?
}

/// The first half of [`handle_communication_interface_message`], for who has to keep many messages in order.
///
/// # Errors
/// [`Error::Decode`].
pub async fn decode_communication_interface_message(
    decoder: &Decoder,
    format: Format,
    body: Bytes,
) -> Result<AddBufferMsg, Error> {
    let message = decoder.decode(format, body, codec::communication_interface_message).await?;
    Ok(AddBufferMsg { buffer_uuid: message.buffer_uuid.into(), message: message.message, delivery: None })
}
