//! The real machine.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use banger_api::shim::{
    Capture, Captured, EngineSpec, JailUser, LOCK_FILE, LaunchEvent, RUN_DIR, SHIM_SOCKET,
    ShimHello,
};
use banger_api::version::SHIM_PROTOCOL;
use banger_api::vm::{EngineChoice, StopVm, VmStatus};
use banger_api::{ErrorCode, Problem};
use banger_core::expiry::Clocks;
use banger_core::lifecycle::Traces;
use banger_core::spec::HostCapacity;
use banger_host::config::Config;
use banger_host::http::{self, HttpError, Lines};
use banger_host::paths::{Programs, StateDirs};
use banger_host::shim::{ShimProcess, ShimSpawnError};
use banger_host::supervisor::Ends;
use banger_host::{clock, connect, engine, environment, files, lock, shim};
use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::known_shims::KnownShims;
use super::library::RealArtifacts;
use super::{Host, Later, Machine, Shims, WaitingShim, Word};

/// A request without a body.
const NO_BODY: Option<&()> = None;

/// How many messages of a shim wait to be read.
const MESSAGES: usize = 64;
/// Environment variable with one more file of certificates for every guest.
const EXTRA_CA_FILE: &str = "BANGER_EXTRA_CA_FILE";
/// Memory that is assumed where the kernel does not tell: no limit.
const UNKNOWN_MEMORY_MIB: u64 = u32::MAX as u64;

/// The machine, with banger's state in `dirs`.
///
/// # Errors
/// If banger's own programs or its images cannot be found.
pub fn host(dirs: &StateDirs, ends: Ends) -> Result<Host, Problem> {
    let programs = Programs::locate().map_err(|error| {
        Problem::new(ErrorCode::Internal, "banger is not installed completely").because(&error)
    })?;
    let artifacts = RealArtifacts::open(&dirs.data, &dirs.config, programs.agent.clone())?;
    Ok(Host {
        shims: Arc::new(RealShims { program: programs.shim, known: KnownShims::new(ends) }),
        artifacts: Arc::new(artifacts),
        machine: Arc::new(RealMachine { cache: dirs.cache(), cpu: OnceLock::new() }),
    })
}

/// The settings with what the environment adds to them.
#[must_use]
pub fn with_environment(mut config: Config) -> Config {
    let extra = environment::get(EXTRA_CA_FILE).filter(|path| !path.is_empty());
    config.guest.ca_certificates.extend(extra.map(PathBuf::from));
    config
}

/// Makes this process the parent of orphaned shims, and collects those that have ended.
///
/// # Errors
/// Of the kernel.
pub fn reap_shims() -> io::Result<Ends> {
    shim::adopt_orphans()?;
    let mut ended = signal(SignalKind::child())?;
    let ends = Ends::default();
    let found = ends.clone();
    tokio::spawn(async move {
        while ended.recv().await.is_some() {
            found.add(shim::reap());
        }
    });
    Ok(ends)
}

/// Shims, reached through their sockets.
#[derive(Debug)]
struct RealShims {
    program: PathBuf,
    known: KnownShims,
}

impl RealShims {
    async fn connect(vm_dir: &Path) -> Result<UnixStream, Problem> {
        connect::unix(&vm_dir.join(RUN_DIR), SHIM_SOCKET).await.map_err(|error| {
            Problem::new(ErrorCode::Internal, "the VM's supervisor cannot be reached")
                .because(&error)
        })
    }

    async fn ask<T: DeserializeOwned>(
        vm_dir: &Path,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Problem> {
        let stream = Self::connect(vm_dir).await?;
        http::json(stream, method, path, body).await.map_err(refused)
    }

    /// Passes on what a shim that starts reports.
    fn listen_to(&self, shim: ShimProcess, vm_dir: &Path) -> mpsc::Receiver<LaunchEvent> {
        let (events, receiver) = mpsc::channel(MESSAGES);
        let (known, dir) = (self.known.clone(), vm_dir.to_owned());
        tokio::spawn(async move {
            let mut lines = BufReader::new(shim.events).lines();
            loop {
                let line = tokio::select! {
                    line = lines.next_line() => line,
                    // Whoever started it has heard enough.
                    () = events.closed() => return,
                };
                let Ok(Some(line)) = line else { return };
                let Ok(event) = serde_json::from_str::<LaunchEvent>(&line) else {
                    tracing::warn!("a shim says what makes no sense: {line:?}");
                    continue;
                };
                // It may end right after it was said to run.
                if matches!(event, LaunchEvent::Ready { .. })
                    && let Ok(stream) = Self::connect(&dir).await
                {
                    known.note(&dir, &stream);
                }
                let last = matches!(event, LaunchEvent::Failed { .. } | LaunchEvent::Saved);
                if events.send(event).await.is_err() || last {
                    return;
                }
            }
        });
        receiver
    }

    async fn watch_shim(&self, vm_dir: &Path) -> Result<mpsc::Receiver<VmStatus>, Problem> {
        let hello: ShimHello = Self::ask(vm_dir, Method::GET, "/v1/hello", NO_BODY).await?;
        if SHIM_PROTOCOL.negotiate(hello.protocol).is_none() {
            return Err(Problem::new(
                ErrorCode::DaemonIncompatible,
                format!(
                    "the VM's supervisor is of release {} and speaks protocol {}, this daemon {}",
                    hello.version, hello.protocol, SHIM_PROTOCOL
                ),
            ));
        }
        let stream = Self::connect(vm_dir).await?;
        self.known.note(vm_dir, &stream);
        let answer = http::request(stream, Method::GET, "/v1/watch", NO_BODY).await;
        let mut lines = Lines::of(answer.map_err(refused)?);
        let (changes, receiver) = mpsc::channel(MESSAGES);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next().await {
                match serde_json::from_str::<VmStatus>(&line) {
                    Ok(status) => {
                        if changes.send(status).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => tracing::warn!("a shim says what makes no sense: {error}"),
                }
            }
        });
        Ok(receiver)
    }
}

