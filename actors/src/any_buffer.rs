//! The buffer of a gateway: its own, or one that it shares.

use actix::dev::ToEnvelope;
use actix::prelude::*;
use futures::future::Either;

use crate::buffer::BufferActor;
use crate::shared_buffer::SharedBuffer;

/// The address of the actor that holds the messages for workers. Both kinds handle the same messages.
#[derive(Clone, Debug)]
pub enum AnyBuffer {
    /// They are in a store of this gateway.
    Own(Addr<BufferActor>),
    /// They are in a database.
    Shared(Addr<SharedBuffer>),
}

impl AnyBuffer {
    /// Sends a message, as [`Addr::send`].
    pub fn send<M>(&self, message: M) -> Either<Request<BufferActor, M>, Request<SharedBuffer, M>>
    where
        M: Message + Send + 'static,
        M::Result: Send,
        BufferActor: Handler<M>,
        SharedBuffer: Handler<M>,
        Context<BufferActor>: ToEnvelope<BufferActor, M>,
        Context<SharedBuffer>: ToEnvelope<SharedBuffer, M>,
    {
        match self {
            Self::Own(buffer) => Either::Left(buffer.send(message)),
            Self::Shared(buffer) => Either::Right(buffer.send(message)),
        }
    }
}

impl From<Addr<BufferActor>> for AnyBuffer {
    fn from(buffer: Addr<BufferActor>) -> Self {
        Self::Own(buffer)
    }
}

impl From<Addr<SharedBuffer>> for AnyBuffer {
    fn from(buffer: Addr<SharedBuffer>) -> Self {
        Self::Shared(buffer)
    }
}
