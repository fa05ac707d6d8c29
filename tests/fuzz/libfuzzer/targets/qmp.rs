//! See `fuzz::host_inputs::qmp`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::host_inputs::qmp(data));
