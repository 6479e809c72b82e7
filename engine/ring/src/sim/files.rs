//! File operations of simulated nodes: from requests to their disks, through the faults that were ordered.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::DiskFault;
use super::disk::Outcome;
use super::state::{Handle, OpenFile, State};
use crate::folder::{DirEntry, Space};
use crate::sys::operation::Request;

fn path_of(path: &CStr) -> &Path {
    Path::new(OsStr::from_bytes(path.to_bytes()))
}

impl State {
    pub(super) fn perform_on_disk(&mut self, node: u32, request: Request<'_>) -> Outcome<i32> {
        let now = self.now;
        let wall_sec = (self.wall_micros(node) / 1_000_000).cast_signed();
        match request {
            Request::Open { path, flags } => self.open_file(node, path_of(path), flags),
            Request::Stat { file, path, out } => {
                let inode = if file == libc::AT_FDCWD {
                    self.nodes[node as usize].disk.find(path_of(path))?
                } else {
                    self.file(file)?.inode
                };
                self.fill_stat(node, inode, out)
            }
            Request::Read { file, into, offset } => {
                let (inode, fault) = (self.file(file)?.inode, self.fault(file, |fault| *fault == DiskFault::Reads));
                self.check_alignment(file, into, offset)?;
                if fault {
                    return Err(libc::EIO);
                }
                count(self.nodes[node as usize].disk.read(inode, offset, into)?)
            }
            Request::Write { file, from, offset } => {
                let open = self.file(file)?;
                let (inode, flags) = (open.inode, open.flags);
                self.check_alignment(file, from, offset)?;
                if self.fault(file, |fault| *fault == DiskFault::Writes) {
                    return Err(libc::EIO);
                }
                if self.fault(file, |fault| *fault == DiskFault::Full) {
                    return Err(libc::ENOSPC);
                }
                let disk = &mut self.nodes[node as usize].disk;
                let offset = if flags & libc::O_APPEND != 0 { disk.inode(inode)?.length() } else { offset };
                disk.touch(inode, wall_sec);
                count(disk.write(inode, offset, from, flags & libc::O_DSYNC != 0)?)
            }
            Request::Sync { file } => {
                let inode = self.file(file)?.inode;
                if self.fault(file, |fault| *fault == DiskFault::Syncs) {
                    return Err(libc::EIO);
                }
                self.nodes[node as usize].disk.sync(inode).map(|()| 0)
            }
            Request::Truncate { file, length } => {
                let inode = self.file(file)?.inode;
                self.nodes[node as usize].disk.set_length(inode, length).map(|()| 0)
            }
            Request::Allocate { file, offset, length } => {
                let inode = self.file(file)?.inode;
                if self.fault(file, |fault| *fault == DiskFault::Full) {
                    return Err(libc::ENOSPC);
                }
                self.nodes[node as usize].disk.allocate(inode, offset, length).map(|()| 0)
            }
            Request::Rename { from, to } => {
                self.nodes[node as usize].disk.rename(now, path_of(from), path_of(to))?;
                self.settle_names_later(node);
                Ok(0)
            }
            Request::Remove { path, folder } => {
                self.nodes[node as usize].disk.remove(now, path_of(path), folder)?;
                self.settle_names_later(node);
                Ok(0)
            }
            Request::MakeFolder { path } => {
                self.nodes[node as usize].disk.make_folder(now, path_of(path))?;
                self.settle_names_later(node);
                Ok(0)
            }
            Request::Ready => Err(libc::EOPNOTSUPP), // there are no such devices in the simulation
            Request::Accept { .. } | Request::Connect { .. } | Request::Receive { .. } | Request::Send { .. } => {
                unreachable!("sockets are not on disks")
            }
        }
    }

    fn open_file(&mut self, node: u32, path: &Path, flags: i32) -> Outcome<i32> {
        if flags & libc::O_DIRECT != 0 && self.settings.refuse_direct {
            return Err(libc::EINVAL);
        }
        let now = self.now;
        let inode = self.nodes[node as usize].disk.open(now, path, flags)?;
        if flags & libc::O_CREAT != 0 {
            self.settle_names_later(node);
        }
        Ok(self.new_fd(Handle::File(OpenFile { node, inode, path: path.to_owned(), flags })))
    }

