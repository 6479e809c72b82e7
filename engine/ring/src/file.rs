//! Files.

use std::io;
use std::path::Path;
use std::rc::Rc;

use crate::Ring;
use crate::folder::c_path;
use crate::net::is_passing;
use crate::sys::buffer::{IoBuf, IoBufMut};
use crate::sys::calls;
use crate::sys::operation::{Descriptor, paths};

/// Alignment that is taken for direct files of which the kernel does not say any.
const DIRECT_ALIGNMENT_DEFAULT: u32 = 4096;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpenHow {
    pub read: bool,
    pub write: bool,
    /// Create it if it is missing, with `mode`.
    pub create: bool,
    /// With `create`: fail if it exists.
    pub exclusive: bool,
    pub truncate: bool,
    /// Each write goes to the end, whatever its offset says.
    pub append: bool,
    /// Past the page cache (O_DIRECT). A file system that refuses it gives EINVAL; the caller falls back.
    pub direct: bool,
    /// Through the page cache, but what was read or written does not stay there (RWF_DONTCACHE, Linux 6.14). Where the
    /// kernel or the file system cannot, the pages stay.
    pub uncached: bool,
    /// The kernel does not read ahead: the caller knows better what comes next.
    pub random: bool,
    /// A write ends when its data are durable (O_DSYNC).
    pub dsync: bool,
    /// Permissions of a new file.
    pub mode: u32,
}

impl OpenHow {
    /// To read.
    pub fn read() -> OpenHow {
        OpenHow { read: true, ..OpenHow::default() }
    }

    /// To read and write.
    pub fn read_write() -> OpenHow {
        OpenHow { read: true, write: true, ..OpenHow::default() }
    }

    /// To read and write; created if missing.
    pub fn create(mode: u32) -> OpenHow {
        OpenHow { create: true, mode, ..OpenHow::read_write() }
    }

    /// To read and write; must not exist yet.
    pub fn create_new(mode: u32) -> OpenHow {
        OpenHow { exclusive: true, ..OpenHow::create(mode) }
    }

    /// The same, past the page cache if `direct`.
    pub fn direct(self, direct: bool) -> OpenHow {
        OpenHow { direct, ..self }
    }

    /// The same, each write durable if `dsync`.
    pub fn dsync(self, dsync: bool) -> OpenHow {
        OpenHow { dsync, ..self }
    }

    /// The same, emptied at the opening.
    pub fn truncate(self, truncate: bool) -> OpenHow {
        OpenHow { truncate, ..self }
    }

    /// The same, each write at the end.
    pub fn append(self, append: bool) -> OpenHow {
        OpenHow { append, ..self }
    }

    fn flags(self) -> i32 {
        let access = match (self.read, self.write || self.append) {
            (true, true) => libc::O_RDWR,
            (false, true) => libc::O_WRONLY,
            _ => libc::O_RDONLY,
        };
        let optional = [
            (self.create, libc::O_CREAT),
            (self.create && self.exclusive, libc::O_EXCL),
            (self.truncate, libc::O_TRUNC),
            (self.append, libc::O_APPEND),
            (self.direct, libc::O_DIRECT),
            (self.dsync, libc::O_DSYNC),
        ];
        optional
            .iter()
            .fold(access | libc::O_CLOEXEC, |flags, (wanted, flag)| if *wanted { flags | flag } else { flags })
    }
}

/// What is known of a file or folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stat {
    /// Length in bytes.
    pub size: u64,
    /// Allocated space in units of 512 bytes.
    pub blocks_512: u64,
    pub mtime_sec: i64,
    /// The part of a second behind `mtime_sec`.
    pub mtime_nanos: u32,
    pub is_dir: bool,
    /// Number of the device that holds it.
    pub device: u64,
    pub inode: u64,
    /// Permission bits and type, as stat(2).
    pub mode: u32,
}

impl Stat {
    pub(crate) fn new(statx: &libc::statx) -> Stat {
        let mode = u32::from(statx.stx_mode);
        Stat {
            size: statx.stx_size,
            blocks_512: statx.stx_blocks,
            mtime_sec: statx.stx_mtime.tv_sec,
            mtime_nanos: statx.stx_mtime.tv_nsec,
            is_dir: mode & libc::S_IFMT == libc::S_IFDIR,
            device: libc::makedev(statx.stx_dev_major, statx.stx_dev_minor),
            inode: statx.stx_ino,
            mode,
        }
    }
}

