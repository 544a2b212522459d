//! What is written is what is read, and e2fsck finds nothing wrong with it.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use banger_ext4::{Content, Extent, Kind, Metadata, NodeId, Timestamp, Tree};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use support::{Disk, Making};

/// What a random tree is made of.
#[derive(Debug, Clone)]
struct Plan {
    name: Vec<u8>,
    /// Which directory it is in, among those there are.
    parent: prop::sample::Index,
    metadata: Metadata,
    kind: PlannedKind,
}

#[derive(Debug, Clone)]
enum PlannedKind {
    Directory,
    /// A file, as runs of bytes: the value, and how many.
    File(Vec<(u8, usize)>),
    /// Another name of a file.
    Link(prop::sample::Index),
    Other(Kind),
    /// Remove something that is there.
    Remove(prop::sample::Index),
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        "[a-z.]{1,12}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 1..=255),
        prop::collection::vec(128_u8..=255, 200..=255),
    ]
    .prop_filter("it is a name", |name| {
        name != b"." && name != b".." && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
    })
}

fn xattrs() -> impl Strategy<Value = BTreeMap<Box<[u8]>, Box<[u8]>>> {
    let value = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..20),
        prop::collection::vec(any::<u8>(), 0..900),
    ];
    let suffix = prop_oneof![
        "[a-z]{1,20}".prop_map(String::into_bytes),
        prop::collection::vec(1_u8..=255, 1..100),
    ];
    let some = (prop::sample::select(vec!["user.", "trusted.", "security."]), suffix, value)
        .prop_map(|(prefix, suffix, value)| ([prefix.as_bytes(), &suffix].concat(), value));
    let capability = Just((
        b"security.capability".to_vec(),
        vec![1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ));
    let acl = prop::sample::select(vec!["access", "default"])
        .prop_map(|which| (format!("system.posix_acl_{which}").into_bytes(), acl()));
    let one = prop_oneof![3 => some, 1 => capability, 1 => acl];
    let list = prop_oneof![3 => Just(0..1_usize), 1 => Just(1..4)]
        .prop_flat_map(move |count| prop::collection::vec(one.clone(), count));
    list.prop_map(|list| {
        list.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
    })
}

