//! What a VM may be made of: defaults, limits, and what image, VM and session together give it.

use std::collections::BTreeMap;

use banger_api::vm::{RestartPolicy, VmSpec};
use banger_api::{ErrorCode, Problem};

use crate::signal::{self, UnknownSignal};
use crate::size;

/// The image of `banger run` without an image.
pub const DEFAULT_IMAGE: &str = "debian-bookworm";
/// The kernel of an image that names none.
pub const DEFAULT_KERNEL: &str = "debian-cloud";
/// Virtual CPUs, unless asked otherwise.
pub const DEFAULT_CPUS: u32 = 2;
/// Guest memory, unless asked otherwise.
pub const DEFAULT_MEMORY_MIB: u32 = 1024;
/// Size of the root disk, unless asked otherwise or the image's is larger.
pub const DEFAULT_DISK_BYTES: u64 = 8 * GIB;

/// Fewer than that and Debian's kernel does not reach its init.
pub const MIN_MEMORY_MIB: u32 = 128;
/// Most virtual CPUs, whatever the host has.
pub const MAX_CPUS: u32 = 64;
/// Virtual CPUs per host CPU: more only wait for each other.
pub const MAX_CPUS_PER_HOST_CPU: u32 = 4;
/// Smallest work disk. A fifth of it is the file system's own.
pub const MIN_WORK_DISK_BYTES: u64 = 128 * MIB;
/// Largest root or work disk. The copy-on-write file is a little larger, and ext4 ends at 16 TiB.
pub const MAX_DISK_BYTES: u64 = 8 * 1024 * GIB;

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;
/// Largest environment, labels or command of a VM. Linux allows 2 MiB of arguments and environment.
const MAX_TEXT_BYTES: usize = 1024 * 1024;

/// How much of what a VM takes the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostCapacity {
    /// CPUs that this user may run on.
    pub cpus: u32,
    /// Memory in all.
    pub memory_mib: u64,
}

/// Why a VM cannot be made like that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No CPU, or absurdly many.
    #[error("a VM cannot have {asked} CPUs; from 1 to {most} are possible on this host")]
    Cpus {
        /// What was asked for.
        asked: u32,
        /// The limit.
        most: u32,
    },
    /// Too little memory to boot.
    #[error("a VM cannot have {asked_mib} MiB of memory; it needs at least {MIN_MEMORY_MIB} MiB")]
    MemoryTooSmall {
        /// What was asked for.
        asked_mib: u32,
    },
    /// More memory than there is.
    #[error("a VM cannot have {asked_mib} MiB of memory; this host has {host_mib} MiB")]
    MemoryTooLarge {
        /// What was asked for.
        asked_mib: u32,
        /// What the host has.
        host_mib: u64,
    },
    /// The disk would not hold the image.
    #[error(
        "a disk of {} is smaller than the image, which has {}",
        size::format(*asked_bytes),
        size::format(*image_bytes)
    )]
    DiskTooSmall {
        /// What was asked for.
        asked_bytes: u64,
        /// The image's size.
        image_bytes: u64,
    },
    /// Larger than any file may be.
    #[error("a disk of {asked_bytes} bytes is larger than the limit of 8 TiB")]
    DiskTooLarge {
        /// What was asked for.
        asked_bytes: u64,
    },
    /// It would hold little more than its own file system.
    #[error("a work disk of {} is too small; it needs at least 128 MiB", size::format(*asked_bytes))]
    WorkDiskTooSmall {
        /// What was asked for.
        asked_bytes: u64,
    },
    /// A name in the environment is empty, or holds `=` or a null byte.
    #[error("{name:?} cannot be the name of an environment variable")]
    EnvironmentName {
        /// The name.
        name: String,
    },
    /// A null byte where the kernel allows none.
    #[error("{what} holds a null byte")]
    NullByte {
        /// Where.
        what: &'static str,
    },
    /// A label's key is empty or holds `=`, a comma or a control character.
    #[error("{key:?} cannot be the key of a label")]
    LabelKey {
        /// The key.
        key: String,
    },
    /// Too much text.
    #[error("{what} is longer than 1 MiB")]
    TooLong {
        /// Where.
        what: &'static str,
    },
    /// A limit of no time at all.
    #[error("a timeout of 0 would end the command before it began")]
    NoTime,
    /// A life of no time at all.
    #[error("a time to live of 0 would end the VM before it began")]
    NoLife,
    /// A VM that goes when it ends cannot be started again.
    #[error("a VM that is removed when it ends cannot be started again when it ends")]
    RestartOfRemoved,
    /// No signal has that name.
    #[error(transparent)]
    Signal(#[from] UnknownSignal),
    /// The image's name is missing.
    #[error("no image is named")]
    NoImage,
}

