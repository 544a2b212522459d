//! Extended headers (POSIX.1-2001): records of `<length> <key>=<value>\n` before a member.

use std::collections::BTreeMap;

use banger_ext4::Timestamp;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

/// Extended attributes by full name.
pub(crate) type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// What extended headers say about a member.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pax {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) linkpath: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<i128>,
    pub(crate) gid: Option<i128>,
    pub(crate) mtime: Option<Timestamp>,
    pub(crate) xattrs: Xattrs,
    pub(crate) sparse: Sparse,
}

/// What they say about a sparse file, in any of the three ways that GNU tar has had.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sparse {
    pub(crate) major: Option<u64>,
    pub(crate) minor: Option<u64>,
    /// The file's name; the member has another one.
    pub(crate) name: Option<Vec<u8>>,
    /// The whole size.
    pub(crate) size: Option<u64>,
    /// The numbers of the map, offsets and sizes in turn (versions 0.0 and 0.1).
    pub(crate) map: Vec<u64>,
}

impl Pax {
    /// Understand the records of one extended header.
    pub(crate) fn parse(mut records: &[u8]) -> Result<Self, String> {
        let mut pax = Self::default();
        // What bsdtar also writes as SCHILY's, which are raw and win.
        let mut encoded = Xattrs::new();
        while !records.is_empty() {
            let (key, value, rest) = split_record(records).ok_or("a malformed extended header")?;
            pax.record(key, value, &mut encoded).ok_or_else(|| {
                format!("a bad value of {} in an extended header", String::from_utf8_lossy(key))
            })?;
            records = rest;
        }
        for (name, value) in encoded {
            pax.xattrs.entry(name).or_insert(value);
        }
        Ok(pax)
    }

    /// Take one record; None if its value is bad. Unknown keys are for others.
    fn record(&mut self, key: &[u8], value: &[u8], encoded: &mut Xattrs) -> Option<()> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.xattrs.insert(name.into(), value.into());
            return Some(());
        }
        if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            encoded.insert(percent_decoded(name)?.into(), base64_decoded(value)?.into());
            return Some(());
        }
        // An empty value takes the header's.
        match key {
            b"path" => self.path = given(value).map(<[u8]>::to_vec),
            b"linkpath" => self.linkpath = given(value).map(<[u8]>::to_vec),
            b"size" => self.size = optional(value, decimal)?,
            b"uid" => self.uid = optional(value, decimal)?.map(i128::from),
            b"gid" => self.gid = optional(value, decimal)?.map(i128::from),
            b"mtime" => self.mtime = optional(value, time)?,
            b"GNU.sparse.major" => self.sparse.major = Some(decimal(value)?),
            b"GNU.sparse.minor" => self.sparse.minor = Some(decimal(value)?),
            b"GNU.sparse.name" => self.sparse.name = given(value).map(<[u8]>::to_vec),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size = Some(decimal(value)?),
            b"GNU.sparse.offset" if self.sparse.map.len().is_multiple_of(2) => {
                self.sparse.map.push(decimal(value)?);
            }
            b"GNU.sparse.numbytes" if !self.sparse.map.len().is_multiple_of(2) => {
                self.sparse.map.push(decimal(value)?);
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => return None,
            b"GNU.sparse.map" => {
                let numbers = value.split(|byte| *byte == b',').map(decimal);
                self.sparse.map = optional(value, |_| numbers.collect())?.unwrap_or_default();
            }
            _ => {}
        }
        Some(())
    }

    /// Take from a global header what can sensibly hold for more than one member.
    pub(crate) fn add_global(&mut self, global: &Self) {
        self.uid = global.uid.or(self.uid);
        self.gid = global.gid.or(self.gid);
        self.mtime = global.mtime.or(self.mtime);
    }
}

/// The key and the value of the first record, and what follows it.
fn split_record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&records[..space])?).ok()?;
    let record = records.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &records[length..]))
}

fn given(value: &[u8]) -> Option<&[u8]> {
    (!value.is_empty()).then_some(value)
}

/// A value that may be empty: None is a bad one.
fn optional<T>(value: &[u8], parse: impl FnOnce(&[u8]) -> Option<T>) -> Option<Option<T>> {
    given(value).map_or(Some(None), |value| parse(value).map(Some))
}

/// A decimal number, digits only.
pub(crate) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, digit| match digit {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// Seconds since the epoch with a fraction of any length.
fn time(value: &[u8]) -> Option<Timestamp> {
    let (is_negative, value) = match value.strip_prefix(b"-") {
        Some(value) => (true, value),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    Some(match (is_negative, nanoseconds) {
        (false, nanoseconds) => Timestamp { seconds, nanoseconds },
        (true, 0) => Timestamp { seconds: -seconds, nanoseconds: 0 },
        (true, fraction) => {
            Timestamp { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - fraction }
        }
    })
}

/// `%41` is `A`.
fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            decoded.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(after.get(..2)?).ok()?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        decoded.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &after[2..];
    }
    Some(decoded)
}

