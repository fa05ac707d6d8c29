//! System calls that neither std nor nix wraps safely. The only place with `unsafe`.

pub mod child;
pub mod inherited;
pub mod pidfd;
pub mod reflink;
