//! What signals to this process mean to the command in the guest.
//!
//! Without a terminal the command gets them, as if it ran here; with one, keys are bytes that go to
//! the guest, and a signal comes from somebody else who wants this process to end.

use banger_api::exec::{ClientControl, WindowSize};
use banger_api::exit;
use banger_host::terminal;
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc;

use crate::interrupt::Interrupts;

/// After so many of the same kind the user wants out, whatever the command does.
const LAST_STRAW: u32 = 3;

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGQUIT: i32 = 3;
const SIGTERM: i32 = 15;
const SIGCONT: i32 = 18;
const SIGWINCH: i32 = 28;

/// A signal to this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionSignal {
    /// One that a command may want.
    Number(i32),
    /// The terminal has this size now.
    Resized(WindowSize),
}

/// Whether the command gets the signals, or we end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// We end at once: the command has a terminal.
    None,
    /// The command gets them, until they are too many.
    Some,
}

/// What to do about a signal.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Tell the command.
    Forward(ClientControl),
    /// End with this exit code, which ends the command too.
    HangUp(u8),
    /// Nothing.
    Nothing,
}

/// Judges signals as they come.
#[derive(Debug)]
pub struct Listener {
    patience: Patience,
    ending: u32,
}

impl Listener {
    /// A listener that has heard nothing.
    pub fn new(patience: Patience) -> Self {
        Self { patience, ending: 0 }
    }

    /// What to do about this one.
    pub fn judge(&mut self, signal: SessionSignal) -> Verdict {
        let number = match signal {
            SessionSignal::Resized(size) => return self.resize(size),
            SessionSignal::Number(number) => number,
        };
        if self.patience == Patience::None {
            return Verdict::HangUp(exit::for_signal(number));
        }
        if matches!(number, SIGINT | SIGTERM | SIGQUIT | SIGHUP) {
            self.ending += 1;
        }
        if self.ending >= LAST_STRAW {
            return Verdict::HangUp(exit::for_signal(number));
        }
        Verdict::Forward(ClientControl::Signal(number))
    }

    fn resize(&self, size: WindowSize) -> Verdict {
        match self.patience {
            Patience::None => Verdict::Forward(ClientControl::Resize(size)),
            Patience::Some => Verdict::Nothing,
        }
    }
}

/// Listens to this process's signals, in a task that lasts as long as the receiver.
///
/// With a terminal, a process that was stopped and goes on takes the terminal again.
pub fn of_this_process(has_terminal: bool) -> mpsc::UnboundedReceiver<SessionSignal> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let mut kinds = vec![
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
        SignalKind::quit(),
    ];
    if has_terminal {
        kinds.extend([SignalKind::window_change(), SignalKind::from_raw(SIGCONT)]);
    } else {
        kinds.extend([SignalKind::user_defined1(), SignalKind::user_defined2()]);
    }
    // Here and not in the task: from now on no signal is missed.
    let mut signals = Interrupts::of(&kinds);
    tokio::spawn(async move {
        loop {
            let number = signals.next().await;
            if number == SIGCONT {
                terminal::enter_raw_again();
            }
            let event = match number {
                SIGWINCH | SIGCONT => terminal::size().map(SessionSignal::Resized),
                number => Some(SessionSignal::Number(number)),
            };
            if event.is_some_and(|event| sender.send(event).is_err()) {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: WindowSize = WindowSize { rows: 24, cols: 80 };

    fn forward(number: i32) -> Verdict {
        Verdict::Forward(ClientControl::Signal(number))
    }

    #[test]
    fn the_command_gets_signals_until_they_are_too_many() {
        let mut listener = Listener::new(Patience::Some);
        assert_eq!(listener.judge(SessionSignal::Number(10)), forward(10));
        assert_eq!(listener.judge(SessionSignal::Number(SIGINT)), forward(SIGINT));
        assert_eq!(listener.judge(SessionSignal::Resized(SIZE)), Verdict::Nothing);
        assert_eq!(listener.judge(SessionSignal::Number(10)), forward(10));
        assert_eq!(listener.judge(SessionSignal::Number(SIGTERM)), forward(SIGTERM));
        assert_eq!(listener.judge(SessionSignal::Number(SIGINT)), Verdict::HangUp(130));
    }

    #[test]
    fn with_a_terminal_a_signal_ends_us() {
        let mut listener = Listener::new(Patience::None);
        let resize = Verdict::Forward(ClientControl::Resize(SIZE));
        assert_eq!(listener.judge(SessionSignal::Resized(SIZE)), resize);
        assert_eq!(listener.judge(SessionSignal::Number(SIGTERM)), Verdict::HangUp(143));
        assert_eq!(listener.judge(SessionSignal::Number(SIGHUP)), Verdict::HangUp(129));
    }
}
