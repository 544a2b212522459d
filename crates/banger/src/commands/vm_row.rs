//! A VM as a line of a list.

use std::time::Duration;

use banger_api::exec::ExecEnd;
use banger_api::vm::{PauseReason, Vm, VmState, VmStatus};
use banger_core::{duration, size};
use serde::Serialize;

use crate::ui::Row;

/// A VM, and the time at which it is looked at.
#[derive(Debug, Serialize)]
pub struct VmRow {
    #[serde(flatten)]
    vm: Vm,
    #[serde(skip)]
    now_ms: u64,
}

impl VmRow {
    /// A line for this VM.
    pub fn new(vm: Vm, now_ms: u64) -> Self {
        Self { vm, now_ms }
    }
}

impl Row for VmRow {
    const HEADERS: &'static [&'static str] =
        &["NAME", "ID", "STATE", "IMAGE", "CPUS", "MEMORY", "CREATED"];

    fn name(&self) -> &str {
        &self.vm.name
    }

    fn cells(&self) -> Vec<String> {
        let vm = &self.vm;
        vec![
            vm.name.clone(),
            vm.id.clone(),
            state(vm, self.now_ms),
            vm.spec.image.clone(),
            now_and_then(vm, "cpus", vm.spec.cpus.to_string()),
            now_and_then(vm, "memory", size::format(u64::from(vm.spec.memory_mib) * size::MIB)),
            format!("{} ago", age(vm.created_at_ms, self.now_ms)),
        ]
    }
}

/// The state, since when, and what a main command left: `stopped (3) 5 minutes ago`.
pub fn state(vm: &Vm, now_ms: u64) -> String {
    let status = &vm.status;
    let age = age(status.since_ms, now_ms);
    match status.state {
        VmState::Created => "created".to_owned(),
        VmState::Stopped | VmState::Failed => {
            let code = status.end.as_ref().and_then(|end| end.main).map(ExecEnd::exit_code);
            let code = code.map(|code| format!(" ({code})")).unwrap_or_default();
            if let Some(next_start_ms) = status.next_start_ms {
                return restarting(status, next_start_ms.saturating_sub(now_ms));
            }
            format!("{}{code} {age} ago", status.state)
        }
        live => {
            let why = why_paused(status);
            match expires(vm, now_ms) {
                Some(when) => format!("{live}{why} {age}, expires {when}"),
                None => format!("{live}{why} {age}"),
            }
        }
    }
}

/// Why it stands still, if not by request alone.
fn why_paused(status: &VmStatus) -> String {
    match &status.paused[..] {
        [] | [PauseReason::Requested] => String::new(),
        reasons => {
            let words: Vec<&str> = reasons.iter().map(|reason| reason.as_str()).collect();
            format!(" ({})", words.join(", "))
        }
    }
}

/// What a setting is; where that takes a start, what it is now and then: `2 → 4`.
fn now_and_then(vm: &Vm, setting: &str, set: String) -> String {
    let change = vm.pending.iter().find(|change| change.setting == setting);
    match change.and_then(|change| change.from.as_ref()) {
        Some(now) => format!("{now} → {set}"),
        None => set,
    }
}

/// The pause before a start: `restarting in 8s (3rd time: guest kernel panic: …)`.
fn restarting(status: &VmStatus, left_ms: u64) -> String {
    let left = match left_ms.div_ceil(1000) {
        0 => "restarting now".to_owned(),
        seconds => format!("restarting in {}", duration::format(Duration::from_secs(seconds))),
    };
    let reason = status.end.as_ref().map(|end| format!(": {}", clip(&end.reason)));
    format!("{left} ({} time{})", ordinal(status.restarts), reason.unwrap_or_default())
}

/// The beginning of a reason: it stands in a list.
fn clip(reason: &str) -> String {
    match reason.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", reason[..end].trim_end()),
        None => reason.to_owned(),
    }
}

