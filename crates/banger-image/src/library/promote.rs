//! Images out of the disks of VMs.

use banger_api::step;
use std::fs::File;
use std::path::{Path, PathBuf};

use banger_api::image::Image;
use banger_api::operation::Progress;
use banger_core::reference::Reference;
use banger_ext4::{Kind, NodeId, Reader, Tree};
use banger_host::command::{Cancel, Isolation, Tool};
use banger_host::{cow, random};

use super::make::{Draft, recipe};
use super::{Library, ensure_room};
use crate::error::{LibraryError, PullError};
use crate::layer::{Layer, write_layer};
use crate::stage::Reporter;
use crate::store::WorkDir;

/// What belongs to one VM and must not be in an image: removed, or emptied where programs expect a
/// file.
const SSH_HOST_KEYS: (&[u8], &[u8]) = (b"etc/ssh", b"ssh_host_");
const IDENTITY: [&[u8]; 4] = [
    b"var/lib/dbus/machine-id",
    b"var/lib/systemd/random-seed",
    b"var/lib/systemd/credential.secret",
    b"etc/machine-id",
];

/// The disk of a VM that has stopped.
#[derive(Debug, Clone, Copy)]
pub struct VmDisk<'a> {
    /// The VM's name.
    pub vm: &'a str,
    /// Digest of the VM's image.
    pub image_digest: &'a str,
    /// The VM's directory.
    pub vm_dir: &'a Path,
    /// Size of its root disk.
    pub bytes: u64,
}

impl Library {
    /// Make an image of a VM's disk. It has the VM's files and how its image is run, but neither the
    /// VM's identity nor what was deleted.
    ///
    /// # Errors
    /// See [`PullError`]. Nothing half-made stays visible.
    pub fn promote(
        &self,
        name: &str,
        disk: &VmDisk<'_>,
        on_progress: &mut dyn FnMut(Progress),
        cancel: &Cancel,
    ) -> Result<Image, PullError> {
        check_new_name(name)?;
        let base = self.find_image(disk.image_digest)?;
        let base = base.ok_or_else(|| super::images::not_found(disk.image_digest, None))?;
        let store = disk.vm_dir.join(banger_api::shim::COW_FILE);
        ensure_room(self.images.dir(), (base.image.allocated_bytes >> 20) * 3 + 64)?;
        let mut reporter = Reporter::new(on_progress);
        self.in_work_dir(|work| {
            reporter.stage(step::IMAGE_READ, "reading the VM's disk")?;
            let flat = flatten(&base.root, &store, disk, work)?;
            let reader = open_disk(&flat, disk, cancel)?;
            let tree = reader.tree(&read_limits(disk.bytes));
            let mut tree = tree.map_err(|error| unreadable(disk, error))?;
            forget_identity(&mut tree);
            let image = &base.image;
            let draft = Draft {
                name: name.to_owned(),
                source: format!("VM {}, from {}", disk.vm, image.name),
                config: image.config.clone(),
                oci: None,
                kernel: image.kernel.clone(),
                init: image.init,
                // No other will ever be made of the same.
                made_of: recipe("vm", &random::hex::<32>(), disk.bytes),
                disk_bytes: disk.bytes,
            };
            self.write_anew(draft, (&reader, &tree), &mut reporter, cancel)
        })
    }

    /// Make an image of a tree that was read from another disk.
    pub(super) fn write_anew(
        &self,
        draft: Draft,
        (reader, tree): (&Reader, &Tree),
        reporter: &mut Reporter<'_>,
        cancel: &Cancel,
    ) -> Result<Image, PullError> {
        let (from, mut to) = std::io::pipe().map_err(|source| LibraryError::Io {
            action: "copy",
            path: "the files".into(),
            source,
        })?;
        std::thread::scope(|scope| {
            let writing = scope.spawn(move || write_layer(reader, tree, &mut to, cancel));
            let layer = Layer {
                name: draft.source.clone(),
                digest: None,
                diff_id: None,
                stream: Box::new(from),
            };
            let made = self.assemble(draft, [Ok(layer)].into_iter(), reporter, cancel);
            let written = writing.join().unwrap_or(Ok(()));
            // A reader that gives up breaks the pipe: its own reason comes first.
            let image = made?;
            written?;
            Ok(image)
        })
    }
}

