//! See `checks/recovery.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks/recovery.rs"]
mod recovery;

fuzz_target!(|data: &[u8]| recovery::check(data));
