//! See `checks/preferences.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks/http.rs"]
mod http;
#[path = "../checks/preferences.rs"]
mod preferences;

fuzz_target!(|data: &[u8]| preferences::check(data));
