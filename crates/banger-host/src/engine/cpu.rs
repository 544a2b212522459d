//! What the host's processor is, as far as a saved guest depends on it.

use sha2::{Digest, Sha256};

/// How many digits of the digest of its features are told.
const DIGITS: usize = 8;

/// Model and features in one line: another line is another processor.
#[must_use]
pub fn identity() -> String {
    describe(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

fn describe(cpuinfo: &str) -> String {
    let value = |name: &str| {
        let mut lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
    };
    let model = value("model name").unwrap_or("unknown processor");
    let mut features: Vec<&str> = value("flags").unwrap_or_default().split(' ').collect();
    features.sort_unstable();
    let digest = hex::encode(Sha256::digest(features.join(" ")));
    format!("{model} ({})", &digest[..DIGITS])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_and_features_count_and_nothing_else() {
        let of = |model: &str, flags: &str, mhz: &str| {
            describe(&format!(
                "processor\t: 0\nmodel name\t: {model}\ncpu MHz\t\t: {mhz}\nflags\t\t: {flags}\n\n"
            ))
        };
        let one = of("A B", "fpu sse", "1000");
        assert!(one.starts_with("A B ("), "{one}");
        assert_eq!(one, of("A B", "sse fpu", "2000"));
        assert_ne!(one, of("A C", "fpu sse", "1000"));
        assert_ne!(one, of("A B", "fpu sse avx", "1000"));
        assert!(describe("").starts_with("unknown processor ("));
    }
}
