//! Signatures as cosign makes them, in a real registry.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use serde_json::json;

use super::*;

enum Key {
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl Key {
    fn p256() -> Self {
        let random = SystemRandom::new();
        let kind = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let document = EcdsaKeyPair::generate_pkcs8(kind, &random).expect("a key");
        Self::P256(EcdsaKeyPair::from_pkcs8(kind, document.as_ref(), &random).expect("a key"))
    }

    fn ed25519() -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
        Self::Ed25519(Ed25519KeyPair::from_pkcs8(document.as_ref()).expect("a key"))
    }

    fn sign(&self, text: &[u8]) -> String {
        STANDARD.encode(match self {
            Self::P256(key) => {
                key.sign(&SystemRandom::new(), text).expect("signed").as_ref().to_vec()
            }
            Self::Ed25519(key) => key.sign(text).as_ref().to_vec(),
        })
    }

    /// The public key as a person keeps it.
    fn pem(&self) -> String {
        let (start, key) = match self {
            Self::P256(key) => {
                ("3059301306072a8648ce3d020106082a8648ce3d030107034200", key.public_key().as_ref())
            }
            Self::Ed25519(key) => ("302a300506032b6570032100", key.public_key().as_ref()),
        };
        let der = [hex::decode(start).expect("hex"), key.to_vec()].concat();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
    }
}

fn payload(digest: &str, reference: &str) -> String {
    json!({
        "critical": {
            "identity": { "docker-reference": reference },
            "image": { "docker-manifest-digest": digest },
            "type": "cosign container image signature",
        },
        "optional": null,
    })
    .to_string()
}

/// Puts signatures beside the image: texts with what is said to be their signature.
fn attach(scene: &Scene, digest: &str, signatures: &[(String, String)]) {
    let put = |bytes: &[u8]| scene.server.put_blob("team/app", bytes);
    let layers: Vec<Value> = signatures
        .iter()
        .map(|(text, signature)| {
            json!({
                "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
                "size": text.len(),
                "digest": put(text.as_bytes()),
                "annotations": { "dev.cosignproject.cosign/signature": signature },
            })
        })
        .collect();
    let config =
        json!({ "architecture": "", "os": "", "rootfs": { "type": "layers" } }).to_string();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": manifest::OCI_MANIFEST,
        "config": {
            "mediaType": manifest::OCI_CONFIG, "size": config.len(),
            "digest": put(config.as_bytes()),
        },
        "layers": layers,
    });
    let tag = format!("{}.sig", digest.replace(':', "-"));
    let bytes = manifest.to_string();
    scene.server.put_manifest("team/app", &tag, manifest::OCI_MANIFEST, bytes.as_bytes());
}

struct Signed {
    scene: Scene,
    digest: String,
    name: String,
}

fn signed() -> Signed {
    let scene = Scene::new();
    let descriptor = scene.push(&TestImage::new().file("x", b"y"), "team/app:1");
    let digest = descriptor["digest"].as_str().expect("a text").to_owned();
    let name = scene.proxy.reference("team/app");
    Signed { scene, digest, name }
}

fn verify(signed: &Signed, key: &Key) -> Result<(), RegistryError> {
    let registry = signed.scene.registry("team/app:1");
    let resolved = registry.resolve().expect("it is there");
    registry.verify_signature(&resolved, &key.pem())
}

#[test]
fn a_signature_of_the_key_is_accepted() {
    for key in [Key::p256(), Key::ed25519()] {
        let image = signed();
        let text = payload(&image.digest, &image.name);
        let signature = key.sign(text.as_bytes());
        attach(&image.scene, &image.digest, &[(text, signature)]);
        verify(&image, &key).expect("it is signed");
    }
}

#[test]
fn an_index_is_signed_as_a_whole() {
    let (image, key) = (signed(), Key::p256());
    let scene = &image.scene;
    let one = scene.layout.add_image(&TestImage::new().file("x", b"y"));
    let index = scene.layout.add_index(&[one]);
    scene.layout.push(&index, &scene.server, "team/app:1");
    let digest = index["digest"].as_str().expect("a text");
    let text = payload(digest, &image.name);
    let signature = key.sign(text.as_bytes());
    attach(scene, digest, &[(text, signature)]);
    verify(&image, &key).expect("it is signed");
}

#[test]
fn one_good_signature_among_others_is_enough() {
    let (image, key, other) = (signed(), Key::p256(), Key::p256());
    let text = payload(&image.digest, &image.name);
    let note = text.replace("null", "{}");
    let signatures =
        [(note.clone(), other.sign(note.as_bytes())), (text.clone(), key.sign(text.as_bytes()))];
    attach(&image.scene, &image.digest, &signatures);
    verify(&image, &key).expect("it is signed");
}

#[test]
fn everything_else_is_refused_with_its_reason() {
    let key = Key::p256();
    let error = verify(&signed(), &key).expect_err("there is no signature");
    assert_eq!(error.to_string(), "team/app:1 has no signature of this key: there is none at all");
    assert_eq!(error.code(), banger_api::ErrorCode::SignatureInvalid);
    let zeros = format!("sha256:{}", "0".repeat(64));
    type Forge = fn(&Signed, &Key) -> (String, String);
    let cases: [(Forge, &str); 7] = [
        (
            |image, _| {
                let text = payload(&image.digest, &image.name);
                let signature = Key::p256().sign(text.as_bytes());
                (text, signature)
            },
            "there is one, but it is of another key",
        ),
        (
            |image, key| {
                let signature = key.sign(payload(&image.digest, &image.name).as_bytes());
                (payload(&image.digest, "other/name"), signature)
            },
            "it is of another key",
        ),
        (
            |image, key| {
                let text = payload(&format!("sha256:{}", "0".repeat(64)), &image.name);
                let signature = key.sign(text.as_bytes());
                (text, signature)
            },
            &format!("it is of {zeros}"),
        ),
        (
            |image, key| {
                let text = payload(&image.digest, "docker.io/other/app");
                let signature = key.sign(text.as_bytes());
                (text, signature)
            },
            "it is for the name docker.io/other/app",
        ),
        (
            |image, key| {
                let text = payload(&image.digest, &image.name).replace("cosign container", "x");
                let signature = key.sign(text.as_bytes());
                (text, signature)
            },
            "it is a x image signature",
        ),
        (|_, key| ("{}".to_owned(), key.sign(b"{}")), "what it signs is not what cosign writes"),
        (|image, _| (payload(&image.digest, &image.name), "%".to_owned()), "it is no base64"),
    ];
    let image = signed();
    for (forge, want) in cases {
        attach(&image.scene, &image.digest, &[forge(&image, &key)]);
        let error = verify(&image, &key).expect_err(want);
        assert!(matches!(error, RegistryError::Signature { .. }), "{error:?}");
        assert!(error.to_string().contains(want), "{error}");
    }
}
