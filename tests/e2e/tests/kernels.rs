//! Kernels from files: imported, checked at once, booted; and banger's own, where it was built.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_testkit::{Host, skip};

/// How long making a kernel of two hundred megabytes of modules may take.
const IMPORT: Duration = Duration::from_secs(120);

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The files of the kernel that is here.
fn kernel_dir(host: &Host) -> PathBuf {
    let entries = fs::read_dir(host.data.join("kernels")).expect("kernels are there");
    let mut dirs = entries.flatten().map(|entry| entry.path());
    dirs.find(|path| path.join("vmlinuz").is_file()).expect("the default kernel is there")
}

/// Write a file that belongs to the host's user.
fn give(host: &Host, path: &Path, contents: &[u8]) {
    let write = ["-c", "mkdir -p \"$(dirname \"$0\")\" && cat > \"$0\" && chmod 755 \"$0\""];
    let path = path.to_string_lossy();
    host.program(Path::new("/bin/sh"), [&write[..], &[&path]].concat())
        .stdin(contents)
        .run()
        .assert_ok();
}

/// "`import` takes a vmlinux or bzImage plus a modules directory": what comes of it boots.
#[test]
fn an_imported_kernel_boots() {
    let host = Host::new();
    let dir = kernel_dir(&host);
    let modules = host.scratch.join("modules");
    fs::create_dir(&modules).expect("ours");
    std::os::unix::fs::lchown(&modules, Some(host.account.uid), Some(host.account.gid))
        .expect("ours");
    // The modules as they are on the guest's disk: packed, as other distributions have them.
    let dump = format!("rdump /kernel /modules.builtin {}", modules.display());
    let image = dir.join("modules.ext4").display().to_string();
    host.program(Path::new("/usr/sbin/debugfs"), ["-R", &dump, &image]).run().assert_ok();
    let pack = format!("find {} -name '*.ko' -path '*/drivers/*' | xargs xz -0", modules.display());
    host.program(Path::new("/bin/sh"), ["-c", &pack]).timeout(IMPORT).run().assert_ok();

    let (vmlinuz, modules) = (dir.join("vmlinuz"), modules.display().to_string());
    let vmlinuz = vmlinuz.display().to_string();
    let import = ["kernel", "import", "--name", "mine", "--modules", &modules, &vmlinuz];
    host.banger(import).timeout(IMPORT).run().assert_ok();
    host.banger(["kernel", "ls", "-q"]).run().assert_ok().assert_stdout("debian-cloud\nmine\n");
    let guest = "modprobe overlay && grep -qw overlay /proc/filesystems && uname -r";
    host.banger(["run", "--name", "vm", "--kernel", "mine", "--", "sh", "-c", guest])
        .run()
        .assert_ok()
        .assert_stdout_has("-cloud-amd64");

    host.banger(["kernel", "rm", "mine"]).run().assert_code(125).assert_stderr_has("vm");
    host.banger(["rm", "-f", "vm"]).run().assert_ok();
    host.banger(["kernel", "rm", "mine"]).run().assert_ok();
    host.banger(["kernel", "ls", "-q"]).run().assert_ok().assert_stdout("debian-cloud\n");
    host.finish();
}

/// "checks at once that what banger needs is there … and lists what is missing"
#[test]
fn all_that_a_kernel_lacks_is_said_when_it_is_imported() {
    let host = Host::new();
    // Without its modules, the distribution's kernel has next to nothing.
    let vmlinuz = kernel_dir(&host).join("vmlinuz").display().to_string();
    let output = host.banger(["kernel", "import", "--name", "bare", &vmlinuz]).run();
    let said = output.assert_code(125).stderr_text();
    for (what, option) in [
        ("virtio devices over MMIO", "CONFIG_VIRTIO_MMIO"),
        ("virtio disks", "CONFIG_VIRTIO_BLK"),
        ("a port to the host", "CONFIG_VIRTIO_CONSOLE or CONFIG_VIRTIO_VSOCKETS"),
        ("copy-on-write disks", "CONFIG_DM_SNAPSHOT"),
        ("virtio networks", "CONFIG_VIRTIO_NET"),
    ] {
        assert!(said.contains(&format!("{what} ({option})")), "{what}: {said}");
    }
    let hint = "hint: give its --modules DIR, or build the kernel with CONFIG_VIRTIO_MMIO=y ";
    assert!(said.contains(hint), "{said}");
    give(&host, &host.scratch.join("text"), b"hello");
    let text = host.scratch.join("text").display().to_string();
    host.banger(["kernel", "import", "--name", "text", &text])
        .run()
        .assert_code(125)
        .assert_stderr_has("neither a bzImage nor an ELF file");
    host.banger(["kernel", "ls", "-q"]).run().assert_ok().assert_stdout("debian-cloud\n");
    host.finish();
}

