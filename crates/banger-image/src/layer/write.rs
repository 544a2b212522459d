//! From a tree to the one layer of an image, for others to read.
//!
//! The same tree always becomes the same bytes: entries come in the order of their names, each
//! directory before what is in it, and of a file with several names the first is the file. What a
//! header of 1988 cannot say, an extended header says.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};

use banger_ext4::{Content, Kind, Metadata, NodeId, Reader, Tree};
use banger_host::command::Cancel;
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use super::error::{LayerError, shown};
use super::header::BLOCK;

/// Longest name or link that a header has room for.
const MAX_FIELD: usize = 100;
/// Largest owner that seven octal digits can tell.
const MAX_OWNER: u32 = 0o777_7777;
/// Largest size and time that eleven can.
const MAX_NUMBER: u64 = 0o777_7777_7777;

/// Records of an extended header.
type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// Write what is in `tree`, which was read from the disk of `reader`, as a tar.
///
/// # Errors
/// The disk cannot be read or `out` not written, the work was called off, or there is something that
/// a layer cannot contain.
pub(crate) fn write_layer(
    reader: &Reader,
    tree: &Tree,
    out: &mut dyn Write,
    cancel: &Cancel,
) -> Result<(), LayerError> {
    write_tree(tree, &|content| Box::new(reader.contents(content)), out, cancel)
}

fn write_tree<'t>(
    tree: &'t Tree,
    contents: &dyn Fn(&'t Content) -> Box<dyn Read + 't>,
    out: &mut dyn Write,
    cancel: &Cancel,
) -> Result<(), LayerError> {
    let mut writer = TarWriter { out, cancel };
    // The first names of files with several.
    let mut linked: HashMap<NodeId, Vec<u8>> = HashMap::new();
    let mut pending = vec![(b"./".to_vec(), Tree::ROOT)];
    while let Some((path, id)) = pending.pop() {
        writer.check()?;
        let node = tree.node(id);
        if let Some(first) = linked.get(&id) {
            writer.member(&Member { link: first, ..Member::new(&path, b'1', &node.metadata) })?;
            continue;
        }
        let member = |flag| Member::new(&path, flag, &node.metadata);
        match &node.kind {
            Kind::Directory(entries) => {
                writer.member(&member(b'5'))?;
                pending.extend(paths(&path, entries, tree)?);
            }
            Kind::File(content) => {
                writer.member(&Member { bytes: content.bytes, ..member(b'0') })?;
                writer.data(&mut *contents(content), content.bytes)?;
            }
            Kind::Symlink(target) => writer.member(&Member { link: target, ..member(b'2') })?,
            Kind::CharacterDevice { major, minor } => {
                writer.member(&Member { device: (*major, *minor), ..member(b'3') })?;
            }
            Kind::BlockDevice { major, minor } => {
                writer.member(&Member { device: (*major, *minor), ..member(b'4') })?;
            }
            Kind::Fifo => writer.member(&member(b'6'))?,
            // Tar has none; whoever listens makes it anew.
            Kind::Socket => continue,
        }
        if node.links() > 1 {
            linked.insert(id, path);
        }
    }
    writer.write(&[0; 2 * BLOCK])
}

/// The paths of what is in a directory, the last first.
fn paths(
    directory: &[u8],
    entries: &BTreeMap<Box<[u8]>, NodeId>,
    tree: &Tree,
) -> Result<Vec<(Vec<u8>, NodeId)>, LayerError> {
    let above = if directory == b"./" { b"" } else { directory };
    let mut paths = Vec::with_capacity(entries.len());
    for (name, id) in entries.iter().rev() {
        let is_directory = matches!(tree.node(*id).kind, Kind::Directory(_));
        let path = [above, name, if is_directory { b"/" } else { b"" }].concat();
        if name.starts_with(b".wh.") {
            // Whoever puts the layer on another would remove something instead.
            let reason = "a name that begins with .wh. cannot be in an image".to_owned();
            let (layer, entry) = ("the image".to_owned(), Some(shown(&path)));
            return Err(LayerError::Invalid { layer, entry, reason });
        }
        paths.push((path, *id));
    }
    Ok(paths)
}

/// What a header says.
struct Member<'a> {
    path: &'a [u8],
    flag: u8,
    metadata: &'a Metadata,
    link: &'a [u8],
    bytes: u64,
    device: (u32, u32),
}

impl<'a> Member<'a> {
    fn new(path: &'a [u8], flag: u8, metadata: &'a Metadata) -> Self {
        Self { path, flag, metadata, link: b"", bytes: 0, device: (0, 0) }
    }

