//! Tests of reading tars.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::sync::OnceLock;

use banger_ext4::Timestamp;
use banger_host::command::{Cancel, Tool};
use proptest::prelude::*;

use super::super::header::BLOCK;
use super::super::testing::{Member, padded, record, seal, tar};
use super::*;

/// All entries with their data.
fn entries(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut reader = TarReader::new(Stream::new(bytes));
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut data = Vec::new();
        if let Err(error) = reader.data().read_to_end(&mut data) {
            return Err(reader.take_failure().unwrap_or(error.into()));
        }
        entries.push((entry, data));
    }
    Ok(entries)
}

fn only(bytes: &[u8]) -> (Entry, Vec<u8>) {
    let mut entries = entries(bytes).expect("it can be read");
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries.remove(0)
}

fn reason(bytes: &[u8]) -> String {
    match entries(bytes) {
        Err(TarError::Malformed { entry, reason }) => {
            format!("{}: {reason}", entry.unwrap_or_default())
        }
        other => panic!("it was not refused: {other:?}"),
    }
}

#[test]
fn members_have_what_their_headers_say() {
    let members = [
        Member { mode: 0o104_755, uid: 7, gid: 8, ..Member::file("a/b", "text") },
        Member::directory("dir/"),
        Member::symlink("link", "../a"),
        Member::hard_link("other", "a/b"),
        Member { device: (1, 3), ..Member::new("null", b'3') },
        Member { device: (8, 1), ..Member::new("sda1", b'4') },
        Member::new("fifo", b'6'),
        Member::file("old", "x"),
    ];
    let mut bytes = tar(&members);
    // As it was before POSIX.
    let old = bytes.len() - 4 * BLOCK;
    let mut header: [u8; BLOCK] = bytes[old..old + BLOCK].try_into().expect("a block");
    header[156] = 0;
    header[257..].fill(0);
    seal(&mut header);
    bytes[old..old + BLOCK].copy_from_slice(&header);
    let entries = entries(&bytes).expect("it can be read");
    let kinds: Vec<EntryKind> = entries.iter().map(|(entry, _)| entry.kind.clone()).collect();
    let file = |bytes| EntryKind::File { bytes, chunks: None };
    let want = [
        file(4),
        EntryKind::Directory,
        EntryKind::Symlink(b"../a".to_vec()),
        EntryKind::HardLink(b"a/b".to_vec()),
        EntryKind::CharacterDevice { major: 1, minor: 3 },
        EntryKind::BlockDevice { major: 8, minor: 1 },
        EntryKind::Fifo,
        file(1),
    ];
    assert_eq!(kinds, want);
    let (first, data) = &entries[0];
    assert_eq!((first.mode, first.uid, first.gid), (0o4755, 7, 8));
    assert_eq!(first.mtime, Timestamp { seconds: 1_000_000_000, nanoseconds: 0 });
    assert_eq!(data, b"text");
}

#[test]
fn extended_headers_win() {
    let long = vec![b'n'; 5000];
    let not_text = b"caf\xe9/\xff";
    let member = Member::file("short", "text")
        .pax("path", &long)
        .pax("uid", "4000000000")
        .pax("mtime", "1234567890.123456789")
        .pax("SCHILY.xattr.security.capability", b"\x01\0\n\0\x02");
    let (entry, data) = only(&tar(&[member]));
    assert_eq!((entry.path, entry.uid, data), (long, 4_000_000_000, b"text".to_vec()));
    assert_eq!(entry.mtime, Timestamp { seconds: 1_234_567_890, nanoseconds: 123_456_789 });
    assert_eq!(entry.xattrs.values().next().map(|v| &v[..]), Some(&b"\x01\0\n\0\x02"[..]));
    let (entry, _) = only(&tar(&[Member::hard_link("x", "y").pax("linkpath", not_text)]));
    assert_eq!(entry.kind, EntryKind::HardLink(not_text.to_vec()));
    // A size as well: the header's is what other readers might believe.
    let mut bytes = Member::file("sized", "").pax("size", "5").bytes();
    bytes.extend(padded(b"12345".to_vec()));
    bytes.extend(tar(&[Member::file("next", "")]));
    let entries = entries(&bytes).expect("it can be read");
    assert_eq!(entries[0].1, b"12345");
    assert_eq!(entries[1].0.path, b"next");
}

