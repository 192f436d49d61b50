//! Starts the actors in order, hands out one cheap handle to them, and drains them.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::watch;

use crate::blend::{BlendConfig, BlendRoots};
use crate::broker::amqp::{self, AmqpConfig};
use crate::buffer::BufferActor;
use crate::consumer::{CommunicationInterfaceConsumer, PREFETCH};
use crate::decoder::Decoder;
use crate::messages::{Drain, FromStore};
use crate::publisher::UserManagerPublisher;
use crate::store::log::LogStore;
use crate::store::memory::MemoryStore;
use crate::store::{NO_RECORD, OpenError, Recovered, Seq, Store, StoreError, StoreEvent, StoreHandle};

/// Every right of the group and of all others.
const OTHERS: u32 = 0o077;

/// What the actors have to know.
#[derive(Clone, Debug)]
pub struct ActorsConfig {
    /// Where messages are kept; `None` keeps nothing on disk, and then a stop loses all.
    pub data_dir: Option<PathBuf>,
    /// The folders in which .blend files may lie. Relative paths are relative to the first. One that is missing is a
    /// warning in the log, and the files in it are missing until it is there.
    pub blend_roots: Vec<PathBuf>,
    /// Files that are never sent, whatever the blend roots are, such as those of tokens and keys. The data directory is
    /// never sent anyway.
    pub private_files: Vec<PathBuf>,
    /// How many .blend files are open at once at the most, each of them a file descriptor.
    pub max_open_blend_files: usize,
    /// How many bytes of messages are buffered at the most.
    pub max_buffered: u64,
    /// How long a message is buffered at the most.
    pub buffer_ttl: Duration,
    /// How many bytes of messages wait for the user manager at the most.
    pub max_outbox: u64,
    /// The broker; without it the user manager takes its messages from the service itself.
    pub amqp: Option<AmqpConfig>,
}

