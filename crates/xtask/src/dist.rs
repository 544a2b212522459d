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
/// Where cargo keeps what is between source and program: of all kinds together, so that crates from
/// elsewhere are built once.
const BUILD_DIR: &str = "CARGO_BUILD_BUILD_DIR";
/// What programs with fail points, and only those, read.
const VARIABLE: &str = "BANGER_FAULTS";
/// The programs of the host, and their places.
const HOST_PROGRAMS: [(&str, &str); 3] =
    [("banger", "bin"), ("bangerd", "libexec"), ("banger-shim", "libexec")];

/// What the programs are built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Users.
    Release,
    /// Whoever works on them.
    Dev,
    /// Tests that break them at every step.
    Faults,
}

impl Kind {
    /// The directory below `target`.
    fn place(self) -> &'static str {
        match self {
            Self::Release => "dist",
            Self::Dev => "dist-dev",
            Self::Faults => "dist-faults",
        }
    }
}

/// Builds all programs and lays them out.
///
/// # Errors
/// If a build fails, or a file cannot be put in its place.
pub fn build(kind: Kind) -> Result<(), ChoreFailure> {
    let target = tree::root().join("target");
    let dist = target.join(kind.place());
    // What is built with fail points never lies where anything else is built.
    let work = if kind == Kind::Faults { target.join("faults") } else { target.clone() };
    let (profile, built) = match kind {
        Kind::Release => ("release", work.join("release")),
        Kind::Dev | Kind::Faults => ("dev", work.join("debug")),
    };
    build_host_programs(kind, profile, &work)?;
    let agent = build_agent(kind, &work)?;
    let mut changed = Vec::new();
    for (program, place) in HOST_PROGRAMS {
        changed.extend(install(&built.join(program), &dist.join(place).join(program))?);
    }
    changed.extend(install(&agent, &dist.join("lib/banger-agent"))?);
    check_faults(kind, &dist)?;
    for path in &changed {
        println!("new: {}", path.strip_prefix(tree::root()).unwrap_or(path).display());
    }
    if changed.is_empty() {
        println!("{} is up to date", dist.strip_prefix(tree::root()).unwrap_or(&dist).display());
    }
    Ok(())
}

fn build_host_programs(kind: Kind, profile: &str, target: &Path) -> Result<(), ChoreFailure> {
    let mut cargo = tree::cargo();
    cargo.args(["build", "--locked", "--profile", profile]);
    for (program, _) in HOST_PROGRAMS {
        cargo.args(["-p", program]);
        if kind == Kind::Faults {
            cargo.args(["--features", &format!("{program}/faults")]);
        }
    }
    run(cargo.arg("--target-dir").arg(target).env(BUILD_DIR, tree::root().join("target")))
}

/// The agent is always built small: it travels in every initramfs, also in development.
///
/// An explicit `--target` keeps `+crt-static` away from procedural macros, which cannot be static;
/// its own target directory keeps the two sets of flags from rebuilding each other's crates.
fn build_agent(kind: Kind, target: &Path) -> Result<PathBuf, ChoreFailure> {
    let build = tree::root().join("target/agent");
    let target = target.join("agent");
    let mut cargo = tree::cargo();
    cargo.args(["build", "--locked", "--profile", "agent", "-p", "banger-agent"]);
    cargo.args(["--target", AGENT_TARGET]).arg("--target-dir").arg(&target);
    cargo.env(BUILD_DIR, build);
    cargo.env("RUSTFLAGS", AGENT_FLAGS);
    cargo.env_remove("CARGO_ENCODED_RUSTFLAGS");
    if kind == Kind::Faults {
        cargo.args(["--features", "banger-agent/faults"]);
    }
    run(&mut cargo)?;
    Ok(target.join(AGENT_TARGET).join("agent/banger-agent"))
}

/// Fail points are in the programs that shall have them, and in no others.
fn check_faults(kind: Kind, dist: &Path) -> Result<(), ChoreFailure> {
    let hosts = HOST_PROGRAMS.map(|(program, place)| (dist.join(place).join(program), VARIABLE));
    let agent = (dist.join("lib/banger-agent"), banger_api::agent::FAULT_ARG);
    for (program, sign) in hosts.into_iter().chain([agent]) {
        let bytes = std::fs::read(&program).map_err(on_file("read", &program))?;
        if contains(&bytes, sign) != (kind == Kind::Faults) {
            let what = if kind == Kind::Faults { "has no fail points" } else { "has fail points" };
            return Err(ChoreFailure::Found(format!("{} {what}", program.display())));
        }
    }
    Ok(())
}

fn contains(bytes: &[u8], sign: &str) -> bool {
    bytes.windows(sign.len()).any(|window| window == sign.as_bytes())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fail_points_are_found_where_they_are_and_missed_where_not() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let put = |sign: &str| {
            let names =
                ["bin/banger", "libexec/bangerd", "libexec/banger-shim", "lib/banger-agent"];
            for name in names {
                let path = dir.path().join(name);
                std::fs::create_dir_all(path.parent().expect("a directory")).expect("create");
                std::fs::write(path, format!("\x7fELF{sign}\0")).expect("write");
            }
        };
        put("");
        check_faults(Kind::Release, dir.path()).expect("none");
        check_faults(Kind::Faults, dir.path()).expect_err("they are missing");
        put("BANGER_FAULTS banger.fault.");
        check_faults(Kind::Faults, dir.path()).expect("all of them");
        check_faults(Kind::Dev, dir.path()).expect_err("they do not belong there");
    }
}
