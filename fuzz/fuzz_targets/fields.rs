//! See `checks/fields.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks/fields.rs"]
mod fields;
#[path = "../checks/http.rs"]
mod http;

fuzz_target!(|data: &[u8]| fields::check(data));
