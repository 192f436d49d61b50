//! Opens the stores, starts the actors, and drains them.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::watch;

use crate::any_buffer::AnyBuffer;
use crate::blend::{BlendConfig, BlendDigests, BlendRoots};
use crate::body_file::BodyDirectory;
use crate::broker::amqp::{self, AmqpConfig};
use crate::buffer::BufferActor;
use crate::consumer::{CommunicationInterfaceConsumer, FIRST_PREFETCH};
use crate::decoder::Decoder;
use crate::large_body::LargeBodies;
use crate::messages::{Drain, FromStore};
use crate::metrics::{OldestAge, Refusal, Refusals};
use crate::postgres::{PostgresBuffer, PostgresConfig};
use crate::publisher::{BrokerRoute, FrameAck, UserManagerPublisher};
use crate::running::RunningMark;
use crate::shared_buffer::SharedBuffer;
use crate::store::log::LogStore;
use crate::store::memory::MemoryStore;
use crate::store::{
    Begin, NO_RECORD, OpenError, Recovered, Seq, Store, StoreError, StoreEvent, StoreHandle, check_failure,
};

/// The name of the store of the messages for workers, and of its directory in the data directory.
pub(crate) const BUFFER: &str = "buffer";
/// The same for the messages for the user manager.
pub(crate) const OUTBOX: &str = "outbox";

/// The names of both stores.
pub const STORES: [&str; 2] = [BUFFER, OUTBOX];

/// The permission bits of the group and of other users.
const OTHERS: u32 = 0o077;

/// The configuration of the actors.
#[derive(Clone, Debug)]
pub struct ActorsConfig {
    /// The directory of the stores. `None` keeps messages in memory only: they are lost when the process stops.
    pub data_dir: Option<PathBuf>,
    /// The folders that .blend files are sent from. Relative paths are relative to the first one. A missing folder is a
    /// warning in the log; its files can be sent as soon as it exists.
    pub blend_roots: Vec<PathBuf>,
    /// Files that are never sent, even from a blend root: tokens and keys, for example. The data directory is never
    /// sent either.
    pub private_files: Vec<PathBuf>,
    /// How many .blend files may be open at the same time. Each takes a file descriptor.
    pub max_open_blend_files: usize,
    /// The database in which buffered messages are, for gateways that share them. `None` if they are in the data
    /// directory.
    pub shared_buffer: Option<PostgresConfig>,
    /// The limit for buffered messages, in bytes of [cost](crate::messages::BufferState::bytes).
    pub max_buffered: u64,
    /// How long a message stays in the buffer before it expires.
    pub buffer_ttl: Duration,
    /// The limit for the outbox, in bytes of [cost](crate::messages::OutboxState::bytes).
    pub max_outbox: u64,
    /// The broker. Without one, the user manager fetches its messages from the service.
    pub amqp: Option<AmqpConfig>,
    /// What the senders of messages for the user manager wait for. Without a broker they wait for stable storage.
    pub frame_ack: FrameAck,
}

/// Why the actors could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A store could not be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// A store holds a record that this version does not understand.
    #[error(
        "record {seq} in {path} is not valid for this version; use the version that wrote it, or move the directory \
         away to start without its messages",
        path = path.display()
    )]
    Record {
        /// The store's directory.
        path: PathBuf,
        /// The record's number.
        seq: Seq,
    },
    /// The key for ETags could not be read or created in the data directory, or a blend root has no absolute path.
    #[error("cannot prepare {path} for sending .blend files: {source}", path = path.display())]
    BlendRoot {
        /// The file of the key, or the folder.
        path: PathBuf,
        /// The error of the file system.
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// The buffer's database cannot be used from this machine.
    #[error("cannot prepare connections to the buffer's database: {0}")]
    Database(io::Error),
}

