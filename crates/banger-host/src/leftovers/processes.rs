//! Processes, and what only exists because a process holds it: namespaces, locks, deleted files.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{Holder, Observation, Scope, Thing, paths};

/// Programs that run only because of us, as `/proc/PID/comm` has them (15 characters).
const OUR_PROGRAMS: [&str; 13] = [
    "banger",
    "bangerd",
    "banger-shim",
    "banger-agent",
    "qemu-system-x86",
    "pasta",
    "pasta.avx2",
    "passt",
    "passt.avx2",
    "mmdebstrap",
    "mke2fs",
    "buildah",
    "docker-registry",
];
/// The program whose children belong to its VM.
const SUPERVISOR: &str = "banger-shim";
/// Kinds of namespaces that a VM has of its own.
const NAMESPACES: [&str; 4] = ["net", "mnt", "user", "pid"];
/// How much of a command line is kept, in characters.
const COMMAND_LENGTH: usize = 300;

/// One process, as `/proc` shows it.
pub(super) struct Seen {
    pub(super) proc: PathBuf,
    pub(super) pid: i32,
    parent: i32,
    pub(super) started: u64,
    pub(super) name: String,
    is_dead: bool,
}

pub(super) fn observe(scope: &Scope, observation: &mut Observation) {
    let others = all().filter(|process| process.pid.unsigned_abs() != std::process::id());
    let others: Vec<Seen> = others.collect();
    let supervises = |process: &&Seen| {
        process.name == SUPERVISOR && process.mentions(scope, &process.open_files())
    };
    let supervisors: Vec<i32> = others.iter().filter(supervises).map(|shim| shim.pid).collect();
    for process in &others {
        observe_one(process, &supervisors, scope, observation);
    }
}

/// Every process of this process namespace.
pub(super) fn all() -> impl Iterator<Item = Seen> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Seen::at(&entry.path()))
}

fn observe_one(process: &Seen, supervisors: &[i32], scope: &Scope, observation: &mut Observation) {
    let holder = process.holder();
    let files = process.open_files();
    // What a supervisor starts, as pasta, may name no file of the host itself.
    let is_ours = process.is_named_as_ours(scope)
        || supervisors.contains(&process.parent)
        || process.mentions(scope, &files);
    if is_ours && !process.is_left_to_init() {
        let (pid, started) = (process.pid, process.started);
        let thing = Thing::Process { pid, started, program: process.name.clone() };
        observation.add(thing, Some(&holder));
    }
    for file in files {
        let path = file.path.to_string_lossy();
        let deleted = path.strip_suffix(paths::DELETED);
        // Memory without a name is always "deleted".
        let is_memory = path.starts_with("/memfd:") || path.starts_with("/dev/zero");
        if let Some(path) = deleted.filter(|path| scope.concerns(path) || (is_ours && !is_memory)) {
            let thing = Thing::DeletedFile { path: path.to_owned(), pid: process.pid };
            observation.add(thing, Some(&holder));
        }
        if scope.concerns(&path) || (is_ours && scope.whole_machine) {
            for mode in process.locks_on(&file.number) {
                observation.add(Thing::Lock { path: path.to_string(), mode }, Some(&holder));
            }
        }
    }
    if scope.whole_machine {
        for of in NAMESPACES {
            if let Some(id) = namespace(&process.proc.join("ns").join(of)) {
                observation.add(Thing::Namespace { of: of.to_owned(), id }, Some(&holder));
            }
        }
    }
}

/// A file that a process has open.
pub(super) struct OpenFile {
    pub(super) number: String,
    pub(super) path: PathBuf,
}

impl Seen {
    fn at(proc: &Path) -> Option<Self> {
        let pid: i32 = proc.file_name()?.to_str()?.parse().ok()?;
        let stat = fs::read_to_string(proc.join("stat")).ok()?;
        // The name is in parentheses and may hold some itself.
        let (head, rest) = stat.rsplit_once(") ")?;
        let name = head.split_once('(')?.1.to_owned();
        let words: Vec<&str> = rest.split(' ').collect();
        Some(Self {
            proc: proc.to_owned(),
            pid,
            parent: words.get(1)?.parse().ok()?,
            started: words.get(19)?.parse().ok()?,
            name,
            is_dead: matches!(*words.first()?, "Z" | "X"),
        })
    }

    /// A zombie whose parent is the machine's first process: reaping it is that one's business.
    fn is_left_to_init(&self) -> bool {
        self.is_dead && self.parent == 1
    }

