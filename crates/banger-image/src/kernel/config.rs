//! A kernel's build configuration, as `.config` and `/boot/config-*` have it.

use std::collections::BTreeMap;

/// How an option is set. Numbers and texts are not of interest here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setting {
    /// `=y`: part of the kernel.
    BuiltIn,
    /// `=m`: a module.
    Module,
}

/// The options of a kernel that are on, without their `CONFIG_`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Config {
    options: BTreeMap<String, Setting>,
}

impl Config {
    /// Read a configuration; None if it is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let option = |line: &str| {
            let (name, value) = line.strip_prefix("CONFIG_")?.split_once('=')?;
            let setting = match value.trim_end() {
                "y" => Setting::BuiltIn,
                "m" => Setting::Module,
                _ => return None,
            };
            Some((name.to_owned(), setting))
        };
        let options: BTreeMap<_, _> = text.lines().filter_map(option).collect();
        (!options.is_empty()).then_some(Self { options })
    }

    /// How an option is set; None if it is off.
    pub(crate) fn get(&self, option: &str) -> Option<Setting> {
        self.options.get(option).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_the_rest_is_not() {
        let text = "# Linux/x86 6.1.192 Kernel Configuration\nCONFIG_SMP=y\nCONFIG_EXT4_FS=m\r\n\
                    # CONFIG_ARM is not set\nCONFIG_NR_CPUS=64\nCONFIG_LSM=\"y\"\n";
        let config = Config::parse(text).expect("a configuration");
        assert_eq!(config.get("SMP"), Some(Setting::BuiltIn));
        assert_eq!(config.get("EXT4_FS"), Some(Setting::Module));
        for off in ["ARM", "NR_CPUS", "LSM", ""] {
            assert_eq!(config.get(off), None, "{off}");
        }
        assert_eq!(Config::parse("hello\n"), None);
        assert_eq!(Config::parse(""), None);
    }
}
