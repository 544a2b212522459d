//! Making a guest this VM.

use std::time::Duration;

use banger_api::agent::{
    AwaitSystem, COPY_FEATURE, Configure, Configured, Drive, GuestNetwork, Hello, MAX_BODY,
    PARK_FEATURE, Park, SYSTEM_INIT_FEATURE, SetClock, SystemState, SystemStatus,
    WORK_DISK_FEATURE,
};
use banger_api::shim::{Begin, LaunchSpec, Was};
use banger_api::version::AGENT_PROTOCOL;
use banger_api::vm::InitMode;
use banger_host::http::{self, HttpError};
use banger_host::logs::printable_line;
use banger_host::{clock, network, random};
use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::dns;
use crate::exec;
use crate::failure::LaunchError;
use crate::guest::Guest;

/// How long the agent may take to answer a question that needs no work.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the guest may take to become this VM.
const CONFIGURE_TIMEOUT: Duration = Duration::from_secs(60);
/// Most warnings of a guest that are shown.
const MAX_WARNINGS: usize = 16;
/// Longest warning of a guest, in characters.
const MAX_WARNING_CHARS: usize = 500;
/// Random bytes that a guest starts with.
const ENTROPY_BYTES: usize = 64;

/// Asks the agent who it is, unless it is a template's, and tells it who this VM is. What it warns of comes
/// back.
pub(crate) async fn configure(
    guest: &Guest,
    spec: &LaunchSpec,
) -> Result<Vec<String>, LaunchError> {
    // Whoever had it saved has asked it; another agent is another template.
    if !matches!(spec.begin, Begin::Restore { was: Was::Nobody, .. }) {
        check(&greet(guest).await?, spec)?;
    }
    let body = configuration(spec);
    let configured: Configured =
        ask(guest, Method::POST, "/v1/configure", Some(&body), CONFIGURE_TIMEOUT)
            .await
            .map_err(refused)?;
    Ok(configured.warnings.iter().take(MAX_WARNINGS).map(|warning| plain(warning)).collect())
}

/// Whether an agent can make its guest this VM.
fn check(hello: &Hello, spec: &LaunchSpec) -> Result<(), LaunchError> {
    let knows_system_init = hello.features.iter().any(|name| name == SYSTEM_INIT_FEATURE);
    if spec.init == InitMode::System && !knows_system_init {
        return Err(LaunchError::NoSystemInit { version: plain(&hello.version) });
    }
    if was_somebody(spec) && !hello.features.iter().any(|name| name == COPY_FEATURE) {
        return Err(LaunchError::NoCopy { version: plain(&hello.version) });
    }
    let knows_work_disk = hello.features.iter().any(|name| name == WORK_DISK_FEATURE);
    if spec.work_disk_bytes.is_some() && !knows_work_disk {
        return Err(LaunchError::NoWorkDisk { version: plain(&hello.version) });
    }
    Ok(())
}

/// Asks the agent who it is.
async fn greet(guest: &Guest) -> Result<Hello, LaunchError> {
    let hello: Hello = ask(guest, Method::GET, "/v1/hello", None::<&()>, ANSWER_TIMEOUT)
        .await
        .map_err(LaunchError::Configure)?;
    if AGENT_PROTOCOL.negotiate(hello.protocol).is_none() {
        return Err(LaunchError::Protocol {
            theirs: hello.protocol.to_string(),
            ours: AGENT_PROTOCOL.to_string(),
        });
    }
    Ok(hello)
}

fn refused(error: HttpError) -> LaunchError {
    match error {
        HttpError::Problem(problem) => LaunchError::Refused(exec::plain(problem)),
        other => LaunchError::Configure(other),
    }
}

