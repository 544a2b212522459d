//! Pulls that go well, and images that are no good.

use banger_testkit::registry::{Fault, Layer, When};
use serde_json::json;

use super::*;

#[test]
fn an_image_comes_whole_and_the_second_pull_costs_one_request() {
    let scene = Scene::new();
    let image = TestImage::new()
        .file("etc/greeting", b"hello")
        .layer(Layer::zstd(Layer::tar_of(&[("a", b"b")])))
        .layer(Layer::plain(Layer::tar_of(&[("c", b"d")])))
        .noise("noise", 3_000_000, 1)
        .config(json!({ "Entrypoint": ["/x"] }));
    let descriptor = scene.push(&image, "team/app:1");
    let pulled = scene.pull("team/app:1").expect("it comes");
    assert_eq!(pulled.index_digest.as_str(), descriptor["digest"]);
    assert_eq!(pulled.manifest_digest, pulled.index_digest);
    assert_eq!((pulled.manifest.layers.len(), pulled.diff_ids.len()), (4, 4));
    assert_eq!(digest_of(&pulled.config), pulled.manifest.config.digest);
    assert_eq!(digest_of(&pulled.manifest_bytes), pulled.manifest_digest);
    assert!(has_all(&scene.blobs, &pulled));
    assert_eq!(contents(&scene.blobs, &pulled.manifest.layers[0].digest), image.layers[0].bytes);
    assert_eq!(pulled.diff_ids[3], digest_of(&image.layers[3].tar));

    scene.proxy.forget();
    let resolved = scene.registry("team/app:1").resolve().expect("it is there");
    assert_eq!(resolved.digest, pulled.index_digest);
    let requests = scene.proxy.requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert_eq!((&*requests[0].method, scene.proxy.bytes("")), ("HEAD", 0));

    // Layers that are here do not come again.
    scene.pull("team/app:1").expect("it comes");
    let config = format!("/blobs/{}", pulled.manifest.config.digest);
    assert_eq!(scene.proxy.count("GET", "/blobs/"), scene.proxy.count("GET", &config));
}

#[test]
fn an_index_leads_to_this_machines_image() {
    let scene = Scene::new();
    let image = |architecture: &str, variant| {
        let image = TestImage::new().file("arch", architecture.as_bytes());
        scene.layout.add_image(&image.architecture(architecture, variant))
    };
    let amd64 = image("amd64", None);
    let index = scene.layout.add_index(&[image("arm64", Some("v8")), amd64.clone()]);
    scene.layout.push(&index, &scene.server, "multi:1");
    let pulled = scene.pull("multi:1").expect("it comes");
    assert_eq!(pulled.index_digest.as_str(), index["digest"]);
    assert_eq!(pulled.manifest_digest.as_str(), amd64["digest"]);
    assert!(has_all(&scene.blobs, &pulled));
    // By its digest, and by the digest of the one inside.
    for descriptor in [&index, &amd64] {
        let digest = descriptor["digest"].as_str().expect("a text");
        let again = scene.pull(&format!("multi@{digest}")).expect("it comes");
        assert_eq!(again.manifest_digest, pulled.manifest_digest);
    }
    let both = format!("multi:gone@{}", pulled.index_digest);
    assert!(scene.pull(&both).is_ok(), "the digest counts, not the tag");
}

#[test]
fn an_image_for_other_machines_is_refused_with_their_names() {
    let scene = Scene::new();
    let image = |architecture: &str, variant| {
        let image = TestImage::new().file("arch", architecture.as_bytes());
        scene.layout.add_image(&image.architecture(architecture, variant))
    };
    let arm = image("arm", Some("v7"));
    let index = scene.layout.add_index(&[arm.clone(), image("s390x", None)]);
    scene.layout.push(&index, &scene.server, "multi:1");
    let error = scene.pull("multi:1").expect_err("not for us");
    assert_eq!(
        error.to_string(),
        "multi:1 is not made for linux/amd64, only for linux/arm/v7, linux/s390x"
    );
    scene.layout.push(&arm, &scene.server, "single:1");
    let error = scene.pull("single:1").expect_err("not for us");
    assert_eq!(error.to_string(), "single:1 is not made for linux/amd64, only for linux/arm/v7");
}

#[test]
fn docker_formats_are_as_good() {
    let scene = Scene::new();
    let image = TestImage::new().file("x", b"y");
    let layer = &image.layers[0];
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [digest_of(&layer.tar).as_str()] },
    });
    let config = config.to_string();
    let put = |bytes: &[u8], kind: &str| {
        let digest = scene.server.put_blob("old", bytes);
        json!({ "mediaType": kind, "digest": digest, "size": bytes.len() })
    };
    let kind = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    let one = json!({
        "schemaVersion": 2, "mediaType": manifest::DOCKER_MANIFEST,
        "config": put(config.as_bytes(), manifest::DOCKER_CONFIG),
        "layers": [put(&layer.bytes, kind), put(&layer.bytes, kind)],
    });
    let mut one = one;
    one["layers"].as_array_mut().expect("a list").truncate(1);
    let bytes = one.to_string();
    let digest = scene.server.put_manifest("old", "1", manifest::DOCKER_MANIFEST, bytes.as_bytes());
    let list = json!({
        "schemaVersion": 2, "mediaType": manifest::DOCKER_INDEX,
        "manifests": [{
            "mediaType": manifest::DOCKER_MANIFEST, "digest": digest, "size": bytes.len(),
            "platform": { "os": "linux", "architecture": "amd64" },
        }],
    });
    let list = list.to_string();
    scene.server.put_manifest("old", "list", manifest::DOCKER_INDEX, list.as_bytes());
    for tag in ["1", "list"] {
        let pulled = scene.pull(&format!("old:{tag}")).expect("it comes");
        assert_eq!(pulled.manifest_digest.as_str(), digest);
        assert!(has_all(&scene.blobs, &pulled));
    }
}

