//! System calls that neither std nor nix wraps safely. The only place with `unsafe`.

pub(crate) mod child;
mod closed;
pub(crate) mod disposition;
pub(crate) mod entries;
pub(crate) mod inherited;
pub(crate) mod pidfd;
pub(crate) mod reflink;
pub(crate) mod tap;
pub(crate) mod terminal;
