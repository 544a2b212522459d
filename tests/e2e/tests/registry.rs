//! Images out of registries: a real one on loopback, and a proxy in front of it that counts.

use std::time::Duration;

use banger_e2e::{LocalImage, configure, stored};
use banger_testkit::Host;
use banger_testkit::fixtures::TestRegistry;
use banger_testkit::registry::{Fault, FaultProxy, TestImage, When};
use serde_json::Value;

fn pull(host: &Host, reference: &str) {
    host.banger(["image", "pull", reference]).run().assert_ok();
}

/// "`image pull REF`: OCI/Docker registries (v2), by tag or digest, multi-arch index → this
/// machine's platform"
#[test]
fn images_are_pulled_by_tag_by_digest_and_out_of_an_index() {
    let host = Host::new();
    let registry = TestRegistry::empty();
    let layout = registry.layout();
    let here = layout.add_image(&TestImage::new().file("kind", b"amd64\n"));
    let there = TestImage::new().file("kind", b"arm64\n").architecture("arm64", Some("v8"));
    let there = layout.add_image(&there);
    let index = layout.add_index(&[there.clone(), here.clone()]);
    layout.push(&index, &registry.server, "team/multi:1");
    layout.push(&there, &registry.server, "team/foreign:1");
    let by_tag = registry.reference("team/multi:1");
    pull(&host, &by_tag);
    let image = LocalImage::of(&host, &by_tag);
    assert_eq!(image.read("/kind"), "amd64\n");
    assert_eq!(image.shown["oci"]["reference"], by_tag.as_str());
    assert_eq!(image.shown["oci"]["digest"], index["digest"]);
    assert_eq!(image.shown["oci"]["manifest_digest"], here["digest"]);
    image.assert_clean();
    let digest = here["digest"].as_str().expect("a digest");
    let by_digest = registry.reference(&format!("team/multi@{digest}"));
    pull(&host, &by_digest);
    let same = LocalImage::of(&host, &by_digest);
    assert_eq!(same.digest(), image.digest(), "equal images are stored once");
    assert_eq!(stored(&host, "images", "sha256-").len(), 2, "with the default one");
    let refused = host
        .banger(["image", "pull", &registry.reference("team/foreign:1"), "--format", "json"])
        .run()
        .assert_code(125);
    assert!(refused.stderr_text().contains("arm64"), "{refused}");
    refused.assert_stderr_has("image_invalid");
    let missing = registry.reference("team/multi:2");
    host.banger(["image", "pull", &missing, "--format", "json"])
        .run()
        .assert_code(125)
        .assert_stderr_has("image_not_found");
    host.finish();
}

/// "Second pull of an unchanged tag … no blob traffic"; "equal layers … are stored once"
#[test]
fn nothing_is_fetched_twice() {
    let host = Host::new();
    let registry = TestRegistry::empty();
    let base = TestImage::new().noise("base", 300_000, 1);
    registry.push(&base, "app:1");
    let child = registry.push(&base.clone().file("child", b"x"), "child:1");
    let proxy = FaultProxy::start(registry.server.address());
    let app = proxy.reference("app:1");
    pull(&host, &app);
    let digest = LocalImage::of(&host, &app).digest();
    proxy.forget();
    let again = host.banger(["image", "pull", &app]).run().assert_ok();
    assert_eq!(proxy.count("GET", "/blobs/"), 0, "{:?}", proxy.requests());
    assert!(again.took < Duration::from_secs(6), "{again}");
    assert_eq!(LocalImage::of(&host, &app).digest(), digest);
    // Of an image with the same base only what is new comes.
    pull(&host, &proxy.reference("child:1"));
    assert_eq!(proxy.count("GET", "/blobs/"), 2, "its configuration and its own layer");
    assert!(proxy.bytes("/blobs/") < 10_000, "{:?}", proxy.requests());
    let image = LocalImage::of(&host, &proxy.reference("child:1"));
    assert_eq!(image.shown["oci"]["manifest_digest"], child["digest"]);
    assert!(image.has("/base") && image.has("/child"));
    host.finish();
}

