//! The VM's way to the host's network: pasta, which comes up while the guest does.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use banger_api::trace;
use banger_host::network;
use banger_host::process::Watched;
use banger_host::trace::Trace;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::Host;
use crate::failure::{LaunchError, host};
use crate::supervise::{Vm, error_log};

/// The uplink that is being made.
pub(crate) type Uplink = oneshot::Receiver<Result<std::process::Child, network::NetworkError>>;

/// Begins to make it.
///
/// # Errors
/// Of the host.
pub(crate) fn start_uplink(host: &Host, trace: Trace) -> Result<Uplink, LaunchError> {
    let began = trace.begin();
    let namespace = host.network.namespace.clone();
    let mut pasta = network::start_uplink(&namespace, pasta_words()?)?;
    let (done, uplink) = oneshot::channel();
    let wait = move || {
        let connected = network::wait_for_uplink(&namespace, &mut pasta);
        trace.end(trace::SHIM_UPLINK, began);
        // Nobody hears it if the boot failed meanwhile.
        let _ = done.send(connected.map(|()| pasta));
    };
    let thread = std::thread::Builder::new().name("uplink".to_owned()).spawn(wait);
    thread.map_err(crate::failure::host("start a thread that waits for the network"))?;
    Ok(uplink)
}

/// A VM without an uplink is a VM: the host may be offline.
pub(super) async fn await_uplink(vm: &Vm, uplink: Uplink) {
    if let Err(reason) = connected(vm, uplink).await {
        vm.board.warn(format!("the VM has no network: {reason}"));
    }
}

/// Waits for the uplink, and then for its end, beside what follows.
///
/// # Errors
/// Why there is none.
pub(crate) async fn connected(vm: &Vm, uplink: Uplink) -> Result<(), String> {
    let waited = uplink.await.map_err(|_| "waiting for it failed".to_owned())?;
    let pasta = waited.map_err(|error| error.to_string())?;
    let board = Arc::clone(&vm.board);
    tokio::spawn(async move {
        if let Ok(mut pasta) = Watched::new(pasta) {
            let ended = pasta.wait().await.map(|status| status.to_string());
            let how = ended.unwrap_or_else(|error| error.to_string());
            board.warn(format!("the VM lost its network: pasta ended ({how})"));
        }
    });
    Ok(())
}

/// Where pasta's words go: through a pipe to this process's own log, which stays small whatever a guest
/// makes pasta complain of.
fn pasta_words() -> Result<File, LaunchError> {
    let (reader, writer) = std::io::pipe().map_err(host("make a pipe for pasta's words"))?;
    let mut words =
        pipe::Receiver::from_owned_fd(reader.into()).map_err(host("listen to what pasta says"))?;
    tokio::spawn(async move {
        let (mut log, mut buffer) = (error_log(), vec![0; 4096]);
        while let Ok(count @ 1..) = words.read(&mut buffer).await {
            // What cannot be written is lost, and pasta must not wait for it.
            let _ = log.write_all(&buffer[..count]);
        }
    });
    Ok(File::from(OwnedFd::from(writer)))
}
