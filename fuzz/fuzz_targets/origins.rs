//! See `checks/origins.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks/origins.rs"]
mod origins;

fuzz_target!(|data: &[u8]| origins::check(data));
