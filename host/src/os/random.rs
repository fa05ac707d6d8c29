//! Random bytes from the kernel.

use std::fs::File;
use std::io::{self, Read};

use shared::id::{ExecId, Generation, ID_LEN, Nonce, Token};

/// `N` bytes from the kernel's generator, which is seeded long before host-tool can run.
///
/// # Errors
///
/// If `/dev/urandom` cannot be read.
pub(crate) fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let context = |error: io::Error| {
        io::Error::new(error.kind(), format!("cannot read /dev/urandom: {error}"))
    };
    let mut source = File::open("/dev/urandom").map_err(context)?;
    source.read_exact(&mut bytes).map_err(context)?;
    Ok(bytes)
}

pub(crate) fn generation() -> io::Result<Generation> {
    bytes::<ID_LEN>().map(Generation::from_bytes)
}

pub(crate) fn nonce() -> io::Result<Nonce> {
    bytes::<ID_LEN>().map(Nonce::from_bytes)
}

pub(crate) fn token() -> io::Result<Token> {
    bytes::<ID_LEN>().map(Token::from_bytes)
}

pub(crate) fn exec_id() -> io::Result<ExecId> {
    bytes::<ID_LEN>().map(ExecId::from_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_are_the_same() {
        assert_ne!(generation().unwrap(), generation().unwrap());
    }
}
