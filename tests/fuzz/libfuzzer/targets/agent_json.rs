//! See `fuzz::guest::agent_json`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::guest::agent_json(data));
