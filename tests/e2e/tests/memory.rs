//! "memory pressure killing a VMM": the kernel's choice is told as what it is, and the VM starts again.

use std::path::{Path, PathBuf};

use banger_e2e::BOOT;
use banger_testkit::{Host, skip};

/// What the VMM may take beyond what it has. Far less than its guest's memory.
const LIMIT: &str = "67108864";

/// A control group with little memory.
struct Cramped(PathBuf);

impl Cramped {
    /// None where this process may make none.
    fn new() -> Option<Self> {
        let name = format!("banger-e2e-{}", std::process::id());
        let kinds = [("memory", "memory.limit_in_bytes"), ("", "memory.max")];
        kinds.iter().find_map(|(hierarchy, limit)| {
            let dir = Path::new("/sys/fs/cgroup").join(hierarchy).join(&name);
            std::fs::create_dir(&dir).ok()?;
            let group = Self(dir);
            std::fs::write(group.0.join(limit), LIMIT).ok()?;
            Some(group)
        })
    }

    fn take(&self, pid: i32) {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).expect("we are root");
    }
}

impl Drop for Cramped {
    fn drop(&mut self) {
        // Nothing lives in it any more.
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// "\"Killed by OOM\" is said only where a cgroup shows it, else \"killed by signal 9, sender unknown\"."
#[test]
fn a_vmm_that_the_kernel_kills_for_memory_is_a_failure_with_a_reason() {
    // Before the host, so that it is empty when it goes, also after a failure.
    let Some(cramped) = Cramped::new() else {
        return skip("no control group with a memory limit can be made here");
    };
    let host = Host::new();
    let vm = host.running_vm("hungry");
    host.processes_named("qemu-system-x86_64").iter().for_each(|pid| cramped.take(*pid));
    let eat = ["exec", &vm, "--", "dd", "if=/dev/zero", "of=/dev/null", "bs=400M", "count=1"];
    let lost = host.banger(eat).timeout(BOOT).run().assert_code(125);
    assert!(lost.stderr_text().contains("hint: "), "{lost}");
    host.wait_for_state(&vm, "failed");
    let end = host.show(&vm)["status"]["end"].clone();
    assert_eq!(end["cause"], "vmm_exited", "{end}");
    assert!(
        end["reason"].as_str().is_some_and(|reason| reason.contains("sender unknown")),
        "{end}"
    );
    host.banger(["start", &vm]).run().assert_ok();
    host.banger(["exec", &vm, "--", "true"]).run().assert_ok();
    host.finish();
    drop(cramped);
}