impl SpecError {
    /// What to type instead.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Cpus { asked: 0, .. } => "leave --cpus out for the default of 2".to_owned(),
            Self::Cpus { most, .. } => format!("banger run --cpus {most}"),
            Self::MemoryTooSmall { .. } => format!("banger run --memory {MIN_MEMORY_MIB}M"),
            Self::MemoryTooLarge { .. } => {
                format!("leave --memory out for the default of {DEFAULT_MEMORY_MIB} MiB")
            }
            Self::DiskTooSmall { image_bytes, .. } => {
                format!("banger run --disk {}M, or leave --disk out", image_bytes.div_ceil(MIB))
            }
            Self::DiskTooLarge { .. } => "leave --disk out for the default of 8 GiB".to_owned(),
            Self::WorkDiskTooSmall { .. } => "banger run --work-disk 10G".to_owned(),
            Self::NoTime => "leave --timeout out for no limit".to_owned(),
            Self::NoLife => "leave --ttl out for no limit".to_owned(),
            Self::RestartOfRemoved => "leave out either --rm or --restart".to_owned(),
            _ => return None,
        };
        Some(text)
    }
}

impl From<SpecError> for Problem {
    fn from(error: SpecError) -> Self {
        let problem = Self::new(ErrorCode::InvalidArgument, error.to_string());
        match error.hint() {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    }
}

/// Checks everything about a specification that does not need the image.
///
/// # Errors
/// The first thing that cannot be, in the order of [`SpecError`].
pub fn check(spec: &VmSpec, host: &HostCapacity) -> Result<(), SpecError> {
    if spec.image.is_empty() {
        return Err(SpecError::NoImage);
    }
    let most = host.cpus.saturating_mul(MAX_CPUS_PER_HOST_CPU).clamp(1, MAX_CPUS);
    if spec.cpus == 0 || spec.cpus > most {
        return Err(SpecError::Cpus { asked: spec.cpus, most });
    }
    if spec.memory_mib < MIN_MEMORY_MIB {
        return Err(SpecError::MemoryTooSmall { asked_mib: spec.memory_mib });
    }
    if u64::from(spec.memory_mib) > host.memory_mib {
        return Err(SpecError::MemoryTooLarge {
            asked_mib: spec.memory_mib,
            host_mib: host.memory_mib,
        });
    }
    let disks = [spec.disk_bytes, spec.work_disk_bytes].into_iter().flatten();
    if let Some(asked_bytes) = disks.max().filter(|asked| *asked > MAX_DISK_BYTES) {
        return Err(SpecError::DiskTooLarge { asked_bytes });
    }
    if let Some(asked_bytes) = spec.work_disk_bytes.filter(|asked| *asked < MIN_WORK_DISK_BYTES) {
        return Err(SpecError::WorkDiskTooSmall { asked_bytes });
    }
    if spec.timeout_ms == Some(0) {
        return Err(SpecError::NoTime);
    }
    if spec.ttl_ms == Some(0) {
        return Err(SpecError::NoLife);
    }
    if spec.remove_on_exit && spec.restart != RestartPolicy::No {
        return Err(SpecError::RestartOfRemoved);
    }
    if let Some(name) = &spec.stop_signal {
        signal::parse(name)?;
    }
    check_environment(&spec.env)?;
    check_labels(&spec.labels)?;
    check_texts(spec)
}

/// Checks an environment: a VM's own, or a session's.
///
/// # Errors
/// [`SpecError`] with the name that cannot be.
pub fn check_environment(env: &BTreeMap<String, String>) -> Result<(), SpecError> {
    if let Some(name) = env.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
        return Err(SpecError::EnvironmentName { name: name.clone() });
    }
    if env.values().any(|value| value.contains('\0')) {
        return Err(SpecError::NullByte { what: "the environment" });
    }
    check_length("the environment", env.iter().map(|(name, value)| name.len() + value.len()))
}

