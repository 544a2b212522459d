//! The initramfs: the guest agent and the modules that it loads first.
//!
//! It is made when a VM first starts with an agent and a kernel, and kept in the cache under the
//! digests of both. The cache may be deleted any time.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use banger_api::agent::BOOT_MODULES_DIR;
use banger_api::step;
use banger_host::files::{publish, write_atomic};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cpio::CpioWriter;
use crate::error::LibraryError;
use crate::library::{Library, LocalKernel};
use crate::stage::pass;

/// Version of the way an initramfs is made.
const MAKER_VERSION: u32 = 1;
/// How many initramfs the cache keeps. Old ones are of old agents; a VM that runs needs its no more.
const KEEP: usize = 8;
/// What is known about agents whose digest was taken.
const AGENTS: &str = "agents.json";
/// The directories that the agent finds when it starts.
const DIRECTORIES: [&str; 6] = ["dev", "newroot", "proc", "root", "run", "sys"];

/// A file that has not changed as long as all of this is the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileState {
    bytes: u64,
    mtime_ns: i128,
    inode: u64,
    sha256: String,
}

impl Library {
    /// The initramfs for a guest with that kernel and that agent, made if it is not cached. Finding
    /// a cached one takes a few system calls.
    ///
    /// # Errors
    /// The agent or the modules cannot be read, or the cache cannot be written.
    pub fn initramfs(&self, kernel: &LocalKernel, agent: &Path) -> Result<PathBuf, LibraryError> {
        let agent_digest = self.agent_digest(agent)?;
        let kernel_digest = kernel.kernel.digest.trim_start_matches("sha256:");
        let (kernel_part, agent_part) = (&kernel_digest[..16], &agent_digest[..16]);
        let name = format!("initramfs-{MAKER_VERSION}-{agent_part}-{kernel_part}.cpio");
        let path = self.cache().join(name);
        if fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() > 0) {
            return Ok(path);
        }
        let bytes = make_initramfs(kernel, agent)?;
        self.forget_old_initramfs();
        pass(step::INITRAMFS_WRITE)?;
        publish(&path, &bytes).map_err(LibraryError::io("write", &path))?;
        Ok(path)
    }

    /// The agent's sha256 in hex, remembered for as long as the file looks the same.
    fn agent_digest(&self, agent: &Path) -> Result<String, LibraryError> {
        let meta = fs::metadata(agent).map_err(LibraryError::io("read", agent))?;
        let mtime_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        let path = self.cache().join(AGENTS);
        let known = fs::read(&path).unwrap_or_default();
        let mut known: BTreeMap<PathBuf, FileState> =
            serde_json::from_slice(&known).unwrap_or_default();
        let is_same = |state: &&FileState| {
            (state.bytes, state.mtime_ns, state.inode) == (meta.len(), mtime_ns, meta.ino())
        };
        if let Some(state) = known.get(agent).filter(is_same) {
            return Ok(state.sha256.clone());
        }
        let contents = fs::read(agent).map_err(LibraryError::io("read", agent))?;
        let sha256 = hex::encode(Sha256::digest(&contents));
        let state =
            FileState { bytes: meta.len(), mtime_ns, inode: meta.ino(), sha256: sha256.clone() };
        known.insert(agent.to_owned(), state);
        known.retain(|path, _| path.exists());
        let json = serde_json::to_vec(&known).expect("plain data");
        write_atomic(&path, &json).map_err(LibraryError::io("write", &path))?;
        Ok(sha256)
    }

    /// Make room in the cache. What cannot be removed stays; it is only a cache.
    fn forget_old_initramfs(&self) {
        let Ok(entries) = fs::read_dir(self.cache()) else { return };
        let mut cached: Vec<(i64, PathBuf)> = entries
            .filter_map(Result::ok)
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("initramfs-"))
            .filter_map(|entry| Some((entry.metadata().ok()?.mtime(), entry.path())))
            .collect();
        cached.sort_by(|a, b| b.cmp(a));
        for (_, path) in cached.into_iter().skip(KEEP - 1) {
            let _ = fs::remove_file(path);
        }
    }
}

fn make_initramfs(kernel: &LocalKernel, agent: &Path) -> Result<Vec<u8>, LibraryError> {
    let read = |path: &Path| fs::read(path).map_err(LibraryError::io("read", path));
    let mut cpio = CpioWriter::new();
    for directory in DIRECTORIES {
        cpio.directory(directory, 0o755);
    }
    // The kernel opens it for the first process before anything is mounted.
    cpio.character_device("dev/console", 0o600, (5, 1));
    cpio.file("init", 0o755, &read(agent)?);
    let modules_dir = BOOT_MODULES_DIR.trim_start_matches('/');
    cpio.directory(modules_dir, 0o755);
    for module in &kernel.boot_modules {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        cpio.file(&format!("{modules_dir}/{name}"), 0o644, &read(module)?);
    }
    Ok(cpio.finish())
}
