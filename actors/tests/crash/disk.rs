//! A disk that records what is asked of it, fails when it is told to, and can be asked what a power failure at any
//! moment would have left.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rand::Rng;
use user_http_actors::store::disk::{Disk, SystemDisk};

/// What a disk writes at once, or not at all.
const SECTOR: usize = 512;

/// Number of a file; a file of the same name that is made later has another.
type FileId = usize;

#[derive(Clone, Debug)]
pub enum Event {
    CreateDirectory(String),
    Create(String, FileId),
    Write {
        file: FileId,
        offset: u64,
        bytes: Vec<u8>,
    },
    SetLen {
        file: FileId,
        len: u64,
    },
    Sync(FileId),
    /// A sync has failed: the kernel takes what was to be written for written. It can be read until the power fails.
    Forget(FileId),
    Remove(String),
    Rename(String, String),
    /// Its name; empty for the store's own.
    SyncDirectory(String),
}

/// Errors of the system.
pub const EIO: i32 = 5;
pub const EAGAIN: i32 = 11;
pub const ENOMEM: i32 = 12;
pub const EINVAL: i32 = 22;
pub const ENFILE: i32 = 23;
pub const EMFILE: i32 = 24;
pub const ENOSPC: i32 = 28;
pub const EDQUOT: i32 = 122;

/// Which operation fails, and how.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub kind: FaultKind,
    /// The number of the operation among those of its kind, from 1 on.
    pub at: usize,
    /// The error of the system.
    pub error: i32,
    /// Whether every later operation of the kind fails too: the process is killed, or the disk stays full.
    pub for_good: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    Any,
    Write,
    Sync,
    /// The sync of a directory alone.
    Directory,
    /// A sync, and the process is killed before it can do anything about it: everything after that fails too.
    LastSync,
}

#[derive(Debug, Default)]
struct State {
    events: Vec<Event>,
    by_inode: HashMap<u64, FileId>,
    files: usize,
    fault: Option<Fault>,
    capacity: Option<u64>,
    lengths: BTreeMap<FileId, u64>,
    seen: usize,
    hit: bool,
}

/// The disk. Its clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct RecordingDisk(Arc<Mutex<State>>);

impl RecordingDisk {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("no test has panicked inside")
    }

    /// Lets an operation fail, counted from now on; `None` makes the disk whole again.
    pub fn set_fault(&self, fault: Option<Fault>) {
        let mut state = self.state();
        (state.fault, state.seen, state.hit) = (fault, 0, false);
    }

    /// Sets the capacity of the disk in bytes.
    pub fn set_capacity(&self, bytes: u64) {
        self.state().capacity = Some(bytes);
    }

    /// How many bytes its files have.
    pub fn used(&self) -> u64 {
        self.state().lengths.values().sum()
    }

    /// How many bytes have been written to it.
    pub fn written(&self) -> u64 {
        let of = |event: &Event| if let Event::Write { bytes, .. } = event { bytes.len() as u64 } else { 0 };
        self.state().events.iter().map(of).sum()
    }

    /// Takes space for a file of this length, if there is enough.
    fn take_room(&self, file: FileId, len: u64) -> io::Result<()> {
        let mut state = self.state();
        let others: u64 = state.lengths.iter().filter(|(other, _)| **other != file).map(|(_, len)| len).sum();
        if state.capacity.is_some_and(|capacity| others + len > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.lengths.insert(file, len);
        Ok(())
    }

    /// Whether this is the operation that must fail.
    pub fn was_hit(&self) -> bool {
        self.state().hit
    }

    /// How many operations have been recorded.
    pub fn len(&self) -> usize {
        self.state().events.len()
    }

    /// All of them.
    pub fn events(&self) -> Vec<Event> {
        self.state().events.clone()
    }

    fn check(&self, kind: FaultKind) -> io::Result<()> {
        let mut state = self.state();
        let Some(fault) = state.fault else { return Ok(()) };
        let concerns = match fault.kind {
            FaultKind::Any => true,
            FaultKind::LastSync => kind == FaultKind::Sync || state.hit,
            other => other == kind,
        };
        if !concerns {
            return Ok(());
        }
        state.seen += 1;
        if state.seen == fault.at || (state.hit && (fault.for_good || fault.kind == FaultKind::LastSync)) {
            state.hit = true;
            return Err(io::Error::from_raw_os_error(fault.error));
        }
        Ok(())
    }

    fn file_id(&self, file: &File) -> FileId {
        let inode = file.metadata().expect("metadata").ino();
        self.state().by_inode[&inode]
    }

    fn record(&self, event: Event) {
        self.state().events.push(event);
    }
}

