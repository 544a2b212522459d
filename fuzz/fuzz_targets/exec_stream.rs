//! The WebSocket of an exec stream, as the shim reads it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| banger_fuzz::run("exec_stream", data));
