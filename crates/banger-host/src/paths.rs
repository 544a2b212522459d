//! Where banger keeps its state, and where its other programs are.
//!
//! `docs/on-disk.md` lists every file, `docs/environment.md` every variable. The rules, in short:
//!
//! | | a user | root |
//! |---|---|---|
//! | data | `$BANGER_DATA_DIR`, else `$XDG_DATA_HOME/banger`, else `~/.local/share/banger` | `/var/lib/banger` in the last place |
//! | runtime | `$BANGER_RUNTIME_DIR`, else `$XDG_RUNTIME_DIR/banger`, else `/tmp/banger-<uid>` | `/run/banger` in the last place |
//! | configuration | `$BANGER_CONFIG_DIR`, else `$XDG_CONFIG_HOME/banger`, else `~/.config/banger` | `/etc/banger` in the last place |
//!
//! An `XDG_*` variable counts only if it is absolute and names a place that belongs to the caller:
//! after `su` or `sudo -E` it names another user's. Root's `/run/user/0` does not count either,
//! because it comes and goes with logins and the daemon does not.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The directories of one user's banger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDirs {
    /// What must survive: database, images, kernels, VMs.
    pub data: PathBuf,
    /// The daemon's socket.
    pub runtime: PathBuf,
    /// `config.toml`. May not exist.
    pub config: PathBuf,
}

/// Why the state directories cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PathsError {
    /// Neither variables nor the user database say where the user's files belong.
    #[error("cannot tell where to keep state: neither HOME nor BANGER_DATA_DIR is set")]
    NoHome,
    /// A variable holds a relative path.
    #[error("{variable} must be an absolute path, not {path:?}")]
    Relative {
        /// Its name.
        variable: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// A path that not all of our files and programs can name.
    #[error("the name of the directory {path:?} is not valid UTF-8")]
    NotText {
        /// The directory.
        path: PathBuf,
    },
    /// A directory cannot be made.
    #[error("cannot create the directory {path:?}")]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The directory belongs to somebody else, or is no directory. In `/tmp` somebody may have made
    /// it to catch what we would write there.
    #[error("{path:?} is not a directory of this user")]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
}

impl StateDirs {
    /// Finds the directories, and creates data and runtime (0700) where they are missing.
    ///
    /// # Errors
    /// [`PathsError`] if a place cannot be told, made or trusted.
    pub fn resolve() -> Result<Self, PathsError> {
        let dirs = Self::locate()?;
        ensure_private(&dirs.data)?;
        ensure_private(&dirs.runtime)?;
        Ok(dirs)
    }

    /// Finds the directories and touches nothing.
    ///
    /// # Errors
    /// [`PathsError`] if a place cannot be told.
    pub fn locate() -> Result<Self, PathsError> {
        Surroundings::of_this_process().state_dirs()
    }

    /// The daemon's socket.
    #[must_use]
    pub fn api_socket(&self) -> PathBuf {
        self.runtime.join(API_SOCKET)
    }

    /// Locked by the daemon as long as it lives. In the data directory, because that is what only
    /// one daemon may write.
    #[must_use]
    pub fn daemon_lock(&self) -> PathBuf {
        self.data.join("daemon.lock")
    }

    /// Locked by a CLI while it starts the daemon.
    #[must_use]
    pub fn daemon_start_lock(&self) -> PathBuf {
        self.runtime.join("start.lock")
    }

    /// What the daemon has to say.
    #[must_use]
    pub fn daemon_log(&self) -> PathBuf {
        self.data.join("daemon.log")
    }

    /// The SQLite database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.data.join("banger.db")
    }

    /// One directory per VM.
    #[must_use]
    pub fn vms(&self) -> PathBuf {
        self.data.join("vms")
    }

    /// The directory of one VM.
    #[must_use]
    pub fn vm(&self, id: &str) -> PathBuf {
        self.vms().join(id)
    }

    /// Directory of the templates.
    #[must_use]
    pub fn templates(&self) -> PathBuf {
        self.data.join("templates")
    }

    /// Local images.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.data.join("images")
    }

    /// Local kernels.
    #[must_use]
    pub fn kernels(&self) -> PathBuf {
        self.data.join("kernels")
    }

    /// What can be made again at any time.
    #[must_use]
    pub fn cache(&self) -> PathBuf {
        self.data.join("cache")
    }
}

