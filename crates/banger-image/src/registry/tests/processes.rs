//! Pulls in processes of their own: killed in the middle, and on a disk that fills up.
//!
//! The processes are this test program, told by its environment to play a part.

use banger_host::command::{Isolation, Tool, ToolError};
use banger_host::environment;
use banger_testkit::registry::{Fault, When};
use banger_testkit::wait;

use super::*;

const REFERENCE: &str = "BANGER_TEST_REFERENCE";
const DIR: &str = "BANGER_TEST_DIR";

/// This program, playing the part of that name.
fn part(name: &str) -> Vec<String> {
    let me = std::env::current_exe().expect("it runs").display().to_string();
    let test = format!("{}::{name}", module_path!().split_once("::").expect("a crate").1);
    vec![me, "--exact".to_owned(), test, "--ignored".to_owned(), "--nocapture".to_owned()]
}

/// What a part was told; None if this is an ordinary run of all tests.
fn told() -> Option<(Registry, PathBuf)> {
    let reference = environment::get(REFERENCE)?;
    Some((connect(&reference), PathBuf::from(environment::get(DIR)?)))
}

#[test]
#[ignore = "a part of killed_in_the_middle"]
fn part_pull() {
    let Some((registry, dir)) = told() else { return };
    let blobs = Blobs::open(&dir).expect("it opens");
    pull(&registry, &blobs).expect("it is killed before this");
}

#[test]
fn killed_in_the_middle() {
    let scene = Scene::new();
    let image = TestImage::new().noise("n", 1_000_000, 1).noise("m", 1_000_000, 2);
    scene.push(&image, "app:1");
    let blobs: Vec<String> =
        image.layers.iter().map(|l| format!("/blobs/{}", digest_of(&l.bytes))).collect();
    for blob in &blobs {
        scene.proxy.fault(When::get(blob).once(), Fault::Stall(400_000));
    }
    let cancel = Cancel::new();
    let words = part("part_pull");
    let tool = Tool::new(&*words[0])
        .args(&words[1..])
        .env(REFERENCE, scene.proxy.reference("app:1"))
        .env(DIR, scene.dir.path());
    std::thread::scope(|scope| {
        let pulling = scope.spawn(|| tool.run(&cancel));
        wait::until("two parts", BOUND, || {
            let partials = scene.blobs.partials().expect("a list");
            (partials.iter().filter(|p| p.bytes == 400_000 && p.in_use).count() == 2).then_some(())
        });
        // That is SIGKILL.
        cancel.cancel();
        let ended = pulling.join().expect("no panic");
        assert!(matches!(ended, Err(ToolError::Cancelled { .. })), "{ended:?}");
    });
    let left = scene.blobs.partials().expect("a list");
    assert!(left.len() == 2 && left.iter().all(|p| !p.in_use), "{left:?}");
    scene.proxy.forget();
    assert!(has_all(&scene.blobs, &scene.pull("app:1").expect("it comes")));
    for (blob, layer) in blobs.iter().zip(&image.layers) {
        assert_eq!(scene.proxy.bytes(blob), layer.bytes.len() as u64 - 400_000);
    }
}

#[test]
#[ignore = "a part of a_disk_that_fills_up"]
fn part_full_disk() {
    let Some((registry, dir)) = told() else { return };
    let blobs = Blobs::open(&dir).expect("it opens");
    let pulled = registry.manifest(&registry.resolve().expect("there")).expect("fine");
    // The room was enough when the pull began.
    let sink: ProgressSink = Arc::new(move |_| {
        let mut file = std::fs::File::create(dir.join("other")).expect("a file");
        std::io::copy(&mut std::io::repeat(1), &mut file).expect_err("the disk fills up");
    });
    let layers = &pulled.manifest.layers;
    let fetched = registry.fetch(layers, &blobs, sink).expect("room").finish();
    let error = fetched.expect_err("no room any more");
    assert_eq!(error.code(), banger_api::ErrorCode::HostDiskFull, "{error:?}");
    assert_eq!(error.hint().as_deref(), Some("banger system df"));
}

#[test]
fn a_disk_that_fills_up() {
    let scene = Scene::new();
    scene.push(&TestImage::new().noise("n", 1_000_000, 1), "app:1");
    let disk = scene.path("disk");
    std::fs::create_dir(&disk).expect("ours");
    let script = "mount -t tmpfs -o size=3m tmpfs \"$0\" && exec \"$@\"";
    let ended = Tool::new("sh")
        .args(["-c", script])
        .arg(&disk)
        .args(part("part_full_disk"))
        .env(REFERENCE, scene.server.reference("app:1"))
        .env(DIR, &disk)
        .isolation(Isolation::Root)
        .run(&Cancel::new());
    match ended {
        Ok(finished) => assert!(finished.text().contains("1 passed"), "{}", finished.text()),
        Err(ToolError::Isolation { reason, .. }) => banger_testkit::skip(&reason),
        Err(error) => panic!("{error}: {:?}", error.stderr()),
    }
}
