//! `banger set`: another size, label or policy for a VM that there is.

use std::collections::BTreeMap;
use std::time::Duration;

use banger_api::change::{Applies, Change, SetVm, VmChanged};
use banger_core::{duration, size};
use clap::{ArgGroup, Args};
use hyper::Method;

use super::shape::Restart;
use crate::client::{Client, vm_path};
use crate::failure::Failure;
use crate::ui::Ui;

const EXAMPLES: &str = "\
Examples:
  banger set web -c 4 -m 2G              At the next start
  banger set web --disk 40G              Disks grow, and never shrink
  banger set web --work-disk 20G         A disk for the user's home
  banger set web --image web-2 --yes     A fresh root disk of another image
  banger set web --label team=a --label old-
                                         Set one label, remove another
  banger set web --ttl 2h --restart no   At once
";

/// Arguments of `banger set`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, override_usage = "banger set [OPTIONS] VM...",
    group = ArgGroup::new("settings").required(true).multiple(true))]
pub struct Set {
    /// Virtual CPUs
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..),
        group = "settings")]
    cpus: Option<u32>,
    /// Memory, for example 512M or 2G
    #[arg(short, long, value_name = "SIZE", value_parser = size::parse_memory_mib,
        group = "settings")]
    memory: Option<u32>,
    /// Size of the root disk; it can only grow
    #[arg(long, value_name = "SIZE", value_parser = size::parse, group = "settings")]
    disk: Option<u64>,
    /// Size of the work disk at the user's home; none removes it with all that is on it
    #[arg(long, value_name = "SIZE|none", value_parser = parse_work_disk, group = "settings")]
    work_disk: Option<u64>,
    /// Replace the root disk by a fresh one of this image; the work disk stays
    #[arg(long, value_name = "NAME", group = "settings")]
    image: Option<String>,
    /// Label to set, or with a minus at its end to remove; may be repeated
    #[arg(long = "label", value_name = "KEY[=VALUE]|KEY-", value_parser = parse_label,
        group = "settings")]
    labels: Vec<(String, Option<String>)>,
    /// When it is started again that ended by itself
    #[arg(
        long,
        value_enum,
        value_name = "no|on-failure|always",
        hide_possible_values = true,
        group = "settings"
    )]
    restart: Option<Restart>,
    /// Stop and remove the VM so long from now; none never does
    #[arg(long, value_name = "TIME|none", value_parser = parse_ttl, group = "settings")]
    ttl: Option<Duration>,
    /// Do not ask before a disk is removed
    #[arg(short, long)]
    yes: bool,
    /// Names or ids
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
}

impl Set {
    /// Changes all of them, whatever happens to one, and says what is different.
    pub async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let wanted = self.wanted();
        if let Some(disks) = disks_that_go(&wanted).filter(|_| !self.yes) {
            let whose = self.vms.join(", ");
            let question = format!("Remove the {disks} of {whose} with everything on it?");
            if !ui.confirm(&question).map_err(|failure| failure.with_hint("add --yes"))? {
                return Ok(0);
            }
        }
        let client = Client::ready(ui).await?;
        let mut worst = 0;
        for vm in &self.vms {
            let asked = client.ask(Method::PATCH, &vm_path(vm, ""), Some(&wanted)).await;
            match asked {
                Ok(changed) => show(&changed, ui)?,
                Err(Failure::Problem(problem)) => {
                    ui.problem(&problem);
                    worst = Failure::Problem(problem).exit_code();
                }
                Err(quiet) => return Err(quiet),
            }
        }
        Ok(worst)
    }

    fn wanted(&self) -> SetVm {
        SetVm {
            cpus: self.cpus,
            memory_mib: self.memory,
            disk_bytes: self.disk,
            work_disk_bytes: self.work_disk,
            image: self.image.clone(),
            labels: self.labels.iter().cloned().collect::<BTreeMap<_, _>>(),
            restart: self.restart.map(Into::into),
            ttl_ms: super::shape::timeout_ms(self.ttl),
        }
    }
}

