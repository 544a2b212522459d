//! `banger`: virtual machines from the command line.
//!
//! The program parses ([`args`]), asks the daemon ([`client`]), carries the streams of commands in
//! guests ([`session`]), and shows what came of it ([`ui`]). It knows nothing about where VMs are
//! stored or how they run. [`commands`] has one file per verb.

mod args;
mod client;
mod commands;
mod failure;
mod guest_command;
mod interrupt;
mod session;
mod ui;

use banger_host::process::limit_hint;
use clap::{CommandFactory, Parser};

use crate::args::{Cli, suggestion};
use crate::failure::Failure;
use crate::ui::Ui;

fn main() {
    let _ = banger_host::trace::beginning();
    restore_terminal_on_panic();
    let line: Vec<_> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&line) {
        Ok(cli) => cli,
        Err(error) => {
            let error = suggestion::improve(error, &Cli::command(), &line);
            ui::usage(&error);
            std::process::exit(error.exit_code());
        }
    };
    let ui = Ui::new(&cli.output);
    let code = match run(cli, &ui) {
        Ok(code) => code,
        Err(failure) => {
            if let Failure::Problem(problem) = &failure {
                ui.problem(problem);
            }
            failure.exit_code()
        }
    };
    banger_host::terminal::restore();
    // Not by returning: a thread may still wait for a key on stdin, and nobody waits for it.
    std::process::exit(i32::from(code));
}

fn run(cli: Cli, ui: &Ui) -> Result<u8, Failure> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
            let hint = limit_hint(&error).unwrap_or("banger doctor");
            Failure::internal("cannot start", &error).or_hint(hint)
        })?;
    let code = runtime.block_on(commands::run(cli.command, ui));
    runtime.shutdown_background();
    code
}

/// A panic's message must be readable, and the shell after it usable.
fn restore_terminal_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        banger_host::terminal::restore();
        report(panic);
    }));
}
