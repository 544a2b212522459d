//! How a VM's guest begins: by a boot, or from a template.
//!
//! Only a VM whose root disk nobody has used yet can go on from a template: the guest that was saved knows
//! its disk, and the VM gets a copy of it.

use std::io;
use std::path::{Path, PathBuf};

use banger_api::operation::OperationEvent;
use banger_api::shim::{Begin, COW_FILE, LaunchSpec, Was};
use banger_api::{ErrorCode, Problem, step, trace};
use banger_core::size::MIB;
use banger_host::{cow, files, sparse};

use super::Saved;
use super::launch::{Launch, Needs};
use crate::daemon::{blocking, failed};
use crate::operations::Waiter;
use crate::templates;

/// What the copy of a template's disk is called while it is made.
const SEED_FILE: &str = "root.cow.seed";
/// Disk that a template may take, of which not all need be there: what a guest has touched of its memory.
const ROOM: u64 = 512 * MIB;

impl Launch {
    /// How the guest begins. Whatever keeps a template from being used, it can boot.
    ///
    /// # Errors
    /// If the VM's disk cannot be used; `cancelled`.
    pub(super) async fn choose_begin(
        &self,
        needs: &Needs,
        launch: &LaunchSpec,
        vm_dir: &Path,
    ) -> Result<Begin, Problem> {
        if let Some(saved) = &self.saved {
            let Saved { dir, was } = saved;
            return Ok(Begin::Restore { saved: dir.to_string_lossy().into_owned(), was: *was });
        }
        if !self.daemon.config.templates.enabled || !is_unused(vm_dir).await? {
            return Ok(Begin::Boot);
        }
        let began = self.trace.begin();
        let wanted = needs.template(&self.daemon, launch);
        let waiter = Waiter { cancel: &self.cancel, tell: &|event| self.send(event) };
        let found = match self.has_room().await {
            true => templates::ensure(&self.daemon, &wanted, waiter).await,
            false => templates::find(&self.daemon, &wanted).await,
        };
        self.trace.end(trace::DAEMON_TEMPLATE, began);
        match found {
            Ok(Some(template)) => self.seed(template, launch, vm_dir).await,
            Ok(None) => Ok(Begin::Boot),
            Err(problem) if problem.code == ErrorCode::Cancelled => Err(problem),
            Err(problem) => {
                tracing::warn!(vm = %self.row.name, "it boots: {problem}");
                Ok(Begin::Boot)
            }
        }
    }

    async fn has_room(&self) -> bool {
        let (host, data) = (self.daemon.host.clone(), self.daemon.dirs.data.clone());
        let needed = self.daemon.config.reserve_disk_mib.saturating_mul(MIB).saturating_add(ROOM);
        let free = blocking(move || Ok(host.machine.free_bytes(&data).unwrap_or(0))).await;
        free.is_ok_and(|free| free >= needed)
    }

    /// Gives the VM the disk of the template.
    async fn seed(
        &self,
        template: PathBuf,
        launch: &LaunchSpec,
        vm_dir: &Path,
    ) -> Result<Begin, Problem> {
        let began = self.trace.begin();
        self.daemon.gate.pass(step::START_SEED).await?;
        let (from, dir, durable) = (template.join(COW_FILE), vm_dir.to_owned(), launch.durable);
        let seeded = blocking(move || Ok(copy_disk(&from, &dir, durable))).await?;
        self.trace.end(trace::DAEMON_SEED, began);
        match seeded {
            Ok(()) => {
                let saved = template.to_string_lossy().into_owned();
                Ok(Begin::Restore { saved, was: Was::Nobody })
            }
            // It was removed just now, or there is no room for it: an unused disk takes none.
            Err(error) => {
                tracing::warn!(vm = %self.row.name, "it boots: no copy of the template: {error}");
                Ok(Begin::Boot)
            }
        }
    }

    /// Makes the VM what it was before it was given a template that did not work, and lets nobody else
    /// have that one.
    ///
    /// # Errors
    /// If its disk cannot be made anew.
    pub(super) async fn give_up_template(
        &self,
        vm_dir: &Path,
        why: &Problem,
    ) -> Result<(), Problem> {
        let because = why.causes.last().unwrap_or(&why.title);
        let message = format!("the template did not work, so the guest boots: {because}");
        self.send(OperationEvent::Warning { message });
        tracing::warn!(vm = %self.row.name, "its template did not work: {why}");
        let needs = Needs::gather(&self.daemon, &self.row).await?;
        let (launch, _) =
            super::launch::launch_spec(&self.daemon, &self.row, &self.request, &needs);
        templates::discard(&self.daemon, &needs.template(&self.daemon, &launch)).await;
        self.make_disk_anew(vm_dir).await
    }

    /// Gives the VM a disk that nobody has used, in the place of the one that it has.
    ///
    /// # Errors
    /// Of the file system.
    pub(super) async fn make_disk_anew(&self, vm_dir: &Path) -> Result<(), Problem> {
        let (dir, bytes) = (vm_dir.to_owned(), self.row.disk_bytes);
        blocking(move || {
            let new = dir.join(SEED_FILE);
            remove_if_there(&new)
                .and_then(|()| cow::create(&new, bytes))
                .and_then(|()| std::fs::rename(&new, dir.join(COW_FILE)))
                .map_err(|error| failed("cannot make the VM's disk anew", &error))
        })
        .await
    }
}

async fn is_unused(vm_dir: &Path) -> Result<bool, Problem> {
    let disk = vm_dir.join(COW_FILE);
    blocking(move || {
        cow::is_unused(&disk).map_err(|error| failed("cannot read the VM's disk", &error))
    })
    .await
}

/// Puts a copy of the template's disk in the place of the unused one. What is kept must be whole also
/// after a power cut: a guest that has not synced anything yet has its disk all the same.
///
/// # Errors
/// Of the file system; the unused one stays.
pub(crate) fn copy_disk(from: &Path, vm_dir: &Path, durable: bool) -> io::Result<()> {
    let copy = vm_dir.join(SEED_FILE);
    remove_if_there(&copy)?;
    let copied = sparse::copy(from, &copy)
        .and_then(|file| if durable { file.sync_all() } else { Ok(()) })
        .and_then(|()| std::fs::rename(&copy, vm_dir.join(COW_FILE)));
    if copied.is_err() {
        // The VM boots, and would keep it for ever.
        let _ = remove_if_there(&copy);
    }
    copied?;
    if durable { files::sync_dir(vm_dir) } else { Ok(()) }
}

fn remove_if_there(file: &Path) -> io::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_was_cut_off_is_made_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let (template, vm) = (dir.path().join("template"), dir.path().join("vm"));
        std::fs::create_dir(&vm).expect("a directory");
        std::fs::write(&template, "the template's disk").expect("write");
        std::fs::write(vm.join(SEED_FILE), "half a co").expect("write");
        std::fs::write(vm.join(COW_FILE), "").expect("write");
        for durable in [true, false] {
            copy_disk(&template, &vm, durable).expect("copied");
            let disk = std::fs::read_to_string(vm.join(COW_FILE)).expect("read");
            assert_eq!(disk, "the template's disk");
            assert!(!vm.join(SEED_FILE).exists());
        }
    }
}
