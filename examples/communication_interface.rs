//! A communication interface: leaves a message for a worker, and prints its UUID.

#[path = "support/amqp.rs"]
mod amqp;
#[path = "support/http.rs"]
#[allow(dead_code, reason = "shared with examples that use more of it")]
mod http;

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use amiquip::{AmqpProperties, AmqpValue, Confirm, FieldTable, Publish};
use clap::{ArgGroup, Parser};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::json;
use url::Url;

use amqp::Result;
use http::{Access, Identity};

/// Leaves a message for a worker and prints its UUID, which is the only output on stdout.
#[derive(Parser)]
#[command(group = ArgGroup::new("what").required(true).args(["message", "blend"]))]
struct Args {
    /// Send the content of this JSON file, unchanged
    #[arg(long, value_name = "FILE.json")]
    message: Option<PathBuf>,

    /// Send a render job for this .blend file, whose path is that on the gateway's machine
    #[arg(long, value_name = "PATH", requires = "frames")]
    blend: Option<String>,

    /// Frames of the job, such as 1,2,5-8
    #[arg(long, value_name = "LIST", conflicts_with = "message", value_parser = Frames::parse)]
    frames: Option<Frames>,

    /// UUID of the message; an existing message under it is replaced [default: a new UUID]
    #[arg(long, value_name = "UUID")]
    uuid: Option<String>,

    /// Send a pickle instead of JSON
    #[arg(long)]
    pickle: bool,

    /// API server, to send over HTTP
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:10001", value_parser = http::server_url)]
    api: Url,

    #[command(flatten)]
    access: Access,

    #[command(flatten)]
    identity: Identity,

    /// Broker, to send over AMQP, such as amqp://guest:guest@localhost:5672
    #[arg(long, value_name = "URL", conflicts_with_all = ["api", "token_file", "ca_file", "client_cert"])]
    amqp_url: Option<Url>,

    /// AMQP: exchange of the gateway
    #[arg(long, value_name = "NAME", default_value = "USER_HTTP_SERVER_EXCHANGE")]
    exchange: String,

    /// AMQP: routing key of the gateway
    #[arg(long, value_name = "KEY", default_value = "UHTTPSE_CI")]
    routing_key: String,

    /// Give up if no answer arrives for this long
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
}

#[derive(Clone)]
struct Frames(Vec<u32>);

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(uuid) => {
            println!("{uuid}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<String> {
    let uuid = args.uuid.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let body = envelope(&uuid, &buffer_msg(args)?, args.pickle)?;
    match &args.amqp_url {
        Some(url) => publish(args, url, &uuid, &body)?,
        None => post(args, &body)?,
    }
    Ok(uuid)
}

/// The message as JSON text. The text of a file is kept as it is: parsing and writing it would change the order of its
/// keys and the digits of long numbers.
fn buffer_msg(args: &Args) -> Result<String> {
    if let Some(path) = &args.message {
        let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let checked = serde_json::from_str::<serde::de::IgnoredAny>(&text);
        checked.map_err(|error| format!("{} is not JSON: {error}", path.display()))?;
        return Ok(text);
    }
    let job = json!({
        "TYPE": "RENDER",
        "DATA": {
            "META_DATA": "EXTRACT_BLEND_FILE_FROM_PATH",
            "BINARY_BLEND_FILE": args.blend,
            "FRAMES": args.frames.as_ref().map(|frames| &frames.0),
        },
    });
    Ok(job.to_string())
}

fn envelope(uuid: &str, message: &str, pickle: bool) -> Result<Vec<u8>> {
    let uuid = serde_json::to_string(uuid)?;
    let text = format!(r#"{{"TYPE":"ADD_BUFFER_MSG","DATA":{{"BUFFER_UUID":{uuid},"BUFFER_MSG":{message}}}}}"#);
    if !pickle {
        return Ok(text.into_bytes());
    }
    let tree: Json =
        serde_json::from_str(&text).map_err(|error| format!("this message can only be sent as JSON: {error}"))?;
    Ok(serde_pickle::to_vec(&tree, Default::default())?)
}

fn post(args: &Args, body: &[u8]) -> Result<()> {
    let url = args.api.join("/CommunicationInterface/AddBufferMsg")?;
    let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(args.timeout)));
    let agent = args.access.agent(&url, config, args.identity.load()?)?;
    let content_type = if args.pickle { "application/octet-stream" } else { "application/json" };
    let answer = agent.post(url.as_str()).content_type(content_type).send(body);
    let mut answer = answer.map_err(|error| format!("{url}: {}", args.access.explain(&error)))?;
    let status = answer.status();
    if status.is_success() {
        eprintln!("left at {}, {} bytes", args.api, body.len());
        return Ok(());
    }
    let text = answer.body_mut().read_to_string().unwrap_or_default();
    let reply = serde_json::from_str::<serde_json::Value>(&text).unwrap_or_default();
    let why = reply["ERROR"].as_str().unwrap_or(text.trim());
    Err(format!("refused with {}", args.access.refusal(status, why)).into())
}

