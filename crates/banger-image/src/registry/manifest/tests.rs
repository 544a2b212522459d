//! Tests of reading manifests: what is taken, what is refused, and that nothing panics.

use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn descriptor(media_type: &str, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": format!("sha256:{HEX}"), "size": size })
}

fn manifest(layers: &[Value]) -> Value {
    json!({ "schemaVersion": 2, "config": descriptor(OCI_CONFIG, 2), "layers": layers })
}

fn entry(platform: &Value) -> Value {
    let mut entry = descriptor(OCI_MANIFEST, 1);
    entry["platform"] = platform.clone();
    entry
}

fn linux(architecture: &str, variant: Option<&str>) -> Value {
    json!({ "os": "linux", "architecture": architecture, "variant": variant })
}

fn parse(value: &Value, content_type: Option<&str>) -> Result<Document, String> {
    Document::parse(value.to_string().as_bytes(), content_type)
}

fn checked(value: &Value) -> Result<(), String> {
    match parse(value, None).expect("it can be read") {
        Document::Manifest(manifest) => manifest.check(),
        Document::Index(_) => panic!("an index"),
    }
}

#[test]
fn the_four_formats_are_told_apart() {
    let layers = [descriptor(GZIP, 7)];
    let mut with_type = manifest(&layers);
    with_type["mediaType"] = json!(DOCKER_MANIFEST);
    let index = json!({ "schemaVersion": 2, "manifests": [entry(&linux("amd64", None))] });
    for (value, content_type, is_index) in [
        (&manifest(&layers), Some(OCI_MANIFEST), false),
        (
            &manifest(&layers),
            Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8"),
            false,
        ),
        (&manifest(&layers), Some("text/plain"), false),
        (&manifest(&layers), None, false),
        (&with_type, None, false),
        (&index, Some(DOCKER_INDEX), true),
        (&index, None, true),
    ] {
        let document =
            parse(value, content_type).unwrap_or_else(|e| panic!("{content_type:?}: {e}"));
        assert_eq!(matches!(document, Document::Index(_)), is_index, "{content_type:?}");
    }
}

#[test]
fn what_is_no_manifest_is_refused() {
    let both = json!({ "schemaVersion": 2, "manifests": [], "layers": [] });
    let old = json!({ "schemaVersion": 1, "fsLayers": [], "name": "x" });
    let one = manifest(&[]);
    let mut foreign = manifest(&[]);
    foreign["mediaType"] = json!("application/vnd.example");
    let cases = [
        (&both, None, "a manifest and an index at once"),
        (&old, None, "schema 1"),
        (&one, Some("application/vnd.docker.distribution.manifest.v1+prettyjws"), "schema 1"),
        (&one, Some(OCI_INDEX), "its type is application/vnd.oci.image.index.v1+json"),
        (&foreign, None, "its type is application/vnd.example"),
        (&json!({ "schemaVersion": 3 }), None, "neither an OCI nor a Docker manifest"),
        (&json!({}), None, "neither an OCI nor a Docker manifest"),
        (&json!([]), None, "invalid"),
        (&json!({ "schemaVersion": 2 }), None, "missing field"),
        (&json!({ "schemaVersion": 2, "manifests": [{}] }), None, "missing field"),
    ];
    for (value, content_type, want) in cases {
        let error = parse(value, content_type).expect_err(want);
        assert!(error.contains(want), "{error}");
    }
    assert!(Document::parse(b"<html>", None).is_err());
    assert!(Document::parse(b"{\"schemaVersion\":2,\"layers\":[],\"layers\":[]}", None).is_err());
}

