//! Pulls that are cut off: by a crash, by a full disk.

use std::path::Path;
use std::time::Duration;

use banger_e2e::{LocalImage, SOON, configure, stored};
use banger_testkit::fixtures::{Entry, LayerTar, TestRegistry};
use banger_testkit::registry::{Fault, FaultProxy, Layer, TestImage, When};
use banger_testkit::{Host, Seed, wait};

const MIB: u64 = 1 << 20;

/// "`kill -9` in the middle of a pull"; "Layers … resume after a break"
#[test]
fn a_killed_pull_goes_on_where_it_was() {
    let host = Host::new();
    let registry = TestRegistry::empty();
    let size = 8 * MIB;
    let image = TestImage::new().noise("large", usize::try_from(size).expect("small"), 3);
    let layer = image.layers[0].bytes.len() as u64;
    registry.push(&image, "app:1");
    let proxy = FaultProxy::start(registry.server.address());
    let app = proxy.reference("app:1");
    proxy.fault(When::get("/blobs/"), Fault::Stall(6 * MIB));
    let pull = host.banger(["image", "pull", &app]).spawn();
    wait_until_kept(&host, 5 * MIB);
    host.kill_dash_nine(host.daemon_pid().expect("a daemon runs"));
    assert_ne!(pull.wait().code, 0);
    proxy.heal();
    proxy.forget();
    host.banger(["image", "ls", "-q"]).run().assert_ok().assert_stdout("debian-bookworm\n");
    host.banger(["image", "pull", &app]).run().assert_ok();
    let fetched = proxy.bytes("/blobs/");
    assert!(fetched < layer - 4 * MIB, "{fetched} bytes of {layer} came again");
    LocalImage::of(&host, &app).assert_clean();
    assert!(stored(&host, "blobs", "partial-").is_empty());
    assert!(stored(&host, "images", "tmp-").is_empty());
    host.finish();
}

/// Somebody gives up with Ctrl-C: nothing half-made stays visible, and what came is kept.
#[test]
fn an_interrupted_pull_goes_on_where_it_was() {
    let host = Host::new();
    let registry = TestRegistry::empty();
    let image = TestImage::new().noise("large", 4 << 20, 4);
    let layer = image.layers[0].bytes.len() as u64;
    registry.push(&image, "app:1");
    let proxy = FaultProxy::start(registry.server.address());
    let app = proxy.reference("app:1");
    proxy.fault(When::get("/blobs/"), Fault::Stall(3 * MIB));
    let pull = host.banger(["image", "pull", &app]).spawn();
    wait_until_kept(&host, 5 * MIB / 2);
    pull.signal(nix::sys::signal::Signal::SIGINT);
    let output = pull.wait();
    assert_ne!(output.code, 0, "{output}");
    assert!(output.took < Duration::from_secs(30), "{output}");
    wait::until("the work is gone", SOON, || {
        stored(&host, "images", "tmp-").is_empty().then_some(())
    });
    proxy.heal();
    proxy.forget();
    host.banger(["image", "pull", &app]).run().assert_ok();
    let fetched = proxy.bytes("/blobs/");
    assert!(fetched < layer - 2 * MIB, "{fetched} bytes of {layer} came again");
    host.finish();
}

/// What the registry has sent may still be in the sockets: only what is in a file survives.
fn wait_until_kept(host: &Host, bytes: u64) {
    wait::until("most of the layer is on the disk", SOON, || {
        let partials = stored(host, "blobs", "partial-");
        let sizes = partials.iter().map(|path| path.metadata().map_or(0, |meta| meta.len()));
        (sizes.max() >= Some(bytes)).then_some(())
    });
}

/// "disk full": said as that, nothing half-made stays visible, and what fits can be pulled
/// afterwards. On a small file system of the daemon's own mount namespace, so that an ordinary user
/// can have one too.
#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    let host = Host::builder().seed(Seed::Nothing).build();
    // Otherwise nothing would be begun.
    configure(&host, "config.toml", "reserve_disk_mib = 1\n");
    let registry = TestRegistry::empty();
    // It becomes a hundred times as large as it comes.
    let text = b"not all zeros".iter().cycle().take(1 << 20).copied().collect::<Vec<_>>();
    let mut tar = LayerTar::new();
    for number in 0..160 {
        tar = tar.with(&Entry::file(format!("{number}"), &text));
    }
    registry.push(&TestImage::new().layer(Layer::zstd(tar.finish())), "large:1");
    registry.push(&TestImage::new().file("x", b"y"), "small:1");
    let mut words = vec!["--mount"];
    if !host.account.is_root() {
        words.push("--map-root-user");
    }
    let data = host.data.to_string_lossy();
    let banger = host.programs().join("bin/banger");
    let banger = banger.to_string_lossy();
    let large = registry.reference("large:1");
    let script = "mount -t tmpfs -o size=96m,mode=0700 small \"$1\" && \
                  exec \"$2\" image pull --format json \"$3\"";
    words.extend(["sh", "-c", script, "sh", &data, &banger, &large]);
    let output = host.program(Path::new("/usr/bin/unshare"), words).run().assert_code(125);
    assert!(output.stderr_text().contains("host_disk_full"), "{output}");
    // The daemon, and with it the small file system, lives on.
    host.banger(["image", "ls", "-q"]).run().assert_ok().assert_stdout("");
    host.banger(["image", "prune", "--yes"]).run().assert_ok();
    let small = registry.reference("small:1");
    host.banger(["image", "pull", &small]).run().assert_ok();
    host.banger(["image", "ls", "-q"]).run().assert_ok().assert_stdout(&format!("{small}\n"));
    host.finish();
}
