//! Being let in: what a registry is shown with each request.
//!
//! Nothing is looked up or shown before the registry asks for it: most images need no login, and a
//! credential helper may ask its user.

use std::time::{Duration, Instant};

use banger_host::command::Cancel;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::authfile::{Credential, Secret};
use super::challenge::{self, Challenge};
use super::credentials::Credentials;
use super::error::{RegistryError, Remedy, printable};
use super::failure::{Failure, is_worth_another_try, retry_after};
use super::location::{escaped, is_loopback};
use super::payload::Content;
use super::transport::{Answer, Transport};

/// Largest answer of a token service, in bytes.
const MAX_TOKEN: u64 = 1 << 20;
/// Largest complaint that is read, in bytes.
const MAX_COMPLAINT: u64 = 64 * 1024;
/// How long a token is good that does not say so itself; from the specification.
const DEFAULT_LIFE: u64 = 60;
/// A token is renewed that long before its end.
const MARGIN: Duration = Duration::from_secs(5);

/// What somebody wants to do with a repository, and in whose name.
#[derive(Debug)]
pub(super) struct Auth {
    /// The registry as references name it.
    registry: String,
    repository: String,
    /// The repository as the registry knows it; a mirror may have it below a prefix.
    path: String,
    /// `pull` or `pull,push`.
    actions: &'static str,
    credentials: Credentials,
    cancel: Cancel,
    state: Mutex<State>,
}

/// What an [`Auth`] is for.
#[derive(Debug, Clone)]
pub(super) struct Errand {
    /// The registry as references name it.
    pub(super) registry: String,
    /// The repository.
    pub(super) repository: String,
    /// The repository as the registry knows it.
    pub(super) path: String,
    /// `pull` or `pull,push`.
    pub(super) actions: &'static str,
}

#[derive(Debug, Default)]
struct State {
    /// Looked up once, when the registry first asks.
    credential: Option<Option<Credential>>,
    pass: Option<Pass>,
}

