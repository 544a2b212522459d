//! banger itself, through its command line.

use banger_testkit::Host;

use super::Stage;
use super::contender::{Contender, Once, Reason, Side};

/// As users have it: what was kept of an earlier start is used.
pub(super) const WARM: Contender =
    Contender { name: "banger, warm", side: Side::Warm, every: 1, prepare: warm };

/// Where a guest stands ready when the command comes.
pub(super) const POOL: Contender =
    Contender { name: "banger, pool", side: Side::Pool, every: 1, prepare: pool };

/// Booted anew.
pub(super) const COLD: Contender =
    Contender { name: "banger, cold", side: Side::Cold, every: 5, prepare: cold };

/// What asks for a boot.
const COLD_FLAG: &str = "--cold";

fn warm(stage: &Stage) -> Result<Once<'_>, Reason> {
    Ok(start(&stage.host, &[]))
}

fn pool(stage: &Stage) -> Result<Once<'_>, Reason> {
    let mut once = start(&stage.pool, &[]);
    once()?;
    Ok(Box::new(move || {
        stage.pool.wait_for_pool(1);
        let took = once()?;
        // What comes up in its place must not be in the way of others.
        stage.pool.wait_for_pool(1);
        Ok(took)
    }))
}

fn cold(stage: &Stage) -> Result<Once<'_>, Reason> {
    let help = stage.host.banger(["run", "--help"]).run().stdout_text();
    if !help.split_whitespace().any(|word| word == COLD_FLAG) {
        return Err(Reason::new("`banger run` has no --cold: every start is a boot"));
    }
    Ok(start(&stage.host, &[COLD_FLAG]))
}

fn start<'a>(host: &'a Host, flags: &[&'static str]) -> Once<'a> {
    let arguments = [&["run", "--rm", "-q"], flags, &["--", "true"]].concat();
    Box::new(move || {
        let output = host.banger(&arguments).run();
        match output.code {
            0 => Ok(output.took),
            code => Err(Reason::new(&format!("exit code {code}: {}", output.stderr_text()))),
        }
    })
}
