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

/// Why a VMM ended that nobody ended. One that was killed does not say by whom, so memory is named
/// only where the kernel's counter shows it.
pub(crate) fn vmm_end(
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
