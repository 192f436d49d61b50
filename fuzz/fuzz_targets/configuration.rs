//! See `checks/configuration.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks/configuration.rs"]
mod configuration;

fuzz_target!(|data: &[u8]| configuration::check(data));
