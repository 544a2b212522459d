//! What is done to pass a step, and what it needs.

use std::path::Path;
use std::time::Duration;

use banger_api::shim::LOCK_FILE;
use banger_api::step::{self, Operation, Step};
use banger_host::lock::is_locked;
use nix::sys::signal::Signal;

use super::props::registry;
use super::{Bench, END};
use crate::fixtures::{SigningKey, TestRegistry};
use crate::invocation::Invocation;
use crate::wait;

/// How long what is fetched from Debian's archive may take.
const FETCH: Duration = Duration::from_secs(300);
/// A database that the first release wrote.
const FIRST_DATABASE: &[u8] = include_bytes!("../../../bangerd/src/store/fixtures/v1.db");

/// One operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    /// `run --rm`: made, started, used, removed.
    Run,
    /// The same, and the initramfs is made anew.
    RunUncached,
    /// A VM that has data is started again.
    Start,
    /// A command in a VM that runs.
    Exec,
    Stop,
    Pause,
    /// A paused VM goes on.
    Resume,
    /// A VM gets another image and more processors.
    Set,
    Remove,
    /// The daemon begins beside a VM that runs.
    Begin,
    /// The daemon begins beside a VM that ended without it.
    Settle,
    /// The daemon begins over the database of an older release.
    Migrate,
    /// A directory becomes an image.
    Register,
    /// A signed image comes from a registry.
    Pull,
    /// An image of the user's catalog is fetched.
    Catalog,
    /// A Debian root filesystem is built.
    Debian,
    /// A VM's disk becomes an image.
    Promote,
    Push,
    RemoveImage,
    /// Files become a kernel.
    Import,
    /// A kernel comes from Debian's archive.
    KernelPull,
    /// A guest is saved for others to begin from.
    Template,
    /// A VM begins from a saved guest.
    Warm,
    RemoveTemplate,
    /// A VM runs, and a guest like it comes to stand ready.
    Pool,
    /// `run --rm` with a guest that stands ready.
    Claim,
    /// A guest that stands ready is ended.
    EndReady,
    /// A VM that runs is copied.
    Fork,
    /// A snapshot of a VM that runs is made.
    Snapshot,
    /// The same of one that does not.
    SnapshotDisks,
    RemoveSnapshot,
    /// A VM that runs goes back to a snapshot.
    Restore,
}

/// What there is besides the host.
#[derive(Default)]
pub(super) struct Props {
    pub(super) registry: Option<(TestRegistry, SigningKey)>,
    /// When the VM's run began that nobody may end.
    pub(super) running_since: Option<u64>,
}

impl Doing {
    /// What passes the step.
    pub(super) fn of(step: Step) -> Self {
        match step.operation() {
            _ if step == step::INITRAMFS_WRITE => Self::RunUncached,
            Operation::Template if step == step::TEMPLATE_REMOVE => Self::RemoveTemplate,
            Operation::Template => Self::Template,
            Operation::Pool if step == step::POOL_END => Self::EndReady,
            Operation::Pool => Self::Pool,
            _ if [step::START_CLAIM, step::VM_CLAIM].contains(&step) => Self::Claim,
            _ if [step::START_SEED, step::VM_RESTORE].contains(&step) => Self::Warm,
            Operation::Create => Self::Run,
            Operation::Start => Self::Start,
            Operation::Exec => Self::Exec,
            Operation::Stop => Self::Stop,
            Operation::Pause if step == step::SHIM_RESUME => Self::Resume,
            Operation::Pause => Self::Pause,
            Operation::Fork => Self::Fork,
            Operation::Snapshot => match step {
                step::SNAPSHOT_DISKS => Self::SnapshotDisks,
                step::SNAPSHOT_REMOVE => Self::RemoveSnapshot,
                _ => Self::Snapshot,
            },
            Operation::Restore => Self::Restore,
            Operation::Set => Self::Set,
            Operation::Remove if step == step::CLI_REMOVE => Self::Run,
            Operation::Remove => Self::Remove,
            Operation::Begin if step == step::DAEMON_SETTLE => Self::Settle,
            Operation::Begin => Self::Begin,
            Operation::Migrate => Self::Migrate,
            Operation::ImageRemove => Self::RemoveImage,
            Operation::ImageBuild if step == step::IMAGE_READ => Self::Promote,
            Operation::ImageBuild => Self::Register,
            Operation::ImagePush => Self::Push,
            Operation::KernelPull => match step {
                step::KERNEL_READ | step::KERNEL_MODULES => Self::Import,
                _ => Self::KernelPull,
            },
            Operation::ImagePull => match step {
                step::IMAGE_BOOTSTRAP | step::IMAGE_UNPACK => Self::Debian,
                step::IMAGE_DOWNLOAD => Self::Catalog,
                step::IMAGE_RESOLVE | step::IMAGE_VERIFY => Self::Pull,
                step::BLOB_BEGIN | step::BLOB_PUBLISH => Self::Pull,
                _ => Self::Register,
            },
        }
    }

