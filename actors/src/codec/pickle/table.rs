//! CPython's hash tables, as far as it takes to know how long filling them keeps it busy.
//!
//! Equal hashes are not all that makes a table slow: keys may also be chosen to lie along the probe sequence of
//! another, which then passes all of them, at each use. So each insertion is carried out here, in a table of the same
//! size, along the same sequence. What dicts and sets do has been the same from CPython 3.8 to 3.13, but for one thing:
//! since 3.11 a dict of strs makes its table anew at the first other key, and it is up to twice as large for a while.
//! No key passes more entries there: its sequence in the smaller table is that in the larger one modulo the size, and
//! each entry of the larger one is among those that it passes in the smaller one.

use crate::codec::doc::NodeId;

/// How many bits of the hash the next place depends on in addition.
const PERTURB_SHIFT: u32 = 5;

/// How many neighbours a set looks at before it goes on to the next place of the sequence.
const LINEAR_PROBES: usize = 9;

/// The size of the smallest table.
const MIN_SLOTS: usize = 8;

/// The used entries above which a set doubles its table; below, it takes four times the used entries.
const LARGE_SET: usize = 50_000;

/// What it takes to compare two scalars that the processor's caches hold, in nanoseconds.
const COMPARISON_NS: u64 = 35;

/// The most that it takes to get a value that the caches do not hold, in nanoseconds.
const MISS_NS: u64 = 200;

/// Of how many values each nanosecond of [`MISS_NS`] is expected: 60,000 floats, 3 MB, take 90 ns each, a million 300.
const VALUES_PER_MISS_NS: u64 = 1_024;

/// What the memory of one more entry costs, in nanoseconds: it comes fresh from the system.
const ENTRY_NS: u64 = 25;

/// A key as a table knows it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Key {
    /// CPython's hash, or one as good where CPython puts chance into it.
    pub(super) hash: u64,
    /// Whether keys are equal; they have one hash then.
    pub(super) identity: u64,
    /// How many scalars at most are compared with those of an equal key.
    pub(super) weight: u32,
    /// How many more scalars' comparisons the long ints in it cost if they are compared with floats.
    pub(super) long_ints: u32,
    /// How many the large floats cost if they are compared with ints.
    pub(super) large_floats: u32,
    /// The hash depends on chance: on a str or a bytes.
    pub(super) chance: bool,
}

impl Key {
    /// How many scalars' comparisons it costs at most to compare two keys of one hash.
    fn comparisons(&self, other: &Key) -> u64 {
        let conversions = [self.long_ints.min(other.large_floats), self.large_floats.min(other.long_ints)];
        u64::from(self.weight.min(other.weight)) + conversions.map(u64::from).iter().sum::<u64>()
    }
}

/// The bound is reached.
#[derive(Debug)]
pub(super) struct Exceeded;

/// The time that CPython takes, in nanoseconds of the processors that this was measured on.
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

    /// Declares how many values the keys hold: more than a few do not fit the processor's caches.
    pub(super) fn spread_over(&mut self, values: u64) {
        self.miss_ns = (values / VALUES_PER_MISS_NS).min(MISS_NS);
    }

    /// What it takes to get one of the values, beside what is done with it.
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

/// What one place of a probe sequence costs in a table of so many slots: a larger one does not fit the processor's
/// caches.
pub(super) fn probe_ns(slots: usize) -> u64 {
    5 + (slots as u64 >> 14).min(120)
}

/// The places at which a key may be found.
struct Probes {
    place: usize,
    perturb: u64,
    mask: usize,
}

impl Probes {
    fn of(hash: u64, slots: usize) -> Probes {
        Probes { place: hash as usize & (slots - 1), perturb: hash, mask: slots - 1 }
    }

    fn advance(&mut self) {
        self.perturb >>= PERTURB_SHIFT;
        self.place = (self.place * 5).wrapping_add(self.perturb as usize).wrapping_add(1) & self.mask;
    }
}

/// What both kinds of table have.
#[derive(Debug, Default)]
struct Entries {
    entries: Vec<(NodeId, Key)>,
    /// Those whose hashes do not depend on chance.
    foreseeable: u64,
}

impl Entries {
    fn add(&mut self, id: NodeId, key: Key) -> u32 {
        self.foreseeable += u64::from(!key.chance);
        self.entries.push((id, key));
        // As many as a message has places.
        self.entries.len() as u32
    }

    /// Whether the entry of this number is the key.
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

    /// A key is there already. With another chance than here, its sequence might lead past all that can be chosen; no
    /// pickler writes a key twice.
    fn found(&self, key: &Key, probe_ns: u64, work: &mut Work) -> Result<(), Exceeded> {
        work.charge(if key.chance { probe_ns * self.foreseeable } else { 0 })
    }
}

/// A dict's table: slots that hold the number of an entry, 0 for none.
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
            let number = self.slots[probes.place];
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
        self.place(key.hash, number, work)
    }

    fn resize(&mut self, work: &mut Work) -> Result<(), Exceeded> {
        let used = self.entries.entries.len();
        self.slots = vec![0; (used * 3).next_power_of_two().max(MIN_SLOTS)];
        for index in 0..used {
            self.place(self.entries.entries[index].1.hash, index as u32 + 1, work)?;
        }
        Ok(())
    }

    fn place(&mut self, hash: u64, number: u32, work: &mut Work) -> Result<(), Exceeded> {
        let probe_ns = probe_ns(self.slots.len());
        let mut probes = Probes::of(hash, self.slots.len());
        loop {
            work.charge(probe_ns)?;
            let slot = &mut self.slots[probes.place];
            if *slot == 0 {
                *slot = number;
                return Ok(());
            }
            probes.advance();
        }
    }
}

/// A set's table: as a dict's.
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
            for place in Self::places(&probes) {
                work.charge(neighbour_ns)?;
                let number = self.slots[place];
                if number == 0 {
                    break 'free place;
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

    /// The distinct keys, in the order in which they came.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.entries.entries.iter().map(|(_, key)| key)
    }

    fn costs(slots: usize) -> (u64, u64) {
        let probe_ns = probe_ns(slots);
        (probe_ns, 2 + probe_ns / 8)
    }

    /// A place and its neighbours.
    fn places(probes: &Probes) -> std::ops::RangeInclusive<usize> {
        let last = probes.place + LINEAR_PROBES;
        probes.place..=if last <= probes.mask { last } else { probes.place }
    }

    /// Moves all into another table, in the order of their places.
    fn resize(&mut self, slots: usize, work: &mut Work) -> Result<(), Exceeded> {
        let (probe_ns, neighbour_ns) = Self::costs(slots);
        let old = std::mem::replace(&mut self.slots, vec![0; slots]);
        for number in old.into_iter().filter(|number| *number != 0) {
            let mut probes = Probes::of(self.entries.entries[number as usize - 1].1.hash, slots);
            'free: loop {
                work.charge(probe_ns)?;
                for place in Self::places(&probes) {
                    work.charge(neighbour_ns)?;
                    if self.slots[place] == 0 {
                        self.slots[place] = number;
                        break 'free;
                    }
                }
                probes.advance();
            }
        }
        Ok(())
    }
}
