//! Every named step of everything banger does that leaves a trace: in a database, on a disk, in the
//! kernel, in a guest, on a wire.
//!
//! A step is named before its effect. In ordinary builds naming one only says how far an operation
//! is. In test builds (the feature `faults` of the programs) each is a place where the process can
//! be made to crash, to fail or to stall: `docs/reliability.md` says what must hold then. Nobody can
//! name a step that is not in this table, because only this module can make one, and
//! `cargo xtask tidy` checks that each is passed in the code of its process.

mod effect;

use std::fmt;

pub use effect::{Effect, Failing, NoEffect};

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Step {
    name: &'static str,
    process: Process,
    operation: Operation,
}

impl Step {
    /// Its name, `operation.what`: stable, also the name of a stage of progress.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// Who takes it.
    #[must_use]
    pub const fn process(self) -> Process {
        self.process
    }

    /// What it is a step of.
    #[must_use]
    pub const fn operation(self) -> Operation {
        self.operation
    }

    /// The step of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        ALL.iter().map(|(_, step)| *step).find(|step| step.name == name)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}

/// A program of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Process {
    /// `bangerd`.
    Daemon,
    /// `banger-shim`.
    Shim,
    /// `banger-agent`, in the guest.
    Agent,
    /// `banger`.
    Cli,
}

/// A process that can break while an operation is under way: a program of ours, or another's that a
/// VM is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// `bangerd`.
    Daemon,
    /// `banger-shim`.
    Shim,
    /// The virtual machine monitor.
    Vmm,
    /// The uplink.
    Pasta,
    /// `banger-agent`, in the guest.
    Agent,
    /// `banger`.
    Cli,
}

impl Who {
    /// Everybody who can break.
    pub const EVERYBODY: [Self; 6] =
        [Self::Daemon, Self::Shim, Self::Vmm, Self::Pasta, Self::Agent, Self::Cli];

    /// Whether it takes the steps of that program.
    #[must_use]
    pub const fn is(self, process: Process) -> bool {
        matches!(
            (self, process),
            (Self::Daemon, Process::Daemon)
                | (Self::Shim, Process::Shim)
                | (Self::Agent, Process::Agent)
                | (Self::Cli, Process::Cli)
        )
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Daemon => "daemon",
            Self::Shim => "shim",
            Self::Vmm => "vmm",
            Self::Pasta => "pasta",
            Self::Agent => "agent",
            Self::Cli => "cli",
        })
    }
}

/// What a person, or the machine, wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// A daemon that begins.
    Begin,
    /// A VM that is made.
    Create,
    /// A VM that is started.
    Start,
    /// A command in a running VM.
    Exec,
    /// A VM that is paused, or goes on.
    Pause,
    /// A VM that ends, by request or by itself.
    Stop,
    /// A VM that becomes another: larger, with a work disk.
    Set,
    /// A VM that is removed.
    Remove,
    /// An image that is fetched.
    ImagePull,
    /// An image that is made of files, or of a VM's disk.
    ImageBuild,
    /// An image that is sent to a registry.
    ImagePush,
    /// An image or kernel that is removed.
    ImageRemove,
    /// A kernel that is fetched or imported.
    KernelPull,
    /// A template that is made or removed.
    Template,
    /// A guest that stands ready to become a VM.
    Pool,
    /// A running VM that is copied.
    Fork,
    /// A snapshot of a VM that is made or removed.
    Snapshot,
    /// A VM that goes back to a snapshot.
    Restore,
    /// A database that becomes one of this release.
    Migrate,
}

