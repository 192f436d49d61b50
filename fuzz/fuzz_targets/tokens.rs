//! See `checks/tokens.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks/tokens.rs"]
mod tokens;

fuzz_target!(|data: &[u8]| tokens::check(data));