    /// Whether the operation is one on a part of a disk that hangs.
    pub(super) fn hangs(&self, node: u32, request: &Request<'_>) -> bool {
        let faults = &self.nodes[node as usize].faults;
        if !faults.iter().any(|(_, fault)| *fault == DiskFault::Hangs) {
            return false;
        }
        let path = match request {
            Request::Open { path, .. } | Request::Remove { path, .. } | Request::MakeFolder { path } => path_of(path),
            Request::Stat { file: libc::AT_FDCWD, path, .. } => path_of(path),
            Request::Rename { from, .. } => path_of(from),
            Request::Stat { file, .. }
            | Request::Read { file, .. }
            | Request::Write { file, .. }
            | Request::Sync { file }
            | Request::Truncate { file, .. }
            | Request::Allocate { file, .. } => match self.file(*file) {
                Ok(open) => &open.path,
                Err(_) => return false,
            },
            _ => return false,
        };
        faults.iter().any(|(prefix, fault)| *fault == DiskFault::Hangs && path.starts_with(prefix))
    }

    fn file(&self, fd: RawFd) -> Outcome<&OpenFile> {
        match self.handles.get(&fd) {
            Some(Handle::File(file)) => Ok(file),
            _ => Err(libc::EBADF),
        }
    }

    /// Whether a fault was ordered for the path of an open file.
    fn fault(&self, fd: RawFd, is_it: impl Fn(&DiskFault) -> bool) -> bool {
        let Ok(file) = self.file(fd) else { return false };
        let faults = &self.nodes[file.node as usize].faults;
        faults.iter().any(|(prefix, fault)| file.path.starts_with(prefix) && is_it(fault))
    }

    fn check_alignment(&self, fd: RawFd, memory: &[u8], offset: u64) -> Outcome<()> {
        let alignment = self.settings.direct_alignment as usize;
        let is_direct = self.file(fd)?.flags & libc::O_DIRECT != 0;
        let parts = [memory.as_ptr() as usize, memory.len(), offset as usize];
        if is_direct && parts.iter().any(|part| !part.is_multiple_of(alignment)) {
            return Err(libc::EINVAL);
        }
        Ok(())
    }

    fn fill_stat(&self, node: u32, inode: u64, out: &mut libc::statx) -> Outcome<i32> {
        let found = self.nodes[node as usize].disk.inode(inode)?;
        out.stx_size = found.length();
        out.stx_blocks = found.length().div_ceil(4096) * 8;
        let mode = if found.is_dir { libc::S_IFDIR | 0o755 } else { libc::S_IFREG | 0o644 };
        out.stx_mode = u16::try_from(mode).expect("16 bits");
        out.stx_mtime.tv_sec = found.mtime_sec;
        out.stx_ino = inode;
        out.stx_dev_major = 1;
        out.stx_dev_minor = node;
        out.stx_dio_mem_align = self.settings.direct_alignment;
        out.stx_dio_offset_align = self.settings.direct_alignment;
        Ok(0)
    }

    pub(crate) fn try_lock(&mut self, fd: RawFd) -> io::Result<bool> {
        // A node is one process, and a process is never kept out by its own locks.
        self.file(fd).map(|_| true).map_err(io::Error::from_raw_os_error)
    }

    pub(crate) fn list(&mut self, node: u32, path: &Path) -> io::Result<Vec<DirEntry>> {
        let disk = &self.nodes[node as usize].disk;
        let entries = disk.find(path).and_then(|folder| disk.list(folder)).map_err(io::Error::from_raw_os_error)?;
        Ok(entries.into_iter().map(|(name, is_dir)| DirEntry { name, is_dir }).collect())
    }

    pub(crate) fn sync_file_system(&mut self, node: u32, path: &Path) -> io::Result<()> {
        let node = &mut self.nodes[node as usize];
        if node.faults.iter().any(|(prefix, fault)| path.starts_with(prefix) && *fault == DiskFault::Syncs) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        node.disk.find(path).map_err(io::Error::from_raw_os_error)?;
        node.disk.sync_all();
        Ok(())
    }

    pub(crate) fn space(&mut self, node: u32, path: &Path) -> io::Result<Space> {
        let disk = &self.nodes[node as usize].disk;
        disk.find(path).map_err(io::Error::from_raw_os_error)?;
        let free_bytes = disk.capacity_bytes.saturating_sub(disk.used_bytes());
        Ok(Space {
            total_bytes: disk.capacity_bytes,
            free_bytes,
            available_bytes: free_bytes,
            files_total: 1 << 20,
            files_free: 1 << 19,
        })
    }
}

fn count(bytes: usize) -> Outcome<i32> {
    i32::try_from(bytes).map_err(|_| libc::EINVAL)
}
