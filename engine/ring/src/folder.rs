//! Names: folders, renames, and small files as a whole. All paths are absolute.

use std::ffi::{CString, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::file::{OpenHow, Stat};
use crate::sys::calls;
use crate::sys::operation::paths;
use crate::{IoBuf, Ring};

/// An entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirEntry {
    pub name: OsString,
    pub is_dir: bool,
}

/// Space of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    pub total_bytes: u64,
    pub free_bytes: u64,
    /// Free for users without privileges.
    pub available_bytes: u64,
    pub files_total: u64,
    pub files_free: u64,
}

impl Ring {
    /// Renames, replacing what had the name. Durable after `sync_dir` of both folders.
    pub async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        paths::rename(&self.core, self.node, c_path(from)?, c_path(to)?).await.0.map(drop)
    }

    /// Removes the name of a file.
    pub async fn unlink(&self, path: &Path) -> io::Result<()> {
        paths::remove(&self.core, self.node, c_path(path)?, false).await.0.map(drop)
    }

    /// Makes a folder. Errors: `AlreadyExists` and as mkdir(2).
    pub async fn mkdir(&self, path: &Path, mode: u32) -> io::Result<()> {
        paths::make_folder(&self.core, self.node, c_path(path)?, mode).await.0.map(drop)
    }

    /// Removes an empty folder.
    pub async fn rmdir(&self, path: &Path) -> io::Result<()> {
        paths::remove(&self.core, self.node, c_path(path)?, true).await.0.map(drop)
    }

    /// What is in a folder, without `.` and `..`, in no particular order.
    pub async fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        if let Some(world) = &self.core.sim {
            return world.borrow_mut().list(self.node, path);
        }
        let path = path.to_owned();
        self.run_blocking(move || list_now(&path)).await
    }

    /// What is known of a file or folder.
    pub async fn stat(&self, path: &Path) -> io::Result<Stat> {
        let (result, (_, statx)) = paths::stat(&self.core, self.node, c_path(path)?).await;
        result.map(|_| Stat::new(&statx))
    }

    /// Space of the file system that holds `path`.
    pub async fn space(&self, path: &Path) -> io::Result<Space> {
        if let Some(world) = &self.core.sim {
            return world.borrow_mut().space(self.node, path);
        }
        let path = c_path(path)?;
        self.run_blocking(move || {
            let space = calls::space(&path)?;
            let bytes = |blocks: u64| blocks.saturating_mul(space.f_frsize);
            Ok(Space {
                total_bytes: bytes(space.f_blocks),
                free_bytes: bytes(space.f_bfree),
                available_bytes: bytes(space.f_bavail),
                files_total: space.f_files,
                files_free: space.f_ffree,
            })
        })
        .await
    }

    /// Makes the names in a folder durable.
    pub async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.open(path, OpenHow::read()).await?.sync().await
    }

    /// Puts everything that the file system around `path` holds in memory on its device: syncfs(2). Errors: also those
    /// of writes that happened in the background since the last time.
    pub async fn sync_file_system(&self, path: &Path) -> io::Result<()> {
        if let Some(world) = &self.core.sim {
            return world.borrow_mut().sync_file_system(self.node, path);
        }
        let path = path.to_owned();
        self.run_blocking(move || calls::sync_file_system(&std::fs::File::open(path)?)).await
    }

    /// The whole of a small file.
    pub async fn read_file(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.open(path, OpenHow::read()).await?;
        let size = usize::try_from(file.stat().await?.size).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut whole = Vec::new();
        // One byte more than the size, to see the end in the same read; files of /proc say 0 and have more.
        let mut wanted = (size + 1).max(4096);
        loop {
            let (result, part) = file.read_at(vec![0; wanted], whole.len() as u64).await;
            let bytes = result?;
            whole.extend_from_slice(&part[..bytes]);
            if bytes < wanted {
                return Ok(whole);
            }
            wanted = 64 << 10;
        }
    }

    /// Replaces a file as a whole: after a crash it has the old or the new contents. Written beside it under its name
    /// with `.new` at the end, synced, renamed, and the folder synced.
    pub async fn write_file_durably(&self, path: &Path, mode: u32, bytes: Vec<u8>) -> io::Result<()> {
        let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        name.push(".new");
        let beside: PathBuf = folder.join(name);
        let file = self.open(&beside, OpenHow::create(mode).truncate(true)).await?;
        if !bytes.as_bytes().is_empty() {
            file.write_all_at(bytes, 0).await.0?;
        }
        file.sync().await?;
        drop(file);
        self.rename(&beside, path).await?;
        self.sync_dir(folder).await
    }
}

fn list_now(path: &Path) -> io::Result<Vec<DirEntry>> {
    let entry = |entry: io::Result<std::fs::DirEntry>| -> io::Result<DirEntry> {
        let entry = entry?;
        Ok(DirEntry { name: entry.file_name(), is_dir: entry.file_type()?.is_dir() })
    };
    std::fs::read_dir(path)?.map(entry).collect()
}

pub(crate) fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}
