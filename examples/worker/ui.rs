//! Progress: bars on a terminal, otherwise plain lines.

use std::cell::Cell;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

const TRANSFER: &str = "{msg:24} {wide_bar} {bytes:>10}/{total_bytes} {bytes_per_sec:>12} {eta:>4}";
const FRAMES: &str = "{msg:24} {wide_bar} {pos:>4}/{len} frames {elapsed:>4} {spinner}";

/// The interval of plain lines about a long transfer.
const LINE_EVERY: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct Ui {
    bars: MultiProgress,
}

impl Ui {
    /// Prints a line to stderr, above the bars.
    pub fn say(&self, line: impl AsRef<str>) {
        // Hidden bars print nothing.
        if self.bars.is_hidden() || self.bars.println(&line).is_err() {
            eprintln!("{}", line.as_ref());
        }
    }

    pub fn frames(&self, total: usize) -> ProgressBar {
        let bar = self.bar(total as u64, FRAMES, "rendering".into());
        if !self.bars.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        bar
    }

    pub fn transfer(&self, what: impl Into<String>, total: u64, done: u64) -> Transfer<'_> {
        let what = what.into();
        let bar = self.bar(total, TRANSFER, what.clone());
        bar.set_position(done);
        bar.reset_eta();
        Transfer { ui: self, bar, what, last_line: Cell::new(Instant::now()) }
    }

    fn bar(&self, total: u64, template: &str, message: String) -> ProgressBar {
        let style = ProgressStyle::with_template(template).expect("the templates above are well-formed");
        self.bars.insert(0, ProgressBar::new(total).with_style(style).with_message(message))
    }
}

/// The bar of one transfer, removed on drop.
pub struct Transfer<'a> {
    ui: &'a Ui,
    bar: ProgressBar,
    what: String,
    last_line: Cell<Instant>,
}

impl Transfer<'_> {
    pub fn advance(&self, bytes: usize) {
        self.bar.inc(bytes as u64);
        if self.ui.bars.is_hidden() && self.last_line.get().elapsed() >= LINE_EVERY {
            self.last_line.set(Instant::now());
            let (done, total) = (HumanBytes(self.bar.position()), HumanBytes(self.bar.length().unwrap_or(0)));
            self.ui.say(format!("{}: {done} of {total}", self.what));
        }
    }
}

impl Drop for Transfer<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
