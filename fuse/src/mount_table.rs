//! What /proc/self/mountinfo says about a mount point.

use std::path::Path;

/// One line of the table, as far as we need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountLine {
    /// `major:minor`.
    pub device: String,
    /// The file system's type, `fuse`.
    pub kind: String,
    /// What is mounted, `mfs#10.0.0.1:9421`.
    pub source: String,
}

/// The topmost mount on `mount_point` (resolved) in the mountinfo text `table`.
pub fn find(table: &[u8], mount_point: &Path) -> Option<MountLine> {
    use std::os::unix::ffi::OsStrExt;
    let wanted = mount_point.as_os_str().as_bytes();
    let lines = table.split(|&byte| byte == b'\n');
    lines.filter_map(|line| parse(line, wanted)).next_back()
}

/// `36 35 0:42 / /mnt/x rw,nosuid shared:1 - fuse mfs#h:9421 rw,...`; blanks in paths are written `\040`.
fn parse(line: &[u8], mount_point: &[u8]) -> Option<MountLine> {
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    let mut fields = line.split(|&byte| byte == b' ');
    let device = fields.nth(2)?;
    if unescape(fields.nth(1)?) != mount_point {
        return None;
    }
    fields.find(|field| *field == b"-")?;
    Some(MountLine { device: text(device), kind: text(fields.next()?), source: text(fields.next()?) })
}

/// Undo the octal escapes of blanks, tabs, newlines and backslashes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|digits| byte == b'\\' && digits.iter().all(|d| (b'0'..b'8').contains(d)));
        match digits {
            Some(&[a, b, c]) => {
                out.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
                rest = &tail[3..];
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 254:1 / / rw - ext4 /dev/vda1 rw\n\
        80 22 0:51 / /mnt/a\\040b rw,nosuid,nodev shared:7 - fuse mfs#10.77.0.1:9421 rw,user_id=0\n\
        81 22 0:52 / /mnt/a\\040b rw - tmpfs none rw\n";

    #[test]
    fn the_topmost_mount_is_found_and_blanks_are_read() {
        let found = find(TABLE, Path::new("/mnt/a b")).expect("is there");
        assert_eq!((found.device.as_str(), found.kind.as_str()), ("0:52", "tmpfs"));
        assert_eq!(find(TABLE, Path::new("/mnt")), None);
        assert_eq!(find(TABLE, Path::new("/")).expect("is there").kind, "ext4");
    }
}
