//! `launch.json`, `status.json` and what the shim tells the daemon.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| banger_fuzz::run("state_files", data));
