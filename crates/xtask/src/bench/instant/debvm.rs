//! debvm: an image made once by debvm-create, started by debvm-run with its changes thrown away.

use std::fs::File;
use std::process::{Command, Stdio};

use super::Stage;
use super::contender::{Contender, Once, Reason, Side};
use super::provision::{self, Package};
use super::trial::Trial;
use crate::failure::{on_file, run};

/// Everything as debvm does it by default, but for what it must be told where KVM does not work.
pub(super) const DEBVM: Contender =
    Contender { name: "debvm", side: Side::Peer, every: 10, prepare };

const PACKAGES: [Package; 3] = [
    Package::new("debvm-run", "debvm"),
    Package::new("genext2fs", "genext2fs"),
    Package::new("mmdebstrap", "mmdebstrap"),
];
/// The prompt of the shell on the serial console, into which debvm's images log in.
const PROMPT: &str = "root@testvm:";
/// The guest's shell computes the answer: that it echoes the line is not one.
const LINE: &[u8] = b"true && echo \"ran $((40 + 2))\"\n";
const ANSWER: &str = "ran 42";
/// What ends a QEMU on the console, as debvm-run's manual says.
const END: &[u8] = b"\x01x";

fn prepare(stage: &Stage) -> Result<Once<'_>, Reason> {
    provision::ensure_packages(&PACKAGES)?;
    let debian = crate::apt::sources()?;
    let image = provision::ensure_made(&stage.cache.join(format!("debvm-{}", debian.0)), |dir| {
        eprintln!("making debvm's image (a minute or two)");
        let log = dir.join("create.log");
        let log = File::create(&log).map_err(on_file("create", &log))?;
        let mut create = Command::new("debvm-create");
        create.args(["-r", &debian.0, "-o"]).arg(dir.join("image.ext4"));
        create.arg("--").arg(provision::apt_settings(dir)?).args(debian.1.lines());
        // It tells every package, all of it as if it were wrong.
        run(create.stdout(Stdio::null()).stderr(log))
    })?;
    let mut start = Command::new("debvm-run");
    start.arg("-i").arg(image.join("image.ext4")).args(["--", "-snapshot"]);
    if !stage.has_kvm() {
        // It takes a /dev/kvm that opens for one that works.
        start.args(["-machine", "accel=tcg", "-cpu", "max"]);
    }
    Ok(Box::new(move || {
        let mut trial = Trial::start(&start)?;
        trial.expect(PROMPT)?;
        trial.send(LINE)?;
        trial.expect(ANSWER)?;
        trial.send(END)?;
        Ok(trial.end()?.took)
    }))
}