/// libarchive writes no padding, others do.
fn base64_decoded(text: &[u8]) -> Option<Vec<u8>> {
    STANDARD_NO_PAD.decode(text).or_else(|_| STANDARD.decode(text)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record with its length, which counts itself.
    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = key.len() + value.len() + 3;
        let length = (rest..).find(|length| length - length.to_string().len() == rest);
        let length = length.expect("there is one");
        let mut record = format!("{length} {key}=").into_bytes();
        record.extend_from_slice(value);
        record.push(b'\n');
        record
    }

    fn parse(records: &[(&str, &[u8])]) -> Result<Pax, String> {
        let bytes: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        Pax::parse(&bytes)
    }

    #[test]
    fn values_are_bytes_that_may_contain_anything() {
        let binary: &[u8] = b"\x01\n\0=\xff 12 path=x\n";
        let pax = parse(&[
            ("SCHILY.xattr.security.capability", binary),
            ("path", b"caf\xe9/a=b"),
            ("linkpath", b"x"),
            ("linkpath", b"y"),
            ("comment", b"whatever"),
            ("size", b""),
        ]);
        let pax = pax.expect("it is well formed");
        assert_eq!(pax.xattrs.get(&b"security.capability"[..]).map(|v| &v[..]), Some(binary));
        assert_eq!(pax.path.as_deref(), Some(&b"caf\xe9/a=b"[..]));
        assert_eq!(pax.linkpath.as_deref(), Some(&b"y"[..]));
        assert_eq!(pax.size, None);
    }

    #[test]
    fn libarchive_encodes_names_and_values() {
        let pax = parse(&[
            ("LIBARCHIVE.xattr.user.a%3db", b"aGk"),
            ("LIBARCHIVE.xattr.user.c", b"aGk="),
            ("SCHILY.xattr.user.d", b"raw"),
            ("LIBARCHIVE.xattr.user.d", b"aGk"),
        ]);
        let xattrs = pax.expect("it is well formed").xattrs;
        let shown: Vec<_> = xattrs
            .iter()
            .map(|(name, value)| (String::from_utf8_lossy(name), String::from_utf8_lossy(value)))
            .collect();
        let want = [("user.a=b", "hi"), ("user.c", "hi"), ("user.d", "raw")];
        assert_eq!(shown, want.map(|(name, value)| (name.into(), value.into())));
    }

    #[test]
    fn times_have_fractions() {
        let at = |seconds, nanoseconds| Some(Timestamp { seconds, nanoseconds });
        let cases: [(&[u8], Option<Timestamp>); 9] = [
            (b"1", at(1, 0)),
            (b"1.5", at(1, 500_000_000)),
            (b"1.1234567891234", at(1, 123_456_789)),
            (b"0.000000001", at(0, 1)),
            (b"-1.25", at(-2, 750_000_000)),
            (b"-3", at(-3, 0)),
            (b"1.x", None),
            (b"99999999999999999999", None),
            (b"9223372036854775808", None),
        ];
        for (text, want) in cases {
            assert_eq!(time(text), want, "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let malformed: [&[u8]; 9] = [
            b"path=x\n",
            b"99 path=x\n",
            b"11 path=x\n",
            b"5 ab\n",
            b"0 path=x\n",
            b"2 path=x\n",
            b"-9 path=x\n",
            b"9 path=xy",
            b"18446744073709551615 a=b\n",
        ];
        for records in malformed {
            assert!(Pax::parse(records).is_err(), "{}", String::from_utf8_lossy(records));
        }
        let bad: [(&str, &[u8]); 8] = [
            ("size", b"-1"),
            ("size", b"18446744073709551616"),
            ("uid", b"root"),
            ("mtime", b"."),
            ("GNU.sparse.map", b"1,2,"),
            ("GNU.sparse.numbytes", b"1"),
            ("LIBARCHIVE.xattr.user.%4", b"aGk"),
            ("LIBARCHIVE.xattr.user.x", b"a"),
        ];
        for (key, value) in bad {
            let error = parse(&[(key, value)]).expect_err("it is bad");
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn sparse_maps_come_in_two_ways() {
        let old = parse(&[
            ("GNU.sparse.size", b"100"),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.offset", b"0"),
            ("GNU.sparse.numbytes", b"10"),
            ("GNU.sparse.offset", b"90"),
            ("GNU.sparse.numbytes", b"10"),
        ]);
        let new = parse(&[("GNU.sparse.size", b"100"), ("GNU.sparse.map", b"0,10,90,10")]);
        assert_eq!(old, new);
        assert_eq!(old.expect("it is well formed").sparse.map, [0, 10, 90, 10]);
    }
}
