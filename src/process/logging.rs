//! The log: a line is formatted by the thread that logs it, rate-limited, and written to standard error by a separate
//! thread. So logging never blocks on a slow reader of standard error.

mod json;
mod limiter;
mod queue;

use std::ffi::OsString;
use std::io::{self, Write};
use std::panic::{self, PanicHookInfo};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use env_filter::Filter;
use env_logger::Target;
use log::{Level, LevelFilter, Log, Metadata, Record};
use user_http_actors::broker::amqp::{CLIENT_LOG_TARGET, PASSWORD_LOG_TARGET};
use user_http_server::RecentEvents;
use user_http_server::config::LogFormat;

use queue::Queue;

/// The log filter unless `RUST_LOG` sets one. It quiets two crates that repeat what this program logs: actix-server at
/// every start, and the AMQP client about the broker.
fn default_filter() -> String {
    format!("info,actix_server=warn,{CLIENT_LOG_TARGET}=error")
}

/// How long the end of the process waits for the last lines to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The log of the process. Dropping it writes the last lines.
pub struct Logging {
    queue: Arc<Queue>,
    events: RecentEvents,
    /// What is written whatever the log filter and the rate say.
    urgent: Arc<Lines>,
    is_json: Arc<AtomicBool>,
}

impl Logging {
    /// Starts the writing thread, and installs the logger and a panic hook that logs. The configuration is not known
    /// yet; until [`set_format`](Self::set_format), the format is what the arguments or the environment ask for.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(args: &[OsString]) -> io::Result<Self> {
        let (filter, mistake) = filter(std::env::var("RUST_LOG").ok());
        let queue = Arc::new(Queue::default());
        let is_json = Arc::new(AtomicBool::new(asks_for_json(args, std::env::var_os("USER_HTTP_SERVER_LOG_FORMAT"))));
        let urgent = Arc::new(Lines::new(&queue, true, &is_json));
        let (writing, reports) = (Arc::clone(&queue), Arc::clone(&urgent));
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || writing.run(queue::standard_error, |record| reports.log(record)))?;
        let lines = Lines::new(&queue, false, &is_json);
        let max_level = filter.filter();
        let events = RecentEvents::default();
        // Fails only if there is a logger already.
        if log::set_boxed_logger(Box::new(Logger { filter, queue: Arc::clone(&queue), lines, events: events.clone() }))
            .is_ok()
        {
            log::set_max_level(max_level);
        }
        panic::set_hook(Box::new(log_panic));
        if let Some(mistake) = mistake {
            log::warn!("{mistake}");
        }
        Ok(Self { queue, events, urgent, is_json })
    }

    /// The records that were logged last.
    pub fn events(&self) -> RecentEvents {
        self.events.clone()
    }

    /// Sets the format of all further lines.
    pub fn set_format(&self, format: LogFormat) {
        self.is_json.store(format == LogFormat::Json, Ordering::Relaxed);
    }

    /// Writes why the program ends to standard error after the lines before it, regardless of the log filter.
    pub fn error(&self, text: &str) {
        if self.is_json.load(Ordering::Relaxed) {
            let args = format_args!("{text}");
            self.urgent.log(&Record::builder().level(Level::Error).target(env!("CARGO_CRATE_NAME")).args(args).build());
        } else {
            self.print(&format!("error: {text}"));
        }
    }

    /// Writes a line to standard error after the lines before it, regardless of the log filter and the format.
    pub fn print(&self, line: &str) {
        self.queue.push(format!("{}\n", line.trim_end()).as_bytes(), true);
    }
}

impl Drop for Logging {
    /// Reports suppressed lines, and waits up to [`LAST_LINES`] until everything is written.
    fn drop(&mut self) {
        self.queue.finish(Instant::now() + LAST_LINES);
    }
}

/// The filter that `RUST_LOG` sets. If that is invalid: the default, and what is wrong.
fn filter(rust_log: Option<String>) -> (Filter, Option<String>) {
    let parse = |text: &str| {
        let mut builder = env_filter::Builder::new();
        builder.try_parse(text)?;
        // At `debug` and `trace` it logs the broker's password, so RUST_LOG must not enable them.
        builder.filter_module(PASSWORD_LOG_TARGET, LevelFilter::Info);
        Ok::<_, env_filter::ParseError>(builder.build())
    };
    let default = default_filter();
    let text = rust_log.as_deref().unwrap_or(&default);
    match parse(text) {
        Ok(filter) => (filter, None),
        Err(error) => {
            let mistake = format!("RUST_LOG={text:?} is invalid: {error}; using {default:?}");
            let filter = parse(&default).unwrap_or_else(|_| env_filter::Builder::new().build());
            (filter, Some(mistake))
        }
    }
}

