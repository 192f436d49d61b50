//! Fetches the message.
//!
//! The server delivers a message once: with its last byte. A message that refers to its .blend file is therefore first
//! read without that byte, which is always the same, and taken only when the .blend file is here. If the .blend file
//! cannot be had, the message is still at the server, and is fetched with the file in it.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::HumanBytes;
use ureq::http::{HeaderMap, StatusCode, header};
use url::Url;

use crate::Result;
use crate::download::{Download, Version, content_range};
use crate::net::{Attempt, Client, Refused};

/// The opcode at the end of every pickle.
const STOP: u8 = b'.';

const BLEND_REFERENCE: &str = "blend-reference";

/// The server's longest `wait`.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// The pause between requests to a server that does not know `wait`.
const POLL: Duration = Duration::from_secs(1);

pub struct Fetch<'a> {
    pub client: &'a Client<'a>,
    pub url: Url,
    /// Whether a reference may take the place of the .blend file.
    pub by_reference: bool,
    /// How long to wait for a message that is not there yet.
    pub wait: Duration,
    /// The longest wait of one request, because a connection that transfers nothing is taken for broken.
    pub max_wait: Duration,
}

impl Fetch<'_> {
    /// Fetches the message into `target`. If `target` exists, it is kept; if an earlier run left a part of it, the
    /// transfer is resumed. A message that refers to its .blend file is not taken yet: [`Self::take`] does that.
    /// Returns whether `target` existed.
    pub fn run(&self, target: &Path) -> Result<bool> {
        let ui = self.client.ui;
        if target.exists() {
            ui.say(format!("using the message fetched before: {}", target.display()));
            return Ok(true);
        }
        let prefer = self.by_reference.then_some(BLEND_REFERENCE);
        let download = self.download(&target.with_extension("part"), prefer);
        if download.is_begun() || !self.look(&download, target)? {
            download.run()??;
            ui.say(format!("fetched {}", HumanBytes(download.finish(target)?)));
        }
        Ok(false)
    }

    /// Fetches the message with the .blend file in it, in place of the one in `target`.
    pub fn with_blend_file(&self, target: &Path) -> Result<()> {
        let download = self.download(&target.with_extension("whole.part"), None);
        download.run()??;
        self.client.ui.say(format!("fetched {}", HumanBytes(download.finish(target)?)));
        forget(&untaken(target))
    }

    /// Takes the message if [`Self::run`] has only looked at it. Returns `false`, and removes `target`, if another
    /// message is in its place now. `kept`: an earlier run may have taken it.
    pub fn take(&self, target: &Path, kept: bool) -> Result<bool> {
        let note = untaken(target);
        let Some(Version { etag: Some(etag), len }) = Version::load(&note) else { return Ok(true) };
        // The server may have handed over the last byte, and the answer was lost.
        let lost = Cell::new(kept);
        let taken = self.client.retry("taking the message", || {
            let request = self.client.agent.get(self.url.as_str()).header("Prefer", BLEND_REFERENCE);
            let request = request.header(header::RANGE, format!("bytes={}-", len - 1));
            let answer = request.header(header::IF_RANGE, &etag).header(header::IF_MATCH, &etag).call();
            lost.set(lost.get() || answer.is_err());
            self.client.judge(answer).then(|mut response| {
                let read = response.body_mut().as_reader().read_exact(&mut [0]);
                lost.set(lost.get() || read.is_err());
                Ok(match read {
                    Ok(()) => Attempt::Done(()),
                    Err(error) => Attempt::Broken { why: error.to_string(), after: None, moved: false },
                })
            })
        })?;
        match taken {
            Err(refused) if is_absent(&refused) && lost.get() => {}
            Err(refused) if is_absent(&refused) || refused.status == Some(StatusCode::PRECONDITION_FAILED) => {
                forget(target)?;
                forget(&note)?;
                return if is_absent(&refused) { Err(refused.into()) } else { Ok(false) };
            }
            taken => taken?,
        }
        forget(&note)?;
        Ok(true)
    }

    /// Waits for the message and asks for its first byte, which delivers nothing. If the message refers to its .blend
    /// file, reads all but the last byte into `target` and returns `true`. A server that does not know ranges sends
    /// the whole message; `download` receives it.
    fn look(&self, download: &Download, target: &Path) -> Result<bool> {
        let deadline = Instant::now() + self.wait;
        let version = self.client.retry(download.what, || {
            let asked = Instant::now();
            let wait = deadline.saturating_duration_since(asked).min(MAX_WAIT).min(self.max_wait).as_secs();
            let mut url = self.url.clone();
            url.query_pairs_mut().append_pair("wait", &wait.to_string());
            let mut request = self.client.agent.get(url.as_str()).header(header::RANGE, "bytes=0-0");
            if let Some(preference) = download.prefer {
                request = request.header("Prefer", preference);
            }
            match self.client.judge(request.call()) {
                Attempt::Refused(refused) if is_absent(&refused) && Instant::now() < deadline => {
                    let early = asked.elapsed().as_secs() < wait.max(1);
                    let after = Some(if early { POLL } else { Duration::ZERO });
                    Ok(Attempt::Broken { why: "no message yet".into(), after, moved: true })
                }
                answer => answer.then(|response| match response.status() {
                    StatusCode::PARTIAL_CONTENT => Ok(Attempt::Done(reference_version(response.headers()))),
                    _ => download.receive(response)?.then(|()| Ok(Attempt::Done(None))),
                }),
            }
        })??;
        version.map_or(Ok(false), |version| self.read(&version, target))
    }

    /// Reads all but the last byte of a message into `target`. Returns `false` if there is another message now.
    fn read(&self, version: &Version, target: &Path) -> Result<bool> {
        let Version { etag: Some(etag), len } = version else { return Ok(false) };
        let read = self.client.retry("fetching", || {
            let request = self.client.agent.get(self.url.as_str()).header("Prefer", BLEND_REFERENCE);
            let request = request.header(header::RANGE, format!("bytes=0-{}", len - 2));
            self.client.judge(request.header(header::IF_MATCH, etag).call()).then(|mut response| {
                let mut message = Vec::new();
                let why = match response.body_mut().as_reader().take(len - 1).read_to_end(&mut message) {
                    Ok(read) if read as u64 == len - 1 => return Ok(Attempt::Done(message)),
                    Ok(_) => "the connection closed".into(),
                    Err(error) => error.to_string(),
                };
                Ok(Attempt::Broken { why, after: None, moved: false })
            })
        })?;
        let mut message = match read {
            Err(Refused { status: Some(StatusCode::PRECONDITION_FAILED), .. }) => return Ok(false),
            read => read?,
        };
        message.push(STOP);
        // The note first: without it, the message would count as taken.
        version.save(&untaken(target))?;
        let part = target.with_extension("read");
        let mut file = File::create(&part)?;
        file.write_all(&message)?;
        file.sync_all()?;
        fs::rename(part, target)?;
        Ok(true)
    }

    fn download<'a>(&'a self, part: &Path, prefer: Option<&'static str>) -> Download<'a> {
        let (url, part) = (self.url.clone(), part.to_owned());
        Download { client: self.client, what: "fetching", url, prefer, part, expected: None }
    }
}

/// The version of a message that refers to its .blend file and can be read in parts.
fn reference_version(headers: &HeaderMap) -> Option<Version> {
    let applied = headers.get("Preference-Applied").is_some_and(|name| name == BLEND_REFERENCE);
    let (_, len) = content_range(headers)?;
    let version = Version::of(headers, len);
    (applied && version.etag.is_some() && len > 1).then_some(version)
}

/// The note that a message has not been taken yet.
fn untaken(target: &Path) -> PathBuf {
    target.with_extension("untaken")
}

fn forget(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn is_absent(refused: &Refused) -> bool {
    refused.status == Some(StatusCode::BAD_REQUEST) && refused.why.contains("No Buffer Message")
}

/// The URL of a message.
pub fn address(server: &Url, uuid: &str) -> Url {
    let mut url = server.clone();
    url.query_pairs_mut().clear().append_pair("bufferUUID", uuid);
    url
}
