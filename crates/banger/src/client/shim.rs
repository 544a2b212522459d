//! Talking to the shim of a running VM, whose streams the daemon never sees.

use std::io;
use std::path::PathBuf;

use banger_api::exec::MAX_PAYLOAD;
use banger_api::shim::{RUN_DIR, SHIM_SOCKET, ShimHello};
use banger_api::version::SHIM_PROTOCOL;
use banger_api::vm::Vm;
use banger_api::{ErrorCode, Problem, step};
use banger_host::{fault, http};
use bytes::Bytes;
use http_body_util::Full;
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::{client::generate_key, derive_accept_key};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::VERSION;
use crate::failure::Failure;

/// The exec stream to a shim.
pub type ExecSocket = WebSocketStream<TokioIo<Upgraded>>;

/// The shim of one VM.
#[derive(Debug)]
pub struct ShimClient {
    name: String,
    run_dir: PathBuf,
}

impl ShimClient {
    /// The shim of a VM, which must be running.
    ///
    /// # Errors
    /// If nothing answers there, or cannot be talked to.
    pub async fn of(vm: &Vm) -> Result<Self, Failure> {
        let run_dir = PathBuf::from(&vm.dir).join(RUN_DIR);
        let shim = Self { name: vm.name.clone(), run_dir };
        let stream = shim.connect().await?;
        let hello: ShimHello = http::json(stream, Method::GET, "/v1/hello", None::<&()>).await?;
        shim.check(&hello)?;
        Ok(shim)
    }

    /// Opens an exec stream. Nothing runs before the request has been sent on it.
    ///
    /// # Errors
    /// What the shim says against it.
    pub async fn exec(&self, owner: bool) -> Result<ExecSocket, Failure> {
        fault::reach(step::CLI_EXEC).await.map_err(|error| self.unreachable(&error))?;
        let key = generate_key();
        let request = Request::builder()
            .uri(format!("/v1/exec?owner={owner}"))
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, &key)
            .body(Full::new(Bytes::new()))
            .map_err(|error| Failure::internal("cannot ask for an exec stream", &error))?;
        let answer = http::send(self.connect().await?, request).await?;
        let answer = http::accept(answer).await?;
        let accepted = answer.headers().get(header::SEC_WEBSOCKET_ACCEPT);
        let is_ours = accepted.is_some_and(|value| *value == derive_accept_key(key.as_bytes()));
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS || !is_ours {
            return Err(Failure::new(ErrorCode::Internal, "the VM's shim opened no exec stream"));
        }
        let stream = hyper::upgrade::on(answer)
            .await
            .map_err(|error| Failure::internal("the VM's shim opened no exec stream", &error))?;
        // Frames are small by contract; a larger one is an error and not an allocation.
        let limits = WebSocketConfig::default()
            .max_message_size(Some(4 * MAX_PAYLOAD))
            .max_frame_size(Some(4 * MAX_PAYLOAD));
        let io = TokioIo::new(stream);
        Ok(WebSocketStream::from_raw_socket(io, Role::Client, Some(limits)).await)
    }

    /// Asks for something whose answer is read bit by bit.
    ///
    /// # Errors
    /// What the shim says against it.
    pub async fn open(&self, path: &str) -> Result<Response<Incoming>, Failure> {
        Ok(http::request(self.connect().await?, Method::GET, path, None::<&()>).await?)
    }

    async fn connect(&self) -> Result<UnixStream, Failure> {
        banger_host::connect::unix(&self.run_dir, SHIM_SOCKET)
            .await
            .map_err(|error| self.unreachable(&error))
    }

    fn unreachable(&self, error: &io::Error) -> Failure {
        let title = format!("the VM {} cannot be reached", self.name);
        Problem::new(ErrorCode::VmWrongState, title)
            .because(error)
            .hint(format!("banger show {}", self.name))
            .into()
    }

    fn check(&self, hello: &ShimHello) -> Result<(), Failure> {
        if SHIM_PROTOCOL.negotiate(hello.protocol).is_some() {
            return Ok(());
        }
        let title =
            format!("the VM {} was started by a release this one cannot talk to", self.name);
        let cause = format!(
            "its shim is release {} with protocol {}, this is release {VERSION} with {SHIM_PROTOCOL}",
            hello.version, hello.protocol
        );
        let hint = format!("banger restart {}", self.name);
        Err(Problem::new(ErrorCode::VmWrongState, title).cause(cause).hint(hint).into())
    }
}
