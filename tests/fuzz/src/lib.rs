//! A function for each thing that untrusted bytes reach. It takes any bytes, and panics when a
//! property does not hold.
//!
//! Goal: no peer, VMM, image or artifact makes the programs panic, take memory without limit, or
//! understand the same bytes in two ways. Method: libFuzzer chooses the bytes (`libfuzzer/`, which
//! needs a nightly toolchain). On any toolchain, the test `smoke` replays `corpus/` and a fixed
//! number of changed inputs. `docs/testing.md` says how to run both.

pub mod agent_bytes;
pub mod conversation;
pub mod guest;
pub mod host_inputs;
pub mod mutator;
pub mod wire;

/// A function to fuzz.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Also the name of its folder in `corpus/` and of its libFuzzer program.
    pub name: &'static str,
    /// Panics when it finds a defect.
    pub run: fn(&[u8]),
    /// How many changed inputs `smoke` runs, which takes about a second.
    pub rounds: u32,
    /// Longest generated input, in bytes.
    pub len_max: usize,
}

/// All targets, by which `smoke` and `scripts/fuzz.sh` go.
pub const TARGETS: &[Target] = &[
    target("frames", wire::frames, 100_000, 1 << 16),
    target("messages", wire::messages, 200_000, 1 << 16),
    target("agent_inputs", agent_bytes::agent_inputs, 15_000, 1 << 10),
    target("agent_bytes", agent_bytes::agent_bytes, 25_000, 1 << 13),
    target("exchange", conversation::exchange, 60_000, 1 << 13),
    target(
        "session_client",
        conversation::session_client,
        60_000,
        1 << 13,
    ),
    target(
        "kernel_command_line",
        guest::kernel_command_line,
        100_000,
        1 << 12,
    ),
    target("agent_json", guest::agent_json, 200_000, 1 << 13),
    target("accounts", guest::accounts, 150_000, 1 << 13),
    target("metadata_answer", guest::metadata_answer, 100_000, 1 << 13),
    target(
        "http_response",
        host_inputs::http_response,
        100_000,
        1 << 17,
    ),
    target("qmp", host_inputs::qmp, 8_000, 1 << 13),
    target("hybrid_vsock", host_inputs::hybrid_vsock, 200_000, 1 << 8),
    target("manifest", host_inputs::manifest, 100_000, 1 << 14),
];

const fn target(name: &'static str, run: fn(&[u8]), rounds: u32, len_max: usize) -> Target {
    Target {
        name,
        run,
        rounds,
        len_max,
    }
}
