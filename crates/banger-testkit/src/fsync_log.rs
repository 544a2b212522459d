//! Machines that are killed while they write: what a program in the guest saw on its disk after
//! `fsync` must be there after the next start, whole.
//!
//! The program writes a file, fsyncs it and its directory, adds a line to a log, fsyncs that, and
//! only then says so on its output. The end comes at a random time after the first of that.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::host::Host;
use crate::wait;

/// How long a machine may take to be up, or down.
const BOUND: Duration = Duration::from_secs(120);
/// The end comes at most that long after the first fsync of a round was reported.
const LONGEST_RUN_MS: u64 = 2_000;

/// Writes for ever, from the number on that it is given.
const WRITER: &str = r"
import os, sys
first = int(sys.argv[1])
os.makedirs('/root/fsynced', exist_ok=True)
directory = os.open('/root/fsynced', os.O_RDONLY)
log = os.open('/root/fsynced/log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.ftruncate(log, first * 9)
os.fsync(log)
number = first
while True:
    name = f'/root/fsynced/{number}'
    file = os.open(name + '.new', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(file, b'%d ' % number * (1 + number * 37 % 3000))
    os.fsync(file)
    os.close(file)
    os.rename(name + '.new', name)
    os.fsync(directory)
    os.write(log, b'%08d\n' % number)
    os.fsync(log)
    os.write(1, b'%d\n' % number)
    number += 1
";

/// Fails unless everything up to a number is there: the files from another number on, and the log.
const READER: &str = r"
import sys
first, end = int(sys.argv[1]), int(sys.argv[2])
for number in range(first, end):
    found = open(f'/root/fsynced/{number}', 'rb').read()
    assert found == b'%d ' % number * (1 + number * 37 % 3000), f'{number}: {found[:40]}'
log = open('/root/fsynced/log', 'rb').read() if end else b''
assert log[:end * 9] == b''.join(b'%08d\n' % number for number in range(end)), 'the log'
print('whole')
";

/// How a machine is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// `banger kill`.
    Kill,
    /// `banger stop`.
    Stop,
    /// `banger restart`.
    Restart,
    /// `kill -9` of the shim, which takes the VMM along.
    ShimKilled,
    /// `kill -9` of the VMM.
    VmmKilled,
}

impl Ending {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::ShimKilled, Self::Kill, Self::VmmKilled, Self::Stop, Self::Restart];
}

/// What was done and found in one round.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    /// How it ended.
    pub ending: Ending,
    /// How long after the first fsync was reported.
    pub after: Duration,
    /// How many files were reported as fsynced in this round; all were there afterwards.
    pub synced: u64,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ending = format!("{:?}", self.ending);
        let after = self.after.as_millis();
        write!(f, "{ending:<10} after {after:>4} ms: {:>4} fsynced, 0 lost", self.synced)
    }
}

/// A machine that writes, and is ended again and again.
#[derive(Debug)]
pub struct FsyncLog<'a> {
    host: &'a Host,
    vm: String,
    random: u64,
    /// The first number that was not reported yet.
    next: u64,
}

impl<'a> FsyncLog<'a> {
    /// With a running machine. The same seed gives the same times.
    #[must_use]
    pub fn new(host: &'a Host, vm: &str, seed: u64) -> Self {
        Self { host, vm: vm.to_owned(), random: seed | 1, next: 0 }
    }

    /// Writes, ends, starts again, looks.
    ///
    /// # Panics
    /// If nothing was fsynced, which would prove nothing, if something is lost, or if the machine does
    /// not come back.
    pub fn round(&mut self, ending: Ending) -> Round {
        let after = Duration::from_millis(self.random() % LONGEST_RUN_MS);
        let first = self.next;
        let from = first.to_string();
        let writer = ["exec", &self.vm, "--", "python3", "-c", WRITER, &from];
        let mut writing = self.host.banger(writer).timeout(BOUND).spawn();
        wait::until("the first fsync of a round", BOUND, || {
            let begun = writing.stdout_so_far().contains(&b'\n');
            (begun || !writing.is_running()).then_some(())
        });
        let began = Instant::now();
        // Not to wait for something: the time of the end is what is tried.
        wait::eventually(after, || began.elapsed() >= after);
        self.end(ending);
        let written = writing.wait();
        let said = written.stdout_text();
        // The last line may have been cut off; it is then no report.
        let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let last = whole.lines().last().and_then(|line| line.parse::<u64>().ok());
        self.next = last.map_or(first, |last| last + 1);
        assert!(self.next > first, "nothing was fsynced, so nothing could be lost: {written}");
        self.check(first);
        Round { ending, after, synced: self.next - first }
    }

    /// Looks at everything since the beginning.
    ///
    /// # Panics
    /// If something is lost.
    pub fn check_all(&self) -> u64 {
        self.check(0);
        self.next
    }

    fn check(&self, first: u64) {
        let (first, end) = (first.to_string(), self.next.to_string());
        let reader = ["exec", &self.vm, "--", "python3", "-c", READER, &first, &end];
        self.host.banger(reader).timeout(BOUND).run().assert_ok().assert_stdout("whole\n");
    }

    fn end(&self, ending: Ending) {
        let vm = self.vm.as_str();
        let verb = |verb: &str| self.host.banger([verb, vm]).timeout(BOUND).run().assert_ok();
        let kill_all = |program: &str| {
            let pids = self.host.processes_named(program);
            assert!(!pids.is_empty(), "no {program} runs");
            for pid in pids {
                // The inner processes of a VM end with the first of them.
                if Path::new("/proc").join(pid.to_string()).exists() {
                    let pid = nix::unistd::Pid::from_raw(pid);
                    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                }
            }
            self.host.wait_for_state(vm, "failed");
        };
        match ending {
            Ending::Restart => {
                verb("restart");
                return;
            }
            Ending::Stop => drop(verb("stop")),
            Ending::Kill => {
                verb("kill");
                self.host.wait_for_state(vm, "stopped");
            }
            Ending::ShimKilled => kill_all("banger-shim"),
            Ending::VmmKilled => kill_all("qemu-system-x86_64"),
        }
        verb("start");
    }

    /// Xorshift: nobody has to be surprised but the machine.
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}
