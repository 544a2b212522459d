//! The multiplexed connection to the agent, with a hostile guest.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| banger_fuzz::run("yamux", data));