/// A whole disk that nobody else writes to.
fn flatten(
    image: &Path,
    store: &Path,
    disk: &VmDisk<'_>,
    work: &WorkDir,
) -> Result<PathBuf, PullError> {
    let before = state_of(store)?;
    let flat = work.path().join("flat.ext4");
    cow::flatten(image, store, disk.bytes, &flat).map_err(PullError::io("copy", store))?;
    if state_of(store)? != before {
        return Err(PullError::Changed { vm: disk.vm.to_owned() });
    }
    Ok(flat)
}

/// Read a disk that a guest wrote. One that was not unmounted has a journal, which e2fsck replays.
fn open_disk(flat: &Path, disk: &VmDisk<'_>, cancel: &Cancel) -> Result<Reader, PullError> {
    let open = || -> Result<_, PullError> {
        Ok(Reader::open(File::open(flat).map_err(PullError::io("open", flat))?))
    };
    let opened = match open()? {
        Err(banger_ext4::Error::NeedsRecovery) => {
            Tool::new("sh")
                // 1 says that it did something.
                .args(["-c", "e2fsck -f -p -- \"$1\" >&2; [ $? -le 1 ]", "e2fsck"])
                .arg(flat)
                .isolation(Isolation::Processes)
                .run(cancel)
                .map_err(PullError::tool("replaying the journal of the VM's disk"))?;
            open()?
        }
        opened => opened,
    };
    opened.map_err(|error| unreadable(disk, error))
}

/// What changes when somebody writes to a file.
fn state_of(path: &Path) -> Result<(u64, std::time::SystemTime), PullError> {
    let metadata = std::fs::metadata(path).map_err(PullError::io("read", path))?;
    let modified = metadata.modified().map_err(PullError::io("read", path))?;
    Ok((metadata.len(), modified))
}

/// What may be on a disk of that size that a guest has written to.
pub(super) fn read_limits(disk_bytes: u64) -> banger_ext4::Limits {
    banger_ext4::Limits {
        nodes: 4_000_000,
        memory: 1 << 30,
        contents: disk_bytes.saturating_mul(8),
    }
}

fn unreadable(disk: &VmDisk<'_>, error: impl std::fmt::Display) -> PullError {
    PullError::invalid(format!("the disk of {}", disk.vm), error)
}

/// A name that a new image can have: a reference without a digest, which is known only later.
pub(super) fn check_new_name(name: &str) -> Result<(), LibraryError> {
    let reference = Reference::parse(name)
        .map_err(|source| LibraryError::Reference { name: name.to_owned(), source })?;
    match reference.digest() {
        Some(_) => Err(LibraryError::BadName { name: name.to_owned() }),
        None => Ok(()),
    }
}

fn forget_identity(tree: &mut Tree) {
    if let Some(ssh) = directory(tree, SSH_HOST_KEYS.0) {
        let names: Vec<Box<[u8]>> =
            tree.entries(ssh).into_iter().flat_map(|e| e.keys().cloned()).collect();
        for name in names.iter().filter(|name| name.starts_with(SSH_HOST_KEYS.1)) {
            tree.remove(ssh, name);
        }
    }
    for path in IDENTITY {
        let at = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        let (parent, name) = (&path[..at], &path[at + 1..]);
        let Some(parent) = directory(tree, parent) else { continue };
        let Some(found) = tree.child(parent, name) else { continue };
        let metadata = tree.node(found).metadata.clone();
        tree.remove(parent, name);
        if path == b"etc/machine-id" {
            // Programs expect the file; an empty one says that it is to be filled.
            let _ =
                tree.insert(parent, name, metadata, Kind::File(banger_ext4::Content::default()));
        }
    }
}

fn directory(tree: &Tree, path: &[u8]) -> Option<NodeId> {
    let mut parts = path.split(|byte| *byte == b'/');
    parts.try_fold(Tree::ROOT, |parent, name| tree.child(parent, name))
}
