//! One file per verb: its arguments, and what it does with them.

pub mod completion;
pub mod create;
pub mod daemon;
pub mod doctor;
pub mod events;
pub mod exec;
pub mod image;
pub mod kernel;
pub mod kill;
pub mod logs;
pub mod ls;
pub mod pause;
pub mod prune;
pub mod restart;
pub mod resume;
pub mod rm;
pub mod run;
pub mod set;
pub mod shell;
pub mod show;
pub mod snapshot;
pub mod start;
pub mod stop;
pub mod system;
pub mod template;
pub mod version;
pub mod wait;

mod each;
pub mod fork;
mod guest_session;
mod library;
mod registry;
mod shape;
mod vm_row;

use crate::args::{Command, VmCommand};
use crate::failure::Failure;
use crate::ui::Ui;

/// Does what the command line says; gives back the exit code.
///
/// # Errors
/// What kept it from it.
pub async fn run(command: Command, ui: &Ui) -> Result<u8, Failure> {
    match command {
        Command::Everyday(command) | Command::Vm(command) => run_vm(command, ui).await,
        Command::Image(command) => image::run(command, ui).await,
        Command::Kernel(command) => kernel::run(command, ui).await,
        Command::Template(command) => template::run(command, ui).await,
        Command::Daemon(command) => daemon::run(command, ui).await,
        Command::Doctor(args) => args.run(ui).await,
        Command::Events(args) => args.run(ui).await,
        Command::System(command) => system::run(command, ui).await,
        Command::Completion(args) => args.run(ui),
        Command::Version(args) => args.run(ui).await,
    }
}

async fn run_vm(command: VmCommand, ui: &Ui) -> Result<u8, Failure> {
    match command {
        VmCommand::Run(args) => args.run(ui).await,
        VmCommand::Create(args) => args.run(ui).await,
        VmCommand::Start(args) => args.run(ui).await,
        VmCommand::Stop(args) => args.run(ui).await,
        VmCommand::Restart(args) => args.run(ui).await,
        VmCommand::Kill(args) => args.run(ui).await,
        VmCommand::Fork(args) => args.run(ui).await,
        VmCommand::Snapshot(command) => snapshot::run(command, ui).await,
        VmCommand::Pause(args) => args.run(ui).await,
        VmCommand::Resume(args) => args.run(ui).await,
        VmCommand::Rm(args) => args.run(ui).await,
        VmCommand::Ls(args) => args.run(ui).await,
        VmCommand::Set(args) => args.run(ui).await,
        VmCommand::Show(args) => args.run(ui).await,
        VmCommand::Exec(args) => args.run(ui).await,
        VmCommand::Shell(args) => args.run(ui).await,
        VmCommand::Logs(args) => args.run(ui).await,
        VmCommand::Wait(args) => args.run(ui).await,
        VmCommand::Prune(args) => args.run(ui).await,
    }
}
