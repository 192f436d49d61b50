//! How many lines of one kind are logged. A kind is a place in the program: what a line says cannot make it another.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use log::{Level, Record};

/// How many lines of one kind may come at once.
const BURST: u32 = 50;

/// How often one may come after that: with [`BURST`], 170 lines a minute.
const INTERVAL: Duration = Duration::from_millis(500);

/// How long after the first suppressed line of a kind their number is told: late enough for one line about a burst, and
/// within a minute on a busy machine.
const REPORT_AFTER: Duration = Duration::from_secs(30);

/// How much of a suppressed line is kept, in bytes, to say which kind it was.
const SAMPLE: usize = 100;

/// A place in the program that logs. There are as many as the program has, whatever comes from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Site {
    module: &'static str,
    line: u32,
    level: Level,
}

impl Site {
    /// Where a record comes from.
    pub fn of(record: &Record<'_>) -> Self {
        Self {
            module: record.module_path_static().unwrap_or_default(),
            line: record.line().unwrap_or_default(),
            level: record.level(),
        }
    }

    /// The level of its lines.
    pub fn level(&self) -> Level {
        self.level
    }

    /// The module that it is in.
    pub fn module(&self) -> &'static str {
        self.module
    }
}

/// Lines that were not logged.
#[derive(Debug, PartialEq, Eq)]
pub struct Suppressed {
    /// Their kind.
    pub site: Site,
    /// How many.
    pub lines: u64,
    /// How the first of them begins.
    pub sample: String,
    /// For how long.
    pub within: Duration,
}

/// Counts the lines of every kind.
#[derive(Debug, Default)]
pub struct Limiter {
    kinds: HashMap<Site, Kind>,
}

#[derive(Debug)]
struct Kind {
    /// When all that was admitted would have come, one each [`INTERVAL`].
    busy_until: Instant,
    suppressed: Option<(Instant, u64, String)>,
}

impl Limiter {
    /// Whether a line may be logged now. One that may not is counted.
    pub fn admit(&mut self, site: Site, now: Instant, text: impl ToString) -> bool {
        let kind = self.kinds.entry(site).or_insert(Kind { busy_until: now, suppressed: None });
        let from = kind.busy_until.max(now);
        if from - now <= INTERVAL * (BURST - 1) {
            kind.busy_until = from + INTERVAL;
            return true;
        }
        match &mut kind.suppressed {
            Some((_, lines, _)) => *lines += 1,
            none => *none = Some((now, 1, beginning(text.to_string()))),
        }
        false
    }

    /// When there is next something to tell.
    pub fn next_report(&self) -> Option<Instant> {
        let since = self.kinds.values().filter_map(|kind| kind.suppressed.as_ref().map(|(since, ..)| *since));
        since.min().map(|since| since + REPORT_AFTER)
    }

    /// What is to be told by now, and counts anew. At the end of the process that is everything.
    pub fn reports(&mut self, now: Instant, all: bool) -> Vec<Suppressed> {
        let is_due = |since: Instant| all || since + REPORT_AFTER <= now;
        let due = self.kinds.iter_mut().filter_map(|(&site, kind)| {
            let (since, lines, sample) = kind.suppressed.take_if(|(since, ..)| is_due(*since))?;
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
    fn a_burst_is_cut_and_its_rest_told_once_within_a_minute() {
        let mut limiter = Limiter::default();
        let start = Instant::now();
        let at = |number: u32| start + Duration::from_millis(5) * number;
        let logged = (0..2_000).filter(|&number| limiter.admit(HERE, at(number), "a line")).count();
        assert!((BURST as usize..200).contains(&logged), "{logged}");
        let due = limiter.next_report().expect("lines were suppressed");
        assert!(due <= start + Duration::from_secs(60));
        assert!(limiter.reports(due - Duration::from_millis(1), false).is_empty(), "too early");
        let told = limiter.reports(due, false);
        let [Suppressed { lines, sample, site, .. }] = &told[..] else { panic!("{told:?}") };
        assert_eq!((*lines as usize, sample.as_str(), *site), (2_000 - logged, "a line", HERE));
        assert_eq!((limiter.next_report(), limiter.reports(due, true)), (None, Vec::new()));
    }

    #[test]
    fn a_slow_stream_is_logged_whole_and_a_pause_makes_room_for_another_burst() {
        let mut limiter = Limiter::default();
        let start = Instant::now();
        assert!((0..500).all(|number| limiter.admit(HERE, start + INTERVAL * number, "")));
        let later = start + INTERVAL * (500 + BURST);
        assert!((0..BURST).all(|_| limiter.admit(HERE, later, "")));
        assert!(!limiter.admit(HERE, later, ""));
    }

    #[test]
    fn one_kind_takes_nothing_from_another_and_the_end_tells_of_all() {
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
    fn a_sample_is_cut_between_characters() {
        assert_eq!(beginning("ä".repeat(200)), format!("{}…", "ä".repeat(SAMPLE / 2)));
        assert_eq!(beginning("short".to_owned()), "short");
    }
}