/// "a tag that moves"; "`image show|ls|rm|prune` (rm refuses while VMs use it, says which; prune has
/// `--dry-run`)"
#[test]
fn a_tag_that_moves_makes_a_new_version() {
    let host = Host::new();
    let registry = TestRegistry::empty();
    registry.push(&TestImage::new().file("version", b"1"), "app:stable");
    let app = registry.reference("app:stable");
    pull(&host, &app);
    let old = LocalImage::of(&host, &app).digest();
    host.banger(["create", "--name", "keeper", &app]).run().assert_ok();
    registry.push(&TestImage::new().file("version", b"2"), "app:stable");
    host.banger(["image", "pull", "--refresh", &app]).run().assert_ok();
    let new = LocalImage::of(&host, &app);
    assert_eq!(new.read("/version"), "2");
    assert_ne!(new.digest(), old);
    // The machine keeps what it was made with.
    assert_eq!(LocalImage::of(&host, &old).read("/version"), "1");
    host.banger(["image", "ls"]).run().assert_ok().assert_stdout_has("superseded");
    host.banger(["image", "rm", &old]).run().assert_code(125).assert_stderr_has("keeper");
    let prune = |more: &[&str]| {
        let pruned = host.banger([&["image", "prune", "--format", "json"], more].concat()).run();
        let pruned: Value = serde_json::from_str(&pruned.assert_ok().stdout_text()).expect("JSON");
        pruned["images"].as_array().expect("a list").len()
    };
    assert_eq!(prune(&["--dry-run"]), 0, "a machine needs it");
    host.banger(["rm", "keeper"]).run().assert_ok();
    assert_eq!(prune(&["--dry-run"]), 1);
    assert_eq!(LocalImage::of(&host, &old).digest(), old, "a dry run removes nothing");
    assert_eq!(prune(&["--yes"]), 1);
    host.banger(["image", "show", &old]).run().assert_code(125);
    assert_eq!(LocalImage::of(&host, &app).digest(), new.digest());
    host.banger(["image", "rm", &app]).run().assert_ok();
    host.banger(["image", "prune", "--yes"]).run().assert_ok();
    assert_eq!(stored(&host, "blobs", "sha256-").len(), 0, "no image needs a layer any more");
    host.finish();
}

/// "two pulls of the same image at once"
#[test]
fn two_pulls_at_once_fetch_each_blob_once() {
    let host = Host::new();
    let registry = TestRegistry::empty();
    let image = TestImage::new().noise("one", 2_000_000, 1).noise("two", 2_000_000, 2);
    registry.push(&image, "app:1");
    let proxy = FaultProxy::start(registry.server.address());
    let app = proxy.reference("app:1");
    let pulls: Vec<_> = (0..3).map(|_| host.banger(["image", "pull", &app]).spawn()).collect();
    for pull in pulls {
        pull.wait().assert_ok();
    }
    assert_eq!(proxy.count("GET", "/blobs/"), 3, "two layers and a configuration");
    LocalImage::of(&host, &app).assert_clean();
    host.finish();
}

/// "Layers download in parallel … Progress per layer."
#[test]
fn progress_is_told_per_layer() {
    let host = Host::new();
    let registry = TestRegistry::empty();
    let image = TestImage::new().noise("one", 500_000, 1).noise("two", 500_000, 2);
    registry.push(&image, "app:1");
    let output = host.banger(["image", "pull", &registry.reference("app:1")]).run().assert_ok();
    let image = LocalImage::of(&host, &registry.reference("app:1"));
    let layers = image.shown["oci"]["layers"].as_array().expect("layers").clone();
    assert_eq!(layers.len(), 2);
    for layer in layers {
        let digest = layer["digest"].as_str().expect("a digest")[7..19].to_owned();
        assert_eq!(output.stderr_text().matches(&digest).count(), 1, "{digest}: {output}");
    }
    let quiet = host.banger(["image", "pull", "-q", &registry.reference("app:1")]).run();
    assert_eq!(quiet.assert_ok().stderr_text(), "");
    host.finish();
}

