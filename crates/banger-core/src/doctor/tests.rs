//! A healthy machine, and what each single fault makes of it.

use super::*;

/// An ordinary user's machine with nothing wrong.
fn healthy() -> Facts {
    let programs = [
        "apt-get",
        "dpkg-deb",
        "git",
        "gpgv",
        "mke2fs",
        "mmdebstrap",
        "newgidmap",
        "newuidmap",
        "nft",
        "pasta",
        "qemu-system-x86_64",
    ];
    let stored = |name: &str| Stored { name: name.to_owned(), is_local: true };
    Facts {
        architecture: "x86_64".to_owned(),
        uid: 1000,
        user: "ann".to_owned(),
        missing_part: None,
        settings: Ok(()),
        user_namespaces: Ok(()),
        apparmor_restricts_namespaces: false,
        unprivileged_namespaces: Some(true),
        max_user_namespaces: Some(15_000),
        subuid: MapRange::Of(65_536),
        subgid: MapRange::Of(65_536),
        jail_user: false,
        kvm: Kvm::Usable,
        is_amd: false,
        tun: Device::Usable,
        programs: programs.map(str::to_owned).into(),
        qemu_version: Some("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)".to_owned()),
        has_apt_sources: true,
        image: stored("debian-bookworm"),
        kernel: stored("debian-cloud"),
        space: Some(Space { path: "/data".to_owned(), free_bytes: 20 * GIB }),
        runtime_dir: "/run/user/1000/banger".to_owned(),
        runtime_dir_state: Ok(()),
        runtime_dir_is_logind: true,
        lingers: Some(true),
        daemon: DaemonFacts::Down,
    }
}

/// The checks that are not content, one line each.
fn complaints(facts: &Facts) -> String {
    let lines = judge(facts).checks.into_iter().filter(|check| check.verdict != Verdict::Pass);
    lines
        .map(|check| {
            let fix = check.fix.map(|fix| format!(" [{fix}]")).unwrap_or_default();
            format!("{:?} {}: {}{fix}\n", check.verdict, check.name, check.reason)
        })
        .collect()
}

/// What a machine that differs from the healthy one in this complains about.
fn with(change: impl FnOnce(&mut Facts)) -> String {
    let mut facts = healthy();
    change(&mut facts);
    complaints(&facts)
}

fn without(programs: &[&str], change: impl FnOnce(&mut Facts)) -> String {
    with(|facts| {
        facts.programs.retain(|name| !programs.contains(&name.as_str()));
        change(facts);
    })
}

fn nothing_local(facts: &mut Facts) {
    facts.image.is_local = false;
    facts.kernel.is_local = false;
}

#[test]
fn a_healthy_machine_has_nothing_to_complain_about() {
    assert_eq!(with(|_| {}), "");
    assert_eq!(with(nothing_local), "", "what can be fetched is no fault");
    assert_eq!(judge(&healthy()).verdict(), Verdict::Pass);
    let names: Vec<String> = judge(&healthy()).checks.into_iter().map(|check| check.name).collect();
    let unique: std::collections::BTreeSet<&String> = names.iter().collect();
    assert_eq!(unique.len(), names.len(), "names are unique: {names:?}");
}

#[test]
fn root_needs_other_things_than_a_user() {
    let as_root = |change: fn(&mut Facts)| {
        with(|facts| {
            facts.uid = 0;
            facts.user = "root".to_owned();
            facts.subuid = MapRange::Missing;
            facts.jail_user = true;
            facts.programs.remove("newuidmap");
            change(facts);
        })
    };
    assert_eq!(as_root(|_| {}), "");
    insta::assert_snapshot!(as_root(|facts| facts.jail_user = false), @"Fail jail-user: VMs started by root run as the system user banger, which does not exist [useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin banger]");
    insta::assert_snapshot!(as_root(|facts| facts.tun = Device::NotPermitted), @"Fail tun: root may not open /dev/net/tun [chmod 0666 /dev/net/tun]");
}

