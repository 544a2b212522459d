//! The files by which `modprobe` finds modules, as `depmod` makes them.
//!
//! The `.bin` files are tries of big-endian numbers, described in the sources of kmod
//! (`libkmod-index.c`): a header of magic, version and root, then nodes. A reference to a node has
//! in its upper bits what the node consists of: a prefix, children, values. Nodes are written
//! children first.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use super::ModuleSet;
use super::elf::normal_name;

/// What is built in says about itself: `.modinfo` of all of it, each key with the module's name.
pub(super) const BUILT_IN_INFO: &str = "modules.builtin.modinfo";
/// Longest alias that is kept. The format needs a call for each byte, and real ones have up to 200.
const MAX_ALIAS: usize = 400;
/// How many aliases are kept. Ubuntu has 70,000.
const MAX_ALIASES: usize = 200_000;

const MAGIC: u32 = 0xB007_F457;
const VERSION: u32 = 0x0002_0001;
const HAS_PREFIX: u32 = 0x8000_0000;
const HAS_VALUES: u32 = 0x4000_0000;
const HAS_CHILDREN: u32 = 0x2000_0000;

/// Write the indexes of a kernel's modules into its directory.
pub(crate) fn write_indexes(set: &ModuleSet) -> io::Result<()> {
    let dependencies = dependency_lines(set);
    let text: String = dependencies.iter().map(|(_, line)| format!("{line}\n")).collect();
    fs::write(set.dir.join("modules.dep"), text)?;
    let mut index = Index::default();
    for (name, line) in &dependencies {
        index.insert(name, line, 0);
    }
    fs::write(set.dir.join("modules.dep.bin"), index.to_bytes()?)?;

    let mut text = String::from("# Aliases extracted from modules themselves.\n");
    let mut index = Index::default();
    for (name, module) in &set.modules {
        for alias in module.info.aliases.iter().filter(|alias| is_usual(alias)) {
            text.push_str(&format!("alias {alias} {name}\n"));
            index.insert(&normal_alias(alias), name, 0);
        }
    }
    fs::write(set.dir.join("modules.alias"), text)?;
    fs::write(set.dir.join("modules.alias.bin"), index.to_bytes()?)?;

    let mut index = Index::default();
    for name in set.built_in.iter().flatten() {
        index.insert(name, "", 0);
    }
    fs::write(set.dir.join("modules.builtin.bin"), index.to_bytes()?)?;
    let index = built_in_aliases(&set.dir.join(BUILT_IN_INFO))?;
    fs::write(set.dir.join("modules.builtin.alias.bin"), index.to_bytes()?)?;
    fs::write(set.dir.join("modules.softdep"), soft_dependencies(set))
}

/// Name and line of each module: `path: path-of-dependency…`.
fn dependency_lines(set: &ModuleSet) -> Vec<(String, String)> {
    let line = |(name, module): (&String, &super::set::Module)| {
        let mut line = format!("{}:", module.path);
        for dependency in set.dependencies(name) {
            line.push(' ');
            line.push_str(&dependency.path);
        }
        (name.clone(), line)
    };
    set.modules.iter().map(line).collect()
}

fn soft_dependencies(set: &ModuleSet) -> String {
    let mut text = String::from("# Soft dependencies extracted from modules themselves.\n");
    for (name, module) in &set.modules {
        for rule in &module.info.softdeps {
            text.push_str(&format!("softdep {name} {rule}\n"));
        }
    }
    text
}

