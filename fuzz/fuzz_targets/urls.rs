//! See `checks/urls.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks/urls.rs"]
mod urls;

fuzz_target!(|data: &[u8]| urls::check(data));