    /// Whether a VM, and so its processes, has a part in it.
    pub(super) fn has_a_vm(self) -> bool {
        use Doing::{Begin, Exec, Pause, Remove, Resume, Run, RunUncached, Set, Start, Stop, Warm};
        let of_a_vm =
            matches!(self, Run | RunUncached | Start | Exec | Stop | Set | Remove | Begin);
        let copied = matches!(self, Self::Fork | Self::Snapshot | Self::Restore);
        let ready = matches!(self, Self::Pool | Self::Claim | Self::EndReady);
        of_a_vm || copied || ready || matches!(self, Pause | Resume | Warm | Self::Template)
    }

    /// Whether VMs begin from templates meanwhile. Elsewhere they boot, so that every step of a boot is
    /// taken.
    pub(super) fn has_templates(self) -> bool {
        matches!(self, Self::Template | Self::Warm | Self::RemoveTemplate) || self.has_a_pool()
    }

    /// Whether guests stand ready.
    pub(super) fn has_a_pool(self) -> bool {
        matches!(self, Self::Pool | Self::Claim | Self::EndReady)
    }

    /// Whether it runs a command in a VM.
    pub(super) fn is_a_command(self) -> bool {
        matches!(self, Self::Run | Self::RunUncached | Self::Exec | Self::Pool | Self::Claim)
    }

    /// How long it may take.
    pub(super) fn patience(self) -> Duration {
        match self {
            Self::Debian | Self::KernelPull | Self::Import => FETCH,
            _ => END,
        }
    }

    /// What it makes, if that is an image or a kernel: the commands about it, and its name.
    pub(super) fn product(self, bench: &Bench) -> Option<(&'static str, String)> {
        match self {
            Self::Register | Self::Promote => Some(("image", "little".to_owned())),
            Self::Pull => Some(("image", bench.reference("signed"))),
            Self::Catalog => Some(("image", "filed".to_owned())),
            Self::Debian => Some(("image", "debian-bookworm".to_owned())),
            Self::Import => Some(("kernel", "mine".to_owned())),
            Self::KernelPull => Some(("kernel", "debian-cloud".to_owned())),
            _ => None,
        }
    }
}

impl Bench {
    /// What must be there before the operation.
    pub(super) fn prepare(&mut self) {
        match self.doing {
            Doing::RunUncached => self.forget_the_initramfs(),
            Doing::Set => {
                let create = ["create", "-q", "--name", "web", "--work-disk", "128M"];
                self.host.banger(create).run().assert_ok();
            }
            Doing::Stop | Doing::Pause | Doing::Remove | Doing::Fork | Doing::Snapshot => {
                self.vm_with_a_note();
            }
            Doing::RemoveSnapshot | Doing::Restore => {
                self.vm_with_a_note();
                self.host.banger(["snapshot", "create", "-q", "web", "kept"]).run().assert_ok();
            }
            Doing::Resume => {
                self.vm_with_a_note();
                self.host.banger(["pause", "web"]).run().assert_ok();
            }
            Doing::Start | Doing::SnapshotDisks => {
                self.vm_with_a_note();
                self.host.banger(["stop", "web"]).run().assert_ok();
            }
            // Nothing is executed in it: its agent may have been told to break at that.
            Doing::Exec => {
                self.host.running_vm("web");
                self.props.running_since = Some(self.running_since());
            }
            Doing::Begin => {
                self.host.running_vm("web");
                self.props.running_since = Some(self.running_since());
                self.start_again();
            }
            Doing::Settle => {
                self.host.running_vm("web");
                let lock = self.host.vm_dir("web").join(LOCK_FILE);
                self.start_again();
                self.signal_all("banger-shim", Signal::SIGKILL);
                // The kernel takes a moment for the rest of it, which holds the lock as well.
                let free = || matches!(is_locked(&lock), Ok(false)).then_some(());
                wait::until("nothing of the VM is alive", END, free);
            }
            Doing::Migrate => self.put(&self.host.data.join("banger.db"), FIRST_DATABASE),
            Doing::Register => self.make_tree(),
            Doing::RemoveImage | Doing::Push => {
                self.make_tree();
                self.banger(&register(&self.tree())).run().assert_ok();
                if self.doing == Doing::Push {
                    self.props.registry = Some(registry(&self.host));
                }
            }
            Doing::Pull => self.props.registry = Some(registry(&self.host)),
            Doing::Catalog => self.make_catalog(),
            Doing::Promote => {
                self.host.banger(["create", "-q", "--name", "web"]).run().assert_ok();
            }
            Doing::Import => self.take_modules_out(),
            Doing::KernelPull => {
                self.host.banger(["kernel", "rm", "debian-cloud"]).run().assert_ok();
            }
            Doing::Run | Doing::Debian => {}
            Doing::Template => {
                let prune = ["template", "prune", "--all", "--yes"];
                self.host.banger(prune).run().assert_ok();
            }
            Doing::RemoveTemplate | Doing::Pool => self.make_template(),
            Doing::Claim | Doing::EndReady => self.fill_the_pool(),
            Doing::Warm => {
                self.make_template();
                self.host.banger(["create", "-q", "--name", "web"]).run().assert_ok();
            }
        }
    }

