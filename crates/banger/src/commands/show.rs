//! `banger show`.

use std::collections::BTreeMap;
use std::time::Duration;

use banger_api::vm::{InitMode, NetworkPolicy, Origin, PauseReason, RestartPolicy, Vm};
use banger_core::{duration, size};
use clap::Args;

use super::set;
use super::vm_row::{age, expires, state};
use crate::client::Client;
use crate::failure::Failure;
use crate::ui::Ui;

/// Arguments of `banger show`.
#[derive(Debug, Args)]
pub struct Show {
    /// Names or ids
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
}

impl Show {
    /// Shows them, a summary each.
    pub async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let client = Client::ready(ui).await?;
        let now_ms = banger_host::clock::now_ms();
        for (index, name) in self.vms.iter().enumerate() {
            let vm = client.vm(name).await?;
            if index > 0 && !ui.is_json() {
                ui.line("")?;
            }
            ui.show(&vm, &fields(&vm, now_ms))?;
        }
        Ok(0)
    }
}

fn fields(vm: &Vm, now_ms: u64) -> Vec<(&'static str, String)> {
    let spec = &vm.spec;
    let mut fields =
        vec![("Name", vm.name.clone()), ("Id", vm.id.clone()), ("State", state(vm, now_ms))];
    fields.push(("Paused", why_paused(vm)));
    if let Some(end) = &vm.status.end {
        fields.push(("Ended", end.reason.clone()));
        fields.push(("Console", end.console_tail.join("\n")));
    }
    fields.push(("Warnings", vm.status.warnings.join("\n")));
    fields.extend([
        ("Image", format!("{} ({})", spec.image, short(&vm.image_digest))),
        ("Kernel", with_name(spec.kernel.as_deref(), &vm.kernel_digest)),
        ("Size", dimensions(vm)),
        ("Pending", vm.pending.iter().map(set::line).collect::<Vec<_>>().join("\n")),
    ]);
    if let Some(engine) = &vm.status.engine {
        let accelerator = engine.accelerator.as_str();
        fields.push(("Engine", format!("{} {} ({accelerator})", engine.name, engine.version)));
    }
    if let Some(boot_ms) = vm.status.boot_ms {
        let took = duration::format(Duration::from_millis(boot_ms));
        match vm.status.origin {
            Some(Origin::Template) => fields.push(("Start", format!("{took}, from a template"))),
            Some(Origin::Fork) => fields.push(("Start", format!("{took}, as a copy"))),
            Some(Origin::Snapshot) => fields.push(("Start", format!("{took}, from a snapshot"))),
            Some(Origin::Pool) => fields.push(("Start", format!("{took}, from the pool"))),
            Some(Origin::Boot) | None => fields.push(("Start", format!("{took}, by a boot"))),
        }
    }
    if spec.network == NetworkPolicy::HostAccess {
        fields.push(("Network", "with access to this host".to_owned()));
    }
    if spec.init == Some(InitMode::System) {
        fields.push(("Init", "the image's own".to_owned()));
    }
    fields.push(("Command", spec.command.join(" ")));
    // That of a main command is part of it.
    if spec.command.is_empty() {
        fields.push(("Entrypoint", spec.entrypoint.clone().unwrap_or_default().join(" ")));
    }
    fields.push(("Stop signal", spec.stop_signal.clone().unwrap_or_default()));
    fields.push(("User", spec.user.clone().unwrap_or_default()));
    fields.push(("Directory", spec.workdir.clone().unwrap_or_default()));
    fields.push(("Environment", pairs(&spec.env)));
    fields.push(("Labels", pairs(&spec.labels)));
    if spec.restart != RestartPolicy::No {
        let times = match vm.status.restarts {
            0 => String::new(),
            1 => " (1 restart so far)".to_owned(),
            count => format!(" ({count} restarts in a row so far)"),
        };
        fields.push(("Restart", format!("{}{times}", spec.restart.as_str())));
    }
    fields.push(("Expires", expires(vm, now_ms).unwrap_or_default()));
    fields.push(("Created", format!("{} ago", age(vm.created_at_ms, now_ms))));
    fields.push(("Files", vm.dir.clone()));
    fields
}

