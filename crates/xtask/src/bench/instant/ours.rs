//! banger itself, through its command line.

use super::Stage;
use super::contender::{Contender, Once, Reason, Side};

/// As users have it: what was kept of an earlier start is used.
pub(super) const WARM: Contender =
    Contender { name: "banger, warm", side: Side::Warm, every: 1, prepare: warm };

/// Booted anew.
pub(super) const COLD: Contender =
    Contender { name: "banger, cold", side: Side::Cold, every: 5, prepare: cold };

/// What asks for a boot.
const COLD_FLAG: &str = "--cold";

fn warm(stage: &Stage) -> Result<Once<'_>, Reason> {
    Ok(start(stage, &[]))
}

fn cold(stage: &Stage) -> Result<Once<'_>, Reason> {
    let help = stage.host.banger(["run", "--help"]).run().stdout_text();
    if !help.split_whitespace().any(|word| word == COLD_FLAG) {
        return Err(Reason::new("`banger run` has no --cold: every start is a boot"));
    }
    Ok(start(stage, &[COLD_FLAG]))
}

fn start<'a>(stage: &'a Stage, flags: &[&'static str]) -> Once<'a> {
    let arguments = [&["run", "--rm", "-q"], flags, &["--", "true"]].concat();
    Box::new(move || {
        let output = stage.host.banger(&arguments).run();
        match output.code {
            0 => Ok(output.took),
            code => Err(Reason::new(&format!("exit code {code}: {}", output.stderr_text()))),
        }
    })
}
