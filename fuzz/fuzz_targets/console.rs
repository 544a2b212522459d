//! The guest's console, as it is remembered and shown.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| banger_fuzz::run("console", data));
