//! SHA-256 of the files of an artifact, recorded on request.
//!
//! Sizes tell a copy that was cut short. Only digests tell a disk that returns other bytes than it
//! was given, or a file that was replaced by one of the same length. They are no signature: whoever
//! can write the artifact can write its manifest.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

const DIGEST_LEN: usize = 32;

const READ_LEN: usize = 1024 * 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Digest([u8; DIGEST_LEN]);

impl Digest {
    /// Reads `file` to its end. `go_on` is told how many bytes each piece had, and ends it all with
    /// its error.
    pub(crate) fn of<E: From<io::Error>>(
        mut file: &File,
        mut go_on: impl FnMut(u64) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut sha256 = Sha256::new();
        let mut piece = vec![0; READ_LEN];
        loop {
            match file.read(&mut piece) {
                Ok(0) => return Ok(Self(sha256.finalize().into())),
                Ok(len) => {
                    sha256.update(&piece[..len]);
                    go_on(len as u64)?;
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
        // `from_str_radix` would also take a sign.
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

    /// The first two examples of FIPS 180-4, and one that takes several reads (`sha256sum` of the
    /// same bytes).
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
    fn whoever_waits_can_end_it() {
        let temp = TempDir::new("digest");
        let path = temp.path().join("f");
        fs::write(&path, "abc").unwrap();
        let digest = Digest::of(&File::open(&path).unwrap(), |_| {
            Err(io::Error::from(io::ErrorKind::TimedOut))
        });
        assert_eq!(digest.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn only_sixty_four_digits_are_a_digest() {
        let text = "ab".repeat(DIGEST_LEN);
        assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
        let sign = format!("+{}", &text[1..]);
        for bad in ["", &text[1..], &format!("{text}0"), &sign] {
            assert_eq!(bad.parse::<Digest>(), Err(ParseDigestError), "{bad}");
        }
    }
}
