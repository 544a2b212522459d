//! Writing cpio archives in the format that Linux unpacks an initramfs from: `newc`, see the
//! kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`.
//!
//! The same entries always give the same bytes: times are 0, owners are root, and inode numbers
//! count up.

/// Writes an archive, entry by entry.
#[derive(Debug, Default)]
pub(crate) struct CpioWriter {
    bytes: Vec<u8>,
    entries: u32,
}

/// Kind and permissions of an entry, and, for a device, its numbers.
struct Header {
    mode: u32,
    links: u32,
    device: (u32, u32),
}

impl CpioWriter {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Add a directory. Its parents must be there already.
    pub(crate) fn directory(&mut self, path: &str, permissions: u32) {
        self.entry(path, &Header { mode: 0o040_000 | permissions, links: 2, device: (0, 0) }, &[]);
    }

    /// Add a file.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, contents: &[u8]) {
        let header = Header { mode: 0o100_000 | permissions, links: 1, device: (0, 0) };
        self.entry(path, &header, contents);
    }

    /// Add a character device.
    pub(crate) fn character_device(&mut self, path: &str, permissions: u32, device: (u32, u32)) {
        self.entry(path, &Header { mode: 0o020_000 | permissions, links: 1, device }, &[]);
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entries = 0;
        self.write("TRAILER!!!", 0, &Header { mode: 0, links: 1, device: (0, 0) }, &[]);
        // Readers take whole blocks of 512 bytes.
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }

    fn entry(&mut self, path: &str, header: &Header, contents: &[u8]) {
        self.entries += 1;
        self.write(path, self.entries, header, contents);
    }

    fn write(&mut self, path: &str, inode: u32, header: &Header, contents: &[u8]) {
        let size = u32::try_from(contents.len()).expect("nothing in an initramfs has 4 GiB");
        let name_size = u32::try_from(path.len() + 1).expect("paths are short");
        let (major, minor) = header.device;
        self.bytes.extend_from_slice(b"070701");
        // inode, mode, uid, gid, links, mtime, size, device of the file (2), of the node (2), size
        // of the name, checksum
        let fields =
            [inode, header.mode, 0, 0, header.links, 0, size, 0, 0, major, minor, name_size, 0];
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(contents);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An entry as a reader sees it.
    #[derive(Debug, PartialEq, Eq)]
    pub(crate) struct Entry {
        pub(crate) path: String,
        pub(crate) mode: u32,
        pub(crate) device: (u32, u32),
        pub(crate) contents: Vec<u8>,
    }

    /// Read an archive as the kernel does.
    pub(crate) fn read(bytes: &[u8]) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |number: usize| {
                let from = at + 6 + number * 8;
                let text = std::str::from_utf8(&bytes[from..from + 8]).expect("hex");
                u32::from_str_radix(text, 16).expect("hex")
            };
            let name_at = at + 110;
            let name_size = field(11) as usize;
            let path = String::from_utf8(bytes[name_at..name_at + name_size - 1].to_vec());
            let path = path.expect("text");
            assert_eq!(bytes[name_at + name_size - 1], 0);
            let data = (name_at + name_size).next_multiple_of(4);
            let end = data + field(6) as usize;
            if path == "TRAILER!!!" {
                assert_eq!(bytes.len() % 512, 0);
                assert!(bytes[end..].iter().all(|byte| *byte == 0));
                return entries;
            }
            assert_eq!(field(0) as usize, entries.len() + 1, "inode numbers count up");
            assert_eq!(field(5), 0, "no time");
            let contents = bytes[data..end].to_vec();
            entries.push(Entry { path, mode: field(1), device: (field(9), field(10)), contents });
            at = end.next_multiple_of(4);
        }
    }

    #[test]
    fn kinds_and_permissions_are_kept() {
        let mut cpio = CpioWriter::new();
        cpio.directory("dev", 0o755);
        cpio.character_device("dev/console", 0o600, (5, 1));
        cpio.file("init", 0o755, b"program");
        let entries = read(&cpio.finish());
        let entry = |path: &str, mode, device, contents: &[u8]| Entry {
            path: path.to_owned(),
            mode,
            device,
            contents: contents.to_vec(),
        };
        let want = [
            entry("dev", 0o040_755, (0, 0), b""),
            entry("dev/console", 0o020_600, (5, 1), b""),
            entry("init", 0o100_755, (0, 0), b"program"),
        ];
        assert_eq!(entries, want);
    }

    proptest! {
        #[test]
        fn every_file_comes_out_as_it_went_in(
            files in proptest::collection::vec(
                ("[a-z/]{1,20}", proptest::collection::vec(any::<u8>(), 0..50)),
                0..10,
            ),
        ) {
            let mut cpio = CpioWriter::new();
            for (path, contents) in &files {
                cpio.file(path, 0o644, contents);
            }
            let entries = read(&cpio.finish());
            let got: Vec<_> = entries.into_iter().map(|entry| (entry.path, entry.contents)).collect();
            prop_assert_eq!(got, files);
        }
    }
}
