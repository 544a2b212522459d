//! What must hold after somebody broke: what was reported is so, what nobody touched is as it was, and the
//! operation can be repeated.

use std::time::Duration;

use banger_api::shim::WORK_FILE;
use banger_api::step;

use super::doing::Doing;
use super::{Bench, Case, END};
use crate::wait;

/// What the operation's command prints.
pub(super) const DONE: &str = "done\n";
/// How long the kernel may take to end a process, and the next daemon to clear up after it.
const AFTERMATH: Duration = Duration::from_secs(60);
/// The VM that stays of the first release's database: the others were being made or removed, or went with a
/// command that has ended.
const FIRST_VMS: [&str; 1] = ["plain"];

impl Bench {
    /// What a command has reported is so at once, and after any crash.
    pub(super) fn check_reported(&self, case: Case) {
        if case.step == step::CLI_REMOVE {
            // The command that was run has its exit code, and its VM goes with the client.
            wait::until("the VM goes", END, || self.host.vm_names().is_empty().then_some(()));
        }
        let names = self.host.vm_names();
        match self.doing {
            Doing::Run | Doing::RunUncached | Doing::Pool | Doing::Claim | Doing::Remove => {
                assert!(names.is_empty(), "{case}: {names:?}");
            }
            Doing::Stop => {
                let state = self.host.state("web").expect("it is there");
                assert_ne!(state, "running", "{case}");
            }
            Doing::Pause if case.spares_the_vm() => {
                assert_eq!(self.host.state("web").as_deref(), Some("paused"), "{case}");
            }
            Doing::Start | Doing::Resume if case.spares_the_vm() => {
                assert_eq!(self.host.state("web").as_deref(), Some("running"), "{case}");
                self.check_note();
            }
            Doing::Warm if case.spares_the_vm() => {
                assert_eq!(self.host.state("web").as_deref(), Some("running"), "{case}");
            }
            Doing::Fork if case.spares_the_vm() => {
                assert_eq!(self.host.state("copy").as_deref(), Some("running"), "{case}");
                assert_eq!(self.host.state("web").as_deref(), Some("running"), "{case}");
            }
            Doing::Snapshot | Doing::SnapshotDisks => {
                assert!(self.has_snapshot(), "{case}");
                if self.doing == Doing::Snapshot && case.spares_the_vm() {
                    assert_eq!(self.host.state("web").as_deref(), Some("running"), "{case}");
                }
            }
            Doing::RemoveSnapshot => assert!(!self.has_snapshot(), "{case}"),
            Doing::Restore if case.spares_the_vm() => {
                assert_eq!(self.host.state("web").as_deref(), Some("running"), "{case}");
                self.check_note();
            }
            Doing::Template => assert_eq!(self.templates(), 1, "{case}"),
            Doing::RemoveTemplate | Doing::EndReady => assert_eq!(self.templates(), 0, "{case}"),
            Doing::Push => self.check_pushed(case),
            Doing::Set => self.check_set(case),
            Doing::RemoveImage => assert!(!self.is_listed("image", "little"), "{case}"),
            doing => {
                if let Some((kind, name)) = doing.product(self) {
                    assert!(self.is_listed(kind, &name), "{case}: {name}");
                }
            }
        }
    }

    /// What nobody touched is as it was, whatever the command came to; what died is known to be dead.
    pub(super) fn check_untouched(&self, case: Case) {
        match self.doing {
            Doing::Exec | Doing::Begin if case.spares_the_vm() => {
                assert_eq!(Some(self.running_since()), self.props.running_since, "{case}");
            }
            Doing::Settle => {
                assert_eq!(self.host.state("web").as_deref(), Some("failed"), "{case}");
            }
            _ => {}
        }
    }

    /// The operation can be repeated, and works.
    pub(super) fn check_and_repeat(&self, case: Case) {
        let names = self.host.vm_names();
        match self.doing {
            Doing::Run | Doing::RunUncached | Doing::Pool | Doing::Claim => {
                for name in &names {
                    self.host.banger(["rm", "-f", name]).run().assert_ok();
                }
                self.operation().run().assert_ok().assert_stdout(DONE);
            }
            Doing::Start
            | Doing::Exec
            | Doing::Stop
            | Doing::Pause
            | Doing::Resume
            | Doing::Begin
            | Doing::Settle => {
                assert_eq!(names, ["web"], "{case}: the VM is there");
                self.use_again(case);
            }
            Doing::Warm => {
                assert_eq!(names, ["web"], "{case}: the VM is there");
                self.operation().run().assert_ok();
                let run = ["exec", "web", "--", "echo", "done"];
                self.host.banger(run).run().assert_ok().assert_stdout(DONE);
                self.host.banger(["stop", "web"]).run().assert_ok();
                self.host.banger(["start", "-q", "web"]).run().assert_ok();
            }
            Doing::Fork => self.fork_again(case, &names),
            Doing::Snapshot | Doing::SnapshotDisks | Doing::RemoveSnapshot | Doing::Restore => {
                assert_eq!(names, ["web"], "{case}: the VM is there");
                self.snapshot_again(case);
            }
            Doing::Template | Doing::RemoveTemplate | Doing::EndReady => {
                self.operation().run().assert_ok();
                let left = usize::from(self.doing == Doing::Template);
                assert_eq!(self.templates(), left, "{case}");
            }
            Doing::Migrate => assert_eq!(names, FIRST_VMS, "{case}: nothing is lost"),
            Doing::Set => {
                self.operation().run().assert_ok();
                self.check_set(case);
                self.host.banger(["start", "-q", "web"]).run().assert_ok();
            }
            Doing::Remove => {
                if !names.is_empty() {
                    self.host.banger(["rm", "-f", "web"]).run().assert_ok();
                }
                assert!(self.host.vm_names().is_empty(), "{case}");
            }
            Doing::RemoveImage => {
                if self.is_listed("image", "little") {
                    self.operation().run().assert_ok();
                }
                assert!(!self.is_listed("image", "little"), "{case}");
            }
            _ => {
                self.operation().run().assert_ok();
                if let Some((kind, name)) = self.doing.product(self) {
                    assert!(self.is_listed(kind, &name), "{case}: {name}");
                }
            }
        }
        self.check_no_work_is_left(case);
    }

