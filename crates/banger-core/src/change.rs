//! What changing a VM means: what may be changed, what is then different, and from when on.
//!
//! Everything about a VM's hardware is read when it starts, so it changes with the next start.
//! What only the daemon acts on (labels, restart policy, time to live) changes at once. Disks grow
//! and never shrink: what lies at the end of a guest's file system only the guest could move.

use std::time::Duration;

use banger_api::change::{Applies, Change, Resources, SetVm};
use banger_api::image::Image;
use banger_api::vm::{VmSpec, VmState};
use banger_api::{ErrorCode, Problem};

use crate::entrypoint::with_image;
use crate::spec::{self, HostCapacity, SpecError};
use crate::{duration, size};

/// The setting whose removal is at once.
const WORK_DISK: &str = "work-disk";

/// What of a VM can be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What it is.
    pub spec: VmSpec,
    /// Digest of the image that its root disk begins with.
    pub image_digest: String,
    /// Size of its root disk.
    pub disk_bytes: u64,
    /// When it is to be stopped and removed, if ever.
    pub expires_at_ms: Option<u64>,
    /// Which disks it shall have, where they have been replaced since it was made: those beside its own
    /// that are called so take their place.
    pub disks: Option<String>,
}

impl Settings {
    /// What it starts with.
    #[must_use]
    pub fn resources(&self) -> Resources {
        Resources::of(&self.spec, self.disk_bytes)
    }
}

/// Under which circumstances a change is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Circumstances {
    /// The VM's state.
    pub state: VmState,
    /// Now.
    pub now_ms: u64,
    /// What the host has.
    pub host: HostCapacity,
}

/// Another image for a VM.
#[derive(Debug, Clone, Copy)]
pub struct Images<'a> {
    /// What it has.
    pub from: &'a Image,
    /// What it shall have.
    pub to: &'a Image,
}

/// What a change comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The VM afterwards.
    pub after: Settings,
    /// What is different; empty if nothing is.
    pub changes: Vec<Change>,
}

/// Why a change cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Nothing was asked for.
    #[error("nothing to change was given")]
    Nothing,
    /// A disk was to become smaller.
    #[error(
        "{disk} cannot shrink from {} to {}",
        size::format(*has_bytes),
        size::format(*asked_bytes)
    )]
    Shrinks {
        /// `the root disk`, `the work disk`.
        disk: &'static str,
        /// Its size.
        has_bytes: u64,
        /// What was asked for.
        asked_bytes: u64,
    },
    /// The guest uses what was to be removed.
    #[error("the VM is {state}, so its {disk} cannot be removed")]
    DiskInUse {
        /// `work disk`, `root disk`.
        disk: &'static str,
        /// The state that does not allow it.
        state: VmState,
    },
    /// There cannot be such a VM.
    #[error(transparent)]
    Spec(#[from] SpecError),
}

impl ChangeError {
    /// The error for the person who asked to change the VM called `name`.
    #[must_use]
    pub fn problem(&self, name: &str) -> Problem {
        let code = match self {
            Self::DiskInUse { .. } => ErrorCode::VmWrongState,
            _ => ErrorCode::InvalidArgument,
        };
        let problem = Problem::new(code, self.to_string());
        match self {
            Self::Nothing => problem.hint("banger set --help"),
            Self::Shrinks { has_bytes, .. } => problem
                .cause("the guest's files may lie anywhere on it; a disk can only grow")
                .hint(format!(
                    "give it more than {}, or make a new VM with a smaller disk",
                    size::format(*has_bytes)
                )),
            Self::DiskInUse { .. } => problem.hint(format!("banger stop {name}")),
            Self::Spec(error) => match hint(error, name) {
                Some(hint) => problem.hint(hint),
                None => problem,
            },
        }
    }
}

