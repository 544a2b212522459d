//! Whether a VM's processes leave the control group of whoever starts them for a systemd scope of
//! their own.
//!
//! A VM must outlive its daemon. Stopping a service ends what is in its control group, and logging
//! out may end what is in the session's; a scope of its own is ended by neither. But a user's scopes
//! end with the user's manager, which without lingering ends at the last logout, so there a session
//! is the better place.

/// Where a shim finds itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Surroundings<'a> {
    /// The user.
    pub uid: u32,
    /// Whether a manager that could make scopes for this user can be reached.
    pub has_manager: bool,
    /// Whether the user's manager outlives the user's sessions.
    pub lingers: bool,
    /// The control group: `/user.slice/user-1000.slice/session-1.scope`.
    pub cgroup: &'a str,
}

/// Whether a scope of its own is the better place.
#[must_use]
pub fn wants_scope(around: Surroundings<'_>) -> bool {
    let own_manager = format!("/user@{}.service/", around.uid);
    let outlives_logins = around.uid == 0 || around.lingers;
    around.has_manager && (outlives_logins || around.cgroup.contains(&own_manager))
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
        let user = |has_manager, lingers, cgroup| {
            wants_scope(Surroundings { uid: 1000, has_manager, lingers, cgroup })
        };
        assert!(user(true, true, SESSION), "logout may end the session's processes");
        assert!(user(true, true, SERVICE));
        assert!(user(true, false, SERVICE), "else stopping the service would end it");
        assert!(
            !user(true, false, SESSION),
            "the manager would end before the session's leftovers"
        );
        assert!(!user(false, true, SESSION), "nobody would make it");
        let root = Surroundings { uid: 0, has_manager: true, lingers: false, cgroup: SESSION };
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
