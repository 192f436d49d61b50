//! The farm of the demo: what the communication interface, the worker and the user manager do for one frame.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use serde_pickle::{DeOptions, HashableValue, SerOptions, Value};
use ureq::Agent;
use ureq::config::Config;
use uuid::Uuid;

use super::blender::Blender;
use super::say;

/// The frame if there is no Blender.
const PICTURE: &[u8] = include_bytes!("picture.png");

/// The content of the .blend file if there is no Blender.
const PLACEHOLDER: &[u8] = b"BLENDER: a placeholder, because Blender is not installed";

/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 256 << 20;

const PICKLE: &str = "application/octet-stream";

/// The `USER_ID` of the worker.
const WORKER: &str = "demo-worker";

/// The gateway, and what the others of the farm have.
pub struct Farm {
    /// The URL of the worker server.
    pub workers: String,
    /// The URL of the API server.
    pub services: String,
    /// For what is only needed here.
    pub folder: PathBuf,
    /// The blend root.
    pub blends: PathBuf,
    /// Blender, or why there is none.
    pub blender: Result<Blender, &'static str>,
    /// Set when the demo ends early.
    pub is_stopping: Arc<AtomicBool>,
}

impl Farm {
    /// Takes every step, and returns the frame as the user manager has received it.
    pub fn render_one_frame(&self) -> Result<Vec<u8>, String> {
        let http = Http::new();
        http.get(&format!("{}/readyz", self.services))?;
        say(&format!("1. A gateway runs in {}", self.folder.display()));
        say(&format!("     status page  {}/   (open it in a browser)", self.services));
        say(&format!("     workers      {}/", self.workers));

        let blender = self.make_scene()?;
        self.go_on()?;
        let uuid = Uuid::new_v4().to_string();
        http.post(
            &format!("{}/CommunicationInterface/AddBufferMsg", self.services),
            "application/json",
            json!({ "TYPE": "ADD_BUFFER_MSG", "DATA": { "BUFFER_UUID": uuid, "BUFFER_MSG": {
                "TYPE": "RENDER",
                "DATA": {
                    "META_DATA": "EXTRACT_BLEND_FILE_FROM_PATH",
                    "BINARY_BLEND_FILE": "scene.blend",
                    "FRAMES": [1],
                },
            }}})
            .to_string()
            .as_bytes(),
        )?;
        say("3. The communication interface has left a message: render frame 1 of scene.blend");
        say(&format!("     {uuid}"));

        let message = http.get(&format!("{}/?bufferUUID={uuid}", self.workers))?;
        let blend = bytes_in(&message.body, &["DATA", "BINARY_BLEND_FILE"])?;
        say(&format!("4. The worker has fetched it, with the {} of the .blend file in it", bytes(blend.len())));

        let image = self.render(blender, &blend)?;
        self.go_on()?;
        let frame = pickled(&[
            ("USER_ID", text(WORKER)),
            (
                "MAIN_DATA",
                dict(&[
                    ("TYPE", text("FRAME_RENDERED")),
                    ("DATA", dict(&[("FRAME", Value::I64(1)), ("IMAGE", Value::Bytes(image))])),
                ]),
            ),
        ])?;
        http.post(&format!("{}/", self.workers), PICKLE, &frame)?;
        let completed =
            json!({ "USER_ID": WORKER, "MAIN_DATA": { "TYPE": "RENDER_COMPLETED", "DATA": { "FRAMES": [1] } } });
        http.post(&format!("{}/", self.workers), "application/json", completed.to_string().as_bytes())?;
        say(&format!("6. The worker has posted the frame, {}: the gateway has it on disk", bytes(frame.len())));

        let frame = bytes_in(&self.next_message(&http)?, &["DATA", "DATA", "DATA", "IMAGE"])?;
        self.next_message(&http)?;
        say("7. The user manager has received the frame, and that the job is complete");
        Ok(frame)
    }

    /// Makes the .blend file. Returns Blender if it works.
    fn make_scene(&self) -> Result<Option<&Blender>, String> {
        let path = self.blends.join("scene.blend");
        let why = match &self.blender {
            Ok(blender) => {
                say("2. Blender makes a scene of one cube …");
                match blender.make_scene(&self.folder, &path, &self.is_stopping) {
                    Ok(()) => return Ok(Some(blender)),
                    Err(why) => why,
                }
            }
            Err(why) => (*why).to_owned(),
        };
        self.go_on()?;
        fs::write(&path, PLACEHOLDER).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        say(&format!("2. {why}: a placeholder is the .blend file, and a built-in picture will be the frame"));
        Ok(None)
    }