fn not_started(error: &ShimSpawnError) -> Problem {
    Problem::new(ErrorCode::BootFailed, "the VM's supervisor cannot be started")
        .because(error)
        .hint("banger doctor")
}

fn refused(error: HttpError) -> Problem {
    match error {
        HttpError::Problem(problem) => problem,
        other => {
            Problem::new(ErrorCode::Internal, "the VM's supervisor does not answer").because(&other)
        }
    }
}

impl Shims for RealShims {
    fn spawn(&self, vm_dir: &Path) -> Result<mpsc::Receiver<LaunchEvent>, Problem> {
        let shim = shim::spawn_shim(&self.program, vm_dir).map_err(|error| not_started(&error))?;
        Ok(self.listen_to(shim, vm_dir))
    }

    fn spawn_waiting(&self, vm_dir: &Path) -> Result<WaitingShim, Problem> {
        let (shim, mut line) =
            shim::spawn_waiting_shim(&self.program, vm_dir).map_err(|error| not_started(&error))?;
        let word = Word::new(move || line.write_all(&[0]));
        Ok(WaitingShim { events: self.listen_to(shim, vm_dir), word })
    }

    fn is_locked(&self, vm_dir: &Path) -> io::Result<bool> {
        let file = vm_dir.join(LOCK_FILE);
        // A directory that somebody removed under a VM takes the lock's name along, not the VM.
        if lock::is_locked(&file)? {
            return Ok(true);
        }
        Ok(!file.exists() && self.known.is_alive(vm_dir))
    }

    fn watch<'a>(
        &'a self,
        vm_dir: &'a Path,
    ) -> Later<'a, Result<mpsc::Receiver<VmStatus>, Problem>> {
        Box::pin(self.watch_shim(vm_dir))
    }

    fn stop<'a>(&'a self, vm_dir: &'a Path, how: StopVm) -> Later<'a, Result<(), Problem>> {
        Box::pin(async move { Self::ask(vm_dir, Method::POST, "/v1/stop", Some(&how)).await })
    }

    fn kill<'a>(&'a self, vm_dir: &'a Path) -> Later<'a, Result<(), Problem>> {
        Box::pin(Self::ask(vm_dir, Method::POST, "/v1/kill", NO_BODY))
    }

    fn pause<'a>(&'a self, vm_dir: &'a Path) -> Later<'a, Result<(), Problem>> {
        Box::pin(Self::ask(vm_dir, Method::POST, "/v1/pause", NO_BODY))
    }

    fn resume<'a>(&'a self, vm_dir: &'a Path) -> Later<'a, Result<(), Problem>> {
        Box::pin(Self::ask(vm_dir, Method::POST, "/v1/resume", NO_BODY))
    }

    fn capture<'a>(
        &'a self,
        vm_dir: &'a Path,
        dir: &'a Path,
    ) -> Later<'a, Result<Captured, Problem>> {
        let wanted = Capture { dir: dir.to_string_lossy().into_owned() };
        Box::pin(async move { Self::ask(vm_dir, Method::POST, "/v1/capture", Some(&wanted)).await })
    }

    fn kill_shim(&self, vm_dir: &Path) -> io::Result<bool> {
        match shim::kill_shim(vm_dir) {
            Ok(true) => Ok(true),
            // Whatever became of its directory, one that was talked to is known.
            not_found => Ok(self.known.kill(vm_dir)? || not_found?),
        }
    }

    fn forget(&self, vm_dir: &Path) {
        self.known.forget(vm_dir);
    }

    fn traces<'a>(&'a self, vm_dir: &'a Path) -> Later<'a, Traces> {
        Box::pin(self.known.traces(vm_dir))
    }
}

/// Facts about this machine.
#[derive(Debug)]
struct RealMachine {
    cache: PathBuf,
    cpu: OnceLock<String>,
}

impl Machine for RealMachine {
    fn capacity(&self) -> HostCapacity {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let memory_mib = std::fs::read_to_string("/proc/meminfo")
            .ok()
            .and_then(|text| total_mib(&text))
            .unwrap_or(UNKNOWN_MEMORY_MIB);
        HostCapacity { cpus: u32::try_from(cpus).unwrap_or(u32::MAX), memory_mib }
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        files::free_bytes(path)
    }

    fn clocks(&self) -> Clocks {
        Clocks { real_ms: clock::now_ms(), elapsed_ms: clock::elapsed_ms() }
    }

    fn boot_id(&self) -> Option<String> {
        clock::boot_id()
    }

    fn engine(&self, choice: EngineChoice) -> Result<EngineSpec, Problem> {
        engine::discover(choice, &self.cache).map_err(|error| error.problem())
    }

    fn cpu(&self) -> String {
        self.cpu.get_or_init(engine::cpu::identity).clone()
    }

    fn jail_user(&self) -> Result<Option<JailUser>, Problem> {
        banger_host::jail::system_user().map_err(|missing| missing.problem())
    }
}

/// `MemTotal` of `/proc/meminfo`, in MiB.
fn total_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_kernels_table() {
        let table = "MemTotal:       24684848 kB\nMemFree:        23980000 kB\n";
        assert_eq!(total_mib(table), Some(24106));
        assert_eq!(total_mib("nonsense"), None);
    }
}
