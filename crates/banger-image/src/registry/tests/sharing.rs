//! Several at once: layers of one pull, pulls of one image, processes that die.

use std::time::Instant;

use banger_testkit::registry::{Fault, When};
use banger_testkit::wait;

use super::*;

#[test]
fn layers_come_in_parallel_and_the_first_can_be_used_before_the_last() {
    let scene = Scene::new();
    let image = (0..6).fold(TestImage::new(), |image, n| image.noise("n", 200_000, n));
    scene.push(&image, "app:1");
    let registry = scene.registry("app:1");
    let pulled = registry.manifest(&registry.resolve().expect("there")).expect("fine");
    let layers = &pulled.manifest.layers;
    // All but the first of the four that come together hang.
    for layer in &layers[1..4] {
        scene.proxy.fault(When::get(layer.digest.as_str()).once(), Fault::Stall(1000));
    }
    let (sink, said) = recorder();
    let mut patience = surroundings();
    patience.patience.silence = Duration::from_secs(5);
    let at = scene.proxy.reference("app:1");
    let registry = connect_with(&patience, &at, &RegistryAccess::default());
    let fetch = registry.fetch(layers, &scene.blobs, sink).expect("room");
    let mut first = Vec::new();
    let mut contents = fetch.wait_for(&layers[0].digest).expect("it comes");
    contents.read_to_end(&mut first).expect("it can be read");
    assert_eq!(digest_of(&first), layers[0].digest);
    assert!(scene.blobs.list().expect("a list").len() < 4, "the others are still on their way");
    for layer in layers {
        fetch.wait_for(&layer.digest).expect("it comes");
        fetch.wait_for(&layer.digest).expect("it is still here");
    }
    fetch.finish().expect("all came");
    assert!(has_all(&scene.blobs, &pulled));
    let said = said.lock().expect("no panic");
    for layer in layers {
        let of_it: Vec<_> =
            said.iter().filter(|p| p.item.as_deref() == Some(layer.digest.short())).collect();
        assert_eq!(of_it.last().expect("it is told").done, Some(layer.size));
        assert!(of_it.iter().all(|p| p.total == Some(layer.size) && p.stage == "image.layers"));
        assert!(of_it.windows(2).all(|pair| pair[0].done <= pair[1].done), "{of_it:?}");
    }
}

#[test]
fn two_pulls_at_once_fetch_each_layer_once() {
    let scene = Scene::new();
    let image = (0..5).fold(TestImage::new(), |image, n| image.noise("n", 400_000, n));
    scene.push(&image, "app:1");
    let pulls: Vec<_> = std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..3).map(|_| scope.spawn(|| scene.pull("app:1"))).collect();
        pulls.into_iter().map(|pull| pull.join().expect("no panic")).collect()
    });
    for pulled in pulls {
        assert!(has_all(&scene.blobs, &pulled.expect("it comes")));
    }
    for layer in &image.layers {
        let blob = format!("/blobs/{}", digest_of(&layer.bytes));
        assert_eq!(scene.proxy.count("GET", &blob), 1);
    }
}

#[test]
fn whoever_waits_goes_on_where_the_other_failed() {
    let scene = Scene::new();
    let image = TestImage::new().noise("n", 400_000, 1);
    scene.push(&image, "app:1");
    let blob = format!("/blobs/{}", digest_of(&image.layers[0].bytes));
    scene.proxy.fault(When::get(&blob).once(), Fault::Stall(100_000));
    let registry = scene.registry("app:1");
    let pulled = registry.manifest(&registry.resolve().expect("there")).expect("fine");
    let layers = &pulled.manifest.layers;
    let first = registry.fetch(layers, &scene.blobs, silent()).expect("room");
    wait::until("the stall", BOUND, || (scene.proxy.bytes(&blob) == 100_000).then_some(()));
    let (sink, said) = recorder();
    let second = scene.registry("app:1").fetch(layers, &scene.blobs, sink).expect("room");
    wait::until("it waits", BOUND, || {
        let said = said.lock().expect("no panic");
        said.iter().any(|p| p.message.contains("waiting")).then_some(())
    });
    drop(first);
    second.finish().expect("it comes");
    assert!(has_all(&scene.blobs, &pulled));
    assert_eq!(scene.proxy.count("GET", &blob), 2);
}

#[test]
fn the_same_layer_twice_comes_once() {
    let scene = Scene::new();
    let layer = banger_testkit::registry::Layer::gzip(vec![0; 1024]);
    let image = TestImage::new().layer(layer.clone()).file("x", b"y").layer(layer);
    scene.push(&image, "app:1");
    let pulled = scene.pull("app:1").expect("it comes");
    assert_eq!(pulled.manifest.layers[0], pulled.manifest.layers[2]);
    assert_eq!(scene.proxy.count("GET", pulled.manifest.layers[0].digest.as_str()), 1);
}

#[test]
fn one_layer_that_fails_ends_the_others() {
    let scene = Scene::new();
    let image = TestImage::new().noise("n", 400_000, 1).noise("m", 400_000, 2);
    scene.push(&image, "app:1");
    let [slow, gone] = [0, 1].map(|n| format!("/blobs/{}", digest_of(&image.layers[n].bytes)));
    scene.proxy.fault(When::get(&slow), Fault::Stall(1000));
    scene.proxy.fault(When::get(&gone), Fault::status(404));
    let registry = scene.registry("app:1");
    let pulled = registry.manifest(&registry.resolve().expect("there")).expect("fine");
    let layers = &pulled.manifest.layers;
    let fetch = registry.fetch(layers, &scene.blobs, silent()).expect("room");
    let since = Instant::now();
    let error = fetch.wait_for(&layers[0].digest).expect_err("the other one is not there");
    assert!(error.to_string().contains(&format!("has no layer {}", layers[1].digest)), "{error}");
    assert!(since.elapsed() < BOUND, "nobody waited for the slow one");
}

#[test]
#[allow(
    clippy::disallowed_methods,
    reason = "only the runner knows how many tests share a process"
)]
fn a_large_layer_takes_little_memory() {
    if std::env::var_os("NEXTEST").is_none() {
        return banger_testkit::skip("the memory is the whole process's, and its other tests' too");
    }
    let scene = Scene::new();
    let layer = banger_testkit::registry::noise(40_000_000, 1);
    let digest = scene.server.put_blob("app", &layer);
    drop(layer);
    let blob = Descriptor {
        media_type: String::new(),
        digest: Digest::parse(&digest).expect("a digest"),
        size: 40_000_000,
        annotations: None,
    };
    let before = peak_kib();
    let registry = connect(&scene.server.reference("app:1"));
    registry.fetch(&[blob], &scene.blobs, silent()).expect("room").finish().expect("it comes");
    let grown = peak_kib() - before;
    assert!(grown < 16 * 1024, "{grown} KiB");
}

/// The most memory that this process has had.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("it is there");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}