/// The running actors: the interface for applications. Cloning is cheap.
///
/// A method sends one message and waits for its reply. [`buffer`](Self::buffer), [`publisher`](Self::publisher) and
/// [`consumer`](Self::consumer) are for an application whose own actors send the [`messages`](crate::messages).
#[derive(Clone, Debug)]
pub struct UserHttpActors {
    pub(crate) decoder: Decoder,
    pub(crate) buffer: AnyBuffer,
    pub(crate) publisher: Addr<UserManagerPublisher>,
    pub(crate) consumer: Option<Addr<CommunicationInterfaceConsumer>>,
    pub(crate) blend_roots: BlendRoots,
    pub(crate) digests: Addr<BlendDigests>,
    buffer_bodies: Option<BodyDirectory>,
    outbox_bodies: Option<BodyDirectory>,
    pub(crate) large_bodies: LargeBodies,
    store_failure: watch::Receiver<Option<StoreError>>,
    mark: Option<Arc<RunningMark>>,
    oldest: Vec<Arc<OldestAge>>,
    pub(crate) refused_for_workers: Refusals,
    pub(crate) refused_for_user_manager: Refusals,
}

impl UserHttpActors {
    /// Opens the stores and starts the actors on the current arbiter. Blocks until the stores have been read.
    ///
    /// # Errors
    /// See [`StartError`]. Nothing runs after an error.
    pub fn start(config: ActorsConfig) -> Result<Self, StartError> {
        if let Some(data_dir) = &config.data_dir {
            warn_if_others_may_enter(data_dir);
        }
        // Whatever refuses the start comes before either store is used, so that the next start is as strict with both.
        let outbox = OpenStore::open(config.data_dir.as_deref(), OUTBOX)?;
        let (failure, store_failure) = watch::channel(None);
        let report = |failure: watch::Sender<Option<StoreError>>| move |error| drop(failure.send_replace(Some(error)));
        let (mut known_digests, mut oldest) = (Vec::new(), Vec::new());
        let (max_bytes, ttl) = (config.max_buffered, config.buffer_ttl);
        let (buffer, own_bodies, shared_key) = if let Some(database) = &config.shared_buffer {
            config.data_dir.iter().for_each(|data_dir| warn_if_left_behind(&data_dir.join(BUFFER)));
            let database = PostgresBuffer::start(database, max_bytes, ttl).map_err(StartError::Database)?;
            let key = database.tag_key().clone();
            let actor = SharedBuffer::new(database);
            oldest.push(actor.oldest_age());
            (PreparedBuffer::Shared(actor), None, Some(key))
        } else {
            let store = OpenStore::open(config.data_dir.as_deref(), BUFFER)?;
            let bodies = store.bodies().cloned();
            let actor = store.prepare(report(failure.clone()), |store, recovered, _| {
                let actor = BufferActor::new(store, recovered, max_bytes, ttl)?;
                known_digests = actor.known_digests();
                oldest.push(actor.oldest_age());
                Ok(actor)
            })?;
            (PreparedBuffer::Own(Box::new(actor)), bodies, None)
        };
        // After the stores are opened, because that creates the data directory and locks it.
        let data_dir = config.data_dir.clone();
        let blend_roots = BlendRoots::new(BlendConfig {
            roots: config.blend_roots,
            data_dir: config.data_dir,
            shared_key,
            private_files: config.private_files,
            max_open: config.max_open_blend_files,
        })
        .map_err(|(path, source)| StartError::BlendRoot { path, source })?;
        let (publisher, outbox_bodies) = {
            let (max_bytes, frame_ack) = (config.max_outbox, config.frame_ack);
            let amqp = config.amqp.clone();
            let bodies = outbox.bodies().cloned();
            let actor = outbox.prepare(report(failure), |store, recovered, address| {
                let broker = amqp.map(|amqp| BrokerRoute {
                    start_link: Box::new(|on_event| Box::new(amqp::start_publisher(amqp, on_event))),
                    frame_ack,
                });
                let actor = UserManagerPublisher::new(store, recovered, max_bytes, broker, address)?;
                oldest.push(actor.oldest_age());
                Ok(actor)
            })?;
            (actor, bodies)
        };
        // large bodies are received into files here, whatever becomes of them then
        let buffer_bodies = own_bodies.clone().or_else(|| outbox_bodies.clone());
        let (buffer, publisher) = (buffer.start()?, publisher.start()?);
        let mark = RunningMark::set(data_dir.as_deref()).map(Arc::new);
        let (decoder, large_bodies) = (Decoder::start(), LargeBodies::default());
        let (refused_for_workers, refused_for_user_manager) = (Refusals::of_buffer(), Refusals::of_outbox());
        let consumer = config.amqp.map(|amqp| {
            let start: crate::consumer::StartConsuming =
                Box::new(|on_event| Box::new(amqp::start_consumer(amqp, FIRST_PREFETCH, on_event)));
            let ctx = Context::new();
            let (address, bodies) = (ctx.address(), own_bodies);
            ctx.run(CommunicationInterfaceConsumer::new(decoder.clone(), bodies, buffer.clone(), start, address))
        });
        let digests = BlendDigests::new(known_digests).start();
        Ok(Self {
            decoder,
            buffer,
            publisher,
            consumer,
            blend_roots,
            digests,
            buffer_bodies,
            outbox_bodies,
            large_bodies,
            store_failure,
            mark,
            oldest,
            refused_for_workers,
            refused_for_user_manager,
        })
    }

