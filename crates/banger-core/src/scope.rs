//! Whether a VM's processes leave the control group of whoever starts them for a systemd scope of
//! their own.
//!
//! A VM must outlive its daemon. Stopping a service ends what is in its control group; a scope of its
//! own is not ended by that. But scopes of a user's manager end with that manager, at the last logout
//! of a user who does not linger, and a login session mostly does not: logind leaves what runs in it.
//! So a user's VM leaves only what ends sooner than a session does: the user's own services.

/// Where a shim finds itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Surroundings<'a> {
    /// The user.
    pub uid: u32,
    /// Whether a manager that could make scopes for this user can be reached.
    pub has_manager: bool,
    /// The control group: `/user.slice/user-1000.slice/session-1.scope`.
    pub cgroup: &'a str,
}

/// Whether a scope of its own is the better place.
#[must_use]
pub fn wants_scope(around: Surroundings<'_>) -> bool {
    let own_manager = format!("/user@{}.service/", around.uid);
    around.has_manager && (around.uid == 0 || around.cgroup.contains(&own_manager))
}

/// The scope's name.
#[must_use]
pub fn unit_name(vm_id: &str) -> String {
    format!("banger-vm-{vm_id}.scope")
}

/// The control group in the contents of `/proc/PID/cgroup`, as systemd sees it.
#[must_use]
pub fn cgroup_in(text: &str) -> &str {
    let path = |line: &'_ str| line.splitn(3, ':').nth(2).unwrap_or_default().len();
    let found = text
        .lines()
        .find(|line| line.starts_with("0::"))
        .or_else(|| text.lines().find(|line| line.contains(":name=systemd:")));
    found.map_or("", |line| &line[line.len() - path(line)..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_taken_where_it_lives_longer() {
        const SESSION: &str = "/user.slice/user-1000.slice/session-1.scope";
        const SERVICE: &str =
            "/user.slice/user-1000.slice/user@1000.service/app.slice/bangerd.service";
        let user =
            |has_manager, cgroup| wants_scope(Surroundings { uid: 1000, has_manager, cgroup });
        assert!(user(true, SERVICE), "else stopping the service would end it");
        assert!(!user(true, SESSION), "a session may last longer than the user's manager");
        assert!(!user(false, SERVICE), "nobody would make it");
        let root = Surroundings { uid: 0, has_manager: true, cgroup: SESSION };
        assert!(wants_scope(root), "the system's manager is always there");
        assert!(!wants_scope(Surroundings { has_manager: false, ..root }));
    }

    #[test]
    fn the_control_group_is_read() {
        let cases = [
            ("0::/user.slice\n", "/user.slice"),
            ("12:cpu:/a\n1:name=systemd:/b/c.scope\n0::/d:e\n", "/d:e"),
            ("12:cpu:/a\n1:name=systemd:/b/c.scope\n", "/b/c.scope"),
            ("", ""),
            ("nonsense", ""),
        ];
        for (text, want) in cases {
            assert_eq!(cgroup_in(text), want, "{text:?}");
        }
    }

    #[test]
    fn scopes_are_named_by_the_vm() {
        assert_eq!(unit_name("0123"), "banger-vm-0123.scope");
    }
}
