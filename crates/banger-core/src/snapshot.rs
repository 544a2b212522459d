//! What a snapshot keeps of a VM's settings, and what of them comes back.

use banger_api::change::Resources;
use banger_api::vm::VmSpec;
use serde::{Deserialize, Serialize};

use crate::change::Settings;

/// What a VM was, as a snapshot of it knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSettings {
    /// What it was.
    pub spec: VmSpec,
    /// Digest of the image that its root disk begins with.
    pub image_digest: String,
    /// Size of its root disk.
    pub disk_bytes: u64,
}

impl SavedSettings {
    /// What a VM is; one that runs is what it was started as.
    #[must_use]
    pub fn of(settings: &Settings, running: Option<Resources>) -> Self {
        let has = running.unwrap_or_else(|| settings.resources());
        let mut spec = settings.spec.clone();
        spec.cpus = has.cpus;
        spec.memory_mib = has.memory_mib;
        spec.work_disk_bytes = has.work_disk_bytes;
        if has.disk_bytes != settings.disk_bytes {
            spec.disk_bytes = Some(has.disk_bytes);
        }
        Self { spec, image_digest: settings.image_digest.clone(), disk_bytes: has.disk_bytes }
    }

    /// What a VM that is as in `now` becomes when it goes back to this, with disks that are called `disks`.
    /// What only the daemon acts on stays as it is now.
    #[must_use]
    pub fn restored(&self, now: &Settings, disks: String) -> Settings {
        let mut spec = self.spec.clone();
        spec.labels.clone_from(&now.spec.labels);
        spec.restart = now.spec.restart;
        spec.ttl_ms = now.spec.ttl_ms;
        spec.remove_on_exit = now.spec.remove_on_exit;
        Settings {
            spec,
            image_digest: self.image_digest.clone(),
            disk_bytes: self.disk_bytes,
            disks: Some(disks),
            expires_at_ms: now.expires_at_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use banger_api::vm::RestartPolicy;

    use super::*;
    use crate::size::GIB;
    use crate::spec::tests::any_spec;

    fn settings() -> Settings {
        let (spec, image_digest) = (any_spec(), "sha256:then".to_owned());
        Settings { spec, image_digest, disk_bytes: 8 * GIB, expires_at_ms: None, disks: None }
    }

    #[test]
    fn what_is_pending_is_not_what_runs() {
        let mut set = settings();
        let running = set.resources();
        assert_eq!(SavedSettings::of(&set, None).spec, set.spec);
        set.spec.cpus += 1;
        set.spec.work_disk_bytes = Some(GIB);
        set.disk_bytes = 16 * GIB;
        let saved = SavedSettings::of(&set, Some(running));
        assert_eq!(Resources::of(&saved.spec, saved.disk_bytes), running);
        assert_eq!(saved.spec.disk_bytes, Some(8 * GIB));
    }

    #[test]
    fn what_the_daemon_acts_on_stays_and_the_machine_goes_back() {
        let saved = SavedSettings::of(&settings(), None);
        let mut now = settings();
        now.spec.labels.insert("team".to_owned(), "a".to_owned());
        now.spec.restart = RestartPolicy::Always;
        now.spec.ttl_ms = Some(5);
        now.expires_at_ms = Some(7);
        let kept = now.clone();
        now.spec.cpus += 1;
        now.image_digest = "sha256:now".to_owned();
        now.disk_bytes = 16 * GIB;
        let disks = Some("new".to_owned());
        assert_eq!(saved.restored(&now, "new".to_owned()), Settings { disks, ..kept });
    }
}
