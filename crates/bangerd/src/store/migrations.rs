//! The schema, and how an older one becomes it: `PRAGMA user_version` counts the steps taken.
//!
//! A step, once released, is never edited; a change of the schema is a new step at the end.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use banger_api::step::{self, Step};
use banger_host::fault;
use rusqlite::{Connection, TransactionBehavior};

use super::{StoreError, sql};

/// The steps, in order. Step N leads to version N + 1.
pub(super) const ALL: &[&str] = &[CREATE_VMS, ADD_EXPIRY, ADD_DISKS];

const CREATE_VMS: &str = "
    CREATE TABLE vms (
        id            TEXT PRIMARY KEY,
        name          TEXT NOT NULL,
        spec          TEXT NOT NULL CHECK (json_valid(spec)),
        image_digest  TEXT NOT NULL,
        kernel_digest TEXT NOT NULL,
        machine_id    TEXT NOT NULL,
        disk_bytes    INTEGER NOT NULL CHECK (disk_bytes > 0),
        created_at_ms INTEGER NOT NULL,
        -- What the daemon wants of it, written before it acts.
        desired       TEXT NOT NULL CHECK (desired IN ('stopped', 'running')),
        -- The request that creates it has not succeeded yet.
        unfinished    INTEGER NOT NULL CHECK (unfinished IN (0, 1)),
        -- Its removal has begun.
        deleting      INTEGER NOT NULL CHECK (deleting IN (0, 1)),
        -- How it last ended, a VmStatus.
        last          TEXT CHECK (last IS NULL OR json_valid(last))
    ) STRICT;
    CREATE UNIQUE INDEX vms_name ON vms (name) WHERE deleting = 0;
    CREATE INDEX vms_image ON vms (image_digest);
    CREATE INDEX vms_kernel ON vms (kernel_digest);
";

const ADD_EXPIRY: &str = "
    -- When the VM is to be stopped and removed. Kept apart from the spec's ttl, so that a change of
    -- that counts from its own moment.
    ALTER TABLE vms ADD COLUMN expires_at_ms INTEGER;
";

const ADD_DISKS: &str = "
    -- Which disks the VM shall have, where they have been replaced since it was made.
    ALTER TABLE vms ADD COLUMN disks TEXT;
";

/// The newest version that this release knows.
pub(super) fn newest() -> i64 {
    version_of(ALL)
}

fn version_of(steps: &[&str]) -> i64 {
    i64::try_from(steps.len()).expect("there are few migrations")
}

/// Takes the steps that are missing, each in one transaction, after a copy of the file as it was.
pub(super) fn migrate(
    connection: &mut Connection,
    path: &Path,
    steps: &[&str],
) -> Result<(), StoreError> {
    let found = version(connection)?;
    if found > 0 && found < version_of(steps) {
        pass(step::MIGRATE_BACKUP)?;
        back_up(connection, &backup_path(path, found))?;
    }
    for (step, target) in steps.iter().zip(1..) {
        if target > found {
            take(connection, step, target)?;
        }
    }
    Ok(())
}

fn take(connection: &mut Connection, step: &str, target: i64) -> Result<(), StoreError> {
    let error = || sql("change the database's schema");
    pass(step::MIGRATE_APPLY)?;
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(error())?;
    transaction.execute_batch(step).map_err(error())?;
    transaction.pragma_update(None, "user_version", target).map_err(error())?;
    pass(step::MIGRATE_COMMIT)?;
    transaction.commit().map_err(error())
}

fn pass(step: Step) -> Result<(), StoreError> {
    fault::pass(step).map_err(|error| {
        // As SQLite says it.
        let code = match error.kind() {
            io::ErrorKind::StorageFull => rusqlite::ffi::SQLITE_FULL,
            _ => rusqlite::ffi::SQLITE_IOERR,
        };
        let failure = rusqlite::ffi::Error::new(code);
        sql("change the database's schema")(rusqlite::Error::SqliteFailure(failure, None))
    })
}

fn version(connection: &Connection) -> Result<i64, StoreError> {
    connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(sql("read the database's schema version"))
}

pub(super) fn backup_path(path: &Path, version: i64) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".v{version}"));
    PathBuf::from(name)
}

/// Copies the database, durably and under its name only as a whole.
fn back_up(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let mut half = path.as_os_str().to_owned();
    half.push(".tmp");
    let half = PathBuf::from(half);
    let copy = || -> Result<(), rusqlite::Error> {
        // What a killed daemon left of a copy is no database.
        remove(&half).map_err(not_written)?;
        let silent = None::<fn(rusqlite::backup::Progress)>;
        connection.backup("main", &half, silent)?;
        publish(&half, path).map_err(not_written)
    };
    copy().map_err(|source| StoreError::Backup { path: path.to_owned(), source })
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn publish(half: &Path, path: &Path) -> io::Result<()> {
    File::open(half)?.sync_all()?;
    std::fs::rename(half, path)?;
    path.parent().map_or(Ok(()), banger_host::files::sync_dir)
}

fn not_written(error: io::Error) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(Box::new(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_steps_are_taken_once_with_a_copy_of_the_former_state() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("banger.db");
        let steps = ["CREATE TABLE a (x) STRICT", "CREATE TABLE b (x TEXT) STRICT"];
        let steps = [steps[0].replace("(x)", "(x TEXT)"), steps[1].to_owned()];
        let both: Vec<&str> = steps.iter().map(String::as_str).collect();
        let mut connection = Connection::open(&path).expect("create");

        migrate(&mut connection, &path, &both[..1]).expect("first step");
        connection.execute("INSERT INTO a VALUES ('kept')", []).expect("insert");
        assert!(!backup_path(&path, 0).exists(), "there was nothing to copy");

        migrate(&mut connection, &path, &both).expect("second step");
        migrate(&mut connection, &path, &both).expect("nothing to do");
        assert_eq!(version(&connection).expect("version"), 2);

        let copy = Connection::open(backup_path(&path, 1)).expect("open the copy");
        assert_eq!(version(&copy).expect("version"), 1);
        let kept: String = copy.query_row("SELECT x FROM a", [], |row| row.get(0)).expect("row");
        assert_eq!(kept, "kept");
    }

    #[test]
    fn a_step_that_fails_changes_nothing() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("banger.db");
        let mut connection = Connection::open(&path).expect("create");
        let steps = ["CREATE TABLE a (x TEXT) STRICT; CREATE NONSENSE"];
        migrate(&mut connection, &path, &steps).expect_err("nonsense");
        assert_eq!(version(&connection).expect("version"), 0);
        let tables: i64 = connection
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
            .expect("count");
        assert_eq!(tables, 0);
    }
}
