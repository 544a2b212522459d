//! Debian's docker-registry, with a configuration of its own.

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use sha2::{Digest as _, Sha256};

use super::certificates::Certificates;
use super::http;
use crate::wait;

/// The one who may log in where [`RegistryOptions::password`] is set.
pub const USER: &str = "tester";
/// That one's password.
pub const PASSWORD: &str = "a secret of tests";
/// bcrypt of [`PASSWORD`], with the lowest cost there is.
const PASSWORD_HASH: &str = "$2b$04$abcdefghijklmnopqrstuu.JfedrbE36D1qHwQ9C1iYmQiOVia2Z2";

/// How long it may take until it answers.
const START: Duration = Duration::from_secs(15);
/// How often another port is tried when somebody took the chosen one first.
const PORTS: usize = 5;

/// How a registry is set up.
#[derive(Debug, Clone, Default)]
pub struct RegistryOptions {
    /// Whether only [`USER`] may use it, with Basic authentication.
    pub password: bool,
    /// Whether it speaks TLS, with what certificate.
    pub tls: Option<Certificates>,
    /// Whether it wants tokens.
    pub tokens: Option<TokenOptions>,
}

/// Which tokens a registry takes: JSON web tokens by `tests` for the service `tests`.
#[derive(Debug, Clone)]
pub struct TokenOptions {
    /// URL of the token service.
    pub realm: String,
    /// Who has to have signed the certificate of the key that signs tokens, PEM.
    pub authority: PathBuf,
}

/// A registry that lives as long as this value, and no longer than the thread that started it.
#[derive(Debug)]
pub struct RegistryServer {
    child: Child,
    port: u16,
    dir: PathBuf,
    tls: bool,
}

impl RegistryServer {
    /// Starts an open registry with its files below `dir`.
    ///
    /// # Panics
    /// If docker-registry is missing, or does not come up.
    #[must_use]
    pub fn start(dir: &Path) -> Self {
        Self::start_with(dir, &RegistryOptions::default())
    }

    /// Starts a registry with its files below `dir`.
    ///
    /// # Panics
    /// If docker-registry is missing, or does not come up.
    #[must_use]
    pub fn start_with(dir: &Path, options: &RegistryOptions) -> Self {
        let dir = dir.join("registry");
        std::fs::create_dir_all(&dir).expect("the directory is ours");
        if options.password {
            let line = format!("{USER}:{PASSWORD_HASH}\n");
            std::fs::write(dir.join("htpasswd"), line).expect("the directory is ours");
        }
        (0..PORTS)
            .find_map(|_| Self::try_start(&dir, options))
            .expect("one of several free ports stays free")
    }

