//! Promotions beside what else happens to a VM, on a simulated machine.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::State;
use banger_api::ErrorCode;
use banger_api::change::SetVm;
use banger_api::image::PromoteVm;
use banger_api::shim::COW_FILE;
use banger_api::step;
use tokio::sync::Notify;

use super::super::answer::{Accepted, Body, Failure};
use super::promote;
use crate::artifacts::find_image;
use crate::daemon::Daemon;
use crate::gate::trap::{Effect, Trap};
use crate::host::Job;
use crate::testing::{World, holds_within, make, outcome, request};
use crate::vm::Wanted;

/// What the tests' own root disk contains.
const OURS: [u8; 4] = *b"data";

/// Whether a file, which may be as large as a disk, begins as the tests' own.
fn is_ours(file: &Path) -> bool {
    let mut begin = [0; 4];
    let read = File::open(file).and_then(|mut file| file.read_exact(&mut begin));
    read.is_ok() && begin == OURS
}

async fn promoted(daemon: &Arc<Daemon>) -> Result<Accepted, Failure> {
    let request = PromoteVm { vm: "web".to_owned(), name: "made".to_owned() };
    promote(State(Arc::clone(daemon)), Body(request)).await
}

/// A VM that does not run, on a machine with another image. Its root disk, which is the tests' own.
async fn root_disk(world: &World, daemon: &Arc<Daemon>) -> PathBuf {
    world.machine.add_image("other", "sha256:other");
    let made = make(daemon, request("web", false)).await.expect("make");
    let disk = Path::new(&made.dir).join(COW_FILE);
    std::fs::write(&disk, OURS).expect("write");
    disk
}

async fn set_image(daemon: &Arc<Daemon>) -> Result<(), banger_api::Problem> {
    let image = find_image(daemon, "other").await?;
    let set = SetVm { image: Some(image.name.clone()), ..SetVm::default() };
    let vm = daemon.find("web")?;
    vm.change(Wanted { set, image: Some(image) }).await.map(drop)
}

/// The digests of the images whose VMs' disks were read.
fn read(world: &World) -> Vec<String> {
    let jobs = world.machine.jobs.lock().unwrap();
    let promotions = jobs.iter().filter_map(|job| match job {
        Job::PromoteVm(promotion) => Some(promotion.image_digest.clone()),
        _ => None,
    });
    promotions.collect()
}

#[tokio::test]
async fn what_is_promoted_is_the_disk_before_a_change_of_the_image_or_after_it() {
    for step in [step::SET_ROW, step::SET_ROOT] {
        let world = World::new();
        let go_on = Arc::new(Notify::new());
        let trap = Trap::at(step, Effect::Hold(Arc::clone(&go_on)));
        let daemon = world.daemon_with(trap.gate()).await;
        let disk = root_disk(&world, &daemon).await;
        let all = Arc::clone(&daemon);
        let changing = tokio::spawn(async move { set_image(&all).await });
        trap.reached.notified().await;
        let all = Arc::clone(&daemon);
        let promoting = tokio::spawn(async move { promoted(&all).await });
        // It waits for the change, or is over soon.
        holds_within(Duration::from_millis(300), || promoting.is_finished()).await;
        go_on.notify_one();
        changing.await.expect("no panic").expect("changed");
        let Accepted(operation) = promoting.await.expect("no panic").expect("accepted");
        outcome(&daemon, &operation).await.expect("promoted");
        assert!(
            disk.exists() && !is_ours(&disk),
            "{step}: the row says that it is another image's"
        );
        assert_eq!(read(&world), ["sha256:other"], "{step}: the image that the disk belongs to");
    }
}

#[tokio::test]
async fn a_disk_that_is_being_promoted_is_not_replaced() {
    let world = World::new();
    let daemon = world.daemon().await;
    let disk = root_disk(&world, &daemon).await;
    world.machine.slow_jobs.store(true, Ordering::SeqCst);
    let Accepted(operation) = promoted(&daemon).await.expect("accepted");
    let refused = set_image(&daemon).await.expect_err("the disk is being read");
    assert_eq!(refused.code, ErrorCode::VmWrongState);
    assert!(is_ours(&disk));
    world.machine.slow_jobs.store(false, Ordering::SeqCst);
    outcome(&daemon, &operation).await.expect("promoted");
    assert_eq!(read(&world), ["sha256:image1"]);
    set_image(&daemon).await.expect("nobody reads it any more");
}

#[tokio::test]
async fn a_vm_that_runs_is_not_promoted() {
    let world = World::new();
    let daemon = world.daemon().await;
    make(&daemon, request("web", true)).await.expect("make");
    let Failure(refused) = promoted(&daemon).await.expect_err("it runs");
    assert_eq!(refused.code, ErrorCode::VmWrongState);
    assert_eq!(refused.title, "web is running");
    assert_eq!(refused.hint.as_deref(), Some("banger stop web"));
}
