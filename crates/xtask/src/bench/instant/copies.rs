//! Copies of a running VM: how long it stands still, how long all of it takes, and what each copy takes of the
//! machine.

use std::time::{Duration, Instant};

use banger_api::fork::Forked;
use banger_testkit::Host;

use super::Stage;
use super::contender::Reason;
use super::floor::Floor;
use super::memory::{self, private_kib, template_kib};
use super::report::seconds;
use crate::bench::Row;
use crate::bench::figures::median;

/// How much memory the VM has touched beside what its kernel has, in MiB: twice, so that a line can be drawn.
const TOUCHED: [u64; 2] = [256, 1024];
/// The VM's memory.
const MEMORY: &str = "3G";
/// How many copies of the larger one there are.
const COPIES: usize = 20;
/// How long a command may take.
const BOUND: Duration = Duration::from_secs(300);
const SOURCE: &str = "source";
/// The name of QEMU's process.
const VMM: &str = "qemu-system-x86_64";

/// Starts VMs, copies them, measures, and removes all of them, whatever came of it.
pub(super) fn measure(stage: &Stage) -> Vec<Row> {
    eprintln!("copies of a running VM");
    let figures = observe(stage);
    let host = &stage.host;
    let mut arguments = vec!["rm".to_owned(), "-f".to_owned()];
    arguments.append(&mut host.vm_names());
    if arguments.len() > 2 {
        host.banger(arguments).timeout(BOUND).run().assert_ok();
    }
    rows(figures)
}

/// A fork that was made.
#[derive(Debug, Clone, Copy)]
struct Fork {
    touched_mib: u64,
    stood_still: Duration,
    saved_in: Duration,
    /// Until all copies ran.
    took: Duration,
}

/// What was seen.
#[derive(Debug)]
struct Figures {
    /// With one copy each.
    forks: Vec<Fork>,
    /// With [`COPIES`].
    many: Fork,
    /// The first command in each copy.
    execs: Vec<Duration>,
    /// What each copy's QEMU has for itself.
    private_kib: Vec<u64>,
    /// The same of a QEMU that has none of banger around it.
    floor_kib: Result<u64, Reason>,
    /// What the template takes on the disk, before and after.
    template_kib: [u64; 2],
}

fn observe(stage: &Stage) -> Result<Figures, Reason> {
    let (host, dir) = (&stage.host, stage.template()?);
    let template = template_kib(dir)?;
    let start = ["run", "-d", "-q", "-m", MEMORY, "--name", SOURCE];
    succeed(host, &start)?;
    let mut forks = Vec::new();
    for touched_mib in TOUCHED {
        touch(host, touched_mib)?;
        forks.push(fork(host, touched_mib, 1)?);
        succeed(host, &["rm", "-f", "copy"])?;
    }
    let sources = host.processes_named(VMM);
    let many = fork(host, TOUCHED[1], COPIES)?;
    let mut execs = Vec::new();
    for number in 1..=COPIES {
        let begun = Instant::now();
        succeed(host, &["exec", &format!("copy-{number}"), "--", "true"])?;
        execs.push(begun.elapsed());
    }
    let mut vmms = host.processes_named(VMM);
    vmms.retain(|pid| !sources.contains(pid));
    let of_each: Result<Vec<u64>, Reason> = vmms.iter().map(private_kib).collect();
    let floor_kib = Floor::prepare(stage).and_then(|floor| floor.run(private_kib)?.1);
    Ok(Figures {
        forks,
        many,
        execs,
        private_kib: of_each?,
        floor_kib,
        template_kib: [template, template_kib(dir)?],
    })
}

fn succeed(host: &Host, arguments: &[&str]) -> Result<String, Reason> {
    let output = host.banger(arguments).timeout(BOUND).run();
    match output.code {
        0 => Ok(output.stdout_text()),
        code => Err(Reason::new(&format!(
            "exit code {code} of {}: {}",
            arguments[0],
            output.stderr_text()
        ))),
    }
}