/// What is lost.
fn disks_that_go(wanted: &SetVm) -> Option<&'static str> {
    match (wanted.image.is_some(), wanted.work_disk_bytes == Some(0)) {
        (true, true) => Some("root and work disk"),
        (true, false) => Some("root disk"),
        (false, true) => Some("work disk"),
        (false, false) => None,
    }
}

fn show(changed: &VmChanged, ui: &Ui) -> Result<(), Failure> {
    let name = &changed.vm.name;
    if ui.is_json() || !ui.shows_notes() {
        return ui.done(name, Some(changed));
    }
    if changed.changes.is_empty() {
        ui.note(&format!("{name}: it is so already"));
    }
    changed.changes.iter().try_for_each(|change| ui.line(&format!("{name}: {}", line(change))))
}

/// `cpus 2 → 4 (at the next start)`.
pub fn line(change: &Change) -> String {
    let value = |value: &Option<String>| match value.as_deref() {
        None => "none".to_owned(),
        Some("") => "\"\"".to_owned(),
        Some(value) => value.to_owned(),
    };
    let when = match change.applies {
        Applies::Now => "at once",
        Applies::NextStart => "at the next start",
    };
    format!("{} {} → {} ({when})", change.setting, value(&change.from), value(&change.to))
}

/// Reads a size, or `none`, which travels as 0.
fn parse_work_disk(text: &str) -> Result<u64, String> {
    if text == "none" {
        return Ok(0);
    }
    match size::parse(text) {
        Ok(0) => Err("to remove the work disk say none".to_owned()),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads a time, or `none`, which travels as 0.
fn parse_ttl(text: &str) -> Result<Duration, String> {
    if text == "none" {
        return Ok(Duration::ZERO);
    }
    match duration::parse(text) {
        Ok(Duration::ZERO) => Err("for no limit say none, to remove it now: banger rm".to_owned()),
        Ok(ttl) => Ok(ttl),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads `KEY=VALUE` and `KEY`, which set a label, and `KEY-`, which removes it.
fn parse_label(text: &str) -> Result<(String, Option<String>), String> {
    let (key, value) = match (text.split_once('='), text.strip_suffix('-')) {
        (Some((key, value)), _) => (key, Some(value.to_owned())),
        (None, Some(key)) => (key, None),
        (None, None) => (text, Some(String::new())),
    };
    if key.is_empty() {
        return Err("expected KEY, KEY=VALUE or KEY-".to_owned());
    }
    Ok((key.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_set_and_removed() {
        let label = |key: &str, value: Option<&str>| Ok((key.to_owned(), value.map(str::to_owned)));
        assert_eq!(parse_label("a=b-"), label("a", Some("b-")));
        assert_eq!(parse_label("a"), label("a", Some("")));
        assert_eq!(parse_label("a-"), label("a", None));
        assert_eq!(parse_label("a-b-"), label("a-b", None));
        for text in ["", "-", "=b"] {
            assert!(parse_label(text).is_err(), "{text}");
        }
    }

    #[test]
    fn none_is_said_in_words() {
        assert_eq!(parse_work_disk("none"), Ok(0));
        assert_eq!(parse_work_disk("1G"), Ok(1 << 30));
        assert!(parse_work_disk("0G").is_err());
        assert_eq!(parse_ttl("none"), Ok(Duration::ZERO));
        assert_eq!(parse_ttl("2h"), Ok(Duration::from_secs(7200)));
        assert!(parse_ttl("0s").is_err());
    }

    #[test]
    fn a_change_is_one_line() {
        let change = |from: Option<&str>, to: Option<&str>, applies| Change {
            setting: "cpus".to_owned(),
            from: from.map(str::to_owned),
            to: to.map(str::to_owned),
            applies,
        };
        let next = change(Some("2"), Some("4"), Applies::NextStart);
        assert_eq!(line(&next), "cpus 2 → 4 (at the next start)");
        assert_eq!(line(&change(None, Some(""), Applies::Now)), "cpus none → \"\" (at once)");
    }
}
