//! Tars for tests, right ones and wrong ones.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use banger_ext4::{Content, Extent, Kind, NodeId, Tree};
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::header::BLOCK;
use super::merge::Contents;
use super::sparse::Chunks;

/// A member of a tar to be.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) name: Vec<u8>,
    pub(crate) flag: u8,
    pub(crate) link: Vec<u8>,
    pub(crate) data: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: u64,
    pub(crate) device: (u32, u32),
    pub(crate) pax: Vec<(Vec<u8>, Vec<u8>)>,
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, flag, link, data, mode, uid, gid, .. } = self;
        let (name, flag) = (name.escape_ascii(), char::from(*flag));
        let (link, bytes) = (link.escape_ascii(), data.len());
        write!(f, "<{flag} {name} -> {link} {mode:o} {uid}:{gid} {bytes} bytes")?;
        for (key, value) in &self.pax {
            write!(f, " {}={}", key.escape_ascii(), value.escape_ascii())?;
        }
        write!(f, ">")
    }
}

impl Member {
    pub(crate) fn new(name: impl AsRef<[u8]>, flag: u8) -> Self {
        Self {
            name: name.as_ref().to_vec(),
            flag,
            link: Vec::new(),
            data: Vec::new(),
            mode: if flag == b'5' { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            mtime: 1_000_000_000,
            device: (0, 0),
            pax: Vec::new(),
        }
    }

    pub(crate) fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        Self { data: data.as_ref().to_vec(), ..Self::new(name, b'0') }
    }

    pub(crate) fn directory(name: impl AsRef<[u8]>) -> Self {
        Self::new(name, b'5')
    }

    pub(crate) fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self { link: target.as_ref().to_vec(), ..Self::new(name, b'2') }
    }

    pub(crate) fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self { link: target.as_ref().to_vec(), ..Self::new(name, b'1') }
    }

    pub(crate) fn pax(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.pax.push((key.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }

    /// Its header, with `size` as the size of what follows.
    pub(crate) fn header(&self, size: u64) -> [u8; BLOCK] {
        let mut header = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| {
            header[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, format!("{:07o}\0", self.mode).as_bytes());
        put(108, format!("{:07o}\0", self.uid).as_bytes());
        put(116, format!("{:07o}\0", self.gid).as_bytes());
        put(124, format!("{size:011o}\0").as_bytes());
        put(136, format!("{:011o}\0", self.mtime).as_bytes());
        put(156, &[self.flag]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}\0", self.device.0).as_bytes());
        put(337, format!("{:07o}\0", self.device.1).as_bytes());
        seal(&mut header);
        header
    }

    /// Its bytes in a tar.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut records = self.pax.clone();
        if self.name.len() > 100 {
            records.push((b"path".to_vec(), self.name.clone()));
        }
        if self.link.len() > 100 {
            records.push((b"linkpath".to_vec(), self.link.clone()));
        }
        let mut bytes = Vec::new();
        if !records.is_empty() {
            let pax: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
            bytes.extend(Self::new("PaxHeaders/x", b'x').header(pax.len() as u64));
            bytes.extend(padded(pax));
        }
        bytes.extend(self.header(self.data.len() as u64));
        bytes.extend(padded(self.data.clone()));
        bytes
    }
}

/// Put the right checksum into a header.
pub(crate) fn seal(header: &mut [u8; BLOCK]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// A record of an extended header, with its length, which counts itself.
pub(crate) fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (rest..).find(|length| length - length.to_string().len() == rest);
    let mut record = format!("{} ", length.expect("there is one")).into_bytes();
    record.extend_from_slice(key);
    record.push(b'=');
    record.extend_from_slice(value);
    record.push(b'\n');
    record
}

pub(crate) fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

/// A whole tar.
pub(crate) fn tar(members: &[Member]) -> Vec<u8> {
    let mut bytes: Vec<u8> = members.iter().flat_map(Member::bytes).collect();
    bytes.extend([0; 2 * BLOCK]);
    bytes
}

/// A member in a few letters: `dir/`, `file=text`, `link->target`, `other:=file`.
pub(crate) fn short(text: &str) -> Member {
    if let Some((name, target)) = text.split_once("->") {
        Member::symlink(name, target)
    } else if let Some((name, target)) = text.split_once(":=") {
        Member::hard_link(name, target)
    } else if let Some((name, data)) = text.split_once('=') {
        Member::file(name, data)
    } else {
        Member::directory(text)
    }
}

/// Contents in memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    files: Vec<Option<Vec<u8>>>,
}

