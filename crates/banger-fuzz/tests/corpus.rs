//! Every target is given its corpus: what fuzzing found stays mended, and no target rots.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn fuzz_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn names_in(dir: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// "fuzz targets (cargo-fuzz) for each decoder, … corpus committed small"
#[test]
fn every_target_takes_its_corpus() {
    for (name, target) in banger_fuzz::TARGETS {
        let corpus = fuzz_dir().join("corpus").join(name);
        let files = names_in(&corpus);
        assert!(!files.is_empty(), "{name} has no corpus");
        let mut bytes = 0;
        for file in files {
            let data = std::fs::read(corpus.join(&file)).expect("it is a file");
            bytes += data.len();
            let outcome = std::panic::catch_unwind(|| target(&data));
            assert!(outcome.is_ok(), "fuzz/corpus/{name}/{file} was not taken");
        }
        assert!(bytes <= 128 << 10, "the corpus of {name} has {bytes} bytes; keep it small");
        target(b"");
    }
}

#[test]
fn every_target_can_be_fuzzed() {
    let known: BTreeSet<String> =
        banger_fuzz::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names_in(&fuzz_dir().join("corpus")), known);
    let files = names_in(&fuzz_dir().join("fuzz_targets"));
    let programs = files.iter().filter_map(|file| file.strip_suffix(".rs")).map(str::to_owned);
    assert_eq!(programs.collect::<BTreeSet<_>>(), known);
}
