//! What becomes of a message: told from a copy, saved, and shown.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::amqp::Result;
use crate::pickle::{Document, Span, Value};

/// How many message IDs are remembered: copies come soon after, and an ID takes some 100 bytes.
const REMEMBERED: usize = 10_000;

pub struct Message<'a> {
    pub id: Option<&'a str>,
    /// How often it was delivered, as far as the transport tells.
    pub deliveries: Option<u64>,
    pub pickled: bool,
    pub body: &'a [u8],
}

pub enum Next {
    More,
    Done,
}

/// When enough has arrived.
pub struct Goal {
    pub completed: bool,
    pub job: Option<String>,
    pub count: Option<u64>,
}

pub struct Inbox {
    out: PathBuf,
    goal: Goal,
    seen: Seen,
    taken: u64,
}

impl Inbox {
    pub fn open(out: &Path, goal: Goal) -> Result<Self> {
        fs::create_dir_all(out).map_err(|error| format!("cannot create {}: {error}", out.display()))?;
        Ok(Self { out: out.to_owned(), goal, seen: Seen::default(), taken: 0 })
    }

    /// Saves and prints the message. Once this returns it may be acknowledged.
    pub fn take(&mut self, message: &Message<'_>) -> Result<Next> {
        let seen = message.id.map_or(0, |id| self.seen.times(id));
        let deliveries = message.deliveries.unwrap_or(1).max(seen + 1);
        let format = if message.pickled { "pickle" } else { "json" };
        let report = match Report::of(message) {
            Ok(report) => report,
            Err(why) => {
                let name = format!("unread_{}.{format}", safe(message.id.unwrap_or("message")));
                let path = self.save(Path::new(&name), message.body)?;
                println!("UNREADABLE bytes={} delivery={deliveries} {why} -> {}", message.body.len(), path.display());
                return Ok(self.count(message, false));
            }
        };
        let place = match &report.image {
            _ if seen > 0 => " (a copy, not saved again)".to_owned(),
            Some(image) => {
                let bytes = &message.body[image.offset as usize..][..image.len as usize];
                format!(" -> {}", self.save(&report.file(message.id), bytes)?.display())
            }
            None if report.kind == "FRAME_RENDERED" => {
                let name = format!("frame_without_image_{}.{format}", safe(message.id.unwrap_or("message")));
                format!(" has no IMAGE -> {}", self.save(Path::new(&name), message.body)?.display())
            }
            None => String::new(),
        };
        let frame = report.frame.map_or("-".to_owned(), |frame| frame.to_string());
        println!(
            "{} user={} job={} frame={frame} bytes={} delivery={deliveries}{place}",
            printable(&report.kind),
            printable(&report.user),
            printable(report.job.as_deref().unwrap_or("-")),
            report.image.map_or(message.body.len() as u64, |image| image.len),
        );
        let completed = report.kind == "RENDER_COMPLETED" && (self.goal.job.is_none() || self.goal.job == report.job);
        Ok(self.count(message, completed))
    }

    fn count(&mut self, message: &Message<'_>, completed: bool) -> Next {
        // Only now: a message that could not be saved must not pass for a copy when it comes again.
        if message.id.is_none_or(|id| self.seen.add(id)) {
            self.taken += 1;
        }
        let enough = self.goal.count.is_some_and(|count| self.taken >= count);
        if enough || (self.goal.completed && completed) { Next::Done } else { Next::More }
    }

    /// Writes a file whole or not at all, and to the disk, for what is acknowledged is gone elsewhere.
    fn save(&self, name: &Path, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.out.join(name);
        let part = path.with_extension("part");
        let write = || -> std::io::Result<()> {
            let folder = path.parent().unwrap_or(&self.out);
            fs::create_dir_all(folder)?;
            let mut file = File::create(&part)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&part, &path)?;
            File::open(folder)?.sync_all()
        };
        write().map_err(|error| format!("cannot save {}: {error}", path.display()))?;
        Ok(path)
    }
}

