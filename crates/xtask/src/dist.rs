//! `cargo xtask dist`: the programs, where they look for each other.
//!
//! ```text
//! target/dist/bin/banger
//! target/dist/libexec/{bangerd,banger-shim}
//! target/dist/lib/banger-agent
//! ```
//!
//! A program is replaced by rename, and only when it changed: VMs that run keep the binaries they
//! were started with, and the daemon's cache of initramfs (by the agent's digest) stays good.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::failure::{ChoreFailure, on_file, run};
use crate::tree;

const AGENT_TARGET: &str = "x86_64-unknown-linux-gnu";
/// Static, so that it needs nothing of any image; its 3,700 relocations in 1 KiB instead of 90.
const AGENT_FLAGS: &str = "-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs";
/// The programs of the host, and their places.
const HOST_PROGRAMS: [(&str, &str); 3] =
    [("banger", "bin"), ("bangerd", "libexec"), ("banger-shim", "libexec")];

/// Builds all programs and lays them out.
///
/// # Errors
/// If a build fails, or a file cannot be put in its place.
pub fn build(dev: bool) -> Result<(), ChoreFailure> {
    let target = tree::root().join("target");
    let (profile, built, dist) = if dev {
        ("dev", target.join("debug"), target.join("dist-dev"))
    } else {
        ("release", target.join("release"), target.join("dist"))
    };
    build_host_programs(profile, &target)?;
    let agent = build_agent(&target)?;
    let mut changed = Vec::new();
    for (program, place) in HOST_PROGRAMS {
        changed.extend(install(&built.join(program), &dist.join(place).join(program))?);
    }
    changed.extend(install(&agent, &dist.join("lib/banger-agent"))?);
    for path in &changed {
        println!("new: {}", path.strip_prefix(tree::root()).unwrap_or(path).display());
    }
    if changed.is_empty() {
        println!("{} is up to date", dist.strip_prefix(tree::root()).unwrap_or(&dist).display());
    }
    Ok(())
}

fn build_host_programs(profile: &str, target: &Path) -> Result<(), ChoreFailure> {
    let mut cargo = tree::cargo();
    cargo.args(["build", "--locked", "--profile", profile]);
    for (program, _) in HOST_PROGRAMS {
        cargo.args(["-p", program]);
    }
    run(cargo.arg("--target-dir").arg(target))
}

/// The agent is always built small: it travels in every initramfs, also in development.
///
/// An explicit `--target` keeps `+crt-static` away from procedural macros, which cannot be static;
/// its own target directory keeps the two sets of flags from rebuilding each other's crates.
fn build_agent(target: &Path) -> Result<PathBuf, ChoreFailure> {
    let target = target.join("agent");
    let mut cargo = tree::cargo();
    cargo.args(["build", "--locked", "--profile", "agent", "-p", "banger-agent"]);
    cargo.args(["--target", AGENT_TARGET]).arg("--target-dir").arg(&target);
    cargo.env("RUSTFLAGS", AGENT_FLAGS);
    cargo.env_remove("CARGO_ENCODED_RUSTFLAGS");
    run(&mut cargo)?;
    Ok(target.join(AGENT_TARGET).join("agent/banger-agent"))
}

/// Puts a file in its place unless the same bytes are there; says where if it did.
fn install(from: &Path, to: &Path) -> Result<Option<PathBuf>, ChoreFailure> {
    let bytes = std::fs::read(from).map_err(on_file("read", from))?;
    if std::fs::read(to).is_ok_and(|present| present == bytes) {
        return Ok(None);
    }
    let dir = to.parent().expect("every program has a directory");
    std::fs::create_dir_all(dir).map_err(on_file("create", dir))?;
    let fresh = to.with_extension(format!("new-{}", std::process::id()));
    write_program(&fresh, &bytes).map_err(on_file("write", &fresh))?;
    std::fs::rename(&fresh, to).map_err(on_file("replace", to))?;
    Ok(Some(to.to_owned()))
}

fn write_program(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    file.write_all(bytes)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o755))?;
    file.sync_all()
}
