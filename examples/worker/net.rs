//! The worker's side of HTTP: one agent, and the patience to try again.

use std::io::Read;
use std::time::{Duration, Instant};

use ureq::http::{Response, header};
use ureq::{Agent, Body};

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What is read of an answer that is an error.
const ERROR_BODY_BYTES: u64 = 64 << 10;

pub fn agent(timeout: Duration) -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(timeout))
        .timeout_per_read(Some(timeout))
        .timeout_per_write(Some(timeout))
        .user_agent("render-worker")
        .build()
        .into()
}

/// Whether the same request may be answered otherwise later: the server says when, or its status says so.
pub fn is_temporary(response: &Response<Body>) -> bool {
    response.headers().contains_key(header::RETRY_AFTER)
        || matches!(response.status().as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
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
