//! What the clients send: texts that say which they are, so that whatever comes back is checked to its last byte.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::OnceLock;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::harness::Response;

/// How long texts are, besides the few of [`LARGE`]: short and long ones are equally frequent in logarithm.
const LENGTHS: Range<f64> = 10.0..100_000.0;

const LARGE: usize = 1 << 20;

/// Which text it is. `number` is that of the UUID or of the frame among those of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    pub client: usize,
    pub number: u64,
    pub version: u64,
    pub len: usize,
}

impl Label {
    /// The text: its label, then characters that no other text has at the same offsets.
    pub fn text(&self) -> String {
        static POOL: OnceLock<String> = OnceLock::new();
        let pool = POOL.get_or_init(|| {
            let mut rng = StdRng::seed_from_u64(0);
            (0..4 * LARGE).map(|_| char::from(rng.random_range(b' '..=b'~'))).collect()
        });
        let Self { client, number, version, len } = self;
        let label = format!("{client} {number} {version} {len}|");
        let offset = digest(label.as_bytes()) as usize % (pool.len() - LARGE);
        let fill = len.saturating_sub(label.len());
        label + &pool[offset..offset + fill]
    }

    /// The label of a text, which must be as it was sent.
    #[track_caller]
    pub fn of(text: &str) -> Self {
        let numbers = text.split('|').next().unwrap_or_default().split(' ').map(|number| number.parse().ok());
        let numbers: Option<Vec<u64>> = numbers.collect();
        let Some([client, number, version, len]) = numbers.as_deref() else {
            panic!("a text that nobody has sent: {:.100?}", text)
        };
        let label = Self { client: *client as usize, number: *number, version: *version, len: *len as usize };
        assert!(label.text() == text, "a text that has changed: {label:?}");
        label
    }
}

pub fn random_len(rng: &mut StdRng) -> usize {
    if rng.random_ratio(1, 80) {
        return LARGE;
    }
    rng.random_range(LENGTHS.start.ln()..LENGTHS.end.ln()).exp() as usize
}

/// Stands for bytes that must be the same at every attempt.
pub fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// A body in either form, with its content type.
pub fn encode(value: &Value, pickle: bool) -> (&'static str, Vec<u8>) {
    if pickle {
        let bytes = serde_pickle::to_vec(value, serde_pickle::SerOptions::new()).expect("a pickle");
        ("application/octet-stream", bytes)
    } else {
        ("application/json", value.to_string().into_bytes())
    }
}

#[track_caller]
fn unpickle<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> T {
    serde_pickle::from_slice(bytes, serde_pickle::DeOptions::new()).unwrap_or_else(|error| {
        panic!("no pickle of the right kind ({error}): {}", bytes[..bytes.len().min(200)].escape_ascii())
    })
}

/// What a worker has fetched.
#[derive(Clone, Copy, Debug)]
pub struct Fetched {
    pub label: Label,
    pub digest: u64,
}

impl Fetched {
    #[track_caller]
    pub fn of(pickle: &[u8]) -> Self {
        Self { label: Label::of(&unpickle::<String>(pickle)), digest: digest(pickle) }
    }
}

/// The types of messages that are forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Frame,
    Completed,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Frame => "FRAME_RENDERED",
            Self::Completed => "RENDER_COMPLETED",
        }
    }
}

/// What a worker posts.
pub fn posted(kind: Kind, label: Label) -> Value {
    json!({
        "USER_ID": format!("worker-{}", label.client),
        "MAIN_DATA": { "TYPE": kind.name(), "DATA": label.text() },
    })
}

/// What the user manager has taken.
#[derive(Clone, Debug)]
pub struct Taken {
    pub kind: Kind,
    pub label: Label,
    pub id: String,
    pub delivery_count: u64,
    pub digest: u64,
}

impl Taken {
    /// Checks that an answer of NextMessage is what must be made of a worker's message.
    #[track_caller]
    pub fn of(answer: &Response) -> Self {
        let header = |name| answer.header(name).unwrap_or_else(|| panic!("no {name}: {answer:?}"));
        let (kind, format, value): (_, _, Value) = match header("content-type") {
            "application/json" => (Kind::Completed, None, answer.json()),
            "application/octet-stream" => (Kind::Frame, Some("BYTES"), unpickle(&answer.body)),
            _ => panic!("{answer:?}"),
        };
        assert_eq!(answer.header("data_format"), format, "{answer:?}");
        let text = value["DATA"]["DATA"]["DATA"].as_str().unwrap_or_else(|| panic!("no text: {answer:?}"));
        let label = Label::of(text);
        let user = format!("worker-{}", label.client);
        let mut message = json!({ "TYPE": kind.name(), "DATA": text, "USER_ID": user });
        if kind == Kind::Completed {
            message["MESSAGE"] = text.into();
        }
        let wrapped = json!({ "TYPE": "USER_MESSAGE", "DATA": message });
        assert!(value == json!({ "TYPE": "MESSAGE_FOR_USER_MANAGER", "DATA": wrapped }), "{answer:?}");
        let id = header("message-id").to_owned();
        let delivery_count = header("delivery-count").parse().expect("a number");
        Self { kind, label, id, delivery_count, digest: digest(&answer.body) }
    }
}
