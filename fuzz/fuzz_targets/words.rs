//! Durations, sizes, filters, names, ids, signals.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| banger_fuzz::run("words", data));