    /// The VM stops and starts, and is what it was.
    fn use_again(&self, case: Case) {
        if self.doing == Doing::Exec && case.spares_the_vm() {
            self.operation().run().assert_ok().assert_stdout(DONE);
        }
        self.host.banger(["stop", "web"]).run().assert_ok();
        self.host.banger(["start", "-q", "web"]).run().assert_ok();
        match self.doing {
            Doing::Start | Doing::Stop | Doing::Pause | Doing::Resume => self.check_note(),
            Doing::Exec => drop(self.operation().run().assert_ok().assert_stdout(DONE)),
            _ => {}
        }
    }

    fn snapshot_again(&self, case: Case) {
        match self.doing {
            Doing::RemoveSnapshot => {
                if self.has_snapshot() {
                    self.operation().run().assert_ok();
                }
                assert!(!self.has_snapshot(), "{case}");
            }
            Doing::Restore => {
                if !case.spares_the_vm() {
                    // Nobody can keep what a VM is whose processes do not answer.
                    self.host.banger(["stop", "web"]).run().assert_ok();
                }
                self.operation().run().assert_ok();
            }
            _ => {
                if self.has_snapshot() {
                    self.host.banger(["snapshot", "rm", "web", "kept"]).run().assert_ok();
                }
                if self.doing == Doing::Snapshot {
                    // It may be about to end.
                    self.host.banger(["stop", "web"]).run().assert_ok();
                    self.host.banger(["start", "-q", "web"]).run().assert_ok();
                }
                self.operation().run().assert_ok();
                self.host.banger(["snapshot", "restore", "-q", "web", "kept"]).run().assert_ok();
                if self.doing == Doing::SnapshotDisks {
                    self.host.banger(["start", "-q", "web"]).run().assert_ok();
                }
            }
        }
        if self.host.state("web").as_deref() == Some("running") {
            self.check_note();
        } else {
            assert_eq!(self.doing, Doing::RemoveSnapshot, "{case}: it runs");
        }
    }

    fn has_snapshot(&self) -> bool {
        let listed = self.host.banger(["snapshot", "ls", "-q", "web"]).run().assert_ok();
        listed.stdout_text().lines().any(|name| name == "kept")
    }

    fn fork_again(&self, case: Case, names: &[String]) {
        assert!(names.iter().any(|name| name == "web"), "{case}: the VM is there");
        for copy in names.iter().filter(|name| *name != "web") {
            self.host.banger(["rm", "-f", copy]).run().assert_ok();
        }
        // It may be about to end.
        self.host.banger(["stop", "web"]).run().assert_ok();
        self.host.banger(["start", "-q", "web"]).run().assert_ok();
        self.operation().run().assert_ok();
        self.check_note();
        let run = ["exec", "copy", "--", "echo", "done"];
        self.host.banger(run).run().assert_ok().assert_stdout(DONE);
    }

    fn is_listed(&self, kind: &str, name: &str) -> bool {
        let listed = self.host.banger([kind, "ls", "-q"]).run().assert_ok();
        listed.stdout_text().lines().any(|line| line == name)
    }

    /// What was pushed can be had from the registry.
    fn check_pushed(&self, case: Case) {
        let (registry, _) = self.props.registry.as_ref().expect("it was prepared");
        let manifest = "application/vnd.oci.image.manifest.v1+json";
        let found = registry.server.get("app/manifests/pushed", manifest);
        assert!(found.is_some(), "{case}: the registry has it");
    }

    fn check_set(&self, case: Case) {
        let spec = &self.host.show("web")["spec"];
        assert_eq!(spec["cpus"], 1, "{case}: {spec}");
        assert!(spec["work_disk_bytes"].is_null(), "{case}: {spec}");
        assert!(!self.host.vm_dir("web").join(WORK_FILE).exists(), "{case}: the disk is there");
    }

    /// What was being made when somebody broke is removed by the next daemon: at once, or when the
    /// kernel has taken it from whoever was killed.
    fn check_no_work_is_left(&self, case: Case) {
        let what = format!("{case}: no work of a dead daemon is left");
        for kind in ["images", "kernels", "templates"] {
            let dir = self.host.data.join(kind);
            wait::until(&what, AFTERMATH, || {
                let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
                let mut names = entries.map(|entry| entry.file_name());
                names.all(|name| !name.to_string_lossy().starts_with("tmp-")).then_some(())
            });
        }
    }
}