/// What the registry is shown.
#[derive(Debug, Clone)]
struct Pass {
    header: HeaderValue,
    challenge: Challenge,
    good_until: Option<Instant>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Auth {
    pub(super) fn new(errand: Errand, credentials: Credentials, cancel: Cancel) -> Self {
        let Errand { registry, repository, path, actions } = errand;
        let state = Mutex::default();
        Self { registry, repository, path, actions, credentials, cancel, state }
    }

    /// What to show now; None as long as the registry has not asked for anything.
    pub(super) async fn header(
        &self,
        transport: &Transport,
    ) -> Result<Option<HeaderValue>, Failure> {
        let mut state = self.state.lock().await;
        let Some(pass) = state.pass.clone() else { return Ok(None) };
        let is_over = pass.good_until.is_some_and(|until| until <= Instant::now());
        if !is_over {
            return Ok(Some(pass.header));
        }
        let credential = state.credential.clone().flatten();
        let fresh = self.obtain(transport, pass.challenge, credential).await?;
        let header = fresh.header.clone();
        state.pass = Some(fresh);
        Ok(Some(header))
    }

    /// The registry refused what it was shown: get what it asks for. `uri` is where it refused.
    pub(super) async fn challenged(
        &self,
        transport: &Transport,
        refused: Answer,
        shown: Option<&HeaderValue>,
    ) -> Result<(), Failure> {
        let mut state = self.state.lock().await;
        if let Some(pass) = &state.pass
            && shown != Some(&pass.header)
        {
            // Another request was faster.
            return Ok(());
        }
        let challenge = self.challenge_of(&refused.headers);
        let is_plain = refused.uri.scheme_str() == Some("http");
        let anonymous = matches!(state.credential, None | Some(None));
        let Some(challenge) = challenge else {
            return Err(self.denied(anonymous, refused).await.into());
        };
        if let Challenge::Bearer { realm, .. } = &challenge {
            self.check_realm(realm, is_plain)?;
        }
        let credential = match &state.credential {
            Some(credential) => credential.clone(),
            None => state.credential.insert(self.look_up().await?).clone(),
        };
        // A password that was refused will be refused again; and a token is no password.
        let has_password =
            matches!(credential, Some(Credential::Password { .. } | Credential::Registry(_)));
        if challenge == Challenge::Basic && (shown.is_some() || !has_password) {
            return Err(self.denied(credential.is_none(), refused).await.into());
        }
        state.pass = Some(self.obtain(transport, challenge, credential).await?);
        Ok(())
    }

    /// Whether somebody is named who might be allowed more than anybody.
    pub(super) async fn is_anonymous(&self) -> bool {
        matches!(self.state.lock().await.credential, None | Some(None))
    }

    fn challenge_of(&self, headers: &HeaderMap) -> Option<Challenge> {
        let values = headers.get_all(WWW_AUTHENTICATE);
        challenge::best(values.iter().filter_map(|value| value.to_str().ok()))
    }

    async fn look_up(&self) -> Result<Option<Credential>, Failure> {
        let (credentials, cancel) = (self.credentials.clone(), self.cancel.clone());
        let (registry, repository) = (self.registry.clone(), self.repository.clone());
        let search = move || credentials.find(&registry, &repository, &cancel);
        match tokio::task::spawn_blocking(search).await {
            Ok(found) => found.map_err(Failure::Final),
            // Only a panic, or the end of the runtime.
            Err(_) => Err(Failure::Final(RegistryError::Cancelled)),
        }
    }

    /// A password must not go over the net in the clear because a registry says so.
    fn check_realm(&self, realm: &str, is_plain: bool) -> Result<(), Failure> {
        let uri: Option<Uri> = realm.parse().ok();
        let authority = uri.as_ref().and_then(|uri| uri.authority());
        let scheme = uri.as_ref().and_then(|uri| uri.scheme_str());
        let is_fine = match (scheme, authority) {
            (Some("https"), Some(_)) => true,
            (Some("http"), Some(authority)) => is_plain || is_loopback(authority.as_str()),
            _ => false,
        };
        let has_password = authority.is_some_and(|authority| authority.as_str().contains('@'));
        if is_fine && !has_password {
            return Ok(());
        }
        let realm = printable(realm);
        Err(self.unavailable(format!("it names a token service that is not safe: {realm}")).into())
    }

    /// Get what answers a challenge.
    async fn obtain(
        &self,
        transport: &Transport,
        challenge: Challenge,
        credential: Option<Credential>,
    ) -> Result<Pass, Failure> {
        let (text, good_until) = match (&challenge, &credential) {
            (_, Some(Credential::Registry(token))) => (bearer(token.reveal()), None),
            (Challenge::Basic, Some(Credential::Password { user, password })) => {
                (basic(user, password), None)
            }
            (Challenge::Basic, _) => {
                return Err(self.unavailable("it wants a password".to_owned()).into());
            }
            (Challenge::Bearer { realm, service }, _) => {
                let since = Instant::now();
                let request = self.token_request(realm, service.as_deref(), credential.as_ref())?;
                let (token, life) =
                    self.ask_for_token(transport, request, credential.is_none()).await?;
                let life = Duration::from_secs(life).saturating_sub(MARGIN);
                (bearer(&token), Some(since + life))
            }
        };
        let mut header = HeaderValue::from_str(&text)
            .map_err(|_| self.unavailable("its token is none".to_owned()))?;
        header.set_sensitive(true);
        Ok(Pass { header, challenge, good_until })
    }

    fn token_request(
        &self,
        realm: &str,
        service: Option<&str>,
        credential: Option<&Credential>,
    ) -> Result<Request<super::payload::Payload>, Failure> {
        let scope = format!("repository:{}:{}", self.path, self.actions);
        let mut parameters = vec![("scope", scope)];
        parameters.extend(service.map(|service| ("service", service.to_owned())));
        let builder = Request::builder().header(ACCEPT, "application/json");
        let (builder, content) = match credential {
            Some(Credential::Identity(token)) => {
                parameters.push(("grant_type", "refresh_token".to_owned()));
                parameters.push(("client_id", "banger".to_owned()));
                parameters.push(("refresh_token", token.reveal().to_owned()));
                let form = "application/x-www-form-urlencoded";
                let builder = builder.method(Method::POST).uri(realm).header(CONTENT_TYPE, form);
                (builder, Content::Bytes(Bytes::from(encode(&parameters))))
            }
            other => {
                let mut builder = builder.method(Method::GET);
                if let Some(Credential::Password { user, password }) = other {
                    parameters.push(("account", user.clone()));
                    builder = builder.header(AUTHORIZATION, basic(user, password));
                }
                let separator = if realm.contains('?') { '&' } else { '?' };
                let uri = format!("{realm}{separator}{}", encode(&parameters));
                (builder.uri(uri), Content::Nothing)
            }
        };
        let payload = content.open(&std::sync::Arc::default());
        let wrong = || self.unavailable("its token service has no usable address".to_owned());
        let payload = payload.map_err(|_| wrong())?;
        builder.body(payload).map_err(|_| wrong().into())
    }

    /// A token, and for how many seconds it is good.
    async fn ask_for_token(
        &self,
        transport: &Transport,
        request: Request<super::payload::Payload>,
        anonymous: bool,
    ) -> Result<(String, u64), Failure> {
        let again = |reason: String| self.unavailable(format!("its token service: {reason}"));
        let answer = match transport.send(request).await {
            Ok(answer) => answer,
            Err(error) => return Err(Failure::Again(again(error.reason), None)),
        };
        let status = answer.status;
        if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
            return Err(self.denied(anonymous, answer).await.into());
        }
        if is_worth_another_try(status) {
            let wait = retry_after(&answer);
            return Err(Failure::Again(again(format!("it answers {status}")), wait));
        }
        if !status.is_success() {
            return Err(again(format!("it answers {status}")).into());
        }
        let bytes = match answer.bytes(MAX_TOKEN).await {
            Ok(bytes) => bytes,
            Err(error) => return Err(Failure::Again(again(error.reason), None)),
        };
        let token: Option<TokenAnswer> = serde_json::from_slice(&bytes).ok();
        let token = token.and_then(|answer| {
            let text = answer.token.or(answer.access_token).filter(|text| !text.is_empty())?;
            Some((text, answer.expires_in.unwrap_or(DEFAULT_LIFE)))
        });
        token.ok_or_else(|| again("its answer has no token".to_owned()).into())
    }

    /// An error that says who refused what.
    pub(super) async fn denied(&self, anonymous: bool, answer: Answer) -> RegistryError {
        let said = super::failure::words_of(&answer.complaint(MAX_COMPLAINT).await);
        let (registry, what) = (self.registry.clone(), self.repository.clone());
        RegistryError::Denied { registry, what, anonymous, said }
    }

    fn unavailable(&self, reason: String) -> RegistryError {
        RegistryError::Unavailable { registry: self.registry.clone(), reason, remedy: Remedy::None }
    }
}

fn basic(user: &str, password: &Secret) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{}", password.reveal())))
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

fn encode(parameters: &[(&str, String)]) -> String {
    let pairs = parameters.iter().map(|(name, value)| format!("{name}={}", escaped(value)));
    pairs.collect::<Vec<_>>().join("&")
}
