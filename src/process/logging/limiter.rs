//! Limits the rate of log lines per call site. The text of a line does not count, so clients cannot evade the limit.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use log::{Level, Record};

/// How many lines of one call site may be logged at once.
const BURST: u32 = 50;

/// The shortest interval between further lines. With [`BURST`], this allows 170 lines in the first minute.
const INTERVAL: Duration = Duration::from_millis(500);

/// How long after the first suppressed line of a call site the number of such lines is reported: late enough for a
/// single report of a burst, and within a minute even on a busy machine.
const REPORT_AFTER: Duration = Duration::from_secs(30);

/// How many bytes of the first suppressed line the report shows.
const SAMPLE: usize = 100;

/// A call site of a log macro. Their number is fixed, which bounds the memory of the limiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Site {
    module: &'static str,
    line: u32,
    level: Level,
}

impl Site {
    /// The call site of a record.
    pub fn of(record: &Record<'_>) -> Self {
        Self {
            module: record.module_path_static().unwrap_or_default(),
            line: record.line().unwrap_or_default(),
            level: record.level(),
        }
    }

    /// Its level.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Its module.
    pub fn module(&self) -> &'static str {
        self.module
    }
}

/// A report of lines that were not logged.
#[derive(Debug, PartialEq, Eq)]
pub struct Suppressed {
    /// Their call site.
    pub site: Site,
    /// Their number.
    pub lines: u64,
    /// The start of the first one.
    pub sample: String,
    /// The time since the first one.
    pub within: Duration,
}

/// Counts the lines of every call site.
#[derive(Debug, Default)]
pub struct Limiter {
    sites: HashMap<Site, Rate>,
}

#[derive(Debug)]
struct Rate {
    /// The time at which the admitted lines would be used up at one per [`INTERVAL`].
    busy_until: Instant,
    /// The time of the first suppressed line, their number, and the sample.
    suppressed: Option<(Instant, u64, String)>,
}

impl Limiter {
    /// Whether a line may be logged now. If not, it is counted as suppressed.
    pub fn admit(&mut self, site: Site, now: Instant, text: impl ToString) -> bool {
        let rate = self.sites.entry(site).or_insert(Rate { busy_until: now, suppressed: None });
        let from = rate.busy_until.max(now);
        if from - now <= INTERVAL * (BURST - 1) {
            rate.busy_until = from + INTERVAL;
            return true;
        }
        match &mut rate.suppressed {
            Some((_, lines, _)) => *lines += 1,
            none => *none = Some((now, 1, beginning(text.to_string()))),
        }
        false
    }

    /// The time of the next report, if there is one.
    pub fn next_report(&self) -> Option<Instant> {
        let since = self.sites.values().filter_map(|rate| rate.suppressed.as_ref().map(|(since, ..)| *since));
        since.min().map(|since| since + REPORT_AFTER)
    }

    /// Takes the reports that are due now, or `all` of them at the end of the process.
    pub fn reports(&mut self, now: Instant, all: bool) -> Vec<Suppressed> {
        let is_due = |since: Instant| all || since + REPORT_AFTER <= now;
        let due = self.sites.iter_mut().filter_map(|(&site, rate)| {
            let (since, lines, sample) = rate.suppressed.take_if(|(since, ..)| is_due(*since))?;
            Some(Suppressed { site, lines, sample, within: now.saturating_duration_since(since) })
        });
        due.collect()
    }
}

fn beginning(mut text: String) -> String {
    if text.len() > SAMPLE {
        let end = (0..=SAMPLE).rev().find(|&at| text.is_char_boundary(at)).unwrap_or_default();
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Site = Site { module: "here", line: 1, level: Level::Info };

    #[test]
    fn a_burst_is_limited_and_the_suppressed_lines_are_counted_once_within_a_minute() {
        let mut limiter = Limiter::default();
        let start = Instant::now();
        let at = |number: u32| start + Duration::from_millis(5) * number;
        let logged = (0..2_000).filter(|&number| limiter.admit(HERE, at(number), "a line")).count();
        assert!((BURST as usize..200).contains(&logged), "{logged}");
        let due = limiter.next_report().expect("lines were suppressed");
        assert!(due <= start + Duration::from_secs(60));
        assert!(limiter.reports(due - Duration::from_millis(1), false).is_empty(), "too early");
        let reports = limiter.reports(due, false);
        let [Suppressed { lines, sample, site, .. }] = &reports[..] else { panic!("{reports:?}") };
        assert_eq!((*lines as usize, sample.as_str(), *site), (2_000 - logged, "a line", HERE));
        assert_eq!((limiter.next_report(), limiter.reports(due, true)), (None, Vec::new()));
    }

    #[test]
    fn a_slow_stream_is_logged_in_full_and_a_pause_permits_another_burst() {
        let mut limiter = Limiter::default();
        let start = Instant::now();
        assert!((0..500).all(|number| limiter.admit(HERE, start + INTERVAL * number, "")));
        let later = start + INTERVAL * (500 + BURST);
        assert!((0..BURST).all(|_| limiter.admit(HERE, later, "")));
        assert!(!limiter.admit(HERE, later, ""));
    }

    #[test]
    fn call_sites_are_independent_and_the_end_reports_all() {
        let mut limiter = Limiter::default();
        let now = Instant::now();
        let there = Site { line: 2, ..HERE };
        for _ in 0..BURST + 1 {
            limiter.admit(HERE, now, "");
        }
        assert!(limiter.admit(there, now, ""));
        assert_eq!(limiter.reports(now, true).len(), 1);
    }

    #[test]
    fn a_sample_is_truncated_between_characters() {
        assert_eq!(beginning("ä".repeat(200)), format!("{}…", "ä".repeat(SAMPLE / 2)));
        assert_eq!(beginning("short".to_owned()), "short");
    }
}
