//! The permitted folders, and what is opened below them.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::sync::Semaphore;

use super::BlendFile;
use super::file::Stamp;
use super::io_pool::{IoPool, NotDone};
use super::never_sent::NeverSent;
use super::resolve::{Dir, Refusal, Resolved, Start, UnresolvedPath, components};
use super::tag::TagKey;

/// How long a request waits for a file to be opened, its turn included. A healthy file server takes milliseconds.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);

/// How long a request that does not begin in a root waits for each of the roots to be opened.
const ROOT_PATIENCE: Duration = Duration::from_secs(1);

const NO_ANSWER: &str = "its file system does not answer";

/// How many .blend files are open at once unless it is set: each is a descriptor. [`BlendConfig::max_open`] says who
/// waits.
pub const DEFAULT_MAX_OPEN_BLEND_FILES: usize = 4096;

/// What there is to know about .blend files.
#[derive(Clone, Debug)]
pub struct BlendConfig {
    /// The folders in which .blend files may lie. Relative paths are relative to the first. They are opened anew for
    /// each request, and need not be there at the start.
    pub roots: Vec<PathBuf>,
    /// Never sent, with everything below it. Holds the key of the ETags; without it they change with each start.
    pub data_dir: Option<PathBuf>,
    /// Single files that are never sent.
    pub private_files: Vec<PathBuf>,
    /// How many .blend files are open at once, each of them a file descriptor and a delivery. Beyond that a request
    /// fails with [`BlendError::NotNow`](super::BlendError::NotNow).
    pub max_open: usize,
}

/// The permitted folders. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct BlendRoots(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    roots: Vec<Root>,
    pools: Vec<IoPool>,
    /// For what begins in none of the roots.
    elsewhere: IoPool,
    never_sent: NeverSent,
    key: TagKey,
    open_files: Arc<Semaphore>,
}

/// A permitted folder, by its path.
#[derive(Debug)]
pub struct Root {
    pub path: PathBuf,
    /// Of the path, made absolute.
    pub components: VecDeque<OsString>,
}

impl Root {
    pub fn open(&self) -> io::Result<Dir> {
        Dir::open(&self.path)
    }
}

impl BlendRoots {
    /// Takes the folders as they are, and warns in the log about each that cannot be opened. Nothing waits for them.
    ///
    /// # Errors
    /// The data directory, whose key cannot be read or made, or the folder whose path cannot be made absolute, and why.
    pub fn new(config: BlendConfig) -> Result<Self, (PathBuf, io::Error)> {
        let key = match &config.data_dir {
            None => TagKey::random(),
            Some(data_dir) => TagKey::kept_in(data_dir).map_err(|error| (data_dir.clone(), error))?,
        };
        let roots = config.roots.into_iter().map(|path| {
            let path = std::path::absolute(&path).map_err(|error| (path, error))?;
            // without a final slash
            let components = components(path.components().as_path().as_os_str());
            Ok(Root { path, components })
        });
        let roots = roots.collect::<Result<Vec<_>, _>>()?;
        let shared = Shared {
            pools: (0..roots.len()).map(|index| IoPool::new(format!("blend-root-{index}"))).collect(),
            roots,
            elsewhere: IoPool::new("blend-elsewhere".to_owned()),
            never_sent: NeverSent { data_dir: config.data_dir, files: config.private_files },
            key,
            open_files: Arc::new(Semaphore::new(config.max_open.min(Semaphore::MAX_PERMITS))),
        };
        let this = Self(Arc::new(shared));
        for (index, pool) in this.0.pools.iter().enumerate() {
            let shared = Arc::clone(&this.0);
            pool.detach(move || {
                let Root { path, .. } = &shared.roots[index];
                if let Err(error) = shared.roots[index].open() {
                    log::warn!(
                        "blend root {} cannot be opened: {error}; until it can, .blend files in it are missing",
                        path.display()
                    );
                }
            });
        }
        Ok(this)
    }

