//! The copy-on-write store: its header, and a disk made of it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| banger_fuzz::run("cow", data));
