//! Users and groups, read from the image's own `/etc/passwd` and `/etc/group`.
//!
//! By hand: the C library would load plug-ins of the image into this static program.

use std::path::Path;

use crate::files;

/// Most groups a process may have (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;
const DEFAULT_SHELL: &str = "/bin/sh";

/// The text of the two files; empty if the image has none.
#[derive(Debug, Default)]
pub struct Accounts {
    /// `/etc/passwd`.
    pub passwd: String,
    /// `/etc/group`.
    pub group: String,
}

/// Who a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
    /// The name; None for a number that no entry has.
    pub name: Option<String>,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
}

/// Why there is no such account.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccountError {
    /// Neither a name in `/etc/passwd` nor a number.
    #[error("the VM has no user {0:?}")]
    NoUser(String),
    /// Neither a name in `/etc/group` nor a number.
    #[error("the VM has no group {0:?}")]
    NoGroup(String),
}

impl Accounts {
    /// Reads both files. An image without them has only root and numbers.
    pub fn read() -> Self {
        let text = |path| files::read_text(Path::new(path)).unwrap_or_default();
        Self { passwd: text("/etc/passwd"), group: text("/etc/group") }
    }

    /// Resolves `user`, `uid`, `user:group` or `uid:gid`. A name wins over a number.
    pub fn resolve(&self, spec: &str) -> Result<Account, AccountError> {
        let (user, group) = match spec.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (spec, None),
        };
        let mut account = self.user(user)?;
        if let Some(group) = group {
            account.gid = self.gid(group)?;
            account.groups.clear();
        }
        Ok(account)
    }

    fn user(&self, user: &str) -> Result<Account, AccountError> {
        let number = user.parse::<u32>().ok();
        let entries = || self.passwd.lines().filter_map(Account::parse);
        let entry = entries()
            .find(|account| account.name.as_deref() == Some(user))
            .or_else(|| number.and_then(|uid| entries().find(|account| account.uid == uid)));
        if let Some(mut account) = entry {
            account.groups = self.groups_of(account.name.as_deref().unwrap_or_default());
            if !account.groups.contains(&account.gid) {
                account.groups.insert(0, account.gid);
            }
            return Ok(account);
        }
        match number {
            _ if user == "root" => Ok(Account::without_entry(0, Some(user))),
            Some(uid) => Ok(Account::without_entry(uid, None)),
            None => Err(AccountError::NoUser(user.to_owned())),
        }
    }

    fn gid(&self, group: &str) -> Result<u32, AccountError> {
        self.group
            .lines()
            .filter_map(parse_group)
            .find_map(|(name, gid, _)| (name == group).then_some(gid))
            .or_else(|| group.parse().ok())
            .ok_or_else(|| AccountError::NoGroup(group.to_owned()))
    }

    fn groups_of(&self, user: &str) -> Vec<u32> {
        self.group
            .lines()
            .filter_map(parse_group)
            .filter(|(_, _, members)| members.split(',').any(|member| member == user))
            .map(|(_, gid, _)| gid)
            .take(MAX_GROUPS)
            .collect()
    }
}

impl Account {
    /// Reads a line of `/etc/passwd`.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let text = |field: Option<&str>, default: &str| {
            field.filter(|text| !text.is_empty()).unwrap_or(default).to_owned()
        };
        let home = text(fields.nth(1), "/");
        let shell = text(fields.next(), DEFAULT_SHELL);
        Some(Self { uid, gid, groups: Vec::new(), name: Some(name.to_owned()), home, shell })
    }

    /// As containers have it: in group 0, at home in `/`.
    fn without_entry(uid: u32, name: Option<&str>) -> Self {
        Self {
            uid,
            gid: 0,
            groups: Vec::new(),
            name: name.map(str::to_owned),
            home: "/".to_owned(),
            shell: DEFAULT_SHELL.to_owned(),
        }
    }
}

/// Reads a line of `/etc/group`: name, id, members.
fn parse_group(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let name = fields.next()?;
    let gid = fields.nth(1)?.parse().ok()?;
    Some((name, gid, fields.next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/bash\n\
                     # a comment\n\
                     broken:x\n\
                     dev:x:1000:1000:Dev,,,:/home/dev:/bin/zsh\n\
                     42:x:77:77::/home/42:\n"
                .to_owned(),
            group: "root:x:0:\nsudo:x:27:dev,ann\ndev:x:1000:\ndocker:x:999:ann,dev\nbad\n"
                .to_owned(),
        }
    }

    #[test]
    fn names_and_numbers_lead_to_the_same_account() {
        let dev = accounts().resolve("dev").expect("there");
        assert_eq!((dev.uid, dev.gid, &dev.groups[..]), (1000, 1000, &[1000, 27, 999][..]));
        assert_eq!((dev.home.as_str(), dev.shell.as_str()), ("/home/dev", "/bin/zsh"));
        assert_eq!(accounts().resolve("1000").expect("there"), dev);
    }

    #[test]
    fn a_name_wins_over_a_number() {
        let account = accounts().resolve("42").expect("there");
        assert_eq!((account.uid, account.shell.as_str()), (77, "/bin/sh"));
    }

    #[test]
    fn a_group_replaces_all_groups() {
        for (spec, gid) in [("dev:sudo", 27), ("1000:27", 27), ("dev:4242", 4242)] {
            let account = accounts().resolve(spec).expect("there");
            assert_eq!((account.uid, account.gid, account.groups), (1000, gid, vec![]), "{spec}");
        }
    }

    #[test]
    fn numbers_need_no_entry() {
        let account = accounts().resolve("31337").expect("a number");
        assert_eq!((account.uid, account.gid, account.name), (31337, 0, None));
        assert_eq!(account.home, "/");
        assert_eq!(Accounts::default().resolve("root").expect("always").home, "/");
    }

    #[test]
    fn unknown_names_are_named() {
        let no_user = AccountError::NoUser("bob".to_owned());
        assert_eq!(accounts().resolve("bob"), Err(no_user.clone()));
        assert_eq!(accounts().resolve("bob:sudo"), Err(no_user));
        assert_eq!(accounts().resolve(""), Err(AccountError::NoUser(String::new())));
        assert_eq!(accounts().resolve("-1"), Err(AccountError::NoUser("-1".to_owned())));
        assert_eq!(accounts().resolve("dev:"), Err(AccountError::NoGroup(String::new())));
        assert_eq!(accounts().resolve("dev:x"), Err(AccountError::NoGroup("x".to_owned())));
    }
}