/// "A registry that drops connections, answers 429/500 …": what a second try mends is no failure.
#[test]
fn a_registry_with_hiccups_is_asked_again() {
    let host = Host::new();
    let registry = TestRegistry::empty();
    let image = TestImage::new().noise("one", 900_000, 1).noise("two", 900_000, 2);
    registry.push(&image, "app:1");
    let proxy = FaultProxy::start(registry.server.address());
    proxy.fault(When::get("/manifests/").once(), Fault::status(500));
    proxy.fault(When::get("/blobs/").once(), Fault::status_with(429, "Retry-After", "1"));
    proxy.fault(When::get("/blobs/").once(), Fault::DropAfter(400_000));
    proxy.fault(When::get("/blobs/").after(1).once(), Fault::Truncate(100_000));
    pull(&host, &proxy.reference("app:1"));
    LocalImage::of(&host, &proxy.reference("app:1")).assert_clean();
    // 1.8 MB, and 0.1 MB that a registry gave for a whole layer; what came before the break came once.
    let came = proxy.bytes("/blobs/");
    assert!((1_800_000..2_000_000).contains(&came), "what had come was kept: {came}");
    host.finish();
}

/// "sends a short or wrong blob": nothing half-made stays visible, and the next pull is good.
#[test]
fn a_wrong_blob_is_refused() {
    let host = Host::new();
    let registry = TestRegistry::empty();
    let image = registry.layout().add_image(&TestImage::new().noise("one", 500_000, 1));
    registry.push(&TestImage::new().noise("one", 500_000, 1), "app:1");
    let manifest = image["digest"].as_str().expect("a digest").to_owned();
    let proxy = FaultProxy::start(registry.server.address());
    let app = proxy.reference(&format!("app@{manifest}"));
    for (target, fault) in [
        ("/blobs/", Fault::Corrupt(1000)),
        ("/blobs/", Fault::Extend(10)),
        ("/manifests/", Fault::Corrupt(20)),
        ("/manifests/", Fault::body("application/json", "{")),
    ] {
        proxy.fault(When::get(target), fault.clone());
        let output = host.banger(["image", "pull", &app, "--format", "json"]).run();
        let output = output.assert_code(125);
        assert!(output.stderr_text().contains("image_invalid"), "{fault:?}: {output}");
        host.banger(["image", "ls", "-q"]).run().assert_ok().assert_stdout("debian-bookworm\n");
        proxy.heal();
    }
    pull(&host, &app);
    LocalImage::of(&host, &app).assert_clean();
    host.finish();
}

/// "short names resolve through the catalog first, then Docker Hub style references"; what is almost
/// a known name is not looked for at strangers'.
#[test]
fn short_names_are_the_catalogs_then_the_hubs() {
    let host = Host::new();
    let registry = TestRegistry::empty();
    registry.push(&TestImage::new().file("from", b"the hub\n"), "hub/library/alpine:latest");
    registry.push(&TestImage::new().file("from", b"a team\n"), "hub/some/tool:2");
    let proxy = FaultProxy::start(registry.server.address());
    let settings = format!("[registry.\"docker.io\"]\nmirror = \"{}/hub\"\n", proxy.address());
    configure(&host, "registries.toml", &settings);
    pull(&host, "alpine");
    assert_eq!(LocalImage::of(&host, "alpine").read("/from"), "the hub\n");
    pull(&host, "some/tool:2");
    assert_eq!(LocalImage::of(&host, "docker.io/some/tool:2").read("/from"), "a team\n");
    // The same under its whole name, which the catalog does not know.
    pull(&host, "docker.io/library/alpine");
    proxy.forget();
    pull(&host, "docker.io/library/alpine");
    assert_eq!(proxy.count("GET", ""), 0, "{:?}", proxy.requests());
    proxy.forget();
    for misspelt in ["alpin", "debian-bokworm"] {
        let output = host.banger(["image", "pull", misspelt]).run().assert_code(125);
        let text = output.stderr_text();
        assert!(text.contains("hint: ") && text.contains("did you mean"), "{output}");
    }
    let never = host.banger(["run", "--rm", "--pull", "never", "some/other:1", "--", "true"]).run();
    let never = never.assert_code(125);
    assert!(never.stderr_text().contains("some/other:1"), "{never}");
    assert_eq!(proxy.requests(), [], "nobody was asked");
    assert!(host.vm_names().is_empty());
    host.finish();
}
