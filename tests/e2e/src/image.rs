//! Looking at local images without starting anything.

use std::path::{Path, PathBuf};

use banger_testkit::{Host, Output};
use serde_json::Value;

/// A local image.
#[derive(Debug)]
pub struct LocalImage<'a> {
    host: &'a Host,
    /// What `banger image show` says.
    pub shown: Value,
    /// Its disk.
    pub disk: PathBuf,
}

impl<'a> LocalImage<'a> {
    /// The image of that name.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn of(host: &'a Host, name: &str) -> Self {
        let shown = host.banger(["image", "show", name, "--format", "json"]).run().assert_ok();
        let shown: Value = serde_json::from_str(&shown.stdout_text()).expect("one object");
        let digest = shown["digest"].as_str().expect("a digest").replace(':', "-");
        let disk = host.data.join("images").join(digest).join("root.ext4");
        Self { host, shown, disk }
    }

    /// Its digest.
    ///
    /// # Panics
    /// If it has none.
    #[must_use]
    pub fn digest(&self) -> String {
        self.shown["digest"].as_str().expect("a digest").to_owned()
    }

    /// The contents of a file in it; nothing if there is no such file.
    #[must_use]
    pub fn read(&self, path: &str) -> String {
        self.debugfs(&format!("cat \"{path}\"")).stdout_text()
    }

    /// Whether there is such a file.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        self.debugfs(&format!("stat \"{path}\"")).stdout_text().contains("Inode:")
    }

    /// What debugfs says of a file: mode, owner, extended attributes.
    #[must_use]
    pub fn stat(&self, path: &str) -> String {
        self.debugfs(&format!("stat \"{path}\"")).stdout_text()
    }

    /// Fails the test unless the file system is in order.
    ///
    /// # Panics
    /// If it is not.
    pub fn assert_clean(&self) {
        let arguments = [Path::new("-fn"), &self.disk];
        self.host.program(Path::new("/usr/sbin/e2fsck"), arguments).run().assert_ok();
    }

    fn debugfs(&self, command: &str) -> Output {
        let disk = self.disk.to_string_lossy();
        let arguments = ["-c", "-R", command, &disk];
        self.host.program(Path::new("/usr/sbin/debugfs"), arguments).run().assert_ok()
    }
}

/// Writes a file that the host's user can read, and gives its path.
///
/// # Panics
/// If it cannot be written.
pub fn file(host: &Host, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
    let path = host.scratch.join(name);
    std::fs::create_dir_all(path.parent().expect("it has one")).expect("ours");
    std::fs::write(&path, contents).expect("ours");
    path
}

/// Writes a file into the configuration directory.
///
/// # Panics
/// If it cannot be written.
pub fn configure(host: &Host, name: &str, contents: &str) {
    let dir = host.config();
    std::fs::create_dir_all(&dir).expect("ours");
    std::fs::write(dir.join(name), contents).expect("ours");
}

/// The names of files in the data directory, below `dir`, that begin like that.
#[must_use]
pub fn stored(host: &Host, dir: &str, prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(host.data.join(dir)).into_iter().flatten().flatten();
    let fits = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
    };
    entries.map(|entry| entry.path()).filter(fits).collect()
}
