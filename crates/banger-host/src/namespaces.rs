//! The namespaces of a shim: user, process and mount.
//!
//! A shim must be process 1 of its own process namespace, because that is what makes the kernel end
//! everything of a VM when the shim ends. A threaded process cannot leave its user namespace, so
//! [`enter_and_exec`] is called first thing in a fresh process, and the shim proper is what it
//! executes.

use std::convert::Infallible;
use std::ffi::CString;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Pid, Uid, fork, getegid, geteuid};

use banger_api::shim::JailUser;

/// Why a shim could not get namespaces of its own.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The kernel refused a step.
    #[error("cannot {what}")]
    Step {
        /// The step, as a verb and its object.
        what: &'static str,
        /// Why.
        #[source]
        source: Errno,
    },
    /// A file of `/proc` could not be written.
    #[error("cannot write the id maps of the user namespace")]
    IdMap(#[source] std::io::Error),
}

fn step(what: &'static str) -> impl FnOnce(Errno) -> NamespaceError {
    move |source| NamespaceError::Step { what, source }
}

/// Moves into new user, process and mount namespaces and executes `program` there as process 1.
///
/// The calling process exits as soon as process 1 exists. Inside, the caller is root; as real root,
/// `jail_user` exists inside under its own number, for the VMM to become. Open descriptors without
/// close-on-exec stay open.
///
/// # Errors
/// [`NamespaceError`] for whatever the kernel refuses, in the calling process or in process 1.
pub fn enter_and_exec(
    program: &Path,
    arguments: &[&str],
    jail_user: Option<JailUser>,
) -> Result<Infallible, NamespaceError> {
    let maps = IdMaps::for_caller(geteuid(), getegid(), jail_user);
    unshare_with_maps(&maps)?;
    // Slave, so that the shim's mounts stay its own and it keeps no file system of the host busy.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .map_err(step("detach from the host's mounts"))?;
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { fork() }.map_err(step("start process 1 of the namespace"))? {
        ForkResult::Parent { .. } => std::process::exit(0),
        ForkResult::Child => {}
    }
    let no_traps = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), no_traps, None::<&str>)
        .map_err(step("mount /proc of the namespace"))?;
    exec(program, arguments)
}

/// The contents of `uid_map` and `gid_map`.
#[derive(Debug, PartialEq, Eq)]
struct IdMaps {
    uid: String,
    gid: String,
    /// Whether somebody with privilege over the parent namespace must write them.
    privileged: bool,
}

impl IdMaps {
    fn for_caller(uid: Uid, gid: Gid, jail_user: Option<JailUser>) -> Self {
        match jail_user {
            // The map must differ from the identity: pasta takes that for the initial namespace and
            // would become `nobody`, who cannot open the namespace file.
            Some(jail) if uid.is_root() => Self {
                uid: format!("0 0 1\n{0} {0} 1\n", jail.uid),
                gid: format!("0 0 1\n{0} {0} 1\n", jail.gid),
                privileged: true,
            },
            _ => {
                Self { uid: format!("0 {uid} 1\n"), gid: format!("0 {gid} 1\n"), privileged: false }
            }
        }
    }

    fn write_for(&self, process: &str) -> std::io::Result<()> {
        if !self.privileged {
            std::fs::write(format!("/proc/{process}/setgroups"), "deny")?;
        }
        std::fs::write(format!("/proc/{process}/uid_map"), &self.uid)?;
        std::fs::write(format!("/proc/{process}/gid_map"), &self.gid)
    }
}

fn unshare_with_maps(maps: &IdMaps) -> Result<(), NamespaceError> {
    let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID;
    if !maps.privileged {
        unshare(flags).map_err(step("create user, mount and process namespaces"))?;
        return maps.write_for("self").map_err(NamespaceError::IdMap);
    }
    // More than one's own id can be mapped only from outside: a child that stays there does it.
    let (mut ready, mut go) = std::io::pipe().map_err(NamespaceError::IdMap)?;
    let this = Pid::this();
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { fork() }.map_err(step("start a helper"))? {
        ForkResult::Child => {
            drop(go);
            let unshared = ready.read_exact(&mut [0]).is_ok();
            let written = unshared && maps.write_for(&this.to_string()).is_ok();
            std::process::exit(i32::from(!written));
        }
        ForkResult::Parent { child } => {
            unshare(flags).map_err(step("create user, mount and process namespaces"))?;
            go.write_all(&[1]).map_err(NamespaceError::IdMap)?;
            match waitpid(child, None).map_err(step("wait for a helper"))? {
                WaitStatus::Exited(_, 0) => Ok(()),
                _ => Err(NamespaceError::IdMap(std::io::ErrorKind::PermissionDenied.into())),
            }
        }
    }
}

fn exec(program: &Path, arguments: &[&str]) -> Result<Infallible, NamespaceError> {
    let c_string = |bytes: &[u8]| CString::new(bytes).map_err(|_| Errno::EINVAL);
    let run = || {
        let program = c_string(program.as_os_str().as_bytes())?;
        let mut argv = vec![program.clone()];
        for argument in arguments {
            argv.push(c_string(argument.as_bytes())?);
        }
        nix::unistd::execv(&program, &argv)
    };
    run().map_err(step("execute the shim in its namespaces"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_becomes_root_inside_and_root_keeps_a_place_for_the_jailed() {
        let jail = Some(JailUser { uid: 991, gid: 990 });
        let user = IdMaps::for_caller(Uid::from_raw(1000), Gid::from_raw(100), jail);
        assert_eq!((user.uid.as_str(), user.gid.as_str()), ("0 1000 1\n", "0 100 1\n"));
        assert!(!user.privileged);
        let root = IdMaps::for_caller(Uid::from_raw(0), Gid::from_raw(0), jail);
        assert_eq!(root.uid, "0 0 1\n991 991 1\n");
        assert_eq!(root.gid, "0 0 1\n990 990 1\n");
        assert!(root.privileged);
    }
}
