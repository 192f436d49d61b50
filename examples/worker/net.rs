//! HTTP retries: which failures to retry, and for how long.

use std::io::Read;
use std::time::{Duration, Instant};

use ureq::config::ConfigBuilder;
use ureq::http::{Response, StatusCode, header};
use ureq::typestate::AgentScope;
use ureq::{Agent, Body};

use crate::http::Access;

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How much of an error's body is read.
const ERROR_BODY_BYTES: u64 = 64 << 10;

pub fn config(timeout: Duration) -> ConfigBuilder<AgentScope> {
    Agent::config_builder()
        .timeout_connect(Some(timeout))
        .timeout_per_read(Some(timeout))
        .timeout_per_write(Some(timeout))
        .user_agent("render-worker")
}

/// Whether a retry may succeed, according to `Retry-After` or the status. A refused token will be refused again.
pub fn is_temporary(response: &Response<Body>) -> bool {
    match response.status().as_u16() {
        401 | 403 => false,
        408 | 429 | 500 | 502 | 503 | 504 => true,
        _ => response.headers().contains_key(header::RETRY_AFTER),
    }
}

/// The text of a refusal.
pub fn refusal(access: &Access, status: StatusCode, text: &str) -> String {
    let why = access.refusal(status, text);
    // The token may be bound to a user.
    if status == StatusCode::FORBIDDEN { why + ", or the token's user with --user-id ID" } else { why }
}

pub fn retry_after(response: &Response<Body>) -> Option<Duration> {
    let seconds = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

pub fn error_body(response: &mut Response<Body>) -> Vec<u8> {
    let mut body = Vec::new();
    // On a failure, show what has arrived.
    let _ = response.body_mut().as_reader().take(ERROR_BODY_BYTES).read_to_end(&mut body);
    body
}

/// Limits retries by the time without progress, so that a slow connection may take as long as it needs.
pub struct Patience {
    limit: Duration,
    since: Instant,
    pause: Duration,
}

impl Patience {
    pub fn new(limit: Duration) -> Self {
        Self { limit, since: Instant::now(), pause: FIRST_PAUSE }
    }

    pub fn renew(&mut self) {
        *self = Self::new(self.limit);
    }

    /// The pause before the next attempt: what the server asks for, or twice the last one. `None` if it would exceed
    /// the limit.
    pub fn pause(&mut self, asked: Option<Duration>) -> Option<Duration> {
        let pause = asked.unwrap_or(self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        (self.since.elapsed() + pause <= self.limit).then_some(pause)
    }
}
