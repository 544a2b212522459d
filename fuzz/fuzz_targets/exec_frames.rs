//! Frames of exec streams.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| banger_fuzz::run("exec_frames", data));
