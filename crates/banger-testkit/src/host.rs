//! One user's banger, with directories of its own.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::account::Account;
use crate::api::Api;
use crate::invocation::Invocation;
use crate::leftovers::Leftovers;
use crate::{prepared, process, wait};

/// How long teardown may take after the last command returned.
const TEARDOWN: Duration = Duration::from_secs(20);

/// What a host has before its first command.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Seed {
    /// The default image and kernel, pulled once for all tests.
    #[default]
    Pulled,
    /// Nothing, like a machine on its first day.
    Nothing,
}

/// One user's banger.
#[derive(Debug)]
pub struct Host {
    /// As whom the programs run.
    pub account: Account,
    /// The data directory.
    pub data: PathBuf,
    /// The runtime directory.
    pub runtime: PathBuf,
    /// A directory that belongs to the user, for the test's own files.
    pub scratch: PathBuf,
    /// Everything of this host is below.
    base: PathBuf,
    programs: PathBuf,
    env: Vec<(OsString, OsString)>,
    finished: std::cell::Cell<bool>,
}

/// How to make a [`Host`].
#[derive(Debug, Default)]
pub struct HostBuilder {
    account: Option<Account>,
    seed: Seed,
    data: Option<PathBuf>,
    fail_points: bool,
    templates: Option<bool>,
    pool: u32,
    pool_memory_mib: Option<u32>,
    env: Vec<(OsString, OsString)>,
}

impl HostBuilder {
    /// Whose it is, if not the user's under test.
    #[must_use]
    pub fn account(mut self, account: Account) -> Self {
        self.account = Some(account);
        self
    }

    /// What it has from the start.
    #[must_use]
    pub fn seed(mut self, seed: Seed) -> Self {
        self.seed = seed;
        self
    }

    /// A data directory that already is there, or that stays.
    #[must_use]
    pub fn data_dir(mut self, data: PathBuf) -> Self {
        self.data = Some(data);
        self
    }

    /// Its programs are those of `target/dist-faults`.
    #[must_use]
    pub fn with_fail_points(mut self) -> Self {
        self.fail_points = true;
        self
    }

    /// Whether its VMs begin from templates, instead of booting. Those of programs with fail points boot
    /// unless this says otherwise: a fault belongs to one guest.
    #[must_use]
    pub fn templates(mut self, enabled: bool) -> Self {
        self.templates = Some(enabled);
        self
    }

    /// So many guests of each kind stand ready.
    #[must_use]
    pub fn pool(mut self, size: u32) -> Self {
        self.pool = size;
        self
    }

    /// All that stand ready take no more memory than that.
    #[must_use]
    pub fn pool_memory(mut self, mib: u32) -> Self {
        self.pool_memory_mib = Some(mib);
        self
    }

    /// A variable in the environment of every command, and so of the daemon.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().into(), value.as_ref().into()));
        self
    }

    /// Makes the directories.
    ///
    /// # Panics
    /// If they cannot be made, or the programs are not built.
    #[must_use]
    pub fn build(self) -> Host {
        let account = self.account.unwrap_or_else(Account::under_test);
        let programs = prepared::programs(&account, self.fail_points);
        let base = tempfile::Builder::new()
            .prefix("t-")
            .tempdir_in(account.test_dir())
            .expect("the test directory is ours")
            .keep();
        account.make_dir(&base);
        let data = self.data.unwrap_or_else(|| base.join("data"));
        let runtime = base.join("run");
        let scratch = base.join("scratch");
        for dir in [&data, &runtime, &scratch, &base.join("home")] {
            account.make_dir(dir);
        }
        if self.seed == Seed::Pulled {
            prepared::seed(&account, &data);
        }
        let templates = self.templates.unwrap_or(!self.fail_points);
        if !templates || self.pool > 0 {
            let config = base.join("config");
            account.make_dir(&config);
            let file = config.join("config.toml");
            let pool = self.pool;
            let mut settings =
                format!("[templates]\nenabled = {templates}\n[pool]\nsize = {pool}\n");
            if let Some(mib) = self.pool_memory_mib {
                settings.push_str(&format!("max_memory_mib = {mib}\n"));
            }
            std::fs::write(&file, settings).expect("our own directory");
            account.own(&file);
        }
        let finished = std::cell::Cell::new(false);
        Host { account, data, runtime, scratch, base, programs, env: self.env, finished }
    }
}

