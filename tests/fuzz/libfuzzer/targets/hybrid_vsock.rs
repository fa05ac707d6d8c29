//! See `fuzz::host_inputs::hybrid_vsock`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::host_inputs::hybrid_vsock(data));
