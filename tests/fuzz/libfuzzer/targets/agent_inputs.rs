//! See `fuzz::agent_bytes::agent_inputs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::agent_bytes::agent_inputs(data));