/// Waits until the image's own init has started everything, for at most `limit`. False if it still
/// starts things then.
pub(crate) async fn await_system(guest: &Guest, limit: Duration) -> Result<bool, LaunchError> {
    let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    let body = AwaitSystem { limit_ms };
    let patience = limit.saturating_add(ANSWER_TIMEOUT);
    let status: SystemStatus = ask(guest, Method::POST, "/v1/await-system", Some(&body), patience)
        .await
        .map_err(LaunchError::Configure)?;
    Ok(status.state != SystemState::Starting)
}

/// A guest's text without what could command a terminal, and not too long.
fn plain(text: &str) -> String {
    printable_line(text, MAX_WARNING_CHARS)
}

fn configuration(spec: &LaunchSpec) -> Configure {
    Configure {
        entropy_hex: random::hex::<ENTROPY_BYTES>(),
        time_unix_ns: clock::now_ns(),
        machine_id: spec.machine_id.clone(),
        hostname: spec.name.clone(),
        network: Some(GuestNetwork { search: dns::search_domains(), ..guest_network() }),
        env: spec.env.clone(),
        user: spec.user.clone(),
        workdir: spec.workdir.clone(),
        ca_certificates: spec.ca_certificates.clone(),
        drives: drives(spec),
        copy: was_somebody(spec),
    }
}

/// Whether the guest was a VM before: another one, or this one at another time.
fn was_somebody(spec: &LaunchSpec) -> bool {
    matches!(spec.begin, Begin::Restore { was, .. } if was.is_somebody())
}

/// The network of a guest as every VM has it.
fn guest_network() -> GuestNetwork {
    GuestNetwork {
        address: network::GUEST,
        prefix: network::PREFIX,
        gateway: network::GATEWAY,
        dns: vec![network::GATEWAY],
        search: Vec::new(),
        mtu: network::MTU,
    }
}

/// What the disks beyond the root disk are for, in the order in which every VMM has them.
pub(crate) fn drives(spec: &LaunchSpec) -> Vec<Drive> {
    let release = spec.kernel_release.clone();
    let work =
        spec.work_disk_bytes.map_or(Drive::Unused, |bytes| Drive::Work { bytes: Some(bytes) });
    let modules = spec.modules_image.as_ref().map_or(Drive::Unused, |_| Drive::Modules { release });
    vec![work, modules]
}

/// Has the guest get ready to be saved, without an identity.
pub(crate) async fn park(guest: &Guest, spec: &LaunchSpec) -> Result<(), LaunchError> {
    let hello = greet(guest).await?;
    if !hello.features.iter().any(|name| name == PARK_FEATURE) {
        return Err(LaunchError::NoPark { version: plain(&hello.version) });
    }
    let body = Park { drives: drives(spec), network: Some(guest_network()) };
    tell(guest, "/v1/park", &body, CONFIGURE_TIMEOUT).await.map_err(refused)
}

/// Sets the guest's clock to the host's.
pub(crate) async fn set_clock(guest: &Guest) -> Result<(), HttpError> {
    let now = SetClock { time_unix_ns: clock::now_ns() };
    tell(guest, "/v1/clock", &now, ANSWER_TIMEOUT).await
}

/// Posts something that has no answer but success.
pub(crate) async fn tell(
    guest: &Guest,
    path: &str,
    body: &impl Serialize,
    limit: Duration,
) -> Result<(), HttpError> {
    ask::<Option<()>>(guest, Method::POST, path, Some(body), limit).await.map(drop)
}

