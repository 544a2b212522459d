//! The jail's user: nobody in particular, with nothing to gain.

use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, getegid, geteuid, setgroups, setresgid, setresuid};

use super::{JailSpec, StepError, proc_self};

/// What the jailed program sees as its own user and group. It maps to the user who runs banger, or
/// to the system user of the jail.
const INSIDE_ID: u32 = 1000;

/// The highest capability number that a kernel could have.
const MAX_CAPABILITY: libc::c_ulong = 63;

pub(super) fn drop_privileges(spec: &JailSpec) -> Result<(), StepError> {
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

/// After this no exec can give a capability.
fn drop_bounding_set() {
    for capability in 0..=MAX_CAPABILITY {
        // SAFETY: PR_CAPBSET_DROP takes a number and touches no memory. Its result is not needed:
        // it fails only for numbers that are no capability.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
}
