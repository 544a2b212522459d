//! OCI and Docker manifests, indexes, and configurations that go with them.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| banger_fuzz::run("manifest", data));
