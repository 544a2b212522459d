//! Starting QEMU in its jail.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sched::{CloneFlags, unshare};

use banger_api::shim::{
    Begin, COW_FILE, DEVICES_FILE, LOCK_FILE, LaunchSpec, MEMORY_FILE, RUN_DIR, WORK_FILE,
};
use banger_api::vm::Accelerator;

use super::arguments::{self, Descriptors, guest_paths};
use crate::jail::{self, JailMount, JailSpec};
use crate::lock::OfdLock;

/// Name of the agent's socket in the VM's run directory.
pub const AGENT_SOCKET: &str = "agent.sock";
/// Name of QMP's socket in the VM's run directory.
pub const QMP_SOCKET: &str = "qmp.sock";
/// Name of the directory, in the VM's run directory, on which the jail's root is mounted.
const JAIL_DIR: &str = "jail";
/// Name of the file, in the VM's run directory, that lies in the place of a disk that the VM has not.
const NO_DISK: &str = "no-disk";
/// Its size: a disk of no bytes would be one that is broken.
const NO_DISK_BYTES: u64 = 1 << 20;

/// A started VMM.
#[derive(Debug)]
pub struct Vmm {
    /// The process.
    pub child: Child,
    /// The guest's console.
    pub console: OwnedFd,
    /// What the VMM itself says.
    pub words: OwnedFd,
    /// The descriptor that it inherited of saved devices, where it has the same number.
    pub devices: Option<RawFd>,
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
    make_missing_files(spec, vm_dir)?;
    let agent = listening(&run, AGENT_SOCKET)?;
    let qmp = listening(&run, QMP_SOCKET)?;
    let saved = Saved::open(spec)?;
    let devices = saved.as_ref().map(|saved| saved.devices.as_raw_fd());
    let fds = Descriptors {
        tap: tap.as_raw_fd(),
        agent: agent.as_raw_fd(),
        qmp: qmp.as_raw_fd(),
        devices,
    };
    let opener = saved.map(Saved::into_opener).transpose()?;
    let mut jail = jail_spec(spec, vm_dir, arguments::arguments(spec, fds));
    jail.opener = opener.as_ref().map(|opener| opener.jails_end.as_raw_fd());
    fs::create_dir_all(&jail.mount_point).map_err(step("create the jail's directory"))?;
    let lock = OfdLock::share(&vm_dir.join(LOCK_FILE)).map_err(step("share the VM's lock"))?;
    let mut inherited = vec![fds.tap, fds.agent, fds.qmp, lock.as_raw_fd()];
    inherited.extend(devices.into_iter().chain(jail.opener));
    let jail = serde_json::to_vec(&jail).map_err(step("describe the jail"))?;

    // A new process namespace takes only children, and only those of the thread that asked for it.
    let start = move || {
        unshare(CloneFlags::CLONE_NEWPID).map_err(step("create the VMM's process namespace"))?;
        spawn_jailed(&jail, &inherited)
    };
    let thread = std::thread::Builder::new().spawn(start).map_err(step("start a thread"))?;
    let vmm = thread
        .join()
        .unwrap_or_else(|_| Err(step("start the VMM")(io::Error::other("thread panicked"))))?;
    opener.map_or(Ok(()), Opener::serve)?;
    Ok(Vmm { devices, ..vmm })
}

/// What a guest goes on from.
struct Saved {
    memory: File,
    devices: File,
}

impl Saved {
    fn open(spec: &LaunchSpec) -> Result<Option<Self>, SpawnError> {
        let Begin::Restore { saved, .. } = &spec.begin else { return Ok(None) };
        let open = |name| File::open(Path::new(saved).join(name));
        Ok(Some(Self {
            memory: open(MEMORY_FILE).map_err(step("open the saved memory"))?,
            devices: open(DEVICES_FILE).map_err(step("open the saved devices"))?,
        }))
    }

