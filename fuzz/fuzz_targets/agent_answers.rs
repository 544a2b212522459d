//! Bodies of the agent's answers.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| banger_fuzz::run("agent_answers", data));
