//! Actors.
#![deny(missing_docs)]

pub mod blend;
pub mod broker;
pub mod buffer;
pub mod codec;
pub mod consumer;
pub mod error;
pub mod handle;
pub mod messages;
pub mod payload;
pub mod publisher;
pub mod store;
pub mod system;

pub use buffer::BufferActor;
pub use consumer::CommunicationInterfaceConsumer;
pub use error::{Error, ErrorKind};
pub use messages::BufferUuid;
pub use publisher::UserManagerPublisher;
pub use system::{ActorsConfig, StartError, UserHttpActors};
