//! The source of an event, packed into the number that epoll carries.
//!
//! ```text
//! 63                     3 2    0
//! ├─ serial of the source ─┼ kind ┤
//! ```
//!
//! The serial is that of the connection or session and is never reused. So an event for a source
//! that was closed earlier in the same batch finds nothing, whatever has been opened since.

use mio::Token;

use crate::agent::{ConnectionId, SessionId, Stream};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Signals,
    Listener,
    /// A program of the guest connected.
    LocalListener,
    /// The connection to the metadata service.
    Mmds,
    Connection(ConnectionId),
    Output(SessionId, Stream),
    Input(SessionId),
}

const KIND_BITS: u32 = 3;
const KIND_FIXED: usize = 0;
const KIND_CONNECTION: usize = 1;
const KIND_STDOUT: usize = 2;
const KIND_STDERR: usize = 3;
const KIND_STDIN: usize = 4;

const FIXED_SIGNALS: usize = 0;
const FIXED_LISTENER: usize = 1;
const FIXED_LOCAL_LISTENER: usize = 2;
const FIXED_MMDS: usize = 3;

// Three bits are for the kind; what is left outlasts any machine.
const _: () = assert!(usize::BITS >= 64);

impl Source {
    pub(crate) fn token(self) -> Token {
        let pack = |serial: usize, kind| Token(serial << KIND_BITS | kind);
        match self {
            Self::Signals => pack(FIXED_SIGNALS, KIND_FIXED),
            Self::Listener => pack(FIXED_LISTENER, KIND_FIXED),
            Self::LocalListener => pack(FIXED_LOCAL_LISTENER, KIND_FIXED),
            Self::Mmds => pack(FIXED_MMDS, KIND_FIXED),
            Self::Connection(id) => pack(serial(id.number()), KIND_CONNECTION),
            Self::Output(id, Stream::Stdout) => pack(serial(id.number()), KIND_STDOUT),
            Self::Output(id, Stream::Stderr) => pack(serial(id.number()), KIND_STDERR),
            Self::Input(id) => pack(serial(id.number()), KIND_STDIN),
        }
    }

    /// `None`: nothing was ever registered with it.
    pub(crate) fn of_token(Token(token): Token) -> Option<Self> {
        let serial = (token >> KIND_BITS) as u64;
        let session = |stream| Self::Output(SessionId::from_number(serial), stream);
        match token & ((1 << KIND_BITS) - 1) {
            KIND_CONNECTION => Some(Self::Connection(ConnectionId::from_number(serial))),
            KIND_STDOUT => Some(session(Stream::Stdout)),
            KIND_STDERR => Some(session(Stream::Stderr)),
            KIND_STDIN => Some(Self::Input(SessionId::from_number(serial))),
            KIND_FIXED if token >> KIND_BITS == FIXED_SIGNALS => Some(Self::Signals),
            KIND_FIXED if token >> KIND_BITS == FIXED_LISTENER => Some(Self::Listener),
            KIND_FIXED if token >> KIND_BITS == FIXED_LOCAL_LISTENER => Some(Self::LocalListener),
            KIND_FIXED if token >> KIND_BITS == FIXED_MMDS => Some(Self::Mmds),
            _ => None,
        }
    }
}

/// The assertion above makes the conversion infallible.
fn serial(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX >> KIND_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip() {
        let connection = |number| Source::Connection(ConnectionId::from_number(number));
        let output = |number, stream| Source::Output(SessionId::from_number(number), stream);
        let sources = [
            Source::Signals,
            Source::Listener,
            Source::LocalListener,
            Source::Mmds,
            connection(1),
            connection(u64::MAX >> KIND_BITS),
            output(1, Stream::Stdout),
            output(1, Stream::Stderr),
            Source::Input(SessionId::from_number(1)),
        ];
        for (index, source) in sources.iter().enumerate() {
            assert_eq!(Source::of_token(source.token()), Some(*source));
            assert!(
                sources[..index]
                    .iter()
                    .all(|other| other.token() != source.token())
            );
        }
        assert_eq!(Source::of_token(Token(4 << KIND_BITS)), None);
        assert_eq!(Source::of_token(Token(KIND_STDIN + 1)), None);
    }
}
