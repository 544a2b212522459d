//! Tests of what entries do to a tree.

use std::slice::from_ref;

use super::super::tar::{Stream, TarReader};
use super::super::testing::{Member, Memory, listing, paths, short, tar};
use super::*;

/// What layers make together, or why the last entry was refused.
fn merged(layers: &[Vec<Member>]) -> Result<(Tree, Memory), String> {
    merged_within(layers, &Limits::of_disk(1 << 30))
}

fn merged_within(layers: &[Vec<Member>], limits: &Limits) -> Result<(Tree, Memory), String> {
    let (mut tree, mut memory, mut text) = (Tree::new(), Memory::default(), 0);
    for layer in layers {
        let bytes = tar(layer);
        let mut reader = TarReader::new(Stream::new(&bytes[..]));
        let mut merge = Merge::new(&mut tree, &mut memory, limits, &mut text);
        while let Some(entry) = reader.next_entry().expect("it is a tar") {
            merge.entry(entry, &mut reader.data()).map_err(|refusal| match refusal {
                Refusal::Invalid(reason) => reason,
                Refusal::Contents(error) => panic!("{error}"),
            })?;
        }
        merge.finish();
    }
    // Nothing is held that no file has, and nothing twice.
    let mut files: Vec<NodeId> = paths(&tree).into_iter().map(|(_, id)| id).collect();
    files.retain(|id| matches!(tree.node(*id).kind, Kind::File(_)));
    files.sort();
    files.dedup();
    assert_eq!(memory.len(), files.len());
    Ok((tree, memory))
}

/// The same with entries, and the result, in a few letters.
fn made(layers: &[&str]) -> String {
    let layers: Vec<Vec<Member>> =
        layers.iter().map(|layer| layer.split_whitespace().map(short).collect()).collect();
    match merged(&layers) {
        Ok((tree, memory)) => listing(&tree, &memory).join(" "),
        Err(reason) => format!("refused: {reason}"),
    }
}

fn check(cases: &[(&[&str], &str)]) {
    for (layers, want) in cases {
        assert_eq!(made(layers), *want, "{layers:?}");
    }
}

#[test]
fn entries_take_the_place_of_what_was_there() {
    check(&[
        (&["a/ a/b=1 c=2 l->a/b"], "a/ a/b=1 c=2 l->a/b"),
        (&["a=1", "a=2"], "a=2"),
        (&["a=1 a=2"], "a=2"),
        (&["a/ a/b=1", "a/"], "a/ a/b=1"),
        (&["a/ a/b=1", "a=2"], "a=2"),
        (&["a/ a/b/ a/b/c=1", "a->x"], "a->x"),
        (&["a=1", "a/ a/b=2"], "a/ a/b=2"),
        (&["a->b b/ b/x=1", "a/"], "a/ b/ b/x=1"),
        (&["a->b", "a=1"], "a=1"),
        (&["./a=1 ././b/ /c=2 d//e=3 ./b/../f=4"], "a=1 b/ c=2 d/ d/e=3 f=4"),
    ]);
}

#[test]
fn missing_directories_are_made() {
    check(&[
        (&["a/b/c=1"], "a/ a/b/ a/b/c=1"),
        // A file of a lower layer is in the way: the layer shows a directory there.
        (&["a=1", "a/b=2"], "a/ a/b=2"),
        (&["a=1 a/b=2"], "refused: a is no directory in this layer"),
        (&["x=1", "a:=x a/b=2"], "refused: a is no directory in this layer"),
    ]);
    let (tree, _) =
        merged(&[vec![Member { mtime: 77, uid: 5, ..Member::file("a/b", "") }]]).unwrap();
    let made = &tree.node(tree.child(Tree::ROOT, b"a").unwrap()).metadata;
    assert_eq!((made.mode, made.uid, made.mtime.seconds), (0o755, 0, 77));
}