    /// The frame: rendered, or the built-in picture.
    fn render(&self, blender: Option<&Blender>, blend: &[u8]) -> Result<Vec<u8>, String> {
        let Some(blender) = blender else {
            say("5. The worker takes the built-in picture as the frame");
            return Ok(PICTURE.to_vec());
        };
        say("5. The worker renders frame 1 with Blender …");
        let path = self.folder.join("fetched.blend");
        fs::write(&path, blend).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        match blender.render(&self.folder, &path, &self.is_stopping) {
            Ok(image) => Ok(image),
            Err(why) => {
                self.go_on()?;
                say(&format!("   {why}: a built-in picture is the frame instead"));
                Ok(PICTURE.to_vec())
            }
        }
    }

    /// Receives the next message as the user manager, and acknowledges it.
    fn next_message(&self, http: &Http) -> Result<Vec<u8>, String> {
        let Answer { body, message_id } = http.get(&format!("{}/UserManager/NextMessage?wait=10", self.services))?;
        let id = message_id.ok_or("the gateway has no message for the user manager")?;
        http.delete(&format!("{}/UserManager/Messages/{id}", self.services))?;
        Ok(body)
    }

    fn go_on(&self) -> Result<(), String> {
        if self.is_stopping.load(Ordering::Relaxed) { Err("the demo was interrupted".to_owned()) } else { Ok(()) }
    }
}

/// Plain requests, each of which must succeed.
struct Http(Agent);

struct Answer {
    body: Vec<u8>,
    message_id: Option<String>,
}

impl Http {
    fn new() -> Self {
        Self(Config::builder().proxy(None).http_status_as_error(false).timeout_global(Some(TIMEOUT)).build().into())
    }

    fn get(&self, url: &str) -> Result<Answer, String> {
        Self::read(url, self.0.get(url).call())
    }

    fn post(&self, url: &str, content_type: &str, body: &[u8]) -> Result<Answer, String> {
        Self::read(url, self.0.post(url).header("Content-Type", content_type).send(body))
    }

    fn delete(&self, url: &str) -> Result<Answer, String> {
        Self::read(url, self.0.delete(url).call())
    }

    fn read(url: &str, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Answer, String> {
        let read = answer.and_then(|mut answer| {
            let body = answer.body_mut().with_config().limit(MAX_ANSWER).read_to_vec()?;
            Ok((answer, body))
        });
        let (answer, body) = read.map_err(|error| format!("{url}: {error}"))?;
        if !answer.status().is_success() {
            return Err(format!("{url} answers {}: {}", answer.status(), String::from_utf8_lossy(&body)));
        }
        let message_id = answer.headers().get("Message-Id").and_then(|id| id.to_str().ok()).map(str::to_owned);
        Ok(Answer { body, message_id })
    }
}

/// The bytes in a pickle of dicts, under these keys.
fn bytes_in(pickle: &[u8], keys: &[&str]) -> Result<Vec<u8>, String> {
    let read = serde_pickle::value_from_slice(pickle, DeOptions::new());
    let mut value = read.map_err(|error| format!("a message of the gateway cannot be read: {error}"))?;
    for key in keys {
        let inner = match value {
            Value::Dict(mut dict) => dict.remove(&HashableValue::String((*key).to_owned())),
            _ => None,
        };
        value = inner.ok_or_else(|| format!("a message of the gateway has no {key}"))?;
    }
    match value {
        Value::Bytes(bytes) => Ok(bytes),
        _ => Err(format!("what a message of the gateway has under {keys:?} is not bytes")),
    }
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

fn dict(pairs: &[(&str, Value)]) -> Value {
    let pairs = pairs.iter().map(|(key, value)| (HashableValue::String((*key).to_owned()), value.clone()));
    Value::Dict(pairs.collect())
}

fn pickled(pairs: &[(&str, Value)]) -> Result<Vec<u8>, String> {
    serde_pickle::value_to_vec(&dict(pairs), SerOptions::new()).map_err(|error| error.to_string())
}

fn bytes(len: usize) -> String {
    bytesize::ByteSize::b(len as u64).to_string()
}
