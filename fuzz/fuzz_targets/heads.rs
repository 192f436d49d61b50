//! See `checks/heads.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks/heads.rs"]
mod heads;
#[path = "../checks/http.rs"]
mod http;

fuzz_target!(|data: &[u8]| heads::check(data));
