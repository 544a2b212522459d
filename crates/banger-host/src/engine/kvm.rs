//! Whether hardware virtualisation can be used.

use std::fs::{self, OpenOptions};
use std::io;

/// What stands in the way of KVM, if anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvmUsability {
    /// It works.
    Usable,
    /// There is no `/dev/kvm`.
    NoDevice,
    /// `/dev/kvm` may not be opened by this user.
    NotPermitted,
    /// `/dev/kvm` cannot be opened for another reason.
    Broken(String),
    /// `/dev/kvm` opens, but the processor shows neither vmx nor svm. Such hosts exist: they run
    /// unmodified kernels by emulating instruction after instruction, minutes per boot.
    NoHardware,
}

impl KvmUsability {
    /// Whether VMs should use it.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        *self == Self::Usable
    }
}

/// Looks at `/dev/kvm` and the processor's flags.
#[must_use]
pub fn usability() -> KvmUsability {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    judge(OpenOptions::new().read(true).write(true).open("/dev/kvm").map(drop), &flags)
}

fn judge(opened: io::Result<()>, cpuinfo: &str) -> KvmUsability {
    match opened {
        Ok(()) if has_virtualisation(cpuinfo) => KvmUsability::Usable,
        Ok(()) => KvmUsability::NoHardware,
        Err(error) if error.kind() == io::ErrorKind::NotFound => KvmUsability::NoDevice,
        // Without hardware the permission would not help, so it is not what to complain about.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            if has_virtualisation(cpuinfo) {
                KvmUsability::NotPermitted
            } else {
                KvmUsability::NoHardware
            }
        }
        Err(error) => KvmUsability::Broken(error.to_string()),
    }
}

fn has_virtualisation(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .is_some_and(|line| line.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_needs_the_device_and_the_hardware() {
        let with = "flags\t\t: fpu vmx sse\n";
        let without = "flags\t\t: fpu sse vmxoff\n";
        let error = |kind: io::ErrorKind| Err(io::Error::from(kind));
        let cases = [
            (Ok(()), with, KvmUsability::Usable),
            (Ok(()), without, KvmUsability::NoHardware),
            (error(io::ErrorKind::NotFound), with, KvmUsability::NoDevice),
            (error(io::ErrorKind::PermissionDenied), with, KvmUsability::NotPermitted),
            (error(io::ErrorKind::PermissionDenied), without, KvmUsability::NoHardware),
        ];
        for (opened, cpuinfo, want) in cases {
            assert_eq!(judge(opened, cpuinfo), want);
        }
    }
}