#[test]
fn user_namespaces_have_many_switches() {
    let denied = |facts: &mut Facts| facts.user_namespaces = Err("Operation not permitted".into());
    insta::assert_snapshot!(with(denied), @"Fail user-namespaces: cannot be made: Operation not permitted; in a container, it must be allowed to");
    insta::assert_snapshot!(with(|facts| {
        denied(facts);
        facts.max_user_namespaces = Some(0);
    }), @"Fail user-namespaces: the kernel allows none (user.max_user_namespaces is 0) [sudo sysctl -w user.max_user_namespaces=15000]");
    insta::assert_snapshot!(with(|facts| {
        denied(facts);
        facts.unprivileged_namespaces = Some(false);
    }), @"Fail user-namespaces: only root may make them (kernel.unprivileged_userns_clone is 0) [sudo sysctl -w kernel.unprivileged_userns_clone=1]");
    insta::assert_snapshot!(with(|facts| {
        denied(facts);
        facts.apparmor_restricts_namespaces = true;
    }), @"Fail user-namespaces: AppArmor lets only confined programs have them [sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0]");
    assert_eq!(with(|facts| facts.apparmor_restricts_namespaces = true), "", "what works is fine");
}

#[test]
fn ids_are_needed_to_make_images() {
    insta::assert_snapshot!(with(|facts| facts.subgid = MapRange::Of(10)), @"Warn subuid: ann has no range of 65536 ids in /etc/subgid [sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 ann]");
    insta::assert_snapshot!(with(|facts| {
        nothing_local(facts);
        facts.subuid = MapRange::Missing;
        facts.subgid = MapRange::Missing;
    }), @"Fail subuid: ann has no range of 65536 ids in /etc/subuid and /etc/subgid [sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 ann]");
}

#[test]
fn without_kvm_vms_are_slow() {
    insta::assert_snapshot!(with(|facts| facts.kvm = Kvm::NotPermitted), @"Warn kvm: ann may not open /dev/kvm; VMs run in emulation (tcg), several times slower [sudo usermod -aG kvm ann, then log in again]");
    insta::assert_snapshot!(with(|facts| facts.kvm = Kvm::NoDevice), @"Warn kvm: there is no /dev/kvm; VMs run in emulation (tcg), several times slower [sudo modprobe kvm_intel]");
    insta::assert_snapshot!(with(|facts| {
        facts.kvm = Kvm::NoDevice;
        facts.is_amd = true;
    }), @"Warn kvm: there is no /dev/kvm; VMs run in emulation (tcg), several times slower [sudo modprobe kvm_amd]");
    insta::assert_snapshot!(with(|facts| facts.kvm = Kvm::NoHardware), @"Warn kvm: the processor shows neither vmx nor svm (virtualisation is off in the firmware, or this is a VM without nesting); VMs run in emulation (tcg), several times slower");
    insta::assert_snapshot!(with(|facts| facts.kvm = Kvm::Broken("busy".into())), @"Warn kvm: /dev/kvm cannot be opened: busy; VMs run in emulation (tcg), several times slower");
}

#[test]
fn qemu_is_needed_and_not_too_old() {
    insta::assert_snapshot!(without(&["qemu-system-x86_64"], |_| {}), @"Fail qemu: qemu-system-x86_64 is missing; nothing can run a VM [sudo apt-get install -y qemu-system-x86]");
    let version = |text: Option<&str>| with(|facts| facts.qemu_version = text.map(str::to_owned));
    insta::assert_snapshot!(version(Some("QEMU emulator version 6.1.0")), @"Warn qemu: version 6.1.0 is older than 7.2, the oldest tried");
    insta::assert_snapshot!(version(Some("hello")), @"Warn qemu: unknown version: hello");
    insta::assert_snapshot!(version(None), @"Fail qemu: qemu-system-x86_64 does not tell its version");
    assert_eq!(version(Some("QEMU emulator version 10.0.1")), "");
}

