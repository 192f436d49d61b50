//! See `checks/range.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks/http.rs"]
mod http;
#[path = "../checks/range.rs"]
mod range;

fuzz_target!(|data: &[u8]| range::check(data));
