//! The machine itself: QEMU, its console, its watchdog.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::image::Kind;
use super::parcel;
use crate::failure::{ChoreFailure, on_file, run};

/// After so long without a word of the console a boot counts as hung. Emulation hangs now and then.
const SILENCE: Duration = Duration::from_secs(60);
/// Longest boot, and longest way down.
const PATIENCE: Duration = Duration::from_secs(300);
/// What the machine says on its console when it can be logged in to.
const READY: &str = "host-vm-ready";
/// SVM, so that KVM works inside. No XSAVE and what builds on it: QEMU 7.2 does not pass XSETBV of a
/// guest's guest on, which would hang there.
const CPU: &str = "EPYC,xsave=off,avx=off,avx2=off,f16c=off,fma=off";
const KERNEL_ARGUMENTS: &str = "console=ttyS0 reboot=t panic=-1 mitigations=off nokaslr \
    cryptomgr.notests systemd.show_status=1 systemd.default_timeout_start_sec=300";

/// What kind of machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) kind: Kind,
    /// Whether it reaches more than this host's ssh.
    pub(super) network: bool,
    /// Whether its disks survive its end, so that it can be booted again.
    pub(super) persistent: bool,
}

/// A machine that runs.
#[derive(Debug)]
pub(super) struct Machine {
    plan: Plan,
    image: PathBuf,
    /// Root, tree and seed, in the order in which the machine sees them.
    disks: [PathBuf; 3],
    dir: PathBuf,
    port: u16,
    qemu: Child,
}

impl Machine {
    /// Boots a machine.
    pub(super) fn new(
        plan: Plan,
        image: &Path,
        seed: &Path,
        dir: &Path,
    ) -> Result<Self, ChoreFailure> {
        let mut disks = [image.join("root.ext4"), parcel::tree_disk(dir), seed.to_owned()];
        if plan.persistent {
            for (disk, name) in [(0, "root.ext4"), (2, "seed.ext4")] {
                let own = dir.join(name);
                let mut copy = Command::new("cp");
                copy.args(["--sparse=always", "--reflink=auto"]).arg(&disks[disk]).arg(&own);
                run(&mut copy)?;
                disks[disk] = own;
            }
        }
        let (image, dir) = (image.to_owned(), dir.to_owned());
        let (qemu, port) = boot_twice(&plan, &image, &disks, &dir)?;
        Ok(Self { plan, image, disks, dir, port, qemu })
    }

    /// The port of this host's loopback behind which the machine's ssh is.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// The key that opens it.
    pub(super) fn key(&self) -> PathBuf {
        self.image.join("key")
    }

    /// Takes the power away.
    pub(super) fn kill(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }

    /// Boots it again after [`Machine::kill`], or after it has gone down by itself.
    pub(super) fn boot_again(&mut self) -> Result<(), ChoreFailure> {
        (self.qemu, self.port) = boot_twice(&self.plan, &self.image, &self.disks, &self.dir)?;
        Ok(())
    }

