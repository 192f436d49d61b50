//! See `checks/digests.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks/digests.rs"]
mod digests;
#[path = "../checks/http.rs"]
mod http;

fuzz_target!(|data: &[u8]| digests::check(data));