/// File name of the daemon's socket in the runtime directory.
pub const API_SOCKET: &str = "api.sock";

/// Makes a directory that only its owner may enter, with its parents, or checks the one that is
/// there.
///
/// # Errors
/// [`PathsError::Create`], or [`PathsError::Foreign`] if somebody else owns it.
pub fn ensure_private(path: &Path) -> Result<(), PathsError> {
    let foreign = || PathsError::Foreign { path: path.to_owned() };
    let create = |source| PathsError::Create { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // What lies above is the user's own business, so it gets the user's umask.
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).map_err(create)?;
            }
            match DirBuilder::new().mode(0o700).create(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(create(error));
                }
                _ => {}
            }
        }
        Err(error) => return Err(create(error)),
    }
    // A symbolic link is fine where only its owner can have put it, and /tmp is not such a place.
    let link = std::fs::symlink_metadata(path).map_err(create)?;
    let target = std::fs::metadata(path).map_err(create)?;
    let uid = nix::unistd::geteuid().as_raw();
    if !target.is_dir() || target.uid() != uid || link.uid() != uid {
        return Err(foreign());
    }
    if target.mode() & 0o077 != 0 {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .map_err(create)?;
    }
    Ok(())
}

/// What the places depend on, so that the rules can be tested without touching the environment.
struct Surroundings<'a> {
    variable: &'a dyn Fn(&str) -> Option<OsString>,
    owner_of: &'a dyn Fn(&Path) -> Option<u32>,
    uid: u32,
    home: Option<PathBuf>,
}

impl Surroundings<'_> {
    fn of_this_process() -> Self {
        let uid = nix::unistd::geteuid();
        let home = variable("HOME")
            .map(PathBuf::from)
            .or_else(|| nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.dir));
        Self { variable: &variable, owner_of: &owner_of_nearest, uid: uid.as_raw(), home }
    }

    fn state_dirs(&self) -> Result<StateDirs, PathsError> {
        let root = self.uid == 0;
        let data = match self.chosen("BANGER_DATA_DIR", "XDG_DATA_HOME")? {
            Some(path) => path,
            None if root => PathBuf::from("/var/lib/banger"),
            None => self.home()?.join(".local/share/banger"),
        };
        let runtime = match self.chosen("BANGER_RUNTIME_DIR", "XDG_RUNTIME_DIR")? {
            Some(path) => path,
            None if root => PathBuf::from("/run/banger"),
            None => PathBuf::from(format!("/tmp/banger-{}", self.uid)),
        };
        let config = match self.chosen("BANGER_CONFIG_DIR", "XDG_CONFIG_HOME")? {
            Some(path) => path,
            None if root => PathBuf::from("/etc/banger"),
            None => self.home()?.join(".config/banger"),
        };
        // They are handed on in JSON, and to programs that know no other names.
        if let Some(path) = [&data, &runtime, &config].iter().find(|path| path.to_str().is_none()) {
            return Err(PathsError::NotText { path: path.to_path_buf() });
        }
        Ok(StateDirs { data, runtime, config })
    }

    /// What the variables say: banger's own as it stands, the XDG one with `banger` below it.
    fn chosen(&self, ours: &'static str, xdg: &'static str) -> Result<Option<PathBuf>, PathsError> {
        if let Some(path) = self.path(ours) {
            if path.is_relative() {
                return Err(PathsError::Relative { variable: ours, path });
            }
            return Ok(Some(path));
        }
        let place = self.path(xdg).filter(|path| self.counts(path));
        Ok(place.map(|path| path.join("banger")))
    }

    fn counts(&self, path: &Path) -> bool {
        let logind = Path::new("/run/user");
        path.is_absolute()
            && (self.owner_of)(path) == Some(self.uid)
            && !(self.uid == 0 && path.starts_with(logind))
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        (self.variable)(name).filter(|value| !value.is_empty()).map(PathBuf::from)
    }

    fn home(&self) -> Result<&Path, PathsError> {
        self.home.as_deref().filter(|home| home.is_absolute()).ok_or(PathsError::NoHome)
    }
}

