//! `banger-agent`: the first process of every banger VM, and the guest end of everything the host
//! asks for.
//!
//! As `/init` of the initramfs it loads the modules the host put beside it, joins the image and
//! the VM's own copy-on-write file into a root disk ([`boot`]), and then serves the host's requests
//! over one virtio-serial port ([`port`], [`session`], [`routes`]) until the VM goes down
//! ([`shutdown`]). It needs nothing of the image: no shell, no library, no file. Where the image's
//! own init shall be the first process, the agent steps aside for it ([`init`]).
//!
//! One thread runs everything that waits; blocking work (mounting, syncing) goes to threads that
//! end with it. The agent never calls the C library's user, group or host name functions: a static
//! program must not load their plug-ins.

mod agent;
mod boot;
mod configure;
mod console;
mod exec;
mod fault;
mod files;
mod init;
mod park;
mod port;
mod preamble;
mod processes;
mod reaper;
mod routes;
mod session;
mod shutdown;
mod signals;

#[cfg(test)]
mod testing;

use std::process::ExitCode;
use std::sync::Arc;

use banger_api::agent::ShutdownAction;
use banger_api::vm::InitMode;

use crate::agent::Agent;
use crate::exec::cgroup::Cgroups;
use crate::init::Init;
use crate::port::Port;

fn main() -> ExitCode {
    let init = if std::process::id() == 1 {
        if boot::wanted_init() == InitMode::System {
            init::first::split();
        }
        Init::agent()
    } else if let Some(first) = init::first::inherited() {
        Init::beside(first)
    } else {
        console::say("this is the first process of a banger VM and does nothing elsewhere");
        return ExitCode::FAILURE;
    };
    console::bound_memory();
    let boot = boot::begin();
    let device = port::open_device();
    boot.port_is_open();

    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(std::time::Duration::from_secs(1))
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            console::say_error("the runtime cannot be built", &error);
            shutdown::act(ShutdownAction::PowerOff);
        }
    };
    let action = runtime.block_on(async {
        let agent = Agent::new(boot.into_root(), init, Cgroups::new());
        serve(&agent, device).await
    });
    shutdown::act(action)
}

/// Serves one host connection after the other until the VM has been shut down.
async fn serve(agent: &Arc<Agent>, device: std::os::fd::OwnedFd) -> ShutdownAction {
    agent.reaper().start(reaper::Scope::Everyone, agent.cgroups());
    signals::listen(agent);
    let mut port = match Port::new(device) {
        Ok(port) => port,
        Err(error) => {
            console::say_error("the port to the host cannot be used", &error);
            return agent.ended().await;
        }
    };
    loop {
        tokio::select! {
            action = agent.ended() => return action,
            connected = console::awaiting("the host's connection", port.wait_for_host()) => {
                if let Err(error) = connected {
                    console::say_error("waiting for the host", &error);
                    return agent.ended().await;
                }
            }
        }
        // An end of one connection, whatever its reason, is the beginning of the wait for the next.
        if let Err(error) = session::serve(&mut port, agent).await {
            console::say_error("a host connection ended", &error);
        }
    }
}
