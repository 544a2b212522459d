//! QEMU's command line, as a pure function of what is to run.

use std::os::fd::RawFd;

use banger_api::agent::{INIT_ARG, PORT_NAME, ROOT_SECTORS_ARG};
use banger_api::shim::{Begin, EngineSpec, LaunchSpec};
use banger_api::vm::{Accelerator, InitMode};
use sha2::{Digest, Sha256};

use crate::network::GUEST_MAC;

/// Where a VM's files are inside the jail. The same in every VM, so that what QEMU saves of one
/// names no path of the host.
pub mod guest_paths {
    /// The image's disk.
    pub const ROOT_IMAGE: &str = "/vm/root.ext4";
    /// The VM's copy-on-write store.
    pub const ROOT_COW: &str = "/vm/root.cow";
    /// The VM's work disk.
    pub const WORK: &str = "/vm/work.ext4";
    /// The disk with the kernel's modules.
    pub const MODULES: &str = "/vm/modules.ext4";
    /// The kernel.
    pub const KERNEL: &str = "/vm/kernel";
    /// The initramfs.
    pub const INITRAMFS: &str = "/vm/initramfs";
    /// The guest's memory, where it is a file.
    pub const MEMORY: &str = "/vm/memory";
}

/// Descriptors that QEMU inherits.
#[derive(Debug, Clone, Copy)]
pub struct Descriptors {
    /// The tap device.
    pub tap: RawFd,
    /// A listening unix socket for the agent's port.
    pub agent: RawFd,
    /// A listening unix socket for QMP.
    pub qmp: RawFd,
    /// What was saved of the devices, where a guest goes on from that.
    pub devices: Option<RawFd>,
}

/// All that a guest sees of its machine, in words: what was saved of one can go on only in another that is
/// the same. The time stamp counter's rate is left out, since it is measured.
#[must_use]
pub fn shape(spec: &LaunchSpec) -> Vec<String> {
    let none = Descriptors { tap: -1, agent: -1, qmp: -1, devices: None };
    let engine = EngineSpec { tsc_khz: spec.engine.tsc_khz.map(|_| 0), ..spec.engine.clone() };
    // What is flushed, and how the guest began, it does not see.
    words(&LaunchSpec { engine, durable: true, begin: Begin::Boot, ..spec.clone() }, none, &[])
}

/// [`shape`] as a digest, in hex.
#[must_use]
pub fn machine_digest(spec: &LaunchSpec) -> String {
    let mut digest = Sha256::new();
    for word in shape(spec) {
        digest.update(word);
        digest.update([0]);
    }
    hex::encode(digest.finalize())
}

/// Program and arguments.
#[must_use]
pub fn arguments(spec: &LaunchSpec, fds: Descriptors) -> Vec<String> {
    words(spec, fds, &crate::fault::for_the_guest())
}

fn words(spec: &LaunchSpec, fds: Descriptors, faults: &[String]) -> Vec<String> {
    let mut argv = vec![spec.engine.binary.clone()];
    for group in [
        machine(spec),
        memory(spec),
        kernel(spec, faults),
        control(fds),
        drives(spec),
        network(fds),
        vec!["-sandbox", SANDBOX].into_iter().map(str::to_owned).collect(),
    ] {
        argv.extend(group);
    }
    argv
}

/// Nothing obsolete, no other user, no other program, no other priority.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// The value of `-accel`.
#[must_use]
pub fn accelerator(engine: &EngineSpec) -> &'static str {
    match engine.accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => tcg(&engine.version),
    }
}

/// The first version of QEMU whose emulated processors may run in a thread each. Before it, one could
/// keep its translation of code that another had changed meanwhile: `docs/boot.md` has what comes of it.
const THREADS_SINCE: (u32, u32) = (8, 1);

/// The value of `-accel` for emulation by that version: `7.2.22`.
fn tcg(version: &str) -> &'static str {
    if is_since(version, THREADS_SINCE) { "tcg,thread=multi" } else { "tcg,thread=single" }
}

