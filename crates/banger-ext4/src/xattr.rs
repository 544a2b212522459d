//! Extended attributes: in the inode as far as they fit, the others in one block.

use std::collections::BTreeMap;

use crate::checksum::Checksum;
use crate::error::Error;
use crate::fields::{set_u16, set_u32, u16_at, u32_at};
use crate::{BLOCK_BYTES, acl, inode};

/// First four bytes of what is in an inode, and of a block.
const MAGIC: u32 = 0xea02_0000;
/// What is before the entries in an inode: the magic number.
const INODE_HEADER_BYTES: usize = 4;
/// What is before the entries in a block.
const BLOCK_HEADER_BYTES: usize = 32;
const ENTRY_HEADER_BYTES: usize = 16;
/// Entries end with as many zeros.
const END_BYTES: usize = 4;
/// Longest name that Linux passes on.
const MAX_NAME: usize = 255;
const CHECKSUM_AT: usize = 16;

const ACL_ACCESS: u8 = 2;
const ACL_DEFAULT: u8 = 3;
/// Beginnings of names, and the numbers that stand for them.
const PREFIXES: &[(u8, &[u8])] = &[(1, b"user."), (4, b"trusted."), (6, b"security.")];
/// Names that are all prefix.
const WHOLE: &[(u8, &[u8])] =
    &[(ACL_ACCESS, b"system.posix_acl_access"), (ACL_DEFAULT, b"system.posix_acl_default")];

pub(crate) type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// Check that a file of the disks that this crate writes can have these attributes.
///
/// # Errors
/// [`Error::BadXattr`] with the first that cannot be stored: its name does not begin with `user.`,
/// `trusted.` or `security.` and is not that of an access control list, its value is no such list,
/// or there is no room for all of them.
pub fn check_xattrs(xattrs: &Xattrs) -> Result<(), Error> {
    Stored::new(xattrs).map(|_| ())
}

/// An attribute as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Entry<'a> {
    /// What the kernel sorts by: first this,
    prefix: u8,
    /// then this,
    name_bytes: usize,
    /// then this.
    name: &'a [u8],
    value: Vec<u8>,
}

impl<'a> Entry<'a> {
    fn new(name: &'a [u8], value: &[u8]) -> Result<Self, Error> {
        let bad = |why| bad(name, why);
        let (prefix, suffix) =
            split(name).ok_or_else(|| bad("Linux knows no attribute of such a name"))?;
        if name.len() > MAX_NAME || suffix.contains(&0) {
            return Err(bad("its name is too long or has a zero byte"));
        }
        let value = if matches!(prefix, ACL_ACCESS | ACL_DEFAULT) {
            acl::to_disk(value).ok_or_else(|| bad("it is not a valid access control list"))?
        } else {
            value.to_vec()
        };
        Ok(Self { prefix, name_bytes: suffix.len(), name: suffix, value })
    }

    fn header_bytes(&self) -> usize {
        ENTRY_HEADER_BYTES + self.name.len().next_multiple_of(4)
    }

    /// The room it takes.
    fn bytes(&self) -> usize {
        self.header_bytes() + self.value.len().next_multiple_of(4)
    }

    fn hash(&self) -> u32 {
        let name =
            self.name.iter().fold(0_u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
        self.value.chunks(4).fold(name, |hash, word| {
            let mut bytes = [0; 4];
            bytes[..word.len()].copy_from_slice(word);
            hash.rotate_left(16) ^ u32::from_le_bytes(bytes)
        })
    }
}

fn bad(name: &[u8], why: &'static str) -> Error {
    Error::BadXattr { name: String::from_utf8_lossy(name).into_owned(), why }
}

/// The number of the prefix, and the rest of the name.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    if let Some((number, _)) = WHOLE.iter().find(|(_, whole)| *whole == name) {
        return Some((*number, &[]));
    }
    PREFIXES
        .iter()
        .find_map(|(number, prefix)| Some((*number, name.strip_prefix(*prefix)?)))
        .filter(|(_, suffix)| !suffix.is_empty())
}