async fn ask<T: DeserializeOwned>(
    guest: &Guest,
    method: Method,
    path: &str,
    body: Option<&(impl Serialize + ?Sized)>,
    limit: Duration,
) -> Result<T, HttpError> {
    let late = || HttpError::Body(format!("the guest took longer than {} s", limit.as_secs()));
    let asked = async {
        let stream =
            guest.open_for_control().await.map_err(|gone| HttpError::Body(gone.to_string()))?;
        let answer = http::request(stream, method, path, body).await?;
        http::read_json(answer, MAX_BODY).await
    };
    tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| Err(late()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use banger_api::ErrorCode;

    const OLD_AGENT: (&str, u16, &str) = (
        "/v1/hello",
        200,
        r#"{"protocol":{"min":1,"max":1},"version":"0.0.9","kernel_release":"6.1","configured":false}"#,
    );
    const AGENT: (&str, u16, &str) = (
        "/v1/hello",
        200,
        r#"{"protocol":{"min":1,"max":1},"version":"0.1.0","features":["system-init"],"kernel_release":"6.1","configured":false}"#,
    );

    #[tokio::test]
    async fn an_older_agent_is_enough_as_long_as_it_stays_the_first_process() {
        let guest = testing::guest(&[OLD_AGENT, ("/v1/configure", 200, "{}")]).await;
        let warnings = configure(&guest, &testing::launch_spec("agent", "")).await;
        assert!(warnings.expect("configured").is_empty());
        let refused = configure(&guest, &testing::launch_spec("system", "")).await;
        let problem = refused.expect_err("refused").problem("box");
        assert_eq!(problem.code, ErrorCode::GuestProtocol);
        assert_eq!(problem.hint.as_deref(), Some("use --init agent"));
        assert_eq!(problem.causes, ["the guest's agent 0.0.9 cannot start the image's own init"]);
    }

    #[tokio::test]
    async fn a_work_disk_needs_an_agent_that_knows_it() {
        let spec = LaunchSpec { work_disk_bytes: Some(1), ..testing::launch_spec("agent", "") };
        assert_eq!(drives(&spec), [Drive::Work { bytes: Some(1) }, Drive::Unused]);
        let guest = testing::guest(&[AGENT]).await;
        let problem = configure(&guest, &spec).await.expect_err("refused").problem("box");
        assert_eq!(problem.code, ErrorCode::GuestProtocol);
        assert_eq!(problem.causes, ["the guest's agent 0.1.0 knows no work disks"]);
    }

    #[test]
    fn the_work_disk_comes_before_the_modules() {
        let spec = LaunchSpec {
            work_disk_bytes: Some(1),
            modules_image: Some("/m".to_owned()),
            ..testing::launch_spec("agent", "")
        };
        let modules = Drive::Modules { release: "6.1".to_owned() };
        assert_eq!(drives(&spec), [Drive::Work { bytes: Some(1) }, modules.clone()]);
        let without = LaunchSpec { work_disk_bytes: None, ..spec };
        assert_eq!(drives(&without), [Drive::Unused, modules]);
    }

    #[tokio::test]
    async fn an_agents_reason_is_told_once_and_without_what_commands_terminals() {
        const REFUSAL: &str = r#"{"code":"boot_failed","title":"the guest could not be configured","causes":["the image has no\u001b[2J /sbin/init"],"hint":"use --init agent"}"#;
        let guest = testing::guest(&[AGENT, ("/v1/configure", 500, REFUSAL)]).await;
        let refused = configure(&guest, &testing::launch_spec("system", "")).await;
        let problem = refused.expect_err("refused").problem("box");
        assert_eq!(problem.code, ErrorCode::BootFailed);
        assert_eq!(problem.title, "VM box did not start");
        assert_eq!(problem.causes.len(), 1, "{problem}");
        assert!(
            problem.causes[0].starts_with("the guest could not be configured: the image has no")
        );
        assert!(!problem.causes[0].contains('\u{1b}'), "{problem}");
        assert_eq!(problem.hint.as_deref(), Some("use --init agent"));
    }

    #[tokio::test]
    async fn an_init_that_tells_nothing_is_not_waited_for() {
        for (answer, up) in [("up", true), ("silent", true), ("none", true), ("starting", false)] {
            let body: &'static str = format!("{{\"state\":\"{answer}\"}}").leak();
            let answers: &'static [_] = vec![("/v1/await-system", 200, body)].leak();
            let guest = testing::guest(answers).await;
            let told = await_system(&guest, Duration::from_secs(5)).await.expect("an answer");
            assert_eq!(told, up, "{answer}");
        }
    }
}
