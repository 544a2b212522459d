//! Auth files and `registries.toml`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| banger_fuzz::run("registry_files", data));
