//! Whatever umoci makes of an image, we make of it too.
//!
//! Layers are made at random, of few names so that they get in each other's way. Entries that are
//! refused here are left out, and so are those that umoci alone refuses: a file of a lower layer in
//! the way of a new directory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use banger_ext4::{Kind, Reader, Timestamp, Tree};
use banger_host::command::{Cancel, Tool, ToolError, find_program};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::Limits;
use super::merge::Merge;
use super::path::{Walk, components};
use super::pax::Xattrs;
use super::root::{Layer, Root};
use super::tar::{EntryKind, Stream, TarReader};
use super::testing::{Member, Memory, paths, sha256, tar, write_layout};
use crate::rootfs::DiskPlan;

/// What is compared of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fact {
    kind: String,
    mode: u16,
    owner: (u32, u32),
    /// None for directories: umoci makes those that are missing now.
    mtime: Option<Timestamp>,
    xattrs: Xattrs,
    /// The first of its names.
    same_as: Vec<u8>,
}

type Facts = BTreeMap<Vec<u8>, Fact>;

fn any_name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        20 => prop::sample::select(vec![&b"a"[..], b"b", b"c", b"d"]).prop_map(<[u8]>::to_vec),
        1 => Just(b"caf\xe9\xff".to_vec()),
        1 => Just(vec![b'n'; 255]),
    ]
}

fn any_path() -> impl Strategy<Value = Vec<u8>> {
    let beginning = prop::sample::select(vec![&b""[..], b"", b"./", b"/", b"a/../"]);
    (beginning, prop::collection::vec(any_name(), 1..4))
        .prop_map(|(beginning, names)| [beginning, &names.join(&b'/')].concat())
}

fn any_whiteout() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![3 => any_name().prop_map(|name| [b".wh.", &name[..]].concat()),
        1 => Just(b".wh..wh..opq".to_vec())];
    // Nothing has a name as long as that.
    (prop::collection::vec(any_name(), 0..3), name).prop_map(|(mut names, name)| {
        names.push(name);
        names.join(&b'/')
    })
}

fn any_member() -> impl Strategy<Value = Member> {
    // umoci takes what is not there for a directory when something goes up from it again.
    let down = any_path().prop_filter("it goes up", |path| !path.starts_with(b"a/.."));
    let target = prop_oneof![
        down,
        prop::sample::select(vec![&b"../b"[..], b"/", b"..", b"/a/b", b"../../../c"])
            .prop_map(<[u8]>::to_vec),
    ];
    let data = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..50),
        (1..40_000_usize).prop_map(|bytes| vec![0x5a; bytes]),
        (1..40_000_usize).prop_map(|bytes| vec![0; bytes]),
    ];
    let kind = prop_oneof![
        6 => data.prop_map(|data| Member { data, ..Member::new("", b'0') }),
        6 => Just(Member::new("", b'5')),
        3 => target.prop_map(|link| Member { link, ..Member::new("", b'2') }),
        3 => any_path().prop_map(|link| Member { link, ..Member::new("", b'1') }),
        1 => Just(Member { device: (1, 3), ..Member::new("", b'3') }),
        1 => Just(Member { device: (8, 300), ..Member::new("", b'4') }),
        1 => Just(Member::new("", b'6')),
        1 => Just(sparse()),
    ];
    let owner = || prop::sample::select(vec![0_u64, 1000, 65_534, 4_000_000_000]);
    let mode = prop::sample::select(vec![0o644, 0o755, 0o4755, 0o2710, 0o1777, 0o600, 0]);
    let times = prop::sample::select(vec!["", "1.5", "1234567890.123456789", "4000000000"]);
    let entry = (kind, any_path(), (owner(), owner()), mode, times, 0..4_u8);
    let entry = entry.prop_map(|(mut member, name, (uid, gid), mode, mtime, xattr)| {
        // Below a directory with setgid, umoci gets directories with setgid from the host's kernel.
        (member.name, member.mode) =
            (name, if member.flag == b'5' { mode & !0o2000 } else { mode });
        member = member.pax("uid", uid.to_string()).pax("gid", gid.to_string());
        if !mtime.is_empty() {
            member = member.pax("mtime", mtime);
        }
        match (member.flag, xattr) {
            (b'0', 0) => member.pax("SCHILY.xattr.security.capability", CAPABILITY),
            (b'0' | b'5', 1) => member.pax("SCHILY.xattr.user.binary", b"\n\0 =\xff"),
            (b'0' | b'5' | b'2', 2) => member.pax("SCHILY.xattr.trusted.x", "one"),
            _ => member,
        }
    });
    prop_oneof![5 => entry, 1 => any_whiteout().prop_map(|name| Member::file(name, ""))]
}

