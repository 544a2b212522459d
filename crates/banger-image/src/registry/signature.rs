//! Signatures as cosign makes them: who says that a digest is what it should be.
//!
//! The signatures of an image are layers of another one, in the same repository, whose tag is made of
//! the image's digest. Each layer is a short JSON text that names the digest, and an annotation of
//! the layer is the signature of that text.

use banger_core::reference::{Digest, Reference};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;

use super::endpoint::{Ask, Endpoint};
use super::error::{RegistryError, printable};
use super::manifest::{self, Descriptor, Document};
use super::{Registry, Resolved, digest_of};

const PAYLOAD_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// Largest text that is signed, in bytes.
const MAX_PAYLOAD: u64 = 64 * 1024;
/// Most signatures of an image that are looked at.
const MAX_SIGNATURES: usize = 64;
/// What stands before the key in the DER of a P-256 key: its algorithm and curve.
const P256_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// What stands before the key in the DER of an Ed25519 key.
const ED25519_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A key to check signatures with.
pub(super) struct VerifyKey {
    key: UnparsedPublicKey<Vec<u8>>,
}

/// What is signed.
#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    identity: Identity,
    image: SignedImage,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Identity {
    #[serde(rename = "docker-reference")]
    reference: String,
}

#[derive(Deserialize)]
struct SignedImage {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

impl VerifyKey {
    /// Read a public key, PEM: P-256 as cosign makes them, or Ed25519.
    pub(super) fn parse(pem: &str) -> Result<Self, RegistryError> {
        let wrong = |reason: &str| RegistryError::Key { reason: reason.to_owned() };
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| wrong("it is no public key in PEM (-----BEGIN PUBLIC KEY-----)"))?;
        let der: &[u8] = der.as_ref();
        let kinds: [(&[u8], usize, &'static dyn VerificationAlgorithm); 2] =
            [(&P256_PREFIX, 65, &ECDSA_P256_SHA256_ASN1), (&ED25519_PREFIX, 32, &ED25519)];
        let found = kinds.into_iter().find_map(|(prefix, length, algorithm)| {
            let key = der.strip_prefix(prefix).filter(|key| key.len() == length)?;
            Some(UnparsedPublicKey::new(algorithm, key.to_vec()))
        });
        let key = found.ok_or_else(|| wrong("it is neither of P-256 nor of Ed25519"))?;
        Ok(Self { key })
    }

    /// Whether this is a signature of `payload`, and that says what we want to hear.
    fn check(
        &self,
        payload: &[u8],
        signature: &str,
        (digest, reference): (&Digest, &Reference),
    ) -> Result<(), String> {
        let signature = STANDARD.decode(signature.trim()).map_err(|_| "it is no base64")?;
        // First of all: nothing is read that nobody vouches for.
        self.key.verify(payload, &signature).map_err(|_| "it is of another key")?;
        let payload: Payload = serde_json::from_slice(payload)
            .map_err(|_| "what it signs is not what cosign writes")?;
        let Critical { identity, image, kind } = payload.critical;
        if kind != "cosign container image signature" {
            return Err(format!("it is a {}", printable(&kind)));
        }
        if image.digest != digest.as_str() {
            return Err(format!("it is of {}", printable(&image.digest)));
        }
        let signed = Reference::parse(&identity.reference);
        let is_same = signed.is_ok_and(|signed| {
            signed.registry() == reference.registry()
                && signed.repository() == reference.repository()
        });
        if !is_same {
            return Err(format!("it is for the name {}", printable(&identity.reference)));
        }
        Ok(())
    }
}

impl Registry {
    /// Check that what the reference stands for was signed with a key: a public one, PEM.
    pub(crate) fn verify_signature(
        &self,
        resolved: &Resolved,
        key: &str,
    ) -> Result<(), RegistryError> {
        let key = VerifyKey::parse(key)?;
        let reference = &self.inner.reference;
        self.run(self.first_of(async |endpoint| {
            endpoint.verify_signature(&resolved.digest, &key, (reference, self.what())).await
        }))
    }
}

impl Endpoint {
    async fn verify_signature(
        &self,
        digest: &Digest,
        key: &VerifyKey,
        (reference, what): (&Reference, String),
    ) -> Result<(), RegistryError> {
        let mut reasons = Vec::new();
        for layer in self.signatures_of(digest, &what).await? {
            let signature = layer.annotations.as_ref().and_then(|notes| notes.get(ANNOTATION));
            let Some(signature) = signature.filter(|_| layer.media_type == PAYLOAD_TYPE) else {
                continue;
            };
            if layer.size > MAX_PAYLOAD {
                reasons.push("it signs more than a name and a digest".to_owned());
                continue;
            }
            let payload = self.small_blob(&layer, format!("a signature of {what}")).await?;
            match key.check(&payload, signature, (digest, reference)) {
                Ok(()) => return Ok(()),
                Err(reason) => reasons.push(reason),
            }
        }
        let count = reasons.len();
        reasons.sort();
        reasons.dedup();
        let reason = match (count, &reasons[..]) {
            (0, _) => "there is none at all".to_owned(),
            (1, [reason]) => format!("there is one, but {reason}"),
            (_, reasons) => format!("there are {count}, but {}", reasons.join("; ")),
        };
        Err(RegistryError::Signature { what, reason })
    }

    /// The layers that hold the signatures of a digest; none if there are no signatures.
    async fn signatures_of(
        &self,
        digest: &Digest,
        what: &str,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let path = format!("manifests/sha256-{}.sig", digest.hex());
        let ask = Ask::new(http::Method::GET, path, format!("signature of {what}"))
            .accept(&[manifest::OCI_MANIFEST, manifest::DOCKER_MANIFEST]);
        let bytes = match self.ask_for_bytes(&ask, manifest::MAX_MANIFEST).await {
            Ok((bytes, _)) => bytes,
            Err(RegistryError::NotFound { .. }) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let invalid = |reason: String| {
            let what = format!("the signature of {what}");
            RegistryError::Invalid { what, reason }
        };
        match Document::parse(&bytes, None).map_err(invalid)? {
            Document::Manifest(manifest) => {
                tracing::debug!(digest = %digest_of(&bytes), "signatures found");
                Ok(manifest.layers.into_iter().take(MAX_SIGNATURES).collect())
            }
            Document::Index(_) => Err(invalid("it is an index".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_are_taken() {
        let wrong = [
            ("", "no public key in PEM"),
            ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "neither of P-256"),
            (
                "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
                "no public key in PEM",
            ),
        ];
        for (pem, want) in wrong {
            let error = VerifyKey::parse(pem).err().expect("no key").to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
