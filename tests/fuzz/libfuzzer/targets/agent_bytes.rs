//! See `fuzz::agent_bytes::agent_bytes`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::agent_bytes::agent_bytes(data));
