//! Resolves a path to an open file, one component after another.
//!
//! Each folder is opened relative to the previous one, without following links; this module reads and follows them
//! itself. So the open folders prove where a file is, whatever is renamed or linked meanwhile: no name is checked first
//! and opened later.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, StatxAttributes, StatxFlags, fstat, makedev, open, openat, readlinkat, statat,
    statx,
};
use rustix::io::Errno;

use super::Hint;
use super::error_text;
use super::never_sent::NeverSent;
use super::roots::Root;

/// How many symbolic links one path may contain, as in the kernel.
const MAX_LINKS: u32 = 40;

/// How many folders deep a file may be. Each costs a file descriptor while the path is resolved.
const MAX_DEPTH: usize = 100;

const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// What identifies a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    pub device: u64,
    pub inode: u64,
}

/// An open folder.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    pub id: FileId,
    /// Whether a file system is mounted here, so that its files may have other paths too.
    pub is_mounted: bool,
    /// The index of the blend root, if this is one.
    root: Option<usize>,
}

/// The file that a path names.
#[derive(Debug)]
pub struct OpenedFile {
    pub file: File,
    pub id: FileId,
    pub links: u32,
    pub is_mounted: bool,
}

/// Where resolving starts. Each start has its own [`IoPool`](super::io_pool::IoPool).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At a blend root.
    Root(usize),
    /// At `/`. The path may still lead into a blend root.
    Slash,
}

/// A path, or what remains of it, and where it starts.
#[derive(Clone, Debug)]
pub struct UnresolvedPath {
    pub start: Start,
    rest: VecDeque<OsString>,
    links: u32,
}

/// The result of resolving an [`UnresolvedPath`].
#[derive(Debug)]
pub enum Resolved {
    /// A regular file inside the blend root with this index.
    File(OpenedFile, usize),
    /// A link or a `..` leads out of the start, or the path enters another blend root. The remaining path is
    /// resolved anew.
    Elsewhere(UnresolvedPath),
}

/// Why a path does not lead to a file that may be sent.
#[derive(Debug)]
pub enum Refusal {
    Outside { by_link: bool },
    Missing(Hint),
    NoRegularFile,
    Unreadable(String),
    NotNow(String),
}

impl Refusal {
    /// The refusal for a system error. A lack of resources counts as temporary.
    pub fn of(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::MFILE | Errno::NFILE) => Self::NotNow("too many files are open".to_owned()),
            Some(Errno::NOMEM) => Self::NotNow("the system has no memory left".to_owned()),
            Some(Errno::AGAIN) => Self::NotNow("the file system is busy".to_owned()),
            Some(Errno::NOENT | Errno::NOTDIR) => Self::Missing(Hint::default()),
            Some(Errno::NAMETOOLONG) => Self::Missing(error_text::NAME_TOO_LONG.into()),
            Some(Errno::ACCESS | Errno::PERM) => Self::Unreadable("permission denied".to_owned()),
            _ => Self::Unreadable(error.to_string()),
        }
    }
}

impl UnresolvedPath {
    /// A path of a message.
    pub fn of(path: &Path, roots: &[Root]) -> Self {
        let rest = components(path.as_os_str());
        if path.is_absolute() {
            return Self::from_slash(rest, 0, roots);
        }
        let start = if roots.is_empty() { Start::Slash } else { Start::Root(0) };
        Self { start, rest, links: 0 }
    }

    /// An absolute path. If it begins with the path of a blend root, resolving starts there, so that nothing waits for
    /// the file systems of the folders above.
    fn from_slash(mut rest: VecDeque<OsString>, links: u32, roots: &[Root]) -> Self {
        let begins = |root: &&(usize, &VecDeque<OsString>)| {
            root.1.len() <= rest.len() && root.1.iter().zip(&rest).all(|(one, other)| one == other)
        };
        let named: Vec<_> = roots.iter().map(|root| &root.components).enumerate().collect();
        let longest = named.iter().filter(begins).max_by_key(|(_, root)| root.len());
        match longest {
            Some(&(index, root)) => {
                rest.drain(..root.len());
                Self { start: Start::Root(index), rest, links }
            }
            None => Self { start: Start::Slash, rest, links },
        }
    }

    /// Resolves the path until it leaves its start. If it starts at `/`, blend roots are recognised by their path, and
    /// those in `known`, which are open, by their identity too. Blocks on the file system.
    pub fn resolve(self, roots: &[Root], known: &[Option<Dir>], never_sent: &NeverSent) -> Result<Resolved, Refusal> {
        let Self { start, rest, links } = self;
        let first = match start {
            Start::Root(index) => {
                let mut first = roots[index].open().map_err(|error| match Refusal::of(&error) {
                    Refusal::Missing(_) => Refusal::Missing(error_text::ROOT_IS_MISSING.into()),
                    refusal => refusal,
                })?;
                first.root = Some(index);
                first
            }
            Start::Slash => {
                let mut first = Dir::open(Path::new("/")).map_err(|error| Refusal::of(&error))?;
                first.root = root_of(known, &first);
                first
            }
        };
        let names = match start {
            Start::Root(index) => roots[index].components.iter().cloned().collect(),
            Start::Slash => Vec::new(),
        };
        Resolver { roots, never_sent, start, known, stack: vec![first], names, rest, links }.finish()
    }
}

