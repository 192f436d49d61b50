//! The work of a queue, for each store: 16 writers put bodies durably, read each once and remove it.

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use user_http_actors::payload::Payload;
use user_http_actors::store::{Seq, StoreEvent, StoreHandle};

use crate::process::{disk_bytes, peak_mib, processor_seconds, written_bytes};
use crate::stores::{Kind, Opened, Read};

const WRITERS: u64 = 16;

/// How often the size on disk is looked at, and for how long it may go on shrinking after the last removal.
const LOOK: Duration = Duration::from_millis(250);
const MAX_LOOKS: u32 = 80;
/// So many equal sizes in a row are the end of background work.
const EQUAL_LOOKS: u32 = 12;

/// One run of one store.
#[derive(Clone, Copy)]
pub struct Run {
    store: Kind,
    /// Bytes of a body.
    body: usize,
    /// Puts of each writer.
    puts: u64,
    /// How many bodies of a writer are in the store before it starts to read and remove them.
    backlog: u64,
}

/// Puts per second; processor time per put in µs, with reading, removing and background work; bytes written per byte
/// of body; MiB on disk at rest after the last removal, and after an explicit compaction; peak memory in MiB.
type Figures = [f64; 6];

/// Where the bodies that a writer has put are.
type Outcomes = HashMap<Seq, Sender<Payload>>;

impl Run {
    /// From the arguments that [`in_child`] passes.
    pub fn from_arguments(arguments: &[String]) -> Result<Self, Box<dyn Error>> {
        let [store, body, puts, backlog] = arguments else { return Err("a run has four arguments".into()) };
        let kind = Kind::ALL.into_iter().find(|kind| kind.to_string() == *store);
        let store = kind.ok_or_else(|| format!("{store} is no store"))?;
        Ok(Self { store, body: body.parse()?, puts: puts.parse()?, backlog: backlog.parse()? })
    }

    /// Measures in this process, and prints the figures.
    pub fn measure(self) -> Result<(), Box<dyn Error>> {
        let folder = tempfile::Builder::new().prefix("alternatives-").tempdir_in(scratch())?;
        let Opened { store, read, mut tidy } = self.store.open(folder.path())?;
        let outcomes: Arc<Mutex<Outcomes>> = Arc::default();
        let (flushed, flushes) = channel();
        let waiting = Arc::clone(&outcomes);
        let handle = StoreHandle::start("bench", store, 1, move |event| report(&waiting, &flushed, event))?;

        let body = pseudo_random(self.body);
        let (processor, written, start) = (processor_seconds(), written_bytes()?, Instant::now());
        let put_seconds: Vec<f64> = thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|_| scope.spawn(|| self.write(&handle, &outcomes, read.as_ref(), &body, start)))
                .collect();
            writers.into_iter().map(|writer| writer.join().expect("a writer")).collect()
        });
        handle.flush();
        flushes.recv()?;
        let at_rest = rest(folder.path())?;
        let puts = (self.puts * WRITERS) as f64;
        let processor = (processor_seconds() - processor) * 1e6 / puts;
        let written = (written_bytes()? - written) as f64 / (puts * self.body as f64);
        drop(handle);
        tidy()?;
        let tidied = disk_bytes(folder.path())?;
        let slowest = put_seconds.into_iter().fold(0.0, f64::max);
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let figures: Figures = [puts / slowest, processor, written, mib(at_rest), mib(tidied), peak_mib()?];
        println!("{}", figures.map(|figure| figure.to_string()).join(" "));
        Ok(())
    }

    /// What one writer does. Returns when its last put was durable, in seconds since the start.
    fn write(
        self,
        handle: &StoreHandle,
        outcomes: &Mutex<Outcomes>,
        read: &dyn Read,
        body: &Bytes,
        start: Instant,
    ) -> f64 {
        let mut kept: VecDeque<(Seq, Payload)> = VecDeque::new();
        let fetch = |(seq, payload): (Seq, Payload)| {
            let read = read.read(seq, payload);
            assert!(read == body, "another body than was put");
            handle.remove(seq);
        };
        for _ in 0..self.puts {
            if kept.len() as u64 == self.backlog
                && let Some(oldest) = kept.pop_front()
            {
                fetch(oldest);
            }
            let (stored, outcome) = channel();
            // locked across the put, so that its outcome finds the sender
            let mut waiting = outcomes.lock().expect("no writer has panicked");
            let seq = handle.put(Bytes::new(), Payload::from_parts(vec![body.clone()]));
            waiting.insert(seq, stored);
            drop(waiting);
            kept.push_back((seq, outcome.recv().expect("the outcome of a put")));
        }
        let end = start.elapsed().as_secs_f64();
        kept.into_iter().for_each(fetch);
        end
    }
}

