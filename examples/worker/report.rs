//! Posts messages until the server has received them.

use std::io::{self, Read};

use base64::prelude::{BASE64_STANDARD, Engine};
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};
use ureq::SendBody;
use ureq::http::{StatusCode, header};
use url::Url;

use crate::net::{Attempt, Client, Refused};
use crate::ui::Transfer;
use crate::{Result, digest};

pub struct Reporter<'a> {
    pub client: &'a Client<'a>,
    pub server: &'a Url,
    pub user_id: &'a str,
    /// The SHA-256 of the message that the job came in: a part of every idempotency key, so that another job under the
    /// same UUID has other keys.
    pub message: [u8; 32],
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

    /// Posts a body until the server has it. Every attempt has the same key, so that the message is forwarded once,
    /// even if an answer is lost.
    fn post(&self, what: &str, content_type: &str, body: &[u8]) -> Result<()> {
        let digest = Sha256::digest(body);
        let content_digest = format!("sha-256=:{}:", BASE64_STANDARD.encode(digest));
        let key = Sha256::new().chain_update(self.message).chain_update(digest).finalize();
        let key = digest::hex(&key);
        self.client.retry(what, || {
            let transfer = self.client.ui.transfer(what, body.len() as u64, 0);
            let mut upload = Upload { rest: body, transfer: &transfer };
            let request = self.client.agent.post(self.server.as_str()).content_type(content_type);
            // Without it, a streamed body would be sent in chunks.
            let request = request.header(header::CONTENT_LENGTH, body.len());
            let request = request.header("Content-Digest", &content_digest).header("Idempotency-Key", &key);
            let answer = request.send(SendBody::from_reader(&mut upload));
            drop(transfer);
            Ok(match self.client.judge(answer) {
                // Something has damaged the body on its way.
                Attempt::Refused(Refused { status: Some(StatusCode::BAD_REQUEST), why })
                    if why.contains("Content-Digest") =>
                {
                    Attempt::Broken { why, after: None, moved: false }
                }
                answer => answer,
            })
        })??;
        Ok(())
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
