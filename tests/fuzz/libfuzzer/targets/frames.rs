//! See `fuzz::wire::frames`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::wire::frames(data));