/// "a read error of a local kernel must never be reported as 'not in the catalog'"
#[test]
fn a_kernel_that_cannot_be_read_is_not_one_that_is_unknown() {
    let host = Host::new();
    let dir = kernel_dir(&host);
    let manifest = dir.join("kernel.json");
    let whole = fs::read(&manifest).expect("it is there");
    // By another file: the present one is shared with all tests.
    fs::remove_file(&manifest).expect("ours");
    give(&host, &manifest, &whole[..whole.len() / 2]);
    for command in [
        &["run", "--rm", "--", "true"][..],
        &["kernel", "show", "debian-cloud"],
        &["create", "--kernel", "debian-cloud"],
    ] {
        let said = host.banger(command).run().assert_code(125).stderr_text();
        assert!(said.contains("kernel debian-cloud is damaged"), "{command:?}: {said}");
        assert!(said.contains("hint: banger kernel pull --refresh debian-cloud"), "{said}");
    }
    // Root may read everything.
    if !host.account.is_root() {
        let mode = |mode| {
            let path = manifest.to_string_lossy();
            host.program(Path::new("/bin/chmod"), [mode, &*path]).run().assert_ok();
        };
        mode("000");
        let said = host.banger(["run", "--rm", "--", "true"]).run().assert_code(125).stderr_text();
        assert!(said.contains("cannot read") && said.contains("ermission denied"), "{said}");
        mode("600");
    }
    host.finish();
}

/// "banger's own small kernel, everything built in": what is said to be in it is in it.
#[test]
fn bangers_own_kernel_runs_what_containers_need() {
    let kernel = repository().join("target/kernel/vmlinux");
    let Ok(contents) = fs::read(&kernel) else {
        return skip("banger-minimal was not built (script/make-kernel)");
    };
    let host = Host::new();
    let file = host.scratch.join("vmlinux");
    give(&host, &file, &contents);
    let file = file.display().to_string();
    host.banger(["kernel", "import", "--name", "banger-minimal", &file]).run().assert_ok();
    // Bridges, veth, namespaces, overlays, other devices, groups: each line fails the whole.
    let guest = "set -e; uname -r; test ! -e /lib/modules
        ip link add br0 type bridge; ip link add v0 type veth peer name v1; ip link set v0 master br0
        ip netns add inner; ip link set v1 netns inner; ip netns exec inner ip link set v1 up
        ip link add x-dummy type dummy; ip link add x-vxlan type vxlan id 7 dstport 0
        ip link add link eth0 name x-mac type macvlan; ip link add x-wg type wireguard
        test \"$(ls /sys/class/net | tr '\\n' ' ')\" = 'br0 eth0 lo v0 x-dummy x-mac x-vxlan x-wg '
        cd /tmp; mkdir low up work all; echo deep > low/file
        mount -t overlay -o lowerdir=low,upperdir=up,workdir=work overlay all; grep deep all/file
        test -c /dev/fuse; test -c /dev/net/tun; test -c /dev/loop-control
        grep -w memory /sys/fs/cgroup/cgroup.controllers; zcat /proc/config.gz | grep CONFIG_NF_TABLES=y
        unshare --user --map-root-user --pid --fork --mount-proc true
        tc qdisc add dev x-dummy root netem delay 1ms
        echo all well";
    host.banger(["run", "--rm", "--kernel", "banger-minimal", "--", "sh", "-c", guest])
        .run()
        .assert_ok()
        .assert_stdout_has("-banger\n")
        .assert_stdout_has("all well");
    host.finish();
}

