//! What several tests need: a launch specification, an agent that says what it is told to, and what
//! the parts of a shim share.

use std::future::poll_fn;
use std::path::Path;

use banger_api::agent::{NONCE_LEN, PREAMBLE};
use banger_api::shim::LaunchSpec;
use banger_host::qemu::qmp::{Event, Qmp};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use yamux::{Connection, Mode};

use crate::guest::Guest;
use crate::order::Order;
use crate::supervise::Vm;

/// What to launch, with this first process and stop signal.
pub(crate) fn launch_spec(init: &str, stop_signal: &str) -> LaunchSpec {
    let json = json!({
        "vm_id": "0123456789ab", "name": "box", "machine_id": "0".repeat(32),
        "engine": {
            "name": "qemu", "version": "7.2.22", "binary": "/usr/bin/qemu-system-x86_64",
            "libraries": [], "data_dirs": [], "accelerator": "tcg"
        },
        "cpus": 1, "memory_mib": 128, "kernel": "/k", "kernel_release": "6.1", "initramfs": "/i",
        "root_image": "/r", "root_image_bytes": 1, "disk_bytes": 1, "durable": true,
        "network": "default", "boot_timeout_ms": 1, "init": init, "stop_signal": stop_signal
    });
    serde_json::from_value(json).expect("a launch spec")
}

/// The status of an answer that never comes.
pub(crate) const NEVER: u16 = 0;

/// A guest whose agent gives the body of the first route in `answers` that a request is for, with
/// its status.
pub(crate) async fn guest(answers: &'static [(&'static str, u16, &'static str)]) -> Guest {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    tokio::spawn(serve(theirs, answers));
    Guest::greet(ours).await.expect("greeted")
}

async fn serve(mut stream: UnixStream, answers: &'static [(&'static str, u16, &'static str)]) {
    let mut hello = vec![0; PREAMBLE.len() + NONCE_LEN];
    stream.read_exact(&mut hello).await.expect("a greeting");
    stream.write_all(&hello).await.expect("greeted back");
    let mut connection = Connection::new(stream.compat(), yamux::Config::default(), Mode::Server);
    while let Some(Ok(stream)) = poll_fn(|context| connection.poll_next_inbound(context)).await {
        tokio::spawn(answer(stream.compat(), answers));
    }
}

async fn answer(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    answers: &[(&str, u16, &str)],
) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.expect("a request"));
    }
    let request = String::from_utf8(request).expect("text");
    let path = request.split(' ').nth(1).expect("a path");
    let known = answers.iter().find(|(route, ..)| *route == path);
    let (_, status, body) = known.expect("a route of this test");
    if *status == NEVER {
        std::future::pending::<()>().await;
    }
    let kind = if *status < 400 { "application/json" } else { "application/problem+json" };
    let answer = format!(
        "HTTP/1.1 {status} x\r\ncontent-type: {kind}\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await.expect("answered");
    stream.shutdown().await.expect("closed");
}

/// A VMM that gives these answers to the commands that it gets, and then only good ones. What it
/// gets comes too.
pub(crate) async fn qemu(
    answers: &'static [&'static str],
) -> (Qmp, mpsc::Receiver<Event>, mpsc::UnboundedReceiver<String>) {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let (said, commands) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let (reader, mut writer) = theirs.into_split();
        writer.write_all(b"{\"QMP\":{}}\n").await.expect("greeted");
        let (mut lines, mut answers) = (BufReader::new(reader).lines(), answers.iter());
        while let Ok(Some(line)) = lines.next_line().await {
            let command: serde_json::Value = serde_json::from_str(&line).expect("a command");
            let command = command["execute"].as_str().expect("a name").to_owned();
            let mut answer = "{\"return\":{}}";
            if command != "qmp_capabilities" {
                // Not every test looks.
                let _ = said.send(command);
                answer = answers.next().copied().unwrap_or(answer);
            }
            writer.write_all(format!("{answer}\n").as_bytes()).await.expect("answered");
        }
    });
    let (qmp, events) = Qmp::connect(ours).await.expect("QMP");
    (qmp, events, commands)
}

/// A VM in a directory, and the orders that it gets.
pub(crate) fn vm(dir: &Path, spec: LaunchSpec) -> (Vm, mpsc::Receiver<Order>) {
    let (orders, received) = mpsc::channel(16);
    (Vm::new(spec, dir, None, orders), received)
}
