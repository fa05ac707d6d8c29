//! One function for each thing that a stranger's bytes reach. It takes any bytes, and panics when
//! what must hold of them does not.
//!
//! Goal: no peer, VMM, image or artifact makes the programs panic, take memory without limit, or
//! understand the same bytes in two ways. Method: libFuzzer chooses the bytes (`libfuzzer/`, which
//! needs a nightly toolchain), and on any toolchain the test `smoke` replays `corpus/` and a fixed
//! number of changed inputs. `docs/testing.md` says how both are run.

pub mod agent_bytes;
pub mod conversation;
pub mod guest;
pub mod host_inputs;
pub mod mutator;
pub mod wire;

/// Something to be fuzzed.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, which its folder in `corpus/` and its libFuzzer program have as well.
    pub name: &'static str,
    /// Takes any bytes; panics when it finds a defect.
    pub run: fn(&[u8]),
    /// How many changed inputs `smoke` makes for it: about a second's.
    pub rounds: u32,
    /// Longest input that is made for it, in bytes.
    pub len_max: usize,
}

/// Every target.
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
