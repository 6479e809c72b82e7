//! The place where the demo's file system appears: whether this machine can mount at all, whether something is
//! mounted there, and how it goes away again.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;

const FUSE_DEVICE: &str = "/dev/fuse";
const HELPER: &str = "fusermount3";
/// How long a mount of a killed demo may take to go by itself.
const GONE_TIMEOUT: Duration = Duration::from_secs(5);

/// Errors: this machine or this user cannot mount with FUSE; the sentence says what to do.
pub(super) fn check_fuse() -> Result<(), String> {
    let is_root = rustix::process::geteuid().is_root();
    match File::options().read(true).write(true).open(FUSE_DEVICE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(format!(
            "there is no {FUSE_DEVICE}: load the module (`modprobe fuse`), or give this container the device \
             (`--device {FUSE_DEVICE} --cap-add SYS_ADMIN`)"
        )),
        Err(error) if is_root => Err(format!("can't open {FUSE_DEVICE}: {error} - this container may not use it")),
        Err(error) => Err(format!(
            "can't open {FUSE_DEVICE}: {error} - it is for everybody on most systems (`sudo chmod 666 {FUSE_DEVICE}`)"
        )),
        Ok(_) if is_root || has_helper() => Ok(()),
        Ok(_) => Err(format!(
            "an ordinary user mounts with the program {HELPER}, which is missing: install the package fuse3 \
             (`sudo apt install fuse3`, `sudo dnf install fuse3`, `sudo apk add fuse3`)"
        )),
    }
}

fn has_helper() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(HELPER).is_file())
}

pub(super) struct Mountpoint {
    path: PathBuf,
}

/// One line of /proc/self/mountinfo, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
struct Mounted {
    kind: String,
    source: String,
}

impl Mountpoint {
    pub(super) fn new(path: &Path) -> Mountpoint {
        Mountpoint { path: path.to_owned() }
    }

    pub(super) fn is_mounted(&self) -> bool {
        self.mounted().is_some()
    }

    fn mounted(&self) -> Option<Mounted> {
        mounted_at(&fs::read("/proc/self/mountinfo").ok()?, &self.path)
    }

    /// Make it an empty folder on which nothing is mounted. A mount of ours that a killed demo left is taken away.
    /// Errors: something else is mounted there, or it is not an empty folder.
    pub(super) fn clear(&self) -> Result<(), String> {
        let began = Instant::now();
        let mut told = false;
        while let Some(mounted) = self.mounted() {
            let is_ours = mounted.kind.starts_with("fuse") && mounted.source.starts_with("mfs");
            if !is_ours {
                return Err(format!(
                    "{} is the mount point of {} ({}) - use another --mount",
                    self.path.display(),
                    mounted.source,
                    mounted.kind
                ));
            }
            if !told {
                println!("Taking away the mount that an earlier demo left at {} ...", self.path.display());
                told = true;
            }
            if self.unmount().is_ok() {
                continue;
            }
            if began.elapsed() > GONE_TIMEOUT {
                self.detach()?;
                break;
            }
            thread::sleep(super::TICK);
        }
        fs::create_dir_all(&self.path).map_err(|error| format!("can't create {}: {error}", self.path.display()))?;
        let mut entries =
            fs::read_dir(&self.path).map_err(|error| format!("can't read {}: {error}", self.path.display()))?;
        match entries.next() {
            None => Ok(()),
            Some(_) => Err(format!("{} is not empty: the demo mounts only on an empty folder", self.path.display())),
        }
    }

    /// Errors: it is in use.
    pub(super) fn unmount(&self) -> Result<(), String> {
        self.go(UnmountFlags::empty(), &["-u"])
    }

    /// Out of sight now; gone when its last user is.
    pub(super) fn detach(&self) -> Result<(), String> {
        self.go(UnmountFlags::DETACH, &["-u", "-z"])
    }

    fn go(&self, flags: UnmountFlags, helper_options: &[&str]) -> Result<(), String> {
        let fail = |reason: String| format!("can't unmount {}: {reason}", self.path.display());
        if rustix::process::geteuid().is_root() {
            return rustix::mount::unmount(&self.path, flags).map_err(|error| fail(error.to_string()));
        }
        let status = Command::new(HELPER)
            .args(helper_options)
            .arg(&self.path)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .map_err(|error| fail(error.to_string()))?;
        if status.success() { Ok(()) } else { Err(fail(format!("{HELPER} says no ({status})"))) }
    }
}

/// What is mounted at `path` on top, from the text of /proc/self/mountinfo:
/// `36 35 98:0 /root /mount\040point rw,noatime shared:1 - fuse mfs#127.0.0.1:9421 rw`.
fn mounted_at(mountinfo: &[u8], path: &Path) -> Option<Mounted> {
    let look = |line: &[u8]| {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        let point = PathBuf::from(std::ffi::OsString::from_vec(unescape(fields.get(4)?)));
        let dash = fields.iter().position(|&field| field == b"-")?;
        let text = |index: usize| Some(String::from_utf8_lossy(&unescape(fields.get(index)?)).into_owned());
        (point == path).then_some(Mounted { kind: text(dash + 1)?, source: text(dash + 2)? })
    };
    mountinfo.rsplit(|&byte| byte == b'\n').find_map(look)
}

/// `\040` is a blank; the kernel writes blank, tab, newline and backslash so.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let code = (byte == b'\\').then(|| after.get(..3)).flatten();
        let code = code.and_then(|digits| u8::from_str_radix(std::ffi::OsStr::from_bytes(digits).to_str()?, 8).ok());
        match code {
            Some(code) => {
                plain.push(code);
                rest = &after[3..];
            }
            None => {
                plain.push(byte);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &[u8] = b"\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
36 22 0:40 / /tmp/a\\040demo/mnt rw,nosuid,nodev shared:2 - fuse mfs#127.0.0.1:9421 rw,user_id=0
37 22 0:41 / /mnt rw - tmpfs none rw
38 37 0:42 / /mnt rw - fuse.sshfs host:/ rw
";

    #[test]
    fn the_mount_table_is_read_with_its_escapes_and_the_upper_mount_counts() {
        let at = |path: &str| mounted_at(MOUNTINFO, Path::new(path)).map(|mounted| (mounted.kind, mounted.source));
        assert_eq!(at("/tmp/a demo/mnt"), Some(("fuse".into(), "mfs#127.0.0.1:9421".into())));
        assert_eq!(at("/mnt"), Some(("fuse.sshfs".into(), "host:/".into())));
        assert_eq!(at("/tmp"), None);
    }

    #[test]
    fn a_folder_with_something_in_it_is_left_alone() {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let path = folder.path().join("deep/mnt");
        assert_eq!(Mountpoint::new(&path).clear(), Ok(()));
        fs::write(path.join("precious"), "").expect("a writable folder");
        assert!(Mountpoint::new(&path).clear().is_err_and(|sentence| sentence.contains("not empty")));
    }
}
