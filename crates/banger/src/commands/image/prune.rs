//! `banger image prune`.

use banger_api::image::{PruneImages, PrunedImages};
use banger_core::size;
use clap::Args;

use super::short;
use crate::client::Client;
use crate::failure::Failure;
use crate::ui::Ui;

const PRUNE_PATH: &str = "/v1/images/prune";

/// Arguments of `banger image prune`.
#[derive(Debug, Args)]
#[command(after_help = "\
Without --all that is old versions that no VM uses, and layers that no image needs.
")]
pub struct Prune {
    /// Every image that no VM uses, also those that have a name
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
    pub async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let client = Client::ready(ui).await?;
        let request = |dry_run| PruneImages { all: self.all, dry_run };
        let plan: PrunedImages = client.post(PRUNE_PATH, &request(true)).await?;
        if self.dry_run || is_empty(&plan) {
            return report(&plan, "would free", ui);
        }
        if !self.yes {
            for line in lines(&plan) {
                ui.note(&line);
            }
            let question = format!("Remove {} ({})?", counted(&plan), size::format(plan.bytes));
            if !ui.confirm(&question)? {
                return Ok(0);
            }
        }
        let done: PrunedImages = client.post(PRUNE_PATH, &request(false)).await?;
        report(&done, "freed", ui)
    }
}

fn is_empty(plan: &PrunedImages) -> bool {
    plan.images.is_empty() && plan.layers == 0
}

/// The images, one a line. Two versions can have the same name.
fn lines(pruned: &PrunedImages) -> Vec<String> {
    let line = |image: &banger_api::image::PrunedImage| {
        format!("{}  {}", image.name, short(&image.digest))
    };
    pruned.images.iter().map(line).collect()
}

fn counted(pruned: &PrunedImages) -> String {
    let part = |count: u64, one: &str| match count {
        0 => None,
        1 => Some(format!("1 {one}")),
        many => Some(format!("{many} {one}s")),
    };
    let images = u64::try_from(pruned.images.len()).unwrap_or(u64::MAX);
    let parts = [part(images, "image"), part(pruned.layers, "layer")];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" and ")
}

fn report(pruned: &PrunedImages, verb: &str, ui: &Ui) -> Result<u8, Failure> {
    if ui.is_json() {
        ui.json(pruned)?;
        return Ok(0);
    }
    for line in lines(pruned) {
        ui.line(&line)?;
    }
    if is_empty(pruned) {
        ui.note("there is nothing to remove");
    } else {
        ui.note(&format!("{}, {verb} {}", counted(pruned), size::format(pruned.bytes)));
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_api::image::PrunedImage;

    #[test]
    fn what_goes_is_counted() {
        let image = PrunedImage {
            name: "alpine".to_owned(),
            digest: "sha256:0123456789abcdef0123".to_owned(),
        };
        let pruned = |images: usize, layers| PrunedImages {
            images: vec![image.clone(); images],
            layers,
            bytes: 0,
        };
        assert_eq!(counted(&pruned(1, 0)), "1 image");
        assert_eq!(counted(&pruned(2, 1)), "2 images and 1 layer");
        assert_eq!(counted(&pruned(0, 3)), "3 layers");
        assert!(is_empty(&pruned(0, 0)));
        assert!(!is_empty(&pruned(0, 1)));
        assert_eq!(lines(&pruned(1, 0)), ["alpine  0123456789ab"]);
    }
}
