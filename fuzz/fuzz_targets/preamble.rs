//! The greeting on the agent's port.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| banger_fuzz::run("preamble", data));