fn report(outcomes: &Mutex<Outcomes>, flushed: &Sender<()>, event: StoreEvent) {
    let mut outcomes = outcomes.lock().expect("no writer has panicked");
    for (seq, stored) in event.stored {
        let payload = stored.expect("a put that succeeds");
        if let Some(writer) = outcomes.remove(&seq) {
            // the writer waits for it
            let _ = writer.send(payload);
        }
    }
    // the only flush is the last command
    event.flushed.into_iter().for_each(|_| flushed.send(()).expect("somebody waits for the flush"));
    assert!(event.failure.is_none(), "the store has failed: {:?}", event.failure);
}

/// Waits until the store's files no longer change in size; their size then.
fn rest(folder: &Path) -> Result<u64, Box<dyn Error>> {
    let (mut last, mut equal) = (disk_bytes(folder)?, 0);
    for _ in 0..MAX_LOOKS {
        thread::sleep(LOOK);
        let now = disk_bytes(folder)?;
        equal = if now == last { equal + 1 } else { 0 };
        last = now;
        if equal == EQUAL_LOOKS {
            break;
        }
    }
    Ok(last)
}

/// Bytes that no compression shortens.
fn pseudo_random(length: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

/// On the file system of this program, which is a real one; a temporary directory often is not.
fn scratch() -> std::path::PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    program.parent().map(Path::to_owned).unwrap_or_default()
}

/// Prints a table for each kind of work. The stores take turns, round by round.
pub fn compare(rounds: usize) -> Result<(), Box<dyn Error>> {
    let (kib, mib) = (1 << 10, 1 << 20);
    for (what, body, puts, backlog) in [
        ("1 KiB, 1,024 messages in the store", kib, 2_048, 64),
        ("1 KiB, all put before the first is read", kib, 2_048, 2_048),
        ("1 MiB, 64 messages in the store", mib, 32, 4),
        ("1 MiB, all put before the first is read", mib, 32, 32),
    ] {
        let mut figures: HashMap<Kind, Vec<Figures>> = HashMap::new();
        for round in 0..rounds {
            for kind in Kind::ALL {
                let started = Instant::now();
                figures.entry(kind).or_default().push(in_child(Run { store: kind, body, puts, backlog })?);
                eprintln!("round {round}, {what}, {kind}: {:.1} s", started.elapsed().as_secs_f64());
            }
        }
        println!("\n### {what} ({} puts)", puts * WRITERS);
        println!(
            "| store | puts/s | µs of processor per put | bytes written per byte of body | MiB on disk after the last \
             removal | after a compaction | peak memory, MiB |"
        );
        println!("| --- | --- | --- | --- | --- | --- | --- |");
        for kind in Kind::ALL {
            let cell = |column: usize| cell(figures[&kind].iter().map(|figures| figures[column]).collect());
            let cells: Vec<String> = (0..6).map(cell).collect();
            println!("| {kind} | {} |", cells.join(" | "));
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn in_child(run: Run) -> Result<Figures, Box<dyn Error>> {
    let Run { store, body, puts, backlog } = run;
    let numbers = [body.to_string(), puts.to_string(), backlog.to_string()];
    let output = Command::new(std::env::current_exe()?).args(["run", &store.to_string()]).args(numbers).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let figures: Vec<f64> = text.split_whitespace().flat_map(str::parse).collect();
    figures.try_into().map_err(|_| format!("{store} fails: {}", String::from_utf8_lossy(&output.stderr)).into())
}

/// The median, the minimum and the maximum.
pub fn cell(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let median = values[values.len() / 2];
    let digits = if median < 10.0 { 2 } else { 0 };
    format!("{median:.digits$} ({:.digits$} to {:.digits$})", values[0], values[values.len() - 1])
}
