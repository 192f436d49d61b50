//! See `checks/pickle.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks/pickle.rs"]
mod pickle;

fuzz_target!(|data: &[u8]| pickle::check(data));
