//! Databases as each released schema left them, and what becomes of them.
//!
//! `fixtures/v<N>.db` was written by SQLite with the schema of version N, and is never changed. A
//! release with a new schema adds its own.

use std::path::{Path, PathBuf};

use banger_api::vm::{RestartPolicy, VmState};
use banger_core::lifecycle::Desired;
use rusqlite::Connection;

use super::migrations::{ALL, backup_path, migrate, newest};
use super::{Store, VmRow};

const RELEASED: [(i64, &[u8]); 3] = [
    (1, include_bytes!("fixtures/v1.db")),
    (2, include_bytes!("fixtures/v2.db")),
    (3, include_bytes!("fixtures/v3.db")),
];

/// A state directory with the database of a release.
fn place(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("banger.db");
    std::fs::write(&path, bytes).expect("write");
    (dir, path)
}

fn version_of(path: &Path) -> i64 {
    let connection = Connection::open(path).expect("open");
    connection.pragma_query_value(None, "user_version", |row| row.get(0)).expect("version")
}

fn rows(path: &Path) -> Vec<VmRow> {
    Store::open(path).expect("it can be opened").all().expect("its rows can be read")
}

/// The databases' files as a power cut at this moment leaves them.
fn cut(from: &Path) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("temporary directory");
    for entry in std::fs::read_dir(from.parent().expect("in a directory")).expect("list") {
        let entry = entry.expect("list");
        // Its locks and shared memory are gone with the processes.
        if !entry.file_name().to_string_lossy().ends_with("-shm") {
            let bytes = std::fs::read(entry.path()).expect("read");
            std::fs::write(dir.path().join(entry.file_name()), bytes).expect("write");
        }
    }
    let path = dir.path().join("banger.db");
    (dir, path)
}

/// "a committed fixture of each released schema migrates"
#[test]
fn each_released_schema_has_a_fixture_and_migrates_with_all_rows_and_a_copy() {
    let fixtures: Vec<i64> = RELEASED.iter().map(|(version, _)| *version).collect();
    assert_eq!(fixtures, Vec::from_iter(1..=newest()), "one of each schema");
    for (version, bytes) in RELEASED {
        let (_dir, path) = place(bytes);
        let rows = rows(&path);
        let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
        let want = ["plain", "full", "half-made", "leaving", "newer"];
        assert_eq!(names, want[..if version == 1 { 4 } else { 5 }], "schema {version}");
        check_rows(&rows);
        let disks = (version >= 3).then_some("00112233445566ff");
        assert_eq!(rows[1].disks.as_deref(), disks, "schema {version}");
        assert_eq!(version_of(&path), newest());
        let copy = backup_path(&path, version);
        assert_eq!(copy.exists(), version < newest(), "a copy of schema {version}");
        if copy.exists() {
            assert_eq!(version_of(&copy), version, "the copy is as it was");
            let old = place(&std::fs::read(&copy).expect("read"));
            assert_eq!(self::rows(&old.1), rows, "and can be put back");
        }
    }
}

fn check_rows(rows: &[VmRow]) {
    let [plain, full, half_made, leaving, ..] = rows else { panic!("four rows at least") };
    assert_eq!((plain.spec.cpus, plain.spec.memory_mib), (2, 1024));
    assert_eq!((plain.spec.restart, plain.spec.ttl_ms), (RestartPolicy::No, None));
    assert_eq!((plain.expires_at_ms, &plain.last), (None, &None));
    assert_eq!(full.desired, Desired::Running);
    assert_eq!(full.spec.labels["team"], "x");
    assert_eq!(full.spec.command, ["sleep", "60"]);
    let last = full.last.as_ref().expect("how it ended");
    assert_eq!((last.state, last.boot_ms), (VmState::Failed, Some(3300)));
    assert!(half_made.unfinished && leaving.deleting);
    if let Some(newer) = rows.get(4) {
        assert_eq!(newer.spec.restart, RestartPolicy::OnFailure);
        assert_eq!(newer.expires_at_ms, Some(1_732_000_060_000));
    }
}

/// "killed in the middle of migration (each step)": the next start is fine.
#[test]
fn a_migration_that_is_cut_off_anywhere_is_begun_again() {
    for (version, bytes) in RELEASED {
        let want = {
            let (_dir, path) = place(bytes);
            rows(&path)
        };
        let from = usize::try_from(version).expect("small");
        for steps in from..=ALL.len() {
            let (_dir, path) = place(bytes);
            let mut connection = Connection::open(&path).expect("open");
            connection.pragma_update(None, "journal_mode", "WAL").expect("as the daemon has it");
            migrate(&mut connection, &path, &ALL[..steps]).expect("some of the steps");
            let between = cut(&path);
            assert_eq!(rows(&between.1), want, "after step {steps}");
            if let Some(step) = ALL.get(steps) {
                let transaction = connection.transaction().expect("begin");
                transaction.execute_batch(step).expect("the next step");
                transaction.pragma_update(None, "user_version", 99).expect("not committed");
                let within = cut(&path);
                assert_eq!(rows(&within.1), want, "in step {}", steps + 1);
                assert_eq!(version_of(&within.1), newest());
            }
        }
    }
}

/// The same, while the copy is made: what there is of it is no obstacle, and never takes the copy's
/// name.
#[test]
fn half_a_copy_is_no_copy() {
    let (_dir, path) = place(RELEASED[0].1);
    let copy = backup_path(&path, 1);
    let half = PathBuf::from(format!("{}.tmp", copy.display()));
    std::fs::write(&half, &RELEASED[0].1[..5000]).expect("write");
    assert_eq!(rows(&path).len(), 4);
    assert!(!half.exists());
    assert_eq!(version_of(&copy), 1);
}

/// A copy that cannot be made: nothing is changed.
#[test]
fn without_a_copy_nothing_is_changed() {
    let (_dir, path) = place(RELEASED[0].1);
    let half = PathBuf::from(format!("{}.tmp", backup_path(&path, 1).display()));
    std::fs::create_dir_all(half.join("in-the-way")).expect("create");
    let problem = banger_api::Problem::from(Store::open(&path).expect_err("no copy"));
    assert!(problem.causes[0].contains("banger.db.v1"), "{problem}");
    assert_eq!(version_of(&path), 1);
    std::fs::remove_dir_all(&half).expect("removable");
    assert_eq!(rows(&path).len(), 4, "as soon as it can be made, all is well");
}
