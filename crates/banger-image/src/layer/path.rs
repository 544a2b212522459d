//! Names in a layer: where they lead in the tree.
//!
//! A path is taken apart as text first, as Go's `filepath.Clean` does and with it Docker, containerd
//! and umoci: empty components and `.` go, `..` takes away what stands before it. What would lead
//! out of the root is refused; nobody makes such layers in good faith. Then it is followed in the
//! tree, where symbolic links in the way lead on as they would inside the guest: absolute ones start
//! at the root, and `..` of the root is the root.

use banger_ext4::{Kind, MAX_NAME, NodeId, Tree};

use super::Limits;

/// How many symbolic links one path may lead through: Linux follows no more.
const MAX_HOPS: usize = 40;
/// How many steps one path may take with what these links say.
const MAX_STEPS: usize = 4096;

/// The components of a path that a layer gives.
pub(super) fn components<'a>(path: &'a [u8], limits: &Limits) -> Result<Vec<&'a [u8]>, String> {
    if path.len() > limits.path {
        return Err(format!("its name has {} bytes, more than {}", path.len(), limits.path));
    }
    if path.contains(&0) {
        return Err("its name has a zero byte in it".to_owned());
    }
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop().ok_or("its name leads out of the root filesystem")?;
            }
            part if part.len() > MAX_NAME => {
                return Err(format!("a name of more than {MAX_NAME} bytes"));
            }
            part => parts.push(part),
        }
    }
    if parts.len() > limits.depth {
        return Err(format!("it lies more than {} directories deep", limits.depth));
    }
    Ok(parts)
}

/// A way from the root down the tree. Where the tree has no directory, whoever walks may make one and
/// go on.
pub(super) struct Walk {
    at: Vec<NodeId>,
    /// What is still to go, the next component last.
    pending: Vec<Box<[u8]>>,
    hops: usize,
    steps: usize,
}

impl Walk {
    pub(super) fn new(parts: &[&[u8]]) -> Self {
        let pending = parts.iter().rev().map(|part| Box::from(*part)).collect();
        Self { at: vec![Tree::ROOT], pending, hops: 0, steps: 0 }
    }

    /// Go as far as there are directories. None is the end of the way; a name is what the directory
    /// reached does not have, or not as a directory.
    pub(super) fn advance(&mut self, tree: &Tree) -> Result<Option<Box<[u8]>>, String> {
        while let Some(part) = self.pending.pop() {
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return Err(winding());
            }
            let here = *self.at.last().unwrap_or(&Tree::ROOT);
            match &part[..] {
                b"" | b"." => continue,
                b".." => {
                    self.at.truncate((self.at.len() - 1).max(1));
                    continue;
                }
                _ => {}
            }
            let Some(child) = tree.child(here, &part) else { return Ok(Some(part)) };
            match &tree.node(child).kind {
                Kind::Directory(_) => self.at.push(child),
                Kind::Symlink(target) => self.follow(target)?,
                _ => return Ok(Some(part)),
            }
        }
        Ok(None)
    }

    fn follow(&mut self, target: &[u8]) -> Result<(), String> {
        self.hops += 1;
        let parts = target.split(|byte| *byte == b'/').rev();
        if self.hops > MAX_HOPS || self.pending.len() > MAX_STEPS {
            return Err(winding());
        }
        if target.starts_with(b"/") {
            self.at.truncate(1);
        }
        self.pending.extend(parts.map(Box::from));
        Ok(())
    }

    /// Go into a directory that the one reached now has.
    pub(super) fn enter(&mut self, directory: NodeId) {
        self.at.push(directory);
    }

    /// Where it is: a directory and all above it, the root first.
    pub(super) fn chain(&self) -> &[NodeId] {
        &self.at
    }

    /// The directory where it is.
    pub(super) fn here(&self) -> NodeId {
        *self.at.last().unwrap_or(&Tree::ROOT)
    }
}

fn winding() -> String {
    "its name leads through too many symbolic links".to_owned()
}
