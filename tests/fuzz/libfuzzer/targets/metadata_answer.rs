//! See `fuzz::guest::metadata_answer`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::guest::metadata_answer(data));