/// What to type instead of a setting that cannot be.
fn hint(error: &SpecError, name: &str) -> Option<String> {
    let options = match error {
        SpecError::Cpus { asked: 0, .. } => format!("--cpus {}", spec::DEFAULT_CPUS),
        SpecError::Cpus { most, .. } => format!("--cpus {most}"),
        SpecError::MemoryTooSmall { .. } => format!("--memory {}M", spec::MIN_MEMORY_MIB),
        SpecError::MemoryTooLarge { host_mib, .. } => format!("--memory {}M", host_mib / 2),
        SpecError::WorkDiskTooSmall { .. } => "--work-disk 10G".to_owned(),
        SpecError::RestartOfRemoved => {
            return Some("banger run -d --restart always, without --rm".to_owned());
        }
        _ => return None,
    };
    Some(format!("banger set {name} {options}"))
}

/// What comes of asking for `wanted` of a VM that is as in `before`. With `images`, its root disk is
/// replaced.
///
/// # Errors
/// [`ChangeError`]; nothing changes then.
pub fn plan(
    before: &Settings,
    wanted: &SetVm,
    circumstances: Circumstances,
    images: Option<Images<'_>>,
) -> Result<Plan, ChangeError> {
    if *wanted == SetVm::default() {
        return Err(ChangeError::Nothing);
    }
    let mut after = before.clone();
    if let Some(images) = images {
        if circumstances.state.is_live() {
            return Err(in_use("root disk", circumstances.state));
        }
        after.spec = with_image(&before.spec, images.from, images.to);
        after.image_digest.clone_from(&images.to.digest);
        after.disk_bytes = before.disk_bytes.max(images.to.disk_bytes);
        after.disks = Some(spec::disks_of_image(&images.to.digest).to_owned());
    }
    let spec = &mut after.spec;
    spec.cpus = wanted.cpus.unwrap_or(spec.cpus);
    spec.memory_mib = wanted.memory_mib.unwrap_or(spec.memory_mib);
    spec.restart = wanted.restart.unwrap_or(spec.restart);
    for (key, value) in &wanted.labels {
        match value {
            Some(value) => drop(spec.labels.insert(key.clone(), value.clone())),
            None => drop(spec.labels.remove(key)),
        }
    }
    if let Some(asked) = wanted.disk_bytes {
        after.disk_bytes = grown("the root disk", after.disk_bytes, asked)?;
        spec.disk_bytes = Some(after.disk_bytes);
    }
    match wanted.work_disk_bytes {
        None => {}
        Some(0) if spec.work_disk_bytes.is_some() && circumstances.state.is_live() => {
            return Err(in_use("work disk", circumstances.state));
        }
        Some(0) => spec.work_disk_bytes = None,
        Some(asked) => {
            let has = before.spec.work_disk_bytes.unwrap_or(0);
            spec.work_disk_bytes = Some(grown("the work disk", has, asked)?);
        }
    }
    if let Some(ttl_ms) = wanted.ttl_ms {
        spec.ttl_ms = Some(ttl_ms).filter(|ttl_ms| *ttl_ms > 0);
        after.expires_at_ms = spec.ttl_ms.map(|ttl| circumstances.now_ms.saturating_add(ttl));
    }
    check(&after.spec, wanted, &circumstances.host)?;
    let mut changes = differences(before, &after, circumstances.now_ms);
    if let Some(images) = images {
        let name = |image: &Image| Some(format!("{} ({})", image.name, short(&image.digest)));
        let (from, to) = (name(images.from), name(images.to));
        let image = Change { setting: "image".to_owned(), from, to, applies: Applies::Now };
        changes.insert(0, image);
    }
    Ok(Plan { after, changes })
}

fn in_use(disk: &'static str, state: VmState) -> ChangeError {
    ChangeError::DiskInUse { disk, state }
}

/// The beginning of a digest, enough to tell it from others.
fn short(digest: &str) -> &str {
    digest.get(..19).unwrap_or(digest)
}

/// A label can be set whatever has become of the host since the VM was made.
fn check(spec: &VmSpec, wanted: &SetVm, host: &HostCapacity) -> Result<(), SpecError> {
    let labels_alone = SetVm { labels: wanted.labels.clone(), ..SetVm::default() };
    if *wanted == labels_alone { spec::check_labels(&spec.labels) } else { spec::check(spec, host) }
}