#[test]
fn links_in_the_way_lead_on_inside_the_root() {
    check(&[
        (&["usr/lib/ lib->usr/lib", "lib/x=1"], "lib->usr/lib usr/ usr/lib/ usr/lib/x=1"),
        (&["usr/lib/ lib->/usr/lib lib/x=1"], "lib->/usr/lib usr/ usr/lib/ usr/lib/x=1"),
        (&["lib->usr/lib lib/x=1"], "lib->usr/lib usr/ usr/lib/ usr/lib/x=1"),
        (&["a/ a/up->../../../.. a/up/x=1"], "a/ a/up->../../../.. x=1"),
        (&["a->b b->c c/ a/x=1"], "a->b b->c c/ c/x=1"),
        (&["l->/etc l/passwd=1"], "etc/ etc/passwd=1 l->/etc"),
        (&["l->/ l/l/l/x=1"], "l->/ x=1"),
        (&["a->a a/x=1"], "refused: its name leads through too many symbolic links"),
        (&["a->b b->a a/x=1"], "refused: its name leads through too many symbolic links"),
        (&["a->a/a a/x=1"], "refused: its name leads through too many symbolic links"),
        // The last component is the entry itself.
        (&["a/ l->a", "l=1"], "a/ l=1"),
        (&["f=1 l->f l/x=2"], "refused: f is no directory in this layer"),
        (&["f=1", "l->f", "l/x=2"], "f/ f/x=2 l->f"),
    ]);
}

#[test]
fn nothing_leads_out_of_the_root() {
    let out = "refused: its name leads out of the root filesystem";
    check(&[
        (&["../x=1"], out),
        (&["a/../../x=1"], out),
        (&["/../x=1"], out),
        (&["..=1"], out),
        (&["../"], out),
        (&["../.wh.x="], out),
        (&["x=1 y:=../x"], "refused: the link: its name leads out of the root filesystem"),
        (&["x=1 y:=/x"], "x=1 y:=x"),
        (&["a/../x=1"], "x=1"),
        // What a link says is only text; the guest has its own root.
        (&["l->../../../etc/shadow"], "l->../../../etc/shadow"),
    ]);
}

#[test]
fn the_root_is_a_directory() {
    check(&[
        (&["./"], ""),
        (&["/"], ""),
        (&[".=1"], "refused: the root of a file system can only be a directory"),
        (&["a/..->x"], "refused: the root of a file system can only be a directory"),
        (&["x:=/"], "refused: it is a link to the root"),
    ]);
    let root = Member { mode: 0o1777, uid: 3, ..Member::directory("./") };
    let (tree, _) = merged(&[vec![root]]).unwrap();
    let root = &tree.node(Tree::ROOT).metadata;
    assert_eq!((root.mode, root.uid), (0o1777, 3));
}

#[test]
fn hard_links_may_be_to_anything_but_directories() {
    check(&[
        (&["a=1 b:=a"], "a=1 b:=a"),
        (&["d/ d/a=1", "e/b:=d/a"], "d/ d/a=1 e/ e/b:=d/a"),
        (&["d/ d/a=1 l->d b:=l/a"], "b=1 d/ d/a:=b l->d"),
        (&["l->x b:=l"], "b->x l:=b"),
        (&["a=1 b:=a", "a=2"], "a=2 b=1"),
        (&["a=1 b=2", "b:=a"], "a=1 b:=a"),
        (&["a=1 b/ b/c=2", "b:=a"], "a=1 b:=a"),
        (&["a=1 a:=a"], "a=1"),
        (&["a=1 b:=a b:=a"], "a=1 b:=a"),
        (&["b:=a a=1"], "refused: it is a link to a, which is not there"),
        (&["a=1", ".wh.a= b:=a"], "refused: it is a link to a, which is not there"),
        (&["a=1 b:=x/a"], "refused: it is a link to x/a, which is not there"),
        (&["a/ b:=a"], "refused: it is a link to a, a directory"),
        (
            &["d/ d/e/ d/e/a=1", "d:=d/e/a"],
            "refused: it is a link to something in the directory that it replaces",
        ),
    ]);
}

#[test]
fn whiteouts_hide_what_lower_layers_have() {
    check(&[
        (&["a=1 b=2", ".wh.a="], "b=2"),
        (&["d/ d/a=1 d/b=2", "d/.wh.a="], "d/ d/b=2"),
        (&["d/ d/a=1", ".wh.d="], ""),
        (&["d/ d/a=1 l->d", "l/.wh.a="], "d/ l->d"),
        (&["d/ d/a=1 l->d", ".wh.l="], "d/ d/a=1"),
        (&["a=1 b:=a", ".wh.a="], "b=1"),
        // What is not there need not be hidden, and its directory is not made.
        (&["a=1", "x/y/.wh.z= .wh.b= a/.wh.c="], "a=1"),
        (&["d/ d/a=1", "d/.wh.a/"], "d/"),
        (&["a=1", ".wh.="], "refused: a whiteout of nothing"),
        (&["d/ a=1", "d/.wh..="], "refused: a whiteout of nothing"),
        (&["d/ a=1", "d/.wh...="], "refused: a whiteout of nothing"),
        // Other names that begin like that mean nothing.
        (&["a=1", ".wh..wh.aufs= .wh..wh.orph/ d/.wh..wh.x="], "a=1"),
    ]);
}

