//! System calls that neither std nor nix wraps safely. The only place with `unsafe`.

pub mod child;
pub mod disposition;
pub mod inherited;
pub mod pidfd;
pub mod reflink;
pub mod tap;
pub mod terminal;
