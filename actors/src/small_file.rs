//! Reads files that are small unless somebody has made a mistake: settings, tokens, certificates and keys.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, fstatfs};

/// The most bytes that such a file may have: 10 times a token file with 20,000 tokens.
pub const MAX_BYTES: u64 = 16 << 20;

/// The file system of pipes without a name, as Linux's `magic.h` numbers it.
const PIPEFS_MAGIC: u64 = 0x5049_5045;

/// Why a file is not read. The text says what would help.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file system refuses.
    #[error("{0}; correct the path, or let this user read the file")]
    Io(#[from] io::Error),
    /// It has more than [`MAX_BYTES`], as `/dev/zero` has.
    #[error("it has more than {} MiB, so it is not the file that is meant here; correct the path", MAX_BYTES >> 20)]
    TooLong,
    /// It is a pipe with a name, whose writer may never come.
    #[error("it is a named pipe, which may have no writer; give a regular file, or <(COMMAND) in a shell")]
    NamedPipe,
    /// It is a terminal or another device, and has nothing to read now.
    #[error("it is a device that has nothing to read now; give a regular file")]
    Device,
    /// It is not UTF-8.
    #[error("it is not UTF-8 text; save it as UTF-8")]
    NotText,
}

/// Reads a whole file. Waits only for the writer of a pipe without a name, as `<(COMMAND)` in a shell makes it: named
/// pipes and devices could keep a program from starting for ever.
///
/// # Errors
/// See [`ReadError`].
pub fn read(path: &Path) -> Result<Vec<u8>, ReadError> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)?;
    // of the open file, because the path may have another one by now
    if file.metadata()?.file_type().is_fifo() {
        if fstatfs(&file).map_err(io::Error::from)?.f_type as u64 != PIPEFS_MAGIC {
            return Err(ReadError::NamedPipe);
        }
        let flags = fcntl_getfl(&file).map_err(io::Error::from)?;
        fcntl_setfl(&file, flags - OFlags::NONBLOCK).map_err(io::Error::from)?;
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => ReadError::Device,
        _ => ReadError::Io(error),
    })?;
    if bytes.len() as u64 > MAX_BYTES { Err(ReadError::TooLong) } else { Ok(bytes) }
}

/// Reads a whole file of UTF-8 text, as [`read`], without the byte order mark that some editors write.
///
/// # Errors
/// See [`ReadError`].
pub fn read_text(path: &Path) -> Result<String, ReadError> {
    let text = String::from_utf8(read(path)?).map_err(|_| ReadError::NotText)?;
    Ok(text.trim_start_matches('\u{feff}').to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::thread;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn a_file_without_an_end_is_read_up_to_the_bound() {
        let error = read(Path::new("/dev/zero")).expect_err("it has no end");
        assert!(matches!(error, ReadError::TooLong), "{error}");
    }

    #[test]
    fn a_file_of_just_the_bound_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let file = File::create(&path).expect("a file");
        file.set_len(MAX_BYTES).expect("sparse");
        assert_eq!(read(&path).expect("within the bound").len() as u64, MAX_BYTES);
        file.set_len(MAX_BYTES + 1).expect("sparse");
        assert!(read(&path).is_err());
    }

    /// The path of an open file.
    fn path_of(file: &impl AsRawFd) -> PathBuf {
        format!("/proc/self/fd/{}", file.as_raw_fd()).into()
    }

    #[test]
    fn a_named_pipe_is_refused_with_and_without_a_writer() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("pipe");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a named pipe");
        assert!(matches!(read(&path), Err(ReadError::NamedPipe)));
        let mut writer = OpenOptions::new().read(true).write(true).open(&path).expect("both ends");
        writer.write_all(b"a token").expect("room");
        assert!(matches!(read(&path), Err(ReadError::NamedPipe)));
        assert!(matches!(read(&path_of(&writer)), Err(ReadError::NamedPipe)), "it has a name all the same");
    }

    #[test]
    fn a_pipe_without_a_name_is_read_to_its_end_however_late_that_comes() {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let path = path_of(&reader);
        let reading = thread::spawn(move || read(&path));
        writer.write_all(b"one ").expect("a reader");
        // the first word is read, so the reader waits for more
        while rustix::io::ioctl_fionread(&reader).expect("a pipe") > 0 {
            thread::yield_now();
        }
        writer.write_all(b"two").expect("a reader");
        drop(writer);
        assert_eq!(reading.join().expect("no panic").expect("text"), b"one two");
    }

    #[test]
    fn what_is_no_file_is_refused_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(matches!(read(folder.path()), Err(ReadError::Io(_))));
        let socket = folder.path().join("socket");
        let _listener = UnixListener::bind(&socket).expect("a socket");
        assert!(matches!(read(&socket), Err(ReadError::Io(_))));
        assert_eq!(read(Path::new("/dev/null")).expect("no device with a writer"), b"");
        // the controlling side of a terminal at which nobody types
        assert!(matches!(read(Path::new("/dev/ptmx")), Err(ReadError::Device)));
    }

    #[test]
    fn text_is_utf_8() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        fs::write(&path, "größe").expect("writable");
        assert_eq!(read_text(&path).expect("text"), "größe");
        fs::write(&path, "\u{feff}\u{feff}größe").expect("writable");
        assert_eq!(read_text(&path).expect("text"), "größe");
        fs::write(&path, b"\xff").expect("writable");
        let error = read_text(&path).expect_err("no text");
        assert!(matches!(error, ReadError::NotText), "{error}");
    }
}
