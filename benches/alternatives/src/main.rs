//! Compares the log store and the JSON reader with the programs that could have been used instead.
//!
//! It prints the tables of `docs/decisions/0001-log-store.md` and `docs/decisions/0005-json-reader.md`. Each store runs
//! in a child process, so that its processor time and its written bytes include its background threads and nothing
//! else.

use std::error::Error;

mod json;
mod process;
mod queue;
mod stores;

/// Rounds of which the median is taken, by default.
const ROUNDS: usize = 3;

fn main() -> Result<(), Box<dyn Error>> {
    if cfg!(debug_assertions) {
        return Err("this build has debug assertions, so its figures are worth nothing: use --release".into());
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let rounds = arguments.get(1).map_or(Ok(ROUNDS), |rounds| rounds.parse());
    match arguments.first().map(String::as_str) {
        None => {
            queue::compare(ROUNDS)?;
            json::compare(ROUNDS)
        }
        Some("stores") => queue::compare(rounds?),
        Some("json") => json::compare(rounds?),
        // a child process of `stores`
        Some("run") => queue::Run::from_arguments(&arguments[1..])?.measure(),
        Some(other) => Err(format!("{other} is not known; the arguments are: [stores | json] [ROUNDS]").into()),
    }
}
