//! Which extended attributes of a layer a file is given: all that a file system can have.
//!
//! Unpacking on a host, one would leave out those of overlay file systems (`trusted.overlay.*`),
//! which would mean something to the host's. In a guest they mean nothing, unless it has containers
//! of its own: then an image made of it has to keep what hides lower directories in theirs.

use banger_ext4::check_xattrs;

use super::pax::Xattrs;

/// What Linux lets file systems keep, and ext4 does.
const SPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
/// Access control lists are the only ones of the system's own that ext4 keeps.
const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

/// Those of `xattrs` that a file is to have. Others nobody could see.
pub(super) fn kept(mut xattrs: Xattrs) -> Result<Xattrs, String> {
    xattrs.retain(|name, _| {
        let in_space =
            SPACES.iter().any(|space| name.len() > space.len() && name.starts_with(space));
        in_space || ACLS.contains(&&name[..])
    });
    // Later, nobody would know which file it was.
    check_xattrs(&xattrs).map_err(|error| error.to_string())?;
    Ok(xattrs)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is kept of attributes of these names.
    fn after(names: &[&str]) -> Result<Vec<String>, String> {
        let xattrs = names.iter().map(|name| (name.as_bytes().into(), b"value"[..].into()));
        let kept = kept(xattrs.collect())?;
        Ok(kept.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect())
    }

    #[test]
    fn what_nobody_could_see_is_left_out() {
        let good = ["security.capability", "trusted.overlay.opaque", "user.y"];
        let bad = ["", "user.", "nothing"];
        let all = [&good[..], &bad, &["system.nfs4_acl", "system.posix_acl_accessx"]].concat();
        assert_eq!(after(&all), Ok(good.map(str::to_owned).to_vec()));
    }

    #[test]
    fn impossible_ones_are_refused() {
        assert!(after(&["user.a\0b"]).is_err());
        assert!(after(&["system.posix_acl_access"]).is_err());
        assert!(after(&[&format!("user.{}", "x".repeat(251))]).is_err());
        assert!(after(&[&format!("user.{}", "x".repeat(250))]).is_ok());
    }
}
