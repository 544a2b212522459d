//! Why a VM ended, in words.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use banger_api::exec::ExecEnd;
use banger_api::vm::EndCause;

use crate::console::Tail;

/// Why a VM ended whose shim got SIGTERM.
pub(crate) const TOLD_TO_END: &str = "its supervisor was told to end, as when the host shuts down";
/// What ends a program without asking.
const SIGKILL: i32 = 9;

/// An end in words.
pub(crate) fn reason(cause: EndCause, main: Option<ExecEnd>) -> String {
    match (cause, main) {
        (EndCause::MainExited, Some(ExecEnd::Exited(code))) => {
            format!("the command exited with {code}")
        }
        (EndCause::MainExited, Some(ExecEnd::Signaled(number))) => {
            format!("the command was killed by signal {number}")
        }
        (EndCause::MainExited, _) => "the command ran out of time".to_owned(),
        (EndCause::Killed, _) => "killed by request".to_owned(),
        (EndCause::StopTimedOut, _) => {
            "killed: the guest did not stop within its grace period".to_owned()
        }
        (EndCause::Terminated, _) => format!("{TOLD_TO_END}; stopped cleanly"),
        (EndCause::OwnerGone, _) => "the client that started it is gone".to_owned(),
        _ => "stopped by request".to_owned(),
    }
}

/// What the end of a VMM says of its guest.
#[derive(Debug)]
pub(crate) enum Gone {
    /// The guest powered itself off.
    PoweredOff,
    /// The guest asked to be started again.
    Reset,
    /// Something failed.
    Failed(EndCause, String),
}

/// What the end of a VMM says of its guest, from its exit status, the reason that it gave before, and the
/// guest's console.
pub(crate) fn judge(
    status: std::io::Result<ExitStatus>,
    reason: Option<&str>,
    (console, words): (&Tail, &Tail),
    out_of_memory: bool,
) -> Gone {
    match (reason, console.panic()) {
        // First: the word of a panic may be on a console for other reasons.
        (Some("guest-shutdown"), _) => Gone::PoweredOff,
        (_, Some(line)) => {
            Gone::Failed(EndCause::GuestPanic, format!("guest kernel panic: {line}"))
        }
        (Some("guest-reset"), None) => Gone::Reset,
        _ => {
            let (cause, reason) = vmm_end(status, words, out_of_memory);
            Gone::Failed(cause, reason)
        }
    }
}

/// Why a VMM ended that nobody ended. One that was killed does not say by whom, so memory is named
/// only where the kernel's counter shows it.
fn vmm_end(
    status: std::io::Result<ExitStatus>,
    words: &Tail,
    out_of_memory: bool,
) -> (EndCause, String) {
    let signal = status.as_ref().ok().and_then(ExitStatusExt::signal);
    match signal {
        Some(SIGKILL) if out_of_memory => (
            EndCause::OutOfMemory,
            "out of memory: the host's kernel killed the VMM, as its cgroup shows".to_owned(),
        ),
        Some(SIGKILL) => (
            EndCause::VmmExited,
            "the VMM was killed by signal 9 (SIGKILL), sender unknown".to_owned(),
        ),
        _ => (EndCause::VmmExited, describe_vmm_end(status, words)),
    }
}

/// How the VMM ended, with the last thing that it said.
pub(crate) fn describe_vmm_end(status: std::io::Result<ExitStatus>, words: &Tail) -> String {
    let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
    match words.lines().last() {
        Some(last) => format!("the VMM ended with {how}: {last}"),
        None => format!("the VMM ended with {how}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_none_of_the_ends_in_order() {
        let quiet = Tail::default();
        let mut panicked = Tail::default();
        panicked.add(b"[    1.0] Kernel panic - not syncing: oops\n");
        // Raw wait status, the VMM's reason, the console; what it was, or what failed.
        let table = [
            (0, Some("guest-shutdown"), &quiet, Ok("off")),
            (0, Some("guest-shutdown"), &panicked, Ok("off")),
            (11, Some("guest-shutdown"), &quiet, Ok("off")),
            (0, Some("guest-reset"), &quiet, Ok("again")),
            (0, Some("guest-reset"), &panicked, Err(EndCause::GuestPanic)),
            (9, None, &panicked, Err(EndCause::GuestPanic)),
            (9, None, &quiet, Err(EndCause::VmmExited)),
        ];
        for (raw, reason, console, want) in table {
            let gone = judge(Ok(ExitStatus::from_raw(raw)), reason, (console, &quiet), false);
            let found = match gone {
                Gone::PoweredOff => Ok("off"),
                Gone::Reset => Ok("again"),
                Gone::Failed(cause, _) => Err(cause),
            };
            assert_eq!(found, want, "{raw} {reason:?}");
        }
    }

    #[test]
    fn a_vmm_that_was_killed_is_not_said_to_be_out_of_memory_without_evidence() {
        // Raw wait status, whether the counter shows a kill; cause, part of the reason.
        let table = [
            (9, true, EndCause::OutOfMemory, "out of memory"),
            (9, false, EndCause::VmmExited, "signal 9 (SIGKILL), sender unknown"),
            (11, true, EndCause::VmmExited, "signal: 11"),
            (1 << 8, true, EndCause::VmmExited, "exit status: 1"),
        ];
        for (raw, out_of_memory, cause, part) in table {
            let status = Ok(ExitStatus::from_raw(raw));
            let (found, reason) = vmm_end(status, &Tail::default(), out_of_memory);
            assert_eq!(found, cause, "{reason}");
            assert!(reason.contains(part), "{reason}");
        }
    }
}
