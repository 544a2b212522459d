//! What a kernel must have to run banger's guests, and which of it one has.
//!
//! Whether something is there is known best from a kernel's modules and its list of what is built in,
//! else from its build configuration, else from the words in it. What none of these can tell is
//! assumed to be there; the guest's boot will show.

use super::config::{Config, Setting};
use super::vmlinux::Vmlinux;
use crate::modules::ModuleSet;

/// One thing that a guest needs; any of the features provides it.
#[derive(Debug)]
struct Need {
    what: &'static str,
    any_of: &'static [Feature],
}

/// A part of a kernel.
#[derive(Debug)]
struct Feature {
    /// Its build option, without `CONFIG_`.
    option: &'static str,
    /// Its module, if it can be one.
    module: Option<&'static str>,
    /// Words that are in the kernel if and only if it is built in; None if there are none so certain.
    words: Option<&'static [u8]>,
}

const fn module(option: &'static str, module: &'static str, words: &'static [u8]) -> Feature {
    Feature { option, module: Some(module), words: Some(words) }
}

const fn built_in(option: &'static str, words: Option<&'static [u8]>) -> Feature {
    Feature { option, module: None, words }
}

/// All of it. The modules among it are loaded in this order.
const NEEDS: [Need; 15] = [
    Need { what: "finding devices by ACPI", any_of: &[built_in("ACPI", Some(b"Core revision"))] },
    Need {
        what: "virtio devices over MMIO",
        any_of: &[module("VIRTIO_MMIO", "virtio_mmio", b"virtio-mmio")],
    },
    Need { what: "virtio disks", any_of: &[module("VIRTIO_BLK", "virtio_blk", b"\0virtio_blk\0")] },
    Need {
        what: "a port to the host",
        any_of: &[
            module("VIRTIO_CONSOLE", "virtio_console", b"\0virtio_console\0"),
            module(
                "VIRTIO_VSOCKETS",
                "vmw_vsock_virtio_transport",
                b"\0vmw_vsock_virtio_transport\0",
            ),
        ],
    },
    Need {
        what: "copy-on-write disks",
        any_of: &[module("DM_SNAPSHOT", "dm_snapshot", b"snapshot-origin")],
    },
    Need {
        what: "disks larger than their image",
        any_of: &[module("DM_ZERO", "dm_zero", b"No arguments required")],
    },
    Need { what: "the ext4 file system", any_of: &[module("EXT4_FS", "ext4", b"EXT4-fs (%s")] },
    Need {
        what: "virtio networks",
        any_of: &[module("VIRTIO_NET", "virtio_net", b"\0virtio_net\0")],
    },
    Need { what: "the internet protocol", any_of: &[built_in("INET", None)] },
    Need {
        what: "an initramfs",
        any_of: &[built_in("BLK_DEV_INITRD", Some(b"Initramfs unpacking failed"))],
    },
    Need {
        what: "device nodes of its own making",
        any_of: &[built_in("DEVTMPFS", Some(b"devtmpfs: initialized"))],
    },
    Need { what: "the file system /proc", any_of: &[built_in("PROC_FS", None)] },
    Need { what: "the file system /sys", any_of: &[built_in("SYSFS", None)] },
    Need { what: "file systems in memory", any_of: &[built_in("TMPFS", None)] },
    Need { what: "terminals for commands", any_of: &[built_in("UNIX98_PTYS", None)] },
];
/// Modules that are loaded where a kernel has them, after all others.
const WELCOME_MODULES: [&str; 1] = ["virtio_rng"];
/// The option by which a kernel can be started as the ELF file that it is.
const PVH: &str = "PVH";

/// What is known about a kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) vmlinux: &'a Vmlinux,
    pub(crate) config: Option<&'a Config>,
    pub(crate) modules: Option<&'a ModuleSet>,
}

/// Something that a kernel lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missing {
    /// In words.
    pub(crate) what: String,
    /// The build option that provides it: `CONFIG_PVH`.
    pub(crate) option: String,
}

