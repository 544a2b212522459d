//! "Host trouble: disk full at every write, read-only state directory …": told, and got over. A disk
//! that fills under a running VM is in `lifecycle.rs`.

use std::path::{Path, PathBuf};

use banger_e2e::{SOON, configure};
use banger_testkit::{Host, wait};

/// A data directory on a small disk of its own, with the images of another host.
struct Small {
    dir: PathBuf,
}

impl Small {
    fn new(host: &Host) -> Self {
        let dir = host.scratch.join("small");
        std::fs::create_dir(&dir).expect("ours");
        let small = Self { dir };
        small.mount();
        let own = |path: &Path| {
            std::os::unix::fs::lchown(path, Some(host.account.uid), Some(host.account.gid))
                .expect("we are root");
        };
        own(&small.dir);
        for part in ["images", "kernels", "cache"] {
            let (from, to) = (host.data.join(part), small.dir.join(part));
            std::fs::create_dir(&to).expect("there is room yet");
            own(&to);
            let bind = nix::mount::MsFlags::MS_BIND;
            nix::mount::mount(Some(&from), &to, None::<&str>, bind, None::<&str>).expect("root");
        }
        small
    }

    fn mount(&self) {
        let flags = nix::mount::MsFlags::empty();
        let options = Some("size=2m,mode=0700");
        nix::mount::mount(Some("small"), &self.dir, Some("tmpfs"), flags, options).expect("root");
    }

    /// With other flags, as soon as nobody writes there any more: a process that was told to end is
    /// busy with its files a moment longer than with its locks.
    fn remount(&self, flags: nix::mount::MsFlags) {
        let flags = nix::mount::MsFlags::MS_REMOUNT | flags;
        wait::until("the disk is idle", SOON, || {
            match nix::mount::mount(None::<&str>, &self.dir, None::<&str>, flags, None::<&str>) {
                Ok(()) => Some(()),
                Err(nix::errno::Errno::EBUSY) => None,
                Err(other) => panic!("we are root: {other}"),
            }
        });
    }

    fn fill(&self) {
        use std::io::Write;
        let mut file = std::fs::File::create(self.dir.join("filler")).expect("a name is free");
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.dir.join("filler")).expect("it is there");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        for part in ["images", "kernels", "cache", ""] {
            let path = self.dir.join(part);
            let _ = nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

/// "disk full at every write …; after freeing space everything works and nothing is left", and
/// "read-only state directory".
#[test]
fn a_full_and_a_read_only_disk_are_told_and_got_over() {
    if !nix::unistd::geteuid().is_root() {
        return banger_testkit::skip("mounting a small file system needs root");
    }
    let host = Host::new();
    // It is full when nothing more can be written, and not before.
    configure(&host, "config.toml", "reserve_disk_mib = 0\n");
    let small = Small::new(&host);
    let banger = |words: &[&str]| host.banger(words).env("BANGER_DATA_DIR", &small.dir);
    let full = |words: &[&str]| {
        let told = banger(words).run().assert_code(125);
        let text = told.stderr_text();
        assert!(text.contains("full") || text.contains("No space left"), "{told}");
        assert!(text.contains("hint: "), "{told}");
    };

    small.fill();
    full(&["ls"]);
    small.free();
    // Nobody has to stop the daemon that could not open its database.
    banger(&["ls"]).run().assert_ok().assert_stdout_has("NAME");

    small.fill();
    full(&["create", "--name", "one"]);
    small.free();
    banger(&["ls", "-q"]).run().assert_ok().assert_stdout("");
    let vms = std::fs::read_dir(small.dir.join("vms")).into_iter().flatten().count();
    assert_eq!(vms, 0, "nothing is left of it");

    banger(&["create", "--name", "two"]).run().assert_ok();
    small.fill();
    let started = banger(&["start", "two"]).run();
    assert!([0, 125].contains(&started.code), "{started}");
    small.free();
    if started.code != 0 {
        banger(&["start", "two"]).run().assert_ok();
    }
    banger(&["exec", "two", "--", "true"]).run().assert_ok();
    small.fill();
    banger(&["logs", "--console", "two"]).run().assert_ok();
    banger(&["exec", "two", "--", "echo", "works"]).run().assert_ok().assert_stdout("works\n");
    // What cannot be written down is still done.
    let stopped = banger(&["stop", "two"]).run();
    assert!([0, 125].contains(&stopped.code), "{stopped}");
    small.free();
    banger(&["stop", "two"]).run().assert_ok();
    banger(&["rm", "two"]).run().assert_ok();
    banger(&["daemon", "stop"]).run().assert_ok();

    small.remount(nix::mount::MsFlags::MS_RDONLY);
    let told = banger(&["ls"]).run().assert_code(125);
    told.clone().assert_stderr_has("Read-only file system").assert_stderr_has("hint: ");
    told.assert_stderr_has(&small.dir.display().to_string());
    small.remount(nix::mount::MsFlags::empty());
    banger(&["ls"]).run().assert_ok();
    banger(&["daemon", "stop"]).run().assert_ok();
    drop(small);
    host.finish();
}
