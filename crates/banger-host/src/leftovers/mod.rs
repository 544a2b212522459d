//! What is on the machine that could be ours: the one place that knows how to look.
//!
//! [`observe`] makes an [`Observation`]: things with an identity, so that two of them can be
//! compared, and with whoever holds them, so that a person can act. `cargo xtask leaks` compares the
//! machine before and after a test run, the testkit asks what has to do with a test's directory, and
//! `banger doctor` looks for what crashes and strangers left.
//!
//! Looking changes nothing. A thing that vanishes while it is looked at is not there.

mod kernel;
mod paths;
mod processes;
pub mod state;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Something that can be left over. What it holds is its identity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Thing {
    /// A process. The start time, in ticks after boot, tells it from a later one of that number.
    Process {
        /// Its id.
        pid: i32,
        /// When it started, in clock ticks since the machine's boot.
        started: u64,
        /// Its name, as the kernel has it.
        program: String,
    },
    /// A namespace that some process is in, or that is mounted somewhere.
    Namespace {
        /// `net`, `mnt`, `user` or `pid`.
        of: String,
        /// Its inode number.
        id: u64,
    },
    /// A mount in this process's mount namespace.
    Mount {
        /// Where.
        point: String,
        /// Of which file system type.
        filesystem: String,
    },
    /// A network device in this process's network namespace.
    NetworkDevice {
        /// Its name.
        name: String,
    },
    /// A line of this network namespace's nftables rules.
    FirewallRule {
        /// Family and name of its table.
        table: String,
        /// The rule, chain or set, without counters.
        line: String,
    },
    /// A unix socket that somebody listens on.
    Socket {
        /// The name it was bound to.
        path: String,
        /// Its inode number.
        inode: u64,
    },
    /// A lock on a file of ours.
    Lock {
        /// The file.
        path: String,
        /// `OFDLCK WRITE`, `FLOCK READ`.
        mode: String,
    },
    /// A file or directory of ours.
    File {
        /// Its path.
        path: String,
    },
    /// A deleted file of ours that is still open, and so still takes space.
    DeletedFile {
        /// The path it had.
        path: String,
        /// Who has it open.
        pid: i32,
    },
    /// A control group.
    Cgroup {
        /// Its directory.
        path: String,
    },
}

/// A process that holds a thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its id.
    pub pid: i32,
    /// Its command line, shortened.
    pub command: String,
}

/// What there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observation {
    /// Things, each with one of those who hold it.
    pub things: BTreeMap<Thing, Option<Holder>>,
}

/// A line of an observation that was written down.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    thing: Thing,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    holder: Option<Holder>,
}

/// What to look for.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Whatever has to do with these directories is ours.
    pub dirs: Vec<PathBuf>,
    /// So is everything on the machine that bears our names, and every namespace, mount, device and
    /// rule. Only right where the outcome is compared with that of an earlier look.
    pub whole_machine: bool,
}

impl Scope {
    /// What has to do with one directory.
    #[must_use]
    pub fn directory(dir: &Path) -> Self {
        Self { dirs: vec![dir.to_owned()], whole_machine: false }
    }

    /// The whole machine, and these state directories in particular.
    #[must_use]
    pub fn machine(dirs: Vec<PathBuf>) -> Self {
        Self { dirs, whole_machine: true }
    }

    /// Whether a path, as the kernel prints it, is within one of the directories.
    fn holds(&self, path: &str) -> bool {
        let path = path.strip_suffix(paths::DELETED).unwrap_or(path);
        self.dirs.iter().any(|dir| Path::new(path).starts_with(dir))
    }

    /// Whether a path may be ours.
    fn concerns(&self, path: &str) -> bool {
        self.holds(path) || (self.whole_machine && path.contains("banger"))
    }
}

/// Looks.
#[must_use]
pub fn observe(scope: &Scope) -> Observation {
    let mut observation = Observation::default();
    processes::observe(scope, &mut observation);
    kernel::mounts(scope, &mut observation);
    kernel::sockets(scope, &mut observation);
    if scope.whole_machine {
        kernel::network_devices(&mut observation);
        kernel::firewall(&mut observation);
        kernel::cgroups(&mut observation);
        paths::observe(scope, &mut observation);
    }
    observation
}

impl Observation {
    fn add(&mut self, thing: Thing, holder: Option<&Holder>) {
        self.things.entry(thing).or_insert_with(|| holder.cloned());
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.things.is_empty()
    }

    /// What is here now and was not there before.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let new = self.things.iter().filter(|(thing, _)| !before.things.contains_key(thing));
        Self { things: new.map(|(thing, holder)| (thing.clone(), holder.clone())).collect() }
    }

    /// What was there before, does not go by itself, and is gone.
    #[must_use]
    pub fn missing_from(&self, before: &Self) -> Self {
        let stays = |thing: &Thing| {
            matches!(
                thing,
                Thing::Mount { .. } | Thing::NetworkDevice { .. } | Thing::FirewallRule { .. }
            )
        };
        let gone = before.things.iter().filter(|(thing, _)| stays(thing));
        let gone = gone.filter(|(thing, _)| !self.things.contains_key(thing));
        Self { things: gone.map(|(thing, holder)| (thing.clone(), holder.clone())).collect() }
    }

    /// As text, one JSON object per line.
    #[must_use]
    pub fn to_lines(&self) -> String {
        let lines = self.things.iter().map(|(thing, holder)| {
            let line = Line { thing: thing.clone(), holder: holder.clone() };
            serde_json::to_string(&line).expect("plain data is JSON") + "\n"
        });
        lines.collect()
    }

    /// What [`Observation::to_lines`] wrote.
    ///
    /// # Errors
    /// If it is something else.
    pub fn from_lines(text: &str) -> Result<Self, serde_json::Error> {
        let lines = text.lines().map(serde_json::from_str::<Line>);
        let things = lines.map(|line| line.map(|line| (line.thing, line.holder)));
        Ok(Self { things: things.collect::<Result<_, _>>()? })
    }
}

impl std::fmt::Display for Thing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Process { pid, program, .. } => write!(f, "process {pid} {program}"),
            Self::Namespace { of, id } => write!(f, "{of} namespace {id}"),
            Self::Mount { point, filesystem } => write!(f, "mount {point} ({filesystem})"),
            Self::NetworkDevice { name } => write!(f, "network device {name}"),
            Self::FirewallRule { table, line } => write!(f, "nftables, table {table}: {line}"),
            Self::Socket { path, .. } => write!(f, "listening socket {path}"),
            Self::Lock { path, mode } => write!(f, "lock {mode} on {path}"),
            Self::File { path } => write!(f, "file {path}"),
            Self::DeletedFile { path, pid } => {
                write!(f, "deleted file {path}, held open by process {pid}")
            }
            Self::Cgroup { path } => write!(f, "control group {path}"),
        }
    }
}