#[test]
fn global_headers_hold_for_owners_and_times() {
    let pax = [record(b"uid", b"5"), record(b"path", b"no"), record(b"mtime", b"9")].concat();
    let mut bytes = Member::new("global", b'g').header(pax.len() as u64).to_vec();
    bytes.extend(padded(pax));
    bytes.extend(tar(&[Member::file("a", ""), Member::file("b", "").pax("uid", "6")]));
    let entries = entries(&bytes).expect("it can be read");
    let shown: Vec<_> = entries
        .iter()
        .map(|(entry, _)| (&entry.path[..], entry.uid, entry.mtime.seconds))
        .collect();
    assert_eq!(shown, [(&b"a"[..], 5, 9), (b"b", 6, 9)]);
}

#[test]
fn data_of_links_and_directories_are_not_there() {
    for flag in [b'1', b'2', b'3', b'4', b'5', b'6'] {
        let member = Member { link: b"target".to_vec(), ..Member::new("x", flag) };
        let mut bytes = member.header(4096).to_vec();
        bytes.extend(tar(&[Member::file("next", "")]));
        let entries = entries(&bytes).expect("it can be read");
        assert_eq!(entries.len(), 2, "{flag}");
        assert_eq!(entries[0].1, b"");
    }
}

#[test]
fn times_and_owners_stay_within_what_a_disk_can_hold() {
    let mtime = |text: &str| only(&tar(&[Member::file("x", "").pax("mtime", text)])).0.mtime;
    assert_eq!(mtime("-5.5"), Timestamp::default());
    assert_eq!(
        mtime("99999999999999"),
        Timestamp { seconds: LAST_SECOND, nanoseconds: 999_999_999 }
    );
    assert_eq!(mtime("1.25"), Timestamp { seconds: 1, nanoseconds: 250_000_000 });
    for uid in ["4294967295", "4294967296", "18446744073709551615"] {
        let text = reason(&tar(&[Member::file("x", "").pax("uid", uid)]));
        assert!(text.contains("x: an owner that no file can have"), "{text}");
    }
    let mut negative = Member::file("x", "").header(0);
    negative[108..116].fill(0xff);
    seal(&mut negative);
    assert!(reason(&negative).contains("an owner"));
}

#[test]
fn what_is_cut_off_is_no_end() {
    let whole = tar(&[Member::file("a", vec![1; 700]).pax("mtime", "1")]);
    let end = whole.len() - 2 * BLOCK;
    for cut in 1..end {
        assert!(reason(&whole[..cut]).contains("it ends too early"), "{cut}");
    }
    // Without the zeros at its end it is still whole; some writers leave them out.
    for end in [end, end + BLOCK, whole.len()] {
        assert_eq!(entries(&whole[..end]).expect("it is whole").len(), 1);
    }
    assert_eq!(entries(b"").expect("nothing is an archive too").len(), 0);
}

#[test]
fn what_is_no_archive_is_refused() {
    let good = tar(&[Member::file("a", "text")]);
    for at in [0, 100, 124, 148, 156, 300] {
        let mut damaged = good.clone();
        damaged[at] ^= 1;
        assert!(reason(&damaged).contains("damaged"), "{at}");
    }
    assert!(reason(&[b'x'; 4096]).contains("not a tar"));
    assert!(reason(b"short").contains("too early"));
    let one_zero_block = [vec![0; BLOCK], good].concat();
    assert!(reason(&one_zero_block).contains("damaged"));
    // What follows the end is nobody's business.
    assert_eq!(entries(&[vec![0; 2 * BLOCK], vec![7; 100]].concat()).expect("an end").len(), 0);
}

