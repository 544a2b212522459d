//! Connections: plain or with TLS, straight or through a proxy.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use super::location::is_loopback;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Makes connections.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    tcp: HttpConnector,
    tls: Arc<LazyTls>,
    proxies: Arc<Matcher>,
}

/// The settings of TLS, made when they are needed first: reading the host's authorities takes a
/// while, and a registry on this machine may need none.
struct LazyTls {
    authorities: Vec<CertificateDer<'static>>,
    made: OnceLock<Result<TlsConnector, String>>,
}

/// A connection.
pub(super) enum Link {
    /// Without TLS; whether to a proxy that wants whole addresses.
    Plain(TokioIo<TcpStream>, bool),
    /// With TLS to the server itself.
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

/// The server did not speak TLS, or not so that we could trust it.
#[derive(Debug, thiserror::Error)]
#[error("TLS failed")]
pub(super) struct TlsError(#[source] pub(super) io::Error);

impl Connector {
    /// Connections with these proxies, as the environment names them, and trust in these
    /// authorities beside the host's.
    pub(super) fn new(
        proxies: &BTreeMap<String, String>,
        authorities: Vec<CertificateDer<'static>>,
        connect: Duration,
    ) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(connect));
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(Duration::from_secs(30)));
        let tls = Arc::new(LazyTls { authorities, made: OnceLock::new() });
        Self { tcp, tls, proxies: Arc::new(matcher(proxies)) }
    }

    /// The proxy for an address. This machine is never reached through one.
    fn proxy_for(&self, uri: &Uri) -> Option<Intercept> {
        let host = uri.host().unwrap_or_default();
        if is_loopback(host) { None } else { self.proxies.intercept(uri) }
    }

    /// What a request must carry for its proxy: only where the proxy sees it.
    pub(super) fn proxy_authorization(&self, uri: &Uri) -> Option<http::HeaderValue> {
        if uri.scheme_str() != Some("http") {
            return None;
        }
        let proxy = self.proxy_for(uri).filter(|proxy| !is_socks(proxy))?;
        proxy.basic_auth().cloned()
    }

    async fn connect(mut self, uri: Uri) -> Result<Link, BoxError> {
        let is_tls = uri.scheme_str() == Some("https");
        let mut is_proxied = false;
        let tcp = match self.proxy_for(&uri) {
            None => self.tcp.call(uri.clone()).await?,
            Some(proxy) => {
                let through = connect_through(self.tcp.clone(), &proxy, &uri, is_tls).await;
                is_proxied = !is_tls && !is_socks(&proxy);
                through.map_err(|error| format!("through the proxy {}: {error}", shown(&proxy)))?
            }
        };
        if !is_tls {
            return Ok(Link::Plain(tcp, is_proxied));
        }
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host)?;
        let tls = self.tls.get()?.connect(name, tcp.into_inner()).await.map_err(TlsError)?;
        Ok(Link::Tls(Box::new(TokioIo::new(tls))))
    }
}

async fn connect_through(
    mut tcp: HttpConnector,
    proxy: &Intercept,
    target: &Uri,
    is_tls: bool,
) -> Result<TokioIo<TcpStream>, BoxError> {
    let address = proxy.uri().clone();
    match address.scheme_str() {
        Some("http") if !is_tls => Ok(tcp.call(address).await?),
        Some("http") => {
            let mut tunnel = Tunnel::new(address, tcp);
            if let Some(authorization) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(authorization.clone());
            }
            Ok(tunnel.call(target.clone()).await?)
        }
        Some("socks5" | "socks5h") => {
            let mut socks = SocksV5::new(address, tcp);
            if let Some((user, password)) = proxy.raw_auth() {
                socks = socks.with_auth(user.to_owned(), password.to_owned());
            }
            Ok(socks.call(target.clone()).await?)
        }
        other => {
            Err(format!("proxies of the kind {} are not supported", other.unwrap_or("?")).into())
        }
    }
}

fn is_socks(proxy: &Intercept) -> bool {
    proxy.uri().scheme_str().is_some_and(|scheme| scheme.starts_with("socks"))
}

/// The proxy without its password.
fn shown(proxy: &Intercept) -> String {
    proxy.uri().authority().map(ToString::to_string).unwrap_or_default()
}

/// What the usual variables say; of both spellings the lower-case one counts.
fn matcher(proxies: &BTreeMap<String, String>) -> Matcher {
    let value = |name: &str| {
        let found = proxies.get(name).or_else(|| proxies.get(&name.to_uppercase()));
        found.cloned().unwrap_or_default()
    };
    Matcher::builder()
        .all(value("all_proxy"))
        .http(value("http_proxy"))
        .https(value("https_proxy"))
        .no(value("no_proxy"))
        .build()
}

impl LazyTls {
    fn get(&self) -> Result<&TlsConnector, String> {
        let make = || self.make();
        self.made.get_or_init(make).as_ref().map_err(Clone::clone)
    }

    fn make(&self) -> Result<TlsConnector, String> {
        let mut roots = RootCertStore::empty();
        let host = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(host.certs);
        roots.add_parsable_certificates(self.authorities.iter().cloned());
        if roots.is_empty() {
            return Err("this host trusts no certificate authority (is the package \
                        ca-certificates installed?)"
                .to_owned());
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

impl fmt::Debug for LazyTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazyTls").field("authorities", &self.authorities.len()).finish()
    }
}

impl Service<Uri> for Connector {
    type Response = Link;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Link, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

impl Connection for Link {
    fn connected(&self) -> Connected {
        match self {
            Self::Plain(_, is_proxied) => Connected::new().proxy(*is_proxied),
            Self::Tls(_) => Connected::new(),
        }
    }
}

impl Read for Link {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io, _) => Pin::new(io).poll_read(context, buffer),
            Self::Tls(io) => Pin::new(io).poll_read(context, buffer),
        }
    }
}

impl Write for Link {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io, _) => Pin::new(io).poll_write(context, bytes),
            Self::Tls(io) => Pin::new(io).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io, _) => Pin::new(io).poll_flush(context),
            Self::Tls(io) => Pin::new(io).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io, _) => Pin::new(io).poll_shutdown(context),
            Self::Tls(io) => Pin::new(io).poll_shutdown(context),
        }
    }
}
