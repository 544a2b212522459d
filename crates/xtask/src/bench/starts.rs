//! How long a start takes, beside bare boots of the same kernels.

use std::time::Duration;

use banger_api::shim::{LAUNCH_FILE, LaunchSpec};
use banger_testkit::Host;

use super::Row;
use super::bare::{BareBoot, Manner};
use super::figures::median;
use crate::failure::{ChoreFailure, on_file};
use crate::tree;

/// The kernel that `script/make-kernel` builds, and where it leaves it.
const SMALL: &str = "banger-minimal";
const SMALL_FILE: &str = "target/kernel/vmlinux";

/// Bare boots and starts with one kernel, and how long each took.
struct Series {
    bare: BareBoot,
    start: Vec<String>,
    boots: Vec<Duration>,
    starts: Vec<Duration>,
}

impl Series {
    fn new(host: &Host, spec: &LaunchSpec, kernel: Option<&str>) -> Result<Self, ChoreFailure> {
        let mut start = vec!["run", "--rm", "-q"];
        start.extend(kernel.iter().flat_map(|kernel| ["--kernel", kernel]));
        start.extend(["--", "true"]);
        Ok(Self {
            bare: BareBoot::prepare(spec, &host.scratch, Manner::AsBanger)?,
            start: start.into_iter().map(str::to_owned).collect(),
            boots: Vec::new(),
            starts: Vec::new(),
        })
    }

    fn go_on(&mut self, host: &Host) -> Result<(), ChoreFailure> {
        self.boots.push(self.bare.boot()?);
        self.starts.push(host.banger(&self.start).run().assert_ok().took);
        Ok(())
    }

    /// Seconds of a bare boot and of a start.
    fn seconds(&mut self) -> (f64, f64) {
        (median(&mut self.boots).as_secs_f64(), median(&mut self.starts).as_secs_f64())
    }
}

/// What a VM was started with.
pub(super) fn launch_spec(host: &Host, vm: &str) -> Result<LaunchSpec, ChoreFailure> {
    let launch = host.vm_dir(vm).join(LAUNCH_FILE);
    let text = std::fs::read_to_string(&launch).map_err(on_file("read", &launch))?;
    Ok(serde_json::from_str(&text).expect("the daemon wrote it"))
}

/// Measures bare boots and starts by turns, so that what else the machine does hits all alike.
pub(super) fn measure(
    host: &Host,
    spec: &LaunchSpec,
    runs: usize,
) -> Result<Vec<Row>, ChoreFailure> {
    let packaged = BareBoot::prepare(spec, &host.scratch, Manner::AsPackaged)?;
    let mut usual = Series::new(host, spec, None)?;
    let mut small = match small_spec(host)? {
        Some(spec) => Some(Series::new(host, &spec, Some(SMALL))?),
        None => None,
    };
    let mut plain = Vec::new();
    for _ in 0..runs {
        plain.push(packaged.boot()?);
        usual.go_on(host)?;
        small.as_mut().map_or(Ok(()), |small| small.go_on(host))?;
    }
    let plain = median(&mut plain).as_secs_f64();
    let (boot, start) = usual.seconds();
    let mut rows = vec![
        Row::new("bare QEMU boot, kernel as packaged", format!("{plain:.2} s"), ""),
        Row::new("bare QEMU boot, kernel as banger boots it", format!("{boot:.2} s"), ""),
        Row::new(
            "cold start: `banger run --rm -- true`",
            format!(
                "{start:.2} s, **{:.2} ×** the first, {:.2} × the second",
                start / plain,
                start / boot
            ),
            "≤ 1.4 ×",
        ),
    ];
    rows.extend(small_rows(small.as_mut().map(Series::seconds), plain, boot));
    Ok(rows)
}

/// What a VM with the small kernel is started with; None if it was not built.
fn small_spec(host: &Host) -> Result<Option<LaunchSpec>, ChoreFailure> {
    let file = tree::root().join(SMALL_FILE);
    if !file.exists() {
        return Ok(None);
    }
    let file = file.to_string_lossy();
    host.banger(["kernel", "import", "--name", SMALL, &file]).run().assert_ok();
    host.banger(["run", "-d", "-q", "--name", "small", "--kernel", SMALL]).run().assert_ok();
    let spec = launch_spec(host, "small")?;
    host.banger(["rm", "-f", "small"]).run().assert_ok();
    Ok(Some(spec))
}

/// The rows of the small kernel: seconds of its bare boot and of a start with it, beside the bare
/// boots of the usual one.
fn small_rows(measured: Option<(f64, f64)>, plain: f64, usual: f64) -> Vec<Row> {
    let (bare, cold) = (
        "bare QEMU boot, `banger-minimal`",
        "cold start: `banger run --rm --kernel banger-minimal -- true`",
    );
    let Some((boot, start)) = measured else {
        let why = format!("skipped: {SMALL_FILE} is not there (script/make-kernel)");
        return vec![Row::new(bare, why, "≤ 0.5 ×")];
    };
    let (of_plain, of_usual) = (boot / plain, boot / usual);
    vec![
        Row::new(
            bare,
            format!("{boot:.2} s, {of_plain:.2} × the first, **{of_usual:.2} ×** the second"),
            "≤ 0.5 ×",
        ),
        Row::new(cold, format!("{start:.2} s, {:.2} × its bare boot", start / boot), ""),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_was_not_built_is_said_to_be_skipped() {
        let rows = small_rows(None, 3.0, 2.0);
        assert!(rows[0].measured.contains("script/make-kernel"));
        let rows = small_rows(Some((1.0, 1.5)), 3.0, 2.0);
        assert_eq!(rows[0].measured, "1.00 s, 0.33 × the first, **0.50 ×** the second");
        assert_eq!(rows[1].measured, "1.50 s, 1.50 × its bare boot");
    }
}
