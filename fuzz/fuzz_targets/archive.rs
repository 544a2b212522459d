//! Archives of images, as `docker save` and others write them.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| banger_fuzz::run("archive", data));
