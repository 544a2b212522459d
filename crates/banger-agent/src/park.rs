//! Getting ready to be saved: a guest that knows nothing of itself yet, with everything done that is the
//! same for every VM that will go on from here.
//!
//! What is done here is paid for once and not by every VM. What is not allowed here is anything that two
//! guests must not have in common: nothing is asked of the random number generator, and no name or time is
//! set. Those come in `configure`, entropy first. The network's address is every VM's: each has a network
//! of its own.

use std::sync::Arc;

use banger_api::agent::{Drive, Park};
use banger_api::{ErrorCode, Problem, step};

use crate::agent::Agent;
use crate::{configure, fault};

/// Makes the guest ready. May be repeated.
///
/// # Errors
/// If it is a VM already, or has no root disk.
pub async fn run(agent: &Arc<Agent>, request: Park) -> Result<(), Problem> {
    let _one_at_a_time = agent.configuring().await;
    agent.root_warnings().await?;
    if agent.settings().is_some() {
        let title = "the guest is configured already, and has an identity";
        return Err(Problem::new(ErrorCode::VmWrongState, title));
    }
    let failed = |error: &dyn std::error::Error| {
        Problem::new(ErrorCode::BootFailed, "the guest could not get ready to be saved")
            .because(error)
    };
    fault::reach(step::GUEST_PARK).await.map_err(|error| failed(&error))?;
    // Another init may sort out what it finds there. What cannot be made now is made when it is needed.
    if !agent.init().is_separate() {
        let _ = agent.cgroups().prepare();
    }
    let network = request.network;
    let shared = request.drives.into_iter().map(shared_alone).collect::<Vec<_>>();
    let done =
        tokio::task::spawn_blocking(move || configure::prepare(&shared, network.as_ref())).await;
    done.map_err(|error| failed(&error))?.map_err(|error| failed(&error))
}

/// Of the drives only what is the same for every VM.
fn shared_alone(drive: Drive) -> Drive {
    match drive {
        Drive::Work { .. } | Drive::Unused => Drive::Unused,
        Drive::Modules { release } => Drive::Modules { release },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Settings;
    use crate::exec::cgroup::Cgroups;
    use crate::init::Init;

    #[test]
    fn a_disk_of_one_vm_is_left_alone() {
        let modules = Drive::Modules { release: "6.1".to_owned() };
        assert_eq!(shared_alone(Drive::Work { bytes: Some(1) }), Drive::Unused);
        assert_eq!(shared_alone(modules.clone()), modules);
    }

    #[tokio::test]
    async fn a_guest_with_an_identity_is_not_parked() {
        let (_, root) = tokio::sync::watch::channel(Some(Ok(Vec::new())));
        let agent = Agent::new(root, Init::agent(), Cgroups::by_descent());
        agent.set_settings(Some(Settings::default()));
        let refused = run(&agent, Park::default()).await.expect_err("it is a VM");
        assert_eq!(refused.code, ErrorCode::VmWrongState);
    }
}