fn ordinal(number: u32) -> String {
    let ending = match (number % 10, number % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{number}{ending}")
}

/// When it expires: `in 5m`, for a VM that does.
pub fn expires(vm: &Vm, now_ms: u64) -> Option<String> {
    let left_ms = vm.expires_at_ms?.saturating_sub(now_ms);
    Some(match left_ms.div_ceil(1000) {
        0 => "now".to_owned(),
        seconds => format!("in {}", duration::format(Duration::from_secs(seconds))),
    })
}

/// How long ago; a clock that was set back makes it nothing.
pub fn age(since_ms: u64, now_ms: u64) -> String {
    duration::age(Duration::from_millis(now_ms.saturating_sub(since_ms)))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::ui::render_table;

    /// A VM in some state, as the daemon would show it.
    pub fn vm(name: &str, state: &str, end: &serde_json::Value) -> Vm {
        serde_json::from_value(serde_json::json!({
            "id": "0123456789ab",
            "name": name,
            "spec": { "image": "debian-bookworm", "cpus": 2, "memory_mib": 1024 },
            "image_digest": "sha256:aa",
            "kernel_digest": "sha256:bb",
            "disk_bytes": 8u64 << 30,
            "created_at_ms": 1_000,
            "status": { "state": state, "since_ms": 61_000, "end": end },
            "dir": "/data/vms/0123456789ab",
        }))
        .expect("a VM")
    }

    /// A VM that was set to another number of CPUs while it runs.
    pub fn changed(mut vm: Vm) -> Vm {
        let change = serde_json::json!({
            "setting": "cpus", "from": "1", "to": "2", "applies": "next_start"
        });
        vm.pending = vec![serde_json::from_value(change).expect("a change")];
        vm
    }

    #[test]
    fn a_list_says_what_matters() {
        let main = |end| serde_json::json!({ "cause": "main_exited", "reason": "x", "main": end });
        let none = serde_json::Value::Null;
        let rows = [
            vm("brave-otter-7", "running", &none),
            vm("web", "stopped", &main(serde_json::json!({ "exited": 3 }))),
            vm("new", "created", &none),
            vm("bad", "failed", &none),
            changed(vm("larger", "running", &none)),
        ]
        .map(|vm| VmRow::new(vm, 121_000));
        insta::assert_snapshot!(render_table(&rows), @r"
        NAME           ID            STATE                     IMAGE            CPUS   MEMORY  CREATED
        brave-otter-7  0123456789ab  running 1 minute          debian-bookworm  2      1 GiB   2 minutes ago
        web            0123456789ab  stopped (3) 1 minute ago  debian-bookworm  2      1 GiB   2 minutes ago
        new            0123456789ab  created                   debian-bookworm  2      1 GiB   2 minutes ago
        bad            0123456789ab  failed 1 minute ago       debian-bookworm  2      1 GiB   2 minutes ago
        larger         0123456789ab  running 1 minute          debian-bookworm  1 → 2  1 GiB   2 minutes ago
        ");
    }

    #[test]
    fn a_vm_that_starts_again_or_expires_says_so() {
        let reason = "guest kernel panic: VFS: Unable to mount root fs on unknown-block";
        let end = serde_json::json!({ "cause": "guest_panic", "reason": reason });
        let mut again = vm("web", "failed", &end);
        (again.status.restarts, again.status.next_start_ms) = (3, Some(128_500));
        assert_eq!(
            state(&again, 121_000),
            "restarting in 8s (3rd time: guest kernel panic: VFS: Unable to mount…)"
        );
        let short = VmStatus { restarts: 11, end: None, ..again.status.clone() };
        assert_eq!(restarting(&short, 0), "restarting now (11th time)");
        let mut brief = vm("web", "running", &serde_json::Value::Null);
        brief.expires_at_ms = Some(421_000);
        assert_eq!(state(&brief, 121_000), "running 1 minute, expires in 5m");
        assert_eq!(expires(&brief, 999_000).as_deref(), Some("now"));
    }

    #[test]
    fn a_paused_vm_says_why_if_nobody_wanted_it() {
        use PauseReason::{HostDiskFull, Requested};
        let table: [(&[PauseReason], _); 4] = [
            (&[], "paused 1 minute"),
            (&[Requested], "paused 1 minute"),
            (&[HostDiskFull], "paused (host-disk-full) 1 minute"),
            (&[Requested, HostDiskFull], "paused (requested, host-disk-full) 1 minute"),
        ];
        for (paused, want) in table {
            let mut vm = vm("web", "paused", &serde_json::Value::Null);
            vm.status.paused = paused.to_vec();
            assert_eq!(state(&vm, 121_000), want);
        }
    }

    #[test]
    fn a_row_is_the_vm_itself_as_json() {
        let vm = vm("web", "running", &serde_json::Value::Null);
        let row = serde_json::to_value(VmRow::new(vm.clone(), 5)).expect("plain data");
        assert_eq!(row, serde_json::to_value(vm).expect("plain data"));
    }
}
