//! What the entries of one layer do to the tree of the layers below it.
//!
//! The rules are the OCI image specification's; where it leaves something open, what umoci,
//! containerd and Docker agree on, and else umoci's:
//!
//! - A directory on a directory changes what it is, not what is in it. Anything else takes the place
//!   of whatever was there, with all below it. Of two entries of one name, the last counts.
//! - Directories on the way to an entry that nobody made are made: root's, 0755, as old as the entry.
//!   A file of a lower layer that is in the way gives way, one of the same layer is a mistake.
//! - A hard link may be to anything but a directory, also of a lower layer; it changes nothing of it.
//! - `.wh.NAME` hides NAME as lower layers have it, `.wh..wh..opq` all that they have in a directory.
//!   What this layer has put there stays, wherever in the layer the whiteout stands. Other names
//!   that begin with `.wh..wh.` are of a file system of old, and are ignored; its store of hard
//!   links is kept only until the end of the layer.
//! - The root may be given other metadata, and can be nothing but a directory.
//!
//! Nothing here touches a file system: paths are keys.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;

use banger_ext4::{Content, Kind, Metadata, NodeId, Timestamp, Tree, TreeError, Writer};

use super::Limits;
use super::error::shown;
use super::path::{Walk, components};
use super::sparse::Chunks;
use super::tar::{Entry, EntryKind};
use super::xattrs;

/// In front of the name of what a layer hides.
const WHITEOUT: &[u8] = b".wh.";
/// The whiteout of all that is in a directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// In front of names that aufs had for itself.
const AUFS: &[u8] = b".wh..wh.";
/// Longest text of a symbolic link that Linux knows.
const MAX_SYMLINK: usize = 4095;

/// Takes the contents of files.
pub(super) trait Contents {
    /// Take all of a file.
    fn put(&mut self, data: &mut dyn Read, bytes: u64) -> Result<Content, banger_ext4::Error>;

    /// Take the parts of a file that are no zeros.
    fn put_sparse(
        &mut self,
        data: &mut dyn Read,
        bytes: u64,
        chunks: &Chunks,
    ) -> Result<Content, banger_ext4::Error>;

    /// Forget some.
    fn release(&mut self, dropped: Vec<Content>);
}

impl Contents for Writer {
    fn put(&mut self, data: &mut dyn Read, bytes: u64) -> Result<Content, banger_ext4::Error> {
        self.write(data, bytes)
    }

    fn put_sparse(
        &mut self,
        data: &mut dyn Read,
        bytes: u64,
        chunks: &Chunks,
    ) -> Result<Content, banger_ext4::Error> {
        self.write_sparse(bytes, chunks, data)
    }

    fn release(&mut self, dropped: Vec<Content>) {
        Self::release(self, dropped);
    }
}

/// Why an entry is refused.
#[derive(Debug)]
pub(super) enum Refusal {
    /// For what it is.
    Invalid(String),
    /// Its contents could not be taken.
    Contents(banger_ext4::Error),
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self::Invalid(reason)
    }
}

impl From<&str> for Refusal {
    fn from(reason: &str) -> Self {
        Self::Invalid(reason.to_owned())
    }
}

impl From<TreeError> for Refusal {
    fn from(error: TreeError) -> Self {
        Self::Invalid(error.to_string())
    }
}

/// A layer on its way into a tree.
pub(super) struct Merge<'a, C> {
    tree: &'a mut Tree,
    contents: &'a mut C,
    limits: &'a Limits,
    /// How long all names and attributes are that the tree has ever been given.
    text: &'a mut u64,
    /// What this layer has made, and the directories that it has put something into: a whiteout
    /// does not hide these. Numbers that have become free do no harm in it: only this layer can
    /// have used them again.
    fresh: HashSet<NodeId>,
    /// Names that this layer has given to files of lower layers.
    links: HashSet<(NodeId, Box<[u8]>)>,
}

impl<'a, C: Contents> Merge<'a, C> {
    pub(super) fn new(
        tree: &'a mut Tree,
        contents: &'a mut C,
        limits: &'a Limits,
        text: &'a mut u64,
    ) -> Self {
        Self { tree, contents, limits, text, fresh: HashSet::new(), links: HashSet::new() }
    }