    fn is_named_as_ours(&self, scope: &Scope) -> bool {
        let program = || fs::read_link(self.proc.join("exe")).unwrap_or_default();
        let is_ours = |name: &str| {
            let name: String = name.chars().take(15).collect();
            OUR_PROGRAMS.contains(&name.as_str())
        };
        scope.whole_machine
            && (is_ours(&self.name)
                || program().file_name().is_some_and(|name| is_ours(&name.to_string_lossy())))
    }

    /// Whether it has to do with the directories: by its command line, its environment, its working
    /// directory, its program or its open files.
    fn mentions(&self, scope: &Scope, files: &[OpenFile]) -> bool {
        let in_file = |name: &str| {
            let bytes = fs::read(self.proc.join(name)).unwrap_or_default();
            scope.dirs.iter().any(|dir| contains(&bytes, dir.as_os_str().as_bytes()))
        };
        let leads_there = |path: &Path| scope.holds(&path.to_string_lossy());
        let link =
            |name: &str| fs::read_link(self.proc.join(name)).is_ok_and(|to| leads_there(&to));
        // The dead hold nothing any more; their parents reap them in their own time.
        !self.is_dead
            && (in_file("cmdline")
                || in_file("environ")
                || link("cwd")
                || link("exe")
                || files.iter().any(|file| leads_there(&file.path)))
    }

    pub(super) fn open_files(&self) -> Vec<OpenFile> {
        let entries = fs::read_dir(self.proc.join("fd")).into_iter().flatten().flatten();
        let file = |entry: fs::DirEntry| {
            let number = entry.file_name().to_str()?.to_owned();
            let path = fs::read_link(entry.path()).ok()?;
            path.is_absolute().then_some(OpenFile { number, path })
        };
        entries.filter_map(file).collect()
    }

    /// The locks that a descriptor of it holds.
    pub(super) fn locks_on(&self, number: &str) -> Vec<String> {
        let info = fs::read_to_string(self.proc.join("fdinfo").join(number)).unwrap_or_default();
        info.lines().filter_map(lock_of_line).collect()
    }

    pub(super) fn holder(&self) -> Holder {
        let bytes = fs::read(self.proc.join("cmdline")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
        let command: String = text.trim_end().chars().take(COMMAND_LENGTH).collect();
        let command = if command.is_empty() { format!("[{}]", self.name) } else { command };
        Holder { pid: self.pid, command }
    }
}

/// `lock:\t1: OFDLCK  ADVISORY  WRITE -1 fe:00:131 0 0` is `OFDLCK WRITE`.
fn lock_of_line(line: &str) -> Option<String> {
    let words: Vec<&str> = line.strip_prefix("lock:")?.split_whitespace().collect();
    Some(format!("{} {}", words.get(1)?, words.get(3)?))
}

/// The number in `net:[4026531840]`.
pub(super) fn namespace_id(link: &str) -> Option<u64> {
    link.split_once('[')?.1.strip_suffix(']')?.parse().ok()
}

fn namespace(link: &Path) -> Option<u64> {
    namespace_id(fs::read_link(link).ok()?.to_str()?)
}

/// Whether a text names a path, itself or something below it.
fn contains(text: &[u8], path: &[u8]) -> bool {
    let goes_on = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    let starts = text.windows(path.len().max(1)).enumerate();
    let mut found = starts.filter(|(_, window)| *window == path);
    found.any(|(at, _)| !text.get(at + path.len()).is_some_and(goes_on))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_named_as_a_whole() {
        let cases: [(&[u8], bool); 6] = [
            (b"X=/tmp/one\0Y=", true),
            (b"/tmp/one", true),
            (b"--dir=/tmp/one/vms", true),
            (b"/tmp/one-more", false),
            (b"/tmp/one2 /tmp/one", true),
            (b"", false),
        ];
        for (text, want) in cases {
            assert_eq!(contains(text, b"/tmp/one"), want, "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn locks_are_read_from_the_kernels_words() {
        let line = "lock:\t1: OFDLCK  ADVISORY  WRITE -1 fe:00:131 0 0";
        assert_eq!(lock_of_line(line).as_deref(), Some("OFDLCK WRITE"));
        assert_eq!(lock_of_line("pos:\t0"), None);
        assert_eq!(namespace_id("net:[4026531840]"), Some(4026531840));
    }
}
