//! Tars of layers, and what they do to a tree.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| banger_fuzz::run("layers", data));
