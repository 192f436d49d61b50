//! The actors behind the user HTTP server of a Blender render farm, for any actix application to embed: everything
//! except HTTP, the command line and the process.
//!
//! | to find | look in |
//! | --- | --- |
//! | the actors, started together, with a method for each operation | [`UserHttpActors`] |
//! | the messages between actors | [`messages`], [`lease`] |
//! | what operators list and discard | [`administration`] |
//! | what may go wrong, and who can act on it | [`error`] |
//! | messages for workers | [`buffer`], [`blend`]; in a database that gateways share: [`shared_buffer`], [`postgres`] |
//! | messages for the user manager | [`publisher`], [`idempotency`] |
//! | messages from the communication interface | [`consumer`] |
//! | how bodies are decoded | [`codec`], [`decoder`] |
//! | how messages are stored | [`store`], [`payload`] |
//! | how the stores of a running service are copied | [`backup`] |
//! | RabbitMQ | [`broker`] |
//! | certificates | [`tls`] |
//! | what the actors report | [`metrics`] |
//!
//! The crate installs no logger, no metrics recorder, no signal handler, no panic hook and no default of rustls. It
//! reads no environment variables, with one exception: for a broker over TLS without a CA file, `SSL_CERT_FILE` and
//! `SSL_CERT_DIR` say where the system's CAs are.
//!
//! ```
//! use std::time::Duration;
//!
//! use user_http_actors::blend::DEFAULT_MAX_OPEN_BLEND_FILES;
//! use user_http_actors::codec::Format;
//! use user_http_actors::publisher::FrameAck;
//! use user_http_actors::{ActorsConfig, UserHttpActors};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! actix::System::new().block_on(async {
//!     let actors = UserHttpActors::start(ActorsConfig {
//!         data_dir: None,
//!         blend_roots: vec!["./blends".into()],
//!         private_files: Vec::new(),
//!         max_open_blend_files: DEFAULT_MAX_OPEN_BLEND_FILES,
//!         shared_buffer: None,
//!         max_buffered: 1 << 30,
//!         buffer_ttl: Duration::from_secs(86_400),
//!         max_outbox: 4 << 30,
//!         amqp: None,
//!         frame_ack: FrameAck::Stored,
//!     })?;
//!     let body = r#"{"TYPE": "ADD_BUFFER_MSG", "DATA": {"BUFFER_UUID": "one", "BUFFER_MSG": {"FRAMES": [1, 2]}}}"#;
//!     actors.handle_communication_interface_message(Format::Json, body).await?;
//!     let leased = actors.lease_buffer_msg("one".into(), 0, Duration::ZERO, None).await?;
//!     assert!(leased.view.payload.len() > 10);
//!     leased.lease.delivered();
//!     actors.drain().await?;
//!     Ok(())
//! })
//! # }
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]
// A library writes to the log, never to the terminal of its application.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod administration;
mod age;
mod any_buffer;
pub mod backup;
pub mod blend;
pub mod body_file;
pub mod broker;
pub mod buffer;
mod buffer_uuid;
pub mod codec;
pub mod consumer;
mod deadlines;
pub mod decoder;
pub mod digest;
pub mod error;
mod facade;
pub mod idempotency;
mod large_body;
pub mod lease;
pub mod messages;
pub mod metrics;
pub mod payload;
pub mod postgres;
pub mod publisher;
mod reply;
mod running;
pub mod shared_buffer;
pub mod small_file;
pub mod store;
pub mod system;
pub mod tls;
mod wait_queue;

pub use any_buffer::AnyBuffer;
pub use buffer::BufferActor;
pub use buffer_uuid::BufferUuid;
pub use consumer::CommunicationInterfaceConsumer;
pub use decoder::Decoder;
pub use error::{Error, ErrorKind};
pub use facade::{ActorsState, ReferredBlendFile};
pub use idempotency::{Accepted, IdempotencyKey, RequestKey};
pub use publisher::UserManagerPublisher;
pub use shared_buffer::SharedBuffer;
pub use system::{ActorsConfig, DiskHangs, StartError, UserHttpActors};
