//! HTTP requests and their retries: which failures to retry, and for how long.

use std::error::Error;
use std::fmt::{self, Display, Formatter};
use std::io::{Cursor, Read};
use std::thread;
use std::time::{Duration, Instant};

use ureq::config::ConfigBuilder;
use ureq::http::{Response, StatusCode, header};
use ureq::typestate::AgentScope;
use ureq::{Agent, Body};

use crate::Result;
use crate::http::{self, Access};
use crate::pickle::Document;
use crate::ui::Ui;

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How much of an error's body is read.
const ERROR_BODY_BYTES: u64 = 64 << 10;

/// What all requests have in common.
pub struct Client<'a> {
    pub agent: &'a Agent,
    pub access: &'a Access,
    pub ui: &'a Ui,
    /// How long a request, retries included, may make no progress.
    pub patience: Duration,
}

/// How one attempt ended.
pub enum Attempt<T> {
    Done(T),
    /// Another attempt may succeed. `moved`: there was progress.
    Broken {
        why: String,
        after: Option<Duration>,
        moved: bool,
    },
    /// Another attempt would fail in the same way.
    Refused(Refused),
}

impl<T> Attempt<T> {
    /// Goes on with what is done.
    pub fn then<U>(self, next: impl FnOnce(T) -> Result<Attempt<U>>) -> Result<Attempt<U>> {
        Ok(match self {
            Self::Done(done) => next(done)?,
            Self::Broken { why, after, moved } => Attempt::Broken { why, after, moved },
            Self::Refused(refused) => Attempt::Refused(refused),
        })
    }
}

/// The server's final refusal of a request.
#[derive(Debug)]
pub struct Refused {
    /// `None` if there is no answer.
    pub status: Option<StatusCode>,
    pub why: String,
}

impl Display for Refused {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl Error for Refused {}

impl Client<'_> {
    /// Repeats attempts, with pauses, until one is final.
    pub fn retry<T>(
        &self,
        what: &str,
        mut attempt: impl FnMut() -> Result<Attempt<T>>,
    ) -> Result<std::result::Result<T, Refused>> {
        let mut patience = Patience::new(self.patience);
        loop {
            match attempt()? {
                Attempt::Done(done) => return Ok(Ok(done)),
                Attempt::Refused(Refused { status, why }) => {
                    return Ok(Err(Refused { status, why: format!("{what}: {why}") }));
                }
                Attempt::Broken { why, after, moved } => {
                    if moved {
                        patience.renew();
                    }
                    let Some(pause) = patience.pause(after) else {
                        return Err(format!("{what}: gave up: {why}").into());
                    };
                    self.ui.say(format!("{what}: {why}; trying again in {pause:?}"));
                    thread::sleep(pause);
                }
            }
        }
    }

    /// What an answer means. `Done` has a status of success.
    pub fn judge(&self, answer: std::result::Result<Response<Body>, ureq::Error>) -> Attempt<Response<Body>> {
        let mut response = match answer {
            Ok(response) => response,
            Err(error) => {
                let why = self.access.explain(&error);
                return match http::is_final(&error) {
                    true => Attempt::Refused(Refused { status: None, why }),
                    false => Attempt::Broken { why, after: None, moved: false },
                };
            }
        };
        let status = response.status();
        if status.is_success() {
            return Attempt::Done(response);
        }
        let (temporary, after) = (is_temporary(&response), retry_after(&response));
        let why = refusal(self.access, status, &error_text(&error_body(&mut response)));
        if temporary {
            Attempt::Broken { why, after, moved: false }
        } else {
            Attempt::Refused(Refused { status: Some(status), why: format!("refused: {why}") })
        }
    }
}

pub fn config(timeout: Duration) -> ConfigBuilder<AgentScope> {
    Agent::config_builder()
        .timeout_connect(Some(timeout))
        .timeout_per_read(Some(timeout))
        .timeout_per_write(Some(timeout))
        .user_agent("render-worker")
}

/// Whether a retry may succeed, according to `Retry-After` or the status. A refused token will be refused again.
fn is_temporary(response: &Response<Body>) -> bool {
    match response.status().as_u16() {
        401 | 403 => false,
        408 | 429 | 500 | 502 | 503 | 504 => true,
        _ => response.headers().contains_key(header::RETRY_AFTER),
    }
}

/// The text of a refusal.
fn refusal(access: &Access, status: StatusCode, text: &str) -> String {
    let why = access.refusal(status, text);
    // The token may be bound to a user.
    if status == StatusCode::FORBIDDEN { why + ", or the token's user with --user-id ID" } else { why }
}

fn retry_after(response: &Response<Body>) -> Option<Duration> {
    let seconds = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

fn error_body(response: &mut Response<Body>) -> Vec<u8> {
    let mut body = Vec::new();
    // On a failure, show what has arrived.
    let _ = response.body_mut().as_reader().take(ERROR_BODY_BYTES).read_to_end(&mut body);
    body
}

/// The text of an error: `{"message": text}` as a pickle, `{"STATUS": "FAILED", "ERROR": text}`, or any body if the
/// answer is a proxy's.
fn error_text(body: &[u8]) -> String {
    let document = Document::read(Cursor::new(body)).ok();
    let message = document.as_ref().and_then(|document| document.root().get("message")?.as_str());
    let json = serde_json::from_slice::<serde_json::Value>(body).unwrap_or_default();
    match message.or(json["ERROR"].as_str()) {
        Some(text) => text.to_owned(),
        None => String::from_utf8_lossy(body).chars().take(200).collect::<String>().trim().to_owned(),
    }
}

/// Limits retries by the time without progress, so that a slow connection may take as long as it needs.
struct Patience {
    limit: Duration,
    since: Instant,
    pause: Duration,
}

impl Patience {
    fn new(limit: Duration) -> Self {
        Self { limit, since: Instant::now(), pause: FIRST_PAUSE }
    }

    fn renew(&mut self) {
        *self = Self::new(self.limit);
    }

    /// The pause before the next attempt: what the server asks for, or twice the last one. `None` if it would exceed
    /// the limit.
    fn pause(&mut self, asked: Option<Duration>) -> Option<Duration> {
        let pause = asked.unwrap_or(self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        (self.since.elapsed() + pause <= self.limit).then_some(pause)
    }
}