    /// Opens the file under a path.
    pub(super) async fn open(&self, path: &str) -> Result<BlendFile, Refusal> {
        let mut way = UnresolvedPath::of(Path::new(path), &self.0.roots);
        let deadline = Instant::now() + OPEN_PATIENCE;
        loop {
            let start = way.start;
            let known = match start {
                Start::Root(_) => OpenRoots::default(),
                Start::Slash => self.open_roots().await?,
            };
            let shared = Arc::clone(&self.0);
            let patience = deadline.saturating_duration_since(Instant::now());
            match self.0.pool(start).run(patience, move || shared.go(way, &known)).await {
                Ok(Ok(Outcome::Elsewhere(next))) => way = next,
                Ok(Ok(Outcome::File(file))) => return Ok(file),
                Ok(Err(refusal)) => return Err(refusal),
                Err(NotDone::NoThread) => return Err(Refusal::NotNow("no thread could be started for it".to_owned())),
                Err(NotDone::TimedOut) => {
                    match start {
                        Start::Root(index) => {
                            let root = self.0.roots[index].path.display();
                            log::warn!("blend root {root} does not answer; its requests get 503, others are served");
                        }
                        Start::Slash => log::warn!("a folder on the way to a blend root does not answer"),
                    }
                    return Err(Refusal::NotNow(NO_ANSWER.to_owned()));
                }
            }
        }
    }

    /// Opens all roots, each on its own threads: one that hangs is not waited for long.
    async fn open_roots(&self) -> Result<OpenRoots, Refusal> {
        let open = |index: usize| {
            let shared = Arc::clone(&self.0);
            self.0.pools[index].run(ROOT_PATIENCE, move || shared.roots[index].open())
        };
        let mut known = OpenRoots::default();
        for opened in join_all((0..self.0.roots.len()).map(open)).await {
            known.dirs.push(match opened {
                Ok(Ok(dir)) => Some(dir),
                Ok(Err(error)) => match Refusal::of(&error) {
                    refusal @ Refusal::NotNow(_) => return Err(refusal),
                    // nothing is to be found in one that cannot be opened
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

/// The blend roots as they are at the moment, for a way that does not begin in one.
struct OpenRoots {
    dirs: Vec<Option<Dir>>,
    /// Whether each of them has answered.
    is_complete: bool,
}

impl Default for OpenRoots {
    fn default() -> Self {
        Self { dirs: Vec::new(), is_complete: true }
    }
}

/// How far a request has got.
enum Outcome {
    Elsewhere(UnresolvedPath),
    File(BlendFile),
}

impl Shared {
    fn pool(&self, start: Start) -> &IoPool {
        match start {
            Start::Root(index) => &self.pools[index],
            Start::Slash => &self.elsewhere,
        }
    }

    /// Goes along a way. Blocks on the file system.
    fn go(&self, way: UnresolvedPath, known: &OpenRoots) -> Result<Outcome, Refusal> {
        // Only now: those that wait for a file system which does not answer keep none from being opened elsewhere.
        let permit = Arc::clone(&self.open_files).try_acquire_owned();
        let permit = permit.map_err(|_| Refusal::NotNow("too many .blend files are being sent".to_owned()))?;
        let walked = way.walk(&self.roots, &known.dirs, &self.never_sent).map_err(|refusal| match refusal {
            // it may lie in the one that has not answered
            Refusal::Outside { .. } if !known.is_complete => Refusal::NotNow(NO_ANSWER.to_owned()),
            refusal => refusal,
        });
        match walked? {
            Resolved::Elsewhere(way) => Ok(Outcome::Elsewhere(way)),
            Resolved::File(found, root) => {
                let stamp = Stamp::of(&found.file).map_err(|error| Refusal::of(&error))?;
                Ok(Outcome::File(BlendFile::new(found.file, stamp, permit, self.pools[root].clone(), &self.key)))
            }
        }
    }
}

/// Checks that a folder is there and can be used as a blend root. One that does not answer within 5 s passes: the
/// service runs without it until it does.
///
/// # Errors
/// Why it cannot be opened.
pub fn check_root(path: &Path) -> io::Result<()> {
    let (reply, outcome) = mpsc::channel();
    let path = path.to_owned();
    // the thread is left to itself where it waits for a dead file server
    std::thread::Builder::new().name("blend-check".to_owned()).spawn(move || {
        // nobody listens any more after 5 s
        let _ = reply.send(Dir::open(&path).map(|_| ()));
    })?;
    outcome.recv_timeout(OPEN_PATIENCE).unwrap_or(Ok(()))
}
