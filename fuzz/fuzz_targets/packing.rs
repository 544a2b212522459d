//! Packed kernels, modules and packages.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| banger_fuzz::run("packing", data));
