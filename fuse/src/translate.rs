//! From the master's terms to the kernel's: attributes, modes, cache times. Pure.

use std::time::Duration;

use client::{AttrChange, DirEntry, LockKind, OpenFlags, StatFs, Time, TimeChange};
use wire::types::attr_flags;
use wire::{Attr, Inode, NodeKind};

use crate::reply::{Attributes, Entry, Errno, Statistics};
use crate::request::{Lock, SetAttributes, SetTime};

/// `st_blksize`, and the unit of statfs. Spec 72, 4.1.
pub const BLOCK_BYTES: u32 = 64 << 10;
/// Longest name. Spec 72, 4.3.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest target of a symbolic link, the NUL counted. Spec 72, 4.3.
pub const LINK_TARGET_BYTES_MAX: usize = 4096;
/// Longest value of an extended attribute. Spec 72, 4.3.
pub const EXTENDED_ATTRIBUTE_BYTES_MAX: usize = 65536;
/// No file is longer. Spec 72, 4.3.
pub const FILE_BYTES_MAX: u64 = 1 << 57;

impl From<client::Errno> for Errno {
    fn from(errno: client::Errno) -> Errno {
        Errno(errno.0)
    }
}

/// How long the kernel may believe what it is told. Spec 72, 4.1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CacheTimes {
    /// Attributes of anything.
    pub attributes: Duration,
    /// Names of directories.
    pub directory_entry: Duration,
    /// Names of anything else.
    pub entry: Duration,
    /// Names that do not exist; zero: not kept.
    pub negative_entry: Duration,
    /// At least this for what a listing with attributes brings, so that a look at each entry right behind it (`ls -l`)
    /// does not ask the master again. (4.x has such an option too, with a default of 0.1 ms.)
    pub listing_min: Duration,
}

impl Default for CacheTimes {
    fn default() -> CacheTimes {
        CacheTimes {
            attributes: Duration::from_secs(1),
            directory_entry: Duration::from_secs(1),
            entry: Duration::ZERO,
            negative_entry: Duration::ZERO,
            listing_min: Duration::from_millis(100),
        }
    }
}

impl CacheTimes {
    /// How long these attributes hold.
    pub fn attributes(&self, attr: &Attr) -> Duration {
        if attr.flags & attr_flags::NO_ATTR_CACHE != 0 { Duration::ZERO } else { self.attributes }
    }

    /// How long a name for this node holds.
    fn entry(&self, attr: &Attr) -> Duration {
        match attr.kind {
            _ if attr.flags & attr_flags::NO_ENTRY_CACHE != 0 => Duration::ZERO,
            NodeKind::Directory => self.directory_entry,
            _ => self.entry,
        }
    }
}

/// What the kernel is told of a node found or made.
pub fn entry(inode: Inode, attr: &Attr, times: &CacheTimes) -> Entry {
    Entry {
        attributes: attributes(inode, attr),
        entry_timeout: times.entry(attr),
        attributes_timeout: times.attributes(attr),
    }
}

/// The same for a node seen in a listing.
pub fn listed_entry(listed: &DirEntry, attr: &Attr, times: &CacheTimes) -> Entry {
    let mut entry = entry(listed.inode, attr, times);
    let no_cache = attr_flags::NO_ENTRY_CACHE | attr_flags::NO_ATTR_CACHE;
    if attr.flags & no_cache == 0 {
        entry.entry_timeout = entry.entry_timeout.max(times.listing_min);
        entry.attributes_timeout = entry.attributes_timeout.max(times.listing_min);
    }
    entry
}

/// "There is no such name", for as long as that may be remembered.
pub fn negative_entry(times: &CacheTimes) -> Entry {
    Entry { attributes: Attributes::default(), entry_timeout: times.negative_entry, attributes_timeout: Duration::ZERO }
}

/// A stat. Spec 72, 4.1; Spec 31, 31.2.
pub fn attributes(inode: Inode, attr: &Attr) -> Attributes {
    let size_bytes = attr.length_bytes();
    Attributes {
        inode: u64::from(inode.0),
        size_bytes,
        blocks_512: size_bytes.div_ceil(512),
        atime: attr.atime.parts(),
        mtime: attr.mtime.parts(),
        ctime: attr.ctime.parts(),
        mode: type_bits(attr.kind) | u32::from(attr.mode & 0o7777),
        links: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        device: attr.rdev(),
        block_bytes: BLOCK_BYTES,
    }
}