#[allow(clippy::disallowed_methods, reason = "this crate reads the environment for all others")]
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// The owner of the path, or of the nearest directory above it that exists.
fn owner_of_nearest(path: &Path) -> Option<u32> {
    path.ancestors().find_map(|place| std::fs::metadata(place).ok()).map(|found| found.uid())
}

/// banger's programs besides the one that asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// `bangerd`.
    pub daemon: PathBuf,
    /// `banger-shim`.
    pub shim: PathBuf,
    /// `banger-agent`, the guest's program.
    pub agent: PathBuf,
}

/// A program of banger's own that is not where it should be.
#[derive(Debug, thiserror::Error)]
#[error("banger's own program {program} is missing; looked in {}", list(.looked_in))]
pub struct ProgramsError {
    /// Its file name.
    pub program: &'static str,
    /// Where it was looked for.
    pub looked_in: Vec<PathBuf>,
}

impl Programs {
    /// Finds banger's programs: `bangerd` and `banger-shim` in `$BANGER_LIBEXEC_DIR`,
    /// `banger-agent` in `$BANGER_LIB_DIR`, and where these are not set, beside the running
    /// program as they are installed (`bin/banger`, `libexec/bangerd`, `libexec/banger-shim`,
    /// `lib/banger-agent`) or built (all in one directory).
    ///
    /// # Errors
    /// [`ProgramsError`] names the one that is missing.
    pub fn locate() -> Result<Self, ProgramsError> {
        let libexec = libexec_places();
        Ok(Self {
            daemon: find("bangerd", &libexec)?,
            shim: find("banger-shim", &libexec)?,
            agent: find("banger-agent", &places("BANGER_LIB_DIR", "lib"))?,
        })
    }

    /// Finds `bangerd` alone, which is all that a client needs.
    ///
    /// # Errors
    /// [`ProgramsError`] if it is missing.
    pub fn locate_daemon() -> Result<PathBuf, ProgramsError> {
        find("bangerd", &libexec_places())
    }
}

fn libexec_places() -> Vec<PathBuf> {
    places("BANGER_LIBEXEC_DIR", "libexec")
}

/// Where to look for programs of one kind.
fn places(name: &str, kind: &str) -> Vec<PathBuf> {
    let chosen = variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let here = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    search_path(chosen, here.as_deref(), kind)
}

/// Where to look for programs of one kind, given the directory of the running one.
fn search_path(chosen: Option<PathBuf>, here: Option<&Path>, kind: &str) -> Vec<PathBuf> {
    if let Some(dir) = chosen {
        return vec![dir];
    }
    let Some(here) = here else { return Vec::new() };
    let mut places = Vec::new();
    if let Some(prefix) = here.parent() {
        places.push(prefix.join(kind));
        places.push(prefix.join(kind).join("banger"));
        // From libexec/banger/bangerd the prefix is two levels up.
        if here.ends_with("libexec/banger") {
            places.extend(prefix.parent().map(|prefix| prefix.join(kind).join("banger")));
        }
    }
    places.push(here.to_owned());
    places
}

fn find(program: &'static str, places: &[PathBuf]) -> Result<PathBuf, ProgramsError> {
    places
        .iter()
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
        .ok_or_else(|| ProgramsError { program, looked_in: places.to_vec() })
}

