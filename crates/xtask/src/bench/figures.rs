//! From observations to figures.

use std::time::Duration;

use banger_api::shim::LaunchSpec;

/// Ticks of a second in `/proc/PID/stat`; fixed by the kernel's interface on x86-64.
const TICKS: u64 = 100;

/// The machine that was measured.
#[derive(Debug)]
pub(super) struct Machine(String);

impl Machine {
    /// This one.
    pub(super) fn this(spec: &LaunchSpec) -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name\t: "));
        let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
        let (engine, version) = (&spec.engine.name, &spec.engine.version);
        Self(format!(
            "Measured on {cores} cores of {}, {engine} {version} with {}, guests with {} CPUs and \
             {} MiB:",
            model.unwrap_or("an unknown CPU"),
            spec.engine.accelerator.as_str(),
            spec.cpus,
            spec.memory_mib
        ))
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The middle one.
pub(super) fn median(times: &mut [Duration]) -> Duration {
    percentile(times, 50)
}

/// The one that so many of a hundred are not longer than.
pub(super) fn percentile(times: &mut [Duration], part: usize) -> Duration {
    times.sort();
    times[(times.len() * part).div_ceil(100).max(1) - 1]
}

/// For people.
pub(super) fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

/// A field of `/proc/PID/status`.
pub(super) fn kib(status: &str, field: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// CPU time that the processes have used so far, all together.
pub(super) fn cpu_of(pids: &[i32]) -> Duration {
    let ticks = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // After the name, which may contain anything, utime and stime are the 12th and 13th.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    };
    Duration::from_millis(pids.iter().filter_map(ticks).sum::<u64>() * 1000 / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_observations() {
        let mut times: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(median(&mut times), Duration::from_millis(50));
        assert_eq!(percentile(&mut times, 95), Duration::from_millis(95));
        assert_eq!(median(&mut [Duration::from_secs(1)]), Duration::from_secs(1));
        // Of fifty, three are longer than the one before.
        assert_eq!(percentile(&mut times[..50], 95), Duration::from_millis(48));
    }

    #[test]
    fn status_fields_are_whole_words() {
        let text = "VmRSSX:\t 1 kB\nVmRSS:\t  5120 kB\n";
        assert_eq!(kib(text, "VmRSS"), 5120);
        assert_eq!(kib(text, "RssAnon"), 0);
    }
}
