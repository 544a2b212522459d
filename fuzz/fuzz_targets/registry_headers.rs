//! Challenges, redirections and waits of registries.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| banger_fuzz::run("registry_headers", data));
