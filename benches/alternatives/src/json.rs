//! The JSON readers: how fast they read the contract's messages, and what they make of JSON that Python's `json` reads
//! in a way of its own.

use std::error::Error;
use std::fmt::Write;
use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiter::JsonValue;
use user_http_actors::codec::{Format, decode_communication_interface_message, decode_user_message};

use crate::process::processor_seconds;
use crate::queue::cell;

/// How long a reader reads a message in each round.
const ROUND: Duration = Duration::from_millis(300);

pub fn compare(rounds: usize) -> Result<(), Box<dyn Error>> {
    println!("\n### MB per second of processor time");
    println!("| message | bytes | codec | serde_json | jiter | codec, with the pickle |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for (what, value) in messages() {
        // a type that the gateway drops: the codec reads all of it and writes nothing
        let posted = format!(r#"{{"USER_ID":"bench","MAIN_DATA":{{"TYPE":"OTHER","DATA":{value}}}}}"#);
        let posted = Bytes::from(posted.into_bytes());
        let added = Bytes::from(add(&value).into_bytes());
        // its recursion limit is 128
        let is_refused = serde_json::from_slice::<serde_json::Value>(&posted).is_err();
        let mut rates = [const { Vec::new() }; 4];
        for _ in 0..rounds {
            let readers: [&dyn Fn(); 4] = [
                &|| drop(black_box(decode_user_message(Format::Json, posted.clone()).expect("a message"))),
                &|| drop(black_box(serde_json::from_slice::<serde_json::Value>(&posted))),
                &|| drop(black_box(JsonValue::parse(&posted, true).expect("JSON"))),
                &|| drop(black_box(decode_communication_interface_message(Format::Json, added.clone()).expect("one"))),
            ];
            for (reader, rates) in readers.iter().zip(&mut rates) {
                rates.push(megabytes_per_second(posted.len(), reader));
            }
        }
        let mut cells: Vec<String> = rates.into_iter().map(cell).collect();
        if is_refused {
            cells[1] = "refused".to_owned();
        }
        println!("| {what} | {} | {} |", posted.len(), cells.join(" | "));
    }
    println!("\n### What they read");
    println!("| JSON | Python's `json` | codec | serde_json | jiter |");
    println!("| --- | --- | --- | --- | --- |");
    for Case { what, json, python } in cases() {
        let answers = [by_codec(&json), by_serde_json(&json), by_jiter(&json)];
        println!("| {what} | {} | {} |", short(python), answers.map(|answer| short(answer)).join(" | "));
    }
    Ok(())
}

fn megabytes_per_second(bytes: usize, read: &dyn Fn()) -> f64 {
    let (start, before, mut reads) = (Instant::now(), processor_seconds(), 0_u64);
    while start.elapsed() < ROUND {
        read();
        reads += 1;
    }
    (reads * bytes as u64) as f64 / 1e6 / (processor_seconds() - before)
}

/// What stands in a message of the contract.
fn messages() -> Vec<(&'static str, String)> {
    const MIB: usize = 1 << 20;
    let text = "Rendered by the farm, ".repeat(MIB / 22);
    let pixels = |count: usize| (0..count).map(|n| (n * 73 % 256).to_string()).collect::<Vec<_>>().join(",");
    let base64: String = (0..MIB / 3 * 4).map(|n| char::from(b'A' + (n * 7 % 26) as u8)).collect();
    let nested = format!("{}{}", "[".repeat(150), "]".repeat(150));
    let lists = vec![nested; MIB / 301].join(",");
    vec![
        (
            "small message",
            r#"{"TYPE":"RENDER","FRAMES":[1,2,3,4],"SCALE":0.5,"BLEND":"a/b.blend","LOOP":false}"#.into(),
        ),
        ("1 MiB of text", format!(r#""{text}""#)),
        ("1 MiB of text with escapes", format!(r#""{}""#, text.replace(", ", "\\n\\u00e4"))),
        ("frame of 256 KiB as a list of ints", format!(r#"{{"IMAGE":[{}]}}"#, pixels(MIB / 4))),
        ("frame of 1 MiB as base64", format!(r#"{{"IMAGE":"{base64}"}}"#)),
        ("1 MiB of lists, 150 deep", format!("[{lists}]")),
    ]
}

fn add(value: &str) -> String {
    format!(r#"{{"TYPE":"ADD_BUFFER_MSG","DATA":{{"BUFFER_UUID":"bench","BUFFER_MSG":{value}}}}}"#)
}

struct Case {
    what: &'static str,
    /// One list with one value.
    json: Vec<u8>,
    /// Its `repr`, or `REFUSED`.
    python: String,
}

const REFUSED: &str = "refused";

fn cases() -> Vec<Case> {
    let case = |what, json: &str, python: &str| Case { what, json: json.into(), python: python.into() };
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let digits = "7".repeat(20_000);
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    vec![
        case("repeated key", r#"[{"a":1,"b":2,"a":3}]"#, "[{a: 3, b: 2}]"),
        case("`NaN`", "[NaN]", "[nan]"),
        case("`-Infinity`", "[-Infinity]", "[-inf]"),
        case("`1e400`", "[1e400]", "[inf]"),
        case("`-0`", "[-0]", "[0]"),
        case("`1.0`", "[1.0]", "[1.0]"),
        case("2^63", "[9223372036854775808]", "[9223372036854775808]"),
        case("integer of 20,000 digits", &format!("[{digits}]"), &format!("[{digits}]")),
        case("190 lists", &deep(190), &deep(190)),
        case("surrogate pair", r#"["\ud83d\ude00"]"#, "['\u{1f600}']"),
        Case { what: "UTF-16", json: utf16("[\"ä\"]"), python: "['ä']".into() },
        case("byte-order mark in UTF-8", "\u{feff}[1]", "[1]"),
        // Python would make a string of it that cannot be encoded: the contract refuses it
        case("lone surrogate", r#"["\ud800"]"#, REFUSED),
        case("control character", "[\"\u{1}\"]", REFUSED),
        Case { what: "invalid UTF-8", json: b"[\"\xff\"]".to_vec(), python: REFUSED.into() },
        case("`01`", "[01]", REFUSED),
        case("comma before the end", "[1,]", REFUSED),
    ]
}

fn short(answer: String) -> String {
    match answer.chars().count() {
        0..=24 => format!("`{answer}`"),
        length => format!("`{}…` ({length} characters)", answer.chars().take(8).collect::<String>()),
    }
}

/// What the codec writes for a worker, read by a pickle reader that sorts keys.
fn by_codec(json: &[u8]) -> String {
    let (start, end) = (add("").len() - 2, add("").len());
    let (before, after) = (&add("")[..start], &add("")[start..end]);
    // the envelope is in the encoding of the value
    let body = match json.get(1) {
        Some(0) => {
            let wide = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
            [wide(before), json.to_vec(), wide(after)].concat()
        }
        _ => match json.strip_prefix("\u{feff}".as_bytes()) {
            Some(json) => ["\u{feff}".as_bytes(), before.as_bytes(), json, after.as_bytes()].concat(),
            None => [before.as_bytes(), json, after.as_bytes()].concat(),
        },
    };
    let Ok(message) = decode_communication_interface_message(Format::Json, body.to_vec()) else {
        return REFUSED.into();
    };
    let pickle = message.message.pickle.read_all().expect("a pickle in memory");
    match serde_pickle::value_from_slice(&pickle, serde_pickle::DeOptions::new()) {
        Ok(value) => repr_of_pickle(&value),
        Err(error) => format!("no pickle: {error}"),
    }
}

fn repr_of_pickle(value: &serde_pickle::Value) -> String {
    use serde_pickle::Value;
    match value {
        Value::I64(int) => int.to_string(),
        Value::Int(int) => int.to_string(),
        Value::F64(float) => repr_of_float(*float),
        Value::String(text) => format!("'{text}'"),
        Value::List(list) => repr_of_list(list.iter().map(repr_of_pickle)),
        Value::Dict(dict) => {
            repr_of_dict(dict.iter().map(|(key, value)| (key.to_string().replace('"', ""), repr_of_pickle(value))))
        }
        other => format!("{other:?}"),
    }
}

fn by_serde_json(json: &[u8]) -> String {
    serde_json::from_slice(json).map_or_else(|_| REFUSED.into(), |value| repr_of_serde_json(&value))
}

fn repr_of_serde_json(value: &serde_json::Value) -> String {
    use serde_json::Value;
    match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => format!("'{text}'"),
        Value::Array(list) => repr_of_list(list.iter().map(repr_of_serde_json)),
        Value::Object(dict) => repr_of_dict(dict.iter().map(|(key, value)| (key.clone(), repr_of_serde_json(value)))),
        other => format!("{other:?}"),
    }
}

fn by_jiter(json: &[u8]) -> String {
    JsonValue::parse(json, true).map_or_else(|_| REFUSED.into(), |value| repr_of_jiter(&value))
}

fn repr_of_jiter(value: &JsonValue<'_>) -> String {
    match value {
        JsonValue::Int(int) => int.to_string(),
        JsonValue::BigInt(int) => int.to_string(),
        JsonValue::Float(float) => repr_of_float(*float),
        JsonValue::Str(text) => format!("'{text}'"),
        JsonValue::Array(list) => repr_of_list(list.iter().map(repr_of_jiter)),
        JsonValue::Object(dict) => {
            repr_of_dict(dict.iter().map(|(key, value)| (key.to_string(), repr_of_jiter(value))))
        }
        other => format!("{other:?}"),
    }
}

fn repr_of_list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

fn repr_of_dict(items: impl Iterator<Item = (String, String)>) -> String {
    let mut out = String::from("{");
    for (index, (key, value)) in items.enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        let _ = write!(out, "{comma}{key}: {value}");
    }
    out + "}"
}

/// As Python writes it.
fn repr_of_float(float: f64) -> String {
    if float.is_nan() { "nan".into() } else { format!("{float:?}") }
}
