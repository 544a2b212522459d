//! Tests of the store of blobs: what is visible when, who waits for whom, what is cleared away.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::store::tests::until_awaited;

fn store() -> (tempfile::TempDir, Blobs) {
    let dir = tempfile::tempdir().expect("a directory");
    let blobs = Blobs::open(dir.path()).expect("it opens");
    (dir, blobs)
}

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::of_sum(Sha256::digest(bytes).into())
}

fn partial(blobs: &Blobs, bytes: &[u8]) -> Partial {
    match blobs.begin(&digest_of(bytes), bytes.len() as u64).expect("it can be read") {
        Begun::Partial(partial) => partial,
        other => panic!("{other:?}"),
    }
}

fn names(blobs: &Blobs) -> Vec<String> {
    let mut names = blobs.names().expect("a list");
    names.sort();
    names
}

#[test]
fn what_is_added_is_found_by_its_digest() {
    let (_dir, blobs) = store();
    let digest = digest_of(b"a layer");
    assert_eq!(blobs.bytes(&digest), None);
    let added = blobs.add(&mut &b"a layer"[..], Some(&digest), &Cancel::new()).expect("stored");
    assert_eq!(added, (digest.clone(), 7));
    let again = blobs.add(&mut &b"a layer"[..], None, &Cancel::new()).expect("stored");
    assert_eq!(again, added);
    let mut contents = String::new();
    blobs.contents(&digest).expect("it opens").read_to_string(&mut contents).expect("text");
    assert_eq!((&*contents, blobs.bytes(&digest)), ("a layer", Some(7)));
    let mode = |path: &Path| path.metadata().expect("stat").permissions().mode() & 0o777;
    assert_eq!((mode(blobs.dir()), mode(&blobs.path(&digest))), (0o700, 0o600));
    let listed = StoredBlob { digest: digest.clone(), bytes: 7, in_use: false };
    assert_eq!(blobs.list().expect("a list"), [listed]);
    blobs.remove(&digest).expect("it goes");
    blobs.remove(&digest).expect("it is gone");
    assert_eq!(names(&blobs), [""; 0]);
}

#[test]
fn what_is_not_what_it_should_be_is_not_stored() {
    let (_dir, blobs) = store();
    let want = digest_of(b"one");
    let error = blobs.add(&mut &b"two"[..], Some(&want), &Cancel::new()).expect_err("wrong");
    assert!(matches!(&error, BlobError::WrongDigest { found, .. } if *found == digest_of(b"two")));
    let cancel = Cancel::new();
    cancel.cancel();
    let error = blobs.add(&mut io::repeat(1), None, &cancel).expect_err("endless");
    assert!(matches!(error, BlobError::Cancelled));
    assert_eq!(names(&blobs), [""; 0]);
}

#[test]
fn damage_is_found() {
    let (_dir, blobs) = store();
    let (digest, _) = blobs.add(&mut &b"a layer"[..], None, &Cancel::new()).expect("stored");
    assert!(blobs.verify(&digest, &Cancel::new()).expect("it can be read"));
    fs::write(blobs.path(&digest), "a liar!").expect("damaged");
    assert!(!blobs.verify(&digest, &Cancel::new()).expect("it can be read"));
    // Of the wrong length it is taken for damaged without reading it.
    let begun = blobs.begin(&digest, 9).expect("it can be read");
    assert!(matches!(begun, Begun::Partial(_)), "{begun:?}");
    assert_eq!(blobs.bytes(&digest), None);
}

#[test]
fn a_download_goes_on_where_it_was_broken() {
    let (_dir, blobs) = store();
    let bytes = b"first second third";
    let digest = digest_of(bytes);
    let mut first = partial(&blobs, bytes);
    first.write(b"first ").expect("room");
    assert!(matches!(blobs.begin(&digest, 18), Ok(Begun::Busy)));
    assert!(!blobs.remove_partial(&digest).expect("it can be looked at"), "in use");
    drop(first);
    let left = StoredBlob { digest: digest.clone(), bytes: 6, in_use: false };
    assert_eq!(blobs.partials().expect("a list"), [left]);
    let mut second = partial(&blobs, bytes).resume(18, &Cancel::new()).expect("it can be read");
    assert_eq!(second.bytes(), 6);
    second.write(b"second third").expect("room");
    let whole = match second.finish(&digest).expect("it can be read") {
        Finished::Whole(whole) => whole,
        wrong @ Finished::Wrong { .. } => panic!("{wrong:?}"),
    };
    let mut contents = String::new();
    whole.contents().expect("open").read_to_string(&mut contents).expect("text");
    assert_eq!((contents.as_bytes(), blobs.bytes(&digest)), (&bytes[..], None));
    assert!(matches!(blobs.begin(&digest, 18), Ok(Begun::Busy)), "it has no name yet");
    whole.publish().expect("room");
    assert!(matches!(blobs.begin(&digest, 18), Ok(Begun::Stored(_))));
    assert_eq!(names(&blobs), [format!("sha256-{}", digest.hex())]);
}

#[test]
fn a_wrong_download_is_thrown_away() {
    let (_dir, blobs) = store();
    let digest = digest_of(b"right");
    let mut partial = partial(&blobs, b"right");
    partial.write(b"wrong").expect("room");
    let partial = match partial.finish(&digest).expect("it can be emptied") {
        Finished::Wrong { partial, found } if found == digest_of(b"wrong") => partial,
        other => panic!("{other:?}"),
    };
    assert_eq!(partial.bytes(), 0);
    drop(partial);
    assert_eq!(blobs.partials().expect("a list")[0].bytes, 0);
    assert!(blobs.remove_partial(&digest).expect("nobody is at it"));
    assert!(blobs.remove_partial(&digest).expect("it is gone"));
    assert_eq!(names(&blobs), [""; 0]);
}

#[test]
fn too_much_of_a_download_is_thrown_away() {
    let (_dir, blobs) = store();
    let mut first = partial(&blobs, b"abc");
    first.write(b"more than that").expect("room");
    drop(first);
    let again = partial(&blobs, b"abc").resume(3, &Cancel::new()).expect("it can be read");
    assert_eq!(again.bytes(), 0);
    assert_eq!(blobs.partials().expect("a list")[0].bytes, 0);
}

#[test]
fn leftovers_of_the_dead_are_removed_and_work_of_the_living_is_not() {
    let (dir, blobs) = store();
    let (living, lock) = blobs.temporary().expect("a file");
    fs::write(blobs.dir().join("tmp-dead"), "x").expect("a file");
    fs::write(blobs.dir().join("partial-sha256-x"), "x").expect("a file");
    Blobs::open(dir.path()).expect("it opens");
    let living = living.file_name().expect("a name").to_string_lossy().into_owned();
    assert_eq!(names(&blobs), ["partial-sha256-x".to_owned(), living.clone()]);
    let next = Blobs::open(dir.path()).expect("it opens");
    let outlasting = std::thread::spawn(move || next.outlast_others());
    until_awaited(&blobs.dir().join(&living));
    assert_eq!(names(&blobs), ["partial-sha256-x".to_owned(), living]);
    drop(lock);
    outlasting.join().expect("no panic").expect("it clears up");
    assert_eq!(names(&blobs), ["partial-sha256-x"]);
    assert_eq!(blobs.partials().expect("a list"), []);
}
