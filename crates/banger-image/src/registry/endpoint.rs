//! A repository in one registry, as it is spoken to: logins, redirects, retries.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use banger_host::random;
use http::header::{ACCEPT, AUTHORIZATION, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};

use super::auth::Auth;
use super::error::{RegistryError, Remedy, printable};
use super::failure::{Failure, is_worth_another_try, retry_after, words_of};
use super::location::{follow, is_loopback, is_same_origin};
use super::payload::Content;
use super::retry::{Attempts, Patience};
use super::transport::{Answer, Transport, TransportError, TransportFailure};

/// How often an answer may send us on.
const MAX_REDIRECTS: usize = 5;
/// Largest complaint that is read, in bytes.
const MAX_COMPLAINT: u64 = 64 * 1024;

/// A repository in one registry.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// The registry as references name it.
    pub(super) registry: String,
    /// Where it is: host and port.
    pub(super) authority: String,
    /// The repository as it is called there.
    pub(super) path: String,
    pub(super) auth: Auth,
    pub(super) transport: Transport,
    pub(super) patience: Patience,
    pub(super) scheme: Scheme,
}

/// Whether a registry is spoken to with TLS.
#[derive(Debug)]
pub(super) struct Scheme {
    is_plain: AtomicBool,
    /// Whether the registry has answered, so that nothing about it is guessed any more.
    is_settled: AtomicBool,
}

/// A request.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) target: Target,
    pub(super) headers: HeaderMap,
    pub(super) content: Content,
    /// What it is about, for people: `team/app:1`.
    pub(super) what: String,
    /// Statuses that are failures to others and an answer to this one.
    pub(super) tolerated: &'static [StatusCode],
    /// Counts what was sent of the content, over all attempts.
    pub(super) sent: Arc<AtomicU64>,
}

/// Where a request goes.
#[derive(Debug, Clone)]
pub(super) enum Target {
    /// Below the repository: `manifests/latest`.
    Path(String),
    /// Where the registry said.
    Uri(Uri),
}

impl Scheme {
    pub(super) fn new(is_plain: bool) -> Self {
        Self { is_plain: AtomicBool::new(is_plain), is_settled: AtomicBool::new(is_plain) }
    }

    fn name(&self) -> &'static str {
        if self.is_plain() { "http" } else { "https" }
    }

    fn settle(&self) {
        self.is_settled.store(true, Ordering::Relaxed);
    }

    fn is_plain(&self) -> bool {
        self.is_plain.load(Ordering::Relaxed)
    }

    /// Speak without TLS from now on, unless TLS has worked before. Says whether it is so now.
    fn give_up_tls(&self) -> bool {
        if !self.is_settled.load(Ordering::Relaxed) {
            self.is_plain.store(true, Ordering::Relaxed);
        }
        self.is_plain()
    }
}

impl Ask {
    pub(super) fn new(method: Method, path: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            method,
            target: Target::Path(path.into()),
            headers: HeaderMap::new(),
            content: Content::Nothing,
            what: what.into(),
            tolerated: &[],
            sent: Arc::default(),
        }
    }

    pub(super) fn accept(self, types: &[&str]) -> Self {
        let value = HeaderValue::from_str(&types.join(", ")).expect("media types are text");
        self.header(ACCEPT, value)
    }

    pub(super) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    pub(super) fn tolerate(mut self, statuses: &'static [StatusCode]) -> Self {
        self.tolerated = statuses;
        self
    }

    pub(super) fn content(mut self, content: Content) -> Self {
        self.content = content;
        self
    }

    fn request(
        &self,
        uri: &Uri,
        authorization: Option<&HeaderValue>,
    ) -> Result<Request<super::payload::Payload>, RegistryError> {
        let payload = self.content.open(&self.sent).map_err(|source| match &self.content {
            Content::File(path, _) => crate::error::LibraryError::io("read", path)(source).into(),
            _ => RegistryError::Cancelled,
        })?;
        let mut request = Request::new(payload);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = self.headers.clone();
        if let Some(authorization) = authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        Ok(request)
    }
}