    /// The operation's command.
    pub(super) fn operation(&self) -> Invocation {
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        let words = match self.doing {
            Doing::Run | Doing::RunUncached | Doing::Claim => {
                words(&["run", "--rm", "-q", "--name", "web", "--", "echo", "done"])
            }
            // Long enough for a guest to come up beside it.
            Doing::Pool => {
                let script = "sleep 4; echo done";
                words(&["run", "--rm", "-q", "--name", "web", "--", "sh", "-c", script])
            }
            Doing::Start | Doing::Warm => words(&["start", "-q", "web"]),
            Doing::Template => words(&["template", "make", "-q"]),
            Doing::RemoveTemplate | Doing::EndReady => {
                words(&["template", "prune", "--all", "--yes"])
            }
            Doing::Exec => words(&["exec", "web", "--", "echo", "done"]),
            Doing::Stop => words(&["stop", "web"]),
            Doing::Pause => words(&["pause", "web"]),
            Doing::Resume => words(&["resume", "web"]),
            Doing::Fork => words(&["fork", "-q", "web", "--name", "copy"]),
            Doing::Snapshot | Doing::SnapshotDisks => {
                words(&["snapshot", "create", "-q", "web", "kept"])
            }
            Doing::RemoveSnapshot => words(&["snapshot", "rm", "web", "kept"]),
            Doing::Restore => words(&["snapshot", "restore", "-q", "web", "kept"]),
            // All that takes a step of its own.
            Doing::Set => words(&[
                "set",
                "web",
                "--image",
                "debian-bookworm",
                "-c",
                "1",
                "--work-disk",
                "none",
                "--yes",
            ]),
            Doing::Remove => words(&["rm", "-f", "web"]),
            Doing::Begin | Doing::Settle | Doing::Migrate => words(&["ls", "-q"]),
            Doing::Register => register(&self.tree()),
            Doing::RemoveImage => words(&["image", "rm", "little"]),
            Doing::Push => words(&["image", "push", "little", &self.reference("pushed")]),
            Doing::Pull => {
                let key = self.props.registry.as_ref().map(|(_, key)| key.public.clone());
                let key = key.unwrap_or_default();
                let reference = self.reference("signed");
                words(&["image", "pull", &reference, "--verify-key", &key.to_string_lossy()])
            }
            Doing::Catalog => words(&["image", "pull", "filed"]),
            Doing::Debian => words(&["image", "pull", "--refresh", "debian-bookworm"]),
            Doing::Promote => words(&["image", "promote", "web", "little"]),
            Doing::Import => {
                let modules = self.host.scratch.join("modules").display().to_string();
                let kernel = self.kernel_dir().join("vmlinuz").display().to_string();
                words(&["kernel", "import", "--name", "mine", "--modules", &modules, &kernel])
            }
            Doing::KernelPull => words(&["kernel", "pull", "debian-cloud"]),
        };
        self.banger(&words).timeout(self.doing.patience())
    }

    pub(super) fn banger(&self, words: &[String]) -> Invocation {
        self.host.banger(words)
    }

    pub(super) fn reference(&self, tag: &str) -> String {
        let registry = self.props.registry.as_ref();
        registry.map_or_else(String::new, |(registry, _)| registry.reference(&format!("app:{tag}")))
    }
}

fn register(tree: &Path) -> Vec<String> {
    ["image", "register", &tree.to_string_lossy(), "--name", "little"].map(str::to_owned).into()
}
