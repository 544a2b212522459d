//! From a tree to inodes and directories.

use crate::bitmap::Bitmap;
use crate::checksum::Checksum;
use crate::directory::{self, Entry};
use crate::disk::{Disk, Run};
use crate::error::Error;
use crate::fields::set_u32;
use crate::inode::{Inode, flags, format};
use crate::name_hash::NameHash;
use crate::numbers::{LOST_FOUND, LOST_FOUND_NAME, Numbered, Numbers, ROOT};
use crate::table::TableWriter;
use crate::tree::{Content, Extent, Kind, MAX_LINKS, Tree};
use crate::writer::{MAX_FILE_BYTES, Writer};
use crate::xattr::{self, Stored, Xattrs};
use crate::{BLOCK, BLOCK_BYTES, extents};

/// Longest symbolic link that is in its inode.
const FAST_LINK_BYTES: usize = 59;
/// What is said of a directory that has more links than can be counted.
const UNCOUNTED_LINKS: u32 = 1;

/// Write a tree and everything that must be known about it.
pub(crate) fn finish(writer: Writer, tree: &Tree) -> Result<(), Error> {
    let inodes = writer.superblock.inodes;
    let full =
        || Error::NoInodes { inodes: u64::from(inodes - LOST_FOUND), files: tree.len() as u64 - 1 };
    let numbers = Numbers::new(tree).ok_or_else(full)?;
    if numbers.last() > inodes {
        return Err(full());
    }
    let used = blocks_of_files(&writer, tree, &numbers)?;
    let Writer { mut disk, mut superblock, mut groups, seed, before, .. } = writer;
    disk.set_used(used);
    let table = TableWriter::new(disk.file(), &groups, superblock.inodes_per_group)?;
    let mut finisher = Finisher { disk, tree, numbers, table, seed, hash: superblock.name_hash() };
    finisher.write_inodes()?;
    let Finisher { mut disk, table, numbers, .. } = finisher;
    disk.release_unused()?;
    let table = table.end(disk.file())?;
    groups.write(disk.file(), (&before, disk.used()), &table)?;
    superblock.write(disk.file(), disk.free(), inodes - numbers.last())
}

/// What is in use when nothing has been written yet but the contents of the files of the tree.
fn blocks_of_files(writer: &Writer, tree: &Tree, numbers: &Numbers) -> Result<Bitmap, Error> {
    let mut used = writer.base.clone();
    if numbers.has_lost_found() {
        used.remove(writer.lost_found.start, writer.lost_found.blocks);
    }
    for (_, node) in numbers.iter() {
        let Some(Kind::File(content)) = node.map(|node| &tree.node(node.id).kind) else { continue };
        check_content(content)?;
        for extent in &content.extents {
            let run = Run { start: extent.physical, blocks: extent.blocks.into() };
            if !writer.owns(run) || used.intersects(run.start, run.blocks) {
                return Err(Error::ForeignContent);
            }
            used.insert(run.start, run.blocks);
        }
    }
    Ok(used)
}

/// Check that the extents are in order and within the file.
fn check_content(content: &Content) -> Result<(), Error> {
    if content.bytes > MAX_FILE_BYTES {
        return Err(Error::TooLarge { bytes: content.bytes });
    }
    let mut end = 0;
    for extent in &content.extents {
        if extent.blocks == 0 || u64::from(extent.logical) < end {
            return Err(Error::ForeignContent);
        }
        end = u64::from(extent.logical) + u64::from(extent.blocks);
    }
    if end <= content.bytes.div_ceil(BLOCK) { Ok(()) } else { Err(Error::ForeignContent) }
}

struct Finisher<'a> {
    disk: Disk,
    tree: &'a Tree,
    numbers: Numbers,
    table: TableWriter,
    seed: Checksum,
    hash: Option<NameHash>,
}