/// Why it stands still, and what has it go on.
fn why_paused(vm: &Vm) -> String {
    let line = |reason: &PauseReason| match reason {
        PauseReason::Requested => format!("by request, until `banger resume {}`", vm.name),
        PauseReason::HostDiskFull => {
            "the host's disk is full; goes on by itself when there is space".to_owned()
        }
    };
    vm.status.paused.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn dimensions(vm: &Vm) -> String {
    let spec = &vm.spec;
    let memory = size::format(u64::from(spec.memory_mib) * size::MIB);
    let disk = size::format(vm.disk_bytes);
    let work = spec.work_disk_bytes.map(|bytes| format!(", {} work disk", size::format(bytes)));
    format!("{} CPUs, {memory} memory, {disk} disk{}", spec.cpus, work.unwrap_or_default())
}

fn pairs(map: &BTreeMap<String, String>) -> String {
    let lines: Vec<String> = map.iter().map(|(key, value)| format!("{key}={value}")).collect();
    lines.join("\n")
}

fn with_name(name: Option<&str>, digest: &str) -> String {
    match name {
        Some(name) => format!("{name} ({})", short(digest)),
        None => short(digest).to_owned(),
    }
}

/// The beginning of a digest, enough to tell it from others.
fn short(digest: &str) -> &str {
    digest.get(..19).unwrap_or(digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::vm_row::tests::vm;
    use crate::ui::render_fields;

    #[test]
    fn a_summary_tells_what_waits_for_the_next_start() {
        use crate::commands::vm_row::tests::changed;
        let mut vm = changed(vm("web", "running", &serde_json::Value::Null));
        vm.spec.work_disk_bytes = Some(10 << 30);
        let text = render_fields(&fields(&vm, 121_000));
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(['S', 'P'])).collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        State:    running 1 minute
        Size:     2 CPUs, 1 GiB memory, 8 GiB disk, 10 GiB work disk
        Pending:  cpus 1 → 2 (at the next start)
        ");
    }

    #[test]
    fn a_summary_says_why_it_stands_still() {
        let mut vm = vm("web", "paused", &serde_json::Value::Null);
        vm.status.paused = vec![PauseReason::Requested, PauseReason::HostDiskFull];
        let text = render_fields(&fields(&vm, 121_000));
        let lines: Vec<&str> = text.lines().skip(2).take(3).collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        State:    paused (requested, host-disk-full) 1 minute
        Paused:   by request, until `banger resume web`
                  the host's disk is full; goes on by itself when there is space
        ");
    }

    #[test]
    fn a_summary_says_why_it_ended() {
        let end = serde_json::json!({
            "cause": "guest_panic",
            "reason": "guest kernel panic: VFS: Unable to mount root fs",
            "console_tail": ["line one", "line two"],
        });
        let mut vm = vm("web", "failed", &end);
        vm.spec.labels = [("team".to_owned(), "a".to_owned())].into();
        vm.status.boot_ms = Some(2_345);
        vm.spec.init = Some(InitMode::System);
        vm.spec.entrypoint = Some(vec!["/bin/sh".to_owned(), "-c".to_owned()]);
        vm.spec.stop_signal = Some("SIGQUIT".to_owned());
        vm.spec.restart = RestartPolicy::OnFailure;
        vm.status.restarts = 2;
        vm.expires_at_ms = Some(1_021_000);
        insta::assert_snapshot!(render_fields(&fields(&vm, 121_000)), @r"
        Name:         web
        Id:           0123456789ab
        State:        failed 1 minute ago
        Ended:        guest kernel panic: VFS: Unable to mount root fs
        Console:      line one
                      line two
        Image:        debian-bookworm (sha256:aa)
        Kernel:       sha256:bb
        Size:         2 CPUs, 1 GiB memory, 8 GiB disk
        Start:        2s, by a boot
        Init:         the image's own
        Entrypoint:   /bin/sh -c
        Stop signal:  SIGQUIT
        Labels:       team=a
        Restart:      on-failure (2 restarts in a row so far)
        Expires:      in 15m
        Created:      2 minutes ago
        Files:        /data/vms/0123456789ab
        ");
    }
}
