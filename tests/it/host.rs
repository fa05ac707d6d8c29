//! `host-tool` by itself: its arguments, and the commands that show and measure.

mod bench;
mod health;
mod logs;
mod stress;
mod unheard;
mod usage;