/// Checks labels.
///
/// # Errors
/// [`SpecError`] with the key that cannot be.
pub fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), SpecError> {
    let bad = |key: &&String| {
        key.is_empty() || key.contains(|c: char| c == '=' || c == ',' || c.is_control())
    };
    if let Some(key) = labels.keys().find(bad) {
        return Err(SpecError::LabelKey { key: key.clone() });
    }
    check_length("the labels", labels.iter().map(|(key, value)| key.len() + value.len()))
}

fn check_texts(spec: &VmSpec) -> Result<(), SpecError> {
    if spec.command.iter().any(|word| word.contains('\0')) {
        return Err(SpecError::NullByte { what: "the command" });
    }
    for (what, text) in [("the user", &spec.user), ("the working directory", &spec.workdir)] {
        if text.as_ref().is_some_and(|text| text.contains('\0')) {
            return Err(SpecError::NullByte { what });
        }
        check_length(what, text.iter().map(String::len))?;
    }
    check_length("the command", spec.command.iter().map(|word| word.len() + 1))
}

fn check_length(what: &'static str, lengths: impl Iterator<Item = usize>) -> Result<(), SpecError> {
    if lengths.sum::<usize>() > MAX_TEXT_BYTES {
        return Err(SpecError::TooLong { what });
    }
    Ok(())
}

/// The size of the root disk: what was asked for, else the default or the image's size, whichever
/// is larger; always whole MiB.
///
/// # Errors
/// [`SpecError`] if the image would not fit, or nothing would hold the disk.
pub fn disk_bytes(asked: Option<u64>, image_bytes: u64) -> Result<u64, SpecError> {
    let bytes = match asked {
        Some(asked_bytes) if asked_bytes < image_bytes => {
            return Err(SpecError::DiskTooSmall { asked_bytes, image_bytes });
        }
        Some(asked_bytes) if asked_bytes > MAX_DISK_BYTES => {
            return Err(SpecError::DiskTooLarge { asked_bytes });
        }
        Some(asked_bytes) => asked_bytes,
        None => DEFAULT_DISK_BYTES.max(image_bytes),
    };
    Ok(bytes.next_multiple_of(MIB))
}

/// The environment of every command in a VM: the image's, then the VM's, then the session's. A
/// later one wins, except that a session never overrides what somebody asked for with `--env`.
#[must_use]
pub fn environment(
    image: &BTreeMap<String, String>,
    vm: &BTreeMap<String, String>,
    session: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut env = image.clone();
    env.extend(session.clone());
    env.extend(vm.clone());
    env
}

/// What the disks of a VM are called that begin with the image of that digest.
#[must_use]
pub fn disks_of_image(image_digest: &str) -> &str {
    image_digest.rsplit(':').next().unwrap_or(image_digest)
}

#[cfg(test)]
pub(crate) mod tests {
    use banger_api::vm::{EngineChoice, NetworkPolicy, Vm, VmState, VmStatus};

    use super::*;

    pub(crate) fn any_spec() -> VmSpec {
        VmSpec {
            image: DEFAULT_IMAGE.into(),
            kernel: None,
            engine: EngineChoice::Auto,
            cpus: DEFAULT_CPUS,
            memory_mib: DEFAULT_MEMORY_MIB,
            disk_bytes: None,
            env: BTreeMap::new(),
            user: None,
            workdir: None,
            command: Vec::new(),
            init: None,
            entrypoint: None,
            default_command: Vec::new(),
            stop_signal: None,
            timeout_ms: None,
            remove_on_exit: false,
            restart: Default::default(),
            ttl_ms: None,
            work_disk_bytes: None,
            network: NetworkPolicy::Default,
            labels: BTreeMap::new(),
        }
    }

    pub(crate) fn any_vm() -> Vm {
        Vm {
            id: "0123456789ab".into(),
            name: "any".into(),
            spec: any_spec(),
            image_digest: "sha256:image".into(),
            kernel_digest: "sha256:kernel".into(),
            disk_bytes: DEFAULT_DISK_BYTES,
            created_at_ms: 1,
            expires_at_ms: None,
            status: VmStatus {
                state: VmState::Created,
                since_ms: 1,
                paused: Vec::new(),
                end: None,
                engine: None,
                boot_ms: None,
                origin: None,
                resources: None,
                warnings: Vec::new(),
                restarts: 0,
                next_start_ms: None,
            },
            pending: Vec::new(),
            dir: "/vms/0123456789ab".into(),
        }
    }