/// The attributes of a file as they are stored.
#[derive(Debug)]
pub(crate) struct Stored {
    /// What is in the inode.
    pub(crate) inode: [u8; inode::XATTR_BYTES],
    /// The block, which lacks its checksum.
    pub(crate) block: Option<Box<[u8; BLOCK_BYTES]>>,
}

impl Stored {
    pub(crate) fn new(xattrs: &Xattrs) -> Result<Self, Error> {
        let mut stored = Self { inode: [0; inode::XATTR_BYTES], block: None };
        if xattrs.is_empty() {
            return Ok(stored);
        }
        let mut entries = Vec::with_capacity(xattrs.len());
        for (name, value) in xattrs {
            entries.push(Entry::new(name, value)?);
        }
        let (in_inode, in_block) = divide(entries)?;
        if !in_inode.is_empty() {
            set_u32(&mut stored.inode, 0, MAGIC);
            write(&mut stored.inode[INODE_HEADER_BYTES..], 0, &in_inode, false);
        }
        if !in_block.is_empty() {
            let mut block = Box::new([0; BLOCK_BYTES]);
            set_u32(&mut *block, 0, MAGIC);
            // One file has it, and it is one block.
            set_u32(&mut *block, 4, 1);
            set_u32(&mut *block, 8, 1);
            set_u32(&mut *block, 12, block_hash(&in_block));
            write(&mut block[BLOCK_HEADER_BYTES..], BLOCK_HEADER_BYTES, &in_block, true);
            stored.block = Some(block);
        }
        Ok(stored)
    }
}

