//! How to talk to registries: what the command line and the environment say of it.

use std::path::{Path, PathBuf};

use banger_api::image::RegistryAccess;
use banger_api::{ErrorCode, Problem};
use banger_host::environment;
use clap::Args;

use crate::failure::Failure;

/// Options of everything that may talk to a registry.
#[derive(Debug, Clone, Default, Args)]
pub struct RegistryArgs {
    /// Settings (TOML) or credentials (auth.json) of registries
    #[arg(long, value_name = "FILE")]
    pub registry_config: Option<PathBuf>,
}

impl RegistryArgs {
    /// The files that the daemon looks into. The usual ones of the user it finds by itself.
    ///
    /// # Errors
    /// If the file that was named cannot be read: better now than after a refused pull.
    pub fn access(&self) -> Result<RegistryAccess, Failure> {
        let variable = |name| environment::get(name).filter(|value| !value.is_empty());
        let place = |name| variable(name).map(|value| absolute(Path::new(&value))).transpose();
        Ok(RegistryAccess {
            config: self.registry_config.as_deref().map(existing_file).transpose()?,
            docker_config: place("DOCKER_CONFIG")?,
            auth_file: place("REGISTRY_AUTH_FILE")?,
            path: variable("PATH"),
        })
    }
}

/// The absolute path of a file that can be read.
///
/// # Errors
/// If it cannot.
pub fn existing_file(path: &Path) -> Result<String, Failure> {
    std::fs::File::open(path).map_err(|error| unreadable(path, &error))?;
    absolute(path)
}

/// The absolute path. Symbolic links stay as they are, so that the last part is the name that a
/// person knows.
///
/// # Errors
/// If it is not text, or the present directory is gone.
pub fn absolute(path: &Path) -> Result<String, Failure> {
    let climbs = path.components().any(|part| part == std::path::Component::ParentDir);
    let found = if climbs { std::fs::canonicalize(path) } else { std::path::absolute(path) };
    let found = found.map_err(|error| unreadable(path, &error))?;
    found.into_os_string().into_string().map_err(|path| {
        let title = format!("the path {} is not UTF-8", path.display());
        Failure::new(ErrorCode::InvalidArgument, title)
    })
}

/// A file of the command line that cannot be used.
pub fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    let title = format!("cannot read {}", path.display());
    Problem::new(ErrorCode::InvalidArgument, title).because(error).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let args = RegistryArgs { registry_config: Some("/nowhere/registries.toml".into()) };
        let Err(Failure::Problem(problem)) = args.access() else { panic!("it is not there") };
        assert_eq!(problem.code, ErrorCode::InvalidArgument);
        assert!(problem.title.contains("/nowhere/registries.toml"), "{problem}");
    }

    #[test]
    fn paths_become_absolute_and_keep_their_names() {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let real = tmp.path().join("rootfs-12");
        std::fs::create_dir(&real).expect("writable");
        let link = tmp.path().join("rootfs");
        std::os::unix::fs::symlink(&real, &link).expect("writable");
        assert_eq!(absolute(&link).expect("fine"), link.display().to_string());
        let climbing = link.join("..").join("rootfs-12");
        let real = real.canonicalize().expect("it is there");
        assert_eq!(absolute(&climbing).expect("fine"), real.display().to_string());
        assert!(absolute(Path::new("x")).expect("fine").starts_with('/'));
    }
}
