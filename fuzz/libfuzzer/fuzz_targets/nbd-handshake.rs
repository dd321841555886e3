//! See `stor_fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| stor_fuzz::run("nbd-handshake", input));
