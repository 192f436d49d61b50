//! Simulates CPython's hash tables, to know how long it takes to fill them.
//!
//! Equal hashes are not the only thing that makes a table slow. An attacker can also choose keys whose slots lie on the
//! probe sequence of another key; each use of that key then probes all of them. So each insertion is simulated in a
//! table of the same size, along the same probe sequence. Dicts and sets have worked the same way from CPython 3.8 to
//! 3.13, with one exception: since 3.11 a dict of strs rebuilds its table at the first other key, and the new table is
//! up to twice as large for a while. No key probes more entries in it: its probe sequence in the smaller table is the
//! one in the larger table modulo the size, so in the smaller table it passes all entries that it passes in the larger.

use crate::codec::doc::NodeId;

/// How many more bits of the hash each step of a probe sequence depends on.
const PERTURB_SHIFT: u32 = 5;

/// How many neighbours of a slot a set probes before it takes the next step of the probe sequence.
const LINEAR_PROBES: usize = 9;

/// The size of the smallest table, in slots.
const MIN_SLOTS: usize = 8;

/// A set with more entries than this grows its table to twice the number of entries; a smaller set to four times that.
const LARGE_SET: usize = 50_000;

/// The time to compare two small scalars that are in the processor's caches, in nanoseconds.
const COMPARISON_NS: u64 = 35;

/// The longest time to load a value that is not in the caches, in nanoseconds.
const MISS_NS: u64 = 200;

/// Each nanosecond of the time to load a value is charged for this many values, up to [`MISS_NS`]. Measured: 90 ns per
/// float with 60,000 floats (3 MB), 300 ns with a million.
const VALUES_PER_MISS_NS: u64 = 1_024;

/// The time to allocate memory for one more entry, in nanoseconds. The memory is new from the kernel.
const ENTRY_NS: u64 = 25;

/// What a table knows of a key.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Key {
    /// CPython's hash. If CPython randomizes it, another random hash.
    pub(super) hash: u64,
    /// The same for equal keys. These also have the same hash.
    pub(super) identity: u64,
    /// What it costs at most to compare it with an equal key, in comparisons of small scalars.
    pub(super) weight: u32,
    /// What it costs in addition if its long ints are compared with floats.
    pub(super) long_ints: u32,
    /// What it costs in addition if its large floats are compared with ints.
    pub(super) large_floats: u32,
    /// Whether the hash is randomized, because it depends on a str or a bytes.
    pub(super) random: bool,
}

impl Key {
    /// What it costs at most to compare two keys with the same hash, in comparisons of small scalars.
    fn comparisons(&self, other: &Key) -> u64 {
        let conversions = [self.long_ints.min(other.large_floats), self.large_floats.min(other.long_ints)];
        u64::from(self.weight.min(other.weight)) + conversions.map(u64::from).iter().sum::<u64>()
    }
}

/// The work exceeds its bound.
#[derive(Debug)]
pub(super) struct Exceeded;

/// The time that CPython would have spent so far, in nanoseconds on the processors that this was measured on.
#[derive(Debug)]
pub(super) struct Work {
    spent: u64,
    bound: u64,
    miss_ns: u64,
}

impl Work {
    pub(super) fn up_to(bound: u64) -> Work {
        Work { spent: 0, bound, miss_ns: 0 }
    }

    /// Sets how many values the keys have. Many values do not fit in the processor's caches.
    pub(super) fn spread_over(&mut self, values: u64) {
        self.miss_ns = (values / VALUES_PER_MISS_NS).min(MISS_NS);
    }

    /// The time to load one of the values from memory.
    pub(super) fn miss_ns(&self) -> u64 {
        self.miss_ns
    }

    pub(super) fn spent(&self) -> u64 {
        self.spent
    }

    pub(super) fn charge(&mut self, ns: u64) -> Result<(), Exceeded> {
        self.spent = self.spent.saturating_add(ns);
        if self.spent > self.bound { Err(Exceeded) } else { Ok(()) }
    }
}

/// The time for one step of a probe sequence in a table of so many slots. A large table does not fit in the processor's
/// caches.
pub(super) fn probe_ns(slots: usize) -> u64 {
    5 + (slots as u64 >> 14).min(120)
}

/// A probe sequence: the slots in which a key may be found.
struct Probes {
    slot: usize,
    perturb: u64,
    mask: usize,
}

impl Probes {
    fn of(hash: u64, slots: usize) -> Probes {
        Probes { slot: hash as usize & (slots - 1), perturb: hash, mask: slots - 1 }
    }

    fn advance(&mut self) {
        self.perturb >>= PERTURB_SHIFT;
        self.slot = (self.slot * 5).wrapping_add(self.perturb as usize).wrapping_add(1) & self.mask;
    }
}

/// What both kinds of table have.
#[derive(Debug, Default)]
struct Entries {
    entries: Vec<(NodeId, Key)>,
    /// How many entries have hashes that are not randomized.
    foreseeable: u64,
}

impl Entries {
    fn add(&mut self, id: NodeId, key: Key) -> u32 {
        self.foreseeable += u64::from(!key.random);
        self.entries.push((id, key));
        // Lossless: at most `MAX_VALUES`.
        self.entries.len() as u32
    }

