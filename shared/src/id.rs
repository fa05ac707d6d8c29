//! Opaque ids of 16 random bytes: generations, instances, exec ids, nonces and tokens.
//!
//! They are not times or counters: a snapshot rolls both back, and two clones made within one
//! second would share them. The programs draw the bytes; this crate only carries them.

use std::fmt;
use std::str::FromStr;

/// Length of every id, in bytes.
pub const ID_LEN: usize = 16;

macro_rules! opaque_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; ID_LEN]);

        impl $name {
            /// The id with these bytes, which the caller drew at random.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; ID_LEN]) -> Self {
                Self(bytes)
            }

            /// The random bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; ID_LEN] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let mut bytes = [0; ID_LEN];
                decode_hex(text, &mut bytes).map(|()| Self(bytes))
            }
        }
    };
}

opaque_id! {
    /// One life of a guest: from a boot, a restore, or the resume after a snapshot to the next.
    Generation
}
opaque_id! {
    /// One run of an agent, from its start to its end. All clones of the guest have it too, because
    /// it is part of the agent's memory. The agent draws it.
    Instance
}

opaque_id! {
    /// One request to run a command. A second EXEC with the same id attaches to the command.
    ExecId
}
opaque_id! {
    /// One attempt of a probe. The answer repeats it, so that an old answer is not taken for a new
    /// one.
    Nonce
}
opaque_id! {
    /// One QUIESCE or HOOKS request. A second copy joins the first.
    Token
}

/// The text is not 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ParseIdError;

impl fmt::Display for ParseIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {} hexadecimal digits", ID_LEN * 2)
    }
}

impl std::error::Error for ParseIdError {}

/// Fills `bytes` from exactly twice as many hexadecimal digits of either case.
pub(crate) fn decode_hex(text: &str, bytes: &mut [u8]) -> Result<(), ParseIdError> {
    let digits = text.as_bytes();
    if digits.len() != bytes.len() * 2 {
        return Err(ParseIdError);
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
    }
    Ok(())
}

/// Appends the lower-case hexadecimal digits of `bytes`.
pub(crate) fn push_hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.reserve(bytes.len() * 2);
    for byte in bytes {
        let (high, low) = (byte >> 4, byte & 15);
        out.extend_from_slice(&[DIGITS[usize::from(high)], DIGITS[usize::from(low)]]);
    }
}

fn hex_digit(digit: u8) -> Result<u8, ParseIdError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(ParseIdError),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips() {
        let id = Generation::from_bytes(*b"\x00\x01\x7f\x80\xff0123456789a");
        assert_eq!(id.to_string(), "00017f80ff3031323334353637383961");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().to_uppercase().parse(), Ok(id));
    }

    #[test]
    fn other_texts_are_refused() {
        let good = "00017f80ff3031323334353637383961";
        for bad in [
            "",
            "00",
            &good[1..],
            &format!("{good}0"),
            &good.replace('f', "g"),
            "é",
        ] {
            assert_eq!(bad.parse::<Generation>(), Err(ParseIdError), "{bad:?}");
        }
    }
}
