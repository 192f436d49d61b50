//! The blend roots, and how a path is opened in them.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::file::Stamp;
use super::io_pool::{IO_THREADS, IoPool, NotDone, RootPools};
use super::never_sent::NeverSent;
use super::resolve::{Dir, Refusal, Resolved, Start, UnresolvedPath, components};
use super::tag::{SharedTagKey, TagKey, Tags};
use super::{BlendError, BlendFile, SentPath};

/// How long opening a file may take, including the wait for a thread. A healthy file server takes milliseconds.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a request waits for each blend root to be opened if its path does not begin with that of a blend root.
const ROOT_TIMEOUT: Duration = Duration::from_secs(1);

const NO_ANSWER: &str = "its file system does not answer";
const TOO_MANY: &str = "too many .blend files are being sent";

/// The default of [`BlendConfig::max_open`]. Each file costs a file descriptor.
pub const DEFAULT_MAX_OPEN_BLEND_FILES: usize = 4096;

/// The settings for .blend files.
#[derive(Clone, Debug)]
pub struct BlendConfig {
    /// The folders from which .blend files may be sent. Relative paths are relative to the first. They are opened anew
    /// for each request, and need not exist at start.
    pub roots: Vec<PathBuf>,
    /// The data directory. Nothing in it is ever sent. It has the key for the ETags of files, unless there is a
    /// `shared_key`; without either, the ETags change at each start.
    pub data_dir: Option<PathBuf>,
    /// The key for the ETags of files, if gateways share one.
    pub shared_key: Option<SharedTagKey>,
    /// Single files that are never sent.
    pub private_files: Vec<PathBuf>,
    /// How many .blend files may be open at once. Each costs a file descriptor. A request for one more fails with
    /// [`BlendError::NotNow`].
    pub max_open: usize,
}

/// The blend roots. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct BlendRoots(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    roots: Vec<Root>,
    pools: Vec<RootPools>,
    /// For paths that start at `/`.
    elsewhere: IoPool,
    never_sent: NeverSent,
    tags: Tags,
    open_files: Arc<Semaphore>,
    /// See [`BlendRoots::download_permit`].
    downloads: Arc<Semaphore>,
}

/// A blend root, by its path.
#[derive(Debug)]
pub struct Root {
    pub path: PathBuf,
    /// The components of the absolute path.
    pub components: VecDeque<OsString>,
}

impl Root {
    pub fn open(&self) -> io::Result<Dir> {
        Dir::open(&self.path)
    }
}

impl BlendRoots {
    /// Checks the roots in the background, and logs a warning for each that cannot be opened.
    ///
    /// # Errors
    /// The path of the key in the data directory, if it can be neither read nor created, or of a folder that cannot be
    /// made absolute; and why.
    pub fn new(config: BlendConfig) -> Result<Self, (PathBuf, io::Error)> {
        let tags = match (config.shared_key, &config.data_dir) {
            (Some(key), _) => Tags::OfAll(key),
            (None, Some(data_dir)) => Tags::OfGateway(TagKey::kept_in(data_dir)?),
            (None, None) => Tags::OfGateway(TagKey::random()),
        };
        let roots = config.roots.into_iter().map(|path| {
            let path = std::path::absolute(&path).map_err(|error| (path, error))?;
            // `Path::components` drops a final slash.
            let components = components(path.components().as_path().as_os_str());
            Ok(Root { path, components })
        });
        let roots = roots.collect::<Result<Vec<_>, _>>()?;
        let shared = Shared {
            pools: (0..roots.len()).map(RootPools::new).collect(),
            roots,
            elsewhere: IoPool::new("blend-elsewhere".to_owned(), IO_THREADS),
            never_sent: NeverSent { data_dir: config.data_dir, files: config.private_files },
            tags,
            open_files: Arc::new(Semaphore::new(config.max_open.min(Semaphore::MAX_PERMITS))),
            downloads: Arc::new(Semaphore::new((config.max_open - config.max_open / 4).min(Semaphore::MAX_PERMITS))),
        };
        let this = Self(Arc::new(shared));
        for (index, pool) in this.0.pools.iter().enumerate() {
            let shared = Arc::clone(&this.0);
            pool.io.detach(move || {
                let Root { path, .. } = &shared.roots[index];
                if let Err(error) = shared.roots[index].open() {
                    log::warn!(
                        "blend root {} cannot be opened: {error}; until it can, requests for .blend files in it fail",
                        path.display()
                    );
                }
            });
        }
        Ok(this)
    }

