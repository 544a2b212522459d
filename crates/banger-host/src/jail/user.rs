//! The jail's user: nobody in particular, with nothing to gain.

use std::os::unix::fs::MetadataExt;

use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, User, getegid, geteuid, setgroups, setresgid, setresuid};

use banger_api::error::{ErrorCode, Problem};
use banger_api::shim::JailUser;

use super::{JailSpec, StepError, proc_self};

/// The system user that a VMM started by root becomes.
pub const SYSTEM_USER: &str = "banger";

/// What the jailed program sees as its own user and group. It maps to the user who runs banger, or
/// to the system user of the jail.
const INSIDE_ID: u32 = 1000;

/// The highest capability number that a kernel could have.
const MAX_CAPABILITY: libc::c_ulong = 63;

/// The system user of jails does not exist.
#[derive(Debug, thiserror::Error)]
#[error("VMs started by root run as the system user {SYSTEM_USER}, which does not exist")]
pub struct NoJailUser;

impl NoJailUser {
    /// The error as it travels.
    #[must_use]
    pub fn problem(&self) -> Problem {
        Problem::new(ErrorCode::HostNotPermitted, "no user to run the VMM as").because(self).hint(
            format!(
                "useradd --system --user-group --no-create-home --home-dir /nonexistent \
                 --shell /usr/sbin/nologin {SYSTEM_USER}"
            ),
        )
    }
}

/// The user that a VMM must become: none but the caller, unless that is root.
///
/// # Errors
/// [`NoJailUser`] if the caller is root and there is no such user.
pub fn system_user() -> Result<Option<JailUser>, NoJailUser> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let user = User::from_name(SYSTEM_USER).ok().flatten().ok_or(NoJailUser)?;
    // The one group it has must be the one that may use KVM.
    let gid = kvm_group().unwrap_or(user.gid.as_raw());
    Ok(Some(JailUser { uid: user.uid.as_raw(), gid }))
}

/// The group that may open `/dev/kvm`, if that is a privilege of a group.
fn kvm_group() -> Option<u32> {
    const GROUP_READS_AND_WRITES: u32 = 0o060;
    let device = std::fs::metadata("/dev/kvm").ok()?;
    let open_to_group = device.mode() & GROUP_READS_AND_WRITES == GROUP_READS_AND_WRITES;
    (open_to_group && device.gid() != 0).then(|| device.gid())
}

pub(super) fn drop_privileges(spec: &JailSpec) -> Result<(), StepError> {
    leave_session_keyring();
    if let Some(user) = spec.user {
        setgroups(&[])?;
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
        // A process that changed its user owns its /proc files only if it may be dumped. The exec
        // that follows decides anew.
        prctl::set_dumpable(true)?;
    }
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER)?;
    proc_self::write("setgroups", "deny")?;
    proc_self::write("uid_map", &format!("{INSIDE_ID} {uid} 1\n"))?;
    proc_self::write("gid_map", &format!("{INSIDE_ID} {gid} 1\n"))?;
    drop_bounding_set();
    prctl::set_no_new_privs()?;
    Ok(())
}

/// The session's keys (Kerberos tickets, keys of encrypted directories) stay outside: an own, empty
/// keyring takes their place.
fn leave_session_keyring() {
    const JOIN_SESSION_KEYRING: libc::c_ulong = 1;
    // SAFETY: with a null name this makes an anonymous keyring and touches no memory. It can fail
    // only where the kernel has no keys at all.
    unsafe {
        libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>());
    }
}

/// After this no exec can give a capability.
fn drop_bounding_set() {
    for capability in 0..=MAX_CAPABILITY {
        // SAFETY: PR_CAPBSET_DROP takes a number and touches no memory. Its result is not needed:
        // it fails only for numbers that are no capability.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
}