#[test]
fn opaque_directories_hide_all_that_was_in_them() {
    check(&[
        (&["d/ d/a=1 d/e/ d/e/b=2 c=3", "d/.wh..wh..opq="], "c=3 d/"),
        (&["d/ d/a=1", "d/ d/.wh..wh..opq= d/b=2"], "d/ d/b=2"),
        (&["a=1 b/ b/c=2", ".wh..wh..opq= x=3"], "x=3"),
        (&["a=1", "d/.wh..wh..opq="], "a=1"),
        (&["d/ d/a=1 l->d", "l/.wh..wh..opq="], "d/ l->d"),
    ]);
}

#[test]
fn what_a_layer_adds_stays_wherever_its_whiteouts_are() {
    let both = |lower: &str, additions: &str, whiteouts: &str, want: &str| {
        assert_eq!(made(&[lower, &format!("{additions} {whiteouts}")]), want, "after");
        assert_eq!(made(&[lower, &format!("{whiteouts} {additions}")]), want, "before");
    };
    both("a=1", "a=2", ".wh.a=", "a=2");
    both("d/ d/a=1", "d/ d/b=2", ".wh.d=", "d/ d/b=2");
    both("d/ d/a=1", "d/b=2", ".wh.d=", "d/ d/b=2");
    both("d/ d/a=1 d/b=1", "d/b=2", "d/.wh..wh..opq=", "d/ d/b=2");
    both("d/ d/e/ d/e/a=1", "d/e/f/ d/e/f/b=2", "d/.wh..wh..opq=", "d/ d/e/ d/e/f/ d/e/f/b=2");
    both("d/ d/e/ d/e/a=1", "d/e/", "d/.wh.e=", "d/ d/e/");
    both("a=1 x=2", "a:=x", ".wh.a=", "a=2 x:=a");
    both("a=1 x=2", "a->x", ".wh.a=", "a->x x=2");
    both("d/ d/a=1 x=2", "d/b:=x", "d/.wh..wh..opq=", "d/ d/b=2 x:=d/b");
    // A name of this layer for a file of a lower one hides nothing of the other name.
    assert_eq!(made(&["a=1", "b:=a .wh.a="]), "b=1");
}

#[test]
fn numbers_that_are_used_again_confuse_nobody() {
    // The directory that is made for d/n/y has the number of the file x, which was this layer's.
    let layers = ["d/ d/a=1", "x=1 x->y d/n/y=2 .wh.d="];
    assert_eq!(made(&layers), "d/ d/n/ d/n/y=2 x->y");
    let layers = ["d/ d/a=1 d/b/ d/b/c=1", "t/ t/u/ t/v/ t=1 d/b/n/m/y=2 d/.wh..wh..opq="];
    assert_eq!(made(&layers), "d/ d/b/ d/b/n/ d/b/n/m/ d/b/n/m/y=2 t=1");
}

#[test]
fn the_store_of_hard_links_of_aufs_goes_with_the_layer() {
    check(&[
        (
            &[".wh..wh.plnk/ .wh..wh.plnk/12.34=1 a:=.wh..wh.plnk/12.34 b:=.wh..wh.plnk/12.34"],
            "a=1 b:=a",
        ),
        (&[".wh..wh.plnk/12.34=1", "a=1"], "a=1"),
        (
            &[".wh..wh.plnk/1=1", "a:=.wh..wh.plnk/1"],
            "refused: it is a link to .wh..wh.plnk/1, which is not there",
        ),
    ]);
}

