//! The queue of formatted lines, and the thread that writes them.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use log::{Level, Record};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::stdio::stderr;

use super::limiter::{Limiter, Site, Suppressed};

/// How many bytes may wait (some thousands of lines); further lines are dropped and counted. That happens only if
/// nobody reads standard error, because each call site is rate-limited.
const CAPACITY: usize = 1 << 20;

/// The target of the log's own lines.
const OWN_TARGET: &str = module_path!();

/// Lines that wait to be written to standard error.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    /// Notified when a line waits, has been suppressed, or has been written.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// Whether the thread waits for the next line.
    idle: bool,
    /// The number of lines that did not fit or could not be written, and have not been reported.
    dropped: u64,
    limiter: Limiter,
    /// Whether the process is ending, so that suppressed lines are reported at once.
    ending: bool,
}

impl Queue {
    /// Whether a line may be logged. If not, it is counted as suppressed.
    pub fn admit(&self, record: &Record<'_>) -> bool {
        let mut state = self.lock();
        let next_report = state.limiter.next_report();
        let admitted = state.limiter.admit(Site::of(record), Instant::now(), record.args());
        if !admitted && next_report.is_none() {
            self.changed.notify_all();
        }
        admitted
    }

    /// Queues a line. If the queue is full, the line is dropped unless it is urgent.
    pub fn push(&self, line: &[u8], urgent: bool) {
        let mut state = self.lock();
        if urgent || state.waiting.len() + line.len() <= CAPACITY {
            state.waiting.extend_from_slice(line);
            self.changed.notify_all();
        } else {
            state.dropped += 1;
        }
    }

    /// Waits until everything is written, reports of suppressed lines included, or until the deadline.
    pub fn finish(&self, deadline: Instant) {
        let mut state = self.lock();
        state.ending = true;
        self.changed.notify_all();
        while !(state.idle && state.waiting.is_empty() && state.limiter.next_report().is_none()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Writes the queued lines; never returns. `write` returns how many bytes it has written; bytes that it has not
    /// written are lost. `report` formats a line and queues it as urgent.
    pub fn run(&self, write: impl Fn(&[u8]) -> usize, report: impl Fn(&Record<'_>)) {
        loop {
            let lines = self.wait_for_lines(&report);
            let lost = lines[write(&lines)..].iter().filter(|&&byte| byte == b'\n').count() as u64;
            let mut state = self.lock();
            if lost > 0 {
                state.dropped += lost;
                continue;
            }
            let dropped = std::mem::take(&mut state.dropped);
            drop(state);
            if dropped > 0 {
                let text =
                    format_args!("{dropped} log lines were dropped: nobody read them, or they could not be written");
                report(&Record::builder().level(Level::Warn).target(OWN_TARGET).args(text).build());
            }
        }
    }

    fn wait_for_lines(&self, report: impl Fn(&Record<'_>)) -> Vec<u8> {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let all = state.ending;
            let reports = state.limiter.reports(now, all);
            if !reports.is_empty() {
                drop(state);
                for Suppressed { site, lines, sample, within } in reports {
                    let seconds = within.as_secs() + 1;
                    let text = format_args!("{lines} lines like this were suppressed within {seconds} s: {sample}");
                    report(&Record::builder().level(site.level()).target(site.module()).args(text).build());
                }
                state = self.lock();
            }
            if !state.waiting.is_empty() {
                return std::mem::take(&mut state.waiting);
            }
            state.idle = true;
            self.changed.notify_all();
            state = match state.limiter.next_report() {
                Some(due) => {
                    let left = due.saturating_duration_since(now);
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            state.idle = false;
        }
    }

    /// Ignores poisoning: every change of the state is complete before anything can panic.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes to standard error, whose reader may be slow or have closed it. Returns how many bytes were written.
pub fn standard_error(bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        match rustix::io::write(stderr(), &bytes[written..]) {
            Ok(len) => written += len,
            Err(Errno::INTR) => {}
            // Another process that shares the file has made it non-blocking.
            Err(Errno::AGAIN) => {
                if poll(&mut [PollFd::new(&stderr(), PollFlags::OUT)], None).is_err_and(|error| error != Errno::INTR) {
                    break;
                }
            }
            Err(_) => break,
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::sync::{Arc, Mutex};
    use std::thread;
    use std::time::Duration;

    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    /// A queue whose thread needs a token for each write; without one it blocks, as on a full pipe.
    struct Written {
        queue: Arc<Queue>,
        tokens: mpsc::Sender<bool>,
        lines: Arc<Mutex<String>>,
    }

    /// A token is whether the write succeeds.
    fn written() -> Written {
        let queue = Arc::new(Queue::default());
        let (tokens, next) = mpsc::channel();
        let lines = Arc::new(Mutex::new(String::new()));
        let (thread_queue, thread_lines, reports) = (Arc::clone(&queue), Arc::clone(&lines), Arc::clone(&queue));
        let write = move |bytes: &[u8]| {
            // An error means that the test has ended and dropped the sender.
            if !next.recv().unwrap_or(true) {
                return 0;
            }
            thread_lines.lock().expect("the lines").push_str(&String::from_utf8_lossy(bytes));
            bytes.len()
        };
        let report = move |record: &Record<'_>| reports.push(format!("{}\n", record.args()).as_bytes(), true);
        // Runs until the test process ends.
        thread::spawn(move || thread_queue.run(write, report));
        Written { queue, tokens, lines }
    }

    impl Written {
        /// Everything that was written, once the queue is empty.
        fn end(self) -> String {
            drop(self.tokens);
            self.queue.finish(Instant::now() + SOON);
            self.lines.lock().expect("the lines").clone()
        }
    }

    #[test]
    fn lines_that_do_not_fit_are_dropped_at_once_and_reported_when_there_is_space() {
        let written = written();
        let line = [&[b'x'; 999][..], b"\n"].concat();
        for _ in 0..5_000 {
            written.queue.push(&line, false);
        }
        let text = written.end();
        let whole = text.lines().filter(|line| line.len() == 999).count();
        assert!(whole * 1_000 <= 2 * CAPACITY, "{whole}");
        assert!(text.contains(&format!("{} log lines were dropped", 5_000 - whole)), "{whole}");
    }

    #[test]
    fn lines_that_could_not_be_written_are_counted_as_dropped() {
        let written = written();
        written.tokens.send(false).expect("it writes");
        written.queue.push(b"one\n", false);
        let deadline = Instant::now() + SOON;
        while written.queue.lock().dropped == 0 {
            assert!(Instant::now() < deadline, "the line is neither written nor dropped");
            thread::yield_now();
        }
        written.queue.push(b"two\n", false);
        assert_eq!(written.end(), "two\n1 log lines were dropped: nobody read them, or they could not be written\n");
    }

    #[test]
    fn the_end_does_not_wait_longer_than_its_deadline_for_a_reader() {
        let written = written();
        written.queue.push(b"a line\n", false);
        written.queue.finish(Instant::now() + Duration::from_millis(10));
        assert_eq!(*written.lines.lock().expect("the lines"), "");
        assert_eq!(written.end(), "a line\n");
    }
}