/// The type as in `st_mode`.
pub fn type_bits(kind: NodeKind) -> u32 {
    match kind {
        NodeKind::Directory => libc::S_IFDIR,
        NodeKind::Symlink => libc::S_IFLNK,
        NodeKind::Fifo => libc::S_IFIFO,
        NodeKind::BlockDevice => libc::S_IFBLK,
        NodeKind::CharDevice => libc::S_IFCHR,
        NodeKind::Socket => libc::S_IFSOCK,
        NodeKind::File | NodeKind::Trash | NodeKind::Sustained => libc::S_IFREG,
    }
}

/// What mknod(2) makes, by the type in its mode; no type is a file.
pub fn node_kind(mode: u32) -> Result<NodeKind, Errno> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Ok(NodeKind::File),
        libc::S_IFIFO => Ok(NodeKind::Fifo),
        libc::S_IFBLK => Ok(NodeKind::BlockDevice),
        libc::S_IFCHR => Ok(NodeKind::CharDevice),
        libc::S_IFSOCK => Ok(NodeKind::Socket),
        _ => Err(Errno(libc::EINVAL)),
    }
}

/// Permission bits of a mode, with suid, sgid and sticky.
pub fn permissions(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).expect("twelve bits")
}

/// What open(2) asks for.
pub fn open_flags(flags: i32) -> OpenFlags {
    let access = flags & libc::O_ACCMODE;
    OpenFlags {
        read: access != libc::O_WRONLY,
        write: access != libc::O_RDONLY,
        append: flags & libc::O_APPEND != 0,
        truncate: flags & libc::O_TRUNC != 0,
    }
}

/// What a SETATTR changes. Errors: EFBIG. Times that cannot be stored go to the nearest that can.
pub fn attribute_change(set: &SetAttributes) -> Result<AttrChange, Errno> {
    if set.size_bytes.is_some_and(|size| size >= FILE_BYTES_MAX) {
        return Err(Errno(libc::EFBIG));
    }
    let time = |time: SetTime| match time {
        SetTime::Now => TimeChange::Now,
        SetTime::At(seconds, nanos) => TimeChange::At(Time::at(seconds, nanos)),
    };
    Ok(AttrChange {
        size: set.size_bytes,
        mode: set.mode.map(permissions),
        uid: set.uid,
        gid: set.gid,
        atime: set.atime.map(time),
        mtime: set.mtime.map(time),
    })
}

/// The mode without what a writer who is not privileged takes away: suid, and sgid of a program. `None`: no change.
pub fn mode_without_privileges(attr: &Attr) -> Option<u16> {
    let group_may_execute = attr.mode & 0o010 != 0;
    let lost = if group_may_execute { 0o6000 } else { 0o4000 };
    (attr.kind == NodeKind::File && attr.mode & lost != 0).then_some(attr.mode & !lost)
}

/// What statfs shows. The file counters say who serves: 1,000,000,000 and the version. Spec 72, 4.3.
pub fn statistics(space: &StatFs) -> Statistics {
    const FILES_BASE: u64 = 1_000_000_000 + 3_011_701;
    let blocks = |bytes: u64| bytes / u64::from(BLOCK_BYTES);
    Statistics {
        block_bytes: BLOCK_BYTES,
        blocks: blocks(space.total_bytes),
        blocks_free: blocks(space.free_bytes),
        blocks_available: blocks(space.available_bytes),
        files: FILES_BASE + u64::from(space.inodes),
        files_free: FILES_BASE,
        name_length_max: 255,
    }
}

/// The kind of a kernel lock. Errors: EINVAL.
pub fn lock_kind(kind: i32) -> Result<LockKind, Errno> {
    match kind {
        libc::F_RDLCK => Ok(LockKind::Shared),
        libc::F_WRLCK => Ok(LockKind::Exclusive),
        libc::F_UNLCK => Ok(LockKind::Unlock),
        _ => Err(Errno(libc::EINVAL)),
    }
}

/// The master's range ends behind the last byte, the kernel's with it. Spec 72, 5.5.
pub fn posix_lock(lock: &Lock) -> Result<client::PosixLock, Errno> {
    let end = if lock.end_bytes >= OFFSET_MAX { u64::MAX } else { lock.end_bytes + 1 };
    Ok(client::PosixLock { kind: lock_kind(lock.kind)?, start: lock.start_bytes, end, pid: lock.pid })
}