    /// The directory in which large bodies for the buffer are received; `None` if messages are in memory only.
    pub fn buffer_bodies(&self) -> Option<&BodyDirectory> {
        self.buffer_bodies.as_ref()
    }

    /// The directory for large bodies of messages for the user manager; `None` if messages are in memory only.
    pub fn outbox_bodies(&self) -> Option<&BodyDirectory> {
        self.outbox_bodies.as_ref()
    }

    /// Owns the buffered messages.
    pub fn buffer(&self) -> &AnyBuffer {
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

    /// Resolves when a store has failed permanently. The actors refuse all messages from then on. Start the service
    /// again when the disk works: everything that was acknowledged is still there.
    pub async fn store_failure(&self) -> StoreError {
        let mut failure = self.store_failure.clone();
        let failed = failure.wait_for(Option::is_some).await.ok().and_then(|failure| failure.clone());
        match failed {
            Some(failure) => failure,
            // Both stores have stopped without a failure.
            None => std::future::pending().await,
        }
    }

    /// Refuses new work, finishes the work in progress, commits it, and stops the actors. Messages that the broker has
    /// not confirmed within a second stay in the outbox.
    ///
    /// # Errors
    /// [`DiskHangs`] if the disk does not answer within 5 s. The process may end all the same.
    pub async fn drain(&self) -> Result<(), DiskHangs> {
        // An actor that has stopped has no work in progress.
        if let Some(consumer) = &self.consumer {
            let _ = consumer.send(Drain).await;
        }
        let stores = futures::future::join(self.publisher.send(Drain), self.buffer.send(Drain));
        let drained = async {
            let _ = stores.await;
            let has_failed = self.store_failure.borrow().is_some();
            if let Some(mark) = self.mark.clone().filter(|_| !has_failed) {
                // the panic hook logs a panic
                let _ = tokio::task::spawn_blocking(move || mark.remove()).await;
            }
        };
        tokio::time::timeout(DISK_TIMEOUT, drained).await.map_err(|_| DiskHangs)
    }

    /// Sets the metrics of the ages of the oldest messages to the ages at this moment. To be called before the metrics
    /// are read. Asks no actor.
    pub fn update_ages(&self) {
        self.oldest.iter().for_each(|oldest| oldest.update());
    }

    /// Counts a message for a worker that was refused before the actors got it.
    pub fn count_refused_buffer_msg(&self, refusal: Refusal) {
        self.refused_for_workers.count(refusal);
    }

    /// Counts a message for the user manager that was refused before the actors got it.
    pub fn count_refused_user_message(&self, refusal: Refusal) {
        self.refused_for_user_manager.count(refusal);
    }
}

/// Either buffer.
enum PreparedBuffer {
    Own(Box<PreparedActor<BufferActor>>),
    Shared(SharedBuffer),
}

impl PreparedBuffer {
    fn start(self) -> Result<AnyBuffer, StartError> {
        Ok(match self {
            Self::Own(actor) => AnyBuffer::Own(actor.start()?),
            Self::Shared(actor) => AnyBuffer::Shared(actor.start()),
        })
    }
}

/// How long [`UserHttpActors::drain`] waits for the disk: a sync takes milliseconds, on a busy disk a second.
const DISK_TIMEOUT: Duration = Duration::from_secs(5);

/// A stop has not waited any longer for the disk. Everything that was acknowledged is on stable storage.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error(
    "the disk has not answered for {} s during the stop; everything that was acknowledged is stored, but messages that \
     were delivered or forwarded last may be delivered again",
    DISK_TIMEOUT.as_secs()
)]
pub struct DiskHangs;

