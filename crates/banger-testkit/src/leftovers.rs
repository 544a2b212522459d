//! What a host's banger leaves on the machine: processes and mounts that have to do with its
//! directories.

use std::path::{Path, PathBuf};

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Process ids, with their command lines.
    pub processes: Vec<(i32, String)>,
    /// Mount points.
    pub mounts: Vec<String>,
}

impl Leftovers {
    /// Everything that mentions the directory: in its command line, its environment, its working
    /// directory or its open files.
    #[must_use]
    pub fn of(dir: &Path) -> Self {
        Self { processes: processes_of(dir), mounts: mounts_of(dir) }
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.processes.is_empty() && self.mounts.is_empty()
    }

    /// Kills the processes, by their ids.
    pub fn kill(&self) {
        for (pid, _) in &self.processes {
            let pid = nix::unistd::Pid::from_raw(*pid);
            // It may have ended by itself.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

fn processes_of(dir: &Path) -> Vec<(i32, String)> {
    let me = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc is mounted").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(pid) = name.parse::<i32>() else {
            continue;
        };
        if name != me && mentions(&entry.path(), dir) {
            found.push((pid, command_line(&entry.path())));
        }
    }
    found
}

fn mentions(proc: &Path, dir: &Path) -> bool {
    let dir_bytes = dir.as_os_str().as_encoded_bytes();
    let in_file = |name: &str| {
        let bytes = std::fs::read(proc.join(name)).unwrap_or_default();
        bytes.windows(dir_bytes.len()).any(|window| window == dir_bytes)
    };
    let leads_there = |link: PathBuf| std::fs::read_link(link).is_ok_and(|to| to.starts_with(dir));
    let opened = || {
        let entries = std::fs::read_dir(proc.join("fd")).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| leads_there(entry.path()))
    };
    is_alive(proc)
        && (in_file("cmdline") || in_file("environ") || leads_there(proc.join("cwd")) || opened())
}

/// A zombie holds nothing any more; its parent reaps it in its own time.
fn is_alive(proc: &Path) -> bool {
    let stat = std::fs::read_to_string(proc.join("stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

fn command_line(proc: &Path) -> String {
    let bytes = std::fs::read(proc.join("cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim_end().chars().take(300).collect()
}

fn mounts_of(dir: &Path) -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| Path::new(point).starts_with(dir))
        .map(str::to_owned)
        .collect()
}
