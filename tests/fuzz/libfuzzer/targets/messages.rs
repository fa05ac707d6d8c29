//! See `fuzz::wire::messages`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::wire::messages(data));
