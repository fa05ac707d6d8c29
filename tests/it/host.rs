//! `host-tool` by itself: its arguments, and the commands that observe and measure.

mod bench;
mod health;
mod logs;
mod stress;
mod usage;
