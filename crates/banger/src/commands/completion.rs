//! `banger completion`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::args::Cli;
use crate::failure::Failure;
use crate::ui::Ui;

const EXAMPLES: &str = "\
Examples:
  source <(banger completion bash)       For this shell; put it into ~/.bashrc for all
  banger completion fish > ~/.config/fish/completions/banger.fish
";

/// Arguments of `banger completion`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Completion {
    /// Which shell
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

impl Completion {
    /// Prints the script.
    pub fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "banger", &mut script);
        ui.raw(&script)?;
        Ok(0)
    }
}