impl Host {
    /// Waits until guests stand ready, so many of one template's.
    ///
    /// # Panics
    /// If they do not in time.
    pub fn wait_for_pool(&self, count: u64) {
        wait::until("guests stand ready", TEARDOWN, || {
            let listed = self.banger(["template", "ls", "--format", "json"]).run().assert_ok();
            let listed = listed.stdout_text();
            let mut templates = listed.lines().map(serde_json::from_str::<Value>);
            let ready = |it: Result<Value, _>| it.is_ok_and(|it| it["ready"] == count);
            templates.any(ready).then_some(())
        });
    }

    /// A host with image and kernel.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// A host that differs from the ordinary one.
    #[must_use]
    pub fn builder() -> HostBuilder {
        HostBuilder::default()
    }

    /// Puts a variable into the environment of every later command.
    pub(crate) fn set_env(&mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) {
        self.env.push((name.as_ref().into(), value.as_ref().into()));
    }

    /// A `banger` command line, to be run as the host's user.
    pub fn banger<I, S>(&self, args: I) -> Invocation
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.program(&self.programs.join("bin/banger"), args)
    }

    /// Any other program, as the host's user and in its environment.
    pub fn program<I, S>(&self, program: &Path, args: I) -> Invocation
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = self.account.command(program, &self.base.join("home"));
        command.env("BANGER_DATA_DIR", &self.data).env("BANGER_RUNTIME_DIR", &self.runtime);
        command.env("BANGER_CONFIG_DIR", self.config());
        command.env("TMPDIR", "/tmp");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.current_dir(&self.scratch).args(args);
        Invocation::new(command)
    }

    /// The configuration directory; it need not be there.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.base.join("config")
    }

    /// Where the programs under test are: `bin/`, `libexec/`, `lib/`.
    #[must_use]
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// The daemon's API, without the command line.
    #[must_use]
    pub fn api(&self) -> Api {
        Api::new(&self.runtime)
    }

    /// Starts a VM of that name in the background and gives the name back.
    ///
    /// # Panics
    /// If it does not start.
    pub fn running_vm(&self, name: &str) -> String {
        self.banger(["run", "-d", "-q", "--name", name]).run().assert_ok();
        name.to_owned()
    }

    /// What `banger show` says about a VM.
    ///
    /// # Panics
    /// If there is no such VM.
    pub fn show(&self, vm: &str) -> Value {
        let shown = self.banger(["show", vm, "--format", "json"]).run().assert_ok();
        serde_json::from_str(&shown.stdout_text()).expect("show prints one JSON object")
    }

    /// The state of a VM, in one word; None if there is no such VM.
    pub fn state(&self, vm: &str) -> Option<String> {
        let shown = self.banger(["show", vm, "--format", "json"]).run();
        let vm: Value = serde_json::from_str(&shown.stdout_text()).ok()?;
        vm["status"]["state"].as_str().map(str::to_owned)
    }

    /// Waits until a VM is in a state.
    ///
    /// # Panics
    /// If that takes longer than two minutes: a boot among others' may take one.
    pub fn wait_for_state(&self, vm: &str, state: &str) {
        let what = format!("{vm} is {state}");
        wait::until(&what, Duration::from_secs(120), || {
            (self.state(vm).as_deref() == Some(state)).then_some(())
        });
    }

    /// The names that `banger ls` prints.
    ///
    /// # Panics
    /// If it fails.
    pub fn vm_names(&self) -> Vec<String> {
        let listed = self.banger(["ls", "-q"]).run().assert_ok();
        listed.stdout_text().lines().map(str::to_owned).collect()
    }

    /// The directory of a VM.
    ///
    /// # Panics
    /// If there is no such VM.
    pub fn vm_dir(&self, vm: &str) -> PathBuf {
        PathBuf::from(self.show(vm)["dir"].as_str().expect("a VM has a directory"))
    }

    /// The process id of the daemon, if one runs.
    pub fn daemon_pid(&self) -> Option<i32> {
        self.processes_named("bangerd").first().copied()
    }

    /// The ids of this host's processes whose program has that name.
    pub fn processes_named(&self, name: &str) -> Vec<i32> {
        let is_named = |line: &str| {
            let program = line.split(' ').next().unwrap_or_default();
            Path::new(program).file_name().is_some_and(|found| found == name)
        };
        let found = Leftovers::of(&self.base).processes;
        found.into_iter().filter(|(_, line)| is_named(line)).map(|(pid, _)| pid).collect()
    }

    /// Waits until no process of that program is left: one that ends lets go of its locks, for which
    /// a command waits, a moment before it is gone.
    ///
    /// # Panics
    /// If one stays.
    pub fn wait_until_gone(&self, program: &str) {
        let what = format!("no {program} is left");
        wait::until(&what, TEARDOWN, || self.processes_named(program).is_empty().then_some(()));
    }

    /// Sends SIGKILL to a process of this host, and waits until it is gone or a zombie.
    ///
    /// # Panics
    /// If it cannot be sent.
    pub fn kill_dash_nine(&self, pid: i32) {
        let target = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(target, nix::sys::signal::Signal::SIGKILL).expect("it is ours");
        wait::until("the process is gone", TEARDOWN, || process::has_ended(pid).then_some(()));
    }

    /// Ends the test: removes all VMs, stops the daemon, and checks that nothing is left.
    ///
    /// # Panics
    /// If anything is.
    pub fn finish(self) {
        for vm in self.vm_names() {
            self.banger(["rm", "-f", &vm]).run().assert_ok();
        }
        self.banger(["daemon", "stop"]).run().assert_ok();
        let clean = wait::eventually(TEARDOWN, || Leftovers::of(&self.base).is_empty());
        assert!(clean, "left over after the test: {:#?}", Leftovers::of(&self.base));
        let vms = std::fs::read_dir(self.data.join("vms")).into_iter().flatten().flatten();
        let vms: Vec<PathBuf> = vms.map(|entry| entry.path()).collect();
        assert!(vms.is_empty(), "directories of removed VMs are left: {vms:?}");
        self.finished.set(true);
    }

    fn print_logs(&self) {
        let mut logs = vec![self.data.join("daemon.log")];
        for vm in std::fs::read_dir(self.data.join("vms")).into_iter().flatten().flatten() {
            logs.extend(
                ["shim.log", "console.log", "status.json"].map(|name| vm.path().join(name)),
            );
        }
        for log in logs {
            let text = std::fs::read(&log).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            let tail = &lines[lines.len().saturating_sub(30)..];
            if !tail.is_empty() {
                eprintln!("---- {}\n{}", log.display(), tail.join("\n"));
            }
        }
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Host {
    /// After a failure: shows the logs and takes everything down, so that one failed test is not
    /// two.
    fn drop(&mut self) {
        if !self.finished.get() {
            self.print_logs();
            let clean = wait::eventually(TEARDOWN, || {
                let left = Leftovers::of(&self.base);
                left.kill();
                left.is_empty()
            });
            if !clean {
                eprintln!("could not be killed: {:#?}", Leftovers::of(&self.base));
            }
        }
        let _ = std::fs::remove_dir_all(&self.base);
        if !std::thread::panicking() && !self.finished.get() {
            eprintln!("a test ended without Host::finish, so nothing checked what it left");
        }
    }
}