/// Warns if other users can read the data directory. One that the operator has created keeps its permissions, and
/// messages are only as private as it is.
fn warn_if_others_may_enter(data_dir: &Path) {
    // A missing one is created with mode 0700.
    let Ok(metadata) = fs::metadata(data_dir) else { return };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & OTHERS != 0 {
        let path = data_dir.display();
        log::warn!("{path} is open to other users of this machine (mode {mode:04o}); close it: chmod 700 {path}");
    }
}

/// Warns if there is a store with messages that nobody delivers, because the buffer is in a database now.
fn warn_if_left_behind(path: &Path) {
    if path.exists() {
        let path = path.display();
        log::warn!(
            "{path} has what was buffered before the buffer was in a database, and nobody delivers that; start once \
             without --buffer-store to deliver it, or delete {path} if nothing is left in it"
        );
    }
}

/// An open store and the records that were found in it.
pub struct OpenStore {
    name: &'static str,
    path: PathBuf,
    store: Box<dyn Store>,
    bodies: Option<BodyDirectory>,
    next_seq: Seq,
    recovered: Vec<Recovered>,
}

impl OpenStore {
    /// A store without records.
    pub fn new(name: &'static str, store: Box<dyn Store>) -> Self {
        Self { name, path: PathBuf::new(), store, bodies: None, next_seq: NO_RECORD + 1, recovered: Vec::new() }
    }

    /// The store called `name` in a data directory; without one, in memory. It is read, and not used before it starts.
    ///
    /// # Errors
    /// [`StartError::Store`].
    pub fn open(data_dir: Option<&Path>, name: &'static str) -> Result<Self, StartError> {
        let Some(data_dir) = data_dir else { return Ok(Self::new(name, Box::new(MemoryStore))) };
        let path = data_dir.join(name);
        let (store, recovered) = LogStore::open_unused(&path)?;
        if !recovered.is_empty() {
            log::info!("{} records found in {}", recovered.len(), path.display());
        }
        Ok(Self::of_log(name, &path, store, recovered))
    }

    /// A log in the directory `path`, as [`LogStore::open`] returns it.
    pub fn of_log(name: &'static str, path: &Path, store: LogStore, recovered: Vec<Recovered>) -> Self {
        let (next_seq, bodies) = (store.next_seq(), Some(store.bodies().clone()));
        Self { name, path: path.to_owned(), store: Box::new(store), bodies, next_seq, recovered }
    }

    /// The directory for large bodies; `None` if the store keeps none on disk.
    pub fn bodies(&self) -> Option<&BodyDirectory> {
        self.bodies.as_ref()
    }

    /// [Prepares](Self::prepare) the actor that owns the store, and starts it.
    ///
    /// # Errors
    /// As for both.
    pub fn start<A>(
        self,
        on_failure: impl Fn(StoreError) + Send + 'static,
        actor: impl FnOnce(StoreHandle, Vec<Recovered>, Addr<A>) -> Result<A, Seq>,
    ) -> Result<Addr<A>, StartError>
    where
        A: Actor<Context = Context<A>> + Handler<FromStore>,
    {
        self.prepare(on_failure, actor)?.start()
    }

    /// Makes the actor that owns the store, and the store's thread, which waits. `actor` gets the address of the actor
    /// that it makes. The thread will call `on_failure` if the store fails permanently. Nothing on the disk is changed.
    ///
    /// # Errors
    /// [`StartError::Record`] with the record that `actor` does not understand, and [`StartError::Thread`].
    pub fn prepare<A>(
        self,
        on_failure: impl Fn(StoreError) + Send + 'static,
        actor: impl FnOnce(StoreHandle, Vec<Recovered>, Addr<A>) -> Result<A, Seq>,
    ) -> Result<PreparedActor<A>, StartError>
    where
        A: Actor<Context = Context<A>> + Handler<FromStore>,
    {
        let ctx = Context::new();
        let address = actix::AsyncContext::address(&ctx);
        let owner = address.clone();
        let on_event = move |event: StoreEvent| {
            if let Err(error) = check_failure(&event.failure) {
                on_failure(error);
            }
            owner.do_send(FromStore(event));
        };
        let (handle, begin) = StoreHandle::prepare(self.name, self.next_seq, on_event).map_err(StartError::Thread)?;
        let actor = actor(handle, self.recovered, address);
        let actor = actor.map_err(|seq| StartError::Record { path: self.path, seq })?;
        Ok(PreparedActor { store: self.store, begin, ctx, actor })
    }
}

