//! `host-tool` by itself: its arguments, and the commands that show and measure.

mod absent;
mod bench;
mod health;
mod logs;
mod outputs;
mod stress;
mod unheard;
mod usage;
