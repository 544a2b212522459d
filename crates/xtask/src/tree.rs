//! The repository: where it is, and which files are in it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{ChoreFailure, capture};

/// The repository's top directory.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("xtask is two directories down").to_owned()
}

/// Cargo, the one that runs us.
pub fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}

/// Every file that git knows or would take in, relative to [`root`], in order.
///
/// # Errors
/// If git cannot say.
pub fn files() -> Result<Vec<PathBuf>, ChoreFailure> {
    let mut git = Command::new("git");
    git.current_dir(root());
    // A clone may belong to another user than the one who tests it.
    git.args(["-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others"]);
    git.arg("--exclude-standard");
    let listed = capture(&mut git)?;
    let mut files: Vec<PathBuf> = listed.split_terminator('\0').map(PathBuf::from).collect();
    files.retain(|file| root().join(file).is_file());
    files.sort();
    files.dedup();
    Ok(files)
}