/// How often each of the latest messages has come.
#[derive(Default)]
struct Seen {
    times: HashMap<String, u64>,
    order: VecDeque<String>,
}

impl Seen {
    fn times(&self, id: &str) -> u64 {
        self.times.get(id).copied().unwrap_or(0)
    }

    /// True where it is new.
    fn add(&mut self, id: &str) -> bool {
        if let Some(times) = self.times.get_mut(id) {
            *times += 1;
            return false;
        }
        if self.order.len() == REMEMBERED {
            self.order.pop_front().map(|oldest| self.times.remove(&oldest));
        }
        self.times.insert(id.to_owned(), 1);
        self.order.push_back(id.to_owned());
        true
    }
}

/// The parts of a message that this program uses.
struct Report {
    kind: String,
    user: String,
    job: Option<String>,
    frame: Option<i64>,
    file_name: Option<String>,
    /// Where the image lies in the body.
    image: Option<Span>,
}

impl Report {
    fn of(message: &Message<'_>) -> std::result::Result<Self, String> {
        if message.pickled {
            let document = Document::read(Cursor::new(message.body)).map_err(|error| error.to_string())?;
            Self::of_pickle(document.root())
        } else {
            let json = serde_json::from_slice(message.body).map_err(|error| format!("no JSON: {error}"))?;
            Self::of_json(&json)
        }
        .ok_or_else(|| "no message of a user in it".to_owned())
    }

    fn of_pickle(root: Value<'_>) -> Option<Self> {
        let inner = root.path(&["DATA", "DATA"])?;
        let data = inner.get("DATA");
        let text = |value: Option<Value<'_>>| value.and_then(Value::as_str).map(str::to_owned);
        Some(Self {
            kind: text(inner.get("TYPE"))?,
            user: text(inner.get("USER_ID"))?,
            job: text(data.and_then(|data| data.get("JOB"))),
            frame: data.and_then(|data| data.get("FRAME_NUMBER")).and_then(Value::as_int),
            file_name: text(data.and_then(|data| data.get("FILE_NAME"))),
            image: data.and_then(|data| data.get("IMAGE")).and_then(Value::as_bytes),
        })
    }

    fn of_json(root: &Json) -> Option<Self> {
        let inner = root.pointer("/DATA/DATA")?;
        let data = &inner["DATA"];
        let text = |value: &Json| value.as_str().map(str::to_owned);
        Some(Self {
            kind: text(&inner["TYPE"])?,
            user: text(&inner["USER_ID"])?,
            job: text(&data["JOB"]),
            frame: data["FRAME_NUMBER"].as_i64(),
            file_name: text(&data["FILE_NAME"]),
            // JSON has no bytes.
            image: None,
        })
    }

    /// `JOB/frame_0001.png`, of nothing but what is safe in a path, for all of it comes from the internet.
    fn file(&self, id: Option<&str>) -> PathBuf {
        let folder = safe(self.job.as_deref().unwrap_or("no_job"));
        let extension = self.file_name.as_deref().and_then(|name| Path::new(name).extension()?.to_str());
        let extension = extension.filter(|text| text.len() <= 4 && text.bytes().all(|c| c.is_ascii_alphanumeric()));
        let name = match self.frame {
            Some(frame) => format!("frame_{frame:04}"),
            None => format!("frame_{}", safe(id.unwrap_or("unknown"))),
        };
        Path::new(&folder).join(format!("{name}.{}", extension.unwrap_or("png")))
    }
}

/// A name without separators, and never `.`, `..`, hidden or empty.
fn safe(text: &str) -> String {
    let keep = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' };
    let name: String = text.chars().take(100).map(keep).collect();
    match name.strip_prefix('.') {
        Some(rest) => format!("_{rest}"),
        None if name.is_empty() => "_".to_owned(),
        None => name,
    }
}

/// Text from the internet for a terminal: nothing that could move its cursor, and not without end.
fn printable(text: &str) -> String {
    text.chars().take(200).flat_map(char::escape_debug).collect()
}
