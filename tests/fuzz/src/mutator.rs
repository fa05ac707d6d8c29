//! Changes inputs at random from a seed, like libFuzzer, but without knowing which code an input
//! reaches.

use simulation::random::Random;

/// Most changes of one input.
const CHANGES_MAX: usize = 4;

/// Numbers that are often at some limit.
const NUMBERS: &[u64] = &[
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x1_0000,
    0x10_0000,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_ffff,
];

/// Parts of the texts that the targets read.
const WORDS: &[&str] = &[
    "\"",
    "\\",
    "\n",
    "\r\n",
    "\0",
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "null",
    "true",
    "-1",
    "1e9",
    "0.5",
    "18446744073709551615",
    "18446744073709551616",
    "4294967295",
    "\\u0000",
    "\\ud800",
    "\u{e9}",
    " ",
    "=",
    "agent.",
    "x\":1",
    "\u{1e}",
];

/// A changed input of `corpus`, at most `len_max` bytes long.
#[must_use]
pub fn mutated(corpus: &[Vec<u8>], random: &mut Random, len_max: usize) -> Vec<u8> {
    let empty = Vec::new();
    let pick = |random: &mut Random| match corpus.len() {
        0 => &empty,
        count => &corpus[random.below(count)],
    };
    let mut bytes = pick(random).clone();
    for _ in 0..=random.below(CHANGES_MAX) {
        let at = random.below(bytes.len() + 1);
        let end = at + random.below((bytes.len() - at).min(64) + 1);
        match random.below(10) {
            0 => drop(bytes.splice(at..end, [])),
            1 => drop(bytes.splice(at..at, (0..end - at).map(|_| random.small(256)))),
            2 => {
                let word = WORDS[random.below(WORDS.len())];
                drop(bytes.splice(at..end.min(at + word.len()), word.bytes()));
            }
            3 => set_number(&mut bytes, at, random),
            4 => repeat(&mut bytes, at..end, random),
            5 => {
                let other = pick(random);
                let from = random.below(other.len() + 1);
                drop(bytes.splice(at.., other[from..].iter().copied()));
            }
            6 => bytes.truncate(at),
            7 | 8 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = random.small(256);
                }
            }
        }
    }
    bytes.truncate(len_max);
    bytes
}

/// Overwrites one to eight bytes with a number.
fn set_number(bytes: &mut [u8], at: usize, random: &mut Random) {
    let number = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
    let len = 1 << random.below(4);
    let place = bytes.iter_mut().skip(at).take(len);
    place.zip(number).for_each(|(byte, new)| *byte = new);
}

/// Repeats a piece, up to where a limit may be.
fn repeat(bytes: &mut Vec<u8>, piece: std::ops::Range<usize>, random: &mut Random) {
    let count = 1 << random.below(13);
    let repeated = bytes[piece.clone()].repeat(count);
    bytes.splice(piece.end..piece.end, repeated);
}
