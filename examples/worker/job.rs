//! The render job in a message.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use crate::Result;
use crate::pickle::{Bytes, Document, Value};

/// Blender's last frame number. Blender also has negative ones; a farm does not use them.
const LAST_FRAME: i64 = 1_048_574;

/// The size of the buffer through which the .blend file is read.
const BUFFER_BYTES: usize = 256 << 10;

pub struct Job {
    pub frames: Vec<u32>,
    blend: Option<Bytes>,
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
        let blend = data.get("BINARY_BLEND_FILE").and_then(Value::as_bytes).cloned();
        Ok(Self { frames: frames(data)?, blend })
    }

    /// Copies the .blend file out of the message through a buffer: only a part of it is in memory.
    pub fn save_blend(&self, message: &Path, target: &Path) -> Result<u64> {
        let bytes = self.blend.as_ref();
        let mut source: Box<dyn Read> =
            match bytes.ok_or("the message contains no .blend file: its DATA.BINARY_BLEND_FILE is not bytes")? {
                Bytes::At(span) => {
                    let mut source = File::open(message)?;
                    source.seek(SeekFrom::Start(span.offset))?;
                    Box::new(source.take(span.len))
                }
                Bytes::Made(bytes) => Box::new(&bytes[..]),
            };
        let copied = io::copy(&mut source, &mut File::create(target)?)
            .map_err(|error| format!("cannot write {}: {error}", target.display()))?;
        Ok(copied)
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