/// The first version of QEMU that sees all that an emulated guest writes while it is sent elsewhere.
/// Before it, what a processor had lately written to could be written again unseen as soon as it had been
/// looked at for the second time: `docs/decisions/012` has what comes of it.
const SEES_WRITES_SINCE: (u32, u32) = (9, 0);

/// Whether the engine sees everything that a guest writes which runs while its memory is sent.
#[must_use]
pub fn sees_writes(engine: &EngineSpec) -> bool {
    engine.accelerator == Accelerator::Kvm || is_since(&engine.version, SEES_WRITES_SINCE)
}

fn is_since(version: &str, first: (u32, u32)) -> bool {
    let mut numbers = version.split('.').map(str::parse);
    matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= first)
}

/// Nothing of a PC that a guest does not need; its memory is the object of that name.
const MACHINE: &str = "microvm,acpi=on,pit=off,pic=off,rtc=on,isa-serial=on,x-option-roms=off,\
                       mem-merge=off,memory-backend=ram";

/// The guest's memory: its own, or a file's. A guest that goes on from a saved one has a private copy, of
/// which only what it writes takes memory; and it waits to be told from where.
///
/// Never a balloon or free page reporting: before 8.0 QEMU would punch what the guest gives back out of
/// the file, through the private mapping, and so out of every other guest that began with it.
fn memory(spec: &LaunchSpec) -> Vec<String> {
    let size = format!("id=ram,size={}M", spec.memory_mib);
    let file = |shared| {
        format!("memory-backend-file,{size},mem-path={},share={shared}", guest_paths::MEMORY)
    };
    match spec.begin {
        Begin::Boot => strings(&["-object", &format!("memory-backend-ram,{size}")]),
        Begin::Save => strings(&["-object", &file("on")]),
        Begin::Receive => strings(&["-object", &file("on"), "-incoming", "defer", "-S"]),
        Begin::Restore { .. } => strings(&["-object", &file("off"), "-incoming", "defer", "-S"]),
    }
}

fn machine(spec: &LaunchSpec) -> Vec<String> {
    let cpu = match spec.engine.accelerator {
        Accelerator::Kvm => "host",
        Accelerator::Tcg => "max",
    };
    strings(&[
        "-name",
        "banger",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        // A guest's reboot ends QEMU; the shim starts it again.
        "-no-reboot",
        "-M",
        MACHINE,
        "-accel",
        accelerator(&spec.engine),
        "-cpu",
        cpu,
        "-smp",
        &spec.cpus.to_string(),
        "-m",
        &format!("{}M", spec.memory_mib),
    ])
}

fn kernel(spec: &LaunchSpec, faults: &[String]) -> Vec<String> {
    let mut append = kernel_arguments(spec);
    for fault in faults {
        append.push(' ');
        append.push_str(fault);
    }
    strings(&[
        "-kernel",
        guest_paths::KERNEL,
        "-initrd",
        guest_paths::INITRAMFS,
        "-append",
        &append,
    ])
}

