//! File systems, as `promote` and `push` read them.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| banger_fuzz::run("ext4", data));
