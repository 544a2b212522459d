//! `/etc/passwd` and `/etc/group` of a guest, in the agent.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| banger_fuzz::run("accounts", data));