/// The guest kernel's command line.
///
/// It carries no identity: what makes a guest this VM arrives in the agent's `configure`.
#[must_use]
pub fn kernel_arguments(spec: &LaunchSpec) -> String {
    let mut words = vec![
        "console=ttyS0".to_owned(),
        // Little of the kernel, and nothing of an image's init, but every warning: a kernel that found
        // no timer says so there, and must be booted again.
        "quiet".to_owned(),
        "loglevel=5".to_owned(),
        // A panic resets at once, the reset ends QEMU, and the console says what it was.
        "panic=-1".to_owned(),
        "reboot=t".to_owned(),
        "random.trust_cpu=on".to_owned(),
        // A fifth of a second of every boot: self-tests of ciphers, and of a timer that microvm
        // does not have.
        "cryptomgr.notests".to_owned(),
        "no_timer_check".to_owned(),
        // microvm has neither a keyboard controller nor more than one serial port to look for.
        "8250.nr_uarts=1".to_owned(),
        "i8042.noaux".to_owned(),
        "i8042.nokbd".to_owned(),
        // Whoever changes control groups, mounts or interfaces waits for all processors: at once, and not until
        // each has had a tick of its clock. Every command has a control group.
        "rcupdate.rcu_expedited=1".to_owned(),
        format!("{ROOT_SECTORS_ARG}={}", spec.disk_bytes / 512),
    ];
    if spec.init != InitMode::Agent {
        words.push(format!("{INIT_ARG}={}", spec.init.as_str()));
        // Nobody can log in on a console that is a log; and without udev, as in images made for
        // containers, systemd would wait 90 s for its device.
        words.push("systemd.getty_auto=0".to_owned());
    }
    if let (Accelerator::Tcg, Some(khz)) = (spec.engine.accelerator, spec.engine.tsc_khz) {
        // microvm has no PIT and no PM timer to calibrate the TSC against. Under tcg the kernel's
        // own try fails now and then, and it then waits for a tick that never comes. With kvm the
        // rate comes from kvm-clock, and must not be given.
        words.push(format!("tsc_early_khz={khz}"));
        // tcg's processors share the host's TSC. Not told so, Debian's kernel calls it unsynchronised
        // and keeps time by ticks, which are late or lost where the host is busy.
        words.push("tsc=reliable".to_owned());
    }
    words.join(" ")
}

fn control(fds: Descriptors) -> Vec<String> {
    strings(&[
        "-chardev",
        "stdio,id=console,signal=off",
        "-serial",
        "chardev:console",
        "-chardev",
        &format!("socket,id=qmp,fd={},server=on,wait=off", fds.qmp),
        "-mon",
        "chardev=qmp,mode=control",
        "-device",
        "virtio-serial-device,max_ports=2",
        "-chardev",
        &format!("socket,id=agent,fd={},server=on,wait=off", fds.agent),
        "-device",
        &format!("virtserialport,chardev=agent,name={PORT_NAME}"),
        "-device",
        "virtio-rng-device",
    ])
}

/// Every VM has all of them, so that one saved guest serves those with and without a work disk; in the
/// place of what a VM has not lies an empty one.
fn drives(spec: &LaunchSpec) -> Vec<String> {
    // A VM that goes away with its command has nothing to save: its flushes are answered at once.
    let own_cache = if spec.durable { "cache=writeback" } else { "cache=unsafe" };
    // A full host disk pauses the guest instead of telling it of errors it cannot mend.
    let own = format!("{own_cache},werror=enospc");
    let shared = "readonly=on,cache=writeback";
    [
        drive("root", guest_paths::ROOT_IMAGE, shared),
        drive("cow", guest_paths::ROOT_COW, &own),
        drive("work", guest_paths::WORK, &own),
        drive("modules", guest_paths::MODULES, shared),
    ]
    .concat()
}

fn drive(id: &str, path: &str, options: &str) -> Vec<String> {
    strings(&[
        "-drive",
        // No locking: the VM's own lock says who may write, and the image is shared by all.
        &format!(
            "if=none,id={id},format=raw,file.driver=file,file.filename={path},file.locking=off,{options}"
        ),
        "-device",
        &format!("virtio-blk-device,drive={id}"),
    ])
}

