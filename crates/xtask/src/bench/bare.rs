//! The bare boot that a start is compared with: the same kernel, memory and modules, nothing else.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use banger_api::shim::LaunchSpec;
use banger_api::vm::Accelerator;
use banger_host::qemu::arguments::accelerator;

use crate::failure::{ChoreFailure, on_file, run};
use crate::tree;

/// What its first process prints last.
pub(super) const LAST_WORDS: &str = "bare boot done";

/// How the kernel is booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// As banger does: the uncompressed kernel with banger's arguments.
    AsBanger,
    /// As it is packaged: the bzImage, which unpacks and tests itself.
    AsPackaged,
}

/// A prepared bare boot.
#[derive(Debug)]
pub(super) struct BareBoot {
    program: String,
    arguments: Vec<String>,
}

impl BareBoot {
    /// Makes what it boots.
    pub(super) fn prepare(
        spec: &LaunchSpec,
        scratch: &Path,
        manner: Manner,
    ) -> Result<Self, ChoreFailure> {
        let initramfs = make_initramfs(spec, scratch)?;
        Ok(Self {
            program: spec.engine.binary.clone(),
            arguments: arguments(spec, &initramfs, manner),
        })
    }

    /// Boots once, and says how long it took from start to exit.
    pub(super) fn boot(&self) -> Result<Duration, ChoreFailure> {
        let started = Instant::now();
        let output = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .output()
            .map_err(|source| ChoreFailure::NotStarted { program: self.program.clone(), source })?;
        let took = started.elapsed();
        let said = String::from_utf8_lossy(&output.stdout);
        if said.contains(LAST_WORDS) {
            return Ok(took);
        }
        let complaint = String::from_utf8_lossy(&output.stderr);
        Err(ChoreFailure::Found(format!("the bare boot did not come up: {said}{complaint}")))
    }
}

/// Compiles the first process and puts it over the agent in a copy of the VM's initramfs: of two
/// files with one name in an initramfs the kernel takes the later.
pub(super) fn make_initramfs(spec: &LaunchSpec, scratch: &Path) -> Result<PathBuf, ChoreFailure> {
    let init = compile(scratch)?;
    let mut bytes = read(Path::new(&spec.initramfs))?;
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(cpio_of("init", &read(&init)?));
    let initramfs = scratch.join(format!("bare-initramfs-{}", spec.kernel_release));
    std::fs::write(&initramfs, bytes).map_err(on_file("write", &initramfs))?;
    Ok(initramfs)
}

fn compile(scratch: &Path) -> Result<PathBuf, ChoreFailure> {
    let init = scratch.join("bare-init");
    let source = tree::root().join("bench/bare_init.c");
    run(Command::new("cc").args(["-static", "-O2", "-o"]).arg(&init).arg(source))?;
    Ok(init)
}

fn read(path: &Path) -> Result<Vec<u8>, ChoreFailure> {
    std::fs::read(path).map_err(on_file("read", path))
}

/// As the shim starts QEMU, without drives, network and agent.
fn arguments(spec: &LaunchSpec, initramfs: &Path, manner: Manner) -> Vec<String> {
    let cpu = match spec.engine.accelerator {
        Accelerator::Kvm => "host",
        Accelerator::Tcg => "max",
    };
    let mut kernel =
        "console=ttyS0 quiet loglevel=5 panic=-1 reboot=t random.trust_cpu=on 8250.nr_uarts=1 \
                      i8042.noaux i8042.nokbd"
            .to_owned();
    let packaged = Path::new(&spec.kernel).with_file_name("vmlinuz");
    let image = match manner {
        Manner::AsBanger => {
            kernel.push_str(" cryptomgr.notests no_timer_check");
            spec.kernel.clone()
        }
        Manner::AsPackaged => packaged.to_string_lossy().into_owned(),
    };
    if let Some(khz) = spec.engine.tsc_khz {
        kernel.push_str(&format!(" tsc_early_khz={khz} tsc=reliable"));
    }
    let machine = "microvm,acpi=on,pit=off,pic=off,rtc=on,isa-serial=on,x-option-roms=off";
    let cpus = spec.cpus.to_string();
    let memory = format!("{}M", spec.memory_mib);
    let initramfs = initramfs.to_string_lossy();
    [
        ["-M", machine],
        ["-accel", accelerator(&spec.engine)],
        ["-cpu", cpu],
        ["-smp", &cpus],
        ["-m", &memory],
        ["-kernel", &image],
        ["-initrd", &initramfs],
        ["-append", &kernel],
        ["-display", "none"],
        ["-serial", "stdio"],
    ]
    .into_iter()
    .flatten()
    .chain(["-nodefaults", "-no-user-config", "-no-reboot"])
    .map(str::to_owned)
    .collect()
}

/// An archive in the kernel's `newc` format with one executable file.
fn cpio_of(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, mode, bytes) in [(name, 0o100_755, bytes), ("TRAILER!!!", 0, &[][..])] {
        let (name_len, len) = (name.len() + 1, bytes.len());
        // inode, mode, uid, gid, links, mtime, size, four device numbers, name's length, checksum
        let fields = [1, mode, 0, 0, 1, 0, len, 0, 0, 0, 0, name_len, 0];
        archive.extend(b"070701");
        archive.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
        archive.extend(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(bytes);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_aligned_and_ends() {
        let archive = cpio_of("init", b"12345");
        assert_eq!(archive.len() % 4, 0);
        assert!(archive.starts_with(b"070701"));
        // Header 110, name 5, padded to 116; then the file.
        assert_eq!(&archive[116..121], b"12345");
        assert!(archive.windows(10).any(|window| window == b"TRAILER!!!"));
    }
}
