//! The ids of forgotten sessions, so that a late copy of their request does not run it again. No
//! I/O, no clock.
//!
//! A Bloom filter: each id sets a few bits, and an id of which one bit is clear was never inserted.
//! It never forgets and has a fixed size. The price is that a new id may find all its bits set by
//! others. Its command is then refused as one of which the agent cannot tell, and does not run.
//!
//! That does not happen to a request that names how many sessions had begun when it was first sent,
//! as every client does that draws its ids: without a forgotten session after that, the bits are
//! not looked at.
//!
//! Invariants:
//! - An id that was inserted is always found.
//! - No memory before the first insertion, then [`FILTER_LEN`] bytes.

use std::hash::{Hash, Hasher};

use shared::id::ExecId;

/// Bytes of the filter. An id that is new is taken for a used one once in 7 million after 10,000
/// forgotten sessions, once in 1,100 after 100,000, once in 28 after 300,000.
pub(crate) const FILTER_LEN: usize = 256 * 1024;

/// Bits that each id sets.
const BITS_PER_ID: u32 = 4;

const WORDS: usize = FILTER_LEN / 8;

const _: () = assert!((FILTER_LEN * 8).is_power_of_two());

#[derive(Clone, Debug, Default)]
pub(crate) struct Forgotten {
    /// Empty before the first insertion, and when there was no memory for it.
    filter: Vec<u64>,
    /// The highest number of a forgotten session.
    last: u64,
}

/// Only the words that are not zero: most are.
impl Hash for Forgotten {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.last.hash(state);
        let set = self.filter.iter().enumerate().filter(|(_, it)| **it != 0);
        set.for_each(|word| word.hash(state));
    }
}

impl Forgotten {
    /// The session with this number is forgotten, and `id` was that of its request.
    pub(crate) fn insert(&mut self, id: ExecId, number: u64) {
        if self.last == 0 && self.filter.try_reserve_exact(WORDS).is_ok() {
            self.filter.resize(WORDS, 0);
        }
        self.last = self.last.max(number);
        for (word, bit) in positions(id) {
            if let Some(word) = self.filter.get_mut(word) {
                *word |= bit;
            }
        }
    }

    /// Whether `id` may be that of a forgotten session with a higher number than `after`.
    pub(crate) fn may_contain(&self, id: ExecId, after: u64) -> bool {
        let is_set =
            |(word, bit): (usize, u64)| self.filter.get(word).is_none_or(|it| it & bit != 0);
        self.last > after && positions(id).all(is_set)
    }
}

/// The words and bits of an id. It need not be random: a user may have chosen it.
fn positions(id: ExecId) -> impl Iterator<Item = (usize, u64)> {
    let [low, high] = halves(id);
    let (first, second) = (mix(low ^ mix(high)), mix(high ^ mix(!low)));
    (0..u64::from(BITS_PER_ID)).map(move |index| {
        let bit = first.wrapping_add(second.wrapping_mul(index)) >> 32;
        let bit = usize::try_from(bit).unwrap_or(0) % (WORDS * 64);
        (bit / 64, 1 << (bit % 64))
    })
}

fn halves(id: ExecId) -> [u64; 2] {
    let mut halves = [0; 2];
    for (half, bytes) in halves.iter_mut().zip(id.as_bytes().chunks_exact(8)) {
        *half = bytes
            .iter()
            .fold(0, |all, byte| all << 8 | u64::from(*byte));
    }
    halves
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators,
/// 2014): each bit of the input changes half of the output's.
fn mix(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::id::ID_LEN;

    /// Ids as users choose them: numbers, texts, one digit again and again.
    fn chosen(number: u32) -> ExecId {
        let mut bytes = [b'a'; ID_LEN];
        bytes[12..].copy_from_slice(&number.to_be_bytes());
        ExecId::from_bytes(bytes)
    }

    #[test]
    fn an_id_that_was_inserted_is_found_for_good() {
        let mut forgotten = Forgotten::default();
        for number in 0..100_000 {
            forgotten.insert(chosen(number), u64::from(number) + 1);
        }
        for number in 0..100_000 {
            assert!(forgotten.may_contain(chosen(number), 0), "{number}");
        }
    }

    #[test]
    fn few_new_ids_are_taken_for_used_ones() {
        let mut forgotten = Forgotten::default();
        for (count, found_max) in [(10_000, 3), (100_000, 200), (300_000, 5_000)] {
            let from = u32::try_from(forgotten.last).expect("few");
            for number in from..count {
                forgotten.insert(chosen(number), u64::from(number) + 1);
            }
            let is_found = |number: &u32| forgotten.may_contain(chosen(*number), 0);
            let found = (1_000_000..1_100_000).filter(is_found).count();
            assert!(found <= found_max, "{found} after {count}");
        }
    }

    #[test]
    fn what_was_sent_after_all_forgotten_sessions_is_new() {
        let mut forgotten = Forgotten::default();
        assert!(!forgotten.may_contain(chosen(1), 0));
        forgotten.insert(chosen(1), 7);
        for (after, is_found) in [(0, true), (6, true), (7, false), (8, false)] {
            assert_eq!(forgotten.may_contain(chosen(1), after), is_found, "{after}");
        }
    }

    #[test]
    fn without_memory_every_id_may_have_been_used() {
        let forgotten = Forgotten {
            filter: Vec::new(),
            last: 7,
        };
        assert!(forgotten.may_contain(chosen(1), 6));
        assert!(!forgotten.may_contain(chosen(1), 7));
    }
}
