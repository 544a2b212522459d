//! Running a command in a guest with what is here: streams, terminal, signals, environment.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use banger_api::exec::{ExecEnd, ExecRequest, WindowSize};
use banger_api::vm::{Vm, VmEnd};
use banger_api::{ErrorCode, Problem, step, trace};
use banger_core::duration;
use banger_host::http::Lines;
use banger_host::terminal::{self, Stream};
use banger_host::trace::Trace;
use banger_host::{environment, fault};

use crate::client::{Client, ShimClient, vm_path};
use crate::failure::Failure;
use crate::session::{
    self, Outcome, SessionError, Streams, Surroundings, TtyFlags, signals_of_this_process,
    wants_terminal,
};
use crate::ui::Ui;

/// Size of a terminal that does not know its own.
const FALLBACK: WindowSize = WindowSize { rows: 24, cols: 80 };
/// How long to wait for the daemon's word on why a VM went away.
const REASON_LIMIT: Duration = Duration::from_secs(3);

/// A command to be run in a guest.
#[derive(Debug)]
pub struct GuestSession {
    /// What to run.
    pub request: ExecRequest,
    /// Whether it gets a terminal.
    pub tty: TtyFlags,
    /// Whether the VM ends with it.
    pub owner: bool,
    /// What keeps the VM until its stream is open.
    pub lease: Option<Lines>,
    /// Where the time goes.
    pub trace: Trace,
}

/// Runs a command in a running VM, to its end or ours.
///
/// # Errors
/// If it could not be run, or the VM went away under it.
pub async fn run(client: &Client, vm: &Vm, mut what: GuestSession) -> Result<Outcome, Failure> {
    let near = Surroundings { trace: what.trace, ..take(&mut what.request, what.tty)? };
    let began = near.trace.begin();
    let socket = ShimClient::of(vm).await?.exec(what.owner).await?;
    near.trace.end(trace::CLI_EXEC, began);
    drop(what.lease);
    fault::reach(step::CLI_COMMAND)
        .await
        .map_err(|error| Failure::internal("the command cannot be sent", &error))?;
    let took_terminal = near.takes_terminal;
    let outcome = session::run(socket, &what.request, near).await;
    let is_lost = matches!(outcome, Err(SessionError::Lost(_) | SessionError::Broken(_)));
    if took_terminal && (is_lost || matches!(outcome, Ok(Outcome::HungUp(_)))) {
        reset_screen();
    }
    match outcome {
        Err(error) if is_lost => Err(lost(client, vm, error).await),
        outcome => Ok(outcome?),
    }
}

/// Says that it was the limit that ended a command: its exit code alone could be the command's own.
pub fn tell_timeout(outcome: Outcome, limit: Option<Duration>, ui: &Ui) {
    if let (Outcome::Ended(ExecEnd::TimedOut), Some(limit)) = (outcome, limit) {
        let limit = duration::format(limit);
        ui.warning(&format!("the command still ran after {limit} (--timeout), so it was ended"));
    }
}

/// Takes back what a full-screen program does to a terminal, when it had no time to do so itself:
/// the other screen, a hidden cursor, mouse reports, pasting in brackets, colours.
fn reset_screen() {
    const RESET: &[u8] =
        b"\x1b[?1047l\x1b[?25h\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[0m\r\n";
    if let Ok(mut stdout) = Stream::stdout() {
        let _ = stdout.write_all(RESET);
    }
}

/// Why the VM went away, as far as the daemon knows.
async fn lost(client: &Client, vm: &Vm, error: SessionError) -> Failure {
    let title = format!("the VM {} ended while the command ran", vm.name);
    let path = vm_path(&vm.id, "/wait");
    let asked = tokio::time::timeout(REASON_LIMIT, client.get::<Vm>(&path)).await;
    let mut problem = Problem::new(ErrorCode::ExecFailed, title);
    let end = asked.ok().and_then(Result::ok).and_then(|vm| vm.status.end);
    let Some(VmEnd { reason, console_tail, .. }) = end else { return error.into() };
    problem.causes.push(reason);
    problem.causes.extend(console_tail.into_iter().map(|line| format!("console: {line}")));
    if vm.spec.remove_on_exit {
        return problem.into();
    }
    problem.hint(format!("banger logs --console {}", vm.name)).into()
}

/// Prepares this process, and completes the request with what is here. From now on signals to this
/// process are the session's.
fn take(request: &mut ExecRequest, flags: TtyFlags) -> Result<Surroundings, Failure> {
    let streams = Streams::of_this_process();
    let has_terminal = wants_terminal(flags, streams);
    let signals = signals_of_this_process(has_terminal);
    if has_terminal {
        request.tty = Some(terminal::size().unwrap_or(FALLBACK));
        for (name, value) in environment::of_the_terminal() {
            request.env.entry(name).or_insert(value);
        }
    }
    // In the background a terminal cannot be read: that would stop the process.
    let readable = streams.stdin || !std::io::stdin().is_terminal();
    request.stdin = readable;
    let stdin =
        readable.then(Stream::stdin).transpose().map_err(|error| streams_failure(&error))?;
    Ok(Surroundings {
        stdin: stdin.map(|stdin| Box::new(stdin) as Box<dyn std::io::Read + Send>),
        stdout: Box::new(Stream::stdout().map_err(|error| streams_failure(&error))?),
        stderr: Box::new(Stream::stderr().map_err(|error| streams_failure(&error))?),
        signals,
        takes_terminal: has_terminal && streams.stdin,
        trace: Trace::default(),
    })
}

fn streams_failure(error: &std::io::Error) -> Failure {
    Failure::internal("the standard streams cannot be used", error)
}

/// The proxy variables for the guest. One that points at this host's loopback would lead nowhere
/// there, so it stays here, and that is said.
pub fn session_env(ui: &Ui) -> BTreeMap<String, String> {
    let (useless, useful): (BTreeMap<_, _>, BTreeMap<_, _>) = environment::proxies()
        .into_iter()
        .partition(|(name, value)| !is_no_proxy(name) && is_loopback(value));
    if !useless.is_empty() {
        let names: Vec<&str> = useless.keys().map(String::as_str).collect();
        ui.warning(&format!(
            "{} points to this host's loopback, which guests do not reach; not passed on",
            names.join(", ")
        ));
    }
    useful
}

fn is_no_proxy(name: &str) -> bool {
    name.eq_ignore_ascii_case("no_proxy")
}

/// Whether a proxy's URL, with or without scheme, names the loopback.
fn is_loopback(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if let Some(inner) = host.strip_prefix('[') {
        return inner.starts_with("::1]") || inner.starts_with("::]");
    }
    let name = host.split(':').next().unwrap_or(host).to_ascii_lowercase();
    let address = name.parse::<std::net::Ipv4Addr>();
    name == "localhost"
        || name.ends_with(".localhost")
        || address.is_ok_and(|address| address.is_loopback() || address.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_recognised() {
        let cases = [
            ("http://localhost:3128", true),
            ("localhost:3128", true),
            ("http://user:pass@127.0.0.1:3128/", true),
            ("socks5h://127.9.9.9", true),
            ("http://[::1]:3128", true),
            ("http://0.0.0.0:1", true),
            ("http://proxy.example:3128", false),
            ("http://10.0.0.1:3128", false),
            ("http://[fd00::1]:3128", false),
            ("http://localhost.example", false),
            ("", false),
        ];
        for (url, want) in cases {
            assert_eq!(is_loopback(url), want, "{url}");
        }
    }
}
