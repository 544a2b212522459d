//! POSIX access control lists: system calls, tar and OCI layers have them in one form, ext4 stores
//! them in another.

use crate::fields::{u16_at, u32_at};

/// Version of the form of the system calls.
const CALL_VERSION: u32 = 2;
/// Version of the form on disk.
const DISK_VERSION: u32 = 1;
const CALL_ENTRY_BYTES: usize = 8;
/// On disk, ids are only where they say something.
const SHORT_ENTRY_BYTES: usize = 4;
/// What there is of an id in entries that are about nobody in particular.
const NO_ID: u32 = u32::MAX;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

fn names_somebody(tag: u16) -> bool {
    matches!(tag, USER | GROUP)
}

/// From the form of the system calls to that on disk. None if it is not a list that Linux accepts.
pub(crate) fn to_disk(value: &[u8]) -> Option<Vec<u8>> {
    let (version, entries) = value.split_first_chunk::<4>()?;
    let (entries, rest) = entries.as_chunks::<CALL_ENTRY_BYTES>();
    if u32::from_le_bytes(*version) != CALL_VERSION || !rest.is_empty() {
        return None;
    }
    let entries =
        entries.iter().map(|entry| (u16_at(entry, 0), u16_at(entry, 2), u32_at(entry, 4)));
    if !is_valid(entries.clone()) {
        return None;
    }
    let mut disk = DISK_VERSION.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        disk.extend(tag.to_le_bytes());
        disk.extend(permissions.to_le_bytes());
        if names_somebody(tag) {
            disk.extend(id.to_le_bytes());
        }
    }
    Some(disk)
}

/// From the form on disk to that of the system calls. None if it is no list.
pub(crate) fn from_disk(stored: &[u8]) -> Option<Vec<u8>> {
    let (version, mut rest) = stored.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != DISK_VERSION {
        return None;
    }
    let mut value = CALL_VERSION.to_le_bytes().to_vec();
    while !rest.is_empty() {
        let (entry, after) = rest.split_first_chunk::<SHORT_ENTRY_BYTES>()?;
        rest = after;
        let mut id = NO_ID.to_le_bytes();
        if names_somebody(u16_at(entry, 0)) {
            let (named, after) = rest.split_first_chunk::<4>()?;
            (id, rest) = (*named, after);
        }
        value.extend(entry);
        value.extend(id);
    }
    Some(value)
}

/// Whether Linux would set it: owner, users, group, groups, mask, others, in this order; a mask if
/// anybody is named.
fn is_valid(entries: impl Iterator<Item = (u16, u16, u32)>) -> bool {
    let mut seen = 0;
    for (tag, permissions, id) in entries {
        let (before, again) = match tag {
            USER_OBJ => (0, false),
            USER => (USER_OBJ, true),
            GROUP_OBJ => (USER_OBJ, false),
            GROUP => (USER_OBJ | GROUP_OBJ, true),
            MASK => (USER_OBJ | GROUP_OBJ, false),
            OTHER => (USER_OBJ | GROUP_OBJ, false),
            _ => return false,
        };
        let later = seen & !(tag | (tag - 1)) != 0;
        let missing = seen & before != before;
        let repeated = seen & tag != 0 && !again;
        if later || missing || repeated || permissions > 7 || (names_somebody(tag) && id == NO_ID) {
            return false;
        }
        seen |= tag;
    }
    let whole = USER_OBJ | GROUP_OBJ | OTHER;
    seen & whole == whole && (seen & (USER | GROUP) == 0 || seen & MASK != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = CALL_VERSION.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            value.extend(tag.to_le_bytes());
            value.extend(permissions.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }

    const FULL: &[(u16, u16, u32)] = &[
        (USER_OBJ, 6, NO_ID),
        (USER, 4, 1000),
        (USER, 6, 70_000),
        (GROUP_OBJ, 4, NO_ID),
        (GROUP, 0, 5),
        (MASK, 6, NO_ID),
        (OTHER, 0, NO_ID),
    ];

    #[test]
    fn lists_go_to_disk_and_back() {
        for entries in [FULL, &[FULL[0], FULL[3], FULL[6]]] {
            let value = list(entries);
            let stored = to_disk(&value).expect("it is valid");
            let named = entries.iter().filter(|(tag, ..)| names_somebody(*tag)).count();
            assert_eq!(stored.len(), 4 + 4 * entries.len() + 4 * named);
            assert_eq!(from_disk(&stored), Some(value));
        }
    }

    #[test]
    fn what_linux_refuses_is_refused() {
        let without = |at: usize| {
            let mut entries = FULL.to_vec();
            entries.remove(at);
            entries
        };
        for missing in [0, 3, 5, 6] {
            assert_eq!(to_disk(&list(&without(missing))), None, "{missing}");
        }
        for optional in [1, 2, 4] {
            assert!(to_disk(&list(&without(optional))).is_some(), "{optional}");
        }
        let mut swapped = FULL.to_vec();
        swapped.swap(0, 1);
        let twice = [FULL[0], FULL[0], FULL[3], FULL[6]];
        let unknown = [FULL[0], FULL[3], FULL[6], (0x40, 0, NO_ID)];
        let much = [(USER_OBJ, 8, NO_ID), FULL[3], FULL[6]];
        for entries in [&swapped[..], &twice, &unknown, &much, &[(0, 0, 0)], &[]] {
            assert_eq!(to_disk(&list(entries)), None, "{entries:?}");
        }
        let value = list(FULL);
        assert_eq!(to_disk(&value[..value.len() - 1]), None);
        assert_eq!(to_disk(&[]), None);
        assert_eq!(from_disk(&[1, 0, 0]), None);
        assert_eq!(from_disk(&[1, 0, 0, 0, 2, 0, 0, 0, 1]), None);
    }
}
