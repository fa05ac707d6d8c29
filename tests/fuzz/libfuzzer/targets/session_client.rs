//! See `fuzz::conversation::session_client`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::conversation::session_client(data));
