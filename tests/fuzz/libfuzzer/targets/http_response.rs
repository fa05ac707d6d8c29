//! See `fuzz::host_inputs::http_response`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::host_inputs::http_response(data));