/// `cap_net_raw` and, so that there is a newline in it, some others.
const CAPABILITY: &[u8] = b"\x01\0\0\x02\x0a\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

fn sparse() -> Member {
    let data = [vec![1; 4096], vec![2; 100]].concat();
    let member = Member { data, ..Member::new("", b'0') };
    let member = member.pax("GNU.sparse.major", "0").pax("GNU.sparse.minor", "1");
    let member = member.pax("GNU.sparse.size", "300000").pax("GNU.sparse.numblocks", "2");
    member.pax("GNU.sparse.map", "8192,4096,200000,100")
}

/// Leave out what either refuses.
fn good(layers: Vec<Vec<Member>>) -> Vec<Vec<Member>> {
    let limits = Limits::of_disk(1 << 30);
    let mut state = (Tree::new(), Memory::default(), 0);
    let mut good = Vec::new();
    for layer in layers {
        let mut kept: Vec<Member> = Vec::new();
        let mut current = state.clone();
        for member in layer {
            if is_blocked(&current.0, &member, &limits) {
                continue;
            }
            kept.push(member);
            match merged(&state, &kept, &limits) {
                Some(state) => current = state,
                None => drop(kept.pop()),
            }
        }
        state = current;
        good.push(kept);
    }
    good
}

/// The state after one more layer, unless it is refused.
fn merged(
    state: &(Tree, Memory, u64),
    layer: &[Member],
    limits: &Limits,
) -> Option<(Tree, Memory, u64)> {
    let mut state = state.clone();
    let bytes = tar(layer);
    let mut reader = TarReader::new(Stream::new(&bytes[..]));
    let mut merge = Merge::new(&mut state.0, &mut state.1, limits, &mut state.2);
    while let Some(entry) = reader.next_entry().ok()? {
        merge.entry(entry, &mut reader.data()).ok()?;
    }
    merge.finish();
    Some(state)
}

/// Whether it cannot be compared. umoci alone refuses it if something that is no directory is in the
/// way, or if it is a link to itself; GNU tar does not tell of links to devices.
fn is_blocked(tree: &Tree, member: &Member, limits: &Limits) -> bool {
    // Where it would be; None if something is in the way.
    let place = |path: &[u8]| {
        let parts = components(path, limits).ok()?;
        let (name, dirs) = parts.split_last()?;
        let mut walk = Walk::new(dirs);
        match walk.advance(tree).ok()? {
            Some(missing) if tree.child(walk.here(), &missing).is_some() => None,
            Some(_) => Some(None),
            None => Some(Some((walk.here(), name.to_vec()))),
        }
    };
    let Some(there) = place(&member.name) else { return true };
    if member.flag != b'1' {
        return false;
    }
    // They remove first what stands in the link's place, and with it the way to its target.
    let below = |to: &[&[u8]], from: &[&[u8]]| to.starts_with(from);
    let (to, from) = (components(&member.link, limits), components(&member.name, limits));
    if to.is_ok_and(|to| from.is_ok_and(|from| below(&to, &from))) {
        return true;
    }
    let target = place(&member.link);
    let node = target.iter().flatten().find_map(|(parent, name)| tree.child(*parent, name));
    let is_told = |id| matches!(tree.node(id).kind, Kind::File(_) | Kind::Symlink(_));
    target == Some(there) || !node.is_some_and(is_told)
}

