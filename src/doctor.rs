//! Examines what a gateway needs around it: the broker, the database, the disk, the files, the ports. Nothing is
//! changed anywhere.
//!
//! Each probe runs on a thread of its own, because a broker or a network file system may hang. What a probe finds is
//! one line: `ok`, `warning` or `failed`, and what to do.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use crate::Config;
use crate::config::{ConfigError, GivenValues, Layers};

mod broker;
mod data_dir;
mod database;
mod files;
mod gateway;
mod ports;
mod system;

/// How long all probes together may take. Connecting to a broker takes up to 15 s if its machine does not answer.
const TIME_LIMIT: Duration = Duration::from_secs(25);

/// The subject of findings about the configuration.
const CONFIGURATION: &str = "configuration";

/// The configuration of the service that the Debian package installs. Only its unit names it.
const PACKAGED_CONFIG: &str = "/etc/user-http-server/config.toml";

/// Shows what the kernel says of a disk or of a file server that does not answer.
const KERNEL_LOG: &str = "journalctl -k -n 20";

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Ok,
    /// A gateway works, but not as well as it could; or something is not known.
    Warning,
    /// A gateway does not work.
    Failed,
}

/// What a probe has found. Its text has no secrets, but may have control characters from elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    subject: &'static str,
    text: String,
}

impl Finding {
    fn ok(subject: &'static str, text: impl Into<String>) -> Self {
        Self { level: Level::Ok, subject, text: text.into() }
    }

    /// The text says what to do.
    fn warning(subject: &'static str, text: impl Into<String>) -> Self {
        Self { level: Level::Warning, subject, text: text.into() }
    }

    /// `command` is what to type next.
    fn failed(subject: &'static str, text: impl fmt::Display, command: impl fmt::Display) -> Self {
        Self { level: Level::Failed, subject, text: format!("{text}; type: {command}") }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Failed => "failed",
        };
        write!(f, "{level:<7} {}: {}", self.subject, self.text)
    }
}

/// The status and the body of the gateway's answer to `GET /readyz`, or why there is none.
pub type Readiness = Result<(u16, Vec<u8>), String>;

type Probe = Box<dyn FnOnce() -> Vec<Finding> + Send>;

