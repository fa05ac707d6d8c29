//! `guest-agent`: see the library of the same package.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The process of a probe, which only has to be executed and reaped. On x86-64 `sys/entry.rs`
    // ends it earlier.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == "--noop")
    {
        return ExitCode::SUCCESS;
    }
    agent::run()
}
