//! The database: what every VM is. The only module that knows SQL.
//!
//! What is *currently true* of a VM is observed (locks, `status.json`) and not kept here. Every
//! method is one transaction and blocks; callers are on a blocking thread.

mod migrations;
#[cfg(test)]
mod released;
mod vms;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use banger_api::{ErrorCode, Problem};
use rusqlite::{Connection, OpenFlags};

pub use vms::VmRow;

/// How long a statement waits for another process that has the database locked.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Memory for SQLite's page cache, in KiB. A thousand VMs take about one MiB.
const CACHE_KIB: i64 = 512;

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A newer release wrote it.
    #[error("{} has schema version {found}; this release knows up to {known}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest version that this release knows.
        known: i64,
    },
    /// It is damaged.
    #[error("{} is damaged: {what}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A VM of that name exists.
    #[error("a VM called {0} exists")]
    NameTaken(String),
    /// Anything else that SQLite says.
    #[error("{what}")]
    Sql {
        /// What was being done.
        what: &'static str,
        /// What SQLite says.
        #[source]
        source: rusqlite::Error,
    },
    /// The copy before a migration could not be made.
    #[error("cannot copy the database to {} before changing it", path.display())]
    Backup {
        /// The copy.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Newer { .. } => {
                Self::new(ErrorCode::DatabaseNewer, "the state database is of a newer release")
                    .because(&error)
                    .hint("install that release again; nothing was changed")
            }
            StoreError::Corrupt { path, .. } => {
                let path = path.display();
                Self::new(ErrorCode::DatabaseCorrupt, "the state database is damaged")
                    .because(&error)
                    .hint(format!(
                        "nothing was changed; put a copy back in its place ({path}.v*), or \
                         move {path} away to begin without VMs, then: banger daemon stop"
                    ))
            }
            StoreError::NameTaken(name) => {
                Self::new(ErrorCode::VmNameTaken, format!("a VM called {name} exists"))
                    .hint(format!("banger rm {name}, or choose another --name"))
            }
            StoreError::Sql { source, .. } | StoreError::Backup { source, .. }
                if is_full(source) =>
            {
                Self::new(ErrorCode::HostDiskFull, "the host's disk is full")
                    .because(&error)
                    .hint("free some space there (banger doctor says where), then try again")
            }
            StoreError::Sql { .. } | StoreError::Backup { .. } => {
                Self::new(ErrorCode::Internal, "the state database failed").because(&error)
            }
        }
    }
}

/// The open database.
#[derive(Debug)]
pub struct Store {
    connection: Mutex<Connection>,
}

impl Store {
    /// Opens the database, creates it if it is missing, and brings its schema up to date. A
    /// damaged or newer one is left exactly as it is.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if path.exists() {
            examine(path)?;
        }
        let mut connection = Connection::open(path).map_err(sql("open the database"))?;
        configure(&connection)
            .map_err(|error| damaged_or(path, "configure the database", error))?;
        migrations::migrate(&mut connection, path, migrations::ALL)?;
        Ok(Self { connection: Mutex::new(connection) })
    }

    /// The connection. A panic while it was locked cannot have left a transaction open: they roll
    /// back when dropped.
    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks at an existing database without writing to it.
fn examine(path: &Path) -> Result<(), StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let look = || -> Result<(i64, String), rusqlite::Error> {
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        let version = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let verdict = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        Ok((version, verdict))
    };
    let (found, verdict) =
        look().map_err(|error| damaged_or(path, "examine the database", error))?;
    let known = migrations::newest();
    if found > known {
        return Err(StoreError::Newer { path: path.to_owned(), found, known });
    }
    if verdict != "ok" {
        return Err(StoreError::Corrupt { path: path.to_owned(), what: verdict });
    }
    Ok(())
}

fn configure(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A power cut must not undo what a person was told is done.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)
}

fn sql(what: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |source| StoreError::Sql { what, source }
}

fn damaged_or(path: &Path, what: &'static str, source: rusqlite::Error) -> StoreError {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    match source.sqlite_error_code() {
        Some(DatabaseCorrupt | NotADatabase) => {
            StoreError::Corrupt { path: path.to_owned(), what: source.to_string() }
        }
        _ => StoreError::Sql { what, source },
    }
}

fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
}

#[cfg(test)]
pub mod tests_support {
    //! Values that several tests need.

    use banger_api::vm::{EngineChoice, VmSpec};
    use banger_core::id::Id;
    use banger_core::lifecycle::Desired;

    use super::VmRow;

    /// A small VM.
    pub fn any_spec() -> VmSpec {
        VmSpec {
            image: "debian-bookworm".into(),
            kernel: None,
            engine: EngineChoice::Auto,
            cpus: 1,
            memory_mib: 256,
            disk_bytes: None,
            env: Default::default(),
            user: None,
            workdir: None,
            command: Vec::new(),
            init: None,
            entrypoint: None,
            default_command: Vec::new(),
            stop_signal: None,
            timeout_ms: None,
            remove_on_exit: false,
            restart: Default::default(),
            ttl_ms: None,
            work_disk_bytes: None,
            network: Default::default(),
            labels: Default::default(),
        }
    }

    /// A VM that never ran.
    pub fn any_row(id: &str, name: &str) -> VmRow {
        VmRow {
            id: Id::parse(id).expect("id"),
            name: name.into(),
            spec: any_spec(),
            image_digest: "sha256:i".into(),
            kernel_digest: "sha256:k".into(),
            machine_id: "0".repeat(32),
            disk_bytes: 1 << 30,
            created_at_ms: 7,
            expires_at_ms: None,
            disks: None,
            desired: Desired::Stopped,
            unfinished: true,
            deleting: false,
            last: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("banger.db");
        (dir, path)
    }

    #[test]
    fn a_new_database_opens_again() {
        let (_dir, path) = scratch();
        drop(Store::open(&path).expect("create"));
        let store = Store::open(&path).expect("open again");
        assert_eq!(store.all().expect("list"), []);
    }

    #[test]
    fn a_damaged_database_is_named_and_left_alone() {
        let (_dir, path) = scratch();
        drop(Store::open(&path).expect("create"));
        let mut bytes = std::fs::read(&path).expect("read");
        for damage in [0..100, 4096..4200] {
            bytes[damage].fill(0xaa);
            std::fs::write(&path, &bytes).expect("damage");
            let problem = Problem::from(Store::open(&path).expect_err("damaged"));
            assert_eq!(problem.code, ErrorCode::DatabaseCorrupt, "{problem}");
            assert!(problem.to_string().contains("banger.db"), "{problem}");
            assert_eq!(std::fs::read(&path).expect("read"), bytes, "nothing was written");
        }
    }

    #[test]
    fn no_database_at_all_is_named_and_left_alone() {
        let (_dir, path) = scratch();
        std::fs::write(&path, b"this is somebody's shopping list, not a database\n".repeat(99))
            .expect("write");
        let problem = Problem::from(Store::open(&path).expect_err("not a database"));
        assert_eq!(problem.code, ErrorCode::DatabaseCorrupt);
        assert!(problem.hint.expect("hint").contains("banger.db"));
    }

    #[test]
    fn a_newer_database_is_refused_and_left_alone() {
        let (_dir, path) = scratch();
        drop(Store::open(&path).expect("create"));
        let connection = Connection::open(&path).expect("open");
        connection.pragma_update(None, "user_version", 99).expect("raise");
        drop(connection);
        let all = || {
            let entries = std::fs::read_dir(path.parent().expect("a directory")).expect("readable");
            let file = |entry: std::fs::DirEntry| {
                (entry.file_name(), std::fs::read(entry.path()).expect("readable"))
            };
            // Whoever reads a database with a log maps an index of the log, and an empty log, beside it.
            let is_of_readers = |name: &std::ffi::OsStr| {
                ["-shm", "-wal"].iter().any(|end| name.to_string_lossy().ends_with(end))
            };
            let files = entries.flatten().map(file).filter(|(name, _)| !is_of_readers(name));
            files.collect::<std::collections::BTreeMap<_, _>>()
        };
        let before = all();
        let error = Store::open(&path).expect_err("newer");
        assert!(matches!(error, StoreError::Newer { found: 99, .. }), "{error}");
        assert_eq!(Problem::from(error).code, ErrorCode::DatabaseNewer);
        assert_eq!(all(), before, "and nothing is added beside it");
    }
}