/// Which go into the inode, and which into the block.
fn divide(mut entries: Vec<Entry<'_>>) -> Result<(Vec<Entry<'_>>, Vec<Entry<'_>>), Error> {
    let room = inode::XATTR_BYTES - INODE_HEADER_BYTES - END_BYTES;
    let block_room = BLOCK_BYTES - BLOCK_HEADER_BYTES - END_BYTES;
    // What the kernel itself asks for, at every access or start of a program, is best in the inode.
    // But if then not all fits, the largest that do must be there.
    let by_use = |entry: &Entry<'_>| usize::from(!matches!(entry.prefix, 2 | 3 | 6));
    let by_size = |entry: &Entry<'_>| usize::MAX - entry.bytes();
    for order in [&by_use as &dyn Fn(&Entry<'_>) -> usize, &by_size] {
        entries.sort();
        entries.sort_by_key(order);
        let mut left = room;
        let (mut in_inode, mut in_block): (Vec<_>, Vec<_>) = entries.drain(..).partition(|entry| {
            let fits = entry.bytes() <= left;
            left -= if fits { entry.bytes() } else { 0 };
            fits
        });
        in_inode.sort();
        in_block.sort();
        if in_block.iter().map(Entry::bytes).sum::<usize>() <= block_room {
            return Ok((in_inode, in_block));
        }
        entries.extend(in_inode.into_iter().chain(in_block));
    }
    let largest = entries.into_iter().max_by_key(Entry::bytes).expect("there are some");
    Err(bad(&full_name(largest.prefix, largest.name), "the attributes of one file have 4 KiB"))
}

/// Write entries from the beginning on, and their values from the end. `base` is where the region is
/// in what offsets are counted from.
fn write(region: &mut [u8], base: usize, entries: &[Entry<'_>], hashed: bool) {
    let short = |number: usize| u16::try_from(number).expect("it is within a block");
    let (mut at, mut end) = (0, region.len());
    for entry in entries {
        let name = at + ENTRY_HEADER_BYTES;
        region[at] = u8::try_from(entry.name.len()).expect("checked with the name");
        region[at + 1] = entry.prefix;
        if !entry.value.is_empty() {
            end -= entry.value.len().next_multiple_of(4);
            region[end..end + entry.value.len()].copy_from_slice(&entry.value);
            set_u16(region, at + 2, short(base + end));
        }
        set_u32(region, at + 8, short(entry.value.len()).into());
        // The kernel leaves it out in inodes.
        set_u32(region, at + 12, if hashed { entry.hash() } else { 0 });
        region[name..name + entry.name.len()].copy_from_slice(entry.name);
        at += entry.header_bytes();
    }
}

/// The hash that blocks are compared by; 0 says that this one is not to be shared.
fn block_hash(entries: &[Entry<'_>]) -> u32 {
    let hashes = || entries.iter().map(Entry::hash);
    if hashes().any(|hash| hash == 0) {
        return 0;
    }
    hashes().fold(0_u32, |all, hash| all.rotate_left(16) ^ hash)
}

/// Whether the checksum of a block of attributes is right.
pub(crate) fn block_is_sound(bytes: &[u8], block: u64, seed: Checksum) -> bool {
    block_checksum(bytes, block, seed).is_at(bytes, CHECKSUM_AT)
}

fn block_checksum(bytes: &[u8], block: u64, seed: Checksum) -> Checksum {
    seed.with(&block.to_le_bytes())
        .with(&bytes[..CHECKSUM_AT])
        .with(&[0; 4])
        .with(&bytes[CHECKSUM_AT + 4..])
}

/// Put the checksum into a block of attributes.
pub(crate) fn seal(bytes: &mut [u8; BLOCK_BYTES], block: u64, seed: Checksum) {
    let checksum = block_checksum(bytes, block, seed);
    set_u32(bytes, CHECKSUM_AT, checksum.value());
}

/// The attributes in an inode, from the end of its fields on. What is not there does not begin with
/// the magic number.
pub(crate) fn read_inode(region: &[u8], xattrs: &mut Xattrs) -> Result<(), Damage> {
    if region.len() < INODE_HEADER_BYTES || u32_at(region, 0) != MAGIC {
        return Ok(());
    }
    read(&region[INODE_HEADER_BYTES..], 0, xattrs)
}

/// The attributes in a block.
pub(crate) fn read_block(bytes: &[u8], xattrs: &mut Xattrs) -> Result<(), Damage> {
    if u32_at(bytes, 0) != MAGIC || u32_at(bytes, 8) != 1 {
        return Err(Damage::Wrong("a block of attributes is none"));
    }
    read(&bytes[BLOCK_HEADER_BYTES..], BLOCK_HEADER_BYTES, xattrs)
}

/// Why attributes cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damage {
    /// They make no sense.
    Wrong(&'static str),
    /// A value is in an inode of its own.
    ValueInInode,
}

fn read(region: &[u8], base: usize, xattrs: &mut Xattrs) -> Result<(), Damage> {
    let mut rest = region;
    loop {
        let wrong = Damage::Wrong("its attributes do not end");
        if u32::from_le_bytes(*rest.first_chunk().ok_or(wrong)?) == 0 {
            return Ok(());
        }
        let (header, after) = rest.split_first_chunk::<ENTRY_HEADER_BYTES>().ok_or(wrong)?;
        let name = after.get(..usize::from(header[0])).ok_or(wrong)?;
        rest = after.get(name.len().next_multiple_of(4)..).ok_or(wrong)?;
        if u32_at(header, 4) != 0 {
            return Err(Damage::ValueInInode);
        }
        let value = read_value(region, base, header)?;
        let (name, value) = read_entry(header[1], name, value)?;
        if xattrs.insert(name.into(), value.into()).is_some() {
            return Err(Damage::Wrong("an attribute is there twice"));
        }
    }
}

fn read_value<'a>(
    region: &'a [u8],
    base: usize,
    header: &[u8; ENTRY_HEADER_BYTES],
) -> Result<&'a [u8], Damage> {
    let wrong = Damage::Wrong("the value of an attribute is not where it should be");
    let length = usize::try_from(u32_at(header, 8)).map_err(|_| wrong)?;
    if length == 0 {
        return Ok(&[]);
    }
    let start = usize::from(u16_at(header, 2)).checked_sub(base).ok_or(wrong)?;
    let end = start.checked_add(length).ok_or(wrong)?;
    region.get(start..end).ok_or(wrong)
}

fn read_entry(prefix: u8, suffix: &[u8], value: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Damage> {
    let name = full_name(prefix, suffix);
    if split(&name) != Some((prefix, suffix)) || name.len() > MAX_NAME || suffix.contains(&0) {
        return Err(Damage::Wrong("an attribute has a name that cannot be"));
    }
    let value = match prefix {
        ACL_ACCESS | ACL_DEFAULT => {
            acl::from_disk(value).ok_or(Damage::Wrong("an access control list makes no sense"))?
        }
        _ => value.to_vec(),
    };
    Ok((name, value))
}

fn full_name(prefix: u8, suffix: &[u8]) -> Vec<u8> {
    let known = PREFIXES.iter().chain(WHOLE).find(|(number, _)| *number == prefix);
    [known.map_or(&b""[..], |(_, prefix)| prefix), suffix].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn xattrs(list: &[(&str, usize)]) -> Xattrs {
        list.iter()
            .map(|(name, length)| (name.as_bytes().into(), vec![7; *length].into()))
            .collect()
    }

    /// Store and read. Answers how many are in the inode.
    fn round_trip(xattrs: &Xattrs) -> usize {
        let stored = Stored::new(xattrs).expect("they fit");
        let mut found = Xattrs::new();
        read_inode(&stored.inode, &mut found).expect("it is sound");
        let in_inode = found.len();
        if let Some(block) = stored.block {
            read_block(&*block, &mut found).expect("it is sound");
        }
        assert_eq!(found, *xattrs);
        in_inode
    }

    #[test]
    fn what_the_kernel_asks_for_is_in_the_inode() {
        assert_eq!(round_trip(&xattrs(&[])), 0);
        assert_eq!(round_trip(&xattrs(&[("user.a", 0)])), 1);
        let list = xattrs(&[("security.capability", 20), ("trusted.b", 20), ("user.a", 20)]);
        assert_eq!(round_trip(&list), 2);
        let list = xattrs(&[("security.capability", 20), ("user.a", 50)]);
        let stored = Stored::new(&list).expect("they fit");
        let mut found = Xattrs::new();
        read_inode(&stored.inode, &mut found).expect("it is sound");
        assert!(found.contains_key(&b"security.capability"[..]));
    }

    #[test]
    fn all_the_room_there_is_can_be_used() {
        // 88 bytes in the inode, 4060 in the block.
        let block = 4060 - 20;
        assert_eq!(round_trip(&xattrs(&[("user.a", block), ("user.b", 68)])), 1);
        let list = xattrs(&[("user.a", block), ("security.b", 36), ("user.c", 68)]);
        assert!(check_xattrs(&list).is_err());
        // In the order of use, the first in the inode would leave too much for the block.
        let list = xattrs(&[("user.a", block - 40), ("security.b", 20), ("user.c", 68)]);
        assert_eq!(round_trip(&list), 1);
        let error = check_xattrs(&xattrs(&[("user.a", block + 1)])).expect_err("it is too long");
        assert!(error.to_string().contains("4 KiB"), "{error}");
    }

    #[test]
    fn names_must_be_known() {
        for name in ["user.", "security", "system.data", "com.apple.quarantine", "user.a\0b"] {
            let error = check_xattrs(&xattrs(&[(name, 1)])).expect_err("it is not known");
            assert!(matches!(error, Error::BadXattr { .. }), "{error}");
        }
        assert!(check_xattrs(&xattrs(&[("system.posix_acl_access", 4)])).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_read(bytes in prop::collection::vec(0_u8..8, 96), edit in 0_usize..96) {
            let mut found = Xattrs::new();
            let _ = read(&bytes, 32, &mut found);
            let sound = Stored::new(&xattrs(&[("user.a", 20), ("user.b", 20)])).expect("they fit");
            let mut region = sound.inode;
            region[edit] = bytes[0];
            let _ = read_inode(&region, &mut found);
        }
    }
}