impl Finisher<'_> {
    fn write_inodes(&mut self) -> Result<(), Error> {
        self.write_inode(ROOT, Numbered { id: Tree::ROOT, parent: ROOT })?;
        for at in 0..self.numbers.len() {
            match self.numbers.get(at) {
                (number, Some(node)) => self.write_inode(number, node)?,
                // It stays as it is.
                (number, None) => self.table.put(self.disk.file(), number, true, None)?,
            }
        }
        Ok(())
    }

    fn write_inode(&mut self, number: u32, node: Numbered) -> Result<(), Error> {
        let inode = self.inode(number, node)?;
        let raw = inode.encode(number, self.seed);
        let is_directory = inode.mode & format::MASK == format::DIRECTORY;
        self.table.put(self.disk.file(), number, is_directory, Some(&raw))
    }

    /// The inode of a node, after writing all blocks that belong to it.
    fn inode(&mut self, number: u32, Numbered { id, parent }: Numbered) -> Result<Inode, Error> {
        let node = self.tree.node(id);
        let mut inode = Inode::new(&node.metadata, links(node.links()));
        let format = match &node.kind {
            Kind::Directory(_) => {
                self.directory(&mut inode, number, Numbered { id, parent })?;
                format::DIRECTORY
            }
            Kind::File(content) => {
                inode.bytes = content.bytes;
                self.map(&mut inode, number, &content.extents)?;
                format::FILE
            }
            Kind::Symlink(target) => {
                self.symlink(&mut inode, number, target)?;
                format::SYMLINK
            }
            Kind::CharacterDevice { major, minor } => {
                inode.map = device(*major, *minor)?;
                format::CHARACTER
            }
            Kind::BlockDevice { major, minor } => {
                inode.map = device(*major, *minor)?;
                format::BLOCK
            }
            Kind::Fifo => format::FIFO,
            Kind::Socket => format::SOCKET,
        };
        inode.mode |= format;
        self.xattrs(&mut inode, &node.metadata.xattrs)?;
        Ok(inode)
    }

    fn xattrs(&mut self, inode: &mut Inode, xattrs: &Xattrs) -> Result<(), Error> {
        let stored = Stored::new(xattrs)?;
        inode.xattrs = stored.inode;
        if let Some(mut bytes) = stored.block {
            inode.xattr_block = self.disk.allocate_one()?;
            inode.blocks += 1;
            xattr::seal(&mut bytes, inode.xattr_block, self.seed);
            self.disk.put(inode.xattr_block, &*bytes)?;
        }
        Ok(())
    }

    /// Say in an inode where its blocks are.
    fn map(&mut self, inode: &mut Inode, number: u32, extents: &[Extent]) -> Result<(), Error> {
        let seed = self.seed.of_inode(number, 0);
        let (map, more) = extents::write(&mut self.disk, extents, seed)?;
        inode.map = map;
        inode.blocks += extents.iter().map(|extent| u64::from(extent.blocks)).sum::<u64>() + more;
        inode.flags |= flags::EXTENTS;
        Ok(())
    }

    fn directory(
        &mut self,
        inode: &mut Inode,
        number: u32,
        Numbered { id, parent }: Numbered,
    ) -> Result<(), Error> {
        let (tree, numbers) = (self.tree, &self.numbers);
        let children = tree.entries(id).into_iter().flatten().map(|(name, id)| {
            let file_type = directory::type_of(&tree.node(*id).kind);
            Entry { name, inode: numbers.of(*id), file_type }
        });
        let kept = (number == ROOT && !numbers.has_lost_found())
            .then(|| Entry::directory(LOST_FOUND_NAME, LOST_FOUND));
        let entries: Vec<Entry<'_>> = children.chain(kept).collect();
        let subdirectories = entries.iter().filter(|entry| entry.is_directory()).count();
        // Each has a `..`, and the directory has a name and a `.`.
        let links = u32::try_from(2 + subdirectories).unwrap_or(u32::MAX);
        inode.links = self::links(if links > MAX_LINKS { UNCOUNTED_LINKS } else { links });
        let inodes = [number, parent];
        let seed = self.seed.of_inode(number, 0);
        let (blocks, has_index) = directory::blocks(inodes, &entries, self.hash.as_ref(), seed);
        if has_index {
            inode.flags |= flags::INDEX;
        }
        inode.bytes = blocks.len() as u64;
        let extents = store(&mut self.disk, &blocks)?;
        self.map(inode, number, &extents)
    }

    fn symlink(&mut self, inode: &mut Inode, number: u32, target: &[u8]) -> Result<(), Error> {
        if !(1..BLOCK_BYTES).contains(&target.len()) || target.contains(&0) {
            return Err(Error::BadSymlink { bytes: target.len() });
        }
        // Nobody can change that of a link, and Linux has no other.
        inode.mode = 0o777;
        inode.bytes = target.len() as u64;
        if target.len() <= FAST_LINK_BYTES {
            inode.map[..target.len()].copy_from_slice(target);
            return Ok(());
        }
        let mut block = [0; BLOCK_BYTES];
        block[..target.len()].copy_from_slice(target);
        let extents = store(&mut self.disk, &block)?;
        self.map(inode, number, &extents)
    }
}

fn links(count: u32) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}

/// Write whole blocks somewhere.
fn store(disk: &mut Disk, bytes: &[u8]) -> Result<Vec<Extent>, Error> {
    let mut extents = Vec::new();
    let mut rest = bytes;
    let mut logical = 0;
    while !rest.is_empty() {
        let run = disk.allocate((rest.len() / BLOCK_BYTES) as u64).ok_or_else(|| disk.full())?;
        let blocks = u32::try_from(run.blocks).expect("they are in memory");
        let (now, later) = rest.split_at(blocks as usize * BLOCK_BYTES);
        disk.put(run.start, now)?;
        extents.push(Extent { logical, physical: run.start, blocks });
        logical += blocks;
        rest = later;
    }
    Ok(extents)
}

/// A device number in the old form if it fits, or in the new.
fn device(major: u32, minor: u32) -> Result<[u8; 60], Error> {
    let mut map = [0; 60];
    if major < 1 << 8 && minor < 1 << 8 {
        set_u32(&mut map, 0, major << 8 | minor);
    } else if major < 1 << 12 && minor < 1 << 20 {
        set_u32(&mut map, 4, minor & 0xff | major << 8 | (minor & !0xff) << 12);
    } else {
        return Err(Error::BadDevice { major, minor });
    }
    Ok(map)
}
