//! A template that somebody asks for, instead of a VM that needs it.

use std::sync::Arc;

use banger_api::operation::OperationResult;
use banger_api::template::MakeTemplate;
use banger_api::vm::{CreateVm, StartVm};
use banger_api::{ErrorCode, Problem};
use banger_core::id::Id;
use banger_core::lifecycle::Desired;
use banger_core::spec;
use banger_host::clock;

use super::{find, make, show};
use crate::artifacts;
use crate::daemon::{Daemon, blocking};
use crate::operations::{Handle, Waiter};
use crate::store::VmRow;
use crate::vm::{Needs, launch_spec};

/// An order that can be carried out.
#[derive(Debug)]
pub struct Order {
    daemon: Arc<Daemon>,
    /// What would make a VM of that kind.
    request: CreateVm,
}

impl Order {
    /// Checks everything about a request that can be told at once.
    ///
    /// # Errors
    /// What is wrong with it.
    pub async fn check(daemon: &Arc<Daemon>, request: MakeTemplate) -> Result<Self, Problem> {
        if !daemon.config.templates.enabled {
            let title = "VMs do not begin from templates here";
            return Err(Problem::new(ErrorCode::InvalidArgument, title)
                .cause("templates.enabled is false in config.toml")
                .hint("set it to true, then banger daemon stop"));
        }
        let host = daemon.host.clone();
        let capacity = blocking(move || Ok(host.machine.capacity())).await?;
        spec::check(&request.spec, &capacity)?;
        let request = CreateVm {
            name: None,
            spec: request.spec,
            start: None,
            main: false,
            pull: banger_api::image::PullPolicy::default(),
            registry: banger_api::image::RegistryAccess::default(),
        };
        artifacts::check_known(daemon, &request).await?;
        Ok(Self { daemon: Arc::clone(daemon), request })
    }

    /// What is done, for people.
    #[must_use]
    pub fn description(&self) -> String {
        format!("make template of {}", self.request.spec.image)
    }

    /// Makes the template, unless it is there.
    ///
    /// # Errors
    /// Of the first step that fails; nothing is left of it then.
    pub async fn run(self, operation: Handle) -> Result<OperationResult, Problem> {
        let daemon = &self.daemon;
        artifacts::ensure(daemon, &self.request, &operation).await?;
        operation.check_cancelled()?;
        let row = Arc::new(self.row().await?);
        let needs = Needs::gather(daemon, &row).await?;
        let (launch, _) = launch_spec(daemon, &row, &StartVm::default(), &needs);
        let wanted = needs.template(daemon, &launch);
        if find(daemon, &wanted).await?.is_some()
            && let Ok(template) = show(daemon, wanted.key.as_str()).await
        {
            return Ok(OperationResult::Template(Box::new(template)));
        }
        let waiter =
            Waiter { cancel: operation.cancel_token(), tell: &|event| operation.forward(event) };
        make(daemon, &wanted, waiter).await?;
        // Whoever asked for nothing else is told that it is there when it will stay.
        daemon.templates.settled(&wanted.key).await;
        let template = show(daemon, wanted.key.as_str()).await.map_err(|_| {
            Problem::new(ErrorCode::TemplateFailed, "the template could not be kept")
                .hint("banger daemon logs")
        })?;
        Ok(OperationResult::Template(Box::new(template)))
    }

    /// The row of a VM of that kind, which there is not.
    async fn row(&self) -> Result<VmRow, Problem> {
        let (image, kernel) = artifacts::find(&self.daemon, &self.request.spec).await?;
        let mut spec = self.request.spec.clone();
        spec.init = Some(spec.init.unwrap_or(image.image.init));
        Ok(VmRow {
            id: Id::from_bytes([0; 6]),
            name: String::new(),
            image_digest: image.image.digest,
            kernel_digest: kernel.kernel.digest,
            machine_id: String::new(),
            disk_bytes: spec::disk_bytes(spec.disk_bytes, image.image.disk_bytes)?,
            created_at_ms: clock::now_ms(),
            expires_at_ms: None,
            disks: None,
            desired: Desired::Stopped,
            unfinished: true,
            deleting: false,
            last: None,
            spec,
        })
    }
}
