//! A tree of files in memory: names, metadata, and where on a disk the contents are.

use std::collections::BTreeMap;

/// Longest name of a directory entry, in bytes.
pub const MAX_NAME: usize = 255;
/// Most names that one file may have.
pub const MAX_LINKS: u32 = 65_000;

/// A node of a [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

impl NodeId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Seconds and nanoseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Whole seconds, negative before 1970.
    pub seconds: i64,
    /// Less than a thousand million.
    pub nanoseconds: u32,
}

/// What a file has besides its contents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits with setuid, setgid and sticky: `0o7777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Timestamp,
    /// Extended attributes by full name: `security.capability`.
    pub xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
}

/// A run of blocks of the disk that hold consecutive blocks of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Block of the file.
    pub logical: u32,
    /// Block of the disk.
    pub physical: u64,
    /// How many.
    pub blocks: u32,
}

/// The contents of a regular file: where they are. What no extent covers reads as zeros.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// Size in bytes.
    pub bytes: u64,
    /// In the order of the file, without overlap.
    pub extents: Vec<Extent>,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory and its entries by name.
    Directory(BTreeMap<Box<[u8]>, NodeId>),
    /// A regular file.
    File(Content),
    /// A symbolic link and what it says.
    Symlink(Box<[u8]>),
    /// A character device.
    CharacterDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// A file of whatever kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it has besides its contents.
    pub metadata: Metadata,
    /// What it is.
    pub kind: Kind,
    links: u32,
}

impl Node {
    /// How many names it has, not counting `.` and `..`.
    #[must_use]
    pub fn links(&self) -> u32 {
        self.links
    }
}

/// What a tree refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// It is no directory, so nothing can be in it.
    #[error("not a directory")]
    NotDirectory,
    /// There is something of that name.
    #[error("the name is taken")]
    Exists,
    /// A name is empty, `.` or `..`, too long, or has a `/` or a zero byte in it.
    #[error("not a name")]
    BadName,
    /// Directories have one name.
    #[error("a directory cannot have a second name")]
    DirectoryLink,
    /// A file has too many names.
    #[error("too many hard links to one file")]
    TooManyLinks,
    /// There are too many files.
    #[error("too many files")]
    TooManyNodes,
}

/// A tree of files. The root always exists.
#[derive(Debug, Clone)]
pub struct Tree {
    nodes: Vec<Option<Node>>,
    free: Vec<u32>,
    dropped: Vec<Content>,
}

impl Tree {
    /// The root directory.
    pub const ROOT: NodeId = NodeId(0);

    /// A tree with nothing but its root, which has mode 0755.
    #[must_use]
    pub fn new() -> Self {
        let metadata = Metadata { mode: 0o755, ..Metadata::default() };
        let root = Node { metadata, kind: Kind::Directory(BTreeMap::new()), links: 1 };
        Self { nodes: vec![Some(root)], free: Vec::new(), dropped: Vec::new() }
    }

    /// How many nodes it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// The indices of all nodes are below it.
    pub(crate) fn bound(&self) -> usize {
        self.nodes.len()
    }