/// What umoci makes of it, as GNU tar sees it.
fn umoci(dir: &Path, layers: &[Vec<u8>]) -> Result<Facts, ToolError> {
    let (layout, bundle) = (dir.join("layout"), dir.join("bundle"));
    write_layout(&layout, layers);
    let tool = Tool::new("umoci").args(["unpack", "--image"]);
    let tool = tool.arg(format!("{}:test", layout.display())).arg(&bundle);
    tool.run(&Cancel::new())?;
    let tool = Tool::new("tar").args(["--create", "--file=-", "--format=posix", "--sort=name"]);
    let tool = tool.args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "--directory"]);
    let tool = tool.arg(bundle.join("rootfs")).arg(".").stdout_limit(64 << 20);
    let tar = tool.run(&Cancel::new()).expect("tar runs").stdout;
    let mut reader = TarReader::new(Stream::new(&tar[..]));
    let mut facts = Facts::new();
    while let Some(entry) = reader.next_entry().expect("it is a tar") {
        let path = entry.path.strip_prefix(b"./").expect("it begins so");
        let path = path.strip_suffix(b"/").unwrap_or(path).to_vec();
        let mut data = Vec::new();
        reader.data().read_to_end(&mut data).expect("it is in memory");
        if let EntryKind::HardLink(target) = &entry.kind {
            let target = target.strip_prefix(b"./").expect("it begins so");
            facts.insert(path, facts[target].clone());
            continue;
        }
        let is_directory = entry.kind == EntryKind::Directory;
        let kind = match entry.kind {
            EntryKind::File { .. } => file(&data),
            other => format!("{other:?}"),
        };
        let fact = Fact {
            kind,
            mode: entry.mode,
            owner: (entry.uid, entry.gid),
            mtime: (!is_directory).then_some(entry.mtime),
            xattrs: entry.xattrs,
            same_as: path.clone(),
        };
        facts.insert(path, fact);
    }
    Ok(facts)
}

fn file(data: &[u8]) -> String {
    format!("a file of {} bytes: {}", data.len(), sha256(data))
}

/// What we make of it, as it stands on the disk.
fn ours(dir: &Path, layers: &[Vec<u8>]) -> Facts {
    let (disk, cancel) = (dir.join("disk"), Cancel::new());
    let plan = DiskPlan { label: "test", bytes: 32 << 20, journal: false, identity: &sha256(b"") };
    let mut root = Root::create(&disk, &plan, &cancel).expect("mke2fs runs");
    for (number, layer) in layers.iter().enumerate() {
        let diff_id = Some(format!("sha256:{}", sha256(layer)));
        let (name, stream) = (format!("layer {number}"), Box::new(&layer[..]));
        root.apply(Layer { name, digest: None, diff_id, stream }, &cancel).expect("it is good");
    }
    root.finish(&cancel).expect("e2fsck finds nothing");
    let reader = Reader::open(File::open(&disk).expect("it is there")).expect("it is ext4");
    let limits = banger_ext4::Limits { nodes: 10_000, memory: 1 << 26, contents: 1 << 30 };
    let tree = reader.tree(&limits).expect("it is sound");
    let mut first = BTreeMap::new();
    let mut facts = Facts::new();
    for (path, id) in paths(&tree) {
        let node = tree.node(id);
        let kind = match &node.kind {
            Kind::Directory(_) => format!("{:?}", EntryKind::Directory),
            Kind::File(content) => {
                let mut data = Vec::new();
                reader.contents(content).read_to_end(&mut data).expect("it can be read");
                file(&data)
            }
            Kind::Symlink(target) => format!("{:?}", EntryKind::Symlink(target.to_vec())),
            other => format!("{other:?}"),
        };
        let metadata = node.metadata.clone();
        let fact = Fact {
            kind,
            mode: metadata.mode,
            owner: (metadata.uid, metadata.gid),
            mtime: (!matches!(node.kind, Kind::Directory(_))).then_some(metadata.mtime),
            xattrs: metadata.xattrs,
            same_as: first.entry(id).or_insert_with(|| path.clone()).clone(),
        };
        facts.insert(path, fact);
    }
    facts
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

#[test]
fn random_stacks_of_layers_become_what_umoci_unpacks() {
    if !is_root() || find_program("umoci").is_none() {
        println!("skipped: it needs root and umoci");
        return;
    }
    // PROPTEST_CASES is heeded; the default is too many for every day.
    let cases = Some(Config::default().cases).filter(|cases| *cases != 256).unwrap_or(60);
    let config =
        Config { cases, max_shrink_iters: 200, failure_persistence: None, ..Config::default() };
    let stacks = prop::collection::vec(prop::collection::vec(any_member(), 1..14), 1..5);
    let result = TestRunner::new(config).run(&stacks, |stack| {
        let layers: Vec<Vec<u8>> = good(stack).iter().map(|layer| tar(layer)).collect();
        let dir = tempfile::tempdir().expect("a directory");
        let theirs = umoci(dir.path(), &layers)
            .map_err(|error| TestCaseError::fail(format!("{error}: {:?}", error.stderr())))?;
        let ours = ours(dir.path(), &layers);
        for path in theirs.keys().chain(ours.keys()) {
            let shown = String::from_utf8_lossy(path).into_owned();
            prop_assert_eq!(ours.get(path), theirs.get(path), "{}", shown);
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
