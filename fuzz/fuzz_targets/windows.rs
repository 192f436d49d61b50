//! See `checks/windows.rs`. The inputs for the targets `json` and `pickle` are good ones for this too.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks/windows.rs"]
mod windows;

fuzz_target!(|data: &[u8]| windows::check(data));
