//! The log: a line is formatted where it is logged, limited by its kind, and written to standard error by a thread of its
//! own. Whoever logs never waits for whoever reads.

mod limiter;
mod queue;

use std::io::{self, Write};
use std::panic::{self, PanicHookInfo};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use env_filter::Filter;
use env_logger::Target;
use log::{LevelFilter, Log, Metadata, Record};
use user_http_actors::broker::amqp::{CLIENT_LOG_TARGET, PASSWORD_LOG_TARGET};

use queue::Queue;

/// What is logged unless `RUST_LOG` says otherwise: actix-server repeats at every start what this program logs, and the AMQP
/// client what it logs about the broker.
fn default_filter() -> String {
    format!("info,actix_server=warn,{CLIENT_LOG_TARGET}=error")
}

/// How long the end of the process waits for whoever reads standard error.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The log of the process.
pub struct Logging {
    queue: Arc<Queue>,
}

impl Logging {
    /// Starts the thread that writes, and installs the logger and a panic hook that logs.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub fn start() -> io::Result<Self> {
        let (filter, mistake) = filter(std::env::var("RUST_LOG").ok());
        let queue = Arc::new(Queue::default());
        let reports = formatter(Box::new(Pipe { queue: Arc::clone(&queue), urgent: true }));
        let writing = Arc::clone(&queue);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || writing.run(queue::standard_error, |record| reports.log(record)))?;
        let lines = formatter(Box::new(Pipe { queue: Arc::clone(&queue), urgent: false }));
        let max_level = filter.filter();
        // refused only where there is a logger already
        if log::set_boxed_logger(Box::new(Logger { filter, queue: Arc::clone(&queue), lines })).is_ok() {
            log::set_max_level(max_level);
        }
        panic::set_hook(Box::new(log_panic));
        if let Some(mistake) = mistake {
            log::warn!("{mistake}");
        }
        Ok(Self { queue })
    }

    /// Writes a line to standard error in its turn, whatever is logged otherwise.
    pub fn say(&self, line: &str) {
        self.queue.push(format!("{}\n", line.trim_end()).as_bytes(), true);
    }
}

impl Drop for Logging {
    /// Says what was suppressed, and waits a moment for the last lines to be written.
    fn drop(&mut self) {
        self.queue.finish(Instant::now() + LAST_LINES);
    }
}

/// What is logged, and what is wrong with the text that says so.
fn filter(rust_log: Option<String>) -> (Filter, Option<String>) {
    let parse = |text: &str| {
        let mut builder = env_filter::Builder::new();
        builder.try_parse(text)?;
        // below this it writes the broker's password down, whatever RUST_LOG says
        builder.filter_module(PASSWORD_LOG_TARGET, LevelFilter::Info);
        Ok::<_, env_filter::ParseError>(builder.build())
    };
    let default = default_filter();
    let text = rust_log.as_deref().unwrap_or(&default);
    match parse(text) {
        Ok(filter) => (filter, None),
        Err(error) => {
            let mistake = format!("RUST_LOG is {text:?}: {error}; logging as with {default:?}");
            let filter = parse(&default).unwrap_or_else(|_| env_filter::Builder::new().build());
            (filter, Some(mistake))
        }
    }
}

/// What makes a line of a record. It filters nothing.
fn formatter(pipe: Box<dyn Write + Send>) -> env_logger::Logger {
    env_logger::Builder::new().filter_level(LevelFilter::Trace).target(Target::Pipe(pipe)).build()
}

/// The hook of the standard library writes to standard error itself, and would wait there.
fn log_panic(info: &PanicHookInfo<'_>) {
    let current = thread::current();
    let name = current.name().unwrap_or("without a name");
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let what = info.payload_as_str().unwrap_or("no text").escape_debug();
    // nothing unless RUST_BACKTRACE asks for it
    let backtrace = std::backtrace::Backtrace::capture();
    let frames = match backtrace.status() {
        std::backtrace::BacktraceStatus::Captured => format!("\n{backtrace}"),
        _ => String::new(),
    };
    log::error!("thread {name:?} has panicked at {place}: {what}{frames}");
}

struct Logger {
    filter: Filter,
    queue: Arc<Queue>,
    lines: env_logger::Logger,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.filter.matches(record) && self.queue.admit(record) {
            self.lines.log(record);
        }
    }

    fn flush(&self) {}
}

/// One end of the queue, for the formatter: it is given a line at a time.
struct Pipe {
    queue: Arc<Queue>,
    urgent: bool,
}

impl Write for Pipe {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.queue.push(line, self.urgent);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_cannot_be_read_is_told_and_the_default_stands() {
        let (filter, mistake) = filter(Some("user_http_server=loud".to_owned()));
        assert!(mistake.is_some_and(|mistake| mistake.contains("user_http_server=loud")));
        assert_eq!(filter.filter(), LevelFilter::Info);
    }

    #[test]
    fn the_brokers_password_is_not_logged_whatever_the_filter_says() {
        let (filter, _) = filter(Some("trace".to_owned()));
        let metadata = Metadata::builder().target(PASSWORD_LOG_TARGET).level(log::Level::Debug).build();
        assert!(!filter.enabled(&metadata));
    }
}
