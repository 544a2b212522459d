//! From the root directory to every file.

use std::collections::HashMap;

use super::budget::Budget;
use super::map::{self, Claims, Mapping, blocks_of};
use super::node::Inode;
use super::{Limits, Reader, entries};
use crate::error::{Error, Place};
use crate::inode::format;
use crate::numbers::{LOST_FOUND_NAME, ROOT};
use crate::tree::{Content, Extent, Kind, Metadata, NodeId, Tree, TreeError};

/// Longest symbolic link in an inode, and the longest at all.
const FAST_LINK_BYTES: u64 = 59;
const MAX_LINK_BYTES: u64 = 4095;

/// Read the tree of a file system.
pub(super) fn tree(reader: &Reader, limits: &Limits) -> Result<Tree, Error> {
    let mut walk = Walk {
        reader,
        budget: Budget::new(*limits, reader.superblock.blocks),
        claims: Claims::default(),
        tree: Tree::new(),
        seen: HashMap::from([(ROOT, Tree::ROOT)]),
        pending: vec![(ROOT, Tree::ROOT)],
    };
    let root = Inode::read(reader, ROOT)?;
    if root.format != format::DIRECTORY {
        return Err(root.corrupt("the root is no directory"));
    }
    walk.budget.node()?;
    *walk.tree.metadata_mut(Tree::ROOT) = root.metadata(reader, &mut walk.budget)?;
    while let Some((number, id)) = walk.pending.pop() {
        walk.directory(number, id)?;
    }
    let Walk { mut tree, claims, .. } = walk;
    claims.check()?;
    if has_plain_lost_found(&tree) {
        tree.remove(Tree::ROOT, LOST_FOUND_NAME);
    }
    Ok(tree)
}

/// Whether `lost+found` is as `mke2fs` makes it, and empty.
fn has_plain_lost_found(tree: &Tree) -> bool {
    let Some(id) = tree.child(Tree::ROOT, LOST_FOUND_NAME) else { return false };
    let Metadata { mode, uid, gid, xattrs, .. } = &tree.node(id).metadata;
    tree.entries(id).is_some_and(std::collections::BTreeMap::is_empty)
        && (*mode, *uid, *gid) == (0o700, 0, 0)
        && xattrs.is_empty()
}

struct Walk<'a> {
    reader: &'a Reader,
    budget: Budget,
    claims: Claims,
    tree: Tree,
    seen: HashMap<u32, NodeId>,
    /// Directories that are in the tree without their entries.
    pending: Vec<(u32, NodeId)>,
}

impl Walk<'_> {
    fn directory(&mut self, number: u32, id: NodeId) -> Result<(), Error> {
        let inode = Inode::read(self.reader, number)?;
        let block_bytes = u64::from(self.reader.block_bytes());
        if !inode.bytes.is_multiple_of(block_bytes) {
            return Err(inode.corrupt("a directory of odd size"));
        }
        let extents = self.extents(&inode)?;
        let mut block = vec![0; self.reader.block_bytes() as usize];
        for physical in blocks_of(&extents, inode.bytes / block_bytes) {
            let physical = physical.ok_or_else(|| inode.corrupt("a directory with holes"))?;
            self.budget.block(physical)?;
            self.reader.read_block(physical, &mut block)?;
            if inode.seed.is_some_and(|seed| !entries::is_sound(&block, seed)) {
                return Err(Error::corrupt("its checksum is wrong", Place::Block(physical)));
            }
            entries::read(&block, |number, name| self.entry(id, number, name)).ok_or_else(
                || Error::corrupt("a directory makes no sense", Place::Block(physical)),
            )??;
        }
        Ok(())
    }

    fn entry(&mut self, parent: NodeId, number: u32, name: &[u8]) -> Result<(), Error> {
        self.budget.memory(name.len())?;
        let added = match self.seen.get(&number) {
            Some(id) => self.tree.link(parent, name, *id),
            None => self.add(parent, number, name)?,
        };
        added.map_err(|error| {
            let what = match error {
                TreeError::BadName => "it has a name that cannot be",
                TreeError::Exists => "it has the name of another file",
                TreeError::DirectoryLink => "a directory with two names",
                TreeError::TooManyLinks => "it has too many names",
                TreeError::NotDirectory | TreeError::TooManyNodes => "it cannot be there",
            };
            Error::corrupt(what, Place::Inode(number))
        })
    }

    fn add(
        &mut self,
        parent: NodeId,
        number: u32,
        name: &[u8],
    ) -> Result<Result<(), TreeError>, Error> {
        if number < self.reader.superblock.first_inode() {
            return Err(Error::corrupt("it is reserved and has a name", Place::Inode(number)));
        }
        self.budget.node()?;
        let inode = Inode::read(self.reader, number)?;
        let metadata = inode.metadata(self.reader, &mut self.budget)?;
        let kind = self.kind(&inode)?;
        let is_directory = matches!(kind, Kind::Directory(_));
        Ok(self.tree.insert(parent, name, metadata, kind).map(|id| {
            self.seen.insert(number, id);
            if is_directory {
                self.pending.push((number, id));
            }
        }))
    }

    fn kind(&mut self, inode: &Inode) -> Result<Kind, Error> {
        let (major, minor) = inode.device();
        Ok(match inode.format {
            format::DIRECTORY => Kind::Directory(std::collections::BTreeMap::new()),
            format::FILE => Kind::File(self.file(inode)?),
            format::SYMLINK => Kind::Symlink(self.symlink(inode)?),
            format::CHARACTER => Kind::CharacterDevice { major, minor },
            format::BLOCK => Kind::BlockDevice { major, minor },
            format::FIFO => Kind::Fifo,
            format::SOCKET => Kind::Socket,
            _ => return Err(inode.corrupt("a file of unknown type")),
        })
    }

    fn file(&mut self, inode: &Inode) -> Result<Content, Error> {
        if inode.bytes.div_ceil(u64::from(self.reader.block_bytes())) > u64::from(u32::MAX) {
            return Err(inode.corrupt("a file larger than ext4 allows"));
        }
        self.budget.contents(inode.bytes)?;
        Ok(Content { bytes: inode.bytes, extents: self.extents(inode)? })
    }

    fn symlink(&mut self, inode: &Inode) -> Result<Box<[u8]>, Error> {
        let length = match inode.bytes {
            1..=MAX_LINK_BYTES => crate::fields::index(inode.bytes),
            _ => return Err(inode.corrupt("a symbolic link of impossible length")),
        };
        let target: Box<[u8]> = if !inode.has_extents && inode.bytes <= FAST_LINK_BYTES {
            inode.map[..length].into()
        } else {
            let extents = self.extents(inode)?;
            let block_bytes = self.reader.block_bytes() as usize;
            let mut target = vec![0; length.next_multiple_of(block_bytes)];
            let count = (target.len() / block_bytes) as u64;
            let places = blocks_of(&extents, count);
            for (physical, block) in places.zip(target.chunks_mut(block_bytes)) {
                let physical =
                    physical.ok_or_else(|| inode.corrupt("a symbolic link in a hole"))?;
                self.budget.block(physical)?;
                self.reader.read_block(physical, block)?;
            }
            target.truncate(length);
            target.into()
        };
        if target.contains(&0) {
            return Err(inode.corrupt("a symbolic link with a zero byte"));
        }
        self.budget.memory(length)?;
        Ok(target)
    }

    fn extents(&mut self, inode: &Inode) -> Result<Vec<Extent>, Error> {
        let (reader, budget, claims) = (self.reader, &mut self.budget, &mut self.claims);
        map::extents(Mapping { reader, budget, claims }, inode)
    }
}
