//! The agent by itself: what it costs, its limits, and the program that it supervises.

mod footprint;
mod limits;
mod memory;
mod places;
mod workload;