/// Examines the environment of a gateway with this configuration. `ask` asks the gateway whether it is ready. Calls
/// `report` with each finding, in an order that does not change.
pub fn examine(
    layers: &mut Layers,
    ask: impl FnOnce() -> Readiness + Send + 'static,
    report: &mut dyn FnMut(&Finding),
) {
    let config = layers.check();
    configuration(layers, config.as_ref().err()).iter().for_each(&mut *report);
    let values: Vec<GivenValues> = layers.values().collect();
    unused_file(&values, Path::new(PACKAGED_CONFIG)).iter().for_each(&mut *report);
    let data_dir = layers.data_dir().ok().flatten().map(|path| absolute(&path));
    let config = config.ok().map(Arc::new);
    let holder = data_dir.as_deref().and_then(data_dir::holder);
    let mut probes: Vec<(&'static str, Probe)> = Vec::new();
    let of_config = |probe: fn(&Config) -> Vec<Finding>| {
        let config = config.clone();
        Box::new(move || config.map_or_else(Vec::new, |config| probe(&config))) as Probe
    };
    probes.push(("broker", of_config(broker::probe)));
    probes.push(("database", of_config(database::probe)));
    match data_dir {
        Some(data_dir) => {
            let limits = config.as_deref().map(data_dir::Limits::of);
            let path = data_dir.clone();
            probes.push(("data directory", Box::new(move || data_dir::probe(&path, limits, holder))));
            probes.push(("clock", Box::new(move || system::clock(Some(&data_dir)))));
        }
        None => {
            let text = "none: messages are stored in memory only, and a restart loses them (--memory)";
            probes.push(("data directory", Box::new(move || vec![Finding::ok("data directory", text)])));
            probes.push(("clock", Box::new(|| system::clock(None))));
        }
    }
    probes.push(("gateway", Box::new(move || gateway::probe(ask(), holder))));
    probes.push(("port", of_config(ports::probe)));
    let roots = config.iter().flat_map(|config| config.actors.blend_roots.clone());
    probes.extend(roots.map(|root| ("blend root", Box::new(move || files::blend_root(&root)) as Probe)));
    probes.push(("secrets", Box::new(move || files::secrets(&values))));
    probes.push(("certificate", of_config(files::certificates)));
    probes.push(("open files", of_config(system::open_files)));
    run(probes, report);
}

fn configuration(layers: &Layers, errors: Option<&Vec<ConfigError>>) -> Vec<Finding> {
    let warnings = layers.warnings().iter().map(|warning| Finding::warning(CONFIGURATION, warning));
    match errors {
        None => warnings.chain([Finding::ok(CONFIGURATION, "valid")]).collect(),
        Some(errors) => {
            let text = "the broker, the database, the ports, the blend roots and the certificates are not probed until \
                        it is valid";
            let failed = errors.iter().map(|error| Finding::failed(CONFIGURATION, error, "user-http-server check"));
            warnings.chain(failed).chain([Finding::warning(CONFIGURATION, text)]).collect()
        }
    }
}

/// The service of the package has a configuration file, which commands that somebody types do not read by themselves.
fn unused_file(values: &[GivenValues], packaged: &Path) -> Option<Finding> {
    let is_given = values.iter().any(|given| given.key == "config" && !given.values.is_empty());
    (!is_given && packaged.exists()).then(|| {
        let file = packaged.display();
        Finding::warning(
            CONFIGURATION,
            format!(
                "{file} is there, but not used here; if the gateway uses it, type: user-http-server doctor --config \
                 {file}"
            ),
        )
    })
}

/// Runs all probes at the same time, and reports what they find in their order.
fn run(probes: Vec<(&'static str, Probe)>, report: &mut dyn FnMut(&Finding)) {
    let deadline = Instant::now() + TIME_LIMIT;
    let running: Vec<(&'static str, Receiver<Vec<Finding>>)> = probes
        .into_iter()
        .map(|(subject, probe)| {
            let (done, found) = mpsc::channel();
            // nobody listens any more if it took too long
            let work = move || drop(done.send(probe()));
            // if the system has no thread left, nothing is found, and that is reported
            let _ = thread::Builder::new().name("doctor".to_owned()).spawn(work);
            (subject, found)
        })
        .collect();
    for (subject, found) in running {
        match found.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(findings) => findings.iter().for_each(&mut *report),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let text = format!("no answer within {} s", TIME_LIMIT.as_secs());
                report(&Finding::failed(subject, text, KERNEL_LOG));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                report(&Finding::failed(subject, "the probe could not be run", "ulimit -u"));
            }
        }
    }
}

/// Where a relative path leads: whoever reads a finding may think of another folder than the one of the shell.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// A word of a command line, in quotes if it needs them.
fn quote(word: impl fmt::Display) -> String {
    let word = word.to_string();
    let is_plain = |char: char| char.is_ascii_alphanumeric() || "_-./:@%+,=".contains(char);
    if !word.is_empty() && word.chars().all(is_plain) { word } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use crate::config::Origin;

    use super::*;

    #[test]
    fn the_configuration_of_the_package_is_named_if_it_is_there_and_none_is_given() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("config.toml");
        let config = |values: &[&str]| {
            let values = values.iter().map(|value| (*value).to_owned()).collect();
            [GivenValues { key: "config", values, is_switch: false, origin: Origin::Default }]
        };
        assert_eq!(unused_file(&config(&[]), &file), None);
        std::fs::write(&file, "").expect("writable");
        let found = unused_file(&config(&[]), &file).expect("a warning").to_string();
        assert!(found.ends_with(&format!("doctor --config {}", file.display())), "{found}");
        assert_eq!(unused_file(&config(&["other.toml"]), &file), None);
    }

    #[test]
    fn findings_come_in_the_order_of_the_probes_and_one_that_panics_hides_no_other() {
        let probe = |text: &'static str, pause: u64| {
            let work = move || {
                thread::sleep(Duration::from_millis(pause));
                vec![Finding::ok("one", text)]
            };
            ("one", Box::new(work) as Probe)
        };
        let panics: Probe = Box::new(|| panic!("a bug"));
        let mut lines = Vec::new();
        run(vec![probe("first", 50), ("two", panics), probe("last", 0)], &mut |found| lines.push(found.to_string()));
        assert_eq!(lines[0], "ok      one: first");
        assert_eq!(lines[1], "failed  two: the probe could not be run; type: ulimit -u");
        assert_eq!(lines[2], "ok      one: last");
    }

    #[test]
    fn a_word_of_a_command_is_quoted_only_if_the_shell_would_change_it() {
        for (word, quoted) in [("a/b.c", "a/b.c"), ("a b", "'a b'"), ("", "''"), ("it's", "'it'\\''s'"), ("$x", "'$x'")]
        {
            assert_eq!(quote(word), quoted);
        }
    }
}
