//! Whether a command gets a terminal.

use std::io::IsTerminal;

use clap::Args;

/// The options that decide it.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct TtyFlags {
    /// Keep stdin open (always so; accepted as in Docker)
    #[arg(short = 'i', long, hide = true, help_heading = "Terminal")]
    pub interactive: bool,
    /// Give the command a terminal (-T: none) [default: if stdin and stdout are terminals]
    #[arg(short = 't', long, overrides_with = "no_tty", help_heading = "Terminal")]
    pub tty: bool,
    /// Give it none
    #[arg(short = 'T', long, hide = true, overrides_with = "tty", help_heading = "Terminal")]
    pub no_tty: bool,
}

/// What the streams of this process are.
#[derive(Debug, Clone, Copy)]
pub struct Streams {
    /// stdin is a terminal, and ours to use.
    pub stdin: bool,
    /// stdout is a terminal.
    pub stdout: bool,
}

impl Streams {
    /// Those of this process.
    pub fn of_this_process() -> Self {
        Self {
            stdin: banger_host::terminal::stdin_is_foreground_terminal(),
            stdout: std::io::stdout().is_terminal(),
        }
    }
}

/// Whether the command gets a terminal: if asked for, or by itself when a person sits there.
pub fn wants_terminal(flags: TtyFlags, streams: Streams) -> bool {
    flags.tty || (!flags.no_tty && streams.stdin && streams.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_taken_where_a_person_sits() {
        let flags = |tty, no_tty| TtyFlags { tty, no_tty, interactive: true };
        let streams = |stdin, stdout| Streams { stdin, stdout };
        let cases = [
            (flags(false, false), streams(true, true), true),
            (flags(false, false), streams(true, false), false),
            (flags(false, false), streams(false, true), false),
            (flags(true, false), streams(false, false), true),
            (flags(false, true), streams(true, true), false),
        ];
        for (flags, streams, want) in cases {
            assert_eq!(wants_terminal(flags, streams), want, "{flags:?} {streams:?}");
        }
    }
}
