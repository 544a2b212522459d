//! Which inode each node of a tree gets.

use crate::tree::{Kind, NodeId, Tree};

/// Inode of the root directory.
pub(crate) const ROOT: u32 = 2;
/// Inode of `lost+found`, the first that is not reserved.
pub(crate) const LOST_FOUND: u32 = 11;
/// Its name, in the root directory.
pub(crate) const LOST_FOUND_NAME: &[u8] = b"lost+found";

/// A node, and the inode of the directory where it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Numbered {
    pub(crate) id: NodeId,
    pub(crate) parent: u32,
}

/// Numbers for all nodes of a tree, without gaps.
#[derive(Debug)]
pub(crate) struct Numbers {
    /// By index of the node; 0 if there is no such node.
    inodes: Vec<u32>,
    /// The nodes of the inodes from [`LOST_FOUND`] on. The first is None if the tree has no
    /// `lost+found` of its own.
    nodes: Vec<Option<Numbered>>,
}

impl Numbers {
    /// Number all nodes, so that what is in one directory is together. None if there are too many
    /// for 32 bits.
    pub(crate) fn new(tree: &Tree) -> Option<Self> {
        let mut numbers = Self { inodes: vec![0; tree.bound()], nodes: vec![None] };
        numbers.inodes[Tree::ROOT.index()] = ROOT;
        let mut pending = vec![Tree::ROOT];
        while let Some(directory) = pending.pop() {
            let first = pending.len();
            let parent = numbers.of(directory);
            for (name, id) in tree.entries(directory).into_iter().flatten() {
                if numbers.of(*id) != 0 {
                    continue;
                }
                let is_lost_found = directory == Tree::ROOT && **name == *LOST_FOUND_NAME;
                numbers.add(Numbered { id: *id, parent }, is_lost_found)?;
                if matches!(tree.node(*id).kind, Kind::Directory(_)) {
                    pending.push(*id);
                }
            }
            pending[first..].reverse();
        }
        Some(numbers)
    }

    fn add(&mut self, node: Numbered, is_lost_found: bool) -> Option<()> {
        let at = if is_lost_found {
            self.nodes[0] = Some(node);
            0
        } else {
            self.nodes.push(Some(node));
            self.nodes.len() - 1
        };
        self.inodes[node.id.index()] = u32::try_from(at).ok()?.checked_add(LOST_FOUND)?;
        Some(())
    }

    /// The inode of a node of the tree.
    pub(crate) fn of(&self, id: NodeId) -> u32 {
        self.inodes[id.index()]
    }

    /// The inodes from [`LOST_FOUND`] on, with their nodes. The first has none if `lost+found` is to
    /// stay as it is.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, Option<Numbered>)> {
        (0..self.len()).map(|at| self.get(at))
    }

    /// How many inodes there are from [`LOST_FOUND`] on.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// One of them, and its node.
    pub(crate) fn get(&self, at: usize) -> (u32, Option<Numbered>) {
        let number = LOST_FOUND + u32::try_from(at).expect("they have been numbered");
        (number, self.nodes[at])
    }

    /// Whether the tree has something of the name `lost+found`.
    pub(crate) fn has_lost_found(&self) -> bool {
        self.nodes[0].is_some()
    }

    /// The number of the last inode in use.
    pub(crate) fn last(&self) -> u32 {
        self.get(self.nodes.len() - 1).0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::tree::Metadata;

    #[test]
    fn numbers_follow_the_directories() {
        let mut tree = Tree::new();
        let directory = || Kind::Directory(BTreeMap::new());
        let mut add = |parent, name: &str, kind| {
            tree.insert(parent, name.as_bytes(), Metadata::default(), kind).expect("it is free")
        };
        let b = add(Tree::ROOT, "b", directory());
        let a = add(Tree::ROOT, "a", directory());
        let in_b = add(b, "x", Kind::Fifo);
        let in_a = add(a, "y", Kind::Fifo);
        let lost = add(Tree::ROOT, "lost+found", Kind::Fifo);
        tree.link(a, b"x too", in_b).expect("it is free");
        let numbers = Numbers::new(&tree).expect("they are few");
        let found = [Tree::ROOT, lost, a, b, in_b, in_a].map(|id| numbers.of(id));
        assert_eq!(found, [2, 11, 12, 13, 14, 15]);
        assert_eq!(numbers.last(), 15);
        assert_eq!(numbers.iter().nth(3), Some((14, Some(Numbered { id: in_b, parent: 12 }))));
        assert!(numbers.has_lost_found());
        tree.remove(Tree::ROOT, b"lost+found");
        let numbers = Numbers::new(&tree).expect("they are few");
        assert!(!numbers.has_lost_found());
        assert_eq!(numbers.iter().next(), Some((11, None)));
    }
}
