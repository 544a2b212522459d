//! Many VMs that begin from one template at once: how long until all of them answer, and what they
//! take of the machine.

use std::time::{Duration, Instant};

use banger_api::shim::{Begin, LAUNCH_FILE, LaunchSpec, Was};
use banger_testkit::{Host, Invocation};

use super::Stage;
use super::contender::Reason;
use super::floor::Floor;
use super::memory::{self, available_kib, in_words, memory_of, private_kib, template_kib};
use super::report::seconds;
use crate::bench::Row;
use crate::bench::figures::{kib, median};
use crate::failure::on_file;

/// How many there are.
const VMS: usize = 50;
/// How long any of them may take, or their removal: all share the processors.
const BOUND: Duration = Duration::from_secs(600);
/// What their names begin with.
const NAME: &str = "crowd-";
/// Wanted of them.
const ANSWER: &str = "all answer";
/// The name of QEMU's process.
const VMM: &str = "qemu-system-x86_64";
/// The programs of a running VM, and what the table calls them.
const PROGRAMS: [(&str, &str); 3] = [(VMM, "QEMU"), ("banger-shim", "shims"), ("pasta", "pasta")];

/// Starts all of them, measures, and removes them, whatever came of it.
pub(super) fn measure(stage: &Stage) -> Vec<Row> {
    eprintln!("{VMS} VMs at once");
    let figures = observe(stage);
    remove(&stage.host);
    rows(figures)
}

/// What was seen.
#[derive(Debug)]
struct Figures {
    /// From the first start until each had answered.
    answered: Vec<Duration>,
    /// How many booted instead.
    booted: usize,
    /// What each of [`PROGRAMS`] takes, what is shared counted in parts.
    taken_kib: [u64; 3],
    /// What the machine could still give before and while they ran.
    available_kib: [u64; 2],
    /// What each QEMU has for itself.
    private_kib: Vec<u64>,
    /// The same of a QEMU that has none of banger around it.
    floor_kib: Result<u64, Reason>,
    /// What the template takes on the disk, before and after.
    template_kib: [u64; 2],
}

fn observe(stage: &Stage) -> Result<Figures, Reason> {
    let (host, dir) = (&stage.host, stage.template()?);
    let (available, template) = (available_kib()?, template_kib(dir)?);
    let answered = start(host)?;
    let vmms = host.processes_named(VMM);
    if vmms.len() < VMS {
        return Err(Reason::new(&format!("only {} of {VMS} are left", vmms.len())));
    }
    let mut taken_kib = [0; PROGRAMS.len()];
    for (taken, (program, _)) in taken_kib.iter_mut().zip(PROGRAMS) {
        for pid in host.processes_named(program) {
            *taken += kib(&memory_of(pid)?, "Pss");
        }
    }
    let of_each: Result<Vec<u64>, Reason> = vmms.iter().map(private_kib).collect();
    let available_kib = [available, available_kib()?];
    // Among the others: what all of them read of the template is then no more the floor's than theirs.
    let floor_kib = Floor::prepare(stage).and_then(|floor| floor.run(private_kib)?.1);
    Ok(Figures {
        answered,
        booted: booted(host, &dir.to_string_lossy())?,
        taken_kib,
        available_kib,
        private_kib: of_each?,
        floor_kib,
        template_kib: [template, template_kib(dir)?],
    })
}

/// Starts all at once and asks each for an answer as soon as its start has returned. How long it took
/// from the first start until each had answered.
fn start(host: &Host) -> Result<Vec<Duration>, Reason> {
    let names = (0..VMS).map(|number| format!("{NAME}{number}"));
    let commands: Vec<[Invocation; 2]> = names
        .map(|name| {
            let start = host.banger(["run", "-d", "-q", "--name", &name]);
            let ask = host.banger(["exec", &name, "--", "true"]);
            [start, ask].map(|command| command.timeout(BOUND))
        })
        .collect();
    let begun = Instant::now();
    let answer = |commands: [Invocation; 2]| {
        for (what, command) in ["start", "exec"].iter().zip(commands) {
            let output = command.run();
            if output.code != 0 {
                let (code, why) = (output.code, output.stderr_text());
                return Err(Reason::new(&format!("exit code {code} of {what}: {why}")));
            }
        }
        Ok(begun.elapsed())
    };
    std::thread::scope(|scope| {
        let threads = commands.into_iter().map(|commands| scope.spawn(move || answer(commands)));
        // All of them first: who waits for one before it starts the next has them one by one.
        let threads: Vec<_> = threads.collect();
        let late = |_| Err(Reason::new(&format!("not done in {} s", BOUND.as_secs())));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(late)).collect()
    })
}