/// Whether a flag or the environment asks for lines of JSON.
fn asks_for_json(args: &[OsString], variable: Option<OsString>) -> bool {
    let mut args = args.iter();
    match args.find(|arg| arg.to_str().is_some_and(|arg| arg.starts_with("--log-format"))) {
        Some(flag) if flag == "--log-format" => args.next().is_some_and(|format| format == "json"),
        Some(flag) => flag == "--log-format=json",
        None => variable.is_some_and(|format| format == "json"),
    }
}

/// Formats records as lines, and queues them. It filters nothing.
struct Lines {
    text: env_logger::Logger,
    json: env_logger::Logger,
    is_json: Arc<AtomicBool>,
}

impl Lines {
    fn new(queue: &Arc<Queue>, urgent: bool, is_json: &Arc<AtomicBool>) -> Self {
        let builder = || {
            let pipe = Box::new(Pipe { queue: Arc::clone(queue), urgent });
            let mut builder = env_logger::Builder::new();
            builder.filter_level(LevelFilter::Trace).target(Target::Pipe(pipe));
            builder
        };
        let mut json = builder();
        json.format(|line, record| {
            let time = line.timestamp_millis();
            json::write(line, time, record)
        });
        Self { text: builder().build(), json: json.build(), is_json: Arc::clone(is_json) }
    }

    fn log(&self, record: &Record<'_>) {
        if self.is_json.load(Ordering::Relaxed) { self.json.log(record) } else { self.text.log(record) }
    }
}

/// Logs a panic. The hook of the standard library would write to standard error itself, and could block.
fn log_panic(info: &PanicHookInfo<'_>) {
    let current = thread::current();
    let name = current.name().unwrap_or("unnamed");
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let what = info.payload_as_str().unwrap_or("no text").escape_debug();
    // Empty unless RUST_BACKTRACE is set.
    let backtrace = std::backtrace::Backtrace::capture();
    let frames = match backtrace.status() {
        std::backtrace::BacktraceStatus::Captured => format!("\n{backtrace}"),
        _ => String::new(),
    };
    log::error!("thread {name:?} panicked at {location}: {what}{frames}");
}

struct Logger {
    filter: Filter,
    queue: Arc<Queue>,
    lines: Lines,
    events: RecentEvents,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.filter.matches(record) && self.queue.admit(record) {
            self.lines.log(record);
            self.events.note(record);
        }
    }

    fn flush(&self) {}
}

/// Queues the lines of a formatter, which writes one line at a time.
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
    fn an_invalid_filter_is_reported_and_the_default_applies() {
        let (filter, mistake) = filter(Some("user_http_server=loud".to_owned()));
        assert!(mistake.is_some_and(|mistake| mistake.contains("user_http_server=loud")));
        assert_eq!(filter.filter(), LevelFilter::Info);
    }

    #[test]
    fn the_format_is_known_before_the_configuration_if_a_flag_or_the_environment_sets_it() {
        let asks = |args: &[&str], variable: Option<&str>| {
            let args: Vec<OsString> = args.iter().map(Into::into).collect();
            asks_for_json(&args, variable.map(Into::into))
        };
        assert!(asks(&["x", "--memory", "--log-format", "json"], None));
        assert!(asks(&["x", "--log-format=json"], Some("text")));
        assert!(asks(&["x"], Some("json")));
        assert!(!asks(&["x", "--log-format", "text"], Some("json")));
        assert!(!asks(&["x", "--log-format"], None));
        assert!(!asks(&["x", "json"], Some("text")));
    }

    #[test]
    fn the_brokers_password_is_not_logged_whatever_the_filter_says() {
        let (filter, _) = filter(Some("trace".to_owned()));
        let metadata = Metadata::builder().target(PASSWORD_LOG_TARGET).level(log::Level::Debug).build();
        assert!(!filter.enabled(&metadata));
    }
}
