//! See `fuzz::guest::kernel_command_line`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::guest::kernel_command_line(data));