/// The aliases of what is built in; none if nothing tells.
fn built_in_aliases(file: &Path) -> io::Result<Index> {
    let info = match fs::read(file) {
        Ok(info) => info,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let mut index = Index::default();
    for entry in info.split(|byte| *byte == 0) {
        let alias = std::str::from_utf8(entry).ok().and_then(|text| {
            let (name, alias) = text.split_once(".alias=")?;
            is_usual(alias).then(|| (normal_name(name), normal_alias(alias)))
        });
        if let Some((name, alias)) = alias {
            index.insert(&alias, &name, 0);
        }
    }
    Ok(index)
}

fn is_usual(alias: &str) -> bool {
    alias.len() <= MAX_ALIAS && !alias.contains(char::is_whitespace)
}

/// An alias as it is looked up: with underscores, except inside brackets.
fn normal_alias(alias: &str) -> String {
    let mut depth = 0_u32;
    let mut normal = String::with_capacity(alias.len());
    for c in alias.chars() {
        match c {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        normal.push_str(&if depth == 0 { normal_name(&c.to_string()) } else { c.to_string() });
    }
    normal
}

/// A key and its values, each with its priority.
type Entry<'a> = (&'a [u8], &'a [(u32, String)]);

/// A trie from strings to lists of strings with priorities.
#[derive(Debug, Default)]
struct Index {
    entries: BTreeMap<Vec<u8>, Vec<(u32, String)>>,
}

impl Index {
    fn insert(&mut self, key: &str, value: &str, priority: u32) {
        // The format has room for 7-bit characters only; no module has others.
        if key.is_ascii() {
            let values = self.entries.entry(key.as_bytes().to_vec()).or_default();
            let value = (priority, value.to_owned());
            if !values.contains(&value) {
                values.push(value);
            }
        }
    }

    fn to_bytes(&self) -> io::Result<Vec<u8>> {
        if self.entries.len() > MAX_ALIASES {
            let reason = format!("there are more than {MAX_ALIASES} names of modules");
            return Err(io::Error::other(reason));
        }
        let mut bytes = Vec::new();
        for word in [MAGIC, VERSION, 0] {
            bytes.extend(word.to_be_bytes());
        }
        let entries: Vec<Entry<'_>> =
            self.entries.iter().map(|(key, values)| (key.as_slice(), values.as_slice())).collect();
        let root = if entries.is_empty() {
            // Not even an empty index has no root.
            write_node(&mut bytes, b"", &[], &[])
        } else {
            write_subtree(&mut bytes, &entries, 0)
        };
        bytes[8..12].copy_from_slice(&root.to_be_bytes());
        Ok(bytes)
    }
}

/// Write the nodes of the sorted `entries`, which all agree in their first `depth` bytes, and answer
/// a reference to the topmost.
fn write_subtree(bytes: &mut Vec<u8>, entries: &[Entry<'_>], depth: usize) -> u32 {
    let first = entries[0].0;
    let last = entries[entries.len() - 1].0;
    // Sorted, so what the first and the last have in common all have.
    let common = first[depth..].iter().zip(&last[depth..]).take_while(|(a, b)| a == b).count();
    let end = depth + common;
    let (own, below) = match entries.split_first() {
        Some(((key, values), below)) if key.len() == end => (*values, below),
        _ => (&[][..], entries),
    };
    let children: Vec<(u8, u32)> = below
        .chunk_by(|(a, _), (b, _)| a[end] == b[end])
        .map(|group| (group[0].0[end], write_subtree(bytes, group, end + 1)))
        .collect();
    write_node(bytes, &first[depth..end], &children, own)
}

fn write_node(
    bytes: &mut Vec<u8>,
    prefix: &[u8],
    children: &[(u8, u32)],
    values: &[(u32, String)],
) -> u32 {
    let mut reference = u32::try_from(bytes.len()).expect("an index is small");
    if !prefix.is_empty() {
        reference |= HAS_PREFIX;
        bytes.extend_from_slice(prefix);
        bytes.push(0);
    }
    if let (Some((first, _)), Some((last, _))) = (children.first(), children.last()) {
        reference |= HAS_CHILDREN;
        bytes.extend([*first, *last]);
        for byte in *first..=*last {
            let child = children.iter().find(|(at, _)| *at == byte).map_or(0, |(_, child)| *child);
            bytes.extend(child.to_be_bytes());
        }
    }
    if !values.is_empty() {
        reference |= HAS_VALUES;
        let count = u32::try_from(values.len()).expect("an index is small");
        bytes.extend(count.to_be_bytes());
        for (priority, value) in values {
            bytes.extend(priority.to_be_bytes());
            bytes.extend_from_slice(value.as_bytes());
            bytes.push(0);
        }
    }
    reference
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::set::tests::kernel_dir;
    use super::*;

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
    }

    fn text(bytes: &[u8], at: &mut usize) -> Vec<u8> {
        let length = bytes[*at..].iter().position(|byte| *byte == 0).expect("it ends");
        let text = bytes[*at..*at + length].to_vec();
        *at += length + 1;
        text
    }

    /// Look `key` up as libkmod does.
    fn search(bytes: &[u8], key: &[u8]) -> Vec<String> {
        assert_eq!((word(bytes, 0), word(bytes, 4)), (MAGIC, VERSION));
        let mut node = word(bytes, 8);
        let mut key = key;
        loop {
            let mut at = usize::try_from(node & 0x1fff_ffff).expect("small");
            if node & HAS_PREFIX != 0 {
                let prefix = text(bytes, &mut at);
                let Some(rest) = key.strip_prefix(prefix.as_slice()) else { return Vec::new() };
                key = rest;
            }
            let mut child = 0;
            if node & HAS_CHILDREN != 0 {
                let (first, last) = (bytes[at], bytes[at + 1]);
                at += 2;
                if let Some(byte) = key.first().filter(|byte| (first..=last).contains(byte)) {
                    child = word(bytes, at + usize::from(byte - first) * 4);
                }
                at += (usize::from(last - first) + 1) * 4;
            }
            if key.is_empty() {
                if node & HAS_VALUES == 0 {
                    return Vec::new();
                }
                let count = word(bytes, at);
                at += 4;
                let mut value = || {
                    at += 4;
                    String::from_utf8(text(bytes, &mut at)).expect("text")
                };
                return (0..count).map(|_| value()).collect();
            }
            if child == 0 {
                return Vec::new();
            }
            node = child;
            key = &key[1..];
        }
    }

    #[test]
    fn indexes_name_what_each_module_needs() {
        let dir = kernel_dir(
            &[
                ("kernel/a/virtio.ko", "depends=virtio_ring\0"),
                ("kernel/a/virtio_ring.ko", "depends=\0"),
                ("kernel/b/virtio-net.ko", "depends=virtio\0alias=virtio:d1v*\0softdep=pre: x\0"),
            ],
            "kernel/fs/ext4/ext4.ko\n",
        );
        let info = "ext4.license=GPL\0ext4.alias=fs-ext2\0ext4.alias=ext3\0";
        fs::write(dir.path().join(BUILT_IN_INFO), info).expect("ours");
        write_indexes(&ModuleSet::read(dir.path()).expect("read")).expect("write");
        let read = |name: &str| fs::read(dir.path().join(name)).expect("it was written");
        let line = "kernel/b/virtio-net.ko: kernel/a/virtio.ko kernel/a/virtio_ring.ko";
        assert!(String::from_utf8(read("modules.dep")).expect("text").contains(line));
        assert_eq!(search(&read("modules.dep.bin"), b"virtio_net"), [line]);
        assert_eq!(search(&read("modules.alias.bin"), b"virtio:d1v*"), ["virtio_net"]);
        assert_eq!(search(&read("modules.builtin.bin"), b"ext4"), [""]);
        assert_eq!(search(&read("modules.builtin.alias.bin"), b"fs_ext2"), ["ext4"]);
        let soft = String::from_utf8(read("modules.softdep")).expect("text");
        assert!(soft.ends_with("softdep virtio_net pre: x\n"));
    }

    #[test]
    fn dashes_in_aliases_are_underscores_except_in_brackets() {
        assert_eq!(normal_alias("net-pf-16-[0-9]-x"), "net_pf_16_[0-9]_x");
    }

    proptest! {
        #[test]
        fn what_is_inserted_is_found_and_nothing_else(
            keys in proptest::collection::btree_map("[a-d]{0,6}", "[a-z]{1,3}", 0..30),
            other in "[a-e]{0,7}",
        ) {
            let mut index = Index::default();
            for (key, value) in &keys {
                index.insert(key, value, 0);
            }
            let bytes = index.to_bytes().expect("few");
            for (key, value) in &keys {
                prop_assert_eq!(search(&bytes, key.as_bytes()), vec![value.clone()]);
            }
            let found = search(&bytes, other.as_bytes());
            prop_assert_eq!(found, keys.get(&other).cloned().into_iter().collect::<Vec<_>>());
        }
    }
}