    /// Waits until the machine has gone down by itself. A reboot ends QEMU too.
    pub(super) fn wait_for_end(&mut self) -> Result<(), ChoreFailure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.qemu.try_wait().map_err(on_file("watch", Path::new("QEMU")))? {
                Some(_) => return Ok(()),
                None if Instant::now() > deadline => {
                    let text = format!("the machine does not go down in {} s", PATIENCE.as_secs());
                    return Err(ChoreFailure::Found(text));
                }
                None => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Boots; tries once more, and says so, if the emulation hangs.
fn boot_twice(
    plan: &Plan,
    image: &Path,
    disks: &[PathBuf; 3],
    dir: &Path,
) -> Result<(Child, u16), ChoreFailure> {
    let boot = || {
        let port = free_port()?;
        let mut qemu = start(&arguments(plan, image, disks, port))?;
        let console = qemu.stdout.take().expect("it was asked to be a pipe");
        let log = dir.join("console.log");
        let lines = listen(console, &log)?;
        match wait_until_ready(&lines) {
            Ok(took) => Ok(Ok((qemu, port, took))),
            Err(reason) => {
                let _ = qemu.kill();
                let _ = qemu.wait();
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                let last = said.lines().rev().take(5).collect::<Vec<_>>();
                let last = last.into_iter().rev().collect::<Vec<_>>().join("\n    ");
                Ok(Err(format!("{reason}; its last words:\n    {last}")))
            }
        }
    };
    let reason = match boot()? {
        Ok((qemu, port, took)) => return Ok(booted(qemu, port, took)),
        Err(reason) => reason,
    };
    println!("host-vm: RETRY, the machine did not boot: {reason}");
    match boot()? {
        Ok((qemu, port, took)) => Ok(booted(qemu, port, took)),
        Err(reason) => {
            Err(ChoreFailure::Found(format!("the machine did not boot, twice: {reason}")))
        }
    }
}

fn booted(qemu: Child, port: u16, took: Duration) -> (Child, u16) {
    println!("host-vm: the machine is up after {:.1} s", took.as_secs_f64());
    (qemu, port)
}

/// A port that is free now. If somebody takes it before QEMU does, QEMU ends, and the boot is tried
/// again with another.
fn free_port() -> Result<u16, ChoreFailure> {
    let place = Path::new("127.0.0.1");
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(on_file("listen on", place))?;
    listener.local_addr().map(|address| address.port()).map_err(on_file("listen on", place))
}

fn arguments(plan: &Plan, image: &Path, disks: &[PathBuf; 3], port: u16) -> Vec<String> {
    let text = |path: &Path| path.display().to_string();
    let mut argv: Vec<String> =
        ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
            .into_iter()
            .chain(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", "2"])
            .chain(["-m", "3G", "-serial", "stdio", "-device", "virtio-rng-pci"])
            .chain(["-append", KERNEL_ARGUMENTS])
            .map(str::to_owned)
            .collect();
    argv.extend(["-kernel".to_owned(), text(&image.join("vmlinuz"))]);
    argv.extend(["-initrd".to_owned(), text(&image.join("initramfs"))]);
    let snapshot = if plan.persistent { "off" } else { "on" };
    for (index, disk) in disks.iter().enumerate() {
        let disk = text(disk).replace(',', ",,");
        let drive =
            format!("if=none,id=d{index},format=raw,cache=unsafe,snapshot={snapshot},file={disk}");
        argv.extend(["-drive".to_owned(), drive, "-device".to_owned()]);
        argv.push(format!("virtio-blk-pci,drive=d{index}"));
    }
    let restrict = if plan.network { "off" } else { "on" };
    let net = format!("user,id=n,restrict={restrict},hostfwd=tcp:127.0.0.1:{port}-:22");
    argv.extend(["-netdev".to_owned(), net]);
    argv.extend(["-device".to_owned(), "virtio-net-pci,netdev=n".to_owned()]);
    argv
}

/// Starts QEMU so that it dies with this program, by whatever that dies.
fn start(arguments: &[String]) -> Result<Child, ChoreFailure> {
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|source| ChoreFailure::NotStarted { program: "setpriv".to_owned(), source })
}

/// Copies the console into its log, and hands on each line.
fn listen(console: ChildStdout, log: &Path) -> Result<Receiver<String>, ChoreFailure> {
    let mut log =
        File::options().create(true).append(true).open(log).map_err(on_file("write", log))?;
    let (send, lines) = channel();
    std::thread::spawn(move || {
        let mut console = BufReader::new(console);
        let mut line = Vec::new();
        while console.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            let _ = log.write_all(&line);
            // Nobody listens any more once it is up; the log goes on.
            let _ = send.send(String::from_utf8_lossy(&line).into_owned());
            line.clear();
        }
    });
    Ok(lines)
}

/// How long it took, or why it is not ready.
fn wait_until_ready(lines: &Receiver<String>) -> Result<Duration, String> {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        match lines.recv_timeout(SILENCE) {
            Ok(line) if line.contains(READY) => return Ok(started.elapsed()),
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => {
                return Err(format!("{} s of silence", SILENCE.as_secs()));
            }
            Err(RecvTimeoutError::Disconnected) => return Err("QEMU has ended".to_owned()),
        }
    }
    Err(format!("not ready after {} s", PATIENCE.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_ready_silent_or_dead() {
        let (send, lines) = channel();
        send.send("[  OK  ] something\n".to_owned()).expect("held");
        send.send(format!("{READY}\r\n")).expect("held");
        assert!(wait_until_ready(&lines).is_ok());
        drop(send);
        assert_eq!(wait_until_ready(&lines), Err("QEMU has ended".to_owned()));
    }

    #[test]
    fn a_machine_without_network_reaches_nothing() {
        let disks = ["a", "b,c", "d"].map(PathBuf::from);
        let plan = Plan { kind: Kind::Ready, network: false, persistent: false };
        let argv = arguments(&plan, Path::new("/image"), &disks, 7).join(" ");
        assert!(argv.contains("restrict=on,hostfwd=tcp:127.0.0.1:7-:22"), "{argv}");
        assert!(argv.contains("snapshot=on,file=b,,c"), "{argv}");
    }
}
