//! A program that does nothing, built as the agent is: what Rust and libc alone cost.

fn main() {}
