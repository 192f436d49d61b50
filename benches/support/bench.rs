//! One run of a benchmark: which rows are wanted, where it works, and its results as lines of JSON for `report.py`.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::num::NonZero;
use std::path::Path;
use std::process::Command;
use std::thread;

use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use tempfile::TempDir;

#[derive(Clone, Args)]
pub struct Options {
    /// Only the rows whose names contain this, in any case; repeatable
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Print the names of the rows and end
    #[arg(long)]
    list: bool,
    /// Rounds of which the median is taken
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub rounds: u64,
    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,
}

pub struct Bench {
    name: &'static str,
    options: Options,
    scratch: TempDir,
    results: File,
    commit: String,
    /// The load average of the last minute when it began: whether the machine had other work.
    load_before: f64,
}

/// The target of a figure.
#[derive(Clone, Copy)]
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
    None,
}

impl Target {
    fn judge(self, value: f64) -> (Value, &'static str) {
        match self {
            Self::AtLeast(bound) => (json!({ "at_least": bound }), if value >= bound { "reached" } else { "MISSED" }),
            Self::AtMost(bound) => (json!({ "at_most": bound }), if value <= bound { "reached" } else { "MISSED" }),
            Self::None => (Value::Null, ""),
        }
    }
}

impl Bench {
    /// # Errors
    /// Also where this build checks what a release does not.
    pub fn start(name: &'static str, options: Options) -> Result<Self, Box<dyn Error>> {
        if cfg!(debug_assertions) && !options.list {
            return Err("this build has debug assertions, so its figures are worth nothing: unset \
                        CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS and CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS, and the same \
                        of CARGO_PROFILE_BENCH"
                .into());
        }
        // each connection is a file, and the limit is often 1,024
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
        // on a real file system, which a temporary directory often is not
        let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
        remove_leftovers(target)?;
        let prefix = format!("{SCRATCH}{}-", std::process::id());
        let scratch = tempfile::Builder::new().prefix(&prefix).tempdir_in(target)?;
        let folder = target.with_file_name("benchmarks");
        fs::create_dir_all(&folder)?;
        let results = OpenOptions::new().create(true).append(true).open(folder.join(format!("{name}.jsonl")))?;
        if !options.list {
            let rounds = options.rounds;
            println!("{name}: {} cores for server and load; median (min .. max) of {rounds} rounds", cores());
        }
        let load = fs::read_to_string("/proc/loadavg")?;
        let load_before = load.split(' ').next().unwrap_or_default().parse()?;
        Ok(Self { name, options, scratch, results, commit: commit(), load_before })
    }

    pub fn rounds(&self) -> u64 {
        self.options.rounds
    }

    /// A folder on a real file system that goes with this value.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// Whether a row is to be measured.
    pub fn wants(&self, row: &str) -> bool {
        let lower = row.to_lowercase();
        let wanted =
            self.options.only.is_empty() || self.options.only.iter().any(|o| lower.contains(&o.to_lowercase()));
        if wanted && self.options.list {
            println!("{row}");
        }
        wanted && !self.options.list
    }

    /// Records a row of the product beside a peer. The ratio is of the medians.
    pub fn compare(&mut self, row: &str, unit: &str, product: &[f64], peer: (&str, &[f64]), target: Target) {
        let (peer, values) = peer;
        let ratio = median(product) / median(values);
        let (bound, verdict) = target.judge(ratio);
        let (ours, theirs) = (cell(product), cell(values));
        println!("{row:<34} {unit:<10} {ours:>30}   {peer:<15} {theirs:>30}   {ratio:>6.2} {verdict}");
        self.record(json!({
            "kind": "compare", "row": row, "unit": unit, "product": product, "peer": peer, "peer_values": values,
            "ratio": ratio, "target": bound,
        }));
    }

    /// Records a row of the product alone.
    pub fn figure(&mut self, row: &str, unit: &str, values: &[f64], target: Target) {
        let (bound, verdict) = target.judge(median(values));
        println!("{row:<34} {unit:<10} {:>30}   {verdict}", cell(values));
        self.record(json!({ "kind": "figure", "row": row, "unit": unit, "values": values, "target": bound }));
    }

    /// Records a point of a plot.
    pub fn point(&mut self, plot: &str, series: &str, x: f64, unit: &str, values: &[f64]) {
        println!("{plot:<22} {series:<14} {x:>12} {:>34} {unit}", cell(values));
        self.record(json!({
            "kind": "point", "plot": plot, "series": series, "x": x, "unit": unit, "values": values,
        }));
    }

    fn record(&mut self, mut result: Value) {
        result["bench"] = self.name.into();
        result["commit"] = self.commit.as_str().into();
        result["rounds"] = self.options.rounds.into();
        result["load_before"] = self.load_before.into();
        writeln!(self.results, "{result}").expect("a result written");
    }
}

/// Prefix of the folders in which benchmarks work; the process id follows.
const SCRATCH: &str = "bench-";

/// A benchmark that was killed has left its folder behind, with files of a GiB in it.
fn remove_leftovers(target: &Path) -> io::Result<()> {
    for entry in fs::read_dir(target)? {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        let process = name.to_str().and_then(|name| name.strip_prefix(SCRATCH)?.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { values[middle - 1].midpoint(values[middle]) }
}

fn cell(values: &[f64]) -> String {
    let digits = if median(values) < 100.0 { 2 } else { 0 };
    let (min, max) = values.iter().fold((f64::MAX, f64::MIN), |(min, max), &v| (min.min(v), max.max(v)));
    format!("{:.digits$} ({min:.digits$} .. {max:.digits$})", median(values))
}

fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=10", "HEAD"]) else { return "unknown".to_owned() };
    let changed = git(&["status", "--porcelain", "--untracked-files=no", "src", "actors", "Cargo.lock"]);
    if changed.is_some_and(|changed| !changed.is_empty()) { format!("{commit} with changes") } else { commit }
}
