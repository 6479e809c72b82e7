//! The values that go in and out of a `Client`.

use std::ops::Range;
use std::rc::Rc;

use wire::{Attr, Inode, NodeKind, Time};

/// Who asks. The master maps and checks it (Spec 30, 4.3).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Caller {
    pub uid: u32,
    /// Primary group first. Empty: the caller has no group at all.
    pub gids: Vec<u32>,
    pub pid: u32,
    /// The umask of the process, for what it creates.
    pub umask: u16,
}

impl Caller {
    /// The superuser, group 0.
    pub fn root() -> Caller {
        Caller { uid: 0, gids: vec![0], pid: 0, umask: 0 }
    }
}

/// A node found or made under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub inode: Inode,
    pub attr: Attr,
    /// `lookup_flags`; 0 except after `lookup`.
    pub flags: u16,
}

impl Entry {
    /// True if the master says that this caller may access the node with `mask` (4 read, 2 write, 1 search).
    /// Only after `lookup`. Spec 31, 31.4.
    pub fn allows(&self, mask: u8) -> bool {
        self.flags & (1 << (mask & 7)) != 0
    }
}

/// One entry of a directory, "." and ".." included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    pub name: Box<[u8]>,
    pub inode: Inode,
    pub kind: NodeKind,
    /// Present if the listing was asked for with attributes and the caller may search the directory.
    pub attr: Option<Attr>,
}

/// What `setattr` changes; `None` leaves a field.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct AttrChange {
    /// New length of a file in bytes; done by `truncate`.
    pub size: Option<u64>,
    /// Permission bits with suid, sgid, sticky.
    pub mode: Option<u16>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub atime: Option<TimeChange>,
    pub mtime: Option<TimeChange>,
}

/// A new time stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeChange {
    /// The master's clock.
    Now,
    /// A master without the extension `times` gets its seconds.
    At(Time),
}

/// An open file of this client. Not a file descriptor: the number means something to its `Client` alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u64);

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct OpenFlags {
    pub read: bool,
    pub write: bool,
    /// Every write goes to the end of the file as it is then, also with writers on other machines.
    pub append: bool,
    /// Length 0 at once.
    pub truncate: bool,
}

/// An opened file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    pub handle: Handle,
    pub attr: Attr,
    /// Pages of this file that the kernel still has are valid.
    pub keep_cache: bool,
    /// The kernel should not cache the file.
    pub direct_io: bool,
}

/// Space and inodes of the tree. Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct StatFs {
    pub total_bytes: u64,
    pub available_bytes: u64,
    pub free_bytes: u64,
    pub trash_bytes: u64,
    pub sustained_bytes: u64,
    pub inodes: u32,
}

/// What `setxattr` does with a name that exists or does not. Spec 32, 32.7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrMode {
    CreateOrReplace = 0,
    CreateOnly = 1,
    ReplaceOnly = 2,
}

/// A POSIX access control list. Permissions are rwx = 4, 2, 1; `AccessList::ABSENT` = not there. Spec 32, 32.7.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessList {
    pub owner: u16,
    pub group: u16,
    pub other: u16,
    pub mask: u16,
    /// (uid, permissions)
    pub users: Vec<(u32, u16)>,
    /// (gid, permissions)
    pub groups: Vec<(u32, u16)>,
}

impl AccessList {
    pub const ABSENT: u16 = 0xFFFF;
}

/// A lock's strength.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    Unlock,
    Shared,
    Exclusive,
}

/// An fcntl lock: bytes `start..end` of a file; `end` `u64::MAX` is infinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PosixLock {
    pub kind: LockKind,
    pub start: u64,
    pub end: u64,
    pub pid: u32,
}

/// Bytes of a file, in order, in as many pieces as they came: nothing is copied together.
#[derive(Clone, Debug, Default)]
pub struct ReadData {
    pub(crate) pieces: Vec<Piece>,
}

/// A run of bytes inside a shared buffer.
#[derive(Clone, Debug)]
pub struct Piece {
    pub(crate) buffer: Rc<Vec<u8>>,
    pub(crate) range: Range<usize>,
}

impl Piece {
    pub fn as_slice(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }

    /// The buffer and the part of it that counts, for a `ring` operation that takes both.
    pub fn into_parts(self) -> (Rc<Vec<u8>>, Range<usize>) {
        (self.buffer, self.range)
    }
}

impl ReadData {
    pub fn len(&self) -> usize {
        self.pieces.iter().map(|piece| piece.range.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    pub fn into_pieces(self) -> Vec<Piece> {
        self.pieces
    }

    /// All bytes in one vector; copies.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.len());
        for piece in &self.pieces {
            all.extend_from_slice(piece.as_slice());
        }
        all
    }
}

/// Bytes to be written: a range of a buffer that the client takes over. `Vec<u8>` converts into it.
#[derive(Clone, Debug)]
pub struct WriteData {
    pub(crate) buffer: Vec<u8>,
    pub(crate) range: Range<usize>,
}

impl WriteData {
    /// `range` must lie inside `buffer`.
    pub fn new(buffer: Vec<u8>, range: Range<usize>) -> WriteData {
        assert!(range.start <= range.end && range.end <= buffer.len(), "the range lies inside the buffer");
        WriteData { buffer, range }
    }

    pub fn len(&self) -> usize {
        self.range.len()
    }

    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }
}

impl From<Vec<u8>> for WriteData {
    fn from(buffer: Vec<u8>) -> WriteData {
        let range = 0..buffer.len();
        WriteData { buffer, range }
    }
}

/// Something that the master or this client's own work changed under a cache of the kernel's. Spec 30, 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Pages of this file in `offset..offset + length` are no longer valid; `length` `u64::MAX` is to the end.
    DataChanged { inode: Inode, offset: u64, length: u64 },
    /// The file has this length now; attributes are stale.
    LengthChanged { inode: Inode, length: u64 },
}
