//! Fetches the message into a file. Resumes a broken transfer.

use std::fs::{self, File, OpenOptions};
use std::io::{Cursor, ErrorKind, Read, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use indicatif::HumanBytes;
use ureq::Agent;
use ureq::http::{HeaderMap, StatusCode, header};
use url::Url;

use crate::Result;
use crate::http::{self, Access};
use crate::net::{self, Patience};
use crate::pickle::Document;
use crate::ui::Ui;

const CHUNK_BYTES: usize = 256 << 10;

pub struct Fetch<'a> {
    pub agent: &'a Agent,
    pub access: &'a Access,
    pub ui: &'a Ui,
    pub url: &'a Url,
    pub patience: Duration,
}

/// How one attempt ended.
enum Attempt {
    Complete,
    /// Another attempt may succeed. `moved`: this one received some bytes.
    Broken {
        why: String,
        after: Option<Duration>,
        moved: bool,
    },
    /// Another attempt would fail the same way.
    Failed(String),
}

/// What a partial file belongs to.
struct Partial {
    etag: Option<String>,
    total: u64,
}

impl Fetch<'_> {
    /// Fetches the message into `target`. A message is delivered once: if `target` exists, it is kept; if an earlier
    /// run left a part of it, the transfer is resumed.
    pub fn run(&self, target: &Path) -> Result<()> {
        if target.exists() {
            self.ui.say(format!("using the message fetched before: {}", target.display()));
            return Ok(());
        }
        let part = target.with_extension("part");
        let note = target.with_extension("part.etag");
        let mut patience = Patience::new(self.patience);
        loop {
            match self.attempt(&part, &note)? {
                Attempt::Complete => break,
                Attempt::Failed(why) => return Err(format!("{}: {why}", self.url).into()),
                Attempt::Broken { why, after, moved } => {
                    if moved {
                        patience.renew();
                    }
                    let Some(pause) = patience.pause(after) else {
                        return Err(format!("gave up fetching {}: {why}", self.url).into());
                    };
                    self.ui.say(format!("fetching: {why}; trying again in {pause:?}"));
                    thread::sleep(pause);
                }
            }
        }
        fs::rename(&part, target)?;
        let _ = fs::remove_file(&note);
        self.ui.say(format!("fetched {}", HumanBytes(fs::metadata(target)?.len())));
        Ok(())
    }

    fn attempt(&self, part: &Path, note: &Path) -> Result<Attempt> {
        let mut have = fs::metadata(part).map_or(0, |file| file.len());
        let known = Partial::load(note);
        let mut request = self.agent.get(self.url.as_str());
        match &known {
            Some(known) if have == known.total => return Ok(Attempt::Complete),
            Some(Partial { etag: Some(etag), .. }) if have > 0 => {
                request = request.header(header::RANGE, format!("bytes={have}-")).header(header::IF_RANGE, etag);
            }
            _ => {}
        }

        let broken = |why: String, after| Attempt::Broken { why, after, moved: false };
        let mut response = match request.call() {
            Ok(response) => response,
            Err(error) => {
                let why = self.access.explain(&error);
                return Ok(if http::is_final(&error) { Attempt::Failed(why) } else { broken(why, None) });
            }
        };
        let total = match response.status() {
            StatusCode::OK => {
                have = 0;
                response.body().content_length()
            }
            StatusCode::PARTIAL_CONTENT => match content_range(response.headers()) {
                Some((first, total)) if first == have => Some(total),
                _ => return start_over(part, "the server sent another range than the requested one"),
            },
            StatusCode::RANGE_NOT_SATISFIABLE => return start_over(part, "the server has no such range"),
            status => {
                let (temporary, after) = (net::is_temporary(&response), net::retry_after(&response));
                let why = net::refusal(self.access, status, &message_of(net::error_body(&mut response)));
                return Ok(if temporary { broken(why, after) } else { Attempt::Failed(format!("refused: {why}")) });
            }
        };
        let Some(total) = total else { return Ok(Attempt::Failed("the answer has no Content-Length".into())) };

        let mut file = OpenOptions::new().create(true).append(true).open(part)?;
        file.set_len(have)?;
        Partial::of(response.headers(), total).save(note)?;
        let bar = self.ui.transfer("fetching", total, have);
        let mut body = response.body_mut().as_reader();
        let mut chunk = vec![0; CHUNK_BYTES];
        let before = have;
        while have < total {
            match body.read(&mut chunk) {
                Ok(read @ 1..) => {
                    file.write_all(&chunk[..read])
                        .map_err(|error| format!("cannot write {}: {error}", part.display()))?;
                    have += read as u64;
                    bar.advance(read);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                end => {
                    let why = end.err().map_or("the connection closed".into(), |error| error.to_string());
                    let why = format!("{why} after {} of {}", HumanBytes(have), HumanBytes(total));
                    return Ok(Attempt::Broken { why, after: None, moved: have > before });
                }
            }
        }
        file.sync_all()?;
        Ok(Attempt::Complete)
    }
}

impl Partial {
    fn of(headers: &HeaderMap, total: u64) -> Self {
        let etag = headers.get(header::ETAG).and_then(|etag| etag.to_str().ok());
        // A weak tag does not guarantee the same bytes.
        let etag = etag.filter(|etag| !etag.starts_with("W/")).map(str::to_owned);
        Self { etag, total }
    }

    fn load(note: &Path) -> Option<Self> {
        let text = fs::read_to_string(note).ok()?;
        let (total, etag) = text.split_once('\n')?;
        Some(Self { etag: (!etag.is_empty()).then(|| etag.to_owned()), total: total.parse().ok()? })
    }

    fn save(&self, note: &Path) -> Result<()> {
        let etag = self.etag.as_deref().unwrap_or_default();
        Ok(fs::write(note, format!("{}\n{etag}", self.total))?)
    }
}

fn start_over(part: &Path, why: &str) -> Result<Attempt> {
    File::create(part)?;
    Ok(Attempt::Broken { why: why.into(), after: None, moved: false })
}

/// First byte and total of `Content-Range: bytes FIRST-LAST/TOTAL`.
fn content_range(headers: &HeaderMap) -> Option<(u64, u64)> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, total) = range.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.parse().ok()?, total.parse().ok()?))
}

/// The text of an error: `{"message": text}` as a pickle, or any body if the answer is a proxy's.
fn message_of(body: Vec<u8>) -> String {
    let document = Document::read(Cursor::new(&body)).ok();
    let message = document.as_ref().and_then(|document| document.root().get("message")?.as_str());
    match message {
        Some(message) => message.to_owned(),
        None => String::from_utf8_lossy(&body).chars().take(200).collect::<String>().trim().to_owned(),
    }
}

/// The URL of a message.
pub fn address(server: &Url, uuid: &str) -> Url {
    let mut url = server.clone();
    url.query_pairs_mut().clear().append_pair("bufferUUID", uuid);
    url
}
