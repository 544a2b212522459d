//! Errors as they travel: `application/problem+json` with a stable code.
//!
//! A code is a promise to scripts; the texts are for people and may change. Where the knowledge to
//! mend a failure exists, it travels along as `hint`: a command to type.

use serde::{Deserialize, Serialize};

/// Media type of an error body (RFC 9457).
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";

/// What kind of failure it was. Stable: scripts match on these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// The request makes no sense: a bad name, size, or combination.
    InvalidArgument,
    /// No VM of that name or id.
    VmNotFound,
    /// More than one VM's id starts like that.
    VmAmbiguous,
    /// A VM of that name exists.
    VmNameTaken,
    /// The VM's state does not allow it.
    VmWrongState,
    /// Neither local nor in the catalog.
    ImageNotFound,
    /// VMs still use the image.
    ImageInUse,
    /// The image's file is damaged or missing.
    ImageCorrupt,
    /// Neither local nor in the catalog.
    KernelNotFound,
    /// VMs still use the kernel.
    KernelInUse,
    /// The kernel's files are damaged or missing.
    KernelCorrupt,
    /// Fetching or building an image or a kernel failed.
    PullFailed,
    /// The registry wants other credentials, or none of that name is there for them.
    RegistryDenied,
    /// The registry cannot be reached, or keeps failing.
    RegistryUnavailable,
    /// What came as an image is none, is unsafe, or is too large.
    ImageInvalid,
    /// A signature is missing, or is not of the wanted key.
    SignatureInvalid,
    /// The kernel lacks what a guest needs.
    KernelUnsuitable,
    /// No template of that id.
    TemplateNotFound,
    /// A guest could not be saved as a template, or did not go on from one.
    TemplateFailed,
    /// The VM has no snapshot of that name.
    SnapshotNotFound,
    /// The VM has a snapshot of that name.
    SnapshotNameTaken,
    /// The snapshot is damaged, of another VM, or of another machine.
    SnapshotUnusable,
    /// No such operation, or long forgotten.
    OperationNotFound,
    /// Somebody cancelled it.
    Cancelled,
    /// The host's disk is full, or under the configured reserve.
    HostDiskFull,
    /// A program banger needs is not installed.
    HostProgramMissing,
    /// The host does not allow something banger needs.
    HostNotPermitted,
    /// The VM did not come up.
    BootFailed,
    /// The guest's kernel panicked.
    GuestPanic,
    /// The guest did not answer in time.
    GuestTimeout,
    /// The guest said something it must not say.
    GuestProtocol,
    /// The command could not be started in the guest: no such program.
    ExecNotFound,
    /// The command could not be started in the guest: not executable.
    ExecNotExecutable,
    /// The command could not be started in the guest for another reason (user, directory).
    ExecFailed,
    /// The state database is damaged.
    DatabaseCorrupt,
    /// The state database was written by a newer release.
    DatabaseNewer,
    /// The daemon is of a release this CLI cannot talk to.
    DaemonIncompatible,
    /// The daemon cannot be reached or started.
    DaemonUnavailable,
    /// The caller is not the user who owns this daemon.
    PermissionDenied,
    /// No such route.
    NotFound,
    /// A defect in banger, or a kind of failure that only newer releases know.
    #[serde(other)]
    Internal,
}

