//! Pushing, and what is pushed pulled again, by ourselves and by skopeo.

use banger_host::command::Tool;
use banger_testkit::registry::{Fault, PASSWORD, USER, When};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::*;

/// Stores an image as another part of banger would.
fn stored(scene: &Scene, image: &TestImage) -> Upload {
    let add = |bytes: &[u8], kind: &str| {
        let (digest, size) = scene.blobs.add(&mut &*bytes, None, &Cancel::new()).expect("room");
        Descriptor { media_type: kind.to_owned(), digest, size, annotations: None }
    };
    let layers: Vec<Descriptor> =
        image.layers.iter().map(|layer| add(&layer.bytes, &layer.media_type)).collect();
    let diff_ids: Vec<Digest> = image.layers.iter().map(|layer| digest_of(&layer.tar)).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = add(config.to_string().as_bytes(), manifest::OCI_CONFIG);
    let one = Manifest {
        schema_version: 2,
        media_type: Some(manifest::OCI_MANIFEST.to_owned()),
        config: config.clone(),
        layers: layers.clone(),
    };
    let manifest = serde_json::to_vec(&one).expect("it is plain");
    let blobs = std::iter::once(config).chain(layers).collect();
    Upload { manifest, media_type: manifest::OCI_MANIFEST.to_owned(), blobs }
}

fn target(at: &str, access: &RegistryAccess) -> Registry {
    let purpose = (Purpose::Push, &Cancel::new());
    Registry::connect_in(&surroundings(), &reference(at), access, purpose).expect("fine")
}

fn push(scene: &Scene, upload: &Upload, name: &str) -> Result<Digest, RegistryError> {
    let registry = target(&scene.proxy.reference(name), &RegistryAccess::default());
    registry.push(upload, &scene.blobs, silent())
}

fn image() -> TestImage {
    TestImage::new().file("etc/x", b"y").noise("noise", 2_000_000, 9)
}

#[test]
fn what_is_pushed_can_be_pulled_by_anybody() {
    let scene = Scene::new();
    let upload = stored(&scene, &image());
    let registry = target(&scene.proxy.reference("team/new:1"), &RegistryAccess::default());
    let (sink, said) = recorder();
    let digest = registry.push(&upload, &scene.blobs, sink).expect("it goes");
    assert_eq!(digest, digest_of(&upload.manifest));
    let inspected = Tool::new("skopeo")
        .args(["inspect", "--tls-verify=false", "--format", "{{.Digest}} {{len .Layers}}"])
        .arg(format!("docker://{}", scene.server.reference("team/new:1")))
        .run(&Cancel::new())
        .expect("skopeo understands it");
    assert_eq!(inspected.text().trim(), format!("{digest} 2"));
    let elsewhere = Blobs::open(&scene.path("elsewhere")).expect("it opens");
    let pulled = pull(&scene.registry("team/new:1"), &elsewhere).expect("it comes");
    assert!(has_all(&elsewhere, &pulled));
    let said = said.lock().expect("no panic");
    for blob in &upload.blobs {
        let item = Some(blob.digest.short());
        let last = said.iter().rfind(|progress| progress.item.as_deref() == item);
        assert_eq!(last.expect("it is told").done, Some(blob.size));
    }
}

#[test]
fn what_the_registry_has_does_not_go_again() {
    let scene = Scene::new();
    let upload = stored(&scene, &image());
    push(&scene, &upload, "app:1").expect("it goes");
    assert_eq!(scene.proxy.count("PUT", "/blobs/"), 3);
    scene.proxy.forget();
    push(&scene, &upload, "app:2").expect("it goes");
    assert_eq!((scene.proxy.count("POST", ""), scene.proxy.count("PUT", "")), (0, 1));
}

#[test]
fn a_broken_upload_is_begun_anew() {
    let scene = Scene::new();
    let upload = stored(&scene, &image());
    scene.proxy.fault(When::method("PUT", "/blobs/").once(), Fault::DropRequestAfter(100));
    scene.proxy.fault(When::method("PUT", "/blobs/").once(), Fault::status(500));
    scene.proxy.fault(When::method("POST", "/blobs/").once(), Fault::status(503));
    scene.proxy.fault(When::method("PUT", "/manifests/").once(), Fault::status(502));
    push(&scene, &upload, "app:1").expect("it goes");
    let elsewhere = Blobs::open(&scene.path("elsewhere")).expect("it opens");
    assert!(has_all(&elsewhere, &pull(&scene.registry("app:1"), &elsewhere).expect("it comes")));
}

#[test]
fn refused_uploads_say_why() {
    let scene = Scene::new();
    let upload = stored(&scene, &image());
    let refusal = |status: u16, code: &str| Fault::Answer {
        status,
        headers: Vec::new(),
        body: json!({ "errors": [{ "code": code, "message": "because" }] }).to_string().into(),
    };
    let cases = [
        ("POST", refusal(403, "DENIED"), "refuses access to app"),
        ("POST", refusal(404, "NAME_UNKNOWN"), "has no app (it says: because)"),
        ("PUT", refusal(400, "DIGEST_INVALID"), "it answers 400 Bad Request (because)"),
        ("POST", Fault::status(202), "it takes uploads, and does not say where"),
        ("POST", Fault::status_with(202, "Location", "ftp://x/"), "no address of the web"),
    ];
    for (method, fault, want) in cases {
        scene.proxy.heal();
        scene.proxy.fault(When::method(method, "/blobs/"), fault);
        let error = push(&scene, &upload, "app:1").expect_err(want).to_string();
        assert!(error.contains(want), "{error}");
    }
    scene.proxy.heal();
    let other = Fault::Header("Docker-Content-Digest".to_owned(), Some("sha256:0".to_owned()));
    scene.proxy.fault(When::method("PUT", "/manifests/"), other);
    let error = push(&scene, &upload, "app:1").expect_err("another manifest").to_string();
    assert!(error.contains("it took another manifest"), "{error}");
}

#[test]
fn a_password_opens_the_way() {
    let scene = Scene::with(&RegistryOptions { password: true, ..RegistryOptions::default() });
    let upload = stored(&scene, &image());
    let error = push(&scene, &upload, "app:1").expect_err("no password");
    assert!(matches!(error, RegistryError::Denied { anonymous: true, .. }), "{error:?}");
    let auth = STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let auths = json!({ "auths": { scene.proxy.address(): { "auth": auth } } }).to_string();
    let config = Some(write(&scene.path("auth.json"), &auths));
    let access = RegistryAccess { config, ..RegistryAccess::default() };
    let registry = target(&scene.proxy.reference("app:1"), &access);
    registry.push(&upload, &scene.blobs, silent()).expect("it goes");
}

#[test]
fn tokens_for_pushing_are_asked_for() {
    let scene = Scene::new();
    let upload = stored(&scene, &image());
    let realm = format!("http://{}/token", scene.proxy.address());
    scene.proxy.rule(move |request| {
        if request.target.starts_with("/token") {
            return Some(Fault::body("application/json", r#"{"token":"t"}"#));
        }
        let challenge = format!("Bearer realm=\"{realm}\"");
        let refusal = Fault::status_with(401, "WWW-Authenticate", &challenge);
        request.header("authorization").is_none().then_some(refusal)
    });
    push(&scene, &upload, "app:1").expect("it goes");
    assert_eq!(scene.proxy.count("GET", "scope=repository%3Aapp%3Apull%2Cpush"), 1);
}
