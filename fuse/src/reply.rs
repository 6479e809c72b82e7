//! What a file system answers, as values. See [`crate::request`].

use std::time::Duration;

/// A system error number, as the kernel wants it (positive).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Errno(pub i32);

/// The answer to a successful request. The variant must fit the operation; the file system sees to that.
pub enum Reply {
    /// Done, nothing to tell.
    Empty,
    /// LOOKUP, MKNOD, MKDIR, SYMLINK, LINK: an inode that the kernel may refer to from now on.
    Entry(Entry),
    /// GETATTR, SETATTR.
    Attributes(Attributes, Duration),
    /// OPEN, OPENDIR.
    Opened(Opened),
    /// CREATE.
    Created(Entry, Opened),
    /// READ, READLINK, GETXATTR, LISTXATTR and directory listings ([`crate::listing`]): bytes in order.
    Data(Vec<DataPart>),
    /// WRITE: how many bytes were taken.
    Written(u32),
    /// STATFS.
    Statistics(Statistics),
    /// GETXATTR, LISTXATTR asked for a size of 0: how many bytes the value has.
    Size(u32),
    /// GETLK: the lock in the way, or one of kind `F_UNLCK`.
    Lock(crate::request::Lock),
    /// LSEEK.
    Offset(u64),
}

/// A run of bytes of a reply, from wherever the file system keeps them.
pub type DataPart = Box<dyn AsRef<[u8]>>;

impl Reply {
    /// Bytes that are in one vector.
    pub fn bytes(bytes: Vec<u8>) -> Reply {
        Reply::Data(vec![Box::new(bytes)])
    }
}

/// An inode found or made, and how long the kernel may believe it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entry {
    /// Its attributes; `inode` 0 with a time-out says "no such name" for that time.
    pub attributes: Attributes,
    /// How long the name may be taken to mean this inode.
    pub entry_timeout: Duration,
    /// How long the attributes hold.
    pub attributes_timeout: Duration,
}

/// A stat.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[allow(missing_docs)] // fields of a stat; times are seconds since 1970 and nanoseconds
pub struct Attributes {
    pub inode: u64,
    pub size_bytes: u64,
    pub blocks_512: u64,
    pub atime: (i64, u32),
    pub mtime: (i64, u32),
    pub ctime: (i64, u32),
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub device: u32,
    pub block_bytes: u32,
}

/// A handle and how the kernel is to treat its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Opened {
    /// The file system's number for this open file; later requests name it.
    pub handle: u64,
    /// Reads and writes go past the page cache.
    pub direct_io: bool,
    /// Pages from earlier opens are still good.
    pub keep_cache: bool,
    /// No FLUSH is wanted when a descriptor is closed.
    pub no_flush: bool,
    /// A directory's listing may be kept by the kernel.
    pub cache_directory: bool,
    /// Direct writes to one file may run beside each other.
    pub parallel_direct_writes: bool,
}

/// What statfs shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)] // fields of a statvfs
pub struct Statistics {
    pub block_bytes: u32,
    pub blocks: u64,
    pub blocks_free: u64,
    pub blocks_available: u64,
    pub files: u64,
    pub files_free: u64,
    pub name_length_max: u32,
}
