//! Finding and examining the programs that can run a guest.

pub mod cpu;
pub mod kvm;
pub mod tsc;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use banger_api::error::{ErrorCode, Problem};
use banger_api::shim::EngineSpec;
use banger_api::vm::{Accelerator, EngineChoice};

use crate::process::limit_hint;

/// Name of the cache file in the cache directory.
const CACHE_FILE: &str = "engine-qemu.json";
/// Raised when what [`examine`] finds out changes.
const CACHE_VERSION: u32 = 1;

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The program is not installed.
    #[error("{program} is not installed")]
    Missing {
        /// The program.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// The program could not be asked.
    #[error("cannot examine {}", path.display())]
    Examine {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program's answer is not understood.
    #[error("cannot make sense of what {} says: {said}", path.display())]
    Answer {
        /// The program.
        path: PathBuf,
        /// Its words.
        said: String,
    },
}

impl EngineError {
    /// The error as it travels.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let problem =
            Problem::new(ErrorCode::HostProgramMissing, "no engine can run a VM on this host")
                .because(self);
        match self {
            Self::Missing { package, .. } => {
                problem.hint(format!("sudo apt-get install {package}"))
            }
            Self::Examine { source, .. } => {
                problem.hint(limit_hint(source).unwrap_or("banger doctor"))
            }
            Self::Answer { .. } => problem.hint("banger doctor"),
        }
    }
}

/// Finds the engine that `choice` asks for, with the accelerator that works on this host.
///
/// What the program says about itself is remembered in `cache_dir` until the program changes.
///
/// # Errors
/// [`EngineError`] if there is none.
pub fn discover(choice: EngineChoice, cache_dir: &Path) -> Result<EngineSpec, EngineError> {
    // The one engine there is so far; both choices mean it.
    let (EngineChoice::Auto | EngineChoice::Qemu) = choice;
    let missing =
        EngineError::Missing { program: "qemu-system-x86_64", package: "qemu-system-x86" };
    let binary = crate::command::find_program("qemu-system-x86_64").ok_or(missing)?;
    let examined = examined_qemu(&binary, cache_dir)?;
    let accelerator =
        if kvm::usability().is_usable() { Accelerator::Kvm } else { Accelerator::Tcg };
    let tsc_khz = match accelerator {
        Accelerator::Tcg => Some(tsc::rate_khz()),
        Accelerator::Kvm => None,
    };
    Ok(EngineSpec {
        name: "qemu".to_owned(),
        version: examined.version,
        binary: text(&binary),
        build: Some(examined.fingerprint.text()),
        libraries: examined.libraries,
        data_dirs: examined.data_dirs,
        accelerator,
        tsc_khz,
    })
}

/// What a program says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Examined {
    cache_version: u32,
    fingerprint: Fingerprint,
    version: String,
    libraries: Vec<String>,
    data_dirs: Vec<String>,
}

/// What changes when a program is replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Fingerprint {
    path: PathBuf,
    inode: u64,
    bytes: u64,
    modified_ns: i64,
    modified_s: i64,
}

impl Fingerprint {
    /// The same for the same program, wherever it lies.
    fn text(&self) -> String {
        format!("{}-{}.{:09}", self.bytes, self.modified_s, self.modified_ns)
    }
}

fn fingerprint(binary: &Path) -> io::Result<Fingerprint> {
    let metadata = fs::metadata(binary)?;
    Ok(Fingerprint {
        path: binary.to_owned(),
        inode: metadata.ino(),
        bytes: metadata.size(),
        modified_ns: metadata.mtime_nsec(),
        modified_s: metadata.mtime(),
    })
}

fn examined_qemu(binary: &Path, cache_dir: &Path) -> Result<Examined, EngineError> {
    let io = |source| EngineError::Examine { path: binary.to_owned(), source };
    let now = fingerprint(binary).map_err(io)?;
    let cache = cache_dir.join(CACHE_FILE);
    if let Some(known) = read_cache(&cache)
        && known.cache_version == CACHE_VERSION
        && known.fingerprint == now
        && known.libraries.iter().all(|library| Path::new(library).exists())
    {
        return Ok(known);
    }
    let examined = examine(binary, now)?;
    // A cache that cannot be written costs time at the next start and nothing else.
    if let Ok(json) = serde_json::to_vec(&examined)
        && let Err(error) = crate::files::write_replacing(&cache, &json)
    {
        tracing::debug!(%error, "cannot remember the engine");
    }
    Ok(examined)
}