impl Endpoint {
    /// Ask, and ask again if it is worth it.
    pub(super) async fn ask(&self, ask: &Ask) -> Result<Answer, RegistryError> {
        let mut attempts = Attempts::new(self.patience);
        self.ask_within(ask, &mut attempts).await
    }

    /// As [`Endpoint::ask`], as one of the attempts at something larger.
    pub(super) async fn ask_within(
        &self,
        ask: &Ask,
        attempts: &mut Attempts,
    ) -> Result<Answer, RegistryError> {
        loop {
            match self.ask_once(ask).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => self.wait_after(failure, attempts).await?,
            }
        }
    }

    /// Ask for something small, and read all of it.
    pub(super) async fn ask_for_bytes(
        &self,
        ask: &Ask,
        limit: u64,
    ) -> Result<(Vec<u8>, HeaderMap), RegistryError> {
        let mut attempts = Attempts::new(self.patience);
        loop {
            let answer = self.ask_within(ask, &mut attempts).await?;
            let headers = answer.headers.clone();
            match answer.bytes(limit).await {
                Ok(bytes) => return Ok((bytes, headers)),
                Err(error) => {
                    let failure = self.judge_transport(error, ask);
                    self.wait_after(failure, &mut attempts).await?;
                }
            }
        }
    }

    /// Wait for the next attempt, or fail if there is none.
    pub(super) async fn wait_after(
        &self,
        failure: Failure,
        attempts: &mut Attempts,
    ) -> Result<(), RegistryError> {
        let (error, wanted) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Again(error, wanted) => (error, wanted),
        };
        let [chance] = random::bytes();
        let Some(wait) = attempts.failed(wanted, chance) else { return Err(error) };
        tracing::info!(registry = self.registry, ?wait, %error, "trying again");
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// Ask, with logins and redirects, but not again.
    pub(super) async fn ask_once(&self, ask: &Ask) -> Result<Answer, Failure> {
        let mut was_challenged = false;
        loop {
            let shown = self.auth.header(&self.transport).await?;
            let was_plain = self.scheme.is_plain();
            let (answer, is_ours) = match self.follow(ask, shown.as_ref()).await {
                Ok(answered) => answered,
                Err(Broken::Transport(error)) if !was_plain && self.speaks_no_tls(&error) => {
                    continue;
                }
                Err(Broken::Transport(error)) => return Err(self.judge_transport(error, ask)),
                Err(Broken::Here(error)) => return Err(error.into()),
            };
            self.scheme.settle();
            let is_refused = answer.status == StatusCode::UNAUTHORIZED;
            if is_refused && is_ours && !was_challenged {
                was_challenged = true;
                self.auth.challenged(&self.transport, answer, shown.as_ref()).await?;
                continue;
            }
            return self.judge(ask, answer, is_ours).await;
        }
    }

    /// Whether it was our mistake to expect TLS: on this machine a registry need not have it.
    fn speaks_no_tls(&self, error: &TransportError) -> bool {
        let is_sign = matches!(error.kind, TransportFailure::NotTls | TransportFailure::HungUp);
        is_sign && is_loopback(&self.authority) && self.scheme.give_up_tls()
    }

    /// Send a request, and go where the answers send us. Says whether the last answer is the
    /// registry's own. Whatever lets us in is shown to the registry only, and not any more once we
    /// have left it.
    async fn follow(
        &self,
        ask: &Ask,
        shown: Option<&HeaderValue>,
    ) -> Result<(Answer, bool), Broken> {
        let base = self.uri("")?;
        let mut uri = match &ask.target {
            Target::Path(path) => self.uri(path)?,
            Target::Uri(uri) => uri.clone(),
        };
        let mut is_ours = true;
        for _ in 0..=MAX_REDIRECTS {
            is_ours = is_ours && is_same_origin(&base, &uri);
            let request = ask.request(&uri, shown.filter(|_| is_ours)).map_err(Broken::Here)?;
            let answer = self.transport.send(request).await.map_err(Broken::Transport)?;
            let is_reading = ask.method == Method::GET || ask.method == Method::HEAD;
            let location = answer.header(LOCATION).filter(|_| answer.status.is_redirection());
            match location.filter(|_| is_reading) {
                Some(location) => {
                    let sent_on = follow(&uri, location).map_err(|reason| {
                        // What stands behind the question mark may open doors.
                        let to = printable(location.split('?').next().unwrap_or_default());
                        Broken::Here(self.unavailable(format!("it sends us to {to}: {reason}")))
                    });
                    uri = sent_on?;
                }
                None => return Ok((answer, is_ours)),
            }
        }
        Err(Broken::Here(self.unavailable("it sends us from address to address".to_owned())))
    }

    fn uri(&self, path: &str) -> Result<Uri, Broken> {
        let (scheme, authority) = (self.scheme.name(), &self.authority);
        let uri = format!("{scheme}://{authority}/v2/{}/{path}", self.path).parse();
        uri.map_err(|_| Broken::Here(self.unavailable("that is no address".to_owned())))
    }

    /// What an answer means.
    async fn judge(&self, ask: &Ask, answer: Answer, is_ours: bool) -> Result<Answer, Failure> {
        let status = answer.status;
        if status.is_success() || ask.tolerated.contains(&status) {
            return Ok(answer);
        }
        let wait = retry_after(&answer);
        if !is_ours {
            // Registries keep blobs elsewhere and send us there with an address that is good for a
            // while: the next one may be better.
            let reason = format!("where it keeps {} is answered {status}", ask.what);
            return Err(Failure::Again(self.unavailable(reason), wait));
        }
        let anonymous = self.auth.is_anonymous().await;
        if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
            return Err(self.auth.denied(anonymous, answer).await.into());
        }
        let said = words_of(&answer.complaint(MAX_COMPLAINT).await);
        if status == StatusCode::NOT_FOUND {
            let (registry, what) = (self.registry.clone(), ask.what.clone());
            return Err(RegistryError::NotFound { registry, what, said }.into());
        }
        let said = said.map(|said| format!(" ({said})")).unwrap_or_default();
        let reason = format!("for {} it answers {status}{said}", ask.what);
        let limited = status == StatusCode::TOO_MANY_REQUESTS && anonymous;
        let remedy = if limited { Remedy::Login } else { Remedy::None };
        let error = RegistryError::Unavailable { registry: self.registry.clone(), reason, remedy };
        if is_worth_another_try(status) {
            Err(Failure::Again(error, wait))
        } else {
            Err(Failure::Final(error))
        }
    }

    /// What a failure on the way means.
    pub(super) fn judge_transport(&self, error: TransportError, ask: &Ask) -> Failure {
        let TransportError { kind, reason } = error;
        if kind == TransportFailure::TooLarge {
            return Failure::Final(RegistryError::Invalid { what: ask.what.clone(), reason });
        }
        let is_known = self.scheme.is_settled.load(Ordering::Relaxed);
        let remedy = match kind {
            TransportFailure::NotTls | TransportFailure::HungUp => Remedy::PlainHttp,
            TransportFailure::Certificate => Remedy::Authority,
            TransportFailure::Absent => Remedy::Name,
            TransportFailure::Broken | TransportFailure::TooLarge => Remedy::None,
        };
        let error = RegistryError::Unavailable { registry: self.registry.clone(), reason, remedy };
        match kind {
            TransportFailure::NotTls | TransportFailure::Certificate => Failure::Final(error),
            // Nobody waits for an answer of a registry whose name is misspelt.
            TransportFailure::Absent if !is_known => Failure::Final(error),
            _ => Failure::Again(error, None),
        }
    }

    fn unavailable(&self, reason: String) -> RegistryError {
        RegistryError::Unavailable { registry: self.registry.clone(), reason, remedy: Remedy::None }
    }
}

/// Why there is no answer.
enum Broken {
    Transport(TransportError),
    Here(RegistryError),
}
