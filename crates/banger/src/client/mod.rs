//! Asking the daemon and the shims: one request per connection, typed answers.

mod autostart;
mod operation;
mod shim;
mod upload;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_api::operation::Operation;
use banger_api::version::{DAEMON_PROTOCOL, DaemonVersion};
use banger_api::vm::Vm;
use banger_api::{ErrorCode, Problem};
use banger_core::doctor::DaemonFacts;
use banger_host::http::{self, HttpError};
use banger_host::paths::{API_SOCKET, Programs, ProgramsError, StateDirs};
use banger_host::process;
use hyper::{Method, Response, body::Incoming};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::failure::Failure;
use crate::ui::Ui;

pub use autostart::{Stopped, ending, stop_daemon};
pub use operation::{Followed, Patience, follow};
pub use shim::ShimClient;
pub use upload::upload;

/// Release of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// How many connections are tried before a daemon that answers none is reported.
const ATTEMPTS: u32 = 3;
/// How long the doctor waits for the daemon's answer.
const OBSERVE_LIMIT: Duration = Duration::from_secs(5);

/// The daemon, known to run and to speak our protocol.
#[derive(Debug)]
pub struct Client {
    dirs: StateDirs,
    /// Where the daemon's program is, if a daemon that ends meanwhile may be started again.
    locate: Option<fn() -> Result<PathBuf, ProgramsError>>,
}

impl Client {
    /// The daemon, started if it does not run.
    ///
    /// # Errors
    /// If it cannot be started, or cannot be talked to.
    pub async fn ready(ui: &Ui) -> Result<Self, Failure> {
        let dirs = StateDirs::resolve()?;
        let version = greet(&dirs, &Programs::locate_daemon).await?;
        check(&version)?;
        check_data(&version, &dirs)?;
        if version.version != VERSION {
            ui.warning(&format!(
                "the daemon is release {}, this is {VERSION}; `banger daemon stop` lets the next \
                 command start the new one (running VMs go on)",
                version.version
            ));
        }
        Ok(Self { dirs, locate: Some(Programs::locate_daemon) })
    }

    /// The daemon if it runs, whatever it speaks.
    ///
    /// # Errors
    /// If the state directories cannot be told, or its socket cannot be reached.
    pub async fn running() -> Result<Option<Self>, Failure> {
        let client = Self::of(StateDirs::locate()?);
        match connect(&client.dirs).await {
            Ok(_) => Ok(Some(client)),
            Err(error) if autostart::is_absence(&error) => Ok(None),
            Err(error) => Err(unreachable(&error)),
        }
    }

    /// The daemon of these directories, which is not started.
    fn of(dirs: StateDirs) -> Self {
        Self { dirs, locate: None }
    }

    /// Asks for something.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.ask(Method::GET, path, None::<&()>).await
    }

    /// Asks to do something.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.ask(Method::POST, path, Some(body)).await
    }

    /// Asks to remove something, which is long work.
    pub async fn delete(&self, path: &str) -> Result<Operation, Failure> {
        self.ask(Method::DELETE, path, None::<&()>).await
    }

    /// Asks and reads the answer as JSON.
    ///
    /// A daemon that ends at that very moment breaks the connection. What only reads is then asked
    /// of the next one; what may have been done already is not.
    pub async fn ask<T: DeserializeOwned, B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, Failure> {
        let mut left = if method == Method::GET { ATTEMPTS } else { 1 };
        loop {
            let stream = self.connect().await?;
            left -= 1;
            match http::json(stream, method.clone(), path, body).await {
                Err(error) if left > 0 && is_broken_off(&error) => {}
                answer => return Ok(answer?),
            }
        }
    }

    /// Asks for something whose answer is read bit by bit.
    pub async fn open(&self, path: &str) -> Result<Response<Incoming>, Failure> {
        let stream = self.connect().await?;
        Ok(http::request(stream, Method::GET, path, None::<&()>).await?)
    }

    /// A VM by name, id, or the unique beginning of an id.
    pub async fn vm(&self, vm: &str) -> Result<Vm, Failure> {
        self.get(&vm_path(vm, "")).await
    }

    /// Connects. Nothing was asked yet, so that a daemon that has ended since may be started again.
    async fn connect(&self) -> Result<UnixStream, Failure> {
        match &self.locate {
            Some(locate) => autostart::connect_or_start(&self.dirs, locate).await,
            None => connect(&self.dirs).await.map_err(|error| unreachable(&error)),
        }
    }
}

/// What can be told about the daemon without starting it.
pub async fn observe_daemon(dirs: &StateDirs) -> DaemonFacts {
    let Ok(stream) = connect(dirs).await else {
        let alive = autostart::is_alive(dirs).unwrap_or(false);
        return if alive { DaemonFacts::Silent } else { DaemonFacts::Down };
    };
    let asked = http::json::<DaemonVersion, _, _>(stream, Method::GET, "/v1/version", None::<&()>);
    match tokio::time::timeout(OBSERVE_LIMIT, asked).await {
        Ok(Ok(daemon)) => DaemonFacts::Up {
            is_compatible: DAEMON_PROTOCOL.negotiate(daemon.protocol).is_some(),
            version: daemon.version,
        },
        _ => DaemonFacts::Silent,
    }
}

