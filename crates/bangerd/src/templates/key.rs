//! What a template was made of: all that a guest sees before it is a VM. Two starts that want the same
//! can go on from the same template; whatever changes makes another one.

use banger_api::shim::LaunchSpec;
use banger_host::qemu::arguments::shape;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::host::{LocalImage, LocalKernel};

/// Raised when guests are saved in another way.
const FORMAT: u32 = 2;
/// How many digits of the digest are the template's identity.
const DIGITS: usize = 12;

/// The identity of a template: hex digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(String);

impl Key {
    /// As text, which is also the name of its directory.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Everything that counts.
#[derive(Serialize)]
struct Inputs<'a> {
    format: u32,
    image: &'a str,
    kernel: &'a str,
    /// Its name says which agent and which modules are in it.
    initramfs: &'a str,
    engine: [&'a str; 3],
    cpu: &'a str,
    shape: Vec<String>,
}

/// The key of the template for what is to be launched on a host with that processor.
#[must_use]
pub fn key(launch: &LaunchSpec, image: &LocalImage, kernel: &LocalKernel, cpu: &str) -> Key {
    let inputs = Inputs {
        format: FORMAT,
        image: &image.image.digest,
        kernel: &kernel.kernel.digest,
        initramfs: launch.initramfs.rsplit('/').next().unwrap_or_default(),
        engine: [
            &launch.engine.version,
            launch.engine.build.as_deref().unwrap_or_default(),
            launch.engine.accelerator.as_str(),
        ],
        cpu,
        shape: shape(launch),
    };
    let text = serde_json::to_string(&inputs).expect("plain data");
    Key(hex::encode(Sha256::digest(text))[..DIGITS].to_owned())
}