fn network(fds: Descriptors) -> Vec<String> {
    strings(&[
        "-netdev",
        &format!("tap,id=net,fd={}", fds.tap),
        "-device",
        &format!("virtio-net-device,netdev=net,mac={GUEST_MAC}"),
    ])
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch_spec(durable: bool) -> LaunchSpec {
        let json = serde_json::json!({
            "vm_id": "0123456789ab", "name": "box", "machine_id": "0".repeat(32),
            "engine": {
                "name": "qemu", "version": "7.2.22", "binary": "/usr/bin/qemu-system-x86_64",
                "libraries": [], "data_dirs": [], "accelerator": "tcg"
            },
            "cpus": 1, "memory_mib": 128, "kernel": "/k", "kernel_release": "6.1",
            "initramfs": "/i", "root_image": "/r", "root_image_bytes": 1, "disk_bytes": 1,
            "work_disk_bytes": 1, "modules_image": "/m", "durable": durable, "network": "default",
            "boot_timeout_ms": 1
        });
        serde_json::from_value(json).expect("a launch spec")
    }

    /// The `-drive` of that name, as its options.
    fn drive_of(spec: &LaunchSpec, id: &str) -> Vec<String> {
        let argv = drives(spec);
        let named = format!("id={id}");
        let options = argv.iter().map(|word| word.split(',').map(str::to_owned).collect());
        let mut found: Vec<Vec<String>> = options.collect();
        found.retain(|options: &Vec<String>| options.contains(&named));
        assert_eq!(found.len(), 1, "{id}: {argv:?}");
        found.remove(0)
    }

    #[test]
    fn processors_run_beside_each_other_where_that_is_sound() {
        for (version, want) in [
            ("7.2.22", "tcg,thread=single"),
            ("8.0.4", "tcg,thread=single"),
            ("8.1.0", "tcg,thread=multi"),
            ("8.2", "tcg,thread=multi"),
            ("10.0.2", "tcg,thread=multi"),
            ("10", "tcg,thread=single"),
            ("", "tcg,thread=single"),
        ] {
            assert_eq!(tcg(version), want, "{version}");
        }
        let mut spec = launch_spec(true);
        for (version, sees) in [("7.2.22", false), ("8.2.0", false), ("9.0.0", true), ("", false)] {
            let emulated = EngineSpec { version: version.to_owned(), ..spec.engine.clone() };
            assert_eq!(sees_writes(&emulated), sees, "{version}");
            let accelerator = Accelerator::Kvm;
            assert!(sees_writes(&EngineSpec { accelerator, ..emulated }), "{version}");
        }
        let accel = |spec: &LaunchSpec| {
            let argv = machine(spec);
            let at = argv.iter().position(|word| word == "-accel").expect("there is one");
            argv[at + 1].clone()
        };
        assert_eq!(accel(&spec), "tcg,thread=single");
        spec.engine.accelerator = Accelerator::Kvm;
        assert_eq!(accel(&spec), "kvm");
    }

    #[test]
    fn the_shape_is_what_the_guest_sees() {
        let spec = launch_spec(true);
        let same = LaunchSpec {
            durable: false,
            name: "other".to_owned(),
            begin: Begin::Restore { saved: "/s".to_owned(), was: banger_api::shim::Was::Nobody },
            work_disk_bytes: None,
            modules_image: None,
            ..spec.clone()
        };
        assert_eq!(shape(&spec), shape(&same));
        assert_eq!(machine_digest(&spec), machine_digest(&same));
        let mut faster = spec.clone();
        (faster.engine.tsc_khz, faster.memory_mib) = (Some(1), 128);
        let mut slower = spec.clone();
        slower.engine.tsc_khz = Some(2);
        assert_eq!(shape(&faster), shape(&slower));
        for other in [
            LaunchSpec { cpus: 2, ..spec.clone() },
            LaunchSpec { memory_mib: 256, ..spec.clone() },
            LaunchSpec { disk_bytes: 1 << 30, ..spec.clone() },
            LaunchSpec { init: InitMode::System, ..spec.clone() },
        ] {
            assert_ne!(shape(&spec), shape(&other));
            assert_ne!(machine_digest(&spec), machine_digest(&other));
        }
    }

    #[test]
    fn what_is_kept_is_flushed_and_a_full_disk_pauses() {
        for durable in [true, false] {
            let spec = launch_spec(durable);
            let wanted = if durable { "cache=writeback" } else { "cache=unsafe" };
            for own in ["cow", "work"] {
                let options = drive_of(&spec, own);
                assert!(options.iter().any(|option| option == wanted), "{own}: {options:?}");
                assert!(options.iter().any(|option| option == "werror=enospc"), "{options:?}");
                assert!(!options.iter().any(|option| option == "readonly=on"), "{options:?}");
            }
            for shared in ["root", "modules"] {
                let options = drive_of(&spec, shared);
                assert!(options.iter().any(|option| option == "readonly=on"), "{options:?}");
            }
        }
    }
}
