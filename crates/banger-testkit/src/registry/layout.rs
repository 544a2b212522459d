//! OCI layouts on disk, and pushing them with skopeo.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::image::TestImage;
use super::server::{PASSWORD, RegistryServer, USER, digest_of};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// When all images were made.
const CREATED: &str = "2024-01-01T00:00:00Z";

/// A directory in the format of the OCI: `oci-layout`, `index.json` and `blobs`.
#[derive(Debug)]
pub struct OciLayout {
    dir: PathBuf,
}

impl OciLayout {
    /// Makes an empty one.
    ///
    /// # Panics
    /// If the directory cannot be made.
    #[must_use]
    pub fn create(dir: &Path) -> Self {
        std::fs::create_dir_all(dir.join("blobs/sha256")).expect("the directory is ours");
        let version = json!({ "imageLayoutVersion": "1.0.0" });
        std::fs::write(dir.join("oci-layout"), version.to_string()).expect("ours");
        let layout = Self { dir: dir.to_owned() };
        layout.write_index(&[]);
        layout
    }

    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Stores a blob and gives its digest.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn add_blob(&self, bytes: &[u8]) -> String {
        let digest = digest_of(bytes);
        let name = digest.replace(':', "/");
        std::fs::write(self.dir.join("blobs").join(name), bytes).expect("ours");
        digest
    }

    /// Stores an image and gives its descriptor, with the platform.
    pub fn add_image(&self, image: &TestImage) -> Value {
        let layers: Vec<Value> = image
            .layers
            .iter()
            .map(|layer| self.descriptor(&layer.media_type, &layer.bytes))
            .collect();
        let diff_ids: Vec<String> =
            image.layers.iter().map(|layer| digest_of(&layer.tar)).collect();
        // Optional, but buildah builds on no image without, and finds nothing in its cache for one
        // whose layers have no times.
        let step = json!({ "created": CREATED, "created_by": "tests" });
        let history = vec![step; image.layers.len()];
        let mut config = json!({
            "created": CREATED,
            "architecture": image.architecture,
            "os": "linux",
            "config": image.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": history,
        });
        let mut platform = json!({ "architecture": image.architecture, "os": "linux" });
        if let Some(variant) = &image.variant {
            config["variant"] = json!(variant);
            platform["variant"] = json!(variant);
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.descriptor(CONFIG, config.to_string().as_bytes()),
            "layers": layers,
        });
        let mut descriptor = self.descriptor(MANIFEST, manifest.to_string().as_bytes());
        descriptor["platform"] = platform;
        descriptor
    }

    /// Stores an index of images and gives its descriptor.
    pub fn add_index(&self, manifests: &[Value]) -> Value {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        self.descriptor(INDEX, index.to_string().as_bytes())
    }

    fn descriptor(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = self.add_blob(bytes);
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    /// Makes the layout name one image or index, as tools expect it.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn name(&self, descriptor: &Value, name: &str) {
        let mut descriptor = descriptor.clone();
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        self.write_index(&[descriptor]);
    }

    fn write_index(&self, manifests: &[Value]) {
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        std::fs::write(self.dir.join("index.json"), index.to_string()).expect("ours");
    }

    /// Pushes an image or index to `name`, `team/app:1`, with skopeo.
    ///
    /// # Panics
    /// If skopeo is missing or fails.
    pub fn push(&self, descriptor: &Value, registry: &RegistryServer, name: &str) {
        self.name(descriptor, "pushed");
        let output = Command::new("skopeo")
            .args(["copy", "--all", "--quiet", "--insecure-policy", "--preserve-digests"])
            .args(["--dest-tls-verify=false", "--dest-creds", &format!("{USER}:{PASSWORD}")])
            .arg(format!("oci:{}:pushed", self.dir.display()))
            .arg(format!("docker://{}", registry.reference(name)))
            .output()
            .expect("skopeo is installed");
        assert!(output.status.success(), "skopeo: {}", String::from_utf8_lossy(&output.stderr));
    }
}