#[test]
fn this_machines_image_is_chosen() {
    let choose_from = |platforms: &[Value]| {
        let entries: Vec<Value> = platforms.iter().map(entry).collect();
        let index = json!({ "schemaVersion": 2, "manifests": entries });
        let Document::Index(entries) = parse(&index, None).expect("an index") else { panic!() };
        let chosen = choose(&entries, &Platform::of_this_machine());
        chosen.map(|e| e.platform.as_ref().map_or("none".to_owned(), Platform::name))
    };
    let amd64 = |variant| linux("amd64", variant);
    let unknown = json!({ "os": "unknown", "architecture": "unknown" });
    let cases: [(&[Value], Result<&str, &str>); 8] = [
        (&[linux("arm64", Some("v8")), amd64(None)], Ok("linux/amd64")),
        (&[amd64(Some("v3")), amd64(Some("v1")), amd64(None)], Ok("linux/amd64")),
        (&[amd64(Some("v3")), amd64(Some("v2"))], Ok("linux/amd64/v2")),
        (&[json!({"os": "windows", "architecture": "amd64"}), amd64(None)], Ok("linux/amd64")),
        (&[Value::Null], Ok("none")),
        (&[Value::Null, linux("arm", Some("v7"))], Err("linux/arm/v7")),
        (&[linux("s390x", None), unknown, linux("arm64", None)], Err("linux/arm64 linux/s390x")),
        (&[], Err("")),
    ];
    for (platforms, want) in cases {
        let chosen = choose_from(platforms);
        match want {
            Ok(name) => assert_eq!(chosen.as_deref(), Ok(name)),
            Err(names) => assert_eq!(chosen.expect_err(names).join(" "), names),
        }
    }
}

#[test]
fn images_are_bounded_and_made_of_layers() {
    assert_eq!(checked(&manifest(&[descriptor(GZIP, 7)])), Ok(()));
    let mut chart = manifest(&[]);
    chart["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
    let mut large = manifest(&[]);
    large["config"]["size"] = json!(MAX_CONFIG + 1);
    let odd = descriptor("application/vnd.oci.image.layer.v1.tar+encrypted", 1);
    let cases = [
        (chart, "it is no container image"),
        (large, "its configuration has 8388609 bytes"),
        (manifest(&vec![descriptor(GZIP, 0); MAX_LAYERS + 1]), "it has 513 layers"),
        (manifest(&[odd]), "tar+encrypted"),
        (manifest(&vec![descriptor(GZIP, u64::MAX); 2]), "more than 256 GiB"),
        (manifest(&[descriptor(GZIP, MAX_BYTES + 1)]), "more than 256 GiB"),
    ];
    for (value, want) in cases {
        let error = checked(&value).expect_err(want);
        assert!(error.contains(want), "{error}");
    }
    let negative = manifest(&[json!({ "mediaType": GZIP, "digest": "sha256:x", "size": -1 })]);
    assert!(parse(&negative, None).is_err());
}

#[test]
fn a_configuration_belongs_to_its_manifest() {
    let Ok(Document::Manifest(one)) = parse(&manifest(&[descriptor(GZIP, 7)]), None) else {
        panic!()
    };
    let check = |config: Value| {
        check_config(config.to_string().as_bytes(), &one, &Platform::of_this_machine())
    };
    let ids = |count| json!({ "type": "layers", "diff_ids": vec![format!("sha256:{HEX}"); count] });
    let amd64 =
        |ids| json!({ "os": "linux", "architecture": "amd64", "rootfs": ids, "config": {} });
    assert_eq!(check(amd64(ids(1))).map(|ids| ids.len()), Ok(1));
    assert_eq!(check(json!({ "rootfs": ids(1) })).map(|ids| ids.len()), Ok(1));
    let arm = json!({ "os": "linux", "architecture": "arm64", "variant": "v8", "rootfs": ids(1) });
    assert_eq!(check(arm), Err(ConfigFault::Platform("linux/arm64/v8".to_owned())));
    for wrong in [amd64(ids(2)), amd64(json!({})), amd64(json!({ "diff_ids": ["x"] })), json!(1)] {
        assert!(matches!(check(wrong.clone()), Err(ConfigFault::Other(_))), "{wrong}");
    }
}

#[test]
fn foreign_layers_are_known() {
    let is_foreign = |media_type: &str| {
        let descriptor: Descriptor =
            serde_json::from_value(descriptor(media_type, 1)).expect("a descriptor");
        descriptor.is_foreign()
    };
    assert!(LAYERS.iter().filter(|kind| is_foreign(kind)).count() == 4);
    assert!(!is_foreign(GZIP));
}

proptest! {
    #[test]
    fn nothing_panics(bytes: Vec<u8>, key in "manifests|layers|config|mediaType", value in ".{0,8}") {
        let _ = Document::parse(&bytes, None);
        let text = format!("{{\"schemaVersion\":2,\"{key}\":{value}}}");
        let _ = Document::parse(text.as_bytes(), Some(&value));
    }
}