    /// Never: there is the root.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// A node.
    ///
    /// # Panics
    /// It has been removed, or is another tree's.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        self.nodes[id.0 as usize].as_ref().expect("it has not been removed")
    }

    /// The metadata of a node, to be changed.
    ///
    /// # Panics
    /// As [`Tree::node`].
    pub fn metadata_mut(&mut self, id: NodeId) -> &mut Metadata {
        &mut self.node_mut(id).metadata
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes[id.0 as usize].as_mut().expect("it has not been removed")
    }

    /// The entries of a directory; None for anything else.
    #[must_use]
    pub fn entries(&self, id: NodeId) -> Option<&BTreeMap<Box<[u8]>, NodeId>> {
        match &self.node(id).kind {
            Kind::Directory(entries) => Some(entries),
            _ => None,
        }
    }

    /// What `name` in the directory `parent` is.
    #[must_use]
    pub fn child(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.entries(parent)?.get(name).copied()
    }

    /// Add a node of one name.
    ///
    /// # Errors
    /// See [`TreeError`]; nothing has changed then.
    pub fn insert(
        &mut self,
        parent: NodeId,
        name: &[u8],
        metadata: Metadata,
        kind: Kind,
    ) -> Result<NodeId, TreeError> {
        self.check_free(parent, name)?;
        let node = Some(Node { metadata, kind, links: 1 });
        let id = match self.free.pop() {
            Some(index) => {
                self.nodes[index as usize] = node;
                NodeId(index)
            }
            None => {
                let index = u32::try_from(self.nodes.len()).map_err(|_| TreeError::TooManyNodes)?;
                self.nodes.push(node);
                NodeId(index)
            }
        };
        self.enter(parent, name, id);
        Ok(id)
    }

    /// Give a node another name.
    ///
    /// # Errors
    /// See [`TreeError`]; nothing has changed then.
    pub fn link(&mut self, parent: NodeId, name: &[u8], target: NodeId) -> Result<(), TreeError> {
        self.check_free(parent, name)?;
        let node = self.node_mut(target);
        if matches!(node.kind, Kind::Directory(_)) {
            return Err(TreeError::DirectoryLink);
        }
        if node.links >= MAX_LINKS {
            return Err(TreeError::TooManyLinks);
        }
        node.links += 1;
        self.enter(parent, name, target);
        Ok(())
    }

    /// Remove a name and, if it is a directory, all below it. What has other names stays under
    /// those. Answers whether there was something.
    pub fn remove(&mut self, parent: NodeId, name: &[u8]) -> bool {
        let Kind::Directory(entries) = &mut self.node_mut(parent).kind else { return false };
        let Some(id) = entries.remove(name) else { return false };
        self.unlink_all(id);
        true
    }

    /// Remove all entries of a directory, and what is below them.
    pub fn clear(&mut self, directory: NodeId) {
        let Kind::Directory(entries) = &mut self.node_mut(directory).kind else { return };
        for id in std::mem::take(entries).into_values() {
            self.unlink_all(id);
        }
    }

    /// Take the contents of the files that have been removed since the last call: their blocks may
    /// be used again.
    pub fn take_dropped(&mut self) -> Vec<Content> {
        std::mem::take(&mut self.dropped)
    }

    fn check_free(&self, parent: NodeId, name: &[u8]) -> Result<(), TreeError> {
        let is_name = !name.is_empty() && name.len() <= MAX_NAME && name != b"." && name != b"..";
        if !is_name || name.iter().any(|byte| matches!(byte, b'/' | 0)) {
            return Err(TreeError::BadName);
        }
        let entries = self.entries(parent).ok_or(TreeError::NotDirectory)?;
        if entries.contains_key(name) { Err(TreeError::Exists) } else { Ok(()) }
    }

    fn enter(&mut self, parent: NodeId, name: &[u8], id: NodeId) {
        if let Kind::Directory(entries) = &mut self.node_mut(parent).kind {
            entries.insert(name.into(), id);
        }
    }

    /// Take one name from a node, and from all below it if that was its last. Deep trees must not
    /// overflow the stack.
    fn unlink_all(&mut self, id: NodeId) {
        let mut pending = vec![id];
        while let Some(id) = pending.pop() {
            let node = self.node_mut(id);
            node.links -= 1;
            if node.links > 0 {
                continue;
            }
            let node = self.nodes[id.0 as usize].take();
            self.free.push(id.0);
            match node.map(|node| node.kind) {
                Some(Kind::Directory(entries)) => pending.extend(entries.into_values()),
                Some(Kind::File(content)) if !content.extents.is_empty() => {
                    self.dropped.push(content);
                }
                _ => {}
            }
        }
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(block: u64) -> Kind {
        let extents = vec![Extent { logical: 0, physical: block, blocks: 1 }];
        Kind::File(Content { bytes: 1, extents })
    }

    fn directory() -> Kind {
        Kind::Directory(BTreeMap::new())
    }

    #[test]
    fn removed_files_give_back_their_blocks_with_their_last_name() {
        let mut tree = Tree::new();
        let dir = tree.insert(Tree::ROOT, b"dir", Metadata::default(), directory()).expect("free");
        let one = tree.insert(dir, b"one", Metadata::default(), file(7)).expect("free");
        tree.link(Tree::ROOT, b"two", one).expect("free");
        assert_eq!(tree.node(one).links(), 2);
        assert!(tree.remove(Tree::ROOT, b"dir"));
        assert_eq!(tree.take_dropped(), []);
        assert_eq!(tree.child(Tree::ROOT, b"two"), Some(one));
        assert!(tree.remove(Tree::ROOT, b"two"));
        assert!(!tree.remove(Tree::ROOT, b"two"));
        assert_eq!(tree.take_dropped().len(), 1);
        assert_eq!(tree.len(), 1);
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let mut tree = Tree::new();
        let long = [b'a'; 256];
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &long] {
            let made = tree.insert(Tree::ROOT, name, Metadata::default(), Kind::Fifo);
            assert_eq!(made, Err(TreeError::BadName), "{name:?}");
        }
        let fifo = tree.insert(Tree::ROOT, b"fifo", Metadata::default(), Kind::Fifo).expect("free");
        assert_eq!(tree.link(fifo, b"x", fifo), Err(TreeError::NotDirectory));
        assert_eq!(tree.link(Tree::ROOT, b"fifo", fifo), Err(TreeError::Exists));
        assert_eq!(tree.link(Tree::ROOT, b"root", Tree::ROOT), Err(TreeError::DirectoryLink));
    }

    #[test]
    fn a_deep_tree_can_be_removed() {
        let mut tree = Tree::new();
        let mut parent = Tree::ROOT;
        for _ in 0..200_000 {
            parent = tree.insert(parent, b"d", Metadata::default(), directory()).expect("free");
        }
        tree.clear(Tree::ROOT);
        assert_eq!(tree.len(), 1);
    }
}