#[test]
fn claims_are_not_believed() {
    // Eight gibibytes of extended header, or of name.
    for flag in [b'x', b'g', b'L', b'K'] {
        let mut header = Member::new("x", flag).header(0);
        header[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
        seal(&mut header);
        assert!(reason(&header).contains("an extended header of 8589934592 bytes"), "{flag}");
    }
    let huge = Member::file("x", "").pax("size", "18446744073709551615");
    assert!(reason(&tar(&[huge])).contains("a file of 18446744073709551615 bytes"));
    let mut negative = Member::file("x", "").header(0);
    negative[124..136].fill(0xff);
    seal(&mut negative);
    assert!(reason(&negative).contains("x: a bad size"));
    for flag in [b'D', b'M', b'V', b'9', b'?'] {
        assert!(reason(&tar(&[Member::new("x", flag)])).contains("unknown type"));
    }
    let alone = Member::file("x", "").pax("mtime", "1").bytes();
    assert!(reason(&alone[..2 * BLOCK]).contains("too early"));
}

#[test]
fn failures_of_the_stream_are_told_from_failures_of_the_archive() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(ErrorKind::ConnectionReset.into())
        }
    }
    let bytes = tar(&[Member::file("a", vec![1; 1000])]);
    let mut reader = TarReader::new(Stream::new((&bytes[..BLOCK + 10]).chain(Failing)));
    reader.next_entry().expect("its header is there");
    io::copy(&mut reader.data(), &mut io::sink()).expect_err("its data are not");
    assert!(matches!(reader.take_failure(), Some(TarError::Read(_))));
}

/// What GNU tar makes of a directory with a sparse file, a long name and a long link.
fn gnu_tar(options: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a directory");
    let file = File::create(dir.path().join("sparse")).expect("create");
    for at in 0..30_u64 {
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 4096], at << 16).expect("write");
    }
    file.set_len(5 << 20).expect("extend");
    let long = "n".repeat(120);
    std::os::unix::fs::symlink("t".repeat(300), dir.path().join(long)).expect("link");
    let tool = Tool::new("tar").args(["--create", "--file=-", "--sparse", "--sort=name"]);
    let tool = tool.args(options).arg("--directory").arg(dir.path()).arg(".");
    tool.run(&Cancel::new()).expect("tar runs").stdout
}

#[test]
fn gnu_tar_is_understood_in_all_its_dialects() {
    let dialects: [&[&str]; 6] = [
        &["--format=gnu"],
        &["--format=oldgnu"],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
        &["--format=posix"],
    ];
    for options in dialects {
        let bytes = gnu_tar(options);
        assert!(bytes.len() < 1 << 20, "it is sparse");
        let entries = entries(&bytes).expect("it can be read");
        let names: Vec<_> =
            entries.iter().map(|(entry, _)| String::from_utf8_lossy(&entry.path)).collect();
        assert_eq!(names, ["./".to_owned(), format!("./{}", "n".repeat(120)), "./sparse".into()]);
        assert_eq!(entries[1].0.kind, EntryKind::Symlink(vec![b't'; 300]));
        let EntryKind::File { bytes, chunks: Some(chunks) } = &entries[2].0.kind else {
            panic!("{options:?}: {:?}", entries[2].0);
        };
        let want: Vec<(u64, u64)> = (0..30).map(|at| (at << 16, 4096)).collect();
        assert_eq!((*bytes, chunks), (5 << 20, &want), "{options:?}");
        assert_eq!(entries[2].1, vec![7; 30 * 4096]);
    }
}

#[test]
fn a_seekable_archive_is_read_alike() {
    let members = [Member::file("a", vec![1; 100_000]), Member::file("b", "text")];
    let bytes = tar(&members);
    let mut file = tempfile::tempfile().expect("a file");
    io::Write::write_all(&mut file, &bytes).expect("write");
    io::Seek::rewind(&mut file).expect("seek");
    let mut reader = TarReader::new(Seekable::new(file));
    let mut places = Vec::new();
    while let Some(entry) = reader.next_entry().expect("it can be read") {
        places.push((entry.path, reader.position()));
    }
    assert_eq!(places, [(b"a".to_vec(), 512), (b"b".to_vec(), 512 + 100_352 + 512)]);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        options in prop::sample::select(vec!["gnu", "oldgnu", "posix"]),
        seals in any::<bool>(),
    ) {
        static ARCHIVES: OnceLock<BTreeMap<&str, Vec<u8>>> = OnceLock::new();
        let archives = ARCHIVES.get_or_init(|| {
            let make = |format| (format, gnu_tar(&[&format!("--format={format}")]));
            ["gnu", "oldgnu", "posix"].map(make).into()
        });
        let mut bytes = archives[options].clone();
        for (at, byte) in changes {
            // Most of it is data; headers are where it gets interesting.
            let at = at.index(bytes.len().min(16 * BLOCK));
            bytes[at] = byte;
            let block = at / BLOCK * BLOCK;
            if seals && let Some(header) = bytes.get_mut(block..block + BLOCK) {
                seal(header.try_into().expect("a block"));
            }
        }
        let _ = entries(&bytes);
    }
}