    /// Take in one entry, whose contents are in `data`.
    pub(super) fn entry(&mut self, mut entry: Entry, data: &mut dyn Read) -> Result<(), Refusal> {
        let path = std::mem::take(&mut entry.path);
        let parts = components(&path, self.limits)?;
        let Some((name, dirs)) = parts.split_last() else { return self.root(entry) };
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(name, hidden, dirs);
        }
        self.keep(name.len(), &entry)?;
        let parent = self.make_way(dirs, entry.mtime)?;
        match &entry.kind {
            EntryKind::HardLink(target) => self.hard_link(&parent, name, target)?,
            EntryKind::Directory => self.directory(parent.here(), name, metadata(entry)?)?,
            _ => self.file(parent.here(), name, entry, data)?,
        }
        self.mark(parent.chain());
        Ok(())
    }

    /// End the layer.
    pub(super) fn finish(self) {
        let Some(entries) = self.tree.entries(Tree::ROOT) else { return };
        let old: Vec<_> = entries.keys().filter(|name| name.starts_with(AUFS)).cloned().collect();
        for name in old {
            self.tree.remove(Tree::ROOT, &name);
        }
        self.contents.release(self.tree.take_dropped());
    }

    fn root(&mut self, entry: Entry) -> Result<(), Refusal> {
        if entry.kind != EntryKind::Directory {
            return Err("the root of a file system can only be a directory".into());
        }
        *self.tree.metadata_mut(Tree::ROOT) = metadata(entry)?;
        Ok(())
    }

    /// Go to the directory of an entry and make what is missing of it.
    fn make_way(&mut self, dirs: &[&[u8]], mtime: Timestamp) -> Result<Walk, Refusal> {
        let mut walk = Walk::new(dirs);
        while let Some(name) = walk.advance(self.tree)? {
            let here = walk.here();
            if let Some(file) = self.tree.child(here, &name) {
                if self.fresh.contains(&file) || self.links.contains(&(here, name.clone())) {
                    let reason = format!("{} is no directory in this layer", shown(&name));
                    return Err(reason.into());
                }
                self.remove(here, &name);
            }
            let metadata = Metadata { mode: 0o755, mtime, ..Metadata::default() };
            let made = Kind::Directory(BTreeMap::new());
            *self.text += name.len() as u64;
            let made = self.tree.insert(here, &name, metadata, made)?;
            walk.enter(made);
        }
        if walk.chain().len() > self.limits.depth {
            return Err(format!("it lies more than {} directories deep", self.limits.depth).into());
        }
        Ok(walk)
    }

    /// Go to a directory that may be there.
    fn find(&self, dirs: &[&[u8]]) -> Result<Option<Walk>, Refusal> {
        let mut walk = Walk::new(dirs);
        let missing = walk.advance(self.tree)?;
        Ok(missing.is_none().then_some(walk))
    }

    fn directory(
        &mut self,
        parent: NodeId,
        name: &[u8],
        metadata: Metadata,
    ) -> Result<(), Refusal> {
        let old = self.tree.child(parent, name);
        let old = old.filter(|old| matches!(self.tree.node(*old).kind, Kind::Directory(_)));
        let directory = match old {
            Some(directory) => {
                *self.tree.metadata_mut(directory) = metadata;
                directory
            }
            None => {
                self.remove(parent, name);
                self.tree.insert(parent, name, metadata, Kind::Directory(BTreeMap::new()))?
            }
        };
        self.fresh.insert(directory);
        Ok(())
    }

    /// Anything but a directory or a hard link.
    fn file(
        &mut self,
        parent: NodeId,
        name: &[u8],
        mut entry: Entry,
        data: &mut dyn Read,
    ) -> Result<(), Refusal> {
        self.remove(parent, name);
        let kind = match &mut entry.kind {
            EntryKind::File { bytes, chunks } => {
                let content = match chunks {
                    None => self.contents.put(data, *bytes),
                    Some(chunks) => self.contents.put_sparse(data, *bytes, chunks),
                };
                Kind::File(content.map_err(Refusal::Contents)?)
            }
            EntryKind::Symlink(target) => {
                // Nobody has to be able to get out through it: it is text.
                if target.is_empty() || target.len() > MAX_SYMLINK || target.contains(&0) {
                    return Err("a symbolic link to something that has no name".into());
                }
                entry.mode = 0o777;
                Kind::Symlink(std::mem::take(target).into())
            }
            EntryKind::CharacterDevice { major, minor } => {
                let (major, minor) = device(*major, *minor)?;
                Kind::CharacterDevice { major, minor }
            }
            EntryKind::BlockDevice { major, minor } => {
                let (major, minor) = device(*major, *minor)?;
                Kind::BlockDevice { major, minor }
            }
            EntryKind::Fifo => Kind::Fifo,
            EntryKind::Directory | EntryKind::HardLink(_) => unreachable!("these have their own"),
        };
        let node = self.tree.insert(parent, name, metadata(entry)?, kind)?;
        self.fresh.insert(node);
        Ok(())
    }

    fn hard_link(&mut self, parent: &Walk, name: &[u8], target: &[u8]) -> Result<(), Refusal> {
        let missing = || format!("it is a link to {}, which is not there", shown(target));
        let parts =
            components(target, self.limits).map_err(|reason| format!("the link: {reason}"))?;
        let (target_name, dirs) = parts.split_last().ok_or("it is a link to the root")?;
        let way = self.find(dirs)?.ok_or_else(missing)?;
        let node = self.tree.child(way.here(), target_name).ok_or_else(missing)?;
        if matches!(self.tree.node(node).kind, Kind::Directory(_)) {
            return Err(format!("it is a link to {}, a directory", shown(target)).into());
        }
        let here = parent.here();
        if !self.fresh.contains(&node) {
            self.links.insert((here, name.into()));
        }
        if (way.here(), *target_name) == (here, name) {
            return Ok(());
        }
        if let Some(old) = self.tree.child(here, name)
            && way.chain().contains(&old)
        {
            return Err("it is a link to something in the directory that it replaces".into());
        }
        self.remove(here, name);
        Ok(self.tree.link(here, name, node)?)
    }

    fn whiteout(&mut self, name: &[u8], hidden: &[u8], dirs: &[&[u8]]) -> Result<(), Refusal> {
        if name.starts_with(AUFS) && name != OPAQUE {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err("a whiteout of nothing".into());
        }
        // What is not there cannot be hidden.
        let Some(way) = self.find(dirs)? else { return Ok(()) };
        if name == OPAQUE {
            self.hide_entries(way.here());
        } else if let Some(node) = self.tree.child(way.here(), hidden) {
            let is_link = self.links.contains(&(way.here(), hidden.into()));
            match self.fresh.contains(&node) {
                true => self.hide_entries(node),
                false if is_link => {}
                false => self.remove(way.here(), hidden),
            }
        }
        Ok(())
    }

    /// Remove from a directory what lower layers have put there, at any depth.
    fn hide_entries(&mut self, directory: NodeId) {
        let mut pending = vec![directory];
        while let Some(directory) = pending.pop() {
            let Some(entries) = self.tree.entries(directory) else { continue };
            let mut hidden = Vec::new();
            for (name, node) in entries {
                if self.fresh.contains(node) {
                    pending.push(*node);
                } else if !self.links.contains(&(directory, name.clone())) {
                    hidden.push(name.clone());
                }
            }
            for name in hidden {
                self.remove(directory, &name);
            }
        }
    }

    fn remove(&mut self, parent: NodeId, name: &[u8]) {
        if self.tree.remove(parent, name) {
            let dropped = self.tree.take_dropped();
            if !dropped.is_empty() {
                self.contents.release(dropped);
            }
        }
    }

    /// Note that this layer has put something into these directories, each of which lies in the one
    /// before. None can be left out because one below it is known: its number may be an old one's.
    fn mark(&mut self, chain: &[NodeId]) {
        self.fresh.extend(chain);
    }

    /// Check that there is room for one more in memory.
    fn keep(&mut self, name: usize, entry: &Entry) -> Result<(), Refusal> {
        if self.tree.len() > self.limits.files {
            return Err(format!("there are more than {} files", self.limits.files).into());
        }
        let target = match &entry.kind {
            EntryKind::Symlink(target) => target.len(),
            _ => 0,
        };
        let xattrs: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        *self.text += (name + target + xattrs) as u64;
        if *self.text > self.limits.text {
            let reason = format!("names and attributes take more than {} bytes", self.limits.text);
            return Err(reason.into());
        }
        Ok(())
    }
}

/// Device numbers as far as ext4 can keep them.
fn device(major: u32, minor: u32) -> Result<(u32, u32), Refusal> {
    if major >= 1 << 12 || minor >= 1 << 20 {
        return Err(format!("there is no device {major}:{minor}").into());
    }
    Ok((major, minor))
}

fn metadata(entry: Entry) -> Result<Metadata, Refusal> {
    let Entry { mode, uid, gid, mtime, xattrs, .. } = entry;
    Ok(Metadata { mode, uid, gid, mtime, xattrs: xattrs::kept(xattrs)? })
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