async fn connect(dirs: &StateDirs) -> io::Result<UnixStream> {
    banger_host::connect::unix(&dirs.runtime, API_SOCKET).await
}

/// Asks the daemon for its version, starting it if it does not run.
///
/// A daemon that is just being stopped or killed may still take a connection that it never
/// answers. The version can be asked for again without harm, so that is no failure yet.
async fn greet(dirs: &StateDirs, locate: autostart::Locate<'_>) -> Result<DaemonVersion, Failure> {
    let mut left = ATTEMPTS;
    loop {
        let stream = autostart::connect_or_start(dirs, locate).await?;
        left -= 1;
        match http::json(stream, Method::GET, "/v1/version", None::<&()>).await {
            Err(error) if left > 0 && is_broken_off(&error) => {}
            answer => return Ok(answer?),
        }
    }
}

/// Whether the other end went away instead of answering.
fn is_broken_off(error: &HttpError) -> bool {
    matches!(error, HttpError::Connection(_) | HttpError::Body(_))
}

/// Whether the daemon and this program understand each other.
fn check(daemon: &DaemonVersion) -> Result<(), Failure> {
    if DAEMON_PROTOCOL.negotiate(daemon.protocol).is_some() {
        return Ok(());
    }
    let title =
        format!("the daemon is release {}, which this banger cannot talk to", daemon.version);
    let cause = format!(
        "it speaks protocol {}, this is release {VERSION} with protocol {DAEMON_PROTOCOL}",
        daemon.protocol
    );
    let problem = Problem::new(ErrorCode::DaemonIncompatible, title).cause(cause);
    Err(problem.hint("banger daemon stop, then try again; running VMs go on").into())
}

/// Whether the daemon keeps its books where this program was told they are.
fn check_data(daemon: &DaemonVersion, dirs: &StateDirs) -> Result<(), Failure> {
    let theirs = Path::new(&daemon.data_dir);
    let identity = |dir: &Path| std::fs::metadata(dir).map(|found| (found.dev(), found.ino())).ok();
    let is_same = || identity(theirs).is_some_and(|there| Some(there) == identity(&dirs.data));
    if daemon.data_dir == dirs.data.to_string_lossy() || is_same() {
        return Ok(());
    }
    let title = format!("the daemon that serves {} has other data", dirs.runtime.display());
    let cause = format!("it keeps {}, wanted was {}", theirs.display(), dirs.data.display());
    let problem = Problem::new(ErrorCode::DaemonUnavailable, title).cause(cause);
    Err(problem
        .hint("set BANGER_RUNTIME_DIR to a directory of these data's own; or banger daemon stop, then try again")
        .into())
}

fn unreachable(error: &io::Error) -> Failure {
    Problem::new(ErrorCode::DaemonUnavailable, "the daemon cannot be reached")
        .because(error)
        .hint(process::limit_hint(error).unwrap_or("banger daemon status"))
        .into()
}

/// The path of a VM's resource; the name is escaped, so that any text is just an unknown name.
pub fn vm_path(vm: &str, rest: &str) -> String {
    format!("/v1/vms/{}{rest}", escape(vm))
}

/// Percent-encodes everything that is not unreserved in a URL.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte));
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    // These two would be taken as steps in the path.
    match escaped.as_str() {
        "" | "." | ".." => "%00".to_owned(),
        _ => escaped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_api::version::ProtocolRange;

    fn daemon(version: &str, min: u32, max: u32) -> DaemonVersion {
        DaemonVersion {
            version: version.to_owned(),
            protocol: ProtocolRange { min, max },
            pid: 7,
            started_at_ms: 0,
            data_dir: "/d".to_owned(),
        }
    }

    #[test]
    fn a_daemon_of_another_protocol_is_reported() {
        check(&daemon("9.9.9", 1, 9)).expect("a common version");
        let failure = check(&daemon("9.9.9", 7, 9)).expect_err("no common version");
        let Failure::Problem(problem) = failure else { panic!("something to tell") };
        assert_eq!(problem.code, ErrorCode::DaemonIncompatible);
        assert!(problem.title.contains("9.9.9"), "{problem}");
        assert!(problem.causes[0].contains("7 to 9"), "{problem}");
        assert!(problem.hint.expect("one").starts_with("banger daemon stop"));
    }

    #[test]
    fn any_text_is_a_name_in_a_path() {
        let cases = [
            ("web", "web"),
            ("../images", "..%2Fimages"),
            ("a b?c", "a%20b%3Fc"),
            ("ü", "%C3%BC"),
            ("localhost:5000/team/app:1", "localhost%3A5000%2Fteam%2Fapp%3A1"),
            ("app@sha256:aa", "app%40sha256%3Aaa"),
            (".", "%00"),
            ("", "%00"),
        ];
        for (text, want) in cases {
            assert_eq!(escape(text), want);
        }
        assert_eq!(vm_path("web", "/start"), "/v1/vms/web/start");
    }
}