#[test]
fn metadata_are_the_last_entrys_whole() {
    let old = Member { uid: 1, gid: 2, mode: 0o700, mtime: 9, ..Member::directory("d") };
    let old = old.pax("SCHILY.xattr.user.a", "1").pax("SCHILY.xattr.strange", "y");
    let new = Member { mode: 0o6750, mtime: 10, ..Member::directory("d/") };
    let new = new.pax("SCHILY.xattr.user.b", "");
    let node = |layers: &[Vec<Member>]| {
        let (tree, _) = merged(layers).unwrap();
        tree.node(tree.child(Tree::ROOT, b"d").unwrap()).metadata.clone()
    };
    let first = node(&[vec![old.clone()]]);
    assert_eq!((first.uid, first.gid, first.mode, first.mtime.seconds), (1, 2, 0o700, 9));
    assert_eq!(first.xattrs.keys().map(|name| &name[..]).collect::<Vec<_>>(), [b"user.a"]);
    let second = node(&[vec![old.clone()], vec![new]]);
    assert_eq!((second.uid, second.gid, second.mode, second.mtime.seconds), (0, 0, 0o6750, 10));
    assert_eq!(second.xattrs.keys().map(|name| &name[..]).collect::<Vec<_>>(), [b"user.b"]);
    // What happens in a directory does not make it younger.
    assert_eq!(node(&[vec![old], vec![Member::file("d/x", "")]]).mtime.seconds, 9);
    let (tree, _) = merged(&[vec![Member { mode: 0o600, ..Member::symlink("l", "x") }]]).unwrap();
    assert_eq!(tree.node(tree.child(Tree::ROOT, b"l").unwrap()).metadata.mode, 0o777);
}

#[test]
fn devices_are_kept_as_far_as_there_are_such() {
    let node = |flag, device| {
        let layers = [vec![Member { device, ..Member::new("x", flag) }]];
        let (tree, _) = merged(&layers)?;
        Ok::<_, String>(tree.node(tree.child(Tree::ROOT, b"x").expect("it is there")).kind.clone())
    };
    assert_eq!(node(b'3', (1, 3)), Ok(Kind::CharacterDevice { major: 1, minor: 3 }));
    assert_eq!(
        node(b'4', (4095, 0xf_ffff)),
        Ok(Kind::BlockDevice { major: 4095, minor: 0xf_ffff })
    );
    assert!(node(b'3', (4096, 0)).unwrap_err().contains("4096:0"));
    assert_eq!(node(b'6', (0, 0)), Ok(Kind::Fifo));
}

#[test]
fn names_are_bytes_with_limits() {
    let file = |name: &[u8]| merged(&[vec![Member::file(name, "")]]).map(|(tree, _)| tree.len());
    assert_eq!(file(b"caf\xe9\n\x1b"), Ok(2));
    assert_eq!(file(&[b'n'; 255]), Ok(2));
    assert_eq!(file(&[b'n'; 256]), Err("a name of more than 255 bytes".to_owned()));
    assert_eq!(file(&b"d/".repeat(1023)), Ok(1024));
    assert!(file(&b"d/".repeat(1025)).unwrap_err().contains("directories deep"));
    assert!(file(&b"dd/".repeat(6000)).unwrap_err().contains("18000 bytes"));
    let zero = Member::file("", "").pax("path", b"a\0b");
    assert!(merged(&[vec![zero]]).unwrap_err().contains("zero byte"));
    // Links make it no deeper either.
    let deep = "d/".repeat(800);
    let layer = vec![Member::directory(&deep), Member::symlink("l", &deep)];
    let more = Member::file(format!("l/{deep}x"), "");
    assert!(merged(&[layer, vec![more]]).unwrap_err().contains("directories deep"));
    for target in ["", &"x".repeat(4096)] {
        assert!(merged(&[vec![Member::symlink("l", target)]]).is_err());
    }
}

#[test]
fn what_is_kept_in_memory_is_limited() {
    let limits = |change: fn(&mut Limits)| {
        let mut limits = Limits::of_disk(1 << 30);
        change(&mut limits);
        limits
    };
    let many: Vec<Member> = (0..100).map(|at| Member::file(format!("f{at}"), "")).collect();
    let files = limits(|limits| limits.files = 50);
    let error = merged_within(from_ref(&many), &files).unwrap_err();
    assert_eq!(error, "there are more than 50 files");
    let text = limits(|limits| limits.text = 100);
    let error = merged_within(from_ref(&many), &text).unwrap_err();
    assert!(error.contains("more than 100 bytes"), "{error}");
    // Also one after the other.
    let same = vec![Member::file("f", "").pax("SCHILY.xattr.user.a", "x".repeat(60))];
    assert!(merged_within(from_ref(&same), &text).is_ok());
    assert!(merged_within(&[same.clone(), same], &text).is_err());
}

#[test]
fn sparse_files_are_whole() {
    let sparse = Member { data: b"onetwo".to_vec(), ..Member::new("s", b'0') };
    let sparse = sparse.pax("GNU.sparse.size", "12").pax("GNU.sparse.map", "0,3,9,3");
    let (tree, memory) = merged(&[vec![sparse]]).unwrap();
    assert_eq!(listing(&tree, &memory), ["s=one\0\0\0\0\0\0two"]);
}