fn list(places: &[PathBuf]) -> String {
    let texts: Vec<String> = places.iter().map(|path| path.display().to_string()).collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The directories that a user with these variables gets. What is below `/their` belongs to
    /// somebody else.
    fn dirs(uid: u32, variables: &[(&str, &str)]) -> Result<StateDirs, PathsError> {
        let variable = |name: &str| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(*value))
        };
        let owner_of = |path: &Path| Some(if path.starts_with("/their") { uid + 1 } else { uid });
        let home = Some(PathBuf::from("/home/me"));
        Surroundings { variable: &variable, owner_of: &owner_of, uid, home }.state_dirs()
    }

    #[test]
    fn every_variable_has_its_place() {
        let none: &[(&str, &str)] = &[];
        let xdg: &[(&str, &str)] = &[("XDG_DATA_HOME", "/d"), ("XDG_RUNTIME_DIR", "/r")];
        let ours: &[(&str, &str)] =
            &[("XDG_DATA_HOME", "/d"), ("BANGER_DATA_DIR", "/b"), ("BANGER_RUNTIME_DIR", "/c")];
        let theirs: &[(&str, &str)] =
            &[("XDG_DATA_HOME", "/their/d"), ("XDG_RUNTIME_DIR", "/their/r")];
        let logind: &[(&str, &str)] = &[("XDG_RUNTIME_DIR", "/run/user/0")];
        let odd: &[(&str, &str)] = &[("XDG_DATA_HOME", "relative"), ("XDG_RUNTIME_DIR", "")];
        let cases = [
            (1000, none, "/home/me/.local/share/banger", "/tmp/banger-1000"),
            (1000, xdg, "/d/banger", "/r/banger"),
            (1000, ours, "/b", "/c"),
            (1000, theirs, "/home/me/.local/share/banger", "/tmp/banger-1000"),
            (1000, odd, "/home/me/.local/share/banger", "/tmp/banger-1000"),
            (0, none, "/var/lib/banger", "/run/banger"),
            (0, xdg, "/d/banger", "/r/banger"),
            (0, theirs, "/var/lib/banger", "/run/banger"),
            (0, logind, "/var/lib/banger", "/run/banger"),
        ];
        for (uid, variables, data, runtime) in cases {
            let found = dirs(uid, variables).expect("all of these can be told");
            assert_eq!(found.data, Path::new(data), "{uid} {variables:?}");
            assert_eq!(found.runtime, Path::new(runtime), "{uid} {variables:?}");
        }
    }

    #[test]
    fn a_relative_place_is_refused() {
        let error = dirs(1000, &[("BANGER_DATA_DIR", "data")]).expect_err("relative");
        assert_eq!(error.to_string(), "BANGER_DATA_DIR must be an absolute path, not \"data\"");
    }

    #[test]
    fn a_place_that_is_no_text_is_refused() {
        use std::os::unix::ffi::OsStringExt;
        let odd = OsString::from_vec(b"/tmp/\xff".to_vec());
        let variable = |name: &str| (name == "BANGER_DATA_DIR").then(|| odd.clone());
        let owner_of = |_: &Path| Some(1000);
        let home = Some(PathBuf::from("/home/me"));
        let asked = Surroundings { variable: &variable, owner_of: &owner_of, uid: 1000, home };
        let error = asked.state_dirs().expect_err("no text");
        assert!(error.to_string().contains("not valid UTF-8"), "{error}");
    }

    #[test]
    fn private_directories_are_made_and_checked() {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let made = tmp.path().join("a/b");
        ensure_private(&made).expect("it can be made");
        ensure_private(&made).expect("it is there");
        let mode = std::fs::metadata(&made).expect("it exists").mode();
        assert_eq!(mode & 0o777, 0o700);

        let file = tmp.path().join("file");
        std::fs::write(&file, "").expect("writable");
        assert!(matches!(ensure_private(&file), Err(PathsError::Foreign { .. })));
        // Owned by root, unless the test is root's; then it is no directory for secrets but ours.
        if !nix::unistd::geteuid().is_root() {
            assert!(matches!(ensure_private(Path::new("/usr")), Err(PathsError::Foreign { .. })));
        }
    }

    #[test]
    fn programs_are_found_as_installed_and_as_built() {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let prefix = tmp.path();
        for file in ["libexec/bangerd", "lib/banger-agent", "debug/bangerd"] {
            let path = prefix.join(file);
            std::fs::create_dir_all(path.parent().expect("has one")).expect("writable");
            std::fs::write(path, "").expect("writable");
        }
        let from = |dir: &str| search_path(None, Some(&prefix.join(dir)), "libexec");
        assert_eq!(find("bangerd", &from("bin")).ok(), Some(prefix.join("libexec/bangerd")));
        assert_eq!(find("bangerd", &from("libexec")).ok(), Some(prefix.join("libexec/bangerd")));
        std::fs::remove_file(prefix.join("libexec/bangerd")).expect("it is there");
        assert_eq!(find("bangerd", &from("debug")).ok(), Some(prefix.join("debug/bangerd")));
        let error = find("banger-shim", &from("bin")).expect_err("there is none");
        assert!(error.to_string().contains("libexec"), "{error}");
        let chosen = search_path(Some(PathBuf::from("/x")), Some(prefix), "lib");
        assert_eq!(chosen, [PathBuf::from("/x")]);
    }
}
