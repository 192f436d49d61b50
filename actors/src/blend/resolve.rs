//! The way from a path to an open file, one component after the other.
//!
//! Each folder is opened in the one before it, without following links; links are read and followed here. So the
//! folders that are held open say where a file lies, whatever is renamed or linked anew meanwhile: nothing is checked
//! by name first and opened by name then.

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

/// How many symbolic links one path may lead through, as in the kernel.
const MAX_LINKS: u32 = 40;

/// How many folders deep a file may lie: each is a descriptor while its path is walked along.
const MAX_DEPTH: usize = 100;

const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// What tells a file from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    pub device: u64,
    pub inode: u64,
}

/// A folder that is held open.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    pub id: FileId,
    /// Whether something is mounted here, so that what lies in it may have another name elsewhere.
    pub is_mounted: bool,
    /// The blend root that this is.
    root: Option<usize>,
}

/// The file at the end of the way.
#[derive(Debug)]
pub struct OpenedFile {
    pub file: File,
    pub id: FileId,
    pub links: u32,
    pub is_mounted: bool,
}

/// Where a way begins: each place has a [`IoPool`](super::io_pool::IoPool) of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At a blend root.
    Root(usize),
    /// At `/`. Whether it leads into a blend root turns out on the way.
    Slash,
}

/// What is left of the way to a file.
#[derive(Clone, Debug)]
pub struct UnresolvedPath {
    pub start: Start,
    rest: VecDeque<OsString>,
    links: u32,
}

/// How far a [`UnresolvedPath`] has led.
#[derive(Debug)]
pub enum Resolved {
    /// To a regular file inside this blend root.
    File(OpenedFile, usize),
    /// To a link or a `..` that leads out of where it began, or into another blend root.
    Elsewhere(UnresolvedPath),
}

/// Why a way leads to no file.
#[derive(Debug)]
pub enum Refusal {
    Outside { by_link: bool },
    Missing(Hint),
    NoRegularFile,
    Unreadable(String),
    NotNow(String),
}

impl Refusal {
    /// What an error of the system means. What there is not enough of now may be there again at the next request.
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
    /// The way that a path of a message names.
    pub fn of(path: &Path, roots: &[Root]) -> Self {
        let rest = components(path.as_os_str());
        if path.is_absolute() {
            return Self::from_slash(rest, 0, roots);
        }
        let start = if roots.is_empty() { Start::Slash } else { Start::Root(0) };
        Self { start, rest, links: 0 }
    }

    /// An absolute path. Where it begins with the name of a blend root it begins there, so that nothing waits for what
    /// the folders above are mounted from.
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

    /// Goes along as far as possible. `known` are the blend roots, held open, where the way starts at `/`; none of them
    /// is recognised that is not among them. Blocks on the file system.
    pub fn walk(self, roots: &[Root], known: &[Option<Dir>], never_sent: &NeverSent) -> Result<Resolved, Refusal> {
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

/// The components of a path. A final `/` counts as `.`: only a folder has such a name.
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
    /// Opens a folder by its path, as the system finds it.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self::of(open(path, FOLDER, Mode::empty())?)?)
    }

    fn of(fd: OwnedFd) -> Result<Self, Errno> {
        let (id, is_mounted, _) = describe(&fd)?;
        Ok(Self { fd, id, is_mounted, root: None })
    }

    /// Whether this folder is `other` or lies below it.
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

/// What a file is, whether something is mounted on it, and how many links it has.
fn describe(fd: impl AsFd) -> Result<(FileId, bool, u32), Errno> {
    let stat = statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::INO | StatxFlags::NLINK)?;
    // Linux before 5.8 cannot tell
    let told = stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT);
    let is_mounted = !told || stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    let device = makedev(stat.stx_dev_major, stat.stx_dev_minor);
    Ok((FileId { device, inode: stat.stx_ino }, is_mounted, stat.stx_nlink))
}

/// Which of the blend roots a folder is.
fn root_of(known: &[Option<Dir>], dir: &Dir) -> Option<usize> {
    known.iter().position(|root| root.as_ref().is_some_and(|root| root.id == dir.id))
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

/// A way that is being walked along.
struct Resolver<'a> {
    roots: &'a [Root],
    never_sent: &'a NeverSent,
    start: Start,
    known: &'a [Option<Dir>],
    /// The folders from the start to where the way has led, never empty.
    stack: Vec<Dir>,
    /// The path of the last of them, as far as its names tell.
    names: Vec<OsString>,
    rest: VecDeque<OsString>,
    links: u32,
}

/// What one more component has led to.
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
                // it may hang, and then holds its own threads and not those of the folder that it is in
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
                        if let Some(way) = self.follow(&target)? {
                            return Ok(Resolved::Elsewhere(way));
                        }
                    }
                    // a file where a folder should be
                    Err(Errno::INVAL) => return Err(self.refuse(Errno::NOTDIR, &name)),
                    Err(error) => return Err(self.refuse(error, &name)),
                },
                Err(error) => return Err(self.refuse(error, &name)),
            }
            if self.stack.len() > MAX_DEPTH {
                return Err(self.unreadable(format!("it lies more than {MAX_DEPTH} folders deep")));
            }
        }
        // the path is that of a folder
        Err(if self.root().is_some() { Refusal::NoRegularFile } else { self.outside() })
    }

    /// The blend root in which the way has led so far, the innermost of several.
    fn root(&self) -> Option<usize> {
        self.stack.iter().rev().find_map(|dir| dir.root)
    }

    /// The blend root whose path is that of the last folder and `name`.
    fn root_named(&self, name: &OsStr) -> Option<usize> {
        let is_named = |root: &Root| {
            let path = &root.components;
            path.len() == self.names.len() + 1 && path.iter().zip(&self.names).all(|(one, other)| one == other)
        };
        self.roots.iter().position(|root| root.components.back().is_some_and(|last| last == name) && is_named(root))
    }

    fn top(&self) -> &Dir {
        // never empty
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
        // a device might do something when it is opened
        if kind != FileType::RegularFile {
            return Ok(Step::NoRegularFile);
        }
        // a pipe may have taken the file's place meanwhile: it must not be waited for
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

    /// Goes on where a link points to; from elsewhere where it leads out of where this way began.
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

    /// Goes on from `/`, or from a blend root on the way, where `..` leads out of a blend root: it may lead into
    /// another, or back.
    fn leave(self, index: usize) -> Result<UnresolvedPath, Refusal> {
        let real = std::fs::canonicalize(&self.roots[index].path).map_err(|error| Refusal::of(&error))?;
        let mut rest = components(real.as_os_str());
        // no link is in it: the folder above is the one before
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
        // what there is elsewhere is nobody's business
        self.outside()
    }

    /// What to say where the name is there in another Unicode form.
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
