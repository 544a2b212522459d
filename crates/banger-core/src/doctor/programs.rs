//! Checks of the host's programs.

use banger_api::system::DoctorCheck;

use super::{Facts, Mend, OLDEST_QEMU, fail, pass, warn};

pub(super) fn id_mappers(facts: &Facts) -> Option<DoctorCheck> {
    const NAME: &str = "newuidmap";
    if facts.uid == 0 {
        return Some(pass(NAME, "not needed by root"));
    }
    let has_both = ["newuidmap", "newgidmap"].iter().all(|name| facts.programs.contains(*name));
    if has_both {
        return Some(pass(NAME, "newuidmap and newgidmap are installed"));
    }
    let reason = "newuidmap and newgidmap are missing; images cannot be made";
    let check = if facts.image.is_local { warn(NAME, reason) } else { fail(NAME, reason) };
    Some(check.install(facts, "uidmap"))
}

pub(super) fn qemu(facts: &Facts) -> Option<DoctorCheck> {
    const NAME: &str = "qemu";
    if !facts.programs.contains("qemu-system-x86_64") {
        let reason = "qemu-system-x86_64 is missing; nothing can run a VM";
        return Some(fail(NAME, reason).install(facts, "qemu-system-x86"));
    }
    let Some(text) = &facts.qemu_version else {
        return Some(fail(NAME, "qemu-system-x86_64 does not tell its version"));
    };
    Some(match version(text) {
        Some((found, shown)) if found >= OLDEST_QEMU => pass(NAME, format!("version {shown}")),
        Some((_, shown)) => {
            let (major, minor) = OLDEST_QEMU;
            warn(NAME, format!("version {shown} is older than {major}.{minor}, the oldest tried"))
        }
        None => warn(NAME, format!("unknown version: {text}")),
    })
}

/// Major and minor version, and the whole, of `QEMU emulator version 7.2.22 (Debian …)`.
fn version(text: &str) -> Option<((u32, u32), &str)> {
    let shown = text.split_whitespace().skip_while(|word| *word != "version").nth(1)?;
    let mut numbers = shown.split(|c: char| !c.is_ascii_digit());
    let major = numbers.next()?.parse().ok()?;
    let minor = numbers.next()?.parse().ok()?;
    Some(((major, minor), shown))
}

pub(super) fn pasta(facts: &Facts) -> Option<DoctorCheck> {
    Some(needed(facts, "pasta", "passt", "VMs have no way to the network"))
}

pub(super) fn nft(facts: &Facts) -> Option<DoctorCheck> {
    Some(needed(facts, "nft", "nftables", "VMs cannot be kept from this host's addresses"))
}

pub(super) fn mke2fs(facts: &Facts) -> Option<DoctorCheck> {
    Some(needed(facts, "mke2fs", "e2fsprogs", "no disk can be made"))
}

pub(super) fn mmdebstrap(facts: &Facts) -> Option<DoctorCheck> {
    const NAME: &str = "mmdebstrap";
    let check = needed(facts, NAME, NAME, "the default image cannot be made");
    // The image check says whether that matters now.
    Some(DoctorCheck { verdict: check.verdict.min(banger_api::system::Verdict::Warn), ..check })
}

pub(super) fn git(facts: &Facts) -> Option<DoctorCheck> {
    let check = needed(facts, "git", "git", "repositories cannot be copied into VMs");
    Some(DoctorCheck { verdict: check.verdict.min(banger_api::system::Verdict::Warn), ..check })
}

fn needed(facts: &Facts, program: &str, package: &str, without: &str) -> DoctorCheck {
    if facts.programs.contains(program) {
        return pass(program, "installed");
    }
    fail(program, format!("{program} is missing; {without}")).install(facts, package)
}