/// The components of a path. A final `/` becomes a `.`, because the path then names a folder.
pub fn components(path: &OsStr) -> VecDeque<OsString> {
    let bytes = path.as_bytes();
    let parts = bytes.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    let mut components: VecDeque<_> = parts.map(|part| OsStr::from_bytes(part).to_owned()).collect();
    if bytes.ends_with(b"/") || bytes.ends_with(b"/.") {
        components.push_back(".".into());
    }
    components
}

impl Dir {
    /// Opens a folder by its path; the kernel resolves it.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self::of(open(path, FOLDER, Mode::empty())?)?)
    }

    fn of(fd: OwnedFd) -> Result<Self, Errno> {
        let (id, is_mounted, _) = describe(&fd)?;
        Ok(Self { fd, id, is_mounted, root: None })
    }

    /// Whether this folder lies below `other`.
    pub fn lies_in(&self, other: FileId) -> io::Result<bool> {
        let mut last = self.id;
        let mut up = Self::of(openat(&self.fd, "..", FOLDER, Mode::empty())?)?;
        while up.id != last {
            if up.id == other {
                return Ok(true);
            }
            last = up.id;
            up = Self::of(openat(&up.fd, "..", FOLDER, Mode::empty())?)?;
        }
        Ok(last == other)
    }
}

/// A file's identity, whether something is mounted on it, and how many links it has.
fn describe(fd: impl AsFd) -> Result<(FileId, bool, u32), Errno> {
    let stat = statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::INO | StatxFlags::NLINK)?;
    // Linux before 5.8 does not report this. Then every file and folder counts as mounted.
    let is_reported = stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT);
    let is_mounted = !is_reported || stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    let device = makedev(stat.stx_dev_major, stat.stx_dev_minor);
    Ok((FileId { device, inode: stat.stx_ino }, is_mounted, stat.stx_nlink))
}

/// The index of the blend root, if this folder is one.
fn root_of(known: &[Option<Dir>], dir: &Dir) -> Option<usize> {
    known.iter().position(|root| root.as_ref().is_some_and(|root| root.id == dir.id))
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

/// A path that is being resolved.
struct Resolver<'a> {
    roots: &'a [Root],
    never_sent: &'a NeverSent,
    start: Start,
    known: &'a [Option<Dir>],
    /// The open folders from the start to the current one. Never empty.
    stack: Vec<Dir>,
    /// The path of the current folder: that of the start, and below it without links.
    names: Vec<OsString>,
    rest: VecDeque<OsString>,
    links: u32,
}

/// What the next component is.
enum Step {
    Entered,
    Opened(OpenedFile, usize),
    NoRegularFile,
    /// A file that is not in a blend root, or is never sent.
    Outside,
}

