//! Test-only package: everything is in its two test binaries, `it` and `tidy`.
