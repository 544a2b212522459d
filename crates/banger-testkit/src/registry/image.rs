//! Small images, as values.

use std::io::Write;

use serde_json::{Value, json};

/// A layer: its tar, and how it is stored.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Its media type.
    pub media_type: String,
    /// What is stored.
    pub bytes: Vec<u8>,
    /// The tar, which the image's configuration names by digest.
    pub tar: Vec<u8>,
}

impl Layer {
    /// A layer stored as it is.
    #[must_use]
    pub fn plain(tar: Vec<u8>) -> Self {
        Self { media_type: media_type(""), bytes: tar.clone(), tar }
    }

    /// A layer stored with gzip.
    ///
    /// # Panics
    /// Never: memory takes it.
    #[must_use]
    pub fn gzip(tar: Vec<u8>) -> Self {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&tar).expect("memory takes it");
        let bytes = encoder.finish().expect("memory takes it");
        Self { media_type: media_type("+gzip"), bytes, tar }
    }

    /// A layer stored with zstd.
    ///
    /// # Panics
    /// Never: memory takes it.
    #[must_use]
    pub fn zstd(tar: Vec<u8>) -> Self {
        let bytes = zstd::encode_all(&tar[..], 1).expect("memory takes it");
        Self { media_type: media_type("+zstd"), bytes, tar }
    }

    /// The tar of some files, with mode 0644 and of root.
    ///
    /// # Panics
    /// If a path does not fit into a tar.
    #[must_use]
    pub fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, contents) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(contents.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, path, *contents).expect("a path that fits");
        }
        builder.into_inner().expect("memory takes it")
    }
}

fn media_type(compression: &str) -> String {
    format!("application/vnd.oci.image.layer.v1.tar{compression}")
}

/// An image for one platform.
#[derive(Debug, Clone)]
pub struct TestImage {
    /// The lowest first.
    pub layers: Vec<Layer>,
    /// What runs in it, as the key `config` of an image configuration.
    pub config: Value,
    /// `amd64`.
    pub architecture: String,
    /// `v2`.
    pub variant: Option<String>,
}

impl Default for TestImage {
    fn default() -> Self {
        let architecture = "amd64".to_owned();
        Self { layers: Vec::new(), config: json!({}), architecture, variant: None }
    }
}

impl TestImage {
    /// An image with nothing in it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with one more layer.
    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// The same with one more layer, of one file.
    #[must_use]
    pub fn file(self, path: &str, contents: &[u8]) -> Self {
        self.layer(Layer::gzip(Layer::tar_of(&[(path, contents)])))
    }

    /// The same with one more layer, of one file that would not get smaller by compression. The same
    /// seed gives the same bytes.
    #[must_use]
    pub fn noise(self, path: &str, bytes: usize, seed: u64) -> Self {
        let noise = noise(bytes, seed);
        self.layer(Layer::plain(Layer::tar_of(&[(path, &noise)])))
    }

    /// The same with that configuration: `Entrypoint`, `Env` and so on.
    #[must_use]
    pub fn config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    /// The same for another architecture.
    #[must_use]
    pub fn architecture(mut self, architecture: &str, variant: Option<&str>) -> Self {
        self.architecture = architecture.to_owned();
        self.variant = variant.map(str::to_owned);
        self
    }
}

/// Bytes that look random and are always the same.
#[must_use]
pub fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}
