//! `banger template …`.

use banger_api::template::{MakeTemplate, PruneTemplates, PrunedTemplates, Template};
use banger_core::{size, spec};
use clap::{Args, Subcommand};

use super::library::{self, Names, Removal};
use super::shape::{Init, Shape};
use super::vm_row::age;
use crate::client::Client;
use crate::failure::Failure;
use crate::ui::{Row, Ui};

const PATH: &str = "/v1/templates";
const PRUNE_PATH: &str = "/v1/templates/prune";

/// The verbs of templates.
#[derive(Debug, Subcommand)]
pub enum TemplateCommand {
    /// List templates, the one used last first
    #[command(alias = "list")]
    Ls,
    /// Make the template that such VMs begin from, ahead of the first one
    Make(Make),
    /// Show all about templates
    #[command(alias = "inspect")]
    Show(Names),
    /// Remove templates; VMs that began from them go on
    Rm(Removal),
    /// Remove the templates that no VM could begin from any more
    Prune(Prune),
}

const MAKE_EXAMPLES: &str = "\
Examples:
  banger template make                   For `banger run` as it is
  banger template make alpine -m 512M    For `banger run -m 512M alpine`

The first VM of a kind makes its template by itself. A template serves VMs with the same image, kernel,
CPUs, memory, disk size and init.
";

/// Arguments of `banger template make`.
#[derive(Debug, Args)]
#[command(after_help = MAKE_EXAMPLES)]
pub struct Make {
    /// Image [default: debian-bookworm]
    #[arg(value_name = "IMAGE")]
    image: Option<String>,
    /// Virtual CPUs
    #[arg(short, long, value_name = "N", default_value_t = spec::DEFAULT_CPUS,
        value_parser = clap::value_parser!(u32).range(1..))]
    cpus: u32,
    /// Memory, for example 512M or 2G [default: 1G]
    #[arg(short, long, value_name = "SIZE", value_parser = size::parse_memory_mib)]
    memory: Option<u32>,
    /// Size of the root disk, for example 20G [default: 8G]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    disk: Option<u64>,
    /// Kernel to boot [default: the image's]
    #[arg(long, value_name = "NAME")]
    kernel: Option<String>,
    /// First process: banger's agent or its own init [default: the image's]
    #[arg(long, value_enum, value_name = "agent|system", hide_possible_values = true)]
    init: Option<Init>,
}

impl Make {
    fn request(self) -> MakeTemplate {
        let shape = Shape {
            cpus: self.cpus,
            memory: self.memory,
            disk: self.disk,
            kernel: self.kernel,
            init: self.init,
            ..Shape::default()
        };
        MakeTemplate { spec: shape.spec(self.image.as_deref()) }
    }
}

/// Arguments of `banger template prune`.
#[derive(Debug, Args)]
#[command(after_help = "\
Without --all that is those of images and kernels that are gone, and of another processor.
")]
pub struct Prune {
    /// Every template
    #[arg(short, long)]
    all: bool,
    /// Only show what would go
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

impl Prune {
    /// Shows what goes, asks, removes.
    async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let client = Client::ready(ui).await?;
        let request = |dry_run| PruneTemplates { all: self.all, dry_run };
        let plan: PrunedTemplates = client.post(PRUNE_PATH, &request(true)).await?;
        if self.dry_run || plan.templates.is_empty() {
            return report(&plan, "would free", ui);
        }
        if !self.yes {
            for template in &plan.templates {
                ui.note(&line(template));
            }
            let question = format!("Remove {}?", counted(&plan));
            if !ui.confirm(&question)? {
                return Ok(0);
            }
        }
        let done: PrunedTemplates = client.post(PRUNE_PATH, &request(false)).await?;
        report(&done, "freed", ui)
    }
}

fn line(template: &Template) -> String {
    format!("{}  {}", template.id, template.image)
}

fn counted(pruned: &PrunedTemplates) -> String {
    let bytes: u64 = pruned.templates.iter().map(|template| template.allocated_bytes).sum();
    let count = match pruned.templates.len() {
        1 => "1 template".to_owned(),
        many => format!("{many} templates"),
    };
    format!("{count} ({})", size::format(bytes))
}

fn report(pruned: &PrunedTemplates, verb: &str, ui: &Ui) -> Result<u8, Failure> {
    if ui.is_json() {
        ui.json(pruned)?;
        return Ok(0);
    }
    for template in &pruned.templates {
        ui.line(&line(template))?;
    }
    match pruned.templates.is_empty() {
        true => ui.note("there is nothing to remove"),
        false => ui.note(&format!("{verb} {}", counted(pruned))),
    }
    Ok(0)
}

/// Does one of them.
pub async fn run(command: TemplateCommand, ui: &Ui) -> Result<u8, Failure> {
    match command {
        TemplateCommand::Ls => library::list::<Template>(PATH, ui).await,
        TemplateCommand::Make(args) => library::make(PATH, &args.request(), ui).await,
        TemplateCommand::Show(which) => library::show(PATH, &which.names, fields, ui).await,
        TemplateCommand::Rm(removal) => library::remove(PATH, &removal, ui).await,
        TemplateCommand::Prune(args) => args.run(ui).await,
    }
}

impl Row for Template {
    const HEADERS: &'static [&'static str] =
        &["ID", "IMAGE", "CPUS", "MEMORY", "DISK", "INIT", "USED", "SIZE", "READY"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.id.clone(),
            self.image.clone(),
            self.cpus.to_string(),
            memory(self),
            size::format(self.disk_bytes),
            self.init.as_str().to_owned(),
            format!("{} ago", age(self.used_at_ms, banger_host::clock::now_ms())),
            size::format(self.allocated_bytes),
            self.ready.to_string(),
        ]
    }

    fn name(&self) -> &str {
        &self.id
    }
}

fn memory(template: &Template) -> String {
    size::format(u64::from(template.memory_mib) * size::MIB)
}

fn fields(template: &Template) -> Vec<(&'static str, String)> {
    let now_ms = banger_host::clock::now_ms();
    let ago = |ms| format!("{} ago", age(ms, now_ms));
    let engine = &template.engine;
    vec![
        ("Id", template.id.clone()),
        ("Image", format!("{} ({})", template.image, template.image_digest)),
        ("Kernel", template.kernel_digest.clone()),
        (
            "Size",
            format!(
                "{} CPUs, {} memory, {} disk",
                template.cpus,
                memory(template),
                size::format(template.disk_bytes)
            ),
        ),
        ("Init", template.init.as_str().to_owned()),
        ("Engine", format!("{} {} ({})", engine.name, engine.version, engine.accelerator.as_str())),
        ("Processor", template.cpu.clone()),
        ("Created", ago(template.created_at_ms)),
        ("Used", ago(template.used_at_ms)),
        ("Takes", size::format(template.allocated_bytes)),
        ("Ready", template.ready.to_string()),
    ]
}
