//! Reads files that are small unless somebody has made a mistake: settings, tokens, certificates and keys.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The most bytes that such a file may have: 10 times a token file with 20,000 tokens.
pub const MAX_BYTES: u64 = 16 << 20;

/// Reads a whole file, which may be a pipe.
///
/// # Errors
/// The file cannot be read, or has more than [`MAX_BYTES`], as `/dev/zero` has.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has more than {} MiB, so it is not the file that is meant here", MAX_BYTES >> 20),
        ));
    }
    Ok(bytes)
}

/// Reads a whole file of UTF-8 text, as [`read`].
///
/// # Errors
/// As [`read`], or the file is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_without_an_end_is_read_up_to_the_bound() {
        let error = read(Path::new("/dev/zero")).expect_err("it has no end");
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
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

    #[test]
    fn text_is_utf_8() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        fs::write(&path, "größe").expect("writable");
        assert_eq!(read_text(&path).expect("text"), "größe");
        fs::write(&path, b"\xff").expect("writable");
        assert_eq!(read_text(&path).expect_err("no text").kind(), io::ErrorKind::InvalidData);
    }
}