    fn into_opener(self) -> Result<Opener, SpawnError> {
        let (ours, jails_end) = UnixStream::pair().map_err(step("make a pair of sockets"))?;
        Ok(Opener { ours, jails_end, memory: self.memory, _devices: self.devices })
    }
}

/// Who opens the saved memory for the VMM; see [`jail::serve_opens`].
struct Opener {
    ours: UnixStream,
    jails_end: UnixStream,
    memory: File,
    /// Open until the VMM has inherited it.
    _devices: File,
}

impl Opener {
    fn serve(self) -> Result<(), SpawnError> {
        let Self { ours, jails_end, memory, _devices } = self;
        drop(jails_end);
        let serve = move || {
            if let Err(error) = jail::serve_opens(&ours, guest_paths::MEMORY, &memory) {
                tracing::error!(%error, "the VMM's opens cannot be answered");
            }
        };
        let thread = std::thread::Builder::new().name("opener".to_owned()).spawn(serve);
        thread.map(drop).map_err(step("start a thread that opens files for the VMM"))
    }
}

/// Makes the files that the VMM writes and that are not there before a start.
fn make_missing_files(spec: &LaunchSpec, vm_dir: &Path) -> Result<(), SpawnError> {
    let no_disk = vm_dir.join(RUN_DIR).join(NO_DISK);
    let mut files = vec![(no_disk, NO_DISK_BYTES)];
    if matches!(spec.begin, Begin::Save | Begin::Receive) {
        files.push((vm_dir.join(MEMORY_FILE), u64::from(spec.memory_mib) << 20));
    }
    for (path, bytes) in files {
        make_empty(&path, bytes).map_err(step("make the VMM's files"))?;
        if let Some(user) = spec.jail_user {
            crate::cow::give_to(&path, user)
                .map_err(|error| step("make the VMM's files")(io::Error::other(error)))?;
        }
    }
    Ok(())
}

fn make_empty(path: &Path, bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.set_len(bytes)
}

#[expect(clippy::disallowed_methods, reason = "the VMM lives as long as the VM")]
fn spawn_jailed(jail: &[u8], inherited: &[RawFd]) -> Result<Vmm, SpawnError> {
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
    let kept = inherited.to_vec();
    // SAFETY: the closure allocates nothing and calls only what is async-signal-safe.
    unsafe {
        command.pre_exec(move || crate::process::keep_only(&kept));
    }
    let mut child = command.spawn().map_err(step("start the VMM's jail"))?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(jail).map_err(step("describe the jail to its process"))?;
    }
    let console = child.stdout.take().expect("stdout was asked to be a pipe");
    let words = child.stderr.take().expect("stderr was asked to be a pipe");
    Ok(Vmm { child, console: console.into(), words: words.into(), devices: None })
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
    let no_disk = vm_dir.join(RUN_DIR).join(NO_DISK);
    // A guest that is only kept while it is saved never touches its disks, which another one writes.
    let own = |name: &str| match spec.begin {
        Begin::Receive => no_disk.clone(),
        _ => vm_dir.join(name),
    };
    mounts.push(JailMount::writable(own(COW_FILE), guest_paths::ROOT_COW));
    let work = spec.work_disk_bytes.map_or(no_disk.clone(), |_| own(WORK_FILE));
    mounts.push(JailMount::writable(work, guest_paths::WORK));
    let modules = spec.modules_image.as_ref().map_or(no_disk, PathBuf::from);
    mounts.push(JailMount::read_only(modules, guest_paths::MODULES));
    match &spec.begin {
        Begin::Boot => {}
        Begin::Save | Begin::Receive => {
            mounts.push(JailMount::writable(vm_dir.join(MEMORY_FILE), guest_paths::MEMORY));
        }
        Begin::Restore { saved, .. } => {
            let memory = Path::new(saved).join(MEMORY_FILE);
            mounts.push(JailMount::read_only(memory, guest_paths::MEMORY));
        }
    }
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
            .max(spec.work_disk_bytes.unwrap_or(0))
            .max(u64::from(spec.memory_mib) << 20),
        opener: None,
    }
}
