//! Checks of the kernel, the user, the disks and banger itself.

use banger_api::system::DoctorCheck;

use super::{
    DaemonFacts, Device, Facts, IDS_NEEDED, Kvm, MapRange, Mend, SPACE_TO_BUILD, SPACE_TO_RUN,
    Stored, fail, pass, warn,
};
use crate::size;

pub(super) fn architecture(facts: &Facts) -> Option<DoctorCheck> {
    const NAME: &str = "architecture";
    Some(match facts.architecture.as_str() {
        "x86_64" => pass(NAME, "x86-64"),
        other => fail(NAME, format!("{other}; VMs run on x86-64 only")),
    })
}

pub(super) fn installation(facts: &Facts) -> Option<DoctorCheck> {
    const NAME: &str = "installation";
    Some(match &facts.missing_part {
        None => pass(NAME, "all of banger's programs are there"),
        Some(what) => fail(NAME, what).fix("script/quickstart"),
    })
}

pub(super) fn settings(facts: &Facts) -> Option<DoctorCheck> {
    const NAME: &str = "settings";
    Some(match &facts.settings {
        Ok(()) => pass(NAME, "can be used"),
        Err(why) => fail(NAME, why).fix("mend the file"),
    })
}

pub(super) fn user_namespaces(facts: &Facts) -> Option<DoctorCheck> {
    const NAME: &str = "user-namespaces";
    let Err(error) = &facts.user_namespaces else {
        return Some(pass(NAME, "can be made"));
    };
    if facts.max_user_namespaces == Some(0) {
        let reason = "the kernel allows none (user.max_user_namespaces is 0)";
        return Some(
            fail(NAME, reason).fix_as_root(facts, "sysctl -w user.max_user_namespaces=15000"),
        );
    }
    if facts.unprivileged_namespaces == Some(false) {
        let reason = "only root may make them (kernel.unprivileged_userns_clone is 0)";
        let cure = "sysctl -w kernel.unprivileged_userns_clone=1";
        return Some(fail(NAME, reason).fix_as_root(facts, cure));
    }
    if facts.apparmor_restricts_namespaces {
        let reason = "AppArmor lets only confined programs have them";
        let cure = "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0";
        return Some(fail(NAME, reason).fix_as_root(facts, cure));
    }
    let reason = format!("cannot be made: {error}; in a container, it must be allowed to");
    Some(fail(NAME, reason))
}

pub(super) fn id_ranges(facts: &Facts) -> Option<DoctorCheck> {
    const NAME: &str = "subuid";
    if facts.uid == 0 {
        return Some(pass(NAME, "not needed by root"));
    }
    let missing: Vec<&str> = [("/etc/subuid", facts.subuid), ("/etc/subgid", facts.subgid)]
        .into_iter()
        .filter(|(_, range)| !matches!(range, MapRange::Of(count) if *count >= IDS_NEEDED))
        .map(|(file, _)| file)
        .collect();
    if missing.is_empty() {
        return Some(pass(NAME, format!("{} has ranges of {IDS_NEEDED} ids", facts.user)));
    }
    let reason =
        format!("{} has no range of {IDS_NEEDED} ids in {}", facts.user, missing.join(" and "));
    let cure =
        format!("usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {}", facts.user);
    let check = if facts.image.is_local { warn(NAME, reason) } else { fail(NAME, reason) };
    Some(check.fix_as_root(facts, &cure))
}

pub(super) fn jail_user(facts: &Facts) -> Option<DoctorCheck> {
    const NAME: &str = "jail-user";
    if facts.uid != 0 {
        return None;
    }
    Some(if facts.jail_user {
        pass(NAME, "the system user banger exists")
    } else {
        fail(NAME, "VMs started by root run as the system user banger, which does not exist")
            .fix("useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin banger")
    })
}

pub(super) fn kvm(facts: &Facts) -> Option<DoctorCheck> {
    const NAME: &str = "kvm";
    const SLOW: &str = "VMs run in emulation (tcg), several times slower";
    Some(match &facts.kvm {
        Kvm::Usable => pass(NAME, "hardware virtualisation is used"),
        Kvm::NotPermitted => {
            let reason = format!("{} may not open /dev/kvm; {SLOW}", facts.user);
            let cure = format!("usermod -aG kvm {}", facts.user);
            let check = warn(NAME, reason).fix_as_root(facts, &cure);
            let fix = check.fix.clone().unwrap_or_default();
            check.fix(format!("{fix}, then log in again"))
        }
        Kvm::NoDevice => {
            let module = if facts.is_amd { "modprobe kvm_amd" } else { "modprobe kvm_intel" };
            warn(NAME, format!("there is no /dev/kvm; {SLOW}")).fix_as_root(facts, module)
        }
        Kvm::NoHardware => warn(
            NAME,
            format!(
                "the processor shows neither vmx nor svm (virtualisation is off in the firmware, or \
                 this is a VM without nesting); {SLOW}"
            ),
        ),
        Kvm::Broken(error) => warn(NAME, format!("/dev/kvm cannot be opened: {error}; {SLOW}")),
    })
}

