//! The recent events of the process: what its log says, kept for the status page.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use log::{Level, Record};

use crate::status::lock;

/// How many events are kept. Each takes at most [`MAX_TEXT`] bytes, so all take at most 40 KiB.
const MAX_EVENTS: usize = 100;

/// How many bytes of a text are kept.
const MAX_TEXT: usize = 400;

/// The crates whose records are events.
const OWN_CRATES: [&str; 2] = ["user_http_server", "user_http_actors"];

/// The most recent log records of the gateway, which `GET /status` and the status page show. Clones share them.
///
/// A library installs no logger, so whoever does passes the records on. The program does that with every record that
/// it logs. In an application without such a logger there are no events.
///
/// ```
/// use log::{Log, Metadata, Record};
/// use user_http_server::RecentEvents;
///
/// struct Logger(RecentEvents);
///
/// impl Log for Logger {
///     fn enabled(&self, _: &Metadata<'_>) -> bool {
///         true
///     }
///
///     fn log(&self, record: &Record<'_>) {
///         self.0.note(record);
///     }
///
///     fn flush(&self) {}
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let events = RecentEvents::default();
/// log::set_boxed_logger(Box::new(Logger(events.clone())))?;
/// // … and the service shows them:
/// let mut config = user_http_server::Config::load(["gateway", "--memory"].map(Into::into), [])?;
/// config.events = events;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct RecentEvents(Arc<Mutex<VecDeque<Event>>>);

/// A log record that was kept.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Event {
    pub time: SystemTime,
    pub level: Level,
    pub text: String,
    /// The call site: module and line.
    site: (Option<&'static str>, Option<u32>),
}

impl RecentEvents {
    /// Keeps a record of the gateway's own crates, of level info or above. Others are ignored.
    ///
    /// Beyond 100 records, the oldest one is dropped of the call site that has the most. So a stranger who makes the
    /// gateway log one line again and again drops only those lines, and not the one that says why.
    pub fn note(&self, record: &Record<'_>) {
        let module = record.target().split("::").next().unwrap_or_default();
        if record.level() > Level::Info || !OWN_CRATES.contains(&module) {
            return;
        }
        let mut text = record.args().to_string();
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        let site = (record.module_path_static(), record.line());
        let mut events = lock(&self.0);
        events.push_back(Event { time: SystemTime::now(), level: record.level(), text, site });
        if events.len() > MAX_EVENTS {
            let count = |event: &Event| events.iter().filter(|other| other.site == event.site).count();
            let most = events.iter().map(count).max();
            let oldest = events.iter().position(|event| Some(count(event)) == most);
            oldest.map(|oldest| events.remove(oldest));
        }
    }

    /// All of them, newest first.
    pub(crate) fn newest_first(&self) -> Vec<Event> {
        let events = lock(&self.0);
        events.iter().rev().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(events: &RecentEvents, target: &str, level: Level, line: u32, text: &str) {
        let args = format_args!("{text}");
        let record = Record::builder().target(target).level(level).line(Some(line)).args(args).build();
        events.note(&record);
    }

    fn texts(events: &RecentEvents) -> Vec<String> {
        events.newest_first().into_iter().map(|event| event.text).collect()
    }

    #[test]
    fn records_of_other_crates_and_lower_levels_are_no_events() {
        let events = RecentEvents::default();
        for (target, level) in [
            ("user_http_actors::publisher", Level::Warn),
            ("user_http_server", Level::Error),
            ("user_http_server::service", Level::Debug),
            ("actix_server::builder", Level::Info),
            ("user_http_servers", Level::Info),
        ] {
            note(&events, target, level, 1, target);
        }
        assert_eq!(texts(&events), ["user_http_server", "user_http_actors::publisher"]);
    }

    #[test]
    fn a_flood_from_one_call_site_drops_only_its_own_records() {
        let events = RecentEvents::default();
        note(&events, "user_http_actors", Level::Warn, 1, "the broker is away");
        for number in 0..1_000 {
            note(&events, "user_http_server", Level::Info, 2, &format!("TEST {number}"));
            note(&events, "user_http_server", Level::Info, 3, &format!("hang-up {number}"));
        }
        let texts = texts(&events);
        assert_eq!(texts.len(), MAX_EVENTS);
        assert_eq!((texts[0].as_str(), texts[99].as_str()), ("hang-up 999", "the broker is away"));
        assert!(texts.contains(&"TEST 999".to_owned()), "{texts:?}");
    }

    #[test]
    fn a_long_text_is_truncated_between_characters() {
        let events = RecentEvents::default();
        note(&events, "user_http_server", Level::Info, 1, &format!("x{}", "ä".repeat(1_000)));
        assert_eq!(texts(&events)[0].len(), MAX_TEXT - 1);
    }
}