/// A key, and what it signed on a day in the past.
const TESTER: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----

mDMEY7DNABYJKwYBBAHaRw8BAQdAHQ1EmsLRDiCFpz6Po/3K6quVlmwPqes10Y3d
bnwt/nS0HUEgdGVzdGVyIDx0ZXN0ZXJAZXhhbXBsZS5jb20+iJAEExYIADgWIQSH
N00nq7FE4DAThhX1vVPYP8hvAAUCY7DNAAIbAwULCQgHAgYVCgkICwIEFgIDAQIe
AQIXgAAKCRD1vVPYP8hvAMivAP4hP3YqKNcmT2KAa+WBh1l9N4k246TOoafiG9uw
uGumpQD+JsjxKHP3kjQw/zIoVfllFxmFOdAEsoXzY/wYp+vhXgA=
=5XCB
-----END PGP PUBLIC KEY BLOCK-----
";
const FINGERPRINT: &str = "87374D27ABB144E030138615F5BD53D83FC86F00";
const SIGNED: &[u8] = b"not really a kernel\n";
const SIGNATURE: &str = "-----BEGIN PGP SIGNATURE-----

iHUEABYIAB0WIQSHN00nq7FE4DAThhX1vVPYP8hvAAUCY7IegAAKCRD1vVPYP8hv
AEFKAP43nT0ZFUl9st37nET1VE1++tzax/UGmjJK/XsIVjL0uwEAha3+VhYShHTP
DGcVliaHfUHSkJ3VEH8fqLRK9TNPEQ4=
=1AuT
-----END PGP SIGNATURE-----
";

/// "a kernel.org tarball whose detached PGP signature is checked against pinned release keys first"
#[test]
fn a_release_is_used_only_with_the_signature_of_a_pinned_key() {
    let host = Host::new();
    let copy = host.scratch.join("copy");
    for file in ["script/make-kernel", "script/host.sh", "kernel/keys/fingerprints"] {
        give(&host, &copy.join(file), &fs::read(repository().join(file)).expect("it is there"));
    }
    for key in ["gregkh.asc", "sashal.asc", "torvalds.asc"] {
        let file = Path::new("kernel/keys").join(key);
        give(&host, &copy.join(&file), &fs::read(repository().join(file)).expect("it is there"));
    }
    give(&host, &copy.join("linux-9.9.tar"), SIGNED);
    give(&host, &copy.join("linux-9.9.tar.sign"), SIGNATURE.as_bytes());
    let verify = || {
        let paths = ["linux-9.9.tar", "linux-9.9.tar.sign"].map(|file| copy.join(file));
        let [tarball, signature] = paths.map(|path| path.display().to_string());
        let args = ["--verify-only", "--tarball", &tarball, "--signature", &signature];
        host.program(&copy.join("script/make-kernel"), args).run()
    };
    verify().assert_code(1).assert_stderr_has("nothing was unpacked");
    // The key alone is not enough: its fingerprint must be written down.
    give(&host, &copy.join("kernel/keys/tester.asc"), TESTER.as_bytes());
    verify().assert_code(1).assert_stderr_has("not in kernel/keys/fingerprints");
    let pinned = fs::read_to_string(repository().join("kernel/keys/fingerprints"));
    let pinned = format!("{}{FINGERPRINT} A tester\n", pinned.expect("it is there"));
    give(&host, &copy.join("kernel/keys/fingerprints"), pinned.as_bytes());
    verify().assert_ok().assert_stdout_has("signed by A tester");
    give(&host, &copy.join("linux-9.9.tar"), b"something else\n");
    verify().assert_code(1).assert_stderr_has("BAD signature");
    assert!(!copy.join("target/kernel/source").exists(), "not a byte was unpacked");
    host.finish();
}
