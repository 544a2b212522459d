//! `/etc/subuid` and `/etc/subgid`: which ids a user may map in a user namespace.

use std::path::Path;

use banger_core::doctor::MapRange;

/// The largest range that the file grants the user, by name or by number.
pub(super) fn largest(file: &Path, user: &str, uid: u32) -> MapRange {
    std::fs::read_to_string(file).map_or(MapRange::Missing, |text| parse(&text, user, uid))
}

fn parse(text: &str, user: &str, uid: u32) -> MapRange {
    let uid = uid.to_string();
    let ranges = text.lines().filter_map(|line| {
        let mut parts = line.trim().split(':');
        let owner = parts.next()?;
        let count = parts.nth(1)?.parse::<u64>().ok()?;
        (owner == user || owner == uid).then_some(count)
    });
    ranges.max().map_or(MapRange::Missing, MapRange::Of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_number() {
        let text = "bob:100000:65536\n# a comment\nann:200000:10\n1000:300000:65536\nann:bad\n";
        assert_eq!(parse(text, "bob", 7), MapRange::Of(65_536));
        assert_eq!(parse(text, "ann", 7), MapRange::Of(10));
        assert_eq!(parse(text, "ann", 1000), MapRange::Of(65_536));
        assert_eq!(parse(text, "eve", 7), MapRange::Missing);
        assert_eq!(largest(Path::new("/no/such/file"), "bob", 7), MapRange::Missing);
    }
}
