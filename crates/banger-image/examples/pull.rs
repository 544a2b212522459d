//! Pulls the default image and kernel into a data directory: `pull DIR [image|kernel] [--refresh]`.
#![expect(clippy::print_stdout, reason = "it is a program")]

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use banger_api::operation::Progress;
use banger_host::command::Cancel;
use banger_image::Library;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let dir =
        args.first().map(PathBuf::from).ok_or("usage: pull DIR [image|kernel] [--refresh]")?;
    let wants = |kind: &str| args.get(1).is_none_or(|arg| arg == kind || arg.starts_with("--"));
    let refresh = args.iter().any(|arg| arg == "--refresh");
    let library = Library::open(&dir)?;
    let since = Instant::now();
    let mut show = |progress: Progress| {
        let percent = progress.done.map(|done| format!("{done:3} % ")).unwrap_or_default();
        let elapsed = since.elapsed().as_secs_f32();
        println!("{elapsed:6.2} {} {percent}{}", progress.stage, progress.message);
    };
    if wants("kernel") {
        let kernel = library
            .pull_kernel("debian-cloud", refresh, &mut show, &Cancel::new())
            .map_err(banger_api::Problem::from)?;
        println!("{}", serde_json::to_string_pretty(&kernel)?);
    }
    if wants("image") {
        let image = library
            .pull_image("debian-bookworm", refresh, &mut show, &Cancel::new())
            .map_err(banger_api::Problem::from)?;
        println!("{}", serde_json::to_string_pretty(&image)?);
    }
    println!("{:6.2} done", since.elapsed().as_secs_f32());
    Ok(())
}
