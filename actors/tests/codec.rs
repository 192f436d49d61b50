//! The codec against CPython: what it takes, CPython takes, and what it makes, CPython reads as the same values.

use crate::support::peer;
use peer::Peer;

/// How many messages as picklers and `json` write them, how many of these with random bytes changed, and how many
/// pickles of opcodes in an order that no pickler writes.
const CASES: [&str; 3] = ["2000", "6000", "10000"];

/// How many messages with bytes flipped, deleted, inserted, doubled, taken from another message, or lengths changed.
const MUTATIONS: &str = "10000";

/// How many dicts and sets with keys in patterns.
const PATTERNS: &str = "15";

/// Other seeds can be tried from outside, and more of them.
fn seed() -> String {
    std::env::var("CODEC_SEED").unwrap_or_else(|_| "1".to_owned())
}

/// All tests of this file need `python3`; `tests/run` decides by this name what to install.
mod python {
    use super::*;

    #[test]
    fn cpython_reads_what_is_made_of_its_messages_as_the_same_values() {
        let [valid, mutated, assembled] = CASES;
        Peer::start("codec_peer.py", &[&seed(), valid, mutated, assembled]).serve();
    }

    #[test]
    fn a_message_cut_anywhere_is_refused_where_cpython_refuses_it() {
        Peer::start("codec_mutations.py", &["cut", &seed(), "0"]).serve();
    }

    #[test]
    fn whatever_is_taken_of_a_changed_message_is_what_cpython_takes() {
        Peer::start("codec_mutations.py", &["change", &seed(), MUTATIONS]).serve();
    }

    #[test]
    fn whatever_keys_are_taken_cpython_loads_them_in_time() {
        Peer::start("codec_work.py", &["attacks", &seed(), "0"]).serve();
    }

    #[test]
    fn keys_in_regular_patterns_are_loaded_in_time_or_refused() {
        Peer::start("codec_work.py", &["random", &seed(), PATTERNS]).serve();
    }

    #[test]
    fn large_dicts_and_sets_as_programs_make_them_are_taken() {
        Peer::start("codec_work.py", &["honest", &seed(), "0"]).serve();
    }
}
