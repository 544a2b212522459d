//! bzImage and ELF kernels.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| banger_fuzz::run("kernel_image", data));
