//! The three calls of the kernel's device mapper that make a mapped disk, by hand: create, load a
//! table, resume. The structures are those of `linux/dm-ioctl.h`, version 4.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::disks::Disk;

const CONTROL: &str = "/dev/mapper/control";
const HEADER: u16 = 312;
const TARGET: usize = 40;
/// More than enough for the tables here; the kernel is told the buffer's size.
const BUFFER: u16 = 4096;
const READ_ONLY: u32 = 1;

/// A request and the kernel's answer to it.
type Buffer = [u8; BUFFER as usize];

const CREATE: libc::c_ulong = 3;
const RESUME: libc::c_ulong = 6;
const LOAD: libc::c_ulong = 9;

/// A part of a mapped disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where it begins, in sectors.
    pub start: u64,
    /// How long it is, in sectors.
    pub sectors: u64,
    /// What kind: `linear`, `zero`, `snapshot`.
    pub kind: &'static str,
    /// What the kind needs to know.
    pub parameters: String,
}

/// Why a mapped disk could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The kernel has no device mapper, or keeps it away.
    #[error("the device mapper cannot be opened")]
    Control(#[source] io::Error),
    /// A call failed; the console has the kernel's own words.
    #[error("device mapper: {step} {name} failed")]
    Call {
        /// Which call.
        step: &'static str,
        /// For which disk.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It was made and does not show.
    #[error("the mapped disk {0} does not show in /dev")]
    NoNode(String),
}

/// The kernel's device mapper.
#[derive(Debug)]
pub struct DeviceMapper {
    control: File,
}

impl DeviceMapper {
    /// Opens it.
    pub fn open() -> Result<Self, MapError> {
        ensure_control_node().map_err(MapError::Control)?;
        let control =
            OpenOptions::new().read(true).write(true).open(CONTROL).map_err(MapError::Control)?;
        Ok(Self { control })
    }

    /// Makes a disk of `targets`, and a link to it under `/dev/mapper`.
    pub fn make(
        &self,
        name: &'static str,
        targets: &[Target],
        read_only: bool,
    ) -> Result<Disk, MapError> {
        let flags = if read_only { READ_ONLY } else { 0 };
        let failed = |step| move |source| MapError::Call { step, name, source };
        self.call(CREATE, &mut request(name, flags, &[])).map_err(failed("creating"))?;
        self.call(LOAD, &mut request(name, flags, targets)).map_err(failed("loading"))?;
        let mut resume = request(name, flags, &[]);
        self.call(RESUME, &mut resume).map_err(failed("starting"))?;

        let minor = minor_of(&resume);
        let node = format!("dm-{minor}");
        let disk = Disk::find(&node).ok_or(MapError::NoNode(node))?;
        // For people: `df` and `/proc/mounts` show this name.
        let _ = std::os::unix::fs::symlink(disk.path(), format!("/dev/mapper/{name}"));
        Ok(disk)
    }

    fn call(&self, number: libc::c_ulong, request: &mut Buffer) -> io::Result<()> {
        // _IOWR(0xfd, number, struct dm_ioctl)
        let code = 3 << 30 | libc::c_ulong::from(HEADER) << 16 | 0xfd << 8 | number;
        // SAFETY: the buffer begins with a `struct dm_ioctl` that states the buffer's size, and the
        // kernel writes no more than that.
        let done = unsafe { libc::ioctl(self.control.as_raw_fd(), code, request.as_mut_ptr()) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// devtmpfs has the node; a kernel without that entry gets it from sysfs's number.
fn ensure_control_node() -> io::Result<()> {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    if Path::new(CONTROL).exists() {
        return Ok(());
    }
    let text = std::fs::read_to_string("/sys/class/misc/device-mapper/dev")?;
    let number = text
        .trim()
        .split_once(':')
        .and_then(|(major, minor)| Some(makedev(major.parse().ok()?, minor.parse().ok()?)));
    let number = number.ok_or(io::ErrorKind::InvalidData)?;
    std::fs::create_dir_all("/dev/mapper")?;
    mknod(CONTROL, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, number)?;
    Ok(())
}

/// A `struct dm_ioctl` for the disk `name`, followed by a table.
fn request(name: &str, flags: u32, targets: &[Target]) -> Buffer {
    const VERSION: u32 = 4;
    let mut buffer = [0; BUFFER as usize];
    let count = u32::try_from(targets.len()).unwrap_or(u32::MAX);
    let longs = [VERSION, 0, 0, BUFFER.into(), HEADER.into(), count, 0, flags];
    for (at, long) in longs.into_iter().enumerate() {
        put(&mut buffer, at * 4, &long.to_ne_bytes());
    }
    put(&mut buffer, 48, name.as_bytes());
    let mut at = usize::from(HEADER);
    for target in targets {
        let text = target.parameters.as_bytes();
        // The parameters end with a NUL, and the next target begins at a multiple of eight.
        let next = (TARGET + text.len() + 1).next_multiple_of(8);
        put(&mut buffer, at, &target.start.to_ne_bytes());
        put(&mut buffer, at + 8, &target.sectors.to_ne_bytes());
        put(&mut buffer, at + 20, &u32::try_from(next).unwrap_or(0).to_ne_bytes());
        put(&mut buffer, at + 24, target.kind.as_bytes());
        put(&mut buffer, at + TARGET, text);
        at += next;
    }
    buffer
}

fn put(buffer: &mut Buffer, at: usize, bytes: &[u8]) {
    buffer[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The minor number in the kernel's answer, whose field is encoded as `huge_encode_dev` has it.
fn minor_of(answer: &Buffer) -> u64 {
    let device = u64::from_ne_bytes(answer[40..].first_chunk().copied().unwrap_or_default());
    device & 0xff | device >> 12 & !0xff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_laid_out_as_the_kernel_reads_them() {
        let targets = [
            Target { start: 0, sectors: 8, kind: "linear", parameters: "254:0 0".to_owned() },
            Target { start: 8, sectors: 24, kind: "zero", parameters: String::new() },
        ];
        let buffer = request("origin", READ_ONLY, &targets);
        let long = |at: usize| u32::from_ne_bytes(*buffer[at..].first_chunk().expect("inside"));
        assert_eq!((long(0), long(12), long(16), long(20), long(28)), (4, 4096, 312, 2, 1));
        assert_eq!(&buffer[48..55], b"origin\0");
        assert_eq!(&buffer[336..343], b"linear\0");
        assert_eq!(&buffer[352..360], b"254:0 0\0");
        assert_eq!(long(312 + 20), 48, "the next target begins eight-aligned");
        assert_eq!((long(360), long(368)), (8, 24));
        assert_eq!(&buffer[384..389], b"zero\0");
    }

    #[test]
    fn device_numbers_are_decoded() {
        let mut answer = [0; BUFFER as usize];
        answer[40..48].copy_from_slice(&(253_u64 << 8 | 2).to_ne_bytes());
        assert_eq!(minor_of(&answer), 2);
        answer[40..48].copy_from_slice(&(1_u64 << 20 | 253 << 8 | 3).to_ne_bytes());
        assert_eq!(minor_of(&answer), 259);
    }
}
