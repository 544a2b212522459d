//! Finding the credentials for a registry: in the caller's auth files and from credential helpers.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use banger_host::command::{Cancel, Tool, ToolError, find_program};
use serde::Deserialize;

use super::authfile::{AuthFile, Credential, DOCKER_HUB_KEY, Secret, Source};
use super::error::RegistryError;
use crate::error::LibraryError;

/// Largest file of settings or credentials, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Most that a helper may answer, in bytes.
const MAX_ANSWER: usize = 64 * 1024;
/// How long a helper may take: it may ask its user.
const HELPER_BOUND: Duration = Duration::from_secs(60);
/// How often a running helper's caller is asked whether it still wants an answer.
const LOOK: Duration = Duration::from_millis(50);
/// What a helper says that has nothing for this registry.
const NOTHING_FOUND: &str = "credentials not found";
/// The user name by which a helper says that its secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// Where credentials are looked for, in that order.
#[derive(Debug, Clone, Default)]
pub(super) struct Credentials {
    files: Vec<AuthPath>,
    path: Option<String>,
}

/// An auth file that may exist.
#[derive(Debug, Clone)]
struct AuthPath {
    path: PathBuf,
    /// Whether somebody named it, so that it must be there.
    required: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

impl Credentials {
    /// Nowhere yet. Helpers are searched in `path` first, `$PATH` of the caller.
    pub(super) fn new(path: Option<String>) -> Self {
        Self { files: Vec::new(), path }
    }

    /// Then in a file that must be there.
    pub(super) fn then_in(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.push(AuthPath { path: path.into(), required: true });
        self
    }

    /// Then in a file, if it is there.
    pub(super) fn then_maybe_in(mut self, path: Option<PathBuf>) -> Self {
        self.files.extend(path.map(|path| AuthPath { path, required: false }));
        self
    }

    /// The credentials for a repository, if there are any. Reads files and may run a helper.
    pub(super) fn find(
        &self,
        registry: &str,
        repository: &str,
        cancel: &Cancel,
    ) -> Result<Option<Credential>, RegistryError> {
        for file in &self.files {
            let Some(bytes) = file.read()? else { continue };
            let auths = AuthFile::parse(&bytes).map_err(|reason| RegistryError::Settings {
                place: file.path.display().to_string(),
                reason,
            })?;
            let found = match auths.find(registry, repository) {
                Some(Source::Here(credential)) => Some(credential),
                Some(Source::Helper(name)) => self.ask_helper(&name, registry, cancel)?,
                None => None,
            };
            if found.is_some() {
                tracing::debug!(registry, file = %file.path.display(), "credentials found");
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Run `docker-credential-NAME get`. None if it has nothing for this registry, or is not
    /// installed: auth files are copied from machine to machine, and most images need no login.
    fn ask_helper(
        &self,
        name: &str,
        registry: &str,
        cancel: &Cancel,
    ) -> Result<Option<Credential>, RegistryError> {
        let program = format!("docker-credential-{name}");
        let failed = |source| RegistryError::Helper { registry: registry.to_owned(), source };
        let tool = match self.find_helper(&program) {
            Some(path) => Tool::new(path.to_string_lossy()),
            None => Tool::new(program.clone()),
        };
        let tool = match &self.path {
            Some(path) => tool.env("PATH", path),
            None => tool,
        };
        let key = if registry == "docker.io" { DOCKER_HUB_KEY } else { registry };
        let (answer, ended) = run_bounded(tool.arg("get").stdin(key), cancel);
        match ended {
            Ok(()) => read_answer(&answer).map_err(|reason| RegistryError::Settings {
                place: format!("the answer of {program}"),
                reason,
            }),
            Err(ToolError::Missing { .. }) => {
                tracing::warn!(registry, program, "the credential helper is not installed");
                Ok(None)
            }
            Err(ToolError::Cancelled { .. }) if cancel.is_cancelled() => {
                Err(RegistryError::Cancelled)
            }
            Err(_) if String::from_utf8_lossy(&answer).contains(NOTHING_FOUND) => Ok(None),
            Err(source) => Err(failed(source)),
        }
    }

    fn find_helper(&self, program: &str) -> Option<PathBuf> {
        // The name comes from a file, and is to be no path.
        if program.contains('/') {
            return None;
        }
        let dirs = self.path.as_deref().unwrap_or_default().split(':').map(Path::new);
        let absolute = dirs.filter(|dir| dir.is_absolute());
        absolute.map(|dir| dir.join(program)).find_map(|path| find_program(path.to_str()?))
    }
}

impl AuthPath {
    fn read(&self) -> Result<Option<Vec<u8>>, RegistryError> {
        match read_bounded(&self.path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if self.required => Err(LibraryError::io("read", &self.path)(error).into()),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(file = %self.path.display(), %error, "cannot read it");
                }
                Ok(None)
            }
        }
    }
}

/// The contents of a small file.
pub(super) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path)?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::other("it is too large for what it should be"));
    }
    Ok(bytes)
}

