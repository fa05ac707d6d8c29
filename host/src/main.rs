//! The `host-tool` program; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    host::run(std::env::args_os().skip(1).collect())
}
