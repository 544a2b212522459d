//! What a warm start cannot go below: QEMU alone, started with `-incoming` from what banger keeps of
//! a booted VM, and one command given to its agent.
//!
//! It is the same QEMU with the arguments that banger gives it, so that what it restores is the same
//! machine. What is missing is banger: daemon, shim, jail, rules, pasta and the end of a VM.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use banger_api::agent::Configure;
use banger_api::exec::{ExecEnd, ExecRequest};
use banger_api::shim::{COW_FILE, DEVICES_FILE, LaunchSpec, MEMORY_FILE};
use banger_host::qemu::arguments::{self, Descriptors, guest_paths};
use banger_host::qemu::qmp::Qmp;
use banger_host::{clock, connect, random, sparse};
use banger_testkit::Account;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::json;
use tokio::runtime::Runtime;

use super::Stage;
use super::agent::Agent;
use super::contender::{Contender, Once, Reason, Side};
use crate::failure::on_file;

/// Without daemon, shim, jail and network.
pub(super) const FLOOR: Contender =
    Contender { name: "bare QEMU, restored", side: Side::Floor, every: 1, prepare };

/// Nobody takes that long unless it hangs.
const BOUND: Duration = Duration::from_secs(180);
/// Random bytes that a guest starts with, as a shim gives them.
const ENTROPY_BYTES: usize = 64;
/// Sockets and files in the floor's directory.
const QMP_SOCKET: &str = "qmp.sock";
const AGENT_SOCKET: &str = "agent.sock";
const NO_DISK: &str = "no-disk";
const WORDS: &str = "vmm.log";
/// Size of the disk that lies in the place of one that the VM has not, as a shim makes it: the guest
/// that was saved has seen it.
const NO_DISK_BYTES: u64 = 1 << 20;

/// Stands for the tap device until QEMU is told to make one itself.
const NO_TAP: RawFd = -1;

fn prepare(stage: &Stage) -> Result<Once<'_>, Reason> {
    let floor = Floor::prepare(stage)?;
    Ok(Box::new(move || Ok(floor.run(|_| ())?.0)))
}

/// What is needed to restore a saved guest again and again.
pub(super) struct Floor {
    /// How a VM goes on that goes away with its command.
    spec: LaunchSpec,
    /// The saved guest.
    saved: PathBuf,
    /// For its own files.
    dir: PathBuf,
    /// A network namespace with nothing in it.
    namespace: File,
    runtime: Runtime,
}

impl Floor {
    /// Finds the saved guest, and makes what is the same for every run.
    pub(super) fn prepare(stage: &Stage) -> Result<Self, Reason> {
        let saved = stage.template()?;
        if !Account::current().is_root() {
            // For a tap device, and since QEMU opens the saved memory for writing, which nobody else may.
            return Err(Reason::new("needs root"));
        }
        let dir = stage.host.scratch.join("floor");
        std::fs::create_dir_all(&dir).map_err(on_file("create", &dir))?;
        let no_disk = dir.join(NO_DISK);
        let made = File::create(&no_disk).and_then(|file| file.set_len(NO_DISK_BYTES));
        made.map_err(on_file("create", &no_disk))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok(Self {
            spec: LaunchSpec { durable: false, ..stage.spec.clone() },
            saved: saved.into(),
            dir,
            namespace: empty_namespace()?,
            runtime: runtime.map_err(|error| Reason::new(&error.to_string()))?,
        })
    }

    /// Restores the guest, has it run `true`, looks at its QEMU, whose process id that is, and ends it.
    /// The time is from QEMU's start to the end of the command.
    pub(super) fn run<T>(&self, look: impl FnOnce(u32) -> T) -> Result<(Duration, T), Reason> {
        self.take_fresh_disk()?;
        let listen = |name| {
            let path = self.dir.join(name);
            connect::listen(&self.dir, name).map_err(on_file("listen on", &path))
        };
        let (qmp, agent) = (listen(QMP_SOCKET)?, listen(AGENT_SOCKET)?);
        let devices = self.saved.join(DEVICES_FILE);
        let devices = File::open(&devices).map_err(on_file("open", &devices))?;
        inherit(&qmp)?;
        inherit(&agent)?;
        inherit(&devices)?;
        let number = devices.as_raw_fd();
        let fds = Descriptors {
            tap: NO_TAP,
            agent: agent.as_raw_fd(),
            qmp: qmp.as_raw_fd(),
            devices: Some(number),
        };
        let argv = outside_the_jail(arguments::arguments(&self.spec, fds), &self.places())?;

        let started = Instant::now();
        let vmm = self.start(&argv)?;
        // Else they would take connections for a QEMU that has ended.
        drop((qmp, agent, devices));
        let ran = self.runtime.block_on(async {
            let late = |_| Reason::new(&format!("not done in {} s", BOUND.as_secs()));
            tokio::time::timeout(BOUND, self.run_true(number))
                .await
                .unwrap_or_else(|e| Err(late(e)))
        });
        let took = started.elapsed();
        ran.map_err(|reason| self.with_words(reason))?;
        Ok((took, look(vmm.0.id())))
    }