    const HOST: HostCapacity = HostCapacity { cpus: 2, memory_mib: 4096 };

    #[test]
    fn the_defaults_are_allowed() {
        assert_eq!(check(&any_spec(), &HOST), Ok(()));
    }

    #[test]
    fn absurd_specifications_are_refused() {
        type Change = fn(&mut VmSpec);
        let cases: [(Change, SpecError); 15] = [
            (|s| s.image.clear(), SpecError::NoImage),
            (|s| s.cpus = 0, SpecError::Cpus { asked: 0, most: 8 }),
            (|s| s.cpus = 9, SpecError::Cpus { asked: 9, most: 8 }),
            (|s| s.memory_mib = 127, SpecError::MemoryTooSmall { asked_mib: 127 }),
            (
                |s| s.memory_mib = 4097,
                SpecError::MemoryTooLarge { asked_mib: 4097, host_mib: 4096 },
            ),
            (|s| s.disk_bytes = Some(u64::MAX), SpecError::DiskTooLarge { asked_bytes: u64::MAX }),
            (|s| s.work_disk_bytes = Some(MIB), SpecError::WorkDiskTooSmall { asked_bytes: MIB }),
            (
                |s| s.work_disk_bytes = Some(u64::MAX),
                SpecError::DiskTooLarge { asked_bytes: u64::MAX },
            ),
            (|s| s.timeout_ms = Some(0), SpecError::NoTime),
            (
                |s| drop(s.env.insert("A=B".into(), String::new())),
                SpecError::EnvironmentName { name: "A=B".into() },
            ),
            (
                |s| drop(s.env.insert("A".into(), "\0".into())),
                SpecError::NullByte { what: "the environment" },
            ),
            (
                |s| drop(s.labels.insert("a,b".into(), String::new())),
                SpecError::LabelKey { key: "a,b".into() },
            ),
            (|s| s.command.push("\0".into()), SpecError::NullByte { what: "the command" }),
            (|s| s.user = Some("a\0".into()), SpecError::NullByte { what: "the user" }),
            (
                |s| s.command.push("x".repeat(MAX_TEXT_BYTES)),
                SpecError::TooLong { what: "the command" },
            ),
        ];
        for (change, want) in cases {
            let mut spec = any_spec();
            change(&mut spec);
            assert_eq!(check(&spec, &HOST), Err(want));
        }
    }

    #[test]
    fn many_cpus_end_at_the_fixed_limit() {
        let host = HostCapacity { cpus: 100, ..HOST };
        let at = |cpus| check(&VmSpec { cpus, ..any_spec() }, &host);
        assert_eq!(at(64), Ok(()));
        assert_eq!(at(65), Err(SpecError::Cpus { asked: 65, most: 64 }));
    }

    #[test]
    fn the_disk_holds_the_image() {
        let image = 10 * GIB;
        assert_eq!(disk_bytes(None, GIB), Ok(DEFAULT_DISK_BYTES));
        assert_eq!(disk_bytes(None, image), Ok(image), "the image is larger than the default");
        assert_eq!(disk_bytes(Some(image), image), Ok(image));
        assert_eq!(disk_bytes(Some(image + 1), image), Ok(image + MIB), "whole MiB");
        assert_eq!(
            disk_bytes(Some(image - 1), image),
            Err(SpecError::DiskTooSmall { asked_bytes: image - 1, image_bytes: image })
        );
    }

    #[test]
    fn a_refusal_says_what_to_type() {
        let problem =
            Problem::from(SpecError::DiskTooSmall { asked_bytes: 1, image_bytes: 8 * GIB });
        assert_eq!(problem.code, ErrorCode::InvalidArgument);
        assert_eq!(problem.hint.as_deref(), Some("banger run --disk 8192M, or leave --disk out"));
    }

    #[test]
    fn the_vms_own_environment_wins() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
        };
        let env = environment(
            &map(&[("PATH", "image"), ("LANG", "image"), ("A", "image")]),
            &map(&[("LANG", "vm"), ("https_proxy", "vm")]),
            &map(&[("https_proxy", "session"), ("no_proxy", "session"), ("A", "session")]),
        );
        assert_eq!(
            env,
            map(&[
                ("A", "session"),
                ("LANG", "vm"),
                ("PATH", "image"),
                ("https_proxy", "vm"),
                ("no_proxy", "session"),
            ])
        );
    }
}
