//! Sizes of memory and disks as people write them.
//!
//! Units are powers of 1024 whatever their spelling, as in Docker and QEMU: `8G`, `8GB` and `8GiB`
//! are the same. Letters may be of either case.

/// Bytes in a mebibyte.
pub const MIB: u64 = 1 << 20;
/// Bytes in a gibibyte.
pub const GIB: u64 = 1 << 30;

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// No number at its beginning.
    #[error("a size is a number and a unit, for example 512M or 8G")]
    NotASize,
    /// A number without a unit where one is needed.
    #[error("the size needs a unit: {digits}M or {digits}G")]
    UnitMissing {
        /// The number that was given.
        digits: String,
    },
    /// A unit that does not exist.
    #[error("unknown unit {unit:?} (use K, M, G or T)")]
    UnknownUnit {
        /// What stands after the number.
        unit: String,
    },
    /// More bytes than can be counted, or less than one.
    #[error("the size is out of range")]
    OutOfRange,
}

/// Reads a size with a unit, in bytes: `512M`, `8G`, `1GiB`, `1.5G`, `4096B`.
///
/// # Errors
/// [`SizeError`] if it is not one; a number alone is none, for it could mean anything.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    parse_with_default(text, None)
}

/// Reads a memory size, in MiB: as [`parse`], and a number alone counts MiB. What is no whole
/// number of MiB is rounded up.
///
/// # Errors
/// [`SizeError`] if it is not one, or does not fit.
pub fn parse_memory_mib(text: &str) -> Result<u32, SizeError> {
    let bytes = parse_with_default(text, Some(MIB))?;
    u32::try_from(bytes.div_ceil(MIB)).map_err(|_| SizeError::OutOfRange)
}

/// A size for people, three digits or so: `512 MiB`, `1.2 GiB`, `0 B`.
#[must_use]
pub fn format(bytes: u64) -> String {
    let (unit, name) = match bytes {
        0..1024 => return format!("{bytes} B"),
        1024..MIB => (1024, "KiB"),
        MIB..GIB => (MIB, "MiB"),
        GIB..0x100_0000_0000 => (GIB, "GiB"),
        _ => (1 << 40, "TiB"),
    };
    let tenths = u128::from(bytes) * 10 / u128::from(unit);
    if tenths < 100 && !tenths.is_multiple_of(10) {
        format!("{}.{} {name}", tenths / 10, tenths % 10)
    } else {
        format!("{} {name}", tenths / 10)
    }
}

fn parse_with_default(text: &str, default_unit: Option<u64>) -> Result<u64, SizeError> {
    let text = text.trim();
    let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(number_end);
    let unit = match (unit.trim(), default_unit) {
        ("", Some(unit)) => unit,
        ("", None) if number.is_empty() => return Err(SizeError::NotASize),
        ("", None) => {
            return Err(SizeError::UnitMissing { digits: number.to_owned() });
        }
        (_, _) if number.is_empty() => return Err(SizeError::NotASize),
        (name, _) => unit_bytes(name)?,
    };
    scale(number, unit)
}

fn unit_bytes(name: &str) -> Result<u64, SizeError> {
    match name.to_ascii_lowercase().as_str() {
        "b" => Ok(1),
        "k" | "kb" | "kib" => Ok(1 << 10),
        "m" | "mb" | "mib" => Ok(MIB),
        "g" | "gb" | "gib" => Ok(GIB),
        "t" | "tb" | "tib" => Ok(1 << 40),
        _ => Err(SizeError::UnknownUnit { unit: name.to_owned() }),
    }
}

/// A decimal number times a unit, in whole bytes, without going through floating point.
fn scale(number: &str, unit: u64) -> Result<u64, SizeError> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || fraction.len() > 9 {
        return Err(SizeError::NotASize);
    }
    let whole: u64 = whole.parse().map_err(|_| SizeError::OutOfRange)?;
    let mut bytes = u128::from(whole) * u128::from(unit);
    if !fraction.is_empty() {
        let digits: u128 = fraction.parse().map_err(|_| SizeError::NotASize)?;
        let parts = 10u128.pow(u32::try_from(fraction.len()).unwrap_or(9));
        bytes += digits * u128::from(unit) / parts;
    }
    match u64::try_from(bytes) {
        Ok(0) | Err(_) => Err(SizeError::OutOfRange),
        Ok(bytes) => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read() {
        let cases = [
            ("512M", Ok(512 * MIB)),
            ("8G", Ok(8 * GIB)),
            ("8g", Ok(8 * GIB)),
            ("1GiB", Ok(GIB)),
            ("1 GB", Ok(GIB)),
            ("1.5G", Ok(GIB + 512 * MIB)),
            ("0.5k", Ok(512)),
            ("4096B", Ok(4096)),
            ("2T", Ok(2 << 40)),
            ("", Err(SizeError::NotASize)),
            ("G", Err(SizeError::NotASize)),
            ("-1G", Err(SizeError::NotASize)),
            (".5G", Err(SizeError::NotASize)),
            ("1.2.3G", Err(SizeError::NotASize)),
            ("0G", Err(SizeError::OutOfRange)),
            ("99999999999999999999G", Err(SizeError::OutOfRange)),
            ("99999999999T", Err(SizeError::OutOfRange)),
            ("8", Err(SizeError::UnitMissing { digits: "8".to_owned() })),
            ("8X", Err(SizeError::UnknownUnit { unit: "X".to_owned() })),
            ("8Gx", Err(SizeError::UnknownUnit { unit: "Gx".to_owned() })),
        ];
        for (text, want) in cases {
            assert_eq!(parse(text), want, "{text:?}");
        }
    }

    #[test]
    fn memory_without_a_unit_is_mebibytes() {
        let cases = [
            ("512", Ok(512)),
            ("512M", Ok(512)),
            ("2G", Ok(2048)),
            ("1B", Ok(1)),
            ("0", Err(SizeError::OutOfRange)),
            ("99999T", Err(SizeError::OutOfRange)),
        ];
        for (text, want) in cases {
            assert_eq!(parse_memory_mib(text), want, "{text:?}");
        }
    }

    #[test]
    fn sizes_are_written() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (512 * MIB, "512 MiB"),
            (GIB, "1 GiB"),
            (GIB + GIB / 4, "1.2 GiB"),
            (8 * GIB, "8 GiB"),
            (15 * GIB + GIB / 2, "15 GiB"),
            (3 << 40, "3 TiB"),
            (u64::MAX, "16777215 TiB"),
        ];
        for (bytes, want) in cases {
            assert_eq!(format(bytes), want);
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text: String, bytes: u64) {
            let _ = parse(&text);
            let _ = parse_memory_mib(&text);
            let _ = format(bytes);
        }

        #[test]
        fn whole_mebibytes_survive(mib in 1u64..1 << 30) {
            prop_assert_eq!(parse(&format!("{mib}M")), Ok(mib * MIB));
        }
    }
}