impl Memory {
    fn keep(&mut self, bytes: Vec<u8>) -> Content {
        let physical = self.files.len() as u64;
        let content = Content {
            bytes: bytes.len() as u64,
            extents: vec![Extent { logical: 0, physical, blocks: 1 }],
        };
        self.files.push(Some(bytes));
        content
    }

    pub(crate) fn get(&self, content: &Content) -> &[u8] {
        let number = usize::try_from(content.extents[0].physical).expect("it is small");
        self.files[number].as_deref().expect("it is still there")
    }

    /// How many files it holds.
    pub(crate) fn len(&self) -> usize {
        self.files.iter().flatten().count()
    }
}

impl Contents for Memory {
    fn put(&mut self, data: &mut dyn Read, bytes: u64) -> Result<Content, banger_ext4::Error> {
        let mut kept = Vec::new();
        data.take(bytes).read_to_end(&mut kept).map_err(banger_ext4::Error::Source)?;
        assert_eq!(kept.len() as u64, bytes);
        Ok(self.keep(kept))
    }

    fn put_sparse(
        &mut self,
        data: &mut dyn Read,
        bytes: u64,
        chunks: &Chunks,
    ) -> Result<Content, banger_ext4::Error> {
        let mut kept = vec![0; usize::try_from(bytes).expect("it is small")];
        for (offset, bytes) in chunks {
            let start = usize::try_from(*offset).expect("it is small");
            let end = start + usize::try_from(*bytes).expect("it is small");
            data.read_exact(&mut kept[start..end]).map_err(banger_ext4::Error::Source)?;
        }
        Ok(self.keep(kept))
    }

    fn release(&mut self, dropped: Vec<Content>) {
        for content in dropped {
            let number = usize::try_from(content.extents[0].physical).expect("it is small");
            assert!(self.files[number].take().is_some(), "released twice");
        }
    }
}

/// All paths of a tree, each with its node, in order; the root has an empty path.
pub(crate) fn paths(tree: &Tree) -> Vec<(Vec<u8>, NodeId)> {
    let mut found = Vec::new();
    let mut pending = vec![(Vec::new(), Tree::ROOT)];
    while let Some((path, node)) = pending.pop() {
        for (name, child) in tree.entries(node).into_iter().flatten() {
            let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
            pending.push(([&path, separator, name].concat(), *child));
        }
        found.push((path, node));
    }
    found.sort();
    found
}

/// A tree in the notation of [`short`], without its root.
pub(crate) fn listing(tree: &Tree, contents: &Memory) -> Vec<String> {
    let mut seen: HashMap<NodeId, String> = HashMap::new();
    let mut lines = Vec::new();
    for (path, id) in paths(tree).into_iter().skip(1) {
        let path = String::from_utf8_lossy(&path).into_owned();
        if let Some(first) = seen.get(&id) {
            lines.push(format!("{path}:={first}"));
            continue;
        }
        lines.push(match &tree.node(id).kind {
            Kind::Directory(_) => format!("{path}/"),
            Kind::File(content) => {
                format!("{path}={}", String::from_utf8_lossy(contents.get(content)))
            }
            Kind::Symlink(target) => format!("{path}->{}", String::from_utf8_lossy(target)),
            other => format!("{path} {other:?}"),
        });
        seen.insert(id, path);
    }
    lines
}

/// 64 hex digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Put a blob into a layout. Answers its descriptor.
pub(crate) fn blob(dir: &Path, media_type: &str, bytes: &[u8]) -> Value {
    let hex = sha256(bytes);
    fs::write(dir.join("blobs/sha256").join(&hex), bytes).expect("write");
    json!({"mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len()})
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("into memory");
    encoder.finish().expect("into memory")
}

/// Write an OCI layout with one image, called `test`. Answers the digest of its manifest.
pub(crate) fn write_layout(dir: &Path, layers: &[Vec<u8>]) -> String {
    fs::create_dir_all(dir.join("blobs/sha256")).expect("create");
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("write");
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    let descriptors: Vec<Value> =
        layers.iter().map(|layer| blob(dir, media_type, &gzip(layer))).collect();
    let diff_ids: Vec<String> =
        layers.iter().map(|layer| format!("sha256:{}", sha256(layer))).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Cmd": ["/bin/true"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config =
        blob(dir, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": descriptors});
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let mut manifest = blob(dir, media_type, manifest.to_string().as_bytes());
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "test"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(dir.join("index.json"), index.to_string()).expect("write");
    manifest["digest"].as_str().expect("it has one").to_owned()
}
