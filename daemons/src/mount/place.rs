//! Whether something can be mounted here: this machine, this user, this directory. Sentences that say what to do.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

const FUSE_DEVICE: &str = "/dev/fuse";
const HELPER: &str = "fusermount3";

/// The mount point, resolved. `nonempty`: it may have something in it.
///
/// Errors: no FUSE, no helper, no such directory, the remains of a dead mount, not empty. Spec 72, 1.3.
pub(super) fn check(mount_point: &Path, nonempty: bool) -> Result<PathBuf, String> {
    check_fuse()?;
    let shown = mount_point.display();
    let metadata = fs::metadata(mount_point).map_err(|error| bad_mount_point(mount_point, &error))?;
    if !metadata.is_dir() {
        return Err(format!("fuse: bad mount point `{shown}': it is not a directory"));
    }
    if !nonempty {
        let mut entries = fs::read_dir(mount_point).map_err(|error| bad_mount_point(mount_point, &error))?;
        if entries.next().is_some() {
            return Err(format!("mountpoint '{shown}' is not empty (option nonempty would hide what is in it)"));
        }
    }
    mount_point.canonicalize().map_err(|error| bad_mount_point(mount_point, &error))
}

fn bad_mount_point(mount_point: &Path, error: &io::Error) -> String {
    let shown = mount_point.display();
    let reason = system_text(error);
    let advice = match error.raw_os_error() {
        Some(libc::ENOENT) => format!(" - make it: mkdir -p {shown}"),
        Some(libc::ENOTCONN) => {
            format!(" - a mount whose process died is still there, take it away: fusermount3 -u {shown}")
        }
        _ => String::new(),
    };
    format!("fuse: bad mount point `{shown}': {reason}{advice}")
}

/// `No such file or directory (os error 2)` without the number.
fn system_text(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

fn check_fuse() -> Result<(), String> {
    match File::options().read(true).write(true).open(FUSE_DEVICE) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(format!(
                "there is no {FUSE_DEVICE}: load the module (`modprobe fuse`), or give this container the device \
                 (`--device {FUSE_DEVICE} --cap-add SYS_ADMIN`)"
            ));
        }
        Err(error) => {
            return Err(format!("can't open {FUSE_DEVICE}: {error} (its permissions should be rw for everybody)"));
        }
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has_helper = std::env::split_paths(&path).any(|folder| folder.join(HELPER).is_file());
    if has_helper || rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(format!(
        "an ordinary user mounts with the program {HELPER}, which is missing: install the package fuse3 \
         (`sudo apt install fuse3`, `sudo dnf install fuse3`, `sudo apk add fuse3`)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_mount_point_is_named_with_its_remedy() {
        let sentence = |errno| bad_mount_point(Path::new("/mnt/x"), &io::Error::from_raw_os_error(errno));
        assert_eq!(
            sentence(libc::ENOENT),
            "fuse: bad mount point `/mnt/x': No such file or directory - make it: mkdir -p /mnt/x"
        );
        assert!(sentence(libc::ENOTCONN).contains("Transport endpoint is not connected"));
        assert!(sentence(libc::ENOTCONN).ends_with("fusermount3 -u /mnt/x"));
    }
}
