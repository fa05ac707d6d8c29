//! What commands write and read. Each byte follows from its offset, so that a misplaced one is
//! noticed.

use std::sync::OnceLock;

use crate::random::Random;

/// A prime, so that no power of two is a multiple of the period.
const PERIOD: usize = 65_521;

/// Standard input is the third stream.
pub const INPUT: usize = 2;

/// Most bytes that [`at`] returns.
pub const LEN_MAX: usize = 64 * 1024;

fn table() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut random = Random::new(1, 1);
        let mut bytes: Vec<u8> = (0..PERIOD).map(|_| random.small(256)).collect();
        bytes.extend_from_within(..PERIOD);
        bytes.extend_from_within(..LEN_MAX - PERIOD);
        bytes
    })
}

/// `len` bytes at `offset` of a stream of the command with this key.
#[must_use]
pub fn at(key: u64, stream: usize, offset: u64, len: usize) -> &'static [u8] {
    let start = offset
        .wrapping_add(key.wrapping_mul(7_919))
        .wrapping_add(stream as u64 * 20_011);
    let start = usize::try_from(start % PERIOD as u64).expect("below the period");
    &table()[start..start + len]
}
