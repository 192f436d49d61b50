//! The render job in a message.

use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

use crate::Result;
use crate::pickle::{Bytes, Document, Value};

/// Blender's last frame number. Blender also has negative ones; a farm does not use them.
const LAST_FRAME: i64 = 1_048_574;

/// The size of the buffer through which the .blend file is read.
const BUFFER_BYTES: usize = 256 << 10;

pub struct Job {
    pub frames: Vec<u32>,
    blend: Option<Blend>,
}

enum Blend {
    Bytes(Bytes),
    Reference(Reference),
}

/// `{"SHA256": digits, "SIZE": int, "PATH": str}`, which a server sends in place of a .blend file.
#[derive(Clone)]
pub struct Reference {
    /// 64 hexadecimal digits, in lower case.
    pub sha256: String,
    pub size: u64,
    pub path: String,
}

impl Job {
    /// Reads `{"TYPE": "RENDER", "DATA": {"BINARY_BLEND_FILE": bytes, "FRAMES": [1, 2], …}}`; `START_FRAME` and
    /// `END_FRAME`, both included, may replace `FRAMES`.
    pub fn of_message(message: &Path) -> Result<Self> {
        let file = BufReader::with_capacity(BUFFER_BYTES, File::open(message)?);
        let document = Document::read(file)?;
        let root = document.root();
        match root.get("TYPE") {
            Some(kind) if kind.as_str() == Some("RENDER") => {}
            Some(kind) => {
                return Err(format!("the message is not a render job: its TYPE is {}", kind.describe()).into());
            }
            None => return Err(format!("the message is not a render job: it is {}", root.describe()).into()),
        }
        let data = root.get("DATA").ok_or("the render job has no DATA")?;
        let blend = data.get("BINARY_BLEND_FILE");
        let bytes = blend.and_then(Value::as_bytes).cloned().map(Blend::Bytes);
        let blend = bytes.or_else(|| blend.and_then(Reference::of).map(Blend::Reference));
        Ok(Self { frames: frames(data)?, blend })
    }

    /// The reference to the .blend file, if the message has one in place of the file.
    pub fn reference(&self) -> Option<&Reference> {
        match &self.blend {
            Some(Blend::Reference(reference)) => Some(reference),
            _ => None,
        }
    }

    /// Copies the .blend file out of the message through a buffer: only a part of it is in memory.
    pub fn save_blend(&self, message: &Path, target: &Path) -> Result<u64> {
        let Some(Blend::Bytes(bytes)) = &self.blend else {
            return Err("the message contains no .blend file: its DATA.BINARY_BLEND_FILE is not bytes".into());
        };
        let mut source: Box<dyn Read> = match bytes {
            Bytes::At(span) => {
                let mut source = File::open(message)?;
                source.seek(SeekFrom::Start(span.offset))?;
                Box::new(source.take(span.len))
            }
            Bytes::Made(bytes) => Box::new(&bytes[..]),
        };
        // It may be a link to a file of the cache, which must not change.
        if let Err(error) = fs::remove_file(target)
            && error.kind() != ErrorKind::NotFound
        {
            return Err(error.into());
        }
        let copied = io::copy(&mut source, &mut File::create(target)?)
            .map_err(|error| format!("cannot write {}: {error}", target.display()))?;
        Ok(copied)
    }
}

impl Reference {
    fn of(value: Value<'_>) -> Option<Self> {
        let [sha256, path] = ["SHA256", "PATH"].map(|key| value.get(key).and_then(Value::as_str));
        let (sha256, path) = (sha256?.to_owned(), path?.to_owned());
        let size = value.get("SIZE")?.as_int()?.try_into().ok()?;
        let is_digest = sha256.len() == 64 && sha256.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        (is_digest && path.starts_with('/')).then_some(Self { sha256, size, path })
    }
}

fn frames(data: Value<'_>) -> Result<Vec<u32>> {
    let frame = |value: Value<'_>| match value.as_int() {
        Some(number @ 0..=LAST_FRAME) => Ok(number as u32),
        _ => Err(format!("the render job has frame {}; a frame is an int from 0 to {LAST_FRAME}", value.describe())),
    };
    let frames: Vec<u32> = match (data.get("FRAMES"), data.get("START_FRAME"), data.get("END_FRAME")) {
        (Some(list), ..) => {
            let items = list.items().ok_or_else(|| format!("FRAMES is {}, not a list", list.describe()))?;
            items.map(frame).collect::<std::result::Result<_, _>>()?
        }
        (None, Some(first), Some(last)) => (frame(first)?..=frame(last)?).collect(),
        _ => return Err("the render job has neither FRAMES nor START_FRAME and END_FRAME".into()),
    };
    if frames.is_empty() { Err("the render job has no frames".into()) } else { Ok(frames) }
}