macro_rules! steps {
    ($($(#[doc = $doc:literal])+ $constant:ident = $name:literal, $process:ident, $operation:ident;)+) => {
        $(
            $(#[doc = $doc])+
            pub const $constant: Step = Step {
                name: $name,
                process: Process::$process,
                operation: Operation::$operation,
            };
        )+

        /// All of them, each with the name of its constant, in the order in which an operation meets
        /// them.
        pub const ALL: &[(&str, Step)] = &[$((stringify!($constant), $constant)),+];
    };
}

steps! {
    /// The daemon listens on its socket.
    DAEMON_LISTEN = "daemon.listen", Daemon, Begin;
    /// The daemon opens database, images and kernels.
    DAEMON_OPEN = "daemon.open", Daemon, Begin;
    /// The daemon looks at what former daemons left.
    DAEMON_OBSERVE = "daemon.observe", Daemon, Begin;
    /// The daemon writes down how a VM ended while there was no daemon.
    DAEMON_SETTLE = "daemon.settle", Daemon, Begin;

    /// A copy of the database as it was is made.
    MIGRATE_BACKUP = "migrate.backup", Daemon, Migrate;
    /// One migration is applied.
    MIGRATE_APPLY = "migrate.apply", Daemon, Migrate;
    /// One migration is committed.
    MIGRATE_COMMIT = "migrate.commit", Daemon, Migrate;

    /// The row of a new VM is written.
    CREATE_ROW = "create.row", Daemon, Create;
    /// The directory of a new VM is made.
    CREATE_DIRECTORY = "create.directory", Daemon, Create;
    /// The disk of a new VM is made.
    CREATE_DISK = "create.disk", Daemon, Create;
    /// Image, kernel and programs are found for a start.
    START_PREPARE = "start.prepare", Daemon, Start;
    /// The files of its disks become as the row says.
    START_DISKS = "start.disks", Daemon, Start;
    /// The status of the last run is removed.
    START_FORGET_LAST_RUN = "start.forget_last_run", Daemon, Start;
    /// A template gets its directory.
    TEMPLATE_BEGIN = "template.begin", Daemon, Template;
    /// The shim that makes a template is started.
    TEMPLATE_SPAWN = "template.spawn", Daemon, Template;
    /// A template can be used.
    TEMPLATE_PUBLISH = "template.publish", Daemon, Template;
    /// What a template is is written beside it: from then on the next daemon uses it, too.
    TEMPLATE_SEAL = "template.seal", Daemon, Template;
    /// A template is removed.
    TEMPLATE_REMOVE = "template.remove", Daemon, Template;
    /// The disk of a VM becomes a copy of a template's.
    START_SEED = "start.seed", Daemon, Start;
    /// A guest that shall stand ready gets its directory.
    POOL_BEGIN = "pool.begin", Daemon, Pool;
    /// The shim of such a guest is started.
    POOL_SPAWN = "pool.spawn", Daemon, Pool;
    /// A guest that stands ready is ended.
    POOL_END = "pool.end", Daemon, Pool;
    /// A guest that stands ready is told that it is a VM.
    START_CLAIM = "start.claim", Daemon, Start;
    /// The row says that the VM shall run.
    START_INTEND = "start.intend", Daemon, Start;
    /// What the shim reads is written.
    START_WRITE_LAUNCH_FILE = "start.write_launch_file", Daemon, Start;
    /// The shim is started.
    START_SPAWN = "start.spawn", Daemon, Start;
    /// The daemon waits for the shim.
    START_AWAIT = "start.await", Daemon, Start;
    /// The daemon has heard that the VM runs.
    START_READY = "start.ready", Daemon, Start;
    /// The request that made a VM has succeeded.
    CREATE_FINISH = "create.finish", Daemon, Create;
    /// The shim is asked to pause its VM, or to have it go on.
    PAUSE_ASK = "pause.ask", Daemon, Pause;
    /// The shim is asked to end its VM.
    STOP_ASK = "stop.ask", Daemon, Stop;
    /// How a VM ended is written down.
    STOP_RECORD = "stop.record", Daemon, Stop;
    /// A fresh root disk is made beside the one that there is.
    SET_NEW_ROOT = "set.new_root", Daemon, Set;
    /// A running guest is asked to be saved for copies of it.
    FORK_CAPTURE = "fork.capture", Daemon, Fork;
    /// A copy gets its disks.
    FORK_DISKS = "fork.disks", Daemon, Fork;
    /// A running guest is asked to be saved as a snapshot.
    SNAPSHOT_CAPTURE = "snapshot.capture", Daemon, Snapshot;
    /// The disks of a VM that does not run are copied.
    SNAPSHOT_DISKS = "snapshot.disks", Daemon, Snapshot;
    /// What a snapshot is is written beside it, with the digests of its files.
    SNAPSHOT_SEAL = "snapshot.seal", Daemon, Snapshot;
    /// A snapshot gets its name.
    SNAPSHOT_PUBLISH = "snapshot.publish", Daemon, Snapshot;
    /// A snapshot loses its name.
    SNAPSHOT_REMOVE = "snapshot.remove", Daemon, Snapshot;
    /// The disks of a snapshot are copied for its VM.
    RESTORE_DISKS = "restore.disks", Daemon, Restore;
    /// A VM that goes back is ended.
    RESTORE_END = "restore.end", Daemon, Restore;
    /// The copied disks get into the VM's directory.
    RESTORE_PLACE = "restore.place", Daemon, Restore;
    /// The row says which disks the VM has.
    RESTORE_ROW = "restore.row", Daemon, Restore;
    /// The copied disks take the place of the old ones.
    RESTORE_SETTLE = "restore.settle", Daemon, Restore;
    /// The row of a VM that is changed is written.
    SET_ROW = "set.row", Daemon, Set;
    /// The fresh root disk takes the place of the old one.
    SET_ROOT = "set.root", Daemon, Set;
    /// A work disk that no row wants any more is deleted.
    SET_WORK_DISK = "set.work_disk", Daemon, Set;
    /// The row says that the VM is being removed.
    REMOVE_MARK = "remove.mark", Daemon, Remove;
    /// The directory becomes no VM's.
    REMOVE_RENAME = "remove.rename", Daemon, Remove;
    /// The row is deleted.
    REMOVE_ROW = "remove.row", Daemon, Remove;
    /// The files are deleted.
    REMOVE_TREE = "remove.tree", Daemon, Remove;

    /// A tag of a registry is looked up.
    IMAGE_RESOLVE = "image.resolve", Daemon, ImagePull;
    /// The signature of an image is checked.
    IMAGE_VERIFY = "image.verify", Daemon, ImagePull;
    /// A Debian root filesystem is built.
    IMAGE_BOOTSTRAP = "image.bootstrap", Daemon, ImagePull;
    /// A file is fetched that becomes an image.
    IMAGE_DOWNLOAD = "image.download", Daemon, ImagePull;
    /// A layer begins to be stored, or its download goes on.
    BLOB_BEGIN = "blob.begin", Daemon, ImagePull;
    /// A layer gets its name.
    BLOB_PUBLISH = "blob.publish", Daemon, ImagePull;
    /// Work on an image or kernel gets its directory.
    STORE_BEGIN = "store.begin", Daemon, ImagePull;
    /// A root filesystem is measured.
    IMAGE_UNPACK = "image.unpack", Daemon, ImagePull;
    /// A disk is built.
    IMAGE_DISK = "image.disk", Daemon, ImagePull;
    /// What an image is is written beside its disk.
    IMAGE_MANIFEST = "image.manifest", Daemon, ImagePull;
    /// What was made is written to the disk and made read-only.
    STORE_SEAL = "store.seal", Daemon, ImagePull;
    /// What was made becomes visible under its digest.
    STORE_PUBLISH = "store.publish", Daemon, ImagePull;
    /// What was made gets a name.
    STORE_NAME = "store.name", Daemon, ImagePull;
    /// The directory of the work is removed.
    STORE_CLEAR = "store.clear", Daemon, ImagePull;
    /// What shall become an image is looked at.
    IMAGE_LOOK = "image.look", Daemon, ImageBuild;
    /// What shall become an image is measured.
    IMAGE_MEASURE = "image.measure", Daemon, ImageBuild;
    /// The disk of a VM that becomes an image is read.
    IMAGE_READ = "image.read", Daemon, ImageBuild;
    /// An image becomes a layer that can be sent.
    IMAGE_LAYER = "image.layer", Daemon, ImagePush;
    /// An image or kernel loses a name.
    STORE_UNNAME = "store.unname", Daemon, ImageRemove;
    /// An image or kernel is moved out of sight.
    STORE_SET_ASIDE = "store.set_aside", Daemon, ImageRemove;
    /// The files of an image or kernel are deleted.
    STORE_DELETE = "store.delete", Daemon, ImageRemove;
    /// Package lists, or a kernel's package, are fetched.
    KERNEL_DOWNLOAD = "kernel.download", Daemon, KernelPull;
    /// A kernel's package is unpacked.
    KERNEL_EXTRACT = "kernel.extract", Daemon, KernelPull;
    /// A kernel that somebody has is read.
    KERNEL_READ = "kernel.read", Daemon, KernelPull;
    /// A kernel's modules are read or unpacked, or become a disk.
    KERNEL_MODULES = "kernel.modules", Daemon, KernelPull;
    /// The initramfs of a kernel is written to the cache.
    INITRAMFS_WRITE = "initramfs.write", Daemon, Start;

    /// The shim enters its namespaces.
    SHIM_NAMESPACES = "shim.namespaces", Shim, Start;
    /// The shim begins to serve its socket.
    SHIM_SERVE = "shim.serve", Shim, Start;
    /// The shim writes `status.json`.
    SHIM_STATUS = "shim.status", Shim, Start;
    /// The VM's disk is checked.
    VM_DISK = "vm.disk", Shim, Start;
    /// The VM's network is made.
    VM_NETWORK = "vm.network", Shim, Start;
    /// The VMM is started.
    VM_VMM = "vm.vmm", Shim, Start;
    /// The VMM's process enters its jail.
    VM_JAIL = "vm.jail", Shim, Start;
    /// The VM's uplink is started.
    VM_UPLINK = "vm.uplink", Shim, Start;
    /// A saved guest is loaded.
    VM_RESTORE = "vm.restore", Shim, Start;
    /// The guest boots.
    VM_BOOT = "vm.boot", Shim, Start;
    /// The guest is made ready to be saved.
    VM_PARK = "vm.park", Shim, Template;
    /// The guest is saved.
    VM_SAVE = "vm.save", Shim, Template;
    /// The guest is made this VM.
    VM_CONFIGURE = "vm.configure", Shim, Start;
    /// A guest is about to stand ready.
    VM_WAIT = "vm.wait", Shim, Pool;
    /// A guest that stood ready goes on, to be this VM.
    VM_CLAIM = "vm.claim", Shim, Start;
    /// The VM runs, and the daemon is told.
    VM_READY = "vm.ready", Shim, Start;
    /// A running guest begins to be saved.
    SHIM_CAPTURE = "shim.capture", Shim, Fork;
    /// An exec stream is opened to the guest.
    SHIM_EXEC = "shim.exec", Shim, Exec;
    /// The virtual CPUs are halted.
    SHIM_PAUSE = "shim.pause", Shim, Pause;
    /// The virtual CPUs go on.
    SHIM_RESUME = "shim.resume", Shim, Pause;
    /// The guest is asked to go down.
    SHIM_SHUT_DOWN = "shim.shut_down", Shim, Stop;
    /// The VMM is ended.
    SHIM_POWER_OFF = "shim.power_off", Shim, Stop;

    /// The guest's modules are loaded.
    GUEST_MODULES = "guest.modules", Agent, Start;
    /// The guest's root disk is joined and mounted.
    GUEST_ROOT = "guest.root", Agent, Start;
    /// The guest gets ready to be saved.
    GUEST_PARK = "guest.park", Agent, Template;
    /// The guest becomes the VM that it is said to be.
    GUEST_CONFIGURE = "guest.configure", Agent, Start;
    /// A command is started.
    GUEST_EXEC = "guest.exec", Agent, Exec;
    /// The guest's processes are asked to end.
    GUEST_SHUT_DOWN = "guest.shut_down", Agent, Stop;
    /// The guest's disks are synced and unmounted.
    GUEST_UNMOUNT = "guest.unmount", Agent, Stop;

    /// The daemon is started.
    CLI_DAEMON = "cli.daemon", Cli, Begin;
    /// A VM is asked for.
    CLI_CREATE = "cli.create", Cli, Create;
    /// An operation is followed to its end.
    CLI_FOLLOW = "cli.follow", Cli, Create;
    /// An exec stream is opened to the shim.
    CLI_EXEC = "cli.exec", Cli, Exec;
    /// The command is sent on it.
    CLI_COMMAND = "cli.command", Cli, Exec;
    /// A VM that goes with its command is removed.
    CLI_REMOVE = "cli.remove", Cli, Remove;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_become_files() {
        let names: BTreeSet<&str> = ALL.iter().map(|(_, step)| step.name()).collect();
        assert_eq!(names.len(), ALL.len());
        for name in names {
            let fine = |c: char| c.is_ascii_lowercase() || c == '_' || c == '.';
            assert!(name.chars().all(fine) && name.split('.').count() == 2, "{name}");
            assert_eq!(Step::named(name).map(Step::name), Some(name));
        }
        assert_eq!(Step::named("create.nothing"), None);
    }
}
