//! The worker's side of HTTP: what is worth another attempt, and the patience for it.

use std::io::Read;
use std::time::{Duration, Instant};

use ureq::config::ConfigBuilder;
use ureq::http::{Response, StatusCode, header};
use ureq::typestate::AgentScope;
use ureq::{Agent, Body};

use crate::http::Access;

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What is read of an answer that is an error.
const ERROR_BODY_BYTES: u64 = 64 << 10;

pub fn config(timeout: Duration) -> ConfigBuilder<AgentScope> {
    Agent::config_builder()
        .timeout_connect(Some(timeout))
        .timeout_per_read(Some(timeout))
        .timeout_per_write(Some(timeout))
        .user_agent("render-worker")
}

/// Whether the same request may be answered otherwise later: the server says when, or its status says so. Whoever is
/// refused for who it is will not be another by then.
pub fn is_temporary(response: &Response<Body>) -> bool {
    match response.status().as_u16() {
        401 | 403 => false,
        408 | 429 | 500 | 502 | 503 | 504 => true,
        _ => response.headers().contains_key(header::RETRY_AFTER),
    }
}

/// A refusal in words.
pub fn refusal(access: &Access, status: StatusCode, text: &str) -> String {
    let why = access.refusal(status, text);
    // A token may be bound to a user.
    if status == StatusCode::FORBIDDEN { why + ", or the token's user with --user-id ID" } else { why }
}

pub fn retry_after(response: &Response<Body>) -> Option<Duration> {
    let seconds = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

pub fn error_body(response: &mut Response<Body>) -> Vec<u8> {
    let mut body = Vec::new();
    // What arrived before a failure is all there is to show.
    let _ = response.body_mut().as_reader().take(ERROR_BODY_BYTES).read_to_end(&mut body);
    body
}

/// Bounds the attempts by the time in which nothing moved, so that a slow line may take as long as it needs.
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

    /// How long to wait before the next attempt: as the server asked, or twice as long as the last time.
    /// None where that would be beyond the limit.
    pub fn pause(&mut self, asked: Option<Duration>) -> Option<Duration> {
        let pause = asked.unwrap_or(self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        (self.since.elapsed() + pause <= self.limit).then_some(pause)
    }
}
