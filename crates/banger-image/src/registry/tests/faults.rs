//! Registries and networks that fail, in every way that a proxy can be told.

use std::time::Instant;

use banger_testkit::registry::{Fault, When};
use banger_testkit::wait;

use super::*;

/// An image with one large layer, and the path of that.
fn large(scene: &Scene, name: &str) -> (TestImage, String) {
    let image = TestImage::new().noise("noise", 1_000_000, 7);
    let descriptor = scene.push(&image, name);
    let _ = descriptor;
    let blob = format!("/blobs/{}", digest_of(&image.layers[0].bytes));
    (image, blob)
}

#[test]
fn a_broken_download_goes_on_where_it_broke() {
    let scene = Scene::new();
    let (image, blob) = large(&scene, "app:1");
    for at in [300_000, 200_000, 100_000] {
        scene.proxy.fault(When::get(&blob).once(), Fault::DropAfter(at));
    }
    let pulled = scene.pull("app:1").expect("it comes");
    assert!(has_all(&scene.blobs, &pulled));
    let requests = scene.proxy.requests();
    let ranges: Vec<_> =
        requests.iter().filter(|r| r.target.contains(&blob)).map(|r| r.header("range")).collect();
    let want = [None, Some("bytes=300000-"), Some("bytes=500000-"), Some("bytes=600000-")];
    assert_eq!(ranges, want);
    assert_eq!(scene.proxy.bytes(&blob), image.layers[0].bytes.len() as u64, "nothing twice");
}