    fn take_fresh_disk(&self) -> Result<(), Reason> {
        let (from, to) = (self.saved.join(COW_FILE), self.dir.join(COW_FILE));
        if to.exists() {
            std::fs::remove_file(&to).map_err(on_file("remove", &to))?;
        }
        Ok(sparse::copy(&from, &to).map(drop).map_err(on_file("copy", &from))?)
    }

    /// Where the files are that a jail would have in other places.
    fn places(&self) -> [(&'static str, PathBuf); 7] {
        let no_disk = self.dir.join(NO_DISK);
        let modules = self.spec.modules_image.as_ref().map_or(no_disk.clone(), PathBuf::from);
        [
            (guest_paths::ROOT_IMAGE, (&self.spec.root_image).into()),
            (guest_paths::ROOT_COW, self.dir.join(COW_FILE)),
            (guest_paths::WORK, no_disk),
            (guest_paths::MODULES, modules),
            (guest_paths::KERNEL, (&self.spec.kernel).into()),
            (guest_paths::INITRAMFS, (&self.spec.initramfs).into()),
            (guest_paths::MEMORY, self.saved.join(MEMORY_FILE)),
        ]
    }

    fn start(&self, argv: &[String]) -> Result<Vmm, Reason> {
        let words = self.dir.join(WORDS);
        let words = File::create(&words).map_err(on_file("create", &words))?;
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(words);
        let start = move || {
            setns(&self.namespace, CloneFlags::CLONE_NEWNET)?;
            command.spawn()
        };
        let started = on_a_thread(start);
        started.map(Vmm).map_err(|error| Reason::new(&format!("cannot start QEMU: {error}")))
    }

    /// What a shim does, without what it does for safety.
    async fn run_true(&self, devices: RawFd) -> Result<(), Reason> {
        let failed = |error: &dyn std::error::Error| Reason::new(&error.to_string());
        let stream = connect::unix(&self.dir, QMP_SOCKET).await.map_err(|e| failed(&e))?;
        let (mut qmp, _events) = Qmp::connect(stream).await.map_err(|e| failed(&e))?;
        qmp.restore(devices).await.map_err(|e| failed(&e))?;
        qmp.execute("cont", json!({})).await.map_err(|e| failed(&e))?;
        // Only now: a guest that stands still does not notice that somebody has come.
        let stream = connect::unix(&self.dir, AGENT_SOCKET).await.map_err(|e| failed(&e))?;
        let command = ExecRequest { argv: vec!["true".to_owned()], ..ExecRequest::default() };
        match Agent::greet(stream).await?.run(&identity(), &command).await? {
            ExecEnd::Exited(0) => Ok(()),
            end => Err(Reason::new(&format!("`true` ended with {end:?}"))),
        }
    }

    /// The reason, with what QEMU said of it.
    fn with_words(&self, reason: Reason) -> Reason {
        match std::fs::read(self.dir.join(WORDS)) {
            Ok(words) if !words.is_empty() => {
                let words = String::from_utf8_lossy(&words);
                Reason::new(&format!("{reason}; QEMU said: {words}"))
            }
            _ => reason,
        }
    }
}

/// The least that makes a guest somebody: no network, and no disks but those that it has.
pub(super) fn identity() -> Configure {
    Configure {
        entropy_hex: random::hex::<ENTROPY_BYTES>(),
        time_unix_ns: clock::now_ns(),
        machine_id: random::hex::<16>(),
        hostname: "floor".to_owned(),
        network: None,
        env: [].into(),
        user: None,
        workdir: None,
        ca_certificates: Vec::new(),
        drives: Vec::new(),
        copy: false,
    }
}

/// A QEMU that ends when this does.
struct Vmm(Child);

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The arguments for a QEMU that is in no jail: it finds its files where they are, and makes its tap
/// device itself. The guest sees the same network card only if a tap device is behind it.
fn outside_the_jail(
    mut argv: Vec<String>,
    places: &[(&str, PathBuf)],
) -> Result<Vec<String>, Reason> {
    let inherited = format!("tap,id=net,fd={NO_TAP}");
    let Some(netdev) = argv.iter_mut().find(|word| **word == inherited) else {
        return Err(Reason::new("banger gives its VMs another network card than this restores"));
    };
    "tap,id=net,ifname=floor0,script=no,downscript=no".clone_into(netdev);
    for word in &mut argv {
        if let Some((inside, outside)) = places.iter().find(|(inside, _)| word.contains(inside)) {
            *word = word.replace(inside, &outside.to_string_lossy());
        }
    }
    Ok(argv)
}

/// A network namespace as the kernel makes it, for as long as the file is open.
fn empty_namespace() -> Result<File, Reason> {
    let here = Path::new("/proc/thread-self/ns/net");
    let made = on_a_thread(move || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        File::open(here)
    });
    made.map_err(|error| Reason::new(&format!("cannot make a network namespace: {error}")))
}

