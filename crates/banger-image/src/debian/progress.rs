//! How far mmdebstrap is, from what it says.
//!
//! With `--verbose` mmdebstrap announces its steps and passes on what apt and dpkg print: one line
//! for each package that is fetched, unpacked and configured, after a line that says how many will
//! be. Each step has its share of the whole, taken from how long it takes; within it lines are
//! counted.

/// A step of mmdebstrap.
struct Step {
    /// How its announcement begins.
    says: &'static str,
    /// What it means to a person.
    message: &'static str,
    /// Where of the whole it begins and ends, in percent.
    range: (u64, u64),
    /// How many lines each package gives.
    lines_per_package: u64,
}

const STEPS: [Step; 6] = [
    Step {
        says: "running apt-get update",
        message: "fetching package lists",
        range: (0, 10),
        lines_per_package: 0,
    },
    Step {
        says: "downloading packages",
        message: "fetching packages",
        range: (10, 15),
        lines_per_package: 1,
    },
    Step {
        says: "extracting archives",
        message: "unpacking the first packages",
        range: (15, 20),
        lines_per_package: 0,
    },
    Step {
        says: "installing essential packages",
        message: "installing",
        range: (20, 55),
        lines_per_package: 2,
    },
    Step {
        says: "installing remaining packages",
        message: "installing",
        range: (55, 97),
        lines_per_package: 3,
    },
    Step {
        says: "cleaning package lists",
        message: "cleaning up",
        range: (97, 100),
        lines_per_package: 0,
    },
];

/// Follows mmdebstrap through its output.
#[derive(Debug, Default)]
pub(super) struct BootstrapProgress {
    step: usize,
    /// Packages of the current step.
    packages: u64,
    /// Lines about packages in the current step.
    lines: u64,
}

impl BootstrapProgress {
    /// Take a line. Answers how far it is in percent and what it is doing, if that is news.
    pub(super) fn line(&mut self, line: &str) -> Option<(u64, String)> {
        if let Some(words) = line.strip_prefix("I: ") {
            return self.announced(words);
        }
        if let Some(count) = newly_installed(line) {
            self.packages = count;
            return None;
        }
        let package = package_line(line)?;
        self.lines += 1;
        let step = STEPS.get(self.step)?;
        (step.lines_per_package > 0)
            .then(|| (self.percent(), format!("{} {package}", step.message)))
    }

    fn announced(&mut self, words: &str) -> Option<(u64, String)> {
        let step = STEPS.iter().position(|step| words.starts_with(step.says))?;
        // The essential packages were counted when they were fetched.
        if STEPS[step].lines_per_package == 3 {
            self.packages = 0;
        }
        self.step = step;
        self.lines = 0;
        Some((self.percent(), STEPS[step].message.to_owned()))
    }

    fn percent(&self) -> u64 {
        let Some(step) = STEPS.get(self.step) else { return 100 };
        let (begin, end) = step.range;
        let total = self.packages * step.lines_per_package;
        if total == 0 {
            return begin;
        }
        begin + (end - begin) * self.lines.min(total) / total
    }
}

/// The number in `0 upgraded, 69 newly installed, 0 to remove and 0 not upgraded.`
fn newly_installed(line: &str) -> Option<u64> {
    let (before, _) = line.split_once(" newly installed")?;
    before.rsplit(' ').next()?.parse().ok()
}

/// The package that a line of apt or dpkg is about.
fn package_line(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("Unpacking ").or_else(|| line.strip_prefix("Setting up "));
    let name = match rest {
        Some(rest) => rest.split(' ').next()?,
        // Get:12 http://mirror bookworm/main amd64 curl amd64 7.88.1-10 [315 kB]
        None => line.strip_prefix("Get:")?.split(' ').nth(4)?,
    };
    name.split(':').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
I: reading sources.list from standard input...
I: running apt-get update...
Get:1 http://m.test/debian bookworm InRelease [151 kB]
I: downloading packages with apt...
0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.
Get:1 http://m.test/debian bookworm/main amd64 gcc-12-base amd64 12.2.0 [37 kB]
Get:2 http://m.test/debian bookworm/main amd64 libc6 amd64 2.36 [2758 kB]
I: extracting archives...
I: installing essential packages...
Selecting previously unselected package gcc-12-base:amd64.
Unpacking gcc-12-base:amd64 (12.2.0) ...
Setting up gcc-12-base:amd64 (12.2.0) ...
Unpacking libc6:amd64 (2.36) ...
Setting up libc6:amd64 (2.36) ...
I: installing remaining packages inside the chroot...
0 upgraded, 1 newly installed, 0 to remove and 0 not upgraded.
Get:1 http://m.test/debian bookworm/main amd64 git amd64 2.39 [7 MB]
Unpacking git (2.39) ...
Setting up git (2.39) ...
I: cleaning package lists and apt cache...
I: success in 21.7079 seconds
";

    #[test]
    fn the_whole_output_gives_steady_progress() {
        let mut progress = BootstrapProgress::default();
        let events: Vec<_> = OUTPUT.lines().filter_map(|line| progress.line(line)).collect();
        let shown: Vec<_> =
            events.iter().map(|(percent, what)| format!("{percent} {what}")).collect();
        let want = [
            "0 fetching package lists",
            "10 fetching packages",
            "12 fetching packages gcc-12-base",
            "15 fetching packages libc6",
            "15 unpacking the first packages",
            "20 installing",
            "28 installing gcc-12-base",
            "37 installing gcc-12-base",
            "46 installing libc6",
            "55 installing libc6",
            "55 installing",
            "69 installing git",
            "83 installing git",
            "97 installing git",
            "97 cleaning up",
        ];
        assert_eq!(shown, want);
    }

    #[test]
    fn more_lines_than_expected_stay_within_the_step() {
        let mut progress = BootstrapProgress::default();
        progress.line("I: installing essential packages...");
        progress.packages = 1;
        for _ in 0..10 {
            progress.line("Unpacking x (1) ...");
        }
        assert_eq!(progress.percent(), 55);
    }
}