impl ErrorCode {
    /// The code as it stands on the wire, for example `vm_not_found`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::VmNotFound => "vm_not_found",
            Self::VmAmbiguous => "vm_ambiguous",
            Self::VmNameTaken => "vm_name_taken",
            Self::VmWrongState => "vm_wrong_state",
            Self::ImageNotFound => "image_not_found",
            Self::ImageInUse => "image_in_use",
            Self::ImageCorrupt => "image_corrupt",
            Self::KernelNotFound => "kernel_not_found",
            Self::KernelInUse => "kernel_in_use",
            Self::KernelCorrupt => "kernel_corrupt",
            Self::PullFailed => "pull_failed",
            Self::RegistryDenied => "registry_denied",
            Self::RegistryUnavailable => "registry_unavailable",
            Self::ImageInvalid => "image_invalid",
            Self::SignatureInvalid => "signature_invalid",
            Self::KernelUnsuitable => "kernel_unsuitable",
            Self::TemplateNotFound => "template_not_found",
            Self::TemplateFailed => "template_failed",
            Self::SnapshotNotFound => "snapshot_not_found",
            Self::SnapshotNameTaken => "snapshot_name_taken",
            Self::SnapshotUnusable => "snapshot_unusable",
            Self::OperationNotFound => "operation_not_found",
            Self::Cancelled => "cancelled",
            Self::HostDiskFull => "host_disk_full",
            Self::HostProgramMissing => "host_program_missing",
            Self::HostNotPermitted => "host_not_permitted",
            Self::BootFailed => "boot_failed",
            Self::GuestPanic => "guest_panic",
            Self::GuestTimeout => "guest_timeout",
            Self::GuestProtocol => "guest_protocol",
            Self::ExecNotFound => "exec_not_found",
            Self::ExecNotExecutable => "exec_not_executable",
            Self::ExecFailed => "exec_failed",
            Self::DatabaseCorrupt => "database_corrupt",
            Self::DatabaseNewer => "database_newer",
            Self::DaemonIncompatible => "daemon_incompatible",
            Self::DaemonUnavailable => "daemon_unavailable",
            Self::PermissionDenied => "permission_denied",
            Self::NotFound => "not_found",
            Self::Internal => "internal",
        }
    }

    /// The HTTP status that goes with the code.
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            Self::InvalidArgument => 400,
            Self::PermissionDenied | Self::RegistryDenied => 403,
            Self::VmNotFound
            | Self::ImageNotFound
            | Self::KernelNotFound
            | Self::TemplateNotFound
            | Self::OperationNotFound
            | Self::NotFound => 404,
            Self::VmAmbiguous
            | Self::VmNameTaken
            | Self::VmWrongState
            | Self::ImageInUse
            | Self::KernelInUse
            | Self::Cancelled => 409,
            Self::GuestTimeout => 504,
            Self::GuestProtocol | Self::RegistryUnavailable => 502,
            Self::ImageInvalid | Self::SignatureInvalid | Self::KernelUnsuitable => 422,
            Self::HostDiskFull => 507,
            _ => 500,
        }
    }
}

/// An error body: what failed, because of what, and what to type next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// Stable code.
    pub code: ErrorCode,
    /// What failed, one sentence, no full stop.
    pub title: String,
    /// Because of what, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// What to type next, for example `banger ls`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Problem {
    /// A problem with neither causes nor hint.
    pub fn new(code: ErrorCode, title: impl Into<String>) -> Self {
        Self { code, title: title.into(), causes: Vec::new(), hint: None }
    }

    /// The same with the causes taken from an error and its sources.
    #[must_use]
    pub fn because(mut self, error: &dyn std::error::Error) -> Self {
        let mut next = Some(error);
        while let Some(cause) = next {
            self.causes.push(cause.to_string());
            next = cause.source();
        }
        self
    }

    /// The same with one more cause.
    #[must_use]
    pub fn cause(mut self, text: impl Into<String>) -> Self {
        self.causes.push(text.into());
        self
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(mut self, text: impl Into<String>) -> Self {
        self.hint = Some(text.into());
        self
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.title)?;
        for cause in &self.causes {
            write!(f, ": {cause}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_in_rust_is_the_code_on_the_wire() {
        for code in [ErrorCode::VmNotFound, ErrorCode::HostDiskFull, ErrorCode::Internal] {
            assert_eq!(serde_json::to_value(code).expect("plain enum"), code.as_str());
        }
    }

    #[test]
    fn causes_come_from_the_chain_of_sources() {
        let error = std::io::Error::other(Problem::new(ErrorCode::Internal, "inner"));
        let problem = Problem::new(ErrorCode::Internal, "outer").because(&error);
        assert_eq!(problem.to_string(), "outer: inner");
    }
}