fn read_cache(cache: &Path) -> Option<Examined> {
    serde_json::from_slice(&fs::read(cache).ok()?).ok()
}

fn examine(binary: &Path, fingerprint: Fingerprint) -> Result<Examined, EngineError> {
    let version = version(binary)?;
    let mut libraries = BTreeSet::from_iter(loaded_libraries(binary)?);
    for module in modules(binary) {
        libraries.extend(loaded_libraries(&module)?);
        libraries.insert(text(&module));
    }
    let data_dirs = ["/usr/share/qemu", "/usr/share/seabios", "/usr/local/share/qemu"]
        .into_iter()
        .filter(|directory| Path::new(directory).is_dir())
        .map(str::to_owned)
        .collect();
    let libraries = libraries.into_iter().collect();
    Ok(Examined { cache_version: CACHE_VERSION, fingerprint, version, libraries, data_dirs })
}

/// The one module that a VM of ours needs: distributions build tcg as a plug-in.
fn modules(binary: &Path) -> Vec<PathBuf> {
    let prefix = binary.parent().and_then(Path::parent).unwrap_or(Path::new("/usr"));
    ["lib/x86_64-linux-gnu/qemu", "lib64/qemu", "lib/qemu"]
        .into_iter()
        .map(|directory| prefix.join(directory).join("accel-tcg-x86_64.so"))
        .filter(|path| path.is_file())
        .collect()
}

/// The dynamic loader and what it would load for a program or plug-in.
fn loaded_libraries(object: &Path) -> Result<Vec<String>, EngineError> {
    const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
    let said = output(Path::new(LOADER), &["--list", &text(object)])?;
    let mut libraries = libraries_in(&said);
    libraries.push(LOADER.to_owned());
    Ok(libraries)
}

/// The paths in lines like `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`.
fn libraries_in(listing: &str) -> Vec<String> {
    listing
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(str::to_owned)
        .collect()
}

/// What version of QEMU a program is: `7.2.22`.
fn version(binary: &Path) -> Result<String, EngineError> {
    let said = output(binary, &["--version"])?;
    version_in(&said).ok_or_else(|| EngineError::Answer { path: binary.to_owned(), said })
}

/// The `7.2.22` in `QEMU emulator version 7.2.22 (Debian …)`.
fn version_in(said: &str) -> Option<String> {
    let (_, rest) = said.split_once("version ")?;
    let version: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    (!version.is_empty()).then_some(version)
}

#[expect(clippy::disallowed_methods, reason = "asks a program what it is")]
fn output(program: &Path, arguments: &[&str]) -> Result<String, EngineError> {
    let output = Command::new(program)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(|source| EngineError::Examine { path: program.to_owned(), source })?;
    // Half an answer must not be taken, and kept, for a whole one.
    if output.status.code().is_none() {
        let words = String::from_utf8_lossy(&output.stderr);
        let said = format!("{} ({})", words.trim(), output.status);
        return Err(EngineError::Answer { path: program.to_owned(), said });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let cases = [
            ("QEMU emulator version 7.2.22 (Debian 1:7.2)\nCopyright", Some("7.2.22")),
            ("QEMU emulator version 10.0.2", Some("10.0.2")),
            ("something else", None),
            ("version x", None),
        ];
        for (said, want) in cases {
            assert_eq!(version_in(said).as_deref(), want, "{said}");
        }
    }

    #[test]
    fn a_program_that_was_killed_has_not_answered() {
        let words = "echo version 7.2; echo no threads >&2; kill -9 $$";
        let error = output(Path::new("/bin/sh"), &["-c", words]).expect_err("killed");
        let text = error.to_string();
        assert!(text.contains("no threads") && text.contains("signal: 9"), "{text}");
    }

    #[test]
    fn a_limit_that_kept_a_program_from_being_asked_is_told() {
        let source = io::Error::from_raw_os_error(libc::EMFILE);
        let error = EngineError::Examine { path: PathBuf::from("/usr/bin/qemu"), source };
        assert!(error.problem().hint.is_some_and(|hint| hint.contains("ulimit -n")));
    }

    #[test]
    fn libraries_are_read() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffd)\n\
             \tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f)\n\
             \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let want = ["/lib/x86_64-linux-gnu/libz.so.1", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(libraries_in(listing), want);
    }
}
