//! Sessions of clients. Spec 30, 4.

use wire::{Inode, Ip4};

/// Bits of `SessionParams::flags`. Spec 30, 4.2.
pub mod session_flags {
    pub const READ_ONLY: u8 = 0x01;
    pub const DYNAMIC_IP: u8 = 0x02;
    pub const IGNORE_GID: u8 = 0x04;
    pub const ADMIN: u8 = 0x08;
    pub const MAP_ALL: u8 = 0x10;
}

/// Bits of `SessionParams::disables`: operations that are answered EPERM. Spec 30, 4.4.
pub mod disables {
    pub const CHOWN: u32 = 1 << 0;
    pub const CHMOD: u32 = 1 << 1;
    pub const SYMLINK: u32 = 1 << 2;
    pub const MKFIFO: u32 = 1 << 3;
    pub const MKDEV: u32 = 1 << 4;
    pub const MKSOCK: u32 = 1 << 5;
    pub const MKDIR: u32 = 1 << 6;
    pub const UNLINK: u32 = 1 << 7;
    pub const RMDIR: u32 = 1 << 8;
    pub const RENAME: u32 = 1 << 9;
    pub const MOVE: u32 = 1 << 10;
    pub const LINK: u32 = 1 << 11;
    pub const CREATE: u32 = 1 << 12;
    pub const READDIR: u32 = 1 << 13;
    pub const READ: u32 = 1 << 14;
    pub const WRITE: u32 = 1 << 15;
    pub const TRUNCATE: u32 = 1 << 16;
    pub const SETLENGTH: u32 = 1 << 17;
    pub const APPENDCHUNKS: u32 = 1 << 18;
    pub const SNAPSHOT: u32 = 1 << 19;
    pub const SETTRASH: u32 = 1 << 20;
    pub const SETSCLASS: u32 = 1 << 21;
    pub const SETEATTR: u32 = 1 << 22;
    pub const SETXATTR: u32 = 1 << 23;
    pub const SETFACL: u32 = 1 << 24;
}

/// What the exports and the client's registration say about a session. Spec 30, 4.5.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionParams {
    /// Checksum of the exports that were in force.
    pub exports_checksum: u64,
    /// Directory that the client sees as its root; 0 for a META session.
    pub root: Inode,
    /// `session_flags`.
    pub flags: u8,
    /// Or-ed to the umask of every creation.
    pub umask: u16,
    pub root_uid: u32,
    pub root_gid: u32,
    pub map_all_uid: u32,
    pub map_all_gid: u32,
    pub goal_min: u8,
    pub goal_max: u8,
    pub trash_time_min_seconds: u32,
    pub trash_time_max_seconds: u32,
    /// `disables`.
    pub disables: u32,
    pub peer_ip: Ip4,
    /// Free text for people: the mount point.
    pub info: Vec<u8>,
}

impl SessionParams {
    /// The whole tree, read and write, root as root: what tests and the demo export.
    pub fn full_access() -> SessionParams {
        SessionParams {
            exports_checksum: 0,
            root: Inode::ROOT,
            flags: session_flags::ADMIN,
            umask: 0,
            root_uid: 0,
            root_gid: 0,
            map_all_uid: 999,
            map_all_gid: 999,
            goal_min: 1,
            goal_max: 9,
            trash_time_min_seconds: 0,
            trash_time_max_seconds: u32::MAX,
            disables: 0,
            peer_ip: Ip4(0),
            info: Vec::new(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub params: SessionParams,
    /// Unix seconds when the last connection went; 0 while there may be one.
    pub disconnected: u32,
}
