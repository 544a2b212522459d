//! What there is beside a host when something breaks: notes that must not be lost, files, registries.

use std::path::{Path, PathBuf};

use super::Bench;
use crate::fixtures::{SigningKey, TestRegistry};
use crate::host::Host;
use crate::registry::{Layer, TestImage};

impl Bench {
    /// A VM that runs, and has written something that it must not lose.
    pub(super) fn vm_with_a_note(&self) {
        self.host.running_vm("web");
        let keep = "echo kept > /root/note; sync /root/note /root";
        self.host.banger(["exec", "web", "--", "sh", "-c", keep]).run().assert_ok();
    }

    pub(super) fn check_note(&self) {
        let read = ["exec", "web", "--", "cat", "/root/note"];
        self.host.banger(read).run().assert_ok().assert_stdout("kept\n");
    }

    pub(super) fn make_template(&self) {
        self.host.banger(["template", "make", "-q"]).run().assert_ok();
    }

    /// Has a guest stand ready.
    pub(super) fn fill_the_pool(&self) {
        self.make_template();
        self.host.banger(["run", "--rm", "-q", "--", "true"]).run().assert_ok();
        self.host.wait_for_pool(1);
    }

    /// How many templates there are.
    pub(super) fn templates(&self) -> usize {
        let listed = self.host.banger(["template", "ls", "-q"]).run().assert_ok();
        listed.stdout_text().lines().count()
    }

    /// When the VM's present run began, in milliseconds since 1970.
    pub(super) fn running_since(&self) -> u64 {
        let status = &self.host.show("web")["status"];
        assert_eq!(status["state"], "running", "{status}");
        status["since_ms"].as_u64().expect("a number")
    }

    pub(super) fn forget_the_initramfs(&self) {
        let cache = self.host.data.join("cache");
        for entry in std::fs::read_dir(cache).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("initramfs-") {
                std::fs::remove_file(entry.path()).expect("our own file");
            }
        }
    }

    /// Writes a file that belongs to the host's user.
    pub(super) fn put(&self, path: &Path, bytes: &[u8]) {
        std::fs::write(path, bytes).expect("our own directory");
        self.host.account.own(path);
    }

    pub(super) fn tree(&self) -> PathBuf {
        self.host.scratch.join("root")
    }

    /// A small root filesystem in a directory.
    pub(super) fn make_tree(&self) {
        let make = ["-c", "mkdir -p root/etc && echo hello > root/etc/hello"];
        self.host.program("/bin/sh".as_ref(), make).run().assert_ok();
        assert!(self.tree().join("etc/hello").exists());
    }

    /// A catalog of the user's with one image, that is a file of the web.
    pub(super) fn make_catalog(&mut self) {
        let (registry, key) = registry(&self.host);
        let tar = Layer::tar_of(&[("etc/hello", b"hello")]);
        let digest = registry.server.put_blob("files", &tar);
        let text = format!(
            "[[image]]\nname = 'filed'\n[image.file]\nsha256 = '{}'\nurl = 'http://{}/v2/files/blobs/{digest}'\n",
            digest.trim_start_matches("sha256:"),
            registry.server.address(),
        );
        self.props.registry = Some((registry, key));
        let config = self.host.config();
        self.host.account.make_dir(&config);
        self.put(&config.join("catalog.toml"), text.as_bytes());
    }

    /// The files of the kernel that is here.
    pub(super) fn kernel_dir(&self) -> PathBuf {
        let entries = std::fs::read_dir(self.host.data.join("kernels")).expect("kernels are there");
        let mut dirs = entries.flatten().map(|entry| entry.path());
        dirs.find(|path| path.join("vmlinuz").is_file()).expect("the default kernel is there")
    }

    /// The modules of the kernel that is here, as files.
    pub(super) fn take_modules_out(&self) {
        let modules = self.host.scratch.join("modules");
        self.host.account.make_dir(&modules);
        let dump = format!("rdump /kernel /modules.builtin {}", modules.display());
        let disk = self.kernel_dir().join("modules.ext4").display().to_string();
        self.host.program("/usr/sbin/debugfs".as_ref(), ["-R", &dump, &disk]).run().assert_ok();
    }
}

/// A registry on loopback with one image, `app:signed`, and the key that signed it.
pub(super) fn registry(host: &Host) -> (TestRegistry, SigningKey) {
    let registry = TestRegistry::empty();
    let key = SigningKey::create(&host.scratch, "signer");
    let signed = registry.push(&TestImage::new().file("etc/hello", b"hello\n"), "app:signed");
    key.sign(&registry, "app", signed["digest"].as_str().expect("a digest"));
    (registry, key)
}