/// Run a tool and keep what it says, also if it fails, but not for long and not without limit.
fn run_bounded(tool: Tool, cancel: &Cancel) -> (Vec<u8>, Result<(), ToolError>) {
    let stop = Cancel::new();
    let mut answer = Vec::new();
    let (done, is_done) = mpsc::channel::<()>();
    let ended = std::thread::scope(|scope| {
        let stopper = stop.clone();
        scope.spawn(move || {
            let since = Instant::now();
            while is_done.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                if cancel.is_cancelled() || since.elapsed() > HELPER_BOUND {
                    stopper.cancel();
                }
            }
        });
        let ended = tool.run_streaming(&stop, &mut |bytes| {
            let room = MAX_ANSWER - answer.len();
            answer.extend_from_slice(&bytes[..bytes.len().min(room)]);
            if bytes.len() > room {
                stop.cancel();
            }
        });
        drop(done);
        ended
    });
    (answer, ended)
}

fn read_answer(answer: &[u8]) -> Result<Option<Credential>, String> {
    let answer: HelperAnswer =
        serde_json::from_slice(answer).map_err(|_| "it is not what a helper answers".to_owned())?;
    let secret = Secret::new(answer.secret);
    Ok(match answer.username.as_str() {
        _ if secret.reveal().is_empty() => None,
        TOKEN_USER => Some(Credential::Identity(secret)),
        "" => None,
        user => Some(Credential::Password { user: user.to_owned(), password: secret }),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn password(user: &str, password: &str) -> Option<Credential> {
        let password = Secret::new(password);
        Some(Credential::Password { user: user.to_owned(), password })
    }

    /// A directory with helpers, and credentials that come from them.
    fn with_helper(script: &str) -> (tempfile::TempDir, Credentials) {
        let dir = tempfile::tempdir().expect("a directory");
        let helper = dir.path().join("docker-credential-test");
        fs::write(&helper, format!("#!/bin/sh\n{script}\n")).expect("a file");
        fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).expect("our file");
        let config = dir.path().join("config.json");
        fs::write(&config, r#"{"credsStore": "test"}"#).expect("a file");
        let path = format!("relative:{}:/usr/bin:/bin", dir.path().display());
        let credentials = Credentials::new(Some(path)).then_in(config);
        (dir, credentials)
    }

    fn find(
        credentials: &Credentials,
        registry: &str,
    ) -> Result<Option<Credential>, RegistryError> {
        credentials.find(registry, "x", &Cancel::new())
    }

    #[test]
    fn a_helper_is_asked_for_the_registry_and_found_in_the_callers_path() {
        let (_dir, credentials) = with_helper(
            "[ \"$1\" = get ] || exit 1\n\
             printf '{\"ServerURL\":\"x\",\"Username\":\"me\",\"Secret\":\"%s\"}' \"$(cat)\"",
        );
        let found = find(&credentials, "example.com:5000").expect("it answers");
        assert_eq!(found, password("me", "example.com:5000"));
        let found = find(&credentials, "docker.io").expect("it answers");
        assert_eq!(found, password("me", "https://index.docker.io/v1/"));
    }

    #[test]
    fn a_helper_may_have_a_token_or_nothing() {
        let (_dir, token) = with_helper("echo '{\"Username\":\"<token>\",\"Secret\":\"t\"}'");
        let want = Some(Credential::Identity(Secret::new("t")));
        assert_eq!(find(&token, "example.com").expect("it answers"), want);
        let (_dir, nothing) = with_helper("echo credentials not found in native keychain; exit 1");
        assert_eq!(find(&nothing, "example.com").expect("that is no failure"), None);
        let (dir, gone) = with_helper("");
        fs::remove_file(dir.path().join("docker-credential-test")).expect("ours");
        assert_eq!(find(&gone, "example.com").expect("that is no failure"), None);
    }

    #[test]
    fn a_helper_that_fails_or_babbles_is_an_error() {
        let (_dir, failing) = with_helper("echo locked >&2; exit 3");
        let error = find(&failing, "example.com").expect_err("exit 3");
        assert_eq!(error.to_string(), "the credential helper for example.com failed");
        let (_dir, odd) = with_helper("echo hello");
        let error = find(&odd, "example.com").expect_err("no JSON");
        assert!(error.to_string().contains("docker-credential-test"), "{error}");
        let (_dir, endless) = with_helper("exec yes");
        assert!(matches!(find(&endless, "example.com"), Err(RegistryError::Helper { .. })));
    }

    #[test]
    fn asking_a_helper_can_be_called_off() {
        let (dir, credentials) =
            with_helper("touch \"$(dirname \"$0\")/runs\"; exec cat /dev/zero >&2");
        let cancel = Cancel::new();
        let (other, runs) = (cancel.clone(), dir.path().join("runs"));
        let watcher = std::thread::spawn(move || {
            banger_testkit::wait::until("it runs", Duration::from_secs(20), || {
                runs.exists().then(|| other.cancel())
            });
        });
        let found = credentials.find("example.com", "x", &cancel);
        assert!(matches!(found, Err(RegistryError::Cancelled)), "{found:?}");
        watcher.join().expect("no panic");
    }

    #[test]
    fn files_are_read_in_their_order() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            fs::write(dir.path().join(name), text).expect("a file");
            dir.path().join(name)
        };
        let one = file("one", r#"{"auths": {"a.example": {"username": "one", "password": "1"}}}"#);
        let two = file(
            "two",
            r#"{"auths": {"a.example": {"username": "two", "password": "2"},
                          "b.example": {"username": "two", "password": "2"}}}"#,
        );
        let missing = dir.path().join("missing");
        let both = Credentials::new(None)
            .then_maybe_in(Some(missing.clone()))
            .then_maybe_in(None)
            .then_in(one)
            .then_maybe_in(Some(two));
        assert_eq!(find(&both, "a.example").expect("readable"), password("one", "1"));
        assert_eq!(find(&both, "b.example").expect("readable"), password("two", "2"));
        assert_eq!(find(&both, "c.example").expect("readable"), None);
        let error = find(&Credentials::new(None).then_in(&missing), "x").expect_err("missing");
        assert_eq!(error.to_string(), format!("cannot read {}", missing.display()));
        let broken = file("broken", "{");
        let error = find(&Credentials::new(None).then_in(&broken), "x").expect_err("broken");
        let want = format!("cannot understand {}: line 1: not JSON", broken.display());
        assert_eq!(error.to_string(), want);
        let huge = dir.path().join("huge");
        File::create(&huge).and_then(|f| f.set_len(MAX_FILE + 1)).expect("a file");
        assert!(find(&Credentials::new(None).then_in(&huge), "x").is_err());
    }
}