/// An actor that has understood everything in its store.
pub struct PreparedActor<A: Actor<Context = Context<A>>> {
    store: Box<dyn Store>,
    begin: Begin,
    ctx: Context<A>,
    actor: A,
}

impl<A: Actor<Context = Context<A>>> PreparedActor<A> {
    /// Begins to use the store, and starts the actor.
    ///
    /// # Errors
    /// [`StartError::Store`].
    pub fn start(mut self) -> Result<Addr<A>, StartError> {
        self.store.begin()?;
        self.begin.with(self.store);
        Ok(self.ctx.run(self.actor))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{self, Receiver};

    use super::*;
    use crate::blend::BlendError;
    use crate::codec::BlendPlaceholder;
    use crate::error::Error;
    use crate::payload::Payload;
    use crate::store::{Change, Durable};

    /// A store on a disk that does not answer until the other end of this channel is dropped.
    struct Hanging(Receiver<()>);

    impl Store for Hanging {
        fn commit(&mut self, changes: &[Change], durable: Durable) -> Result<Vec<Payload>, StoreError> {
            let _ = self.0.recv();
            MemoryStore.commit(changes, durable)
        }
    }

    /// Keeps everything in memory.
    fn config(blend_roots: Vec<PathBuf>, max_open_blend_files: usize) -> ActorsConfig {
        ActorsConfig {
            data_dir: None,
            blend_roots,
            private_files: Vec::new(),
            max_open_blend_files,
            shared_buffer: None,
            max_buffered: 1 << 20,
            buffer_ttl: Duration::from_secs(60),
            max_outbox: 1 << 20,
            amqp: None,
            frame_ack: FrameAck::Stored,
        }
    }

    #[actix::test]
    async fn downloads_of_a_blend_file_leave_a_quarter_of_the_open_files_to_messages() {
        let root = tempfile::tempdir().expect("a folder");
        fs::write(root.path().join("scene.blend"), b"BLENDER").expect("space");
        let actors = UserHttpActors::start(config(vec![root.path().to_owned()], 8)).expect("nothing is read");
        let placeholder = BlendPlaceholder { offset: 0, path: Some("scene.blend".to_owned()) };
        let file = Arc::new(actors.open_blend_file(&placeholder).await.expect("it is there"));
        let digest = actors.refer_to_blend_file(&placeholder, &file).await.expect("it can be read");
        drop(file);
        let mut downloads = Vec::new();
        for _ in 0..6 {
            downloads.push(actors.open_referred_blend_file(digest).await.expect("one of three quarters"));
        }
        let refused = actors.open_referred_blend_file(digest).await;
        assert!(matches!(&refused, Err(Error::Blend(BlendError::NotNow(..)))), "{refused:?}");
        let message = actors.open_blend_file(&placeholder).await;
        assert!(message.is_ok(), "{message:?}");
        downloads.pop();
        assert!(actors.open_referred_blend_file(digest).await.is_ok(), "another has ended");
    }

    #[actix::test]
    async fn a_drain_does_not_wait_for_a_disk_that_hangs() {
        for hangs in [false, true] {
            let config = config(Vec::new(), 1);
            let (answer, answered) = mpsc::channel();
            let buffer = OpenStore::new("test", Box::new(Hanging(answered)))
                .start(|_| {}, |store, found, _| BufferActor::new(store, found, 1 << 20, Duration::from_secs(60)))
                .expect("an empty store");
            let actors =
                UserHttpActors { buffer: buffer.into(), ..UserHttpActors::start(config).expect("nothing is read") };
            let answer = Some(answer).filter(|_| hangs);
            let drained = actors.drain().await;
            assert_eq!(drained.is_err(), hangs);
            drop(answer);
        }
    }
}