/// The only directory in that of a store.
pub const BODIES: &str = "bodies";

/// The path of a file in the directory of its store.
fn name(path: &Path) -> String {
    let last = |path: &Path| path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
    match path.parent().is_some_and(|parent| parent.ends_with(BODIES)) {
        true => format!("{BODIES}/{}", last(path)),
        false => last(path),
    }
}

/// The directory of the file with this name, as [`Event::SyncDirectory`] has it.
fn directory_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(directory, _)| directory)
}

impl Disk for RecordingDisk {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.check(FaultKind::Any)?;
        SystemDisk.create_directory(path)?;
        self.record(Event::CreateDirectory(name(path)));
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        self.check(FaultKind::Any)?;
        // A truncated file would keep its inode, and another name is another file here.
        if let Ok(earlier) = fs::metadata(path) {
            fs::remove_file(path)?;
            let mut state = self.state();
            let file = state.by_inode[&earlier.ino()];
            state.lengths.remove(&file);
        }
        let file = SystemDisk.create(path)?;
        let mut state = self.state();
        let id = state.files;
        state.files += 1;
        state.by_inode.insert(file.metadata()?.ino(), id);
        state.events.push(Event::Create(name(path), id));
        Ok(file)
    }

    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        if let Err(error) = self.check(FaultKind::Write) {
            // a part of it has been written before
            let part = &bytes[..bytes.len() / 2];
            if !part.is_empty() && self.check(FaultKind::Any).is_ok() {
                SystemDisk.write(file, part, offset)?;
                self.record(Event::Write { file: self.file_id(file), offset, bytes: part.to_vec() });
            }
            return Err(error);
        }
        let len = file.metadata()?.len().max(offset + bytes.len() as u64);
        self.take_room(self.file_id(file), len)?;
        SystemDisk.write(file, bytes, offset)?;
        self.record(Event::Write { file: self.file_id(file), offset, bytes: bytes.to_vec() });
        Ok(())
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        self.check(FaultKind::Any)?;
        self.take_room(self.file_id(file), len)?;
        SystemDisk.set_len(file, len)?;
        self.record(Event::SetLen { file: self.file_id(file), len });
        Ok(())
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        let synced = self.check(FaultKind::Sync);
        let file = self.file_id(file);
        // If everything fails, the process was killed, and no kernel has reported anything.
        let is_kill = self.state().fault.is_some_and(|fault| fault.kind == FaultKind::Any && fault.for_good);
        match &synced {
            Ok(()) => self.record(Event::Sync(file)),
            Err(_) if is_kill => {}
            Err(_) => self.record(Event::Forget(file)),
        }
        synced
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.check(FaultKind::Any)?;
        let inode = fs::metadata(path)?.ino();
        SystemDisk.remove(path)?;
        let mut state = self.state();
        let file = state.by_inode[&inode];
        state.lengths.remove(&file);
        state.events.push(Event::Remove(name(path)));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check(FaultKind::Any)?;
        let replaced = fs::metadata(to).ok().map(|replaced| replaced.ino());
        SystemDisk.rename(from, to)?;
        let mut state = self.state();
        if let Some(file) = replaced.and_then(|inode| state.by_inode.get(&inode).copied()) {
            state.lengths.remove(&file);
        }
        state.events.push(Event::Rename(name(from), name(to)));
        Ok(())
    }

    fn check_space(&self, file: &File, bytes: u64) -> io::Result<()> {
        self.check(FaultKind::Any)?;
        self.take_room(self.file_id(file), bytes)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.check(FaultKind::Directory)?;
        self.check(FaultKind::Sync)?;
        let directory = if path.ends_with(BODIES) { BODIES } else { "" };
        self.record(Event::SyncDirectory(directory.to_owned()));
        Ok(())
    }
}

/// How much of what was not synced a power failure leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsynced {
    Nothing,
    Some,
}

