//! Starting QEMU in its jail.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sched::{CloneFlags, unshare};

use banger_api::shim::{COW_FILE, LOCK_FILE, LaunchSpec, RUN_DIR, WORK_FILE};
use banger_api::vm::Accelerator;

use super::arguments::{self, Descriptors, guest_paths};
use crate::jail::{JailMount, JailSpec};
use crate::lock::OfdLock;

/// Name of the agent's socket in the VM's run directory.
pub const AGENT_SOCKET: &str = "agent.sock";
/// Name of QMP's socket in the VM's run directory.
pub const QMP_SOCKET: &str = "qmp.sock";
/// Name of the directory, in the VM's run directory, on which the jail's root is mounted.
const JAIL_DIR: &str = "jail";

/// A started VMM.
#[derive(Debug)]
pub struct Vmm {
    /// The process.
    pub child: Child,
    /// The guest's console.
    pub console: OwnedFd,
    /// What the VMM itself says.
    pub words: OwnedFd,
}

/// Why QEMU could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct SpawnError {
    /// The step that failed, as a verb and its object.
    pub what: &'static str,
    /// Why.
    #[source]
    pub source: io::Error,
}

fn step<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> SpawnError {
    move |source| SpawnError { what, source: source.into() }
}

/// Starts QEMU in a jail and in a process namespace of its own, with its sockets listening.
///
/// The VMM gets a share in the VM's lock: as long as it lives, the disks are not free.
///
/// # Errors
/// [`SpawnError`] names the step. What goes wrong inside the jail shows as an early end of the
/// process and in its words.
pub fn spawn(spec: &LaunchSpec, vm_dir: &Path, tap: BorrowedFd<'_>) -> Result<Vmm, SpawnError> {
    let run = vm_dir.join(RUN_DIR);
    let agent = listening(&run, AGENT_SOCKET)?;
    let qmp = listening(&run, QMP_SOCKET)?;
    let fds = Descriptors { tap: tap.as_raw_fd(), agent: agent.as_raw_fd(), qmp: qmp.as_raw_fd() };
    let jail = jail_spec(spec, vm_dir, arguments::arguments(spec, fds));
    fs::create_dir_all(&jail.mount_point).map_err(step("create the jail's directory"))?;
    let jail = serde_json::to_vec(&jail).map_err(step("describe the jail"))?;
    let lock = OfdLock::share(&vm_dir.join(LOCK_FILE)).map_err(step("share the VM's lock"))?;
    let inherited = [fds.tap, fds.agent, fds.qmp, lock.as_raw_fd()];

    // A new process namespace takes only children, and only those of the thread that asked for it.
    let start = move || {
        unshare(CloneFlags::CLONE_NEWPID).map_err(step("create the VMM's process namespace"))?;
        spawn_jailed(&jail, inherited)
    };
    let thread = std::thread::Builder::new().spawn(start).map_err(step("start a thread"))?;
    thread
        .join()
        .unwrap_or_else(|_| Err(step("start the VMM")(io::Error::other("thread panicked"))))
}

#[expect(clippy::disallowed_methods, reason = "the VMM lives as long as the VM")]
fn spawn_jailed(jail: &[u8], inherited: [RawFd; 4]) -> Result<Vmm, SpawnError> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("jail")
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    for variable in crate::fault::INHERITED {
        if let Some(value) = crate::environment::get(variable) {
            command.env(variable, value);
        }
    }
    // SAFETY: the closure allocates nothing and calls only what is async-signal-safe.
    unsafe {
        command.pre_exec(move || crate::process::keep_only(&inherited));
    }
    let mut child = command.spawn().map_err(step("start the VMM's jail"))?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(jail).map_err(step("describe the jail to its process"))?;
    }
    let console = child.stdout.take().expect("stdout was asked to be a pipe");
    let words = child.stderr.take().expect("stderr was asked to be a pipe");
    Ok(Vmm { child, console: console.into(), words: words.into() })
}

fn listening(run: &Path, name: &str) -> Result<OwnedFd, SpawnError> {
    crate::connect::listen(run, name).map(OwnedFd::from).map_err(step("listen for the VMM"))
}

/// What the VMM may see.
#[must_use]
fn jail_spec(spec: &LaunchSpec, vm_dir: &Path, argv: Vec<String>) -> JailSpec {
    let mut mounts = vec![JailMount::same_path(&spec.engine.binary)];
    mounts.extend(spec.engine.libraries.iter().map(JailMount::same_path));
    mounts.extend(spec.engine.data_dirs.iter().map(JailMount::same_path));
    mounts.push(JailMount::read_only(&spec.kernel, guest_paths::KERNEL));
    mounts.push(JailMount::read_only(&spec.initramfs, guest_paths::INITRAMFS));
    mounts.push(JailMount::read_only(&spec.root_image, guest_paths::ROOT_IMAGE));
    mounts.push(JailMount::writable(vm_dir.join(COW_FILE), guest_paths::ROOT_COW));
    if spec.work_disk_bytes.is_some() {
        mounts.push(JailMount::writable(vm_dir.join(WORK_FILE), guest_paths::WORK));
    }
    mounts.extend(
        spec.modules_image.iter().map(|path| JailMount::read_only(path, guest_paths::MODULES)),
    );
    let mut devices: Vec<PathBuf> = ["/dev/null", "/dev/urandom"].map(PathBuf::from).to_vec();
    if spec.engine.accelerator == Accelerator::Kvm {
        devices.push("/dev/kvm".into());
    }
    JailSpec {
        mount_point: vm_dir.join(RUN_DIR).join(JAIL_DIR),
        argv,
        mounts,
        devices,
        user: spec.jail_user,
        max_file_bytes: crate::cow::store_bytes(spec.disk_bytes)
            .max(spec.work_disk_bytes.unwrap_or(0)),
    }
}