/// Where a feature is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the kernel.
    BuiltIn,
    /// A module that is here.
    Module(&'static str),
    /// A module that is not here.
    ModuleElsewhere,
    Nowhere,
    /// Nothing says where, or whether.
    Unknown,
}

/// The modules that a guest's boot must load, in this order and each after what it depends on; or
/// all that is missing.
pub(crate) fn judge(facts: Facts<'_>) -> Result<Vec<&'static str>, Vec<Missing>> {
    let (mut modules, mut missing) = (Vec::new(), Vec::new());
    for need in &NEEDS {
        let mut places = need.any_of.iter().map(|feature| place(feature, facts));
        match places.clone().find(|place| !matches!(place, Place::Nowhere | Place::ModuleElsewhere))
        {
            Some(Place::Module(name)) => modules.push(name),
            Some(_) => {}
            None => missing.push(need.missing(places.any(|it| it == Place::ModuleElsewhere))),
        }
    }
    if !facts.vmlinux.has_pvh() {
        let option = format!("CONFIG_{PVH}");
        missing.push(Missing {
            what: format!("being started without a boot loader ({option})"),
            option,
        });
    }
    if !missing.is_empty() {
        return Err(missing);
    }
    let has = |name: &&str| facts.modules.is_some_and(|set| set.has_module(name));
    modules.extend(WELCOME_MODULES.into_iter().filter(has));
    Ok(modules)
}

impl Need {
    fn missing(&self, is_module: bool) -> Missing {
        let why = if is_module { ", which is a module that is not here" } else { "" };
        let options: Vec<_> =
            self.any_of.iter().map(|feature| format!("CONFIG_{}", feature.option)).collect();
        Missing {
            what: format!("{} ({}){why}", self.what, options.join(" or ")),
            option: options[0].clone(),
        }
    }
}

fn place(feature: &Feature, facts: Facts<'_>) -> Place {
    if let (Some(module), Some(set)) = (feature.module, facts.modules) {
        if set.has_module(module) {
            return Place::Module(module);
        }
        // The list names everything that could have been a module.
        match set.is_built_in(module) {
            Some(true) => return Place::BuiltIn,
            Some(false) if facts.config.is_none() => return Place::Nowhere,
            _ => {}
        }
    }
    match (facts.config.map(|config| config.get(feature.option)), feature.words) {
        (Some(Some(Setting::BuiltIn)), _) => Place::BuiltIn,
        (Some(Some(Setting::Module)), _) => Place::ModuleElsewhere,
        (Some(None), _) => Place::Nowhere,
        (None, Some(words)) if facts.vmlinux.contains(words) => Place::BuiltIn,
        (None, Some(_)) => Place::Nowhere,
        (None, None) => Place::Unknown,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::vmlinux::tests::vmlinux;
    use super::*;
    use crate::modules::tests::kernel_dir;

    /// A configuration with everything that is needed built in.
    pub(crate) fn good_config() -> String {
        let options = NEEDS.iter().map(|need| need.any_of[0].option);
        options.map(|option| format!("CONFIG_{option}=y\n")).collect()
    }

    /// The words by which everything that is needed is found.
    pub(crate) fn good_words() -> Vec<&'static [u8]> {
        NEEDS.iter().filter_map(|need| need.any_of[0].words).collect()
    }

    fn kernel(words: &[&[u8]]) -> Vmlinux {
        Vmlinux::read(&vmlinux("6.1.0", words, true)[..]).expect("a kernel")
    }

    fn options(missing: Result<Vec<&'static str>, Vec<Missing>>) -> Vec<String> {
        missing.expect_err("something").into_iter().map(|missing| missing.option).collect()
    }

    #[test]
    fn a_configuration_tells_what_is_there() {
        let vmlinux = kernel(&[]);
        let config = Config::parse(&good_config()).expect("a configuration");
        let facts = Facts { vmlinux: &vmlinux, config: Some(&config), modules: None };
        assert_eq!(judge(facts), Ok(Vec::new()));
        let text = good_config()
            .replace("CONFIG_EXT4_FS=y", "CONFIG_EXT4_FS=m")
            .replace("CONFIG_TMPFS=y", "")
            .replace("CONFIG_VIRTIO_CONSOLE=y", "CONFIG_VIRTIO_VSOCKETS=y");
        let config = Config::parse(&text).expect("a configuration");
        let missing = judge(Facts { config: Some(&config), ..facts }).expect_err("two things");
        let what: Vec<_> = missing.iter().map(|missing| missing.what.as_str()).collect();
        assert_eq!(
            what,
            [
                "the ext4 file system (CONFIG_EXT4_FS), which is a module that is not here",
                "file systems in memory (CONFIG_TMPFS)"
            ]
        );
    }

    #[test]
    fn without_a_configuration_the_words_in_the_kernel_tell() {
        let words = good_words();
        let whole = kernel(&words);
        let facts = Facts { vmlinux: &whole, config: None, modules: None };
        assert_eq!(judge(facts), Ok(Vec::new()));
        let missing = options(judge(Facts { vmlinux: &kernel(&words[2..]), ..facts }));
        assert_eq!(missing, ["CONFIG_ACPI", "CONFIG_VIRTIO_MMIO"]);
    }

    #[test]
    fn everything_that_is_missing_is_named_at_once() {
        let vmlinux = Vmlinux::read(&vmlinux("6.1.0", &[], false)[..]).expect("a kernel");
        let config = Config::parse("CONFIG_SMP=y\n").expect("a configuration");
        let facts = Facts { vmlinux: &vmlinux, config: Some(&config), modules: None };
        let missing = options(judge(facts));
        assert_eq!(missing.len(), NEEDS.len() + 1);
        assert_eq!(missing.last().map(String::as_str), Some("CONFIG_PVH"));
    }

    #[test]
    fn modules_are_loaded_and_what_is_built_in_is_not() {
        let dir = kernel_dir(
            &[
                ("kernel/virtio_mmio.ko", "depends=\0"),
                ("kernel/virtio_blk.ko", "depends=\0"),
                ("kernel/virtio-rng.ko", "depends=\0"),
                ("kernel/vmw_vsock_virtio_transport.ko", "depends=\0"),
            ],
            "kernel/dm-snapshot.ko\nkernel/dm-zero.ko\nkernel/ext4.ko\nkernel/virtio_net.ko\n",
        );
        let set = ModuleSet::read(dir.path()).expect("modules");
        let vmlinux = kernel(&good_words()[..1]);
        let facts = Facts { vmlinux: &vmlinux, config: None, modules: Some(&set) };
        let missing = options(judge(facts));
        assert_eq!(missing, ["CONFIG_BLK_DEV_INITRD", "CONFIG_DEVTMPFS"]);
        let vmlinux = kernel(&good_words());
        let modules = judge(Facts { vmlinux: &vmlinux, ..facts }).expect("all there");
        // One port to the host is enough.
        assert_eq!(
            modules,
            ["virtio_mmio", "virtio_blk", "vmw_vsock_virtio_transport", "virtio_rng"]
        );
    }

    #[test]
    fn a_list_of_what_is_built_in_is_believed() {
        let dir = kernel_dir(&[], "kernel/fs/ext4/ext4.ko\n");
        let set = ModuleSet::read(dir.path()).expect("modules");
        let vmlinux = kernel(&good_words());
        let missing =
            options(judge(Facts { vmlinux: &vmlinux, config: None, modules: Some(&set) }));
        assert_eq!(
            missing,
            [
                "CONFIG_VIRTIO_MMIO",
                "CONFIG_VIRTIO_BLK",
                "CONFIG_VIRTIO_CONSOLE",
                "CONFIG_DM_SNAPSHOT",
                "CONFIG_DM_ZERO",
                "CONFIG_VIRTIO_NET"
            ]
        );
    }
}