/// Has the VM write so much of its memory.
fn touch(host: &Host, mib: u64) -> Result<(), Reason> {
    let script = format!(
        "mount -o remount,size=90% /dev/shm; tr '\\0' x < /dev/zero | head -c {mib}M > /dev/shm/touched"
    );
    succeed(host, &["exec", SOURCE, "--", "sh", "-c", &script]).map(drop)
}

fn fork(host: &Host, touched_mib: u64, copies: usize) -> Result<Fork, Reason> {
    let copies = copies.to_string();
    let arguments = ["fork", SOURCE, "-n", &copies, "--name", "copy", "--format", "json"];
    let begun = Instant::now();
    let text = succeed(host, &arguments)?;
    let took = begun.elapsed();
    let forked: Forked = serde_json::from_str(&text)
        .map_err(|error| Reason::new(&format!("fork said {text:?}: {error}")))?;
    Ok(Fork {
        touched_mib,
        stood_still: Duration::from_millis(forked.paused_ms),
        saved_in: Duration::from_millis(forked.capture_ms),
        took,
    })
}

fn rows(figures: Result<Figures, Reason>) -> Vec<Row> {
    let mut figures = match figures {
        Ok(figures) => figures,
        Err(reason) => {
            return vec![Row::new("copies of a running VM", format!("not measured: {reason}"), "")];
        }
    };
    let mut rows = Vec::new();
    for fork in &figures.forks {
        let what = format!("a VM that has touched {} MiB stands still", fork.touched_mib);
        let still = fork.stood_still.as_secs_f64() * 1000.0;
        rows.push(Row::new(&what, format!("**{still:.0} ms**"), "≤ 100 ms"));
        let what = format!("saving it, and until a copy of {} MiB runs", fork.touched_mib);
        let [saved, took] = [fork.saved_in, fork.took].map(|time| seconds(time.as_secs_f64()));
        rows.push(Row::new(&what, format!("{saved}, {took}"), "linear"));
    }
    let many = figures.many;
    let up = many.took.saturating_sub(many.saved_in).as_secs_f64() / COPIES as f64;
    let exec = median(&mut figures.execs).as_secs_f64();
    rows.push(Row::new(
        &format!("each of {COPIES} copies of that, until its first command is done"),
        format!("**{}** (start {}, command {})", seconds(up + exec), seconds(up), seconds(exec)),
        "≤ 0.4 s",
    ));
    let private = memory::private(&mut figures.private_kib, &figures.floor_kib);
    rows.push(Row::new("private memory of a QEMU of them, median", private, "≤ 10 MiB more"));
    let template = memory::disk(figures.template_kib);
    rows.push(Row::new("what the template takes on the disk", template, "the same"));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_is_told_with_its_parts() {
        let second = Duration::from_secs(1);
        let fork =
            Fork { touched_mib: 256, stood_still: second / 20, saved_in: second, took: 2 * second };
        let figures = Figures {
            forks: vec![fork],
            many: Fork { took: 5 * second, ..fork },
            execs: vec![second / 10; COPIES],
            private_kib: vec![40 << 10; COPIES],
            floor_kib: Ok(35 << 10),
            template_kib: [110 << 10, 110 << 10],
        };
        let measured: Vec<String> = rows(Ok(figures)).into_iter().map(|row| row.measured).collect();
        assert_eq!(
            measured,
            [
                "**50 ms**",
                "1.00 s, 2.00 s",
                "**0.300 s** (start 0.200 s, command 0.100 s)",
                "40.0 MiB, **5.0 MiB** more than the floor’s 35.0 MiB",
                "110.0 MiB, **the same** after",
            ]
        );
        let failed = rows(Err(Reason::new("exit code 125 of fork: no")));
        assert_eq!(failed[0].measured, "not measured: exit code 125 of fork: no");
    }
}
