//! A hasher that is fast with many small values: each is mixed in by one wide multiplication. Two
//! states count as one if their 64 bits agree, which has a chance of one in tens of millions among
//! a million states.

use std::hash::Hasher;

/// Odd, and with as many ones as zeros.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

#[derive(Debug)]
pub struct Mixer {
    state: u64,
}

impl Default for Mixer {
    fn default() -> Self {
        Self {
            state: 0x243f_6a88_85a3_08d3,
        }
    }
}

impl Mixer {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the halves of the product are what is wanted"
    )]
    fn fold(&mut self, word: u64) {
        let product = u128::from(self.state ^ word) * u128::from(FACTOR);
        let [low, high] = [0, 64].map(|shift| (product >> shift) as u64);
        self.state = low ^ high.rotate_left(23) ^ word.rotate_left(41);
    }
}

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        let mut last = Self { state: self.state };
        last.fold(FACTOR);
        last.fold(!FACTOR);
        last.state
    }

    fn write(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            self.fold(u64::from_le_bytes(word.try_into().unwrap_or_default()));
        }
        let rest = words.remainder();
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            self.fold(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.fold(value.into());
    }

    fn write_u32(&mut self, value: u32) {
        self.fold(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        self.fold(value);
    }

    fn write_usize(&mut self, value: usize) {
        self.fold(value as u64);
    }
}
