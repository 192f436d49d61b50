//! Downloads into a file. A broken transfer is resumed, even after a restart.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use ureq::Body;
use ureq::http::{HeaderMap, Response, StatusCode, header};
use url::Url;

use crate::Result;
use crate::net::{Attempt, Client, Refused};

const CHUNK_BYTES: usize = 256 << 10;

pub struct Download<'a> {
    pub client: &'a Client<'a>,
    /// For the progress bar.
    pub what: &'a str,
    pub url: Url,
    pub prefer: Option<&'static str>,
    /// The file that grows. It stays when the transfer breaks off.
    pub part: PathBuf,
    /// The expected version. Without it, a note beside the file says which version the file is a part of.
    pub expected: Option<Version>,
}

/// A version of what a URL returns.
#[derive(Clone)]
pub struct Version {
    /// A strong tag: the same tag means the same bytes.
    pub etag: Option<String>,
    pub len: u64,
}

impl Download<'_> {
    pub fn run(&self) -> Result<std::result::Result<(), Refused>> {
        self.client.retry(self.what, || self.attempt())
    }

    fn attempt(&self) -> Result<Attempt<()>> {
        let have = fs::metadata(&self.part).map_or(0, |file| file.len());
        let mut request = self.client.agent.get(self.url.as_str());
        if let Some(preference) = self.prefer {
            request = request.header("Prefer", preference);
        }
        match &self.expected.clone().or_else(|| Version::load(&self.note())) {
            Some(version) if have == version.len => return Ok(Attempt::Done(())),
            Some(Version { etag: Some(etag), .. }) if have > 0 => {
                request = request.header(header::RANGE, format!("bytes={have}-")).header(header::IF_RANGE, etag);
            }
            _ => {}
        }
        match self.client.judge(request.call()) {
            Attempt::Refused(Refused { status: Some(StatusCode::RANGE_NOT_SATISFIABLE), .. }) => {
                self.start_over("the server has no such range")
            }
            answer => answer.then(|response| self.receive(response)),
        }
    }

    /// Writes the body of an answer to the file.
    pub fn receive(&self, mut response: Response<Body>) -> Result<Attempt<()>> {
        let mut have = 0;
        let len = if response.status() == StatusCode::PARTIAL_CONTENT {
            have = fs::metadata(&self.part).map_or(0, |file| file.len());
            match content_range(response.headers()) {
                Some((first, len)) if first == have => Some(len),
                _ => return self.start_over("the server sent another range than the requested one"),
            }
        } else {
            response.body().content_length()
        };
        let Some(len) = len else {
            let why = "the answer has no Content-Length".into();
            return Ok(Attempt::Refused(Refused { status: None, why }));
        };

        let part = &self.part;
        let mut file = OpenOptions::new().create(true).append(true).open(part)?;
        file.set_len(have)?;
        if self.expected.is_none() {
            Version::of(response.headers(), len).save(&self.note())?;
        }
        let bar = self.client.ui.transfer(self.what, len, have);
        let mut body = response.body_mut().as_reader();
        let mut chunk = vec![0; CHUNK_BYTES];
        let before = have;
        while have < len {
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
                    let why = format!("{why} after {} of {}", HumanBytes(have), HumanBytes(len));
                    return Ok(Attempt::Broken { why, after: None, moved: have > before });
                }
            }
        }
        file.sync_all()?;
        Ok(Attempt::Done(()))
    }

    fn start_over(&self, why: &str) -> Result<Attempt<()>> {
        File::create(&self.part)?;
        Ok(Attempt::Broken { why: why.into(), after: None, moved: false })
    }

    /// Gives the complete file its name.
    pub fn finish(&self, target: &Path) -> Result<u64> {
        fs::rename(&self.part, target)?;
        let _ = fs::remove_file(self.note());
        Ok(fs::metadata(target)?.len())
    }

    /// Whether there is a part of a broken transfer.
    pub fn is_begun(&self) -> bool {
        self.part.exists()
    }

    fn note(&self) -> PathBuf {
        let mut name = OsString::from(&self.part);
        name.push(".etag");
        name.into()
    }
}

impl Version {
    /// The version of an answer whose whole length is `len`.
    pub fn of(headers: &HeaderMap, len: u64) -> Self {
        let etag = headers.get(header::ETAG).and_then(|etag| etag.to_str().ok());
        // A weak tag does not guarantee the same bytes.
        let etag = etag.filter(|etag| !etag.starts_with("W/")).map(str::to_owned);
        Self { etag, len }
    }

    pub fn load(note: &Path) -> Option<Self> {
        let text = fs::read_to_string(note).ok()?;
        let (len, etag) = text.split_once('\n')?;
        Some(Self { etag: (!etag.is_empty()).then(|| etag.to_owned()), len: len.parse().ok()? })
    }

    pub fn save(&self, note: &Path) -> Result<()> {
        let etag = self.etag.as_deref().unwrap_or_default();
        Ok(fs::write(note, format!("{}\n{etag}", self.len))?)
    }
}

/// First byte and total of `Content-Range: bytes FIRST-LAST/TOTAL`.
pub fn content_range(headers: &HeaderMap) -> Option<(u64, u64)> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, total) = range.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.parse().ok()?, total.parse().ok()?))
}