/// The answer to F_GETLK: the lock in the way, or that there is none.
pub fn found_lock(found: Option<client::PosixLock>) -> Lock {
    match found {
        None => Lock { start_bytes: 0, end_bytes: 0, kind: libc::F_UNLCK, pid: 0 },
        Some(lock) => Lock {
            start_bytes: lock.start,
            end_bytes: lock.end.saturating_sub(1).min(OFFSET_MAX),
            kind: match lock.kind {
                LockKind::Shared => libc::F_RDLCK,
                LockKind::Exclusive => libc::F_WRLCK,
                LockKind::Unlock => libc::F_UNLCK,
            },
            pid: lock.pid,
        },
    }
}

/// The kernel's "to the end of the file".
const OFFSET_MAX: u64 = i64::MAX.cast_unsigned();

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(kind: NodeKind, flags: u8) -> Attr {
        Attr {
            flags,
            kind,
            mode: 0o644,
            uid: 1,
            gid: 2,
            atime: 3.into(),
            mtime: 4.into(),
            ctime: 5.into(),
            nlink: 1,
            extra: 1000,
            winattr: 0,
        }
    }

    #[test]
    fn names_of_files_are_not_kept_and_those_of_directories_for_a_second() {
        let times = CacheTimes::default();
        let check = |kind, flags, entry_millis: u64, attributes_millis: u64| {
            let entry = entry(Inode(5), &attr(kind, flags), &times);
            assert_eq!(entry.entry_timeout, Duration::from_millis(entry_millis));
            assert_eq!(entry.attributes_timeout, Duration::from_millis(attributes_millis));
        };
        check(NodeKind::File, 4, 0, 1000);
        check(NodeKind::Directory, 4, 1000, 1000);
        check(NodeKind::Directory, attr_flags::NO_ENTRY_CACHE, 0, 1000);
        check(NodeKind::Directory, attr_flags::NO_ATTR_CACHE, 1000, 0);
    }

    #[test]
    fn a_stat_counts_blocks_of_512_and_carries_the_type() {
        let stat = attributes(Inode(9), &attr(NodeKind::File, 4));
        assert_eq!((stat.inode, stat.blocks_512, stat.mode), (9, 2, 0o100644));
        let device = attributes(Inode(9), &Attr { extra: 0x0801 << 32, ..attr(NodeKind::BlockDevice, 4) });
        assert_eq!((device.size_bytes, device.device), (0, 0x0801));
    }

    #[test]
    fn lock_ranges_survive_the_change_of_convention() {
        let check = |start_bytes, end_bytes, end| {
            let kernel = Lock { start_bytes, end_bytes, kind: libc::F_WRLCK, pid: 7 };
            let master = posix_lock(&kernel).expect("a known kind");
            assert_eq!(master.end, end);
            assert_eq!(found_lock(Some(master)), kernel);
        };
        check(0, OFFSET_MAX, u64::MAX);
        check(10, 19, 20);
        check(0, 0, 1);
        assert_eq!(found_lock(None).kind, libc::F_UNLCK);
        assert!(lock_kind(77).is_err());
    }

    #[test]
    fn times_that_cannot_be_stored_go_to_the_nearest() {
        let set = |seconds| SetAttributes { mtime: Some(SetTime::At(seconds, 7)), ..SetAttributes::default() };
        let mtime = |seconds| attribute_change(&set(seconds)).expect("no size").mtime;
        assert_eq!(mtime(-1), Some(TimeChange::At(Time(-999_999_993))));
        assert_eq!(mtime(1 << 32), Some(TimeChange::At(Time::at(1 << 32, 7))));
        assert_eq!(mtime(i64::MAX), Some(TimeChange::At(Time::MAX)));
        assert_eq!(mtime(i64::MIN), Some(TimeChange::At(Time::MIN)));
        let size = SetAttributes { size_bytes: Some(FILE_BYTES_MAX), ..SetAttributes::default() };
        assert_eq!(attribute_change(&size), Err(Errno(libc::EFBIG)));
    }

    #[test]
    fn a_write_takes_suid_and_the_sgid_of_programs() {
        let mode = |mode| mode_without_privileges(&Attr { mode, ..attr(NodeKind::File, 4) });
        assert_eq!(mode(0o4755), Some(0o755));
        assert_eq!(mode(0o2755), Some(0o755));
        assert_eq!(mode(0o2644), None); // mandatory locking of old, left alone
        assert_eq!(mode(0o755), None);
    }
}
