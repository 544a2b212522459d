//! What a program needs to run: the interpreter of a script, the loader of a dynamic program. Read
//! only to explain why the kernel found "no such file" where there is one.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// How much of a file is read. Loaders are named near its beginning.
const MOST: u64 = 4096;

/// The path of the program that the file at `path` names.
pub fn named_in(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    file.take(MOST).read_to_end(&mut bytes).ok()?;
    let name = of_script(&bytes).or_else(|| of_program(&bytes))?;
    Some(String::from_utf8_lossy(name).into_owned())
}

/// `#!/bin/sh -e`. A carriage return belongs to the name, which is a mistake worth seeing.
fn of_script(bytes: &[u8]) -> Option<&[u8]> {
    let line = bytes.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let line = line.trim_ascii_start();
    line.split(|byte| matches!(byte, b' ' | b'\t')).next().filter(|name| !name.is_empty())
}

/// The loader of a 64-bit ELF.
fn of_program(bytes: &[u8]) -> Option<&[u8]> {
    const INTERPRETER: u32 = 3;
    let number = |at: usize, len: usize| {
        let bytes = bytes.get(at..at.checked_add(len)?)?;
        bytes.iter().rev().try_fold(0_u64, |sum, byte| Some(sum << 8 | u64::from(*byte)))
    };
    let place = |at: usize| usize::try_from(number(at, 8)?).ok();
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, size, count) = (place(32)?, number(54, 2)?, number(56, 2)?);
    let headers = (0..count).filter_map(|index| {
        let offset = usize::try_from(index.checked_mul(size)?).ok()?;
        table.checked_add(offset)
    });
    for at in headers {
        if number(at, 4)? == u64::from(INTERPRETER) {
            let begin = place(at.checked_add(8)?)?;
            let name = bytes.get(begin..)?.split(|byte| *byte == 0).next()?;
            return Some(name).filter(|name| !name.is_empty());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_name_their_interpreter() {
        let cases: [(&[u8], Option<&[u8]>); 6] = [
            (b"#!/bin/sh -e\nexit", Some(b"/bin/sh")),
            (b"#! /usr/bin/env python3", Some(b"/usr/bin/env")),
            (b"#!/bin/sh\r\n", Some(b"/bin/sh\r")),
            (b"#!\n", None),
            (b"#", None),
            (b"", None),
        ];
        for (bytes, want) in cases {
            assert_eq!(of_script(bytes), want, "{bytes:?}");
        }
    }

    #[test]
    fn programs_name_their_loader() {
        let own = std::fs::read("/proc/self/exe").expect("this program");
        let loader = of_program(&own).map(String::from_utf8_lossy);
        assert!(loader.is_some_and(|loader| loader.contains("ld-linux")));
    }

    #[test]
    fn damaged_programs_name_nothing() {
        let mut bytes = b"\x7fELF\x02\x01".to_vec();
        assert_eq!(of_program(&bytes), None);
        bytes.resize(200, 0xff);
        assert_eq!(of_program(&bytes), None);
        bytes.resize(4096, 0);
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        assert_eq!(of_program(&bytes), None);
    }
}
