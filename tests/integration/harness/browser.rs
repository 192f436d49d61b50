//! Debian's Chromium, driven by `tests/peers/browser.py`. One browser serves all tests of the process.

use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::python::Process;
use super::{SOON, eventually, holds};

/// The browser, once a test has started it. It ends with this process, at the end of its stdin.
static BROWSER: Mutex<Option<Process>> = Mutex::new(None);

/// The colours that the reader prefers.
#[derive(Clone, Copy, Debug)]
pub enum Scheme {
    Light,
    Dark,
}

/// A page that one test has open.
pub struct Page {
    number: Value,
}

impl Page {
    /// Opens a page, 1,100 pixels wide.
    #[track_caller]
    pub fn open(url: &str) -> Self {
        Self::open_as(url, Scheme::Light, 1_100)
    }

    /// Opens a page with this width in pixels.
    #[track_caller]
    pub fn open_as(url: &str, scheme: Scheme, width: u32) -> Self {
        let scheme = match scheme {
            Scheme::Light => "light",
            Scheme::Dark => "dark",
        };
        Self { number: exchange(json!({ "do": "open", "url": url, "scheme": scheme, "width": width })) }
    }

    #[track_caller]
    fn act(&self, what: &str, mut arguments: Value) -> Value {
        arguments["do"] = what.into();
        arguments["page"] = self.number.clone();
        exchange(arguments)
    }

    /// The visible text.
    #[track_caller]
    pub fn text(&self) -> String {
        self.act("text", json!({})).as_str().expect("a text").to_owned()
    }

    /// Waits until the visible text contains all of these.
    #[track_caller]
    pub fn wait_for(&self, parts: &[&str]) -> String {
        eventually(&format!("the page shows {parts:?}"), SOON, || {
            let text = self.text();
            if parts.iter().all(|part| text.contains(part)) { Ok(text) } else { Err(text) }
        })
    }

    /// Waits until the visible text does not contain this.
    #[track_caller]
    pub fn wait_until_without(&self, part: &str) {
        eventually(&format!("the page no longer shows {part:?}"), SOON, || {
            let text = self.text();
            holds(!text.contains(part), text)
        });
    }

    /// The value of an expression in JavaScript.
    #[track_caller]
    pub fn evaluate(&self, script: &str) -> Value {
        self.act("evaluate", json!({ "script": script }))
    }

    /// Clicks the first button whose name contains this.
    #[track_caller]
    pub fn click(&self, name: &str) {
        self.act("button", json!({ "name": name }));
    }

    /// Fills the field with this label.
    #[track_caller]
    pub fn fill(&self, label: &str, text: &str) {
        self.act("fill", json!({ "label": label, "text": text }));
    }

    /// Presses a key.
    #[track_caller]
    pub fn press(&self, key: &str) {
        self.act("press", json!({ "key": key }));
    }

    /// Checks that axe-core finds no serious or critical violation.
    #[track_caller]
    pub fn assert_accessible(&self) {
        assert_eq!(self.act("axe", json!({})), json!([]));
    }

    /// Checks that everything was loaded from this origin, and that the console has no error.
    #[track_caller]
    pub fn assert_clean(&self, origin: &str) {
        let log = self.act("log", json!({}));
        assert_eq!(log["errors"], json!([]));
        let requests = log["requests"].as_array().expect("a list");
        let is_own = |url: &Value| url.as_str().is_some_and(|url| url.starts_with(origin) || url == "data:,");
        assert!(!requests.is_empty() && requests.iter().all(is_own), "not from {origin}: {requests:?}");
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.act("close", json!({}));
        }
    }
}

#[track_caller]
fn exchange(asked: Value) -> Value {
    let answer = {
        let mut browser = BROWSER.lock().unwrap_or_else(PoisonError::into_inner);
        browser.get_or_insert_with(|| Process::start("browser.py")).exchange(&asked)
    };
    match &answer["error"] {
        Value::String(error) => panic!("the browser failed at {asked}:\n{error}"),
        _ => answer["ok"].clone(),
    }
}