/// Publishes with a confirm, and `mandatory`: a message that reaches no queue is an error.
fn publish(args: &Args, url: &Url, uuid: &str, body: &[u8]) -> Result<()> {
    let mut connection = amqp::connect(url)?;
    amqp::ensure_exchange(&mut connection, &args.exchange)?;
    let channel = connection.open_channel(None)?;
    channel.enable_publisher_confirms()?;
    let confirms = channel.listen_for_publisher_confirms()?;
    let returns = channel.listen_for_returns()?;

    const PERSISTENT: u8 = 2;
    let mut properties = AmqpProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_message_id(uuid.to_owned())
        .with_content_type(if args.pickle { "application/octet-stream" } else { "application/json" }.to_owned());
    if args.pickle {
        let mut headers = FieldTable::new();
        headers.insert("DATA_FORMAT".to_owned(), AmqpValue::LongString("BYTES".to_owned()));
        properties = properties.with_headers(headers);
    }
    let publish = Publish { mandatory: true, ..Publish::with_properties(body, &args.routing_key, properties) };
    channel.basic_publish(&args.exchange, publish)?;

    let confirm = confirms.recv_timeout(Duration::from_secs(args.timeout));
    // A returned message is confirmed too, after its return.
    if let Ok(returned) = returns.try_recv() {
        let (exchange, key) = (&args.exchange, &args.routing_key);
        return Err(format!(
            "it reached no queue: {exchange}, {key}: {} (is the gateway running?)",
            returned.reply_text
        )
        .into());
    }
    match confirm {
        Ok(Confirm::Ack(_)) => eprintln!("published to {}, {}, {} bytes", args.exchange, args.routing_key, body.len()),
        Ok(Confirm::Nack(_)) => return Err("the broker refused it".into()),
        Err(error) if error.is_timeout() => return Err(format!("no confirm within {} s", args.timeout).into()),
        Err(_) => return Err("the broker closed the connection before it confirmed".into()),
    }
    connection.close().map_err(|error| amqp::chain(&error).into())
}

impl Frames {
    /// Blender's last frame number.
    const LAST: u32 = 1_048_574;

    fn parse(list: &str) -> std::result::Result<Self, String> {
        let number = |text: &str| match text.trim().parse() {
            Ok(frame @ 0..=Self::LAST) => Ok(frame),
            _ => Err(format!("{text:?} is not a frame from 0 to {}", Self::LAST)),
        };
        let mut frames = Vec::new();
        for part in list.split(',') {
            match part.split_once('-') {
                Some((first, last)) => {
                    let (first, last) = (number(first)?, number(last)?);
                    if first > last {
                        return Err(format!("{part:?} ends before it begins"));
                    }
                    frames.extend(first..=last);
                }
                None => frames.push(number(part)?),
            }
        }
        Ok(Self(frames))
    }
}

/// A JSON value that keeps the order of its keys, to be written as a pickle.
enum Json {
    Null,
    Bool(bool),
    Int(i64),
    Unsigned(u64),
    Float(f64),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(truth) => serializer.serialize_bool(*truth),
            Self::Int(number) => serializer.serialize_i64(*number),
            Self::Unsigned(number) => serializer.serialize_u64(*number),
            Self::Float(number) => serializer.serialize_f64(*number),
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(items) => items.serialize(serializer),
            Self::Object(pairs) => {
                let mut map = serializer.serialize_map(Some(pairs.len()))?;
                for (key, value) in pairs {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> std::result::Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, truth: bool) -> std::result::Result<Json, E> {
        Ok(Json::Bool(truth))
    }

    fn visit_i64<E>(self, number: i64) -> std::result::Result<Json, E> {
        Ok(Json::Int(number))
    }

    fn visit_u64<E>(self, number: u64) -> std::result::Result<Json, E> {
        Ok(Json::Unsigned(number))
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> std::result::Result<Json, E> {
        // serde_json rounds integers of more than 64 bits to floats.
        if number.abs() >= 2f64.powi(63) {
            return Err(E::custom(format!("{number} is too large for --pickle: it may be a rounded integer")));
        }
        Ok(Json::Float(number))
    }

    fn visit_str<E>(self, text: &str) -> std::result::Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<Json, A::Error> {
        let mut pairs = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            pairs.push(entry);
        }
        Ok(Json::Object(pairs))
    }
}