    /// Opens the file that a path names.
    pub(super) async fn open(&self, path: &str) -> Result<BlendFile, Refusal> {
        let mut unresolved = UnresolvedPath::of(Path::new(path), &self.0.roots);
        let deadline = Instant::now() + OPEN_TIMEOUT;
        loop {
            let start = unresolved.start;
            let known = match start {
                Start::Root(_) => OpenRoots::default(),
                Start::Slash => self.open_roots().await?,
            };
            let shared = Arc::clone(&self.0);
            let timeout = deadline.saturating_duration_since(Instant::now());
            match self.0.pool(start).run(timeout, move || shared.resolve(unresolved, &known)).await {
                Ok(Ok(Outcome::Elsewhere(next))) => unresolved = next,
                Ok(Ok(Outcome::File(file))) => return Ok(file),
                Ok(Err(refusal)) => return Err(refusal),
                Err(NotDone::NoThread) => return Err(Refusal::NotNow("no thread could be started for it".to_owned())),
                Err(NotDone::TimedOut) => {
                    match start {
                        Start::Root(index) => {
                            let root = self.0.roots[index].path.display();
                            log::warn!("blend root {root} does not answer; its requests get 503, others are served");
                        }
                        Start::Slash => log::warn!("a folder above a blend root does not answer"),
                    }
                    return Err(Refusal::NotNow(NO_ANSWER.to_owned()));
                }
            }
        }
    }

    /// A permit to send a file without a message, as long as it is held. There are fewer than files that may be open,
    /// so that some are left for messages. `name` is what the request calls the file.
    pub(crate) fn download_permit(&self, name: &str) -> Result<OwnedSemaphorePermit, BlendError> {
        let permit = Arc::clone(&self.0.downloads).try_acquire_owned();
        permit.map_err(|_| BlendError::NotNow(SentPath::from(name), TOO_MANY.to_owned()))
    }

    /// Opens all roots at once, each on its own threads, so that one that does not answer delays this by at most
    /// [`ROOT_TIMEOUT`].
    async fn open_roots(&self) -> Result<OpenRoots, Refusal> {
        let open = |index: usize| {
            let shared = Arc::clone(&self.0);
            self.0.pools[index].io.run(ROOT_TIMEOUT, move || shared.roots[index].open())
        };
        let mut known = OpenRoots::default();
        for opened in join_all((0..self.0.roots.len()).map(open)).await {
            known.dirs.push(match opened {
                Ok(Ok(dir)) => Some(dir),
                Ok(Err(error)) => match Refusal::of(&error) {
                    refusal @ Refusal::NotNow(_) => return Err(refusal),
                    // No file can be found in a root that cannot be opened.
                    _ => None,
                },
                Err(_) => {
                    known.is_complete = false;
                    None
                }
            });
        }
        Ok(known)
    }
}

/// The opened blend roots, for a path that starts at `/`.
struct OpenRoots {
    dirs: Vec<Option<Dir>>,
    /// Whether all of them have answered.
    is_complete: bool,
}

impl Default for OpenRoots {
    fn default() -> Self {
        Self { dirs: Vec::new(), is_complete: true }
    }
}

/// The result of one step of a request.
enum Outcome {
    Elsewhere(UnresolvedPath),
    File(BlendFile),
}

impl Shared {
    fn pool(&self, start: Start) -> &IoPool {
        match start {
            Start::Root(index) => &self.pools[index].io,
            Start::Slash => &self.elsewhere,
        }
    }

    /// Resolves a path from its start. Blocks on the file system.
    fn resolve(&self, path: UnresolvedPath, known: &OpenRoots) -> Result<Outcome, Refusal> {
        // Acquired on a thread of the pool, so that requests that wait for a thread hold no permits.
        let permit = Arc::clone(&self.open_files).try_acquire_owned();
        let permit = permit.map_err(|_| Refusal::NotNow(TOO_MANY.to_owned()))?;
        let resolved = path.resolve(&self.roots, &known.dirs, &self.never_sent).map_err(|refusal| match refusal {
            // The file may be in a root that has not answered.
            Refusal::Outside { .. } if !known.is_complete => Refusal::NotNow(NO_ANSWER.to_owned()),
            refusal => refusal,
        });
        match resolved? {
            Resolved::Elsewhere(path) => Ok(Outcome::Elsewhere(path)),
            Resolved::File(found, root) => {
                let stamp = Stamp::of(&found.file).map_err(|error| Refusal::of(&error))?;
                let version = self.tags.tag(&stamp);
                Ok(Outcome::File(BlendFile::new(found.file, stamp, version, permit, self.pools[root].clone())))
            }
        }
    }
}

/// Checks that a folder exists and can be used as a blend root. A folder that does not answer within 5 s passes,
/// because the service can run without it until it answers.
///
/// # Errors
/// Why it cannot be opened.
pub fn check_root(path: &Path) -> io::Result<()> {
    let (reply, outcome) = mpsc::channel();
    let path = path.to_owned();
    // On a thread that is never joined, because it may wait for a dead file server.
    std::thread::Builder::new().name("blend-check".to_owned()).spawn(move || {
        // Fails after 5 s, when nobody waits any more.
        let _ = reply.send(Dir::open(&path).map(|_| ()));
    })?;
    outcome.recv_timeout(OPEN_TIMEOUT).unwrap_or(Ok(()))
}
