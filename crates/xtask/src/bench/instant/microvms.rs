//! Peers that need KVM: microsandbox and Firecracker.

use std::process::Command;

use banger_host::engine::kvm;

use super::Stage;
use super::contender::{Contender, Once, Reason, Side};
use super::{provision, trial};
use crate::bench::bare;
use crate::failure::{on_file, run};

/// From its package, with a directory as the guest's root: no registry is asked for an image.
pub(super) const MICROSANDBOX: Contender =
    Contender { name: "microsandbox 0.7.11", side: Side::Peer, every: 1, prepare: microsandbox };

/// The same kernel and first process as the bare boots of QEMU.
pub(super) const FIRECRACKER: Contender =
    Contender { name: "Firecracker", side: Side::Peer, every: 1, prepare: firecracker };

const REQUIREMENT: &str = "microsandbox==0.7.11";

fn microsandbox(stage: &Stage) -> Result<Once<'_>, Reason> {
    need_kvm(stage)?;
    let venv = provision::ensure_venv(stage, REQUIREMENT)?;
    let shared = provision::ensure_debian_root(stage)?;
    // It may write to the guest's root.
    let own = provision::ensure_made(&stage.cache.join("microsandbox-root"), |dir| {
        run(Command::new("cp").args(["-a", "--reflink=auto"]).arg(shared.join(".")).arg(dir))
    })?;
    let home = stage.cache.join("microsandbox-home");
    std::fs::create_dir_all(&home).map_err(on_file("create", &home))?;
    let mut start = Command::new(venv.join("bin/msb"));
    // Without a name and in the foreground, nothing of it is kept.
    start.env("HOME", &home).env("MSB_HOME", &home).args(["run", "-q", "--no-stdin"]);
    start.args(["--cpus", &stage.spec.cpus.to_string()]);
    start.args(["--memory", &format!("{}M", stage.spec.memory_mib)]);
    start.arg(own).args(["--", "true"]);
    Ok(Box::new(move || Ok(trial::run(&start)?.took)))
}

fn firecracker(stage: &Stage) -> Result<Once<'_>, Reason> {
    need_kvm(stage)?;
    let Some(program) = provision::find("firecracker") else {
        return Err(Reason::new("there is no firecracker here, and no package of it"));
    };
    let initramfs = bare::make_initramfs(&stage.spec, &stage.host.scratch)?;
    let config = stage.host.scratch.join("firecracker.json");
    let text = serde_json::json!({
        "boot-source": {
            "kernel_image_path": stage.spec.kernel,
            "initrd_path": initramfs,
            "boot_args": "console=ttyS0 quiet loglevel=5 reboot=k panic=-1 pci=off \
                          random.trust_cpu=on cryptomgr.notests",
        },
        "drives": [],
        "machine-config": {
            "vcpu_count": stage.spec.cpus,
            "mem_size_mib": stage.spec.memory_mib,
        },
    });
    std::fs::write(&config, text.to_string()).map_err(on_file("write", &config))?;
    let mut start = Command::new(program);
    start.args(["--no-api", "--config-file"]).arg(config);
    Ok(Box::new(move || {
        let ended = trial::run(&start)?;
        if ended.said.contains(bare::LAST_WORDS) {
            return Ok(ended.took);
        }
        Err(Reason::new(&format!("the guest did not come up: {}", ended.said)))
    }))
}

fn need_kvm(stage: &Stage) -> Result<(), Reason> {
    if stage.has_kvm() {
        return Ok(());
    }
    let why = match kvm::usability() {
        kvm::KvmUsability::NoDevice => "there is no /dev/kvm",
        kvm::KvmUsability::NotPermitted => "this user may not open /dev/kvm",
        kvm::KvmUsability::NoHardware => "the processor lacks vmx and svm",
        kvm::KvmUsability::Broken(_) | kvm::KvmUsability::Usable => "banger does not use it here",
    };
    Err(Reason::new(&format!("needs KVM: {why}")))
}