#[test]
fn what_does_not_exist_is_named() {
    let scene = Scene::new();
    scene.push(&TestImage::new().file("x", b"y"), "app:1");
    let error = scene.pull("app:2").expect_err("no such tag");
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error:?}");
    assert!(error.to_string().starts_with(&format!("{} has no app:2", scene.proxy.address())));
    let error = scene.pull("other/app:1").expect_err("no such repository");
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error:?}");
    let absent = format!("app@sha256:{}", "0".repeat(64));
    let error = scene.pull(&absent).expect_err("no such digest");
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error:?}");
}

#[test]
fn what_is_no_image_is_refused() {
    let scene = Scene::new();
    scene.push(&TestImage::new().file("x", b"y"), "app:1");
    let valid = scene.server.get("/v2/app/manifests/1", manifest::OCI_MANIFEST).expect("there");
    let valid: Value = serde_json::from_slice(&valid).expect("JSON");
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut value = valid.clone();
        change(&mut value);
        value.to_string()
    };
    let layer = &valid["layers"][0];
    let big = |value: &mut Value| value["annotations"] = json!({ "x": "y".repeat(5 << 20) });
    let cases: [(String, &str); 6] = [
        ("<html>".to_owned(), "expected value"),
        (json!({ "schemaVersion": 1 }).to_string(), "schema 1"),
        (
            changed(&|v| v["layers"][0]["mediaType"] = json!("application/x")),
            "of type application/x",
        ),
        (changed(&|v| v["layers"] = json!([layer, layer])), "its configuration lists 1"),
        (changed(&|v| v["config"]["size"] = json!(3)), "more than 3 bytes"),
        (changed(&big), "more than 4194304 bytes"),
    ];
    for (body, want) in cases {
        scene.proxy.heal();
        scene.proxy.fault(When::method("HEAD", "/manifests/"), Fault::status(405));
        scene.proxy.fault(When::get("/manifests/"), Fault::body(manifest::OCI_MANIFEST, body));
        let error = scene.pull("app:1").expect_err(want);
        assert!(matches!(error, RegistryError::Invalid { .. }), "{error:?}");
        assert!(error.to_string().contains(want), "{error}");
    }
}

#[test]
fn a_foreign_layer_that_nobody_has_is_refused_clearly() {
    let scene = Scene::new();
    scene.push(&TestImage::new().file("x", b"y"), "app:1");
    let valid = scene.server.get("/v2/app/manifests/1", manifest::OCI_MANIFEST).expect("there");
    let mut value: Value = serde_json::from_slice(&valid).expect("JSON");
    let kind = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    value["layers"][0]["mediaType"] = json!(kind);
    let digest = value["layers"][0]["digest"].as_str().expect("a text").to_owned();
    scene.proxy.fault(When::method("HEAD", "/manifests/"), Fault::status(405));
    let body = value.to_string();
    scene.proxy.fault(When::get("/manifests/"), Fault::body(manifest::OCI_MANIFEST, body));
    assert!(scene.pull("app:1").is_ok(), "some registries do have it");
    scene.blobs.remove(&Digest::parse(&digest).expect("a digest")).expect("it goes");
    scene.proxy.fault(When::get(&digest), Fault::status(404));
    let error = scene.pull("app:1").expect_err("nobody has it");
    let want = format!(
        "layer {digest} is not usable: its maker allows no registry to store it, and this one \
         does not"
    );
    assert_eq!(error.to_string(), want);
}

#[test]
fn a_tag_that_moves_during_a_pull_does_not_mix_two_images() {
    let scene = Scene::new();
    let old = scene.push(&TestImage::new().file("x", b"old"), "app:1");
    let registry = scene.registry("app:1");
    let resolved = registry.resolve().expect("it is there");
    let new = scene.push(&TestImage::new().file("x", b"new"), "app:1");
    let pulled = registry.manifest(&resolved).expect("it is still there");
    assert_eq!(pulled.manifest_digest.as_str(), old["digest"]);
    assert_eq!(scene.registry("app:1").resolve().expect("there").digest.as_str(), new["digest"]);
}

#[test]
fn a_registry_that_lies_about_digests_is_caught() {
    let scene = Scene::new();
    scene.push(&TestImage::new().file("x", b"y"), "app:1");
    let other = scene.push(&TestImage::new().file("x", b"z"), "app:2");
    let other = other["digest"].as_str().expect("a text");
    // The tag stands for something, and something else comes.
    let lie = Fault::Header("Docker-Content-Digest".to_owned(), Some(other.to_owned()));
    scene.proxy.fault(When::method("HEAD", "/manifests/1"), lie);
    let swap = Fault::Rewrite(format!("manifests/{other}"), "manifests/1".to_owned());
    scene.proxy.fault(When::get(&format!("/manifests/{other}")), swap);
    let error = scene.pull("app:1").expect_err("another manifest came");
    assert!(error.to_string().contains(&format!("what comes for {other}")), "{error}");
    // Without the header the bytes themselves say it.
    scene.proxy.heal();
    let silence = Fault::Header("Docker-Content-Digest".to_owned(), None);
    scene.proxy.fault(When::method("HEAD", "/manifests/1"), silence);
    assert!(scene.pull("app:1").is_ok());
}
