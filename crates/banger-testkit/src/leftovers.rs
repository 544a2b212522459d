//! What a host's banger leaves on the machine: everything that has to do with its directories, as
//! the leak check sees it.

use std::path::Path;

use banger_host::leftovers::{Observation, Scope, Thing, observe};

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Process ids, with their command lines.
    pub processes: Vec<(i32, String)>,
    /// Mounts, sockets, locks and open deleted files.
    pub others: Vec<String>,
}

impl Leftovers {
    /// Everything that mentions the directory: in its command line, its environment, its working
    /// directory or its open files; and what is mounted, listened on or locked there.
    #[must_use]
    pub fn of(dir: &Path) -> Self {
        let mut found = Self::default();
        let Observation { things } = observe(&Scope::directory(dir));
        for (thing, holder) in things {
            match (&thing, holder) {
                (Thing::Process { pid, .. }, Some(holder)) => {
                    found.processes.push((*pid, holder.command));
                }
                _ => found.others.push(thing.to_string()),
            }
        }
        found
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.processes.is_empty() && self.others.is_empty()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait;
    use std::time::Duration;

    /// Each way in which a process can have to do with a directory.
    #[test]
    fn whatever_has_to_do_with_a_directory_is_found_and_killed() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let dir = base.path().join("one");
        std::fs::create_dir(&dir).expect("writable");
        let plants = [
            "exec sleep 60 9>$DIR/file",
            "cd $DIR; exec env -i sleep 60",
            "exec env -i X=$DIR sleep 60",
            "exec env -i perl -e 'sleep 60' $DIR",
            "exec 9>$DIR/gone; rm $DIR/gone; exec env -i sleep 60",
            "exec env -i flock $DIR/lock sleep 60",
        ];
        for plant in plants {
            let mut child = std::process::Command::new("sh")
                .args(["-c", plant])
                .env("DIR", &dir)
                .spawn()
                .expect("a shell");
            let comm = format!("/proc/{}/comm", child.id());
            wait::until("it is what it shall be", Duration::from_secs(20), || {
                let name = std::fs::read_to_string(&comm).ok()?;
                (!["sh", "env"].contains(&name.trim())).then_some(())
            });
            assert!(!Leftovers::of(&dir).is_empty(), "{plant} is not found");
            assert!(Leftovers::of(&base.path().join("on")).is_empty(), "another directory");
            wait::until("all is gone", Duration::from_secs(20), || {
                Leftovers::of(&dir).kill();
                // It is this process's child, so nobody else takes the zombie.
                let _ = child.try_wait();
                Leftovers::of(&dir).is_empty().then_some(())
            });
            child.wait().expect("a child of ours");
        }
    }
}
