//! The namespaces that a tool runs in, by way of util-linux's `unshare`.
//!
//! `unshare --fork --kill-child` makes the tool PID 1 of its own PID namespace and gives it a
//! parent-death signal of its own. We give one to `unshare`. So the end of the banger thread that
//! waits for the tool ends `unshare`, that ends the tool, and the end of PID 1 ends whatever the
//! tool has started, however far it has daemonised.

use std::ffi::OsString;

/// How a tool is kept apart from the rest of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Only a process group of its own. For programs that start nothing that outlives them.
    Group,
    /// Its own PID namespace, as the same user. For programs with children of their own.
    Processes,
    /// Its own PID and mount namespaces, as root of a user namespace to which the caller's
    /// subordinate ids are mapped: inside, it may own files as any user. If banger runs as root, it
    /// is root as it is. Files made by other ids inside can only be removed inside again.
    Root,
}

/// The program and arguments that put a tool into its namespaces; None runs it as it is.
pub(super) fn wrapper(isolation: Isolation, is_root: bool) -> Option<Vec<OsString>> {
    let user_namespace: &[&str] = match (isolation, is_root) {
        (Isolation::Group, _) => return None,
        (_, true) => &[],
        (Isolation::Processes, false) => &["--map-current-user"],
        (Isolation::Root, false) => &["--map-root-user", "--map-auto"],
    };
    let mut words = vec!["unshare"];
    words.extend(user_namespace);
    words.extend(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--"]);
    Some(words.into_iter().map(OsString::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(isolation: Isolation, is_root: bool) -> String {
        let words = wrapper(isolation, is_root).unwrap_or_default();
        words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn root_needs_no_user_namespace() {
        let plain = "unshare --pid --fork --kill-child --mount --mount-proc --";
        assert_eq!(words(Isolation::Group, false), "");
        assert_eq!(words(Isolation::Processes, true), plain);
        assert_eq!(words(Isolation::Root, true), plain);
    }

    #[test]
    fn a_user_becomes_root_of_its_subordinate_ids() {
        let rest = "--pid --fork --kill-child --mount --mount-proc --";
        assert_eq!(
            words(Isolation::Root, false),
            format!("unshare --map-root-user --map-auto {rest}")
        );
        assert_eq!(
            words(Isolation::Processes, false),
            format!("unshare --map-current-user {rest}")
        );
    }
}