/// Runs what changes the namespaces of the thread that it runs on.
fn on_a_thread<T: Send>(work: impl FnOnce() -> std::io::Result<T> + Send) -> std::io::Result<T> {
    std::thread::scope(|scope| scope.spawn(work).join())
        .unwrap_or_else(|_| Err(std::io::Error::other("a thread panicked")))
}

/// Lets programs that are started from now on have a descriptor, under the same number.
fn inherit(fd: impl AsFd) -> Result<(), Reason> {
    let cleared = fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()));
    cleared.map(drop).map_err(|errno| Reason::new(&format!("cannot pass a descriptor on: {errno}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv_of(begin: &str) -> Vec<String> {
        let spec = serde_json::from_value(json!({
            "vm_id": "0123456789ab", "name": "box", "machine_id": "0".repeat(32),
            "engine": {
                "name": "qemu", "version": "7.2.22", "binary": "/usr/bin/qemu-system-x86_64",
                "libraries": [], "data_dirs": [], "accelerator": "tcg"
            },
            "cpus": 1, "memory_mib": 128, "kernel": "/k", "kernel_release": "6.1",
            "initramfs": "/i", "root_image": "/r", "root_image_bytes": 1, "disk_bytes": 1,
            "durable": false, "network": "default", "boot_timeout_ms": 1,
            "begin": { "how": begin, "saved": "/s" }
        }));
        let fds = Descriptors { tap: NO_TAP, agent: 7, qmp: 8, devices: Some(9) };
        arguments::arguments(&spec.unwrap(), fds)
    }

    #[test]
    fn outside_the_jail_every_file_is_where_it_is_and_the_rest_is_as_banger_has_it() {
        let inside = argv_of("restore");
        let places = [
            guest_paths::ROOT_IMAGE,
            guest_paths::ROOT_COW,
            guest_paths::WORK,
            guest_paths::MODULES,
            guest_paths::KERNEL,
            guest_paths::INITRAMFS,
            guest_paths::MEMORY,
        ]
        .map(|path| (path, PathBuf::from(path.replace("/vm/", "/outside/"))));
        let outside = outside_the_jail(inside.clone(), &places).unwrap();
        assert_eq!(inside.len(), outside.len());
        for (inside, outside) in inside.iter().zip(&outside) {
            match inside.starts_with("tap,") {
                true => assert!(outside.starts_with("tap,id=net,ifname="), "{outside}"),
                false => assert_eq!(&inside.replace("/vm/", "/outside/"), outside),
            }
        }
        assert!(outside.iter().any(|word| word.contains("mem-path=/outside/memory,share=off")));
    }

    #[test]
    fn another_network_card_is_noticed() {
        let mut argv = argv_of("restore");
        argv.retain(|word| !word.starts_with("tap,"));
        assert!(outside_the_jail(argv, &[]).unwrap_err().to_string().contains("network card"));
    }

    #[test]
    fn only_what_is_to_be_passed_on_is() {
        let (passed, kept) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        inherit(&passed).unwrap();
        let is_there = |fd: RawFd| {
            let mut test = Command::new("test");
            test.arg("-e").arg(format!("/proc/self/fd/{fd}")).status().unwrap().success()
        };
        assert!(is_there(passed.as_raw_fd()));
        assert!(!is_there(kept.as_raw_fd()));
    }
}
