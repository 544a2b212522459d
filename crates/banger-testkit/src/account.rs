//! The user as whom a test runs the programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{Uid, User};

/// A user of this machine.
#[derive(Debug, Clone)]
pub struct Account {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Whether it is the user who runs the tests.
    pub current: bool,
}

impl Account {
    /// The user named by `BANGER_E2E_USER`, which takes root, or whoever runs the tests.
    ///
    /// # Panics
    /// If there is no such user.
    #[must_use]
    pub fn under_test() -> Self {
        let me = Uid::effective();
        let user = match std::env::var("BANGER_E2E_USER") {
            Ok(name) => User::from_name(&name).ok().flatten(),
            Err(_) => User::from_uid(me).ok().flatten(),
        };
        let user = user.expect("BANGER_E2E_USER, or the current user, is in the user database");
        let current = user.uid == me;
        assert!(current || me.is_root(), "only root can test as another user");
        Self::of(user)
    }

    /// Whoever runs the tests.
    ///
    /// # Panics
    /// If the user database does not have them.
    #[must_use]
    pub fn current() -> Self {
        let user = User::from_uid(Uid::effective()).ok().flatten();
        Self::of(user.expect("the current user is in the user database"))
    }

    fn of(user: User) -> Self {
        let current = user.uid == Uid::effective();
        Self { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw(), current }
    }

    /// Whether it is root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// A command that will run as this user, with an environment of nothing but the essentials.
    pub(crate) fn command(&self, program: &Path, home: &Path) -> Command {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(program);
        command.env_clear();
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
        command.env("HOME", home).env("USER", &self.name).env("LOGNAME", &self.name);
        command.env("LANG", "C.UTF-8");
        if !self.current {
            command.uid(self.uid).gid(self.gid);
        }
        command
    }

    /// Makes a directory that belongs to this user, mode 0700, unless it is there.
    pub(crate) fn make_dir(&self, path: &Path) {
        std::fs::create_dir_all(path).unwrap_or_else(|e| panic!("mkdir {}: {e}", path.display()));
        self.own(path);
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(path, mode).expect("our own directory");
    }

    /// Gives a file to this user.
    pub fn own(&self, path: &Path) {
        if !self.current {
            std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid))
                .unwrap_or_else(|e| panic!("chown {}: {e}", path.display()));
        }
    }

    /// Where all tests of this user keep their files: on a real disk, reachable for the user, and
    /// easy to remove as a whole. In `$BANGER_E2E_DIR`, so that the tests of two builds can run at
    /// the same time; else in `/var/tmp`.
    #[must_use]
    pub fn test_dir(&self) -> PathBuf {
        let parent = std::env::var_os("BANGER_E2E_DIR");
        let parent = parent.map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        parent.join(format!("banger-e2e-{}", self.name))
    }
}
