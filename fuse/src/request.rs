//! What the kernel asks of a file system, as owned values.
//!
//! A transport (the FUSE device today, FUSE over io_uring beside it) turns the kernel's bytes into a [`Request`] and
//! a [`crate::reply::Reply`] back into bytes. The file system behind sees only these types. Requests own what they
//! carry, because they travel from the thread that read them to the core that serves them.

use std::ops::{Deref, Range};

/// One request: who asks, about which inode, for what.
#[derive(Debug)]
pub struct Request {
    /// The kernel's number of this request; its reply and its interruption name it.
    pub unique: u64,
    /// The inode that the operation is about; for operations by name the directory. 1 is the root of the mount.
    pub inode: u64,
    /// On whose behalf.
    pub caller: Caller,
    /// For what.
    pub operation: Operation,
}

/// The process on whose behalf the kernel asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Caller {
    /// User for permission checks (the file system uid).
    pub uid: u32,
    /// Primary group for permission checks.
    pub gid: u32,
    /// The thread's id; 0 when the kernel asks on its own account (write-back, read-ahead).
    pub pid: u32,
}

/// A name as the kernel gives it: bytes without NUL or slash, not yet checked for length.
pub type NameBytes = Box<[u8]>;

/// The operations. Flags are the system's own (`libc::O_*`).
#[derive(Debug)]
#[allow(missing_docs)] // each field is the kernel's argument of that name
pub enum Operation {
    Lookup {
        name: NameBytes,
    },
    /// The kernel drops references that it got by lookups. No reply.
    Forget {
        entries: Vec<ForgetEntry>,
    },
    GetAttributes {
        handle: Option<u64>,
    },
    SetAttributes(SetAttributes),
    ReadLink,
    SymbolicLink {
        name: NameBytes,
        target: Box<[u8]>,
    },
    MakeNode {
        name: NameBytes,
        mode: u32,
        umask: u32,
        device: u32,
    },
    MakeDirectory {
        name: NameBytes,
        mode: u32,
        umask: u32,
    },
    Unlink {
        name: NameBytes,
    },
    RemoveDirectory {
        name: NameBytes,
    },
    Rename {
        name: NameBytes,
        new_directory: u64,
        new_name: NameBytes,
        flags: u32,
    },
    /// A new name in `Request::inode` for the existing inode `source`.
    Link {
        source: u64,
        name: NameBytes,
    },
    Open {
        flags: i32,
        clears_privileges: bool,
    },
    Create {
        name: NameBytes,
        mode: u32,
        umask: u32,
        flags: i32,
    },
    Read {
        handle: u64,
        offset_bytes: u64,
        size_bytes: u32,
    },
    /// `clears_privileges`: the writer is not allowed to leave suid and sgid in place.
    Write {
        handle: u64,
        offset_bytes: u64,
        data: Payload,
        clears_privileges: bool,
    },
    Flush {
        handle: u64,
        lock_owner: u64,
    },
    /// The last descriptor of an open file is closed. Never interrupted.
    Release {
        handle: u64,
        flags: i32,
        lock_owner: u64,
    },
    Sync {
        handle: u64,
        data_only: bool,
    },
    OpenDirectory {
        flags: i32,
    },
    ReadDirectory {
        handle: u64,
        offset: u64,
        size_bytes: u32,
        with_attributes: bool,
    },
    ReleaseDirectory {
        handle: u64,
    },
    SyncDirectory {
        handle: u64,
    },
    FileSystemStatistics,
    Access {
        mask: u32,
    },
    GetExtendedAttribute {
        name: NameBytes,
        size_bytes: u32,
    },
    SetExtendedAttribute {
        name: NameBytes,
        value: Box<[u8]>,
        flags: i32,
    },
    ListExtendedAttributes {
        size_bytes: u32,
    },
    RemoveExtendedAttribute {
        name: NameBytes,
    },
    GetLock {
        handle: u64,
        owner: u64,
        lock: Lock,
    },
    SetLock {
        handle: u64,
        owner: u64,
        lock: Lock,
        wait: bool,
        whole_file: bool,
    },
    Allocate {
        handle: u64,
        offset_bytes: u64,
        length_bytes: u64,
        mode: i32,
    },
    Seek {
        handle: u64,
        offset_bytes: u64,
        whence: i32,
    },
    /// A signal came for the process that waits for request `unique`. No reply, or "ask again".
    Interrupt {
        unique: u64,
    },
    /// The file system is unmounted. No reply is waited for.
    Destroy,
    /// Something this program does not know; answered by `ENOSYS`, after which the kernel does not ask again.
    Unknown {
        opcode: u32,
    },
}

/// `count` references to `inode` that the kernel gives back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForgetEntry {
    /// Which inode.
    pub inode: u64,
    /// How many of its lookups are undone.
    pub count: u64,
}

/// What a SETATTR changes; `None` leaves a field as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)] // fields of a stat
pub struct SetAttributes {
    pub handle: Option<u64>,
    pub size_bytes: Option<u64>,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    /// A new size by somebody who is not allowed to leave suid and sgid in place.
    pub clears_privileges: bool,
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The file server's clock.
    Now,
    /// Seconds and nanoseconds since 1970.
    At(i64, u32),
}

/// A lock on a range of a file. `end_bytes` is the last byte of the range, as the kernel counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Lock {
    pub start_bytes: u64,
    pub end_bytes: u64,
    /// `libc::F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
    pub kind: i32,
    pub pid: u32,
}

/// Bytes to write, still in the buffer into which they were read from the kernel.
#[derive(Debug)]
pub struct Payload {
    buffer: Vec<u8>,
    range: Range<usize>,
}

impl Payload {
    /// The bytes `range` of `buffer`. `range` lies inside.
    pub fn new(buffer: Vec<u8>, range: Range<usize>) -> Payload {
        assert!(range.start <= range.end && range.end <= buffer.len());
        Payload { buffer, range }
    }

    /// The buffer and where in it the bytes are.
    pub fn into_parts(self) -> (Vec<u8>, Range<usize>) {
        (self.buffer, self.range)
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Payload {
        let range = 0..bytes.len();
        Payload { buffer: bytes, range }
    }
}

impl Deref for Payload {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}
