//! What a kernel module says about itself: the section `.modinfo` of its ELF file, a list of
//! `key=value` strings.

/// Largest `.modinfo` that is read. The largest in Debian has 60 kB.
const MAX_MODINFO: usize = 4 << 20;
/// Longest name of a module that is believed; the kernel allows 55.
const MAX_NAME: usize = 64;

/// The facts of `.modinfo` that loading needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ModuleInfo {
    /// Names of the modules that must be loaded before it.
    pub(super) depends: Vec<String>,
    /// Other names it answers to, patterns among them.
    pub(super) aliases: Vec<String>,
    /// Modules that it would like to be loaded before or after it, as in modprobe.d.
    pub(super) softdeps: Vec<String>,
    /// The kernel that it was built for.
    pub(super) release: Option<String>,
}

impl ModuleInfo {
    /// How much memory it takes, roughly.
    pub(super) fn bytes(&self) -> usize {
        let lists = [&self.depends, &self.aliases, &self.softdeps];
        lists.into_iter().flatten().map(|text| text.len() + size_of::<String>()).sum()
    }

    /// What it would like to be loaded before it: names of modules, or what modules answer to.
    pub(super) fn wanted_before(&self) -> impl Iterator<Item = &str> {
        self.softdeps.iter().flat_map(|rule| {
            let words = rule.split_ascii_whitespace().skip_while(|word| *word != "pre:");
            words.skip(1).take_while(|word| *word != "post:")
        })
    }
}

/// Read the `.modinfo` of a 64-bit little-endian ELF file; None if it is none, or has none.
pub(super) fn module_info(file: &[u8]) -> Option<ModuleInfo> {
    let section = section(file, b".modinfo").filter(|section| section.len() <= MAX_MODINFO)?;
    let mut info = ModuleInfo::default();
    for entry in section.split(|byte| *byte == 0) {
        let Ok(text) = std::str::from_utf8(entry) else { continue };
        match text.split_once('=') {
            Some(("depends", names)) => {
                let is_name = |name: &&str| !name.is_empty() && name.len() <= MAX_NAME;
                let names = names.split(',').filter(is_name);
                info.depends.extend(names.map(normal_name));
            }
            Some(("alias", alias)) => info.aliases.push(alias.to_owned()),
            Some(("softdep", rule)) => info.softdeps.push(rule.to_owned()),
            Some(("vermagic", magic)) => {
                info.release = magic.split_ascii_whitespace().next().map(str::to_owned);
            }
            _ => {}
        }
    }
    Some(info)
}

/// A module's name as the kernel knows it.
pub(super) fn normal_name(name: &str) -> String {
    name.replace('-', "_")
}

fn section<'a>(file: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    // e_ident: magic, 64-bit, little-endian
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = usize::try_from(u64_at(file, 0x28)?).ok()?;
    let entry_size = usize::from(u16_at(file, 0x3a)?);
    let count = usize::from(u16_at(file, 0x3c)?);
    let names_index = usize::from(u16_at(file, 0x3e)?);
    let header = |index: usize| {
        let begin = table.checked_add(index.checked_mul(entry_size)?)?;
        file.get(begin..begin.checked_add(0x40)?)
    };
    let contents = |header: &[u8]| {
        let offset = usize::try_from(u64_at(header, 0x18)?).ok()?;
        let size = usize::try_from(u64_at(header, 0x20)?).ok()?;
        file.get(offset..offset.checked_add(size)?)
    };
    let names = contents(header(names_index)?)?;
    (0..count).find_map(|index| {
        let header = header(index)?;
        let name = names.get(usize::try_from(u32_at(header, 0)?).ok()?..)?;
        let name = name.split(|byte| *byte == 0).next()?;
        if name == wanted { contents(header) } else { None }
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A minimal ELF file with that `.modinfo`.
    pub(crate) fn module_file(modinfo: &[u8]) -> Vec<u8> {
        let names = b"\0.shstrtab\0.modinfo\0";
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let names_at = file.len();
        file.extend_from_slice(names);
        let info_at = file.len();
        file.extend_from_slice(modinfo);
        let table = file.len();
        let mut header = |name: u32, offset: usize, size: usize| {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&(offset as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(size as u64).to_le_bytes());
            file.extend_from_slice(&header);
        };
        header(0, 0, 0);
        header(1, names_at, names.len());
        header(11, info_at, modinfo.len());
        file[0x28..0x30].copy_from_slice(&(table as u64).to_le_bytes());
        file[0x3a..0x3c].copy_from_slice(&64_u16.to_le_bytes());
        file[0x3c..0x3e].copy_from_slice(&3_u16.to_le_bytes());
        file[0x3e..0x40].copy_from_slice(&1_u16.to_le_bytes());
        file
    }

    #[test]
    fn modinfo_is_read() {
        let file = module_file(
            b"license=GPL\0alias=virtio:d00000001v*\0alias=net-x\0depends=virtio_ring,net-failover\0\
              softdep=pre: crc32c x post: y\0name=virtio_net\0\
              vermagic=6.1.0-56-cloud-amd64 SMP preempt mod_unload\0",
        );
        let info = module_info(&file).expect("well formed");
        assert_eq!(info.depends, ["virtio_ring", "net_failover"]);
        assert_eq!(info.aliases, ["virtio:d00000001v*", "net-x"]);
        assert_eq!(info.softdeps, ["pre: crc32c x post: y"]);
        assert_eq!(info.wanted_before().collect::<Vec<_>>(), ["crc32c", "x"]);
        assert_eq!(info.release.as_deref(), Some("6.1.0-56-cloud-amd64"));
    }

    #[test]
    fn nothing_is_needed_by_a_module_that_says_so() {
        assert_eq!(module_info(&module_file(b"depends=\0")), Some(ModuleInfo::default()));
    }

    #[test]
    fn cut_files_are_no_modules_and_no_panic() {
        let file = module_file(b"depends=a\0");
        for length in 0..file.len() {
            assert_eq!(module_info(&file[..length]), None, "{length}");
        }
    }
}
