//! What processes have of the machine's memory, and files of its disk.

use std::fmt::Display;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use banger_api::shim::{COW_FILE, DEVICES_FILE, MEMORY_FILE};

use super::contender::Reason;
use crate::bench::figures::kib;
use crate::failure::on_file;

/// What the kernel says a process has of the memory.
pub(super) fn memory_of(pid: impl Display) -> Result<String, Reason> {
    read(Path::new(&format!("/proc/{pid}/smaps_rollup")))
}

/// What a process has of the memory for itself alone.
pub(super) fn private_kib(pid: impl Display) -> Result<u64, Reason> {
    let text = memory_of(pid)?;
    Ok(kib(&text, "Private_Clean") + kib(&text, "Private_Dirty"))
}

pub(super) fn available_kib() -> Result<u64, Reason> {
    Ok(kib(&read(Path::new("/proc/meminfo"))?, "MemAvailable"))
}

fn read(path: &Path) -> Result<String, Reason> {
    Ok(std::fs::read_to_string(path).map_err(on_file("read", path))?)
}

/// What the files of a template that VMs use take on the disk.
pub(super) fn template_kib(saved: &Path) -> Result<u64, Reason> {
    let mut sectors = 0;
    for name in [MEMORY_FILE, DEVICES_FILE, COW_FILE] {
        let file = saved.join(name);
        sectors += file.metadata().map_err(on_file("look at", &file))?.blocks();
    }
    Ok(sectors / 2)
}

/// What the middle one of some processes has for itself, beside what one has that has no banger around it.
pub(super) fn private(private_kib: &mut [u64], floor_kib: &Result<u64, Reason>) -> String {
    private_kib.sort_unstable();
    let middle = private_kib.get(private_kib.len() / 2).copied().unwrap_or(0);
    match floor_kib {
        Ok(floor) => {
            let more = (middle as f64 - *floor as f64) / 1024.0;
            let (middle, floor) = (in_words(middle), in_words(*floor));
            format!("{middle}, **{more:.1} MiB** more than the floor’s {floor}")
        }
        Err(reason) => format!("{}; the floor’s is not measured: {reason}", in_words(middle)),
    }
}

pub(super) fn disk([before, after]: [u64; 2]) -> String {
    match before == after {
        true => format!("{}, **the same** after", in_words(before)),
        false => format!("{before} KiB, **{after} KiB** after"),
    }
}

/// For people.
pub(super) fn in_words(kib: u64) -> String {
    let mib = kib as f64 / 1024.0;
    if mib < 1024.0 { format!("{mib:.1} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_of_a_template_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        for name in [MEMORY_FILE, DEVICES_FILE, COW_FILE] {
            let file = std::fs::File::create(dir.path().join(name)).unwrap();
            file.set_len(1 << 30).unwrap();
        }
        assert!(template_kib(dir.path()).unwrap() < 1024);
        assert!(template_kib(&dir.path().join("elsewhere")).is_err());
    }

    #[test]
    fn a_process_has_memory_for_itself() {
        let own = private_kib(std::process::id()).unwrap();
        assert!(own > 100, "{own} KiB");
        assert!(kib(&memory_of("self").unwrap(), "Pss") >= own);
        assert!(available_kib().unwrap() > 1024);
    }
}