#[test]
fn a_pull_goes_on_where_an_earlier_one_broke() {
    let scene = Scene::new();
    let (image, blob) = large(&scene, "app:1");
    scene.proxy.fault(When::get(&blob).once(), Fault::DropAfter(400_000));
    scene.proxy.fault(When::get(&blob), Fault::status(503));
    let error = scene.pull("app:1").expect_err("it keeps failing");
    assert!(matches!(error, RegistryError::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("503"), "{error}");
    assert_eq!(scene.blobs.partials().expect("a list")[0].bytes, 400_000);
    scene.proxy.heal();
    scene.proxy.forget();
    let pulled = scene.pull("app:1").expect("it comes");
    assert!(has_all(&scene.blobs, &pulled));
    assert_eq!(scene.proxy.bytes(&blob), image.layers[0].bytes.len() as u64 - 400_000);
}

#[test]
fn a_server_without_ranges_sends_it_all_again() {
    let scene = Scene::new();
    let (_, blob) = large(&scene, "app:1");
    scene.proxy.fault(When::get(&blob).once(), Fault::DropAfter(400_000));
    scene.proxy.fault(When::get(&blob), Fault::IgnoreRange);
    let pulled = scene.pull("app:1").expect("it comes");
    assert!(has_all(&scene.blobs, &pulled));
    assert_eq!(scene.proxy.count("GET", &blob), 2);
}

#[test]
fn a_server_without_ranges_that_always_breaks_is_given_up() {
    let scene = Scene::new();
    let (_, blob) = large(&scene, "app:1");
    // The header is there, and the proxy drops: the same part comes again and again.
    let upstream = FaultProxy::start(scene.server.address());
    upstream.fault(When::get(&blob), Fault::IgnoreRange);
    let breaking = FaultProxy::start(upstream.address());
    breaking.fault(When::get(&blob), Fault::DropAfter(400_000));
    let error = pull(&connect(&breaking.reference("app:1")), &scene.blobs).expect_err("never");
    assert!(matches!(error, RegistryError::Unavailable { .. }), "{error:?}");
    // The first reached further than ever, the others did not.
    assert_eq!(breaking.count("GET", &blob), 4);
}

#[test]
fn another_part_than_asked_for_is_not_taken() {
    let scene = Scene::new();
    let (_, blob) = large(&scene, "app:1");
    scene.proxy.fault(When::get(&blob).once(), Fault::DropAfter(400_000));
    let lie = Fault::Header("Content-Range".to_owned(), Some("bytes 7-9/10".to_owned()));
    scene.proxy.fault(When::get(&blob).once(), lie);
    let pulled = scene.pull("app:1").expect("it comes");
    assert!(has_all(&scene.blobs, &pulled));
    let last = scene.proxy.requests().into_iter().rfind(|r| r.target.contains(&blob));
    assert_eq!(last.expect("one").header("range"), None, "it is not asked for parts any more");
}

#[test]
fn a_part_that_the_server_does_not_have_is_fetched_from_the_start() {
    let scene = Scene::new();
    let (_, blob) = large(&scene, "app:1");
    scene.proxy.fault(When::get(&blob).once(), Fault::DropAfter(400_000));
    scene.proxy.fault(When::get(&blob).once(), Fault::status(416));
    assert!(has_all(&scene.blobs, &scene.pull("app:1").expect("it comes")));
}

#[test]
fn wrong_bytes_are_fetched_once_more_and_then_refused() {
    let wrongs = [
        (Fault::Corrupt(500_000), "its digest is sha256:"),
        (Fault::Truncate(500_000), "it has fewer than "),
        (Fault::Extend(10), "it has more than "),
    ];
    let scene = Scene::new();
    let (image, blob) = large(&scene, "app:1");
    let digest = digest_of(&image.layers[0].bytes);
    for (fault, want) in wrongs {
        scene.proxy.heal();
        scene.proxy.forget();
        scene.proxy.fault(When::get(&blob).once(), fault.clone());
        let pulled = scene.pull("app:1").unwrap_or_else(|e| panic!("{fault:?}: {e}"));
        assert!(has_all(&scene.blobs, &pulled));
        assert_eq!(scene.proxy.count("GET", &blob), 2, "{fault:?}");

        scene.blobs.remove(&digest).expect("it goes");
        scene.proxy.heal();
        scene.proxy.forget();
        scene.proxy.fault(When::get(&blob), fault.clone());
        let error = scene.pull("app:1").expect_err("always wrong");
        assert!(matches!(error, RegistryError::WrongBlob { .. }), "{fault:?}: {error:?}");
        let text = error.to_string();
        assert!(text.contains(digest.as_str()) && text.contains(want), "{text}");
        assert_eq!(scene.proxy.count("GET", &blob), 2, "{fault:?}");
        assert_eq!(scene.blobs.partials().expect("a list")[0].bytes, 0, "nothing wrong is kept");
    }
}

#[test]
fn a_spoilt_part_of_an_earlier_pull_is_thrown_away() {
    let scene = Scene::new();
    let (image, blob) = large(&scene, "app:1");
    let digest = digest_of(&image.layers[0].bytes);
    let partial = scene.blobs.dir().join(format!("partial-sha256-{}", digest.hex()));
    std::fs::write(&partial, vec![b'x'; 300_000]).expect("our own directory");
    assert!(has_all(&scene.blobs, &scene.pull("app:1").expect("it comes")));
    assert_eq!(scene.proxy.count("GET", &blob), 2);
    // All of it may be there, right or wrong.
    scene.blobs.remove(&digest).expect("it goes");
    std::fs::write(&partial, &image.layers[0].bytes).expect("our own directory");
    scene.proxy.forget();
    assert!(has_all(&scene.blobs, &scene.pull("app:1").expect("it comes")));
    assert_eq!(scene.proxy.count("GET", &blob), 0);
}

#[test]
fn failures_that_pass_are_waited_for() {
    let scene = Scene::new();
    let (_, blob) = large(&scene, "app:1");
    for target in ["/manifests/1", "/manifests/sha256", &*blob] {
        for status in [503, 408] {
            scene.proxy.fault(When::any(target).once(), Fault::status(status));
        }
    }
    scene.proxy.fault(When::get(&blob).once(), Fault::DropAfter(0));
    assert!(has_all(&scene.blobs, &scene.pull("app:1").expect("it comes")));
}

#[test]
fn failures_that_do_not_pass_end_the_pull_at_once() {
    let scene = Scene::new();
    let (_, blob) = large(&scene, "app:1");
    for status in [400, 401, 403, 404, 501] {
        scene.proxy.heal();
        scene.proxy.forget();
        scene.proxy.fault(When::get(&blob), Fault::status(status));
        let error = scene.pull("app:1").expect_err("it is refused");
        assert_eq!(scene.proxy.count("GET", &blob), 1, "{status}: {error}");
    }
}

#[test]
fn a_registry_that_asks_for_patience_gets_it() {
    let scene = Scene::new();
    large(&scene, "app:1");
    scene.proxy.fault(
        When::method("HEAD", "/manifests/1").once(),
        Fault::status_with(429, "Retry-After", "1"),
    );
    let since = Instant::now();
    scene.pull("app:1").expect("it comes");
    assert!(since.elapsed() >= Duration::from_secs(1));
    // But not for ever.
    let hour = Fault::status_with(429, "Retry-After", "3600");
    scene.proxy.fault(When::method("HEAD", "/manifests/1"), hour);
    let error = scene.pull("app:1").expect_err("an hour is too long");
    assert!(error.to_string().contains("429"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("docker login")), "{error:?}");
}

#[test]
fn silence_is_noticed() {
    let scene = Scene::new();
    let (image, blob) = large(&scene, "app:1");
    let mut quick = surroundings();
    // Longer than a busy machine is silent: bytes are counted.
    quick.patience.silence = Duration::from_secs(3);
    quick.patience.attempts = 3;
    scene.proxy.fault(When::get(&blob).once(), Fault::Stall(400_000));
    scene.proxy.fault(When::any("/manifests/1").once(), Fault::Silence);
    let registry =
        connect_with(&quick, &scene.proxy.reference("app:1"), &RegistryAccess::default());
    assert!(has_all(&scene.blobs, &pull(&registry, &scene.blobs).expect("it comes")));
    assert_eq!(scene.proxy.bytes(&blob), image.layers[0].bytes.len() as u64);
    scene.proxy.fault(When::any("/manifests/"), Fault::Silence);
    quick.patience.silence = Duration::from_millis(750);
    let registry =
        connect_with(&quick, &scene.proxy.reference("app:1"), &RegistryAccess::default());
    let error = pull(&registry, &scene.blobs).expect_err("it stays silent");
    assert!(error.to_string().ends_with("nothing came for 0.75 seconds"), "{error}");
}

#[test]
fn a_pull_can_be_called_off_while_nothing_comes() {
    let scene = Scene::new();
    let (_, blob) = large(&scene, "app:1");
    let cancel = Cancel::new();
    let registry = Registry::connect_in(
        &surroundings(),
        &reference(&scene.proxy.reference("app:1")),
        &RegistryAccess::default(),
        (Purpose::Pull, &cancel),
    )
    .expect("settings are fine");
    let pulled = registry.manifest(&registry.resolve().expect("there")).expect("fine");
    scene.proxy.fault(When::get(&blob), Fault::Stall(400_000));
    let fetch = registry.fetch(&pulled.manifest.layers, &scene.blobs, silent()).expect("room");
    wait::until("the stall", BOUND, || {
        let partials = scene.blobs.partials().expect("a list");
        partials.iter().any(|partial| partial.bytes > 0).then_some(())
    });
    cancel.cancel();
    let digest = &pulled.manifest.layers[0].digest;
    assert!(matches!(fetch.wait_for(digest), Err(RegistryError::Cancelled)));
    assert!(fetch.finish().is_ok(), "the error has been told");
    let partial = &scene.blobs.partials().expect("a list")[0];
    assert!(partial.bytes > 0 && !partial.in_use, "{partial:?}");
    assert!(matches!(registry.resolve(), Err(RegistryError::Cancelled)));
}

#[test]
fn a_fetch_that_is_dropped_ends_at_once() {
    let scene = Scene::new();
    let (_, blob) = large(&scene, "app:1");
    let registry = scene.registry("app:1");
    let pulled = registry.manifest(&registry.resolve().expect("there")).expect("fine");
    scene.proxy.fault(When::get(&blob), Fault::Silence);
    let fetch = registry.fetch(&pulled.manifest.layers, &scene.blobs, silent()).expect("room");
    wait::until("the request", BOUND, || (scene.proxy.count("GET", &blob) > 0).then_some(()));
    let since = Instant::now();
    drop(fetch);
    assert!(since.elapsed() < BOUND);
    assert!(registry.resolve().is_ok(), "the rest still works");
}

#[test]
fn manifests_that_come_broken_come_again() {
    let scene = Scene::new();
    large(&scene, "app:1");
    scene.proxy.fault(When::get("/manifests/").once(), Fault::DropAfter(20));
    scene.proxy.fault(When::get("/manifests/").once(), Fault::Corrupt(20));
    scene.pull("app:1").expect("it comes");
    scene.proxy.fault(When::get("/manifests/"), Fault::Corrupt(20));
    let error = scene.pull("app:1").expect_err("always wrong");
    assert!(matches!(error, RegistryError::Invalid { .. }), "{error:?}");
}

#[test]
fn complaints_are_read_with_a_bound_and_tamed() {
    let scene = Scene::new();
    large(&scene, "app:1");
    let body =
        format!(r#"{{"errors":[{{"code":"X","message":"no\n\u001b[31m{}"}}]}}"#, "y".repeat(500));
    let refusal = Fault::Answer { status: 403, headers: Vec::new(), body: body.into_bytes() };
    scene.proxy.fault(When::get("/manifests/").once(), refusal);
    let error = scene.pull("app:1").expect_err("refused").to_string();
    assert!(error.contains("it says: no [31myyy") && error.len() < 400, "{error}");
    let endless = Fault::Answer { status: 403, headers: Vec::new(), body: vec![b'{'; 5 << 20] };
    scene.proxy.fault(When::get("/manifests/").once(), endless);
    let error = scene.pull("app:1").expect_err("refused");
    assert!(matches!(error, RegistryError::Denied { said: None, .. }), "{error:?}");
}

#[test]
fn a_full_disk_is_said_before_anything_comes() {
    let scene = Scene::new();
    let (image, blob) = large(&scene, "app:1");
    let registry = scene.registry("app:1");
    let pulled = registry.manifest(&registry.resolve().expect("there")).expect("fine");
    let mut layers = pulled.manifest.layers;
    layers[0].size = 1 << 60;
    let error = registry.fetch(&layers, &scene.blobs, silent()).expect_err("too much");
    assert!(matches!(error, RegistryError::NoRoom { .. }), "{error:?}");
    assert_eq!(error.code(), banger_api::ErrorCode::HostDiskFull);
    assert_eq!(scene.proxy.count("GET", &blob), 0);
    drop(image);
}
