//! See `fuzz::conversation::exchange`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::conversation::exchange(data));