impl Ring {
    /// Opens a file. Errors: as open(2).
    pub async fn open(&self, path: &Path, how: OpenHow) -> io::Result<File> {
        let (result, _) = paths::open(&self.core, self.node, c_path(path)?, how.flags(), how.mode).await;
        let fd = i32::try_from(result?).expect("a descriptor is an i32");
        let mut file = File { descriptor: self.descriptor(fd), direct_alignment: 0 };
        if how.uncached && !how.direct {
            file.descriptor.rw_flags.set(libc::RWF_DONTCACHE);
        }
        if how.random && !how.direct && self.core.sim.is_none() {
            calls::advise_random(fd);
        }
        if how.direct {
            let (result, (_, statx)) = file.descriptor.stat().await;
            result?;
            let alignment = statx.stx_dio_offset_align.max(statx.stx_dio_mem_align);
            file.direct_alignment = if alignment == 0 { DIRECT_ALIGNMENT_DEFAULT } else { alignment };
        }
        Ok(file)
    }
}

/// An open file. Clones are the same opening; closed with the last.
///
/// Positions and lengths are in bytes. On a direct file memory, positions and lengths are multiples of
/// [`File::direct_alignment`], the caller's duty.
#[derive(Clone)]
pub struct File {
    descriptor: Rc<Descriptor>,
    direct_alignment: u32,
}

impl File {
    /// Reads from `offset` until the buffer is full or the file ends. Gives the bytes that were read.
    pub async fn read_at<B: IoBufMut>(&self, mut buffer: B, offset: u64) -> (io::Result<usize>, B) {
        let mut done = 0;
        while done < buffer.as_bytes().len() {
            let (result, (_, back)) = self.descriptor.read(buffer, done, offset + done as u64).await;
            buffer = back;
            match result {
                Ok(0) => break,
                Ok(bytes) => done += bytes as usize,
                Err(error) if is_passing(&error) || self.goes_on_without_flags(&error) => {}
                Err(error) => return (Err(error), buffer),
            }
            if !self.is_aligned(done) {
                break; // a direct read ends within a sector only where the file ends
            }
        }
        (Ok(done), buffer)
    }

    /// Writes the whole buffer at `offset`. Dropped early, any part may be written.
    pub async fn write_all_at<B: IoBuf>(&self, mut buffer: B, offset: u64) -> (io::Result<()>, B) {
        let mut done = 0;
        while done < buffer.as_bytes().len() {
            let (result, (_, back)) = self.descriptor.write(buffer, done, offset + done as u64).await;
            buffer = back;
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buffer),
                Ok(bytes) => done += bytes as usize,
                Err(error) if is_passing(&error) || self.goes_on_without_flags(&error) => {}
                Err(error) => return (Err(error), buffer),
            }
        }
        (Ok(()), buffer)
    }

    /// Makes the data durable, and the length if it must to find them (fdatasync).
    pub async fn datasync(&self) -> io::Result<()> {
        self.descriptor.sync(true).await.0.map(drop)
    }

    /// Makes data and attributes durable (fsync).
    pub async fn sync(&self) -> io::Result<()> {
        self.descriptor.sync(false).await.0.map(drop)
    }

    /// Cuts the file, or extends it with a hole.
    pub async fn set_len(&self, length: u64) -> io::Result<()> {
        self.descriptor.truncate(length).await.0.map(drop)
    }

    /// Reserves space, extending the file if the range ends beyond it; what was there stays (fallocate, mode 0).
    pub async fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.descriptor.allocate(offset, length).await.0.map(drop)
    }

    /// Its length, time and so on.
    pub async fn stat(&self) -> io::Result<Stat> {
        let (result, (_, statx)) = self.descriptor.stat().await;
        result.map(|_| Stat::new(&statx))
    }

    /// To what memory, positions and lengths must be aligned, in bytes; 0: not a direct file.
    pub fn direct_alignment(&self) -> u32 {
        self.direct_alignment
    }

    /// Takes the write lock of the whole file (fcntl: per process, seen by lockf and by other programs); false when
    /// another process has it. Kept until any handle of this process on the file is closed.
    pub fn try_lock(&self) -> io::Result<bool> {
        match &self.descriptor.core.sim {
            Some(world) => world.borrow_mut().try_lock(self.descriptor.fd),
            None => calls::try_lock(self.descriptor.fd),
        }
    }

    /// The process that keeps us from taking the lock, if one does.
    pub fn lock_owner(&self) -> io::Result<Option<i32>> {
        match &self.descriptor.core.sim {
            Some(_) => Ok(None),
            None => calls::lock_owner(self.descriptor.fd),
        }
    }

    /// The kernel (EINVAL of old ones) or the file system (EOPNOTSUPP) does not know the flags of our reads and writes:
    /// they are left away from now on.
    fn goes_on_without_flags(&self, error: &io::Error) -> bool {
        let unknown = matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL));
        unknown && self.descriptor.rw_flags.replace(0) != 0
    }

    fn is_aligned(&self, bytes: usize) -> bool {
        self.direct_alignment == 0 || bytes.is_multiple_of(self.direct_alignment as usize)
    }
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "File({})", self.descriptor.fd)
    }
}
