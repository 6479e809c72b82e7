//! What the system says of the disk under a folder: sysfs and the table of mounts.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What is known without measuring.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Disk {
    /// `ext4`; None if no mount has the folder's device number.
    pub(crate) file_system: Option<String>,
    /// `vda`; None if there is no block device behind it, as with tmpfs.
    pub(crate) device: Option<String>,
    /// What the kernel believes. Virtual disks are called rotational for want of knowledge.
    pub(crate) rotational: Option<bool>,
}

impl Disk {
    /// The disk of a folder. Errors: the folder cannot be looked at, or is none.
    pub(crate) fn of(folder: &Path) -> io::Result<Disk> {
        let stat = rustix::fs::stat(folder)?;
        if !fs::metadata(folder)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let number = format!("{}:{}", rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let in_sysfs = fs::canonicalize(Path::new("/sys/dev/block").join(&number)).ok();
        Ok(Disk {
            file_system: file_system(&mounts, &number),
            device: in_sysfs.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()),
            rotational: in_sysfs.as_deref().and_then(rotational),
        })
    }

    /// Is it memory, and no disk at all?
    pub(crate) fn is_memory(&self) -> bool {
        matches!(self.file_system.as_deref(), Some("tmpfs" | "ramfs"))
    }
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file_system.as_deref().unwrap_or("unknown file system"))?;
        match (&self.device, self.rotational) {
            (Some(device), Some(true)) => write!(f, " on {device}, which the kernel calls rotational"),
            (Some(device), Some(false)) => write!(f, " on {device}, which the kernel calls not rotational"),
            (Some(device), None) => write!(f, " on {device}"),
            (None, _) => write!(f, ", no block device"),
        }
    }
}

/// The type of the file system with this device number, out of /proc/self/mountinfo (proc(5)): the number is the third
/// word, the type the first behind a lone `-`.
fn file_system(mounts: &str, number: &str) -> Option<String> {
    let of_line = |line: &str| {
        let (before, behind) = line.split_once(" - ")?;
        let is_it = before.split(' ').nth(2) == Some(number);
        is_it.then(|| behind.split(' ').next().map(str::to_owned)).flatten()
    };
    mounts.lines().find_map(of_line)
}

/// `queue/rotational` of a disk, or of the disk that a partition is part of.
fn rotational(in_sysfs: &Path) -> Option<bool> {
    let queues: [Option<PathBuf>; 2] = [Some(in_sysfs.to_owned()), in_sysfs.parent().map(Path::to_owned)];
    let text = queues.into_iter().flatten().find_map(|path| fs::read_to_string(path.join("queue/rotational")).ok())?;
    match text.trim() {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

/// Memory of this machine in MiB, if /proc/meminfo says it.
pub(crate) fn memory_mib() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib >> 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_mounts_names_the_file_system_of_a_device() {
        let mounts = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n23 22 0:21 / /tmp rw - tmpfs tmpfs rw\n";
        assert_eq!(file_system(mounts, "254:0").as_deref(), Some("ext4"));
        assert_eq!(file_system(mounts, "0:21").as_deref(), Some("tmpfs"));
        assert_eq!(file_system(mounts, "8:1"), None);
        assert_eq!(file_system("nonsense", "8:1"), None);
    }

    #[test]
    fn a_partition_is_as_its_disk() {
        let sysfs = tempfile::tempdir().expect("a scratch folder");
        fs::create_dir_all(sysfs.path().join("sda/queue")).expect("writable");
        fs::create_dir_all(sysfs.path().join("sda/sda1")).expect("writable");
        fs::write(sysfs.path().join("sda/queue/rotational"), "1\n").expect("writable");
        assert_eq!(rotational(&sysfs.path().join("sda")), Some(true));
        assert_eq!(rotational(&sysfs.path().join("sda/sda1")), Some(true));
        assert_eq!(rotational(sysfs.path()), None);
    }

    #[test]
    fn a_file_is_no_folder() {
        let file = tempfile::NamedTempFile::new().expect("a scratch file");
        assert_eq!(Disk::of(file.path()).expect_err("no folder").kind(), io::ErrorKind::NotADirectory);
        Disk::of(Path::new("/proc")).expect("a folder, if not on a disk");
    }
}