    /// None if somebody else took the port.
    fn try_start(dir: &Path, options: &RegistryOptions) -> Option<Self> {
        let port = free_port();
        // A registry that says this is ours, and not another one on the same port.
        let mark = format!("{}-{port}", std::process::id());
        let config = dir.join("config.yml");
        std::fs::write(&config, configuration(dir, port, &mark, options)).expect("ours");
        let log = std::fs::File::create(dir.join("log")).expect("ours");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a free descriptor")).stderr(log);
        command.env("OTEL_TRACES_EXPORTER", "none");
        let parent = nix::unistd::getpid();
        // SAFETY: between fork and exec only system calls are made.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                let orphaned = nix::unistd::getppid() != parent;
                if orphaned { Err(nix::errno::Errno::ESRCH.into()) } else { Ok(()) }
            });
        }
        let child = command.spawn().expect("docker-registry is installed");
        let tls = options.tls.is_some();
        let mut server = Self { child, port, dir: dir.to_owned(), tls };
        let address = server.address();
        let answers = || {
            let answer = http::ask_over(tls, &address, &http::get("/v2/", &[]));
            answer.is_ok_and(|answer| answer.contains(&mark))
        };
        let mut ended = false;
        wait::until("docker-registry answers", START, || {
            ended = server.child.try_wait().expect("our child").is_some();
            (ended || answers()).then_some(())
        });
        let log = || std::fs::read_to_string(dir.join("log")).unwrap_or_default();
        if ended && !log().contains("address already in use") {
            panic!("docker-registry ended: {}", log());
        }
        (!ended).then_some(server)
    }

    /// Where it listens: `127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The whole reference of something in it: `127.0.0.1:PORT/team/app:1`.
    #[must_use]
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address())
    }

    /// Stores a blob without any tool. Only where there is neither password nor TLS.
    ///
    /// # Panics
    /// If the registry refuses it.
    pub fn put_blob(&self, repository: &str, bytes: &[u8]) -> String {
        let digest = digest_of(bytes);
        let begin = http::request("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], b"");
        let begun = self.ask(&begin);
        let location = begun.header("location").expect("a place to upload to");
        let path = location
            .split_once("://")
            .map_or(&*location, |(_, rest)| rest.find('/').map_or("/", |slash| &rest[slash..]));
        let to = format!("{path}&digest={}", digest.replace(':', "%3A"));
        let kind = [("Content-Type", "application/octet-stream")];
        let answer = self.ask(&http::request("PUT", &to, &kind, bytes));
        assert_eq!(answer.status, 201, "{answer:?}");
        digest
    }

    /// Stores a manifest under a tag or digest, as [`RegistryServer::put_blob`].
    ///
    /// # Panics
    /// If the registry refuses it.
    pub fn put_manifest(
        &self,
        repository: &str,
        tag: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> String {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let answer = self.ask(&http::request("PUT", &path, &[("Content-Type", media_type)], bytes));
        assert_eq!(answer.status, 201, "{answer:?}");
        digest_of(bytes)
    }

    /// Removes a manifest by its digest.
    ///
    /// # Panics
    /// If the registry refuses it.
    pub fn delete_manifest(&self, repository: &str, digest: &str) {
        let path = format!("/v2/{repository}/manifests/{digest}");
        let answer = self.ask(&http::request("DELETE", &path, &[], b""));
        assert_eq!(answer.status, 202, "{answer:?}");
    }

    /// What it has under a path, such as `/v2/app/manifests/1`; None if there is nothing.
    ///
    /// # Panics
    /// If the registry cannot be asked.
    #[must_use]
    pub fn get(&self, path: &str, accept: &str) -> Option<Vec<u8>> {
        let answer = self.ask(&http::get(path, &[("Accept", accept)]));
        (answer.status == 200).then_some(answer.body)
    }

    /// The file in which it keeps a blob; tests damage it.
    #[must_use]
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let blobs = self.dir.join("data/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }

    fn ask(&self, request: &[u8]) -> http::Answer {
        assert!(!self.tls, "only skopeo speaks TLS here");
        http::ask(&self.address(), request).expect("the registry answers")
    }
}

impl Drop for RegistryServer {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone and reaped afterwards.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configuration(dir: &Path, port: u16, mark: &str, options: &RegistryOptions) -> String {
    let mut text = Vec::new();
    let dir = dir.display();
    let secret = std::process::id();
    write!(
        text,
        "version: 0.1\n\
         log: {{level: warn, accesslog: {{disabled: true}}}}\n\
         storage:\n  \
           filesystem: {{rootdirectory: {dir}/data}}\n  \
           delete: {{enabled: true}}\n  \
           maintenance: {{uploadpurging: {{enabled: false}}}}\n\
         http:\n  \
           addr: 127.0.0.1:{port}\n  \
           secret: tests-{secret}\n  \
           headers: {{X-Test-Registry: [{mark}]}}\n"
    )
    .expect("memory takes it");
    if let Some(Certificates { certificate, key, .. }) = &options.tls {
        let (certificate, key) = (certificate.display(), key.display());
        writeln!(text, "  tls: {{certificate: {certificate}, key: {key}}}").expect("memory");
    }
    if options.password {
        writeln!(text, "auth: {{htpasswd: {{realm: tests, path: {dir}/htpasswd}}}}")
            .expect("memory");
    }
    if let Some(TokenOptions { realm, authority }) = &options.tokens {
        let authority = authority.display();
        writeln!(
            text,
            "auth: {{token: {{realm: {realm}, service: tests, issuer: tests, \
             rootcertbundle: {authority}}}}}"
        )
        .expect("memory");
    }
    String::from_utf8(text).expect("all of it is text")
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

pub(super) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}