/// Why the actors cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// A store holds something that this program has not put there.
    #[error(
        "record {seq} in {path} cannot be understood; use the program that wrote it, or move the directory away to \
         go on without its messages",
        path = path.display()
    )]
    Record {
        /// The store's directory.
        path: PathBuf,
        /// The record's number.
        seq: Seq,
    },
    /// The key of the ETags cannot be read or made in the data directory, or a blend root has no absolute path.
    #[error("cannot prepare {path} for sending .blend files: {source}", path = path.display())]
    BlendRoot {
        /// The folder.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// The system has no thread left.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

/// The running actors: what an application calls. Cloning is cheap.
///
/// A method sends one message and waits for its reply. [`buffer`](Self::buffer), [`publisher`](Self::publisher) and
/// [`consumer`](Self::consumer) are for an application whose own actors send the [`messages`](crate::messages).
#[derive(Clone, Debug)]
pub struct UserHttpActors {
    pub(crate) decoder: Decoder,
    pub(crate) buffer: Addr<BufferActor>,
    pub(crate) publisher: Addr<UserManagerPublisher>,
    pub(crate) consumer: Option<Addr<CommunicationInterfaceConsumer>>,
    pub(crate) blend_roots: BlendRoots,
    store_failure: watch::Receiver<Option<StoreError>>,
}

impl UserHttpActors {
    /// Opens the stores and starts the actors on the current arbiter. Blocks until everything stored is known
    /// again.
    ///
    /// # Errors
    /// See [`StartError`]; nothing runs then.
    pub fn start(config: ActorsConfig) -> Result<Self, StartError> {
        if let Some(data_dir) = &config.data_dir {
            warn_if_others_may_enter(data_dir);
        }
        let (failure, store_failure) = watch::channel(None);
        let buffer = {
            let opened = OpenStore::open(config.data_dir.as_deref(), "buffer")?;
            let path = opened.path.clone();
            let (max_bytes, ttl) = (config.max_buffered, config.buffer_ttl);
            opened.start(failure.clone(), move |store, recovered| {
                BufferActor::new(store, recovered, max_bytes, ttl).map_err(|seq| StartError::Record { path, seq })
            })?
        };
        let publisher = {
            let opened = OpenStore::open(config.data_dir.as_deref(), "outbox")?;
            let path = opened.path.clone();
            let max_bytes = config.max_outbox;
            let amqp = config.amqp.clone();
            opened.start(failure, move |store, recovered| {
                let start_link = amqp.map(|amqp| -> crate::publisher::StartLink {
                    Box::new(|on_event| Box::new(amqp::start_publisher(amqp, on_event)))
                });
                UserManagerPublisher::new(store, recovered, max_bytes, start_link)
                    .map_err(|seq| StartError::Record { path, seq })
            })?
        };
        // after the stores: they have made the data directory, and nobody else has it open
        let blend_roots = BlendRoots::new(BlendConfig {
            roots: config.blend_roots,
            data_dir: config.data_dir,
            private_files: config.private_files,
            max_open: config.max_open_blend_files,
        })
        .map_err(|(path, source)| StartError::BlendRoot { path, source })?;
        let decoder = Decoder::start();
        let consumer = config.amqp.map(|amqp| {
            let start: crate::consumer::StartConsuming =
                Box::new(|on_event| Box::new(amqp::start_consumer(amqp, PREFETCH, on_event)));
            CommunicationInterfaceConsumer::new(decoder.clone(), buffer.clone(), start).start()
        });
        Ok(Self { decoder, buffer, publisher, consumer, blend_roots, store_failure })
    }

    /// Owns the buffered messages.
    pub fn buffer(&self) -> &Addr<BufferActor> {
        &self.buffer
    }

    /// Owns the messages for the user manager.
    pub fn publisher(&self) -> &Addr<UserManagerPublisher> {
        &self.publisher
    }

    /// Consumes the communication interface's queue, if there is a broker.
    pub fn consumer(&self) -> Option<&Addr<CommunicationInterfaceConsumer>> {
        self.consumer.as_ref()
    }

    /// Resolves when a store has failed for good: nothing more is taken then, and whoever runs the service starts it
    /// again once the disk is well. Everything that was acknowledged is found again.
    pub async fn store_failure(&self) -> StoreError {
        let mut failure = self.store_failure.clone();
        let failed = failure.wait_for(Option::is_some).await.ok().and_then(|failure| failure.clone());
        match failed {
            Some(failure) => failure,
            // both stores have ended without
            None => std::future::pending().await,
        }
    }

    /// Takes no more work, settles what is in hand and commits it. What the broker has not confirmed within a
    /// second stays in the outbox; so does what nobody has fetched.
    pub async fn drain(&self) {
        // an actor that is gone has nothing in hand
        if let Some(consumer) = &self.consumer {
            let _ = consumer.send(Drain).await;
        }
        let _ = futures::join!(self.publisher.send(Drain), self.buffer.send(Drain));
    }
}

/// The messages of a directory that was made by somebody else are as private as that directory.
fn warn_if_others_may_enter(data_dir: &Path) {
    // one that is not there yet is made private
    let Ok(metadata) = fs::metadata(data_dir) else { return };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & OTHERS != 0 {
        let path = data_dir.display();
        log::warn!("{path} is open to other users of this machine (mode {mode:04o}); close it: chmod 700 {path}");
    }
}

/// A store that is open, and what it held.
struct OpenStore {
    name: &'static str,
    path: PathBuf,
    store: Box<dyn Store>,
    next_seq: Seq,
    recovered: Vec<Recovered>,
}

impl OpenStore {
    fn open(data_dir: Option<&Path>, name: &'static str) -> Result<Self, StartError> {
        let Some(data_dir) = data_dir else {
            let store = Box::new(MemoryStore);
            let next_seq = NO_RECORD + 1;
            return Ok(Self { name, path: PathBuf::new(), store, next_seq, recovered: Vec::new() });
        };
        let path = data_dir.join(name);
        let (store, recovered) = LogStore::open(&path)?;
        if !recovered.is_empty() {
            log::info!("{} messages found in {}", recovered.len(), path.display());
        }
        Ok(Self { name, path, next_seq: store.next_seq(), store: Box::new(store), recovered })
    }

    /// Starts the store's thread and the actor that owns it.
    fn start<A>(
        self,
        failure: watch::Sender<Option<StoreError>>,
        actor: impl FnOnce(StoreHandle, Vec<Recovered>) -> Result<A, StartError>,
    ) -> Result<Addr<A>, StartError>
    where
        A: Actor<Context = Context<A>> + Handler<FromStore>,
    {
        let ctx = Context::new();
        let owner = actix::AsyncContext::address(&ctx);
        let on_event = move |event: StoreEvent| {
            if let StoreEvent::Status(Some(error)) = &event
                && error.is_final()
            {
                failure.send_replace(Some(error.clone()));
            }
            owner.do_send(FromStore(event));
        };
        let handle = StoreHandle::start(self.name, self.store, self.next_seq, on_event).map_err(StartError::Thread)?;
        Ok(ctx.run(actor(handle, self.recovered)?))
    }
}
