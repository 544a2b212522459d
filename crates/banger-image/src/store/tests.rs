//! Tests of the store: what is visible after any interruption, and what is cleared away.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use banger_host::command::Cancel;

use super::Store;
use crate::error::PullError;

fn digest(digit: char) -> String {
    format!("sha256:{}", String::from(digit).repeat(64))
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(&dir.path().join("images")).expect("it opens");
    (dir, store)
}

/// Publish a thing with one file.
fn publish(store: &Store, digest: &str, contents: &str) {
    let work = store.begin().expect("work begins");
    let made = work.subdir("made").expect("a directory");
    fs::write(made.join("file"), contents).expect("a file");
    store.publish(&made, digest).expect("it is published");
    work.remove().expect("it is removed");
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("it can be listed");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    names.sort();
    names
}

#[test]
fn a_thing_is_found_by_name_once_it_is_published() {
    let (_dir, store) = store();
    assert_eq!(store.digest_of("debian"), None);
    publish(&store, &digest('a'), "one");
    store.set_name("debian", &digest('a')).expect("a name");
    assert_eq!(store.digest_of("debian"), Some(digest('a')));
    assert_eq!(store.digests().expect("a list"), [digest('a')]);
    let file = store.path_of(&digest('a')).expect("a digest").join("file");
    assert_eq!(fs::read_to_string(&file).expect("it is there"), "one");
    assert!(file.metadata().expect("stat").permissions().readonly());
}

#[test]
fn a_name_moves_to_a_new_version_and_the_old_one_stays() {
    let (_dir, store) = store();
    for digit in ['a', 'b'] {
        publish(&store, &digest(digit), "x");
        store.set_name("debian", &digest(digit)).expect("a name");
    }
    assert_eq!(store.digest_of("debian"), Some(digest('b')));
    assert_eq!(store.digests().expect("a list"), [digest('a'), digest('b')]);
    store.remove(&digest('a')).expect("it goes");
    assert_eq!(store.digest_of("debian"), Some(digest('b')), "the name was not the old one's");
}

#[test]
fn the_same_published_again_changes_nothing() {
    let (_dir, store) = store();
    publish(&store, &digest('a'), "one");
    publish(&store, &digest('a'), "two");
    let file = store.path_of(&digest('a')).expect("a digest").join("file");
    assert_eq!(fs::read_to_string(file).expect("it is there"), "one");
}

#[test]
fn removing_takes_name_and_files_and_can_be_repeated() {
    let (_dir, store) = store();
    publish(&store, &digest('a'), "one");
    store.set_name("debian", &digest('a')).expect("a name");
    store.remove(&digest('a')).expect("it goes");
    store.remove(&digest('a')).expect("it is gone");
    assert_eq!(store.digest_of("debian"), None);
    assert_eq!(names(store.dir()), [".lock", "by-name"]);
    assert_eq!(names(&store.dir().join("by-name")), [""; 0]);
}

#[test]
fn leftovers_of_the_dead_are_removed_and_work_of_the_living_is_not() {
    let (_dir, store) = store();
    publish(&store, &digest('a'), "one");
    let living = store.begin().expect("work begins");
    fs::write(living.path().join("half"), "made").expect("a file");
    // What kill -9 leaves: after the directory, before it, and in the middle of a removal.
    fs::create_dir_all(store.dir().join("tmp-dead/root/etc")).expect("a directory");
    fs::write(store.dir().join("tmp-dead.lock"), "").expect("a file");
    fs::write(store.dir().join("tmp-unborn.lock"), "").expect("a file");
    fs::create_dir_all(store.dir().join("tmp-removed")).expect("a directory");
    Store::open(store.dir()).expect("it opens");
    let alive = living.path().file_name().expect("a name").to_string_lossy().into_owned();
    let mut want = vec![".lock".to_owned(), "by-name".to_owned()];
    want.push(digest('a').replace(':', "-"));
    want.extend([alive.clone(), format!("{alive}.lock")]);
    assert_eq!(names(store.dir()), want);
    assert!(living.path().join("half").is_file());
    drop(living);
    Store::open(store.dir()).expect("it opens");
    assert_eq!(names(store.dir()), want[..3]);
}

/// Waits until somebody waits for the lock on a file.
pub(crate) fn until_awaited(lock: &Path) {
    let place = format!(":{} ", fs::metadata(lock).expect("there").ino());
    let deadline = Instant::now() + Duration::from_secs(60);
    let is_awaited = |line: &str| line.contains("->") && line.contains(&place);
    while !fs::read_to_string("/proc/locks").expect("readable").lines().any(is_awaited) {
        assert!(Instant::now() < deadline, "nobody waits for {}", lock.display());
        std::thread::yield_now();
    }
}

#[test]
fn work_of_the_dying_goes_when_they_let_go_of_it() {
    let (_dir, store) = store();
    let dying = store.begin().expect("work begins");
    fs::write(dying.path().join("half"), "made").expect("a file");
    let next = Store::open(store.dir()).expect("it opens");
    let own = next.begin().expect("work begins");
    let outlasting = std::thread::spawn({
        let next = next.clone();
        move || next.outlast_others()
    });
    until_awaited(&dying.path().with_extension("lock"));
    assert!(dying.path().join("half").is_file(), "nobody removes it while it is held");
    drop(dying);
    outlasting.join().expect("no panic").expect("it clears up, and does not wait for its own");
    assert!(own.path().is_dir());
    own.remove().expect("it goes");
    assert_eq!(names(store.dir()), [".lock", "by-name"]);
}

#[test]
fn a_dangling_name_stands_for_nothing() {
    let (_dir, store) = store();
    store.set_name("debian", &digest('a')).expect("a name");
    assert_eq!(store.digest_of("debian"), None);
    for name in ["", ".", "..", "../images", "a/b"] {
        assert_eq!(store.digest_of(name), None, "{name}");
    }
}

#[test]
fn only_digests_are_paths() {
    let (_dir, store) = store();
    for text in ["", "sha256:", "sha256:../..", "sha512:aa", &digest('A'), &digest('g')] {
        assert_eq!(store.path_of(text), None, "{text}");
    }
}

#[test]
fn a_second_pull_of_a_name_waits_for_the_first() {
    let (_dir, store) = store();
    let first = store.lock_name("debian", &Cancel::new(), &mut || panic!("nobody to wait for"));
    let other = store.clone();
    let (send, receive) = mpsc::channel();
    let second = std::thread::spawn(move || {
        let lock = other.lock_name("debian", &Cancel::new(), &mut || {
            send.send(()).expect("the test waits");
        });
        lock.map(|_| Instant::now())
    });
    receive.recv_timeout(Duration::from_secs(10)).expect("it says that it waits");
    let released = Instant::now();
    drop(first.expect("locked"));
    assert!(second.join().expect("no panic").expect("locked") >= released);
}

#[test]
fn waiting_can_be_called_off() {
    let (_dir, store) = store();
    let _first = store.lock_name("debian", &Cancel::new(), &mut || {}).expect("locked");
    let cancel = Cancel::new();
    let in_wait = cancel.clone();
    let second = store.lock_name("debian", &cancel, &mut || in_wait.cancel());
    assert!(matches!(second, Err(PullError::Cancelled)));
}
