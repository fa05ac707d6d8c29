//! SHA-256 of the files of an artifact, recorded on request.
//!
//! A wrong size reveals a copy that was cut short. Only a digest reveals a disk that corrupts data,
//! or a file that was replaced by one of the same length. A digest is not a signature: an attacker
//! who can write the artifact can write its manifest.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

const DIGEST_LEN: usize = 32;

const READ_LEN: usize = 1024 * 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Digest([u8; DIGEST_LEN]);

impl Digest {
    /// Reads `file` from its start to its end. `check` gets the length of each piece, and can abort
    /// with an error.
    pub(crate) fn of<E: From<io::Error>>(
        file: &File,
        mut check: impl FnMut(u64) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut sha256 = Sha256::new();
        let mut piece = vec![0; READ_LEN];
        let mut position = 0;
        loop {
            match file.read_at(&mut piece, position) {
                Ok(0) => return Ok(Self(sha256.finalize().into())),
                Ok(len) => {
                    sha256.update(&piece[..len]);
                    position += len as u64;
                    check(len as u64)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// The text is not 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ParseDigestError;

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, ParseDigestError> {
        let digits = text.as_bytes();
        // `from_str_radix` would also accept a sign.
        if digits.len() != DIGEST_LEN * 2 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(ParseDigestError);
        }
        let mut bytes = [0; DIGEST_LEN];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| ParseDigestError)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| ParseDigestError)?;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::testing::TempDir;

    /// The first two are examples of FIPS 180-4. The third takes several reads; `sha256sum` of the
    /// same bytes gives this digest.
    #[test]
    fn digests_are_those_of_the_standard() {
        let temp = TempDir::new("digest");
        let path = temp.path().join("f");
        for (content, expected) in [
            (
                b"".to_vec(),
                "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            ),
            (
                b"abc".to_vec(),
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            (
                vec![b'a'; 3_000_000],
                "2a152c894398719c0570f83fac34ac03a0f6e8e474b995c2403aa5434f7b9dd4",
            ),
        ] {
            fs::write(&path, &content).unwrap();
            let mut read_len = 0;
            let digest = Digest::of(&File::open(&path).unwrap(), |len| {
                read_len += len;
                Ok::<_, io::Error>(())
            });
            assert_eq!(digest.unwrap().to_string(), expected);
            assert_eq!(read_len, content.len() as u64);
        }
    }

    #[test]
    fn the_caller_can_abort() {
        let temp = TempDir::new("digest");
        let path = temp.path().join("f");
        fs::write(&path, "abc").unwrap();
        let digest = Digest::of(&File::open(&path).unwrap(), |_| {
            Err(io::Error::from(io::ErrorKind::TimedOut))
        });
        assert_eq!(digest.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_digest_has_sixty_four_digits() {
        let text = "ab".repeat(DIGEST_LEN);
        assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
        let sign = format!("+{}", &text[1..]);
        for bad in ["", &text[1..], &format!("{text}0"), &sign] {
            assert_eq!(bad.parse::<Digest>(), Err(ParseDigestError), "{bad}");
        }
    }
}