#[test]
fn every_program_names_its_package() {
    let all = ["pasta", "nft", "mke2fs", "mmdebstrap", "git", "newgidmap"];
    insta::assert_snapshot!(without(&all, |_| {}), @r"
    Warn newuidmap: newuidmap and newgidmap are missing; images cannot be made [sudo apt-get install -y uidmap]
    Fail pasta: pasta is missing; VMs have no way to the network [sudo apt-get install -y passt]
    Fail nft: nft is missing; VMs cannot be kept from this host's addresses [sudo apt-get install -y nftables]
    Fail mke2fs: mke2fs is missing; no disk can be made [sudo apt-get install -y e2fsprogs]
    Warn mmdebstrap: mmdebstrap is missing; the default image cannot be made [sudo apt-get install -y mmdebstrap]
    Warn git: git is missing; repositories cannot be copied into VMs [sudo apt-get install -y git]
    ");
    insta::assert_snapshot!(without(&["pasta", "apt-get"], |_| {}), @"Fail pasta: pasta is missing; VMs have no way to the network [install what Debian has in the package passt]");
}

#[test]
fn image_and_kernel_are_here_or_can_be_had() {
    insta::assert_snapshot!(without(&["mmdebstrap", "gpgv"], nothing_local), @r"
    Warn mmdebstrap: mmdebstrap is missing; the default image cannot be made [sudo apt-get install -y mmdebstrap]
    Fail image: debian-bookworm is not here, and cannot be made without mmdebstrap, gpgv [sudo apt-get install -y mmdebstrap gpgv]
    ");
    insta::assert_snapshot!(without(&["apt-get"], nothing_local), @r"
    Fail image: debian-bookworm is not here, and cannot be made without apt-get
    Fail kernel: debian-cloud is not here, and cannot be made without apt-get
    ");
    insta::assert_snapshot!(with(|facts| {
        nothing_local(facts);
        facts.has_apt_sources = false;
    }), @r"
    Fail image: debian-bookworm is not here, and apt has no source to fetch it from [add a Debian source to /etc/apt/sources.list.d]
    Fail kernel: debian-cloud is not here, and apt has no source to fetch it from [add a Debian source to /etc/apt/sources.list.d]
    ");
}

#[test]
fn devices_disks_and_directories() {
    insta::assert_snapshot!(with(|facts| facts.tun = Device::Missing), @"Fail tun: there is no /dev/net/tun [sudo modprobe tun]");
    insta::assert_snapshot!(with(|facts| facts.tun = Device::Broken("odd".into())), @"Fail tun: /dev/net/tun cannot be opened: odd");
    let free = |bytes| {
        move |facts: &mut Facts| {
            facts.space = Some(Space { path: "/data".to_owned(), free_bytes: bytes });
        }
    };
    assert_eq!(with(free(GIB)), "", "enough to run");
    insta::assert_snapshot!(with(free(GIB / 4)), @"Fail disk-space: 256 MiB free at /data, 512 MiB needed [banger prune, banger system df]");
    insta::assert_snapshot!(with(|facts| {
        nothing_local(facts);
        free(GIB)(facts);
    }), @"Fail disk-space: 1 GiB free at /data, 3 GiB needed [banger prune, banger system df]");
    insta::assert_snapshot!(with(|facts| facts.space = None), @"Warn disk-space: cannot tell how much space is left");
    insta::assert_snapshot!(with(|facts| facts.lingers = Some(false)), @"Warn runtime-dir: /run/user/1000/banger goes away when you log out, and with it the daemon's socket [sudo loginctl enable-linger ann]");
    insta::assert_snapshot!(with(|facts| facts.runtime_dir_state = Err("not yours".into())), @"Fail runtime-dir: /run/user/1000/banger cannot be used: not yours");
}

#[test]
fn banger_itself() {
    insta::assert_snapshot!(with(|facts| facts.architecture = "aarch64".into()), @"Fail architecture: aarch64; VMs run on x86-64 only");
    insta::assert_snapshot!(with(|facts| facts.missing_part = Some("bangerd is missing".into())), @"Fail installation: bangerd is missing [script/quickstart]");
    insta::assert_snapshot!(with(|facts| facts.settings = Err("/c/config.toml makes no sense: unknown field".into())), @"Fail settings: /c/config.toml makes no sense: unknown field [mend the file]");
    let up = |is_compatible| {
        with(|facts| {
            facts.daemon = DaemonFacts::Up { version: "0.2.0".to_owned(), is_compatible };
        })
    };
    assert_eq!(up(true), "");
    insta::assert_snapshot!(up(false), @"Fail daemon: release 0.2.0 runs, which this release cannot talk to [banger daemon stop]");
    insta::assert_snapshot!(with(|facts| facts.daemon = DaemonFacts::Silent), @"Fail daemon: it runs and does not answer [banger daemon logs]");
}