    /// Whether the entry with this number (its index plus one) has this key. Charges for the comparison.
    fn is(&self, number: u32, id: NodeId, key: &Key, work: &mut Work) -> Result<bool, Exceeded> {
        let (other_id, other) = &self.entries[number as usize - 1];
        if *other_id == id {
            return Ok(true);
        }
        if other.hash != key.hash {
            return Ok(false);
        }
        // A comparison reads two values.
        work.charge((COMPARISON_NS + 2 * work.miss_ns()) * key.comparisons(other))?;
        Ok(other.identity == key.identity)
    }

    /// Charges for a key that is in the table already. If its hash is randomized, its probe sequence in CPython may
    /// pass all entries whose hashes an attacker can choose. No pickler writes a key twice, so this costs honest
    /// pickles nothing.
    fn found(&self, key: &Key, probe_ns: u64, work: &mut Work) -> Result<(), Exceeded> {
        work.charge(if key.random { probe_ns * self.foreseeable } else { 0 })
    }
}

/// A dict's table. A slot has the index of an entry plus one, or 0 if it is free.
#[derive(Debug, Default)]
pub(super) struct DictTable {
    slots: Vec<u32>,
    entries: Entries,
}

impl DictTable {
    pub(super) fn insert(&mut self, id: NodeId, key: Key, work: &mut Work) -> Result<(), Exceeded> {
        if self.slots.is_empty() {
            self.slots = vec![0; MIN_SLOTS];
        }
        let probe_ns = probe_ns(self.slots.len());
        let mut probes = Probes::of(key.hash, self.slots.len());
        loop {
            work.charge(probe_ns)?;
            let number = self.slots[probes.slot];
            if number == 0 {
                break;
            }
            if self.entries.is(number, id, &key, work)? {
                return self.entries.found(&key, probe_ns, work);
            }
            probes.advance();
        }
        if self.entries.entries.len() >= self.slots.len() * 2 / 3 {
            self.resize(work)?;
        }
        work.charge(ENTRY_NS)?;
        let number = self.entries.add(id, key);
        self.occupy(key.hash, number, work)
    }

    fn resize(&mut self, work: &mut Work) -> Result<(), Exceeded> {
        let used = self.entries.entries.len();
        self.slots = vec![0; (used * 3).next_power_of_two().max(MIN_SLOTS)];
        for index in 0..used {
            self.occupy(self.entries.entries[index].1.hash, index as u32 + 1, work)?;
        }
        Ok(())
    }

    fn occupy(&mut self, hash: u64, number: u32, work: &mut Work) -> Result<(), Exceeded> {
        let probe_ns = probe_ns(self.slots.len());
        let mut probes = Probes::of(hash, self.slots.len());
        loop {
            work.charge(probe_ns)?;
            let slot = &mut self.slots[probes.slot];
            if *slot == 0 {
                *slot = number;
                return Ok(());
            }
            probes.advance();
        }
    }
}

/// A set's table. The slots are those of a dict's table.
#[derive(Debug, Default)]
pub(super) struct SetTable {
    slots: Vec<u32>,
    entries: Entries,
}

impl SetTable {
    pub(super) fn insert(&mut self, id: NodeId, key: Key, work: &mut Work) -> Result<(), Exceeded> {
        if self.slots.is_empty() {
            self.slots = vec![0; MIN_SLOTS];
        }
        let (probe_ns, neighbour_ns) = Self::costs(self.slots.len());
        let mut probes = Probes::of(key.hash, self.slots.len());
        let free = 'free: loop {
            work.charge(probe_ns)?;
            for slot in Self::candidates(&probes) {
                work.charge(neighbour_ns)?;
                let number = self.slots[slot];
                if number == 0 {
                    break 'free slot;
                }
                if self.entries.is(number, id, &key, work)? {
                    return self.entries.found(&key, probe_ns, work);
                }
            }
            probes.advance();
        };
        work.charge(ENTRY_NS)?;
        self.slots[free] = self.entries.add(id, key);
        let used = self.entries.entries.len();
        if used * 5 >= (self.slots.len() - 1) * 3 {
            let wanted = if used > LARGE_SET { used * 2 } else { used * 4 };
            self.resize((wanted + 1).next_power_of_two().max(MIN_SLOTS), work)?;
        }
        Ok(())
    }

    /// The distinct keys, in the order in which they were inserted.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.entries.entries.iter().map(|(_, key)| key)
    }

    fn costs(slots: usize) -> (u64, u64) {
        let probe_ns = probe_ns(slots);
        (probe_ns, 2 + probe_ns / 8)
    }

    /// The current slot of the probe sequence, and its neighbours.
    fn candidates(probes: &Probes) -> std::ops::RangeInclusive<usize> {
        let last = probes.slot + LINEAR_PROBES;
        probes.slot..=if last <= probes.mask { last } else { probes.slot }
    }

    /// Moves all entries into a table of another size, in the order of their slots.
    fn resize(&mut self, slots: usize, work: &mut Work) -> Result<(), Exceeded> {
        let (probe_ns, neighbour_ns) = Self::costs(slots);
        let old = std::mem::replace(&mut self.slots, vec![0; slots]);
        for number in old.into_iter().filter(|number| *number != 0) {
            let mut probes = Probes::of(self.entries.entries[number as usize - 1].1.hash, slots);
            'free: loop {
                work.charge(probe_ns)?;
                for slot in Self::candidates(&probes) {
                    work.charge(neighbour_ns)?;
                    if self.slots[slot] == 0 {
                        self.slots[slot] = number;
                        break 'free;
                    }
                }
                probes.advance();
            }
        }
        Ok(())
    }
}