    /// The header, and what it cannot say.
    fn header(&self) -> ([u8; BLOCK], Records) {
        let mut records = Records::new();
        let mut header = Header::new(self.flag);
        let mut text = |at, key: &str, text: &[u8]| {
            if text.len() > MAX_FIELD {
                records.insert(key.into(), text.to_vec());
            }
            header.put(at, &text[..text.len().min(MAX_FIELD)]);
        };
        text(0, "path", self.path);
        text(157, "linkpath", self.link);
        let Metadata { mode, uid, gid, mtime, xattrs } = self.metadata;
        header.number(100, 7, u64::from(*mode));
        for (at, key, owner) in [(108, "uid", *uid), (116, "gid", *gid)] {
            if owner > MAX_OWNER {
                records.insert(key.into(), owner.to_string().into());
            }
            header.number(at, 7, u64::from(owner.min(MAX_OWNER)));
        }
        if self.bytes > MAX_NUMBER {
            records.insert(b"size".to_vec(), self.bytes.to_string().into());
        }
        header.number(124, 11, self.bytes.min(MAX_NUMBER));
        let seconds = u64::try_from(mtime.seconds).unwrap_or_default();
        if seconds > MAX_NUMBER || (mtime.nanoseconds > 0 && mtime.seconds >= 0) {
            let text = format!("{seconds}.{:09}", mtime.nanoseconds);
            records.insert(b"mtime".to_vec(), text.into());
        }
        header.number(136, 11, seconds.min(MAX_NUMBER));
        header.number(329, 7, u64::from(self.device.0));
        header.number(337, 7, u64::from(self.device.1));
        records.extend(xattrs.iter().map(|(name, value)| xattr(name, value)));
        (header.sealed(), records)
    }
}

/// The record of an extended attribute.
fn xattr(name: &[u8], value: &[u8]) -> (Vec<u8>, Vec<u8>) {
    if !name.contains(&b'=') {
        return ([b"SCHILY.xattr.", name].concat(), value.to_vec());
    }
    // It would be taken for the end of the key.
    let mut key = b"LIBARCHIVE.xattr.".to_vec();
    for byte in name {
        match byte {
            b'=' | b'%' => key.extend(format!("%{byte:02X}").bytes()),
            byte => key.push(*byte),
        }
    }
    (key, STANDARD_NO_PAD.encode(value).into_bytes())
}

struct Header([u8; BLOCK]);

impl Header {
    fn new(flag: u8) -> Self {
        let mut header = Self([0; BLOCK]);
        header.put(156, &[flag]);
        header.put(257, b"ustar\x0000");
        header
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn number(&mut self, at: usize, digits: usize, number: u64) {
        self.put(at, format!("{number:0digits$o}").as_bytes());
    }

    fn sealed(mut self) -> [u8; BLOCK] {
        self.put(148, &[b' '; 8]);
        let sum: u64 = self.0.iter().map(|byte| u64::from(*byte)).sum();
        self.put(148, format!("{sum:06o}\0").as_bytes());
        self.0
    }
}

struct TarWriter<'a> {
    out: &'a mut dyn Write,
    cancel: &'a Cancel,
}

impl TarWriter<'_> {
    fn check(&self) -> Result<(), LayerError> {
        if self.cancel.is_cancelled() { Err(LayerError::Cancelled) } else { Ok(()) }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        self.out.write_all(bytes).map_err(LayerError::Write)
    }

    fn member(&mut self, member: &Member<'_>) -> Result<(), LayerError> {
        let (header, records) = member.header();
        if !records.is_empty() {
            let pax: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
            let mut header = Header::new(b'x');
            header.put(0, b"PaxHeaders/next");
            header.number(100, 7, 0o644);
            for (at, digits) in [(108, 7), (116, 7), (136, 11), (329, 7), (337, 7)] {
                header.number(at, digits, 0);
            }
            header.number(124, 11, pax.len() as u64);
            self.write(&header.sealed())?;
            self.write(&pax)?;
            self.pad(pax.len() as u64)?;
        }
        self.write(&header)
    }

    /// Copy exactly `bytes`.
    fn data(&mut self, data: &mut dyn Read, bytes: u64) -> Result<(), LayerError> {
        let failed = |source| LayerError::Read { layer: "the image's disk".to_owned(), source };
        let mut buffer = vec![0; 128 << 10];
        let mut left = bytes;
        while left > 0 {
            self.check()?;
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            data.read_exact(&mut buffer[..wanted]).map_err(failed)?;
            self.write(&buffer[..wanted])?;
            left -= wanted as u64;
        }
        self.pad(bytes)
    }

    fn pad(&mut self, bytes: u64) -> Result<(), LayerError> {
        let padding = usize::try_from(bytes.wrapping_neg() % BLOCK as u64).expect("it is small");
        self.write(&[0; BLOCK][..padding])
    }
}