fn remove(host: &Host) {
    let mut names = host.vm_names();
    names.retain(|name| name.starts_with(NAME));
    if !names.is_empty() {
        let mut arguments = vec!["rm".to_owned(), "-f".to_owned()];
        arguments.append(&mut names);
        host.banger(arguments).timeout(BOUND).run().assert_ok();
    }
}

/// How many of the VMs did not begin from that template.
fn booted(host: &Host, saved: &str) -> Result<usize, Reason> {
    let vms = host.data.join("vms");
    let dirs = std::fs::read_dir(&vms).map_err(on_file("list", &vms))?;
    let mut booted = 0;
    for dir in dirs.flatten() {
        let launch = dir.path().join(LAUNCH_FILE);
        let text = std::fs::read_to_string(&launch).map_err(on_file("read", &launch))?;
        let spec: LaunchSpec = serde_json::from_str(&text).expect("the daemon wrote it");
        let begin = Begin::Restore { saved: saved.to_owned(), was: Was::Nobody };
        booted += usize::from(spec.name.starts_with(NAME) && spec.begin != begin);
    }
    Ok(booted)
}

fn rows(figures: Result<Figures, Reason>) -> Vec<Row> {
    let what = format!("{VMS} VMs from one template at once, until the last one answers");
    let mut figures = match figures {
        Ok(figures) => figures,
        Err(reason) => return vec![Row::new(&what, format!("not measured: {reason}"), ANSWER)],
    };
    let last = figures.answered.iter().max().copied().unwrap_or_default().as_secs_f64();
    let half = median(&mut figures.answered).as_secs_f64();
    let booted = match figures.booted {
        0 => String::new(),
        some => format!(", **but {some} of them booted**"),
    };
    let (last, half) = (seconds(last), seconds(half));
    let taken = PROGRAMS.iter().zip(figures.taken_kib);
    let taken =
        taken.map(|((_, name), kib)| format!("{name} {}", in_words(kib))).collect::<Vec<_>>();
    let total = in_words(figures.taken_kib.iter().sum());
    let [before, with] = figures.available_kib;
    let each = in_words(before.saturating_sub(with) / VMS as u64);
    vec![
        Row::new(&what, format!("{last}, half of them after {half}{booted}"), ANSWER),
        Row::new("their memory", format!("{total} ({})", taken.join(", ")), "≤ 24 GiB"),
        Row::new(
            "memory that the machine can still give, before and then",
            format!("{}, {}: {each} less for each", in_words(before), in_words(with)),
            "",
        ),
        Row::new(
            "private memory of a QEMU of them, median",
            memory::private(&mut figures.private_kib, &figures.floor_kib),
            "≤ 10 MiB more",
        ),
        Row::new(
            "what the template takes on the disk",
            memory::disk(figures.template_kib),
            "the same",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Figures {
        Figures {
            answered: [3, 1, 2].map(Duration::from_secs).into(),
            booted: 0,
            taken_kib: [3 << 20, 100 << 10, 0],
            available_kib: [20 << 20, 15 << 20],
            private_kib: vec![70 << 10, 60 << 10, 61 << 10],
            floor_kib: Ok(63 << 10),
            template_kib: [110 << 10, 110 << 10],
        }
    }

    fn measured(figures: Figures) -> Vec<String> {
        rows(Ok(figures)).into_iter().map(|row| row.measured).collect()
    }

    #[test]
    fn figures_are_told_beside_what_they_are_compared_with() {
        assert_eq!(
            measured(figures()),
            [
                "3.00 s, half of them after 2.00 s",
                "3.10 GiB (QEMU 3.00 GiB, shims 100.0 MiB, pasta 0.0 MiB)",
                "20.00 GiB, 15.00 GiB: 102.4 MiB less for each",
                "61.0 MiB, **-2.0 MiB** more than the floor’s 63.0 MiB",
                "110.0 MiB, **the same** after",
            ]
        );
    }

    #[test]
    fn what_is_not_as_it_should_be_is_said() {
        let figures = Figures {
            booted: 2,
            floor_kib: Err(Reason::new("needs root")),
            template_kib: [110, 114],
            ..figures()
        };
        let measured = measured(figures);
        assert!(measured[0].ends_with("**but 2 of them booted**"), "{measured:?}");
        assert!(measured[3].ends_with("the floor’s is not measured: needs root"), "{measured:?}");
        assert_eq!(measured[4], "110 KiB, **114 KiB** after");
        let failed = rows(Err(Reason::new("exit code 125: no")));
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0].measured, "not measured: exit code 125: no");
    }
}
