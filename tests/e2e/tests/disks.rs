//! "what the guest fsynced is there"; "the image is never modified by any VM"; "a full host disk …
//! loses nothing".

use std::os::unix::fs::FileExt;

use banger_testkit::fsync_log::{Ending, FsyncLog};
use banger_testkit::{Host, ImageGuard};

/// "`stop`, `restart`, `kill`, power cut: what the guest fsynced is there (a guest program that logs
/// its fsyncs over the agent stream, then is killed at random times …)". Fifty times:
/// `cargo xtask fsync-kills`.
#[test]
fn what_was_fsynced_is_there_however_the_machine_ended() {
    let host = Host::new();
    let images = ImageGuard::of(&host.data);
    let vm = host.running_vm("diary");
    let seed = banger_testkit::wait::seconds_since_1970();
    println!("seed {seed}");
    let mut log = FsyncLog::new(&host, &vm, seed);
    for ending in Ending::ALL {
        println!("{}", log.round(ending));
    }
    assert!(log.check_all() > 0, "nothing was ever written");
    an_io_error_is_repaired_and_said(&host, &vm);
    log.check_all();
    images.assert_unchanged(&host.data);
    host.finish();
}

/// "An I/O error clears the header's valid flag: before a start the host checks the header, restores
/// the flag, says so".
fn an_io_error_is_repaired_and_said(host: &Host, vm: &str) {
    host.banger(["stop", vm]).run().assert_ok();
    let store = host.vm_dir(vm).join("root.cow");
    let store = std::fs::OpenOptions::new().read(true).write(true).open(store).expect("ours");
    let mut flag = [0; 4];
    store.read_exact_at(&mut flag, 4).expect("it has a header");
    assert_eq!(flag, [1, 0, 0, 0], "the guest's kernel says that it is valid");
    store.write_all_at(&[0; 4], 4).expect("cleared, as an I/O error does it");
    drop(store);
    host.banger(["start", vm]).run().assert_ok();
    let warnings = host.show(vm)["status"]["warnings"].to_string();
    assert!(warnings.contains("root.cow was marked invalid"), "{warnings}");
}

/// The image's own device, below the root disk (`banger-agent`, `boot/root.rs`).
const IMAGE_IN_GUEST: &str = "/dev/vda";

/// "the image is never modified by any VM (digest checked)", and two machines of one image share no
/// writes: not even where root in the guest writes to the image's own device.
#[test]
fn machines_of_one_image_share_no_writes() {
    let host = Host::new();
    let images = ImageGuard::of(&host.data);
    let vms = ["one", "other"].map(|name| host.running_vm(name));
    for vm in &vms {
        let busy = format!(
            "echo {vm} > /etc/mine; echo {vm} >> /etc/hostname; rm -rf /usr/share/doc; \
             find /etc -xdev -type f -exec touch {{}} +; \
             test $(blockdev --getro {IMAGE_IN_GUEST}) = 1 || exit 8; \
             for device in /dev/vd?; do \
               case $(blockdev --getro $device) in 1) ;; *) continue ;; esac; \
               dd if=/dev/urandom of=$device bs=4096 count=64 conv=fsync && exit 9; \
               blockdev --setrw $device; \
               dd if=/dev/urandom of=$device bs=4096 count=64 conv=fsync && exit 10; \
               echo $device refused; \
             done; sync"
        );
        let tried = host.banger(["exec", vm, "--", "sh", "-c", &busy]).run().assert_ok();
        tried.assert_stdout_has(&format!("{IMAGE_IN_GUEST} refused"));
    }
    for vm in &vms {
        let read = host.banger(["exec", vm, "--", "cat", "/etc/mine"]).run().assert_ok();
        assert_eq!(read.stdout_text().trim(), vm, "each sees its own");
        host.banger(["stop", vm]).run().assert_ok();
    }
    images.assert_unchanged(&host.data);
    let fresh = host.banger(["run", "--rm", "--", "test", "-e", "/etc/mine"]).run();
    fresh.assert_code(1);
    images.assert_unchanged(&host.data);
    host.finish();
}