impl Resolver<'_> {
    fn finish(mut self) -> Result<Resolved, Refusal> {
        while let Some(name) = self.rest.pop_front() {
            if name == ".." {
                if self.stack.len() > 1 {
                    self.stack.pop();
                    self.names.pop();
                } else if let Start::Root(index) = self.start {
                    return self.leave(index).map(Resolved::Elsewhere);
                }
                continue;
            }
            if name == "." {
                continue;
            }
            if let Some(index) = self.root_named(&name) {
                // If that root's file system does not answer, only the root's own threads may block.
                return Ok(Resolved::Elsewhere(UnresolvedPath {
                    start: Start::Root(index),
                    rest: self.rest,
                    links: self.links,
                }));
            }
            let step = if self.rest.is_empty() { self.open_file(&name) } else { self.enter(&name) };
            match step {
                Ok(Step::Entered) => {}
                Ok(Step::Opened(found, root)) => return Ok(Resolved::File(found, root)),
                Ok(Step::NoRegularFile) => return Err(Refusal::NoRegularFile),
                Ok(Step::Outside) => return Err(self.outside()),
                Err(Errno::LOOP | Errno::NOTDIR) => match self.read_link(&name) {
                    Ok(target) => {
                        if let Some(rest) = self.follow(&target)? {
                            return Ok(Resolved::Elsewhere(rest));
                        }
                    }
                    // A component that should be a folder is a file.
                    Err(Errno::INVAL) => return Err(self.refuse(Errno::NOTDIR, &name)),
                    Err(error) => return Err(self.refuse(error, &name)),
                },
                Err(error) => return Err(self.refuse(error, &name)),
            }
            if self.stack.len() > MAX_DEPTH {
                return Err(self.unreadable(format!("it lies more than {MAX_DEPTH} folders deep")));
            }
        }
        // The path names a folder.
        Err(if self.root().is_some() { Refusal::NoRegularFile } else { self.outside() })
    }

    /// The index of the blend root that the current folder is in; the innermost if there are several.
    fn root(&self) -> Option<usize> {
        self.stack.iter().rev().find_map(|dir| dir.root)
    }

    /// The index of the blend root whose path is that of the current folder and `name`.
    fn root_named(&self, name: &OsStr) -> Option<usize> {
        let is_named = |root: &Root| {
            let path = &root.components;
            path.len() == self.names.len() + 1 && path.iter().zip(&self.names).all(|(one, other)| one == other)
        };
        self.roots.iter().position(|root| root.components.back().is_some_and(|last| last == name) && is_named(root))
    }

    fn top(&self) -> &Dir {
        // In bounds: the stack is never empty.
        &self.stack[self.stack.len() - 1]
    }

    fn enter(&mut self, name: &OsStr) -> Result<Step, Errno> {
        let fd = openat(&self.top().fd, name, FOLDER | OFlags::NOFOLLOW, Mode::empty())?;
        let mut dir = Dir::of(fd)?;
        dir.root = root_of(self.known, &dir);
        self.stack.push(dir);
        self.names.push(name.to_owned());
        Ok(Step::Entered)
    }

    fn open_file(&self, name: &OsStr) -> Result<Step, Errno> {
        let top = &self.top().fd;
        let stat = statat(top, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Symlink {
            return Err(Errno::LOOP);
        }
        let Some(root) = self.root() else { return Ok(Step::Outside) };
        // Opening a device may have side effects.
        if kind != FileType::RegularFile {
            return Ok(Step::NoRegularFile);
        }
        // NONBLOCK, because the file may have been replaced by a pipe meanwhile, and opening that must not block.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::from(openat(top, name, flags, Mode::empty())?);
        if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
            return Ok(Step::NoRegularFile);
        }
        let (id, is_mounted, links) = describe(&file)?;
        let found = OpenedFile { file, id, links, is_mounted };
        if self.never_sent.holds(&self.stack, &found).map_err(|error| errno(&error))? {
            return Ok(Step::Outside);
        }
        Ok(Step::Opened(found, root))
    }

    fn read_link(&self, name: &OsStr) -> Result<OsString, Errno> {
        readlinkat(&self.top().fd, name, Vec::new()).map(|target| OsString::from_vec(target.into_bytes()))
    }

    /// Continues at the target of a link. Returns the remaining path if it has to be resolved anew.
    fn follow(&mut self, target: &OsStr) -> Result<Option<UnresolvedPath>, Refusal> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(self.unreadable(format!("more than {MAX_LINKS} symbolic links are on its path")));
        }
        let mut rest = components(target);
        rest.append(&mut self.rest);
        if target.as_bytes().starts_with(b"/") {
            return Ok(Some(UnresolvedPath::from_slash(rest, self.links, self.roots)));
        }
        self.rest = rest;
        Ok(None)
    }

    /// The remaining path after a `..` that leads out of a blend root. It may lead into another one, or back.
    fn leave(self, index: usize) -> Result<UnresolvedPath, Refusal> {
        let real = std::fs::canonicalize(&self.roots[index].path).map_err(|error| Refusal::of(&error))?;
        let mut rest = components(real.as_os_str());
        // The canonical path has no links, so the parent folder is the path without its last component.
        rest.pop_back();
        rest.extend(self.rest);
        Ok(UnresolvedPath::from_slash(rest, self.links, self.roots))
    }

    fn refuse(&self, error: Errno, name: &OsStr) -> Refusal {
        let refusal = Refusal::of(&error.into());
        if matches!(refusal, Refusal::NotNow(_)) || self.root().is_some() {
            return match refusal {
                Refusal::Missing(hint) if error == Errno::NOENT => {
                    Refusal::Missing(self.other_form(name).unwrap_or(hint))
                }
                refusal => refusal,
            };
        }
        // Nothing about files outside the blend roots is revealed.
        self.outside()
    }

    /// The hint for a name that exists in another Unicode form.
    fn other_form(&self, name: &OsStr) -> Option<Hint> {
        let is_there = |other: &str| statat(&self.top().fd, other, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        error_text::other_forms(name).into_iter().find(|(other, _)| is_there(other)).map(|(_, why)| why.into())
    }

    fn unreadable(&self, why: String) -> Refusal {
        if self.root().is_some() { Refusal::Unreadable(why) } else { self.outside() }
    }

    fn outside(&self) -> Refusal {
        Refusal::Outside { by_link: self.links > 0 }
    }
}
