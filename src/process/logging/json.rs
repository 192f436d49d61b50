//! A record of the log as one line of JSON.

use std::fmt::{self, Display, Write as _};
use std::io;

use log::Record;
use log::kv::{self, Key, Value, VisitSource};
use user_http_server::current_request_id;

/// Writes a record. `time` is in the form of RFC 3339.
///
/// | field | value |
/// | --- | --- |
/// | `time`, `level`, `target`, `message` | of the record |
/// | `request_id` | of the request that is being handled; a key-value pair of that name takes precedence |
/// | others | the other key-value pairs of the record |
pub fn write(line: &mut impl io::Write, time: impl Display, record: &Record<'_>) -> io::Result<()> {
    let mut object = Object(String::with_capacity(256));
    object.0.push('{');
    object.text("time", &time);
    object.text("level", &record.level());
    object.text("target", &record.target());
    object.text("message", record.args());
    let pairs = record.key_values();
    if pairs.get(Key::from("request_id")).is_none()
        && let Some(id) = current_request_id()
    {
        object.text("request_id", &id);
    }
    // never fails, because the visitor does not
    let _ = pairs.visit(&mut object);
    object.0.push_str("}\n");
    // at once, because each write is a line
    line.write_all(object.0.as_bytes())
}

/// The text of an object whose closing brace is missing.
struct Object(String);

impl Object {
    fn name(&mut self, name: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        self.string(&name);
        self.0.push(':');
    }

    fn text(&mut self, name: &str, value: &dyn Display) {
        self.name(name);
        self.string(value);
    }

    fn string(&mut self, value: &dyn Display) {
        self.0.push('"');
        // Writing to a string fails only if a value does; then its beginning is shown.
        let _ = write!(Escaped(&mut self.0), "{value}");
        self.0.push('"');
    }
}

impl<'kvs> VisitSource<'kvs> for Object {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        self.name(key.as_str());
        if let Some(number) = value.to_i64() {
            // Writing to a string never fails.
            let _ = write!(self.0, "{number}");
        } else if let Some(truth) = value.to_bool() {
            self.0.push_str(if truth { "true" } else { "false" });
        } else {
            self.string(&value);
        }
        Ok(())
    }
}

/// Writes the content of a JSON string. Escapes every control character and every line separator of Unicode, so that a
/// record is one line for whatever reads it.
struct Escaped<'a>(&'a mut String);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            match char {
                '"' => self.0.push_str("\\\""),
                '\\' => self.0.push_str("\\\\"),
                '\n' => self.0.push_str("\\n"),
                '\u{2028}' | '\u{2029}' => write!(self.0, "\\u{:04x}", char as u32)?,
                // all of them are below U+0100
                _ if char.is_control() => write!(self.0, "\\u{:04x}", char as u32)?,
                _ => self.0.push(char),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use log::Level;
    use serde_json::json;

    use super::*;

    fn line(record: &Record<'_>) -> String {
        let mut line = Vec::new();
        write(&mut line, "2026-11-27T01:02:03.004Z", record).expect("a vector takes it");
        String::from_utf8(line).expect("UTF-8")
    }

    #[test]
    fn a_record_is_one_line_of_json_whatever_its_message_has() {
        for text in ["plain", "\"quoted\\\"", "two\nlines\r\n", "\0\x1b[31m\x7f\u{85}\u{2028}\u{2029}", "ä€😀", ""]
        {
            let args = format_args!("{text}");
            let record = Record::builder().level(Level::Warn).target("a::target").args(args).build();
            let line = line(&record);
            assert_eq!(line.trim_end_matches('\n').len(), line.len() - 1, "{line:?}");
            let ends = |char: char| char.is_control() || matches!(char, '\u{2028}' | '\u{2029}');
            assert!(!line.trim_end_matches('\n').contains(ends), "{line:?}");
            let time = "2026-11-27T01:02:03.004Z";
            let expected = json!({ "time": time, "level": "WARN", "target": "a::target", "message": text });
            assert_eq!(serde_json::from_str::<serde_json::Value>(&line).expect("JSON"), expected);
        }
    }

    #[test]
    fn key_value_pairs_are_fields_of_their_types() {
        let pairs = [
            ("request_id", Value::from("an\nid")),
            ("count", Value::from(-7)),
            ("ready", Value::from(true)),
            ("rate", Value::from(1.5)),
        ];
        let record = Record::builder().level(Level::Info).args(format_args!("text")).key_values(&pairs).build();
        let value: serde_json::Value = serde_json::from_str(&line(&record)).expect("JSON");
        assert_eq!(
            (&value["request_id"], &value["count"], &value["ready"], &value["rate"]),
            (&json!("an\nid"), &json!(-7), &json!(true), &json!("1.5"))
        );
    }
}