/// `u::rw-,u:1000:r--,g::r--,m::rw-,o::---`
fn acl() -> Vec<u8> {
    let mut value = 2_u32.to_le_bytes().to_vec();
    let nobody = u32::MAX;
    for (tag, permissions, id) in
        [(1_u16, 6_u16, nobody), (2, 4, 1000), (4, 4, nobody), (16, 6, nobody), (32, 0, nobody)]
    {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

prop_compose! {
    fn metadata()(
        mode in 0_u16..0o10000,
        uid in prop_oneof![Just(0), any::<u32>()],
        gid in prop_oneof![Just(0), any::<u32>()],
        seconds in prop_oneof![0_i64..2_000_000_000, -2_147_483_648_i64..15_032_385_536],
        nanoseconds in 0_u32..1_000_000_000,
        xattrs in xattrs(),
    ) -> Metadata {
        Metadata { mode, uid, gid, mtime: Timestamp { seconds, nanoseconds }, xattrs }
    }
}

fn kind() -> impl Strategy<Value = PlannedKind> {
    let run = (prop_oneof![Just(0), any::<u8>()], prop_oneof![1..100_usize, 1..20_000_usize]);
    let target = prop_oneof![1..70_usize, 1..4096_usize];
    let device = (0_u32..4096, 0_u32..1 << 20);
    prop_oneof![
        4 => Just(PlannedKind::Directory),
        8 => prop::collection::vec(run, 0..6).prop_map(PlannedKind::File),
        1 => any::<prop::sample::Index>().prop_map(PlannedKind::Link),
        1 => any::<prop::sample::Index>().prop_map(PlannedKind::Remove),
        1 => target.prop_map(|count| PlannedKind::Other(Kind::Symlink(vec![b't'; count].into()))),
        1 => device.clone().prop_map(|(major, minor)| {
            PlannedKind::Other(Kind::CharacterDevice { major, minor })
        }),
        1 => device.prop_map(|(major, minor)| {
            PlannedKind::Other(Kind::BlockDevice { major, minor })
        }),
        1 => Just(PlannedKind::Other(Kind::Fifo)),
        1 => Just(PlannedKind::Other(Kind::Socket)),
    ]
}

prop_compose! {
    fn plan()(
        name in name(),
        parent in any::<prop::sample::Index>(),
        metadata in metadata(),
        kind in kind(),
    ) -> Plan {
        Plan { name, parent, metadata, kind }
    }
}

/// Do what was planned. Answers the contents of the files by where they are.
fn make(making: &mut Making, plans: &[Plan]) -> BTreeMap<u64, Vec<u8>> {
    let mut contents = BTreeMap::new();
    for Plan { name, parent, metadata, kind } in plans {
        let (directories, others) = nodes(&making.tree);
        let parent = directories[parent.index(directories.len())];
        let mut metadata = metadata.clone();
        let kind = match kind {
            PlannedKind::Directory => support::directory(),
            PlannedKind::Other(kind) => kind.clone(),
            PlannedKind::File(runs) => {
                let bytes: Vec<u8> =
                    runs.iter().flat_map(|(value, count)| vec![*value; *count]).collect();
                let content = making.content(&bytes);
                contents.insert(key(&content), bytes);
                Kind::File(content)
            }
            PlannedKind::Link(target) => {
                if !others.is_empty() {
                    let _ = making.tree.link(parent, name, others[target.index(others.len())]);
                }
                continue;
            }
            PlannedKind::Remove(victim) => {
                let names: Vec<_> = making
                    .tree
                    .entries(parent)
                    .into_iter()
                    .flatten()
                    .map(|(name, _)| name)
                    .collect();
                if !names.is_empty() {
                    let name = names[victim.index(names.len())].clone();
                    making.tree.remove(parent, &name);
                }
                let dropped = making.tree.take_dropped();
                making.writer.release(dropped);
                continue;
            }
        };
        if matches!(kind, Kind::Symlink(_)) {
            metadata.mode = 0o777;
        }
        if let Err((_, Kind::File(content))) =
            making.tree.insert(parent, name, metadata, kind.clone()).map_err(|error| (error, kind))
        {
            making.writer.release(vec![content]);
        }
    }
    contents
}

/// What tells contents apart: where they are, or, if they are nowhere, their size.
fn key(content: &Content) -> u64 {
    match content.extents.first() {
        Some(Extent { physical, .. }) => *physical,
        None => u64::MAX - content.bytes,
    }
}

fn nodes(tree: &Tree) -> (Vec<NodeId>, Vec<NodeId>) {
    let mut directories = vec![Tree::ROOT];
    let mut others = BTreeSet::new();
    let mut at = 0;
    while at < directories.len() {
        for id in tree.entries(directories[at]).into_iter().flatten().map(|(_, id)| *id) {
            match tree.entries(id) {
                Some(_) => directories.push(id),
                None => _ = others.insert(id),
            }
        }
        at += 1;
    }
    (directories, others.into_iter().collect())
}

fn check_round_trip(disk: &Disk, plans: &[Plan]) {
    let mut making = Making::new(disk);
    let written = make(&mut making, plans);
    let tree = making.finish().expect("there is room");
    disk.check();
    let (reader, found) = support::read(disk);
    let wanted = support::describe(&tree, &|content| written[&key(content)].clone());
    let found = support::describe(&found, &|content| support::contents(&reader, content));
    assert!(wanted == found, "{wanted:#?}\n{found:#?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn random_trees_come_back(plans in prop::collection::vec(plan(), 0..120)) {
        check_round_trip(&Disk::without_journal(64 << 10), &plans);
    }
}

#[test]
fn a_random_tree_fits_the_usual_disk() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let plans = prop::collection::vec(plan(), 1000).new_tree(&mut runner).expect("a value");
    check_round_trip(&Disk::new(8 << 20), &plans.current());
}
