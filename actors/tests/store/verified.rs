//! Stored bodies are compared with their checksums before they are sent.
//!
//! `TEST_VERIFIED_MIB` sets the size of the body whose comparison is timed.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use actix::System;
use bytes::Bytes;
use tokio::sync::Semaphore;
use user_http_actors::payload::Payload;
use user_http_actors::store::log::LogStore;
use user_http_actors::store::{Change, Durable, Put, Store};

use crate::store::{open, pattern, segments};
use crate::support::in_file::{body_files, in_file};

/// A stored body, the file that it is in, and where it begins there.
fn stored(directory: &Path, body: &[u8], is_in_file: bool) -> (LogStore, Payload, PathBuf, u64) {
    let (mut store, _) = open(directory);
    let payload = match is_in_file {
        true => in_file(store.bodies(), body).expect("space"),
        false => Payload::from_parts(vec![Bytes::copy_from_slice(body)]),
    };
    let put = Change::Put(Put { seq: 1, meta: Bytes::from_static(b"meta"), body: payload });
    let payload = store.commit(&[put], Durable::Now).expect("space").remove(0);
    let (path, at) = match is_in_file {
        true => (body_files(directory).remove(0), 0),
        false => (segments(directory).remove(0), 28 + 32 + 4),
    };
    (store, payload, path, at)
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).and_then(|()| file.write_all_at(&[byte[0] ^ 0x10], at)).expect("writable");
}

/// The body, compared in each way that there is.
fn compared(payload: &Payload) -> Vec<io::Result<Bytes>> {
    let permits = Arc::new(Semaphore::new(1));
    let verified = System::new().block_on(payload.verified(&permits)).and_then(|payload| payload.read_all());
    vec![verified, payload.read_verified(), payload.verify().and_then(|()| payload.read_all())]
}

#[test]
fn a_body_of_which_a_bit_has_changed_on_the_disk_is_refused_and_its_file_named() {
    for (len, is_in_file) in [(100, false), (64 << 10, false), (200_000, false), (3_000_000, false), (3_000_000, true)]
    {
        let directory = tempfile::tempdir().expect("a directory");
        let body = pattern(1, len);
        let (_store, payload, path, start) = stored(directory.path(), &body, is_in_file);
        for at in [0, len as u64 / 2, len as u64 - 1] {
            flip(&path, start + at);
            for compared in compared(&payload) {
                let error = compared.expect_err("it has changed");
                assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
                assert!(error.to_string().contains(&path.display().to_string()), "{error}");
            }
            flip(&path, start + at);
        }
        for compared in compared(&payload) {
            assert!(compared.expect("it is sound") == body, "{len}");
        }
    }
}

#[test]
fn a_body_file_is_compared_once_and_then_read_as_often_as_needed() {
    let mebibytes: usize = std::env::var("TEST_VERIFIED_MIB").map_or(4, |count| count.parse().expect("a number"));
    let directory = tempfile::tempdir().expect("a directory");
    let (_store, payload, path, _) = stored(directory.path(), &pattern(1, mebibytes << 20), true);
    let started = Instant::now();
    payload.verify().expect("it is sound");
    let first = started.elapsed();
    let mut read = vec![0; 256 << 10];
    let started = Instant::now();
    let file = fs::File::open(&path).expect("a file");
    let mut at = 0;
    while let Ok(part @ 1..) = file.read_at(&mut read, at) {
        at += part as u64;
    }
    println!("{mebibytes} MiB: compared in {first:?}, read alone in {:?}", started.elapsed());
    flip(&path, 20);
    payload.verify().expect("it was compared before");
}
