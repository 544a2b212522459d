//! An apt with state of its own.

use std::fs;
use std::path::{Path, PathBuf};

use banger_host::command::{Cancel, Isolation, Line, Tool};

use super::{Source, debian_sources, keyring, one_line, quoted, transport_settings};
use crate::error::PullError;

/// An apt whose lists, cache and configuration are in one directory, with the host's Debian sources.
#[derive(Debug)]
pub(crate) struct PrivateApt {
    dir: PathBuf,
    config: PathBuf,
}

impl PrivateApt {
    /// Make one in the empty directory `dir` for the Debian release `release`.
    pub(crate) fn create(dir: &Path, release: &str, cancel: &Cancel) -> Result<Self, PullError> {
        let sources = debian_sources(release, cancel)?;
        let config = config_text(dir, &transport_settings(cancel)?);
        for sub in ["state/lists/partial", "cache/archives/partial", "download"] {
            let path = dir.join(sub);
            fs::create_dir_all(&path).map_err(PullError::io("create", &path))?;
        }
        let apt = Self { dir: dir.to_owned(), config: dir.join("apt.conf") };
        write(&dir.join("status"), "")?;
        write(&apt.config, &config)?;
        write(&dir.join("sources.list"), &source_list(&sources)?)?;
        Ok(apt)
    }

    fn tool(&self, program: &str) -> Tool {
        Tool::new(program)
            .env("APT_CONFIG", &self.config)
            .dir(self.dir.join("download"))
            .isolation(Isolation::Processes)
    }

    /// Fetch the package lists and check their signatures. `on_percent` hears how far it is.
    pub(crate) fn update(
        &self,
        cancel: &Cancel,
        on_percent: &mut dyn FnMut(u64),
    ) -> Result<(), PullError> {
        self.tool("apt-get")
            .args(["--quiet", "--option", "APT::Status-Fd=1", "--error-on=any", "update"])
            .stdout_lines()
            .run_watched(cancel, &mut |line| show_percent(line, on_percent))
            .map_err(PullError::tool("fetching the package lists"))?;
        Ok(())
    }

    /// What apt knows about the newest version of a package.
    pub(crate) fn show(&self, package: &str, cancel: &Cancel) -> Result<String, PullError> {
        let tool = self.tool("apt-cache").args(["--no-all-versions", "show", package]);
        let shown = tool.run(cancel).map_err(PullError::tool("looking up the package"))?;
        Ok(shown.text())
    }

    /// Fetch a package and check it against the signed lists. Answers the path of its file.
    pub(crate) fn download(
        &self,
        package: &str,
        cancel: &Cancel,
        on_percent: &mut dyn FnMut(u64),
    ) -> Result<PathBuf, PullError> {
        self.tool("apt-get")
            .args(["--quiet", "--option", "APT::Status-Fd=1", "download", package])
            .stdout_lines()
            .run_watched(cancel, &mut |line| show_percent(line, on_percent))
            .map_err(PullError::tool("fetching the package"))?;
        let dir = self.dir.join("download");
        let entries = fs::read_dir(&dir).map_err(PullError::io("list", &dir))?;
        let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        paths.find(|path| path.extension().is_some_and(|ext| ext == "deb")).ok_or_else(|| {
            PullError::Unexpected {
                what: package.to_owned(),
                reason: "apt fetched no package file".to_owned(),
            }
        })
    }
}

fn source_list(sources: &[Source]) -> Result<String, PullError> {
    Ok(one_line(sources, keyring()?))
}

fn write(path: &Path, text: &str) -> Result<(), PullError> {
    // Mirrors and proxies may have passwords in them; the directory is private.
    fs::write(path, text).map_err(PullError::io("write", path))
}

/// The configuration of an apt that lives in `dir`: nothing of the host's, except `transport`.
fn config_text(dir: &Path, transport: &str) -> String {
    let path = |sub: &str| quoted(&dir.join(sub).to_string_lossy());
    let mut text = String::new();
    let settings = [
        // Hooks and habits of the host's apt have no place here. /dev/null/ is apt's own idiom for
        // a directory without files.
        ("Dir::Etc::main", quoted("/dev/null")),
        ("Dir::Etc::parts", quoted("/dev/null/")),
        ("Dir::Etc::preferences", quoted("/dev/null")),
        ("Dir::Etc::preferencesparts", quoted("/dev/null/")),
        ("Dir::Etc::sourcelist", path("sources.list")),
        ("Dir::Etc::sourceparts", quoted("/dev/null/")),
        ("Dir::State", path("state")),
        ("Dir::State::status", path("status")),
        ("Dir::Cache", path("cache")),
        ("APT::Architecture", quoted("amd64")),
        ("APT::Architectures", "{ \"amd64\"; }".to_owned()),
        ("Acquire::Languages", quoted("none")),
        // The directory is not for other users, so apt's own user could not write there.
        ("APT::Sandbox::User", quoted("root")),
    ];
    for (name, value) in settings {
        text.push_str(&format!("{name} {value};\n"));
    }
    text + transport
}

/// Read apt's status lines: `dlstatus:1:12.8997:Retrieving file 1 of 1`.
fn show_percent(line: Line<'_>, on_percent: &mut dyn FnMut(u64)) {
    if let Line::Stdout(line) = line
        && let Some(percent) = parse_percent(line)
    {
        on_percent(percent);
    }
}

fn parse_percent(line: &str) -> Option<u64> {
    let mut fields = line.strip_prefix("dlstatus:")?.split(':');
    let percent = fields.nth(1)?.split('.').next()?.parse::<u64>().ok()?;
    Some(percent.min(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines_are_understood() {
        let cases = [
            ("dlstatus:4:12.8997:Retrieving file 4 of 5", Some(12)),
            ("dlstatus:1:100.0000:Retrieving file 1 of 1", Some(100)),
            ("dlstatus:1:1e9:odd", None),
            ("dlstatus:1", None),
            ("Get:1 http://m.test bookworm InRelease [151 kB]", None),
        ];
        for (line, want) in cases {
            assert_eq!(parse_percent(line), want, "{line}");
        }
    }

    #[test]
    fn the_configuration_takes_nothing_from_the_host_but_the_transport() {
        let text = config_text(Path::new("/w"), "Acquire::Retries \"3\";\n");
        assert!(text.contains("Dir::Etc::parts \"/dev/null/\";\n"));
        assert!(text.contains("Dir::State \"/w/state\";\n"));
        assert!(text.ends_with("Acquire::Retries \"3\";\n"));
    }
}
