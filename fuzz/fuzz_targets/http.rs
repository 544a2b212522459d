//! Answers of HTTP servers: the agent's, the shim's, the daemon's.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| banger_fuzz::run("http", data));
