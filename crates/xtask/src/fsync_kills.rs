//! `cargo xtask fsync-kills`: a machine is ended at random times while it writes, in every way there
//! is, and everything that it saw fsynced has to be there afterwards. Takes `target/dist`, or what
//! `BANGER_E2E_DIST` names, as the end-to-end tests do.

use banger_testkit::fsync_log::{Ending, FsyncLog};
use banger_testkit::{Host, ImageGuard, wait};

/// Rounds, and a line for each. What is lost is a panic, as in a test.
pub fn run(rounds: usize, seed: Option<u64>) {
    let seed = seed.unwrap_or_else(wait::seconds_since_1970);
    println!("seed {seed}");
    let host = Host::new();
    let images = ImageGuard::of(&host.data);
    let vm = host.running_vm("diary");
    let mut log = FsyncLog::new(&host, &vm, seed);
    for (number, ending) in Ending::ALL.into_iter().cycle().take(rounds).enumerate() {
        println!("{:>3} {}", number + 1, log.round(ending));
    }
    let all = log.check_all();
    images.assert_unchanged(&host.data);
    host.finish();
    println!("{rounds} ends, {all} files fsynced, none lost, the image unchanged");
}