/// Makes `directory` what it would be after a power failure right after the first `count` events.
pub fn rebuild(events: &[Event], unsynced: Unsynced, random: &mut impl Rng, directory: &Path) {
    let others: BTreeSet<FileId> = events
        .iter()
        .filter_map(|event| match event {
            Event::Create(name, file) if ["LOCK", "RESERVE", "ROOM"].contains(&name.as_str()) => Some(*file),
            _ => None,
        })
        .collect();
    let mut contents: BTreeMap<FileId, Vec<u8>> = BTreeMap::new();
    let mut pending: BTreeMap<FileId, Vec<&Event>> = BTreeMap::new();
    let mut names = Names::default();
    let mut pending_names: Vec<&Event> = Vec::new();
    for event in events {
        match event {
            // what a log keeps beside its segments has no content that matters
            Event::Write { file, .. } if others.contains(file) => {}
            Event::CreateDirectory(_) | Event::Create(..) | Event::Remove(_) | Event::Rename(..) => {
                pending_names.push(event);
            }
            Event::SyncDirectory(directory) => pending_names.retain(|event| {
                let is_synced = event.directory() == directory;
                if is_synced {
                    names.apply(event);
                }
                !is_synced
            }),
            Event::Write { file, .. } | Event::SetLen { file, .. } => pending.entry(*file).or_default().push(event),
            Event::Forget(file) => {
                let is_write = |event: &&Event| matches!(event, Event::Write { .. });
                pending.entry(*file).or_default().retain(|event| !is_write(event));
            }
            Event::Sync(file) => {
                let content = contents.entry(*file).or_default();
                for event in pending.remove(file).unwrap_or_default() {
                    change(content, event, &mut |_| true);
                }
            }
        }
    }
    let mut survives = |_: usize| match unsynced {
        Unsynced::Nothing => false,
        Unsynced::Some => random.random_bool(0.5),
    };
    for event in pending_names {
        if survives(0) {
            names.apply(event);
        }
    }
    for (file, events) in pending {
        let content = contents.entry(file).or_default();
        for event in events {
            change(content, event, &mut survives);
        }
    }
    let Names { directories, mut files } = names;
    directories.iter().for_each(|name| fs::create_dir(directory.join(name)).expect("writable"));
    files.retain(|name, _| directory_of(name).is_empty() || directories.contains(directory_of(name)));
    let kept: BTreeSet<FileId> = files.values().copied().collect();
    contents.retain(|file, _| kept.contains(file));
    for (name, file) in files {
        fs::write(directory.join(name), contents.get(&file).map_or(&[][..], Vec::as_slice)).expect("writable");
    }
}

impl Event {
    /// The directory whose names it changes.
    fn directory(&self) -> &str {
        match self {
            Self::CreateDirectory(name) | Self::Create(name, _) | Self::Remove(name) | Self::Rename(name, _) => {
                directory_of(name)
            }
            _ => unreachable!("{self:?} changes no names"),
        }
    }
}

/// The names that a power failure leaves.
#[derive(Default)]
struct Names<'a> {
    directories: BTreeSet<&'a str>,
    files: BTreeMap<&'a str, FileId>,
}

impl<'a> Names<'a> {
    fn apply(&mut self, event: &'a Event) {
        match event {
            Event::CreateDirectory(name) => drop(self.directories.insert(name)),
            Event::Create(name, file) => drop(self.files.insert(name, *file)),
            Event::Remove(name) => drop(self.files.remove(name.as_str())),
            Event::Rename(from, to) => {
                if let Some(file) = self.files.remove(from.as_str()) {
                    self.files.insert(to, file);
                }
            }
            _ => unreachable!("{event:?} changes no names"),
        }
    }
}

/// Applies a change as far as it survives, sector by sector.
fn change(content: &mut Vec<u8>, event: &Event, survives: &mut impl FnMut(usize) -> bool) {
    match event {
        Event::Write { offset, bytes, .. } => {
            let mut at = 0;
            while at < bytes.len() {
                let offset = *offset as usize + at;
                let len = (SECTOR - offset % SECTOR).min(bytes.len() - at);
                if survives(offset) {
                    content.resize(content.len().max(offset + len), 0);
                    content[offset..offset + len].copy_from_slice(&bytes[at..at + len]);
                }
                at += len;
            }
        }
        Event::SetLen { len, .. } => {
            if survives(0) {
                content.resize(*len as usize, 0);
            }
        }
        _ => unreachable!("{event:?} changes no content"),
    }
}
