//! Ports for servers that are started later, or again.
//!
//! Included by path, so it needs nothing but the standard library.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher;
use std::net::TcpListener;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};

/// Those of Linux where the system has chosen its own range, from 32768.
const PORTS: Range<u16> = 10_000..32_768;

/// A port on which nobody listens, and which the system gives to no other program by itself: neither to a listener on
/// port 0 nor to an outgoing connection. So it is still free when the server starts, and when it starts again.
///
/// # Panics
/// Where no port is left.
pub fn free_port() -> u16 {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    static FIRST: OnceLock<u16> = OnceLock::new();
    let ports = ports();
    let count = ports.end - ports.start;
    // each program begins elsewhere
    let first = *FIRST.get_or_init(|| (RandomState::new().hash_one(()) % u64::from(count)) as u16);
    for _ in 0..count {
        let step = TRIED.fetch_add(1, Ordering::Relaxed) % count;
        let port = ports.start + ((u32::from(first) + u32::from(step)) % u32::from(count)) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port in {ports:?}");
}

/// Below the range that the system chooses from, wherever that begins.
fn ports() -> Range<u16> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    match range.split_whitespace().next().and_then(|first| first.parse::<u16>().ok()) {
        Some(first) if first > PORTS.start + 1_000 => PORTS.start..first.min(PORTS.end),
        _ => PORTS,
    }
}