/// The new size of a disk, in whole MiB.
fn grown(disk: &'static str, has_bytes: u64, asked_bytes: u64) -> Result<u64, ChangeError> {
    if asked_bytes < has_bytes {
        return Err(ChangeError::Shrinks { disk, has_bytes, asked_bytes });
    }
    if asked_bytes > spec::MAX_DISK_BYTES {
        return Err(SpecError::DiskTooLarge { asked_bytes }.into());
    }
    Ok(asked_bytes.next_multiple_of(size::MIB))
}

fn differences(before: &Settings, after: &Settings, now_ms: u64) -> Vec<Change> {
    let mut changes = hardware(before.resources(), after.resources());
    let now = |setting: String, from, to| Change { setting, from, to, applies: Applies::Now };
    let (old, new) = (&before.spec, &after.spec);
    for key in old.labels.keys().chain(new.labels.keys().filter(|k| !old.labels.contains_key(*k))) {
        let (from, to) = (old.labels.get(key).cloned(), new.labels.get(key).cloned());
        if from != to {
            changes.push(now(format!("label {key}"), from, to));
        }
    }
    if old.restart != new.restart {
        let word = |policy: banger_api::vm::RestartPolicy| Some(policy.as_str().to_owned());
        changes.push(now("restart".to_owned(), word(old.restart), word(new.restart)));
    }
    if before.expires_at_ms != after.expires_at_ms {
        let left = |at: Option<u64>| {
            let ms = at?.saturating_sub(now_ms);
            Some(duration::format(Duration::from_millis(ms)))
        };
        changes.push(now("ttl".to_owned(), left(before.expires_at_ms), left(after.expires_at_ms)));
    }
    changes
}

/// What a running VM has that differs from what it will have at its next start.
#[must_use]
pub fn pending(running: Resources, set: &Settings) -> Vec<Change> {
    hardware(running, set.resources())
}

