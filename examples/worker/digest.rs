//! SHA-256 of files.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

const CHUNK_BYTES: usize = 256 << 10;

/// The SHA-256 of a file. Reports how many bytes have been read, each time.
pub fn of_file(path: &Path, mut read: impl FnMut(usize)) -> io::Result<[u8; 32]> {
    let (mut file, mut chunk, mut hash) = (File::open(path)?, vec![0; CHUNK_BYTES], Sha256::new());
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hash.finalize().into()),
            len => {
                hash.update(&chunk[..len]);
                read(len);
            }
        }
    }
}

/// Hexadecimal digits, in lower case.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
