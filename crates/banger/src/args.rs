//! The command line: options that every command has, and the commands.
//!
//! The arguments of each command are defined beside what they do, in [`crate::commands`].

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::commands::{
    completion, create, daemon, doctor, events, exec, fork, image, kernel, kill, logs, ls, pause,
    prune, restart, resume, rm, run, set, shell, show, snapshot, start, stop, system, template,
    version, wait,
};

/// The commands as a person thinks of them. clap would list them as they come.
const COMMANDS: &str = "\
Run something:
  run         Create a VM, start it, run a command or a shell in it
  exec        Run a command in a running VM
  shell       Open a shell in a running VM

Live with VMs:
  ls          List VMs                    create      Create a VM, do not start it
  show        Show all about a VM         start       Start VMs
  logs        Show what a VM wrote        stop        Shut VMs down, saving their disks
  wait        Wait until VMs end          restart     Stop and start VMs
  rm          Remove VMs                  kill        Switch VMs off at once
  prune       Remove all ended VMs        pause       Have VMs stand still
  events      Show what happens           resume      Have paused VMs go on
  set         Change size, disks, labels  fork        Copy a running VM
  snapshot    Keep what VMs are, go back  vm          All of these, as `banger vm VERB`

What VMs are made of:
  image       Root filesystems            kernel      Kernels
  template    Saved guests that VMs begin from

banger itself:
  doctor      Check this machine          daemon      The background program
  system      Disk use, reset             completion  Completion for your shell
  version     Show versions

Examples:
  banger run                              A shell in a new VM of the default image
  banger run --rm -- uname -a             One command; the VM is gone afterwards
  banger run -d --name web -- ./serve     A VM that stays, running ./serve
  banger exec web -- ps aux               Another command in it
";

const TEMPLATE: &str = "\
{about}

{usage-heading} {usage}

{before-help}Options:
{options}

Run `banger COMMAND --help` for more about a command.
";

/// Disposable virtual machines with their own kernel, in one command.
#[derive(Debug, Parser)]
#[command(
    name = "banger",
    version,
    help_template = TEMPLATE,
    before_help = COMMANDS,
    override_usage = "banger [OPTIONS] COMMAND [ARGS]",
    max_term_width = 100,
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How to show it.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// How results and progress are shown.
#[derive(Debug, Clone, Copy, Default, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Print a table, or one JSON object per line
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "table|json",
        hide_possible_values = true,
        hide_default_value = true
    )]
    pub format: Format,
    /// Print only names, and no progress
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Show no progress bars, also on a terminal
    #[arg(long, global = true)]
    pub no_progress: bool,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    // For people.
    #[default]
    Table,
    // For programs.
    Json,
}

/// Everything that `banger` does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The verbs of VMs, which also stand alone.
    #[command(flatten)]
    Everyday(VmCommand),
    /// Everything about VMs
    #[command(subcommand, arg_required_else_help = true)]
    Vm(VmCommand),
    /// Root filesystems that VMs start from
    #[command(subcommand, arg_required_else_help = true)]
    Image(image::ImageCommand),
    /// Kernels that VMs boot
    #[command(subcommand, arg_required_else_help = true)]
    Kernel(kernel::KernelCommand),
    /// Saved guests that VMs begin from instead of booting
    #[command(subcommand, arg_required_else_help = true)]
    Template(template::TemplateCommand),
    /// The background program that keeps the books; VMs run without it
    #[command(subcommand, arg_required_else_help = true)]
    Daemon(daemon::DaemonCommand),
    /// Check whether this machine can run VMs, and how to mend what keeps it from it
    Doctor(doctor::Doctor),
    /// Show what happens to VMs, images and kernels as it happens
    Events(events::Events),
    /// Disk use, and a way back to the beginning
    #[command(subcommand, arg_required_else_help = true)]
    System(system::SystemCommand),
    /// Print a completion script for a shell
    Completion(completion::Completion),
    /// Show the versions of banger and of its daemon
    Version(version::Version),
}

/// The verbs of VMs.
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// Create a VM, start it, and run a command or a shell in it
    Run(run::Run),
    /// Create a VM without starting it
    Create(create::Create),
    /// Start VMs
    Start(start::Start),
    /// Shut VMs down, saving their disks
    Stop(stop::Stop),
    /// Stop and start VMs
    Restart(restart::Restart),
    /// Switch VMs off at once; what was not synced may be lost
    Kill(kill::Kill),
    /// Make running copies of a running VM
    Fork(fork::Fork),
    /// Keep what VMs are at some moment, and go back to it
    #[command(subcommand, arg_required_else_help = true)]
    Snapshot(snapshot::SnapshotCommand),
    /// Have VMs stand still; their memory stays
    Pause(pause::Pause),
    /// Have paused VMs go on
    Resume(resume::Resume),
    /// Remove VMs with their disks
    Rm(rm::Rm),
    /// List VMs
    #[command(visible_alias = "ps", alias = "list")]
    Ls(ls::Ls),
    /// Show all about VMs
    #[command(alias = "inspect")]
    Show(show::Show),
    /// Change what VMs are: size, disks, labels, policies
    Set(set::Set),
    /// Run a command in a running VM
    Exec(exec::Exec),
    /// Open a shell in a running VM
    Shell(shell::Shell),
    /// Show what a VM's main command wrote, or its console
    Logs(logs::Logs),
    /// Wait until VMs end, and print their exit codes
    Wait(wait::Wait),
    /// Remove all VMs that have ended
    Prune(prune::Prune),
}

pub mod suggestion;

#[cfg(test)]
mod tests;