fn hardware(has: Resources, will: Resources) -> Vec<Change> {
    let memory = |mib: u32| Some(size::format(u64::from(mib) * size::MIB));
    let bytes = |bytes: u64| Some(size::format(bytes));
    let number = |number: u32| Some(number.to_string());
    // What is removed goes while the VM does not run.
    let work_disk = if will.work_disk_bytes.is_none() { Applies::Now } else { Applies::NextStart };
    let rows = [
        (has.cpus != will.cpus, "cpus", number(has.cpus), number(will.cpus)),
        (
            has.memory_mib != will.memory_mib,
            "memory",
            memory(has.memory_mib),
            memory(will.memory_mib),
        ),
        (has.disk_bytes != will.disk_bytes, "disk", bytes(has.disk_bytes), bytes(will.disk_bytes)),
        (
            has.work_disk_bytes != will.work_disk_bytes,
            WORK_DISK,
            has.work_disk_bytes.and_then(bytes),
            will.work_disk_bytes.and_then(bytes),
        ),
    ];
    let differing = rows.into_iter().filter(|(differs, ..)| *differs);
    differing
        .map(|(_, setting, from, to)| {
            let applies = if setting == WORK_DISK { work_disk } else { Applies::NextStart };
            Change { setting: setting.to_owned(), from, to, applies }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use banger_api::vm::RestartPolicy;

    use super::*;
    use crate::entrypoint::tests::any_image;
    use crate::size::{GIB, MIB};
    use crate::spec::tests::any_spec;

    const HOST: HostCapacity = HostCapacity { cpus: 2, memory_mib: 4096 };

    fn before() -> Settings {
        let mut spec = any_spec();
        spec.labels = BTreeMap::from([("team".to_owned(), "a".to_owned())]);
        spec.work_disk_bytes = Some(10 * GIB);
        let image_digest = "sha256:image".to_owned();
        Settings { spec, image_digest, disk_bytes: 8 * GIB, expires_at_ms: None, disks: None }
    }

    fn ask(wanted: &SetVm, state: VmState) -> Result<Plan, ChangeError> {
        plan(&before(), wanted, Circumstances { state, now_ms: 1_000, host: HOST }, None)
    }

    fn lines(plan: &Plan) -> Vec<String> {
        let none = || "none".to_owned();
        let line = |change: &Change| {
            let when = if change.applies == Applies::Now { "now" } else { "next start" };
            let (from, to) = (change.from.clone(), change.to.clone());
            let (from, to) = (from.unwrap_or_else(none), to.unwrap_or_else(none));
            format!("{}: {from} > {to} ({when})", change.setting)
        };
        plan.changes.iter().map(line).collect()
    }

    #[test]
    fn each_setting_says_what_it_was_what_it_is_and_from_when_on() {
        let label = |key: &str, value: Option<&str>| {
            BTreeMap::from([(key.to_owned(), value.map(str::to_owned))])
        };
        let none = SetVm::default;
        let table: [(SetVm, &[&str]); 13] = [
            (SetVm { cpus: Some(4), ..none() }, &["cpus: 2 > 4 (next start)"]),
            (SetVm { cpus: Some(2), ..none() }, &[]),
            (SetVm { memory_mib: Some(2048), ..none() }, &["memory: 1 GiB > 2 GiB (next start)"]),
            (
                SetVm { disk_bytes: Some(9 * GIB - 1), ..none() },
                &["disk: 8 GiB > 9 GiB (next start)"],
            ),
            (
                SetVm { work_disk_bytes: Some(20 * GIB), ..none() },
                &["work-disk: 10 GiB > 20 GiB (next start)"],
            ),
            (SetVm { work_disk_bytes: Some(0), ..none() }, &["work-disk: 10 GiB > none (now)"]),
            (SetVm { labels: label("team", Some("b")), ..none() }, &["label team: a > b (now)"]),
            (SetVm { labels: label("team", None), ..none() }, &["label team: a > none (now)"]),
            (SetVm { labels: label("new", Some("")), ..none() }, &["label new: none >  (now)"]),
            (SetVm { labels: label("other", None), ..none() }, &[]),
            (
                SetVm { restart: Some(RestartPolicy::Always), ..none() },
                &["restart: no > always (now)"],
            ),
            (SetVm { ttl_ms: Some(7_200_000), ..none() }, &["ttl: none > 2h (now)"]),
            (SetVm { ttl_ms: Some(0), ..none() }, &[]),
        ];
        for (wanted, want) in table {
            let plan = ask(&wanted, VmState::Stopped).expect("allowed");
            assert_eq!(lines(&plan), want, "{wanted:?}");
            assert_eq!(plan.changes.is_empty(), plan.after == before(), "{wanted:?}");
        }
    }

    #[test]
    fn what_is_left_out_stays_and_what_is_set_is_set() {
        let wanted =
            SetVm { cpus: Some(3), disk_bytes: Some(9 * GIB), ttl_ms: Some(5), ..SetVm::default() };
        let after = ask(&wanted, VmState::Running).expect("allowed").after;
        let mut want = before();
        want.spec.cpus = 3;
        want.spec.disk_bytes = Some(9 * GIB);
        want.disk_bytes = 9 * GIB;
        want.spec.ttl_ms = Some(5);
        want.expires_at_ms = Some(1_005);
        assert_eq!(after, want);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let none = SetVm::default;
        let table = [
            (none(), ChangeError::Nothing),
            (SetVm { cpus: Some(0), ..none() }, SpecError::Cpus { asked: 0, most: 8 }.into()),
            (SetVm { cpus: Some(9), ..none() }, SpecError::Cpus { asked: 9, most: 8 }.into()),
            (
                SetVm { memory_mib: Some(1), ..none() },
                SpecError::MemoryTooSmall { asked_mib: 1 }.into(),
            ),
            (
                SetVm { disk_bytes: Some(8 * GIB - 1), ..none() },
                ChangeError::Shrinks {
                    disk: "the root disk",
                    has_bytes: 8 * GIB,
                    asked_bytes: 8 * GIB - 1,
                },
            ),
            (
                SetVm { disk_bytes: Some(u64::MAX), ..none() },
                SpecError::DiskTooLarge { asked_bytes: u64::MAX }.into(),
            ),
            (
                SetVm { work_disk_bytes: Some(MIB), ..none() },
                ChangeError::Shrinks {
                    disk: "the work disk",
                    has_bytes: 10 * GIB,
                    asked_bytes: MIB,
                },
            ),
            (SetVm { work_disk_bytes: Some(0), ..none() }, in_use("work disk", VmState::Running)),
            (
                SetVm {
                    labels: BTreeMap::from([
                        ("a,b".to_owned(), None),
                        ("c=".to_owned(), Some(String::new())),
                    ]),
                    ..none()
                },
                SpecError::LabelKey { key: "c=".to_owned() }.into(),
            ),
        ];
        for (wanted, want) in table {
            assert_eq!(ask(&wanted, VmState::Running).expect_err("refused"), want);
        }
    }

    #[test]
    fn another_image_is_a_fresh_root_disk_at_least_as_large() {
        let image = |name: &str, disk_bytes: u64| any_image(name, disk_bytes);
        let (from, to) = (image("old", 2 * GIB), image("new", 20 * GIB));
        let wanted = SetVm { image: Some("new".to_owned()), ..SetVm::default() };
        let ask = |state, to| {
            let circumstances = Circumstances { state, now_ms: 1_000, host: HOST };
            plan(&before(), &wanted, circumstances, Some(Images { from: &from, to }))
        };
        let plan = ask(VmState::Stopped, &to).expect("it does not run");
        assert_eq!(plan.after.image_digest, "sha256:new");
        assert_eq!(plan.after.spec.image, "new");
        assert_eq!(plan.after.disk_bytes, 20 * GIB);
        assert_eq!(
            lines(&plan),
            [
                "image: old (sha256:old) > new (sha256:new) (now)",
                "disk: 8 GiB > 20 GiB (next start)"
            ]
        );
        let same = ask(VmState::Failed, &from).expect("the same image again");
        assert_eq!(same.changes.len(), 1, "a fresh disk is a change");
        let refused = ask(VmState::Running, &to).expect_err("it runs");
        assert_eq!(refused, in_use("root disk", VmState::Running));
    }

    #[test]
    fn a_label_needs_no_room_on_the_host() {
        let poor = HostCapacity { cpus: 2, memory_mib: 256 };
        let circumstances = Circumstances { state: VmState::Stopped, now_ms: 0, host: poor };
        let labels = BTreeMap::from([("a".to_owned(), Some("b".to_owned()))]);
        let wanted = SetVm { labels, ..SetVm::default() };
        plan(&before(), &wanted, circumstances, None).expect("a label");
        let wanted = SetVm { cpus: Some(1), ..SetVm::default() };
        plan(&before(), &wanted, circumstances, None)
            .expect_err("its memory is not there any more");
    }

    #[test]
    fn a_refusal_says_what_to_type() {
        let hint = |error: ChangeError| error.problem("web").hint;
        let cases = [
            (SpecError::Cpus { asked: 9, most: 8 }.into(), "banger set web --cpus 8"),
            (SpecError::MemoryTooSmall { asked_mib: 1 }.into(), "banger set web --memory 128M"),
            (in_use("work disk", VmState::Running), "banger stop web"),
            (ChangeError::Nothing, "banger set --help"),
            (SpecError::RestartOfRemoved.into(), "banger run -d --restart always, without --rm"),
        ];
        for (error, want) in cases {
            assert_eq!(hint(error).as_deref(), Some(want));
        }
    }

    #[test]
    fn a_running_vm_shows_what_its_next_start_changes() {
        let set = before();
        let has = set.resources();
        assert_eq!(pending(has, &set), []);
        let less = Resources { cpus: 1, work_disk_bytes: None, ..has };
        let changes = pending(less, &set);
        let settings: Vec<&str> = changes.iter().map(|change| change.setting.as_str()).collect();
        assert_eq!(settings, ["cpus", "work-disk"]);
    }
}