/// A record of an extended header: its length, which counts itself, key and value.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length - length.to_string().len() != rest {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use std::io;

    use banger_ext4::Timestamp;
    use banger_host::command::Tool;

    use super::super::Limits;
    use super::super::merge::Merge;
    use super::super::tar::{Stream, TarReader};
    use super::super::testing::{self, Memory, listing, short};
    use super::*;

    /// The tree that a tar makes.
    fn read(tar: &[u8]) -> (Tree, Memory) {
        let (mut tree, mut memory, mut text) = (Tree::new(), Memory::default(), 0);
        let limits = Limits::of_disk(1 << 30);
        let mut reader = TarReader::new(Stream::new(tar));
        let mut merge = Merge::new(&mut tree, &mut memory, &limits, &mut text);
        while let Some(entry) = reader.next_entry().expect("it is a tar") {
            merge.entry(entry, &mut reader.data()).expect("it is good");
        }
        merge.finish();
        (tree, memory)
    }

    fn written(tree: &Tree, memory: &Memory) -> Result<Vec<u8>, LayerError> {
        let mut tar = Vec::new();
        write_tree(tree, &|content| Box::new(memory.get(content)), &mut tar, &Cancel::new())?;
        Ok(tar)
    }

    fn full() -> (Tree, Memory) {
        let long = "n".repeat(150);
        let entries = [
            "d/",
            "d/file=text",
            "d/other:=d/file",
            "a:=d/file",
            "l->d/file",
            "m:=l",
            "empty=",
            "caf\u{e9}=x",
            &format!("{long}/"),
            &format!("{long}/{long}->{long}"),
            &format!("h:={long}/{long}"),
        ];
        let members: Vec<_> = entries.map(short).to_vec();
        let (mut tree, memory) = read(&testing::tar(&members));
        let node = tree.child(Tree::ROOT, b"empty").expect("it is there");
        let metadata = tree.metadata_mut(node);
        (metadata.uid, metadata.gid, metadata.mode) = (4_000_000_000, 7, 0o4751);
        metadata.mtime = Timestamp { seconds: 9_000_000_000, nanoseconds: 1 };
        for (name, value) in [("user.a=%b", &b"\0\n"[..]), ("security.capability", b"12 x=\n")] {
            metadata.xattrs.insert(name.as_bytes().into(), value.into());
        }
        for (name, kind) in [
            (&b"null"[..], Kind::CharacterDevice { major: 1, minor: 3 }),
            (b"sda", Kind::BlockDevice { major: 8, minor: 0xf_ffff }),
            (b"fifo", Kind::Fifo),
        ] {
            tree.insert(Tree::ROOT, name, Metadata::default(), kind).expect("it is free");
        }
        (tree, memory)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let (tree, memory) = full();
        let tar = written(&tree, &memory).expect("it is all good");
        let (again, contents) = read(&tar);
        assert_eq!(listing(&again, &contents), listing(&tree, &memory));
        for ((path, one), (_, two)) in testing::paths(&tree).into_iter().zip(testing::paths(&again))
        {
            let path = String::from_utf8_lossy(&path).into_owned();
            assert_eq!(tree.node(one).metadata, again.node(two).metadata, "{path}");
        }
        assert_eq!(written(&again, &contents).expect("it is all good"), tar);
    }

    #[test]
    fn gnu_tar_reads_it_too() {
        let (tree, memory) = full();
        let tar = written(&tree, &memory).expect("it is all good");
        let tool = Tool::new("tar").args(["--list", "--verbose", "--numeric-owner", "--file=-"]);
        let listed = tool.stdin(tar).run(&Cancel::new()).expect("tar reads it").text();
        assert_eq!(listed.lines().count(), testing::paths(&tree).len(), "{listed}");
        assert!(listed.contains("-rwsr-x--x 4000000000/7"), "{listed}");
        assert!(listed.contains("d/file link to a"), "{listed}");
    }

    #[test]
    fn what_would_be_a_whiteout_cannot_be_sent() {
        let mut tree = Tree::new();
        let name = b".wh.x";
        tree.insert(Tree::ROOT, name, Metadata::default(), Kind::Fifo).expect("it is free");
        let error = written(&tree, &Memory::default()).expect_err("it would remove x");
        assert!(error.to_string().contains(".wh.x"), "{error}");
    }

    #[test]
    fn records_count_themselves() {
        for length in [1, 90, 92, 95, 989, 990, 992, 99_988] {
            let record = record(b"key", &vec![b'v'; length]);
            let (stated, _) = record.split_at(record.iter().position(|b| *b == b' ').expect("one"));
            assert_eq!(String::from_utf8_lossy(stated), record.len().to_string());
        }
    }

    #[test]
    fn who_calls_it_off_gets_no_layer() {
        let cancel = Cancel::new();
        cancel.cancel();
        let written =
            write_tree(&Tree::new(), &|_| Box::new(io::empty()), &mut io::sink(), &cancel);
        assert!(matches!(written, Err(LayerError::Cancelled)));
    }
}
