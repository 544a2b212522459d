//! The processes of the guest's user space, as `/proc` shows them.

use std::fs;

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its parent's id.
    pub parent: i32,
    /// Whether it is one of the kernel's own.
    pub kernel: bool,
    /// Whether it has ended and waits to be collected.
    pub ended: bool,
    /// Whether it has a controlling terminal.
    pub terminal: bool,
}

/// Every process that runs now. One that ends while the list is made may be missing.
pub fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()))
        .filter_map(|entry| fs::read(entry.path().join("stat")).ok())
        .filter_map(|stat| parse(&String::from_utf8_lossy(&stat)))
        .collect()
}

/// The processes of the user space that are still at work, except the first one and this one.
pub fn at_work() -> Vec<Process> {
    let agent = std::process::id().cast_signed();
    let mut processes = all();
    processes.retain(|it| it.pid != 1 && it.pid != agent && !it.kernel && !it.ended);
    processes
}

/// Reads `/proc/PID/stat`. The second field is a name in parentheses that may contain anything.
fn parse(stat: &str) -> Option<Process> {
    const KERNEL_THREAD: u32 = 0x0020_0000;
    let pid = stat.split_once(' ')?.0.parse().ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let terminal: i64 = fields.nth(2)?.parse().ok()?;
    let flags: u32 = fields.nth(1)?.parse().ok()?;
    Some(Process {
        pid,
        parent,
        kernel: flags & KERNEL_THREAD != 0,
        ended: matches!(state, "Z" | "X"),
        terminal: terminal != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_does_not_confuse_the_reader() {
        let stat = "42 (a) Z 1 (b) S 7 42 42 34816 42 4194304 1 2 3";
        let want = Process { pid: 42, parent: 7, kernel: false, ended: false, terminal: true };
        assert_eq!(parse(stat), Some(want));
        assert_eq!(parse("42 (short"), None);
        let thread = parse("2 (kthreadd) S 0 0 0 0 -1 2129984 0").expect("a kernel thread");
        assert!(thread.kernel && !thread.terminal);
    }

    #[test]
    fn this_process_is_listed() {
        let pid = i32::try_from(std::process::id()).expect("a small number");
        assert!(all().iter().any(|process| process.pid == pid && !process.ended));
    }
}