pub(super) fn tun(facts: &Facts) -> Option<DoctorCheck> {
    const NAME: &str = "tun";
    Some(match &facts.tun {
        Device::Usable => pass(NAME, "/dev/net/tun can be opened"),
        Device::Missing => {
            fail(NAME, "there is no /dev/net/tun").fix_as_root(facts, "modprobe tun")
        }
        Device::NotPermitted => fail(NAME, format!("{} may not open /dev/net/tun", facts.user))
            .fix_as_root(facts, "chmod 0666 /dev/net/tun"),
        Device::Broken(error) => fail(NAME, format!("/dev/net/tun cannot be opened: {error}")),
    })
}

pub(super) fn image(facts: &Facts) -> Option<DoctorCheck> {
    Some(stored("image", &facts.image, facts, &["mmdebstrap", "apt-get", "gpgv"]))
}

pub(super) fn kernel(facts: &Facts) -> Option<DoctorCheck> {
    Some(stored("kernel", &facts.kernel, facts, &["apt-get", "dpkg-deb"]))
}

/// Whether the default image or kernel is here, or can be had.
fn stored(kind: &str, what: &Stored, facts: &Facts, needed: &[&str]) -> DoctorCheck {
    let name = &what.name;
    if what.is_local {
        return pass(kind, format!("{name} is here"));
    }
    let missing: Vec<&str> =
        needed.iter().copied().filter(|program| !facts.programs.contains(*program)).collect();
    if !missing.is_empty() {
        let reason =
            format!("{name} is not here, and cannot be made without {}", missing.join(", "));
        let check = fail(kind, reason);
        return if missing.contains(&"apt-get") {
            check
        } else {
            check.install(facts, &missing.join(" ").replace("dpkg-deb", "dpkg"))
        };
    }
    if !facts.has_apt_sources {
        let reason = format!("{name} is not here, and apt has no source to fetch it from");
        return fail(kind, reason).fix("add a Debian source to /etc/apt/sources.list.d");
    }
    pass(kind, format!("{name} will be fetched when it is first needed"))
}

pub(super) fn space(facts: &Facts) -> Option<DoctorCheck> {
    const NAME: &str = "disk-space";
    let Some(space) = &facts.space else {
        return Some(warn(NAME, "cannot tell how much space is left"));
    };
    let needed =
        if facts.image.is_local && facts.kernel.is_local { SPACE_TO_RUN } else { SPACE_TO_BUILD };
    let free = size::format(space.free_bytes);
    if space.free_bytes < needed {
        let needed = size::format(needed);
        let reason = format!("{free} free at {}, {needed} needed", space.path);
        return Some(fail(NAME, reason).fix("banger prune, banger system df"));
    }
    Some(pass(NAME, format!("{free} free at {}", space.path)))
}

pub(super) fn runtime_dir(facts: &Facts) -> Option<DoctorCheck> {
    const NAME: &str = "runtime-dir";
    let dir = &facts.runtime_dir;
    if let Err(error) = &facts.runtime_dir_state {
        return Some(fail(NAME, format!("{dir} cannot be used: {error}")));
    }
    if facts.runtime_dir_is_logind && facts.lingers == Some(false) {
        let reason = format!("{dir} goes away when you log out, and with it the daemon's socket");
        let cure = format!("loginctl enable-linger {}", facts.user);
        return Some(warn(NAME, reason).fix_as_root(facts, &cure));
    }
    Some(pass(NAME, dir))
}

pub(super) fn daemon(facts: &Facts) -> Option<DoctorCheck> {
    const NAME: &str = "daemon";
    Some(match &facts.daemon {
        DaemonFacts::Down => pass(NAME, "not running; it starts when it is needed"),
        DaemonFacts::Up { version, is_compatible: true } => {
            pass(NAME, format!("running, release {version}"))
        }
        DaemonFacts::Up { version, is_compatible: false } => {
            let reason = format!("release {version} runs, which this release cannot talk to");
            fail(NAME, reason).fix("banger daemon stop")
        }
        DaemonFacts::Silent => fail(NAME, "it runs and does not answer").fix("banger daemon logs"),
    })
}
