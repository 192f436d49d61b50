//! Posts messages until the server has received them.

use std::io::{self, Read};
use std::thread;
use std::time::Duration;

use serde::{Serialize, Serializer};
use ureq::http::{StatusCode, header};
use ureq::{Agent, SendBody};
use url::Url;

use crate::Result;
use crate::http::{self, Access};
use crate::net::{self, Patience};
use crate::ui::{Transfer, Ui};

pub struct Reporter<'a> {
    pub agent: &'a Agent,
    pub access: &'a Access,
    pub ui: &'a Ui,
    pub server: &'a Url,
    pub user_id: &'a str,
    pub patience: Duration,
}

#[derive(Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
struct UserMessage<'a, D> {
    user_id: &'a str,
    main_data: MainData<D>,
}

#[derive(Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
struct MainData<D> {
    r#type: &'static str,
    data: D,
}

#[derive(Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
struct FrameRendered<'a> {
    frame_number: u32,
    #[serde(serialize_with = "as_bytes")]
    image: &'a [u8],
    file_name: &'a str,
    job: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
struct RenderCompleted<'a> {
    job: &'a str,
    frames: &'a [u32],
}

/// By default serde serializes a byte slice as a list of numbers.
fn as_bytes<S: Serializer>(bytes: &&[u8], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}

impl Reporter<'_> {
    pub fn frame_rendered(&self, job: &str, frame: u32, file_name: &str, image: &[u8]) -> Result<()> {
        let data = FrameRendered { frame_number: frame, image, file_name, job };
        let body = serde_pickle::to_vec(&self.message("FRAME_RENDERED", data), Default::default())?;
        self.post(&format!("sending frame {frame}"), "application/octet-stream", &body)
    }

    pub fn render_completed(&self, job: &str, frames: &[u32]) -> Result<()> {
        let body = serde_json::to_vec(&self.message("RENDER_COMPLETED", RenderCompleted { job, frames }))?;
        self.post("sending RENDER_COMPLETED", "application/json", &body)
    }

    fn message<D>(&self, r#type: &'static str, data: D) -> UserMessage<'_, D> {
        UserMessage { user_id: self.user_id, main_data: MainData { r#type, data } }
    }

    fn post(&self, what: &str, content_type: &str, body: &[u8]) -> Result<()> {
        let mut patience = Patience::new(self.patience);
        loop {
            let transfer = self.ui.transfer(what, body.len() as u64, 0);
            let mut upload = Upload { rest: body, transfer: &transfer };
            let request = self.agent.post(self.server.as_str()).content_type(content_type);
            // Without it, a streamed body would be sent in chunks.
            let request = request.header(header::CONTENT_LENGTH, body.len());
            let answer = request.send(SendBody::from_reader(&mut upload));
            drop(transfer);

            let (why, asked) = match answer {
                Ok(response) if response.status() == StatusCode::OK => return Ok(()),
                Ok(mut response) => {
                    let (temporary, asked) = (net::is_temporary(&response), net::retry_after(&response));
                    let text = error_of(&net::error_body(&mut response));
                    let why = net::refusal(self.access, response.status(), &text);
                    if !temporary {
                        return Err(format!("{what}: refused with {why}").into());
                    }
                    (why, asked)
                }
                Err(error) => {
                    let why = self.access.explain(&error);
                    if http::is_final(&error) {
                        return Err(format!("{what}: {why}").into());
                    }
                    (why, None)
                }
            };
            let Some(pause) = patience.pause(asked) else {
                return Err(format!("{what}: gave up: {why}").into());
            };
            self.ui.say(format!("{what}: {why}; trying again in {pause:?}"));
            thread::sleep(pause);
        }
    }
}

struct Upload<'a> {
    rest: &'a [u8],
    transfer: &'a Transfer<'a>,
}

impl Read for Upload<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.rest.read(buffer)?;
        self.transfer.advance(read);
        Ok(read)
    }
}

/// The text of an error: `{"STATUS": "FAILED", "ERROR": text}`, or any body if the answer is a proxy's.
fn error_of(body: &[u8]) -> String {
    let answer = serde_json::from_slice::<serde_json::Value>(body).unwrap_or_default();
    match answer["ERROR"].as_str() {
        Some(error) => error.to_owned(),
        None => String::from_utf8_lossy(body).chars().take(200).collect::<String>().trim().to_owned(),
    }
}
