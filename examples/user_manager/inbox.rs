//! Detects copies of messages, and saves and prints messages.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::amqp::Result;
use crate::name::{file_name, hash};
use crate::pickle::{Bytes, Document, Value};

/// How many message IDs are remembered. Copies arrive soon after the original, and an ID takes about 100 bytes.
const REMEMBERED: usize = 10_000;

pub struct Message<'a> {
    pub id: Option<&'a str>,
    /// How often it was delivered, as far as the transport counts.
    pub deliveries: Option<u64>,
    pub pickled: bool,
    pub body: &'a [u8],
}

pub enum Next {
    More,
    Done,
}

/// When to stop receiving.
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

    /// Saves and prints the message. After that it may be acknowledged.
    pub fn take(&mut self, message: &Message<'_>) -> Result<Next> {
        let seen = message.id.map_or(0, |id| self.seen.times(id));
        let deliveries = message.deliveries.unwrap_or(1).max(seen + 1);
        let format = if message.pickled { "pickle" } else { "json" };
        let id = match message.id {
            Some(id) => file_name(id),
            None => format!("without_id~{}", hash(message.body)),
        };
        let report = match Report::of(message) {
            Ok(report) => report,
            Err(why) => {
                let name = format!("unread_{id}.{format}");
                let path = self.save(Path::new(&name), message.body)?;
                println!("UNREADABLE bytes={} delivery={deliveries} {why} -> {}", message.body.len(), path.display());
                return Ok(self.count(message, false));
            }
        };
        let saved = match &report.image {
            _ if seen > 0 => " (a copy, not saved again)".to_owned(),
            Some(image) => {
                format!(" -> {}", self.save(&report.file(&id), image)?.display())
            }
            None if report.kind == "FRAME_RENDERED" => {
                let name = format!("frame_without_image_{id}.{format}");
                format!(" has no IMAGE -> {}", self.save(Path::new(&name), message.body)?.display())
            }
            None => String::new(),
        };
        let frame = report.frame.map_or("-".to_owned(), |frame| frame.to_string());
        println!(
            "{} user={} job={} frame={frame} bytes={} delivery={deliveries}{saved}",
            printable(&report.kind),
            printable(&report.user),
            printable(report.job.as_deref().unwrap_or("-")),
            report.image.as_ref().map_or(message.body.len(), |image| image.len()),
        );
        let completed = report.kind == "RENDER_COMPLETED" && (self.goal.job.is_none() || self.goal.job == report.job);
        Ok(self.count(message, completed))
    }

    fn count(&mut self, message: &Message<'_>, completed: bool) -> Next {
        // Not earlier: a message that could not be saved must not count as a copy when it arrives again.
        if message.id.is_none_or(|id| self.seen.add(id)) {
            self.taken += 1;
        }
        let enough = self.goal.count.is_some_and(|count| self.taken >= count);
        if enough || (self.goal.completed && completed) { Next::Done } else { Next::More }
    }

    /// Writes a file atomically and syncs it: after the acknowledgement this is the only copy.
    fn save(&self, name: &Path, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.out.join(name);
        // No final name ends like this.
        let part = self.out.join(format!("{}.part~", name.display()));
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

/// How often each of the latest messages has arrived.
#[derive(Default)]
struct Seen {
    times: HashMap<String, u64>,
    order: VecDeque<String>,
}

impl Seen {
    fn times(&self, id: &str) -> u64 {
        self.times.get(id).copied().unwrap_or(0)
    }

    /// Counts a message; true if it is new.
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
struct Report<'a> {
    kind: String,
    user: String,
    job: Option<String>,
    frame: Option<i64>,
    file_name: Option<String>,
    image: Option<Cow<'a, [u8]>>,
}

impl<'a> Report<'a> {
    fn of(message: &Message<'a>) -> std::result::Result<Self, String> {
        if message.pickled {
            let document = Document::read(Cursor::new(message.body)).map_err(|error| error.to_string())?;
            Self::of_pickle(document.root(), message.body)
        } else {
            let json = serde_json::from_slice(message.body).map_err(|error| format!("not JSON: {error}"))?;
            Self::of_json(&json)
        }
        .ok_or_else(|| "it contains no message of a user".to_owned())
    }

    fn of_pickle(root: Value<'_>, body: &'a [u8]) -> Option<Self> {
        let inner = root.path(&["DATA", "DATA"])?;
        let data = inner.get("DATA");
        let text = |value: Option<Value<'_>>| value.and_then(Value::as_str).map(str::to_owned);
        Some(Self {
            kind: text(inner.get("TYPE"))?,
            user: text(inner.get("USER_ID"))?,
            job: data.and_then(|data| data.get("JOB")).and_then(|job| match job.as_int() {
                Some(number) => Some(number.to_string()),
                None => job.as_str().map(str::to_owned),
            }),
            frame: data.and_then(|data| data.get("FRAME_NUMBER")).and_then(Value::as_int),
            file_name: text(data.and_then(|data| data.get("FILE_NAME"))),
            image: data.and_then(|data| data.get("IMAGE")).and_then(Value::as_bytes).map(|image| match image {
                Bytes::At(span) => Cow::Borrowed(&body[span.offset as usize..][..span.len as usize]),
                Bytes::Made(bytes) => Cow::Owned(bytes.clone()),
            }),
        })
    }

    fn of_json(root: &Json) -> Option<Self> {
        let inner = root.pointer("/DATA/DATA")?;
        let data = &inner["DATA"];
        let text = |value: &Json| value.as_str().map(str::to_owned);
        Some(Self {
            kind: text(&inner["TYPE"])?,
            user: text(&inner["USER_ID"])?,
            job: data["JOB"].as_i64().map(|number| number.to_string()).or_else(|| text(&data["JOB"])),
            frame: data["FRAME_NUMBER"].as_i64(),
            file_name: text(&data["FILE_NAME"]),
            // JSON has no byte strings.
            image: None,
        })
    }

    /// The file name, `JOB/frame_0001.png`. Everything in it comes from the internet, so only what is safe in a path
    /// is used. Without a job or a frame, the message's `id` makes it unique.
    fn file(&self, id: &str) -> PathBuf {
        let extension = self.file_name.as_deref().and_then(|name| Path::new(name).extension()?.to_str());
        let extension = extension.filter(|text| text.len() <= 4 && text.bytes().all(|c| c.is_ascii_alphanumeric()));
        let extension = extension.unwrap_or("png").to_ascii_lowercase();
        let name = match (&self.job, self.frame) {
            (Some(_), Some(frame)) => format!("frame_{frame:04}"),
            (None, Some(frame)) => format!("frame_{frame:04}_{id}"),
            (_, None) => format!("frame_{id}"),
        };
        // file_name returns this for no job.
        let folder = self.job.as_deref().map_or("no_job~".to_owned(), file_name);
        Path::new(&folder).join(format!("{name}.{extension}"))
    }
}

/// Escapes and truncates text from the internet, so that it cannot control the terminal.
fn printable(text: &str) -> String {
    text.chars().take(200).flat_map(char::escape_debug).collect()
}
