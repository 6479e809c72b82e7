//! A disk whose power can be cut: a block device that forgets what was not flushed, or a random part of it.
//!
//! A FUSE file system with one file, served by the test itself, lies under a loop device; the kernel's loop driver hands
//! a flush of the block device on as an `fsync` of that file. What is written is kept apart, by sectors, until the next
//! flush. At a power cut each sector keeps what it held at the last flush, or takes any of the contents that were
//! written to it since, each sector by itself: so writes come to the platter in any order, or not, and large ones are
//! torn. An ext4 lies on the device, and its journal has to live with that as on a real disk.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};

use crate::tree::Random;

/// The smallest thing that a disk writes whole.
const SECTOR_BYTES: usize = 512;
const FILE: INodeNo = INodeNo(2);
const FILE_NAME: &str = "disk";
/// What the kernel may remember of the file's attributes, which never change.
const FOREVER: Duration = Duration::from_secs(3600);

/// What becomes of writes that were not flushed when the power is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// None of them was done.
    All,
    /// Each sector by itself: one in so many keeps what it had, the others take one of the contents written since.
    Some { one_in: usize },
}

/// A disk with an ext4 on it, mounted at a path. Dropping it unmounts, and removes device and file system.
pub struct Disk {
    state: Arc<Mutex<Platter>>,
    /// Where the FUSE file system with the disk's file is mounted.
    below: PathBuf,
    device: Option<String>,
    mount_point: PathBuf,
    session: Option<fuser::BackgroundSession>,
    random: Random,
}

/// What a power cut found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Sectors that were written and not flushed.
    pub unflushed: usize,
    /// Those of them that kept what they held before.
    pub forgotten: usize,
    /// Flushes until then, since the last cut.
    pub flushes: usize,
}

struct Platter {
    bytes: u64,
    /// What is there for good. Absent sectors are zeros.
    durable: BTreeMap<u64, Box<[u8]>>,
    /// What was written to each sector since the last flush, oldest first.
    unflushed: BTreeMap<u64, Vec<Box<[u8]>>>,
    flushes: usize,
    /// The power is off: everything fails.
    is_off: bool,
}

impl Disk {
    /// A disk of so many bytes with an empty ext4, mounted at `mount_point`, which must be there.
    ///
    /// Errors: the machine has no FUSE, no loop devices, or no mkfs.ext4; which, in words.
    pub fn new(mount_point: &Path, bytes: u64, seed: u64) -> io::Result<Disk> {
        let mut below = mount_point.as_os_str().to_owned();
        below.push(".disk");
        let below = PathBuf::from(below);
        std::fs::create_dir_all(&below)?;
        let platter =
            Platter { bytes, durable: BTreeMap::new(), unflushed: BTreeMap::new(), flushes: 0, is_off: false };
        let state = Arc::new(Mutex::new(platter));
        let session = fuser::spawn_mount(Served(state.clone()), &below, &fuser::Config::default())?;
        let mount_point = mount_point.to_owned();
        let mut disk =
            Disk { state, below, device: None, mount_point, session: Some(session), random: Random::new(seed) };
        disk.attach()?;
        let device = disk.device.clone().expect("just attached");
        run("mkfs.ext4", &["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", &device])?;
        disk.mount()?;
        Ok(disk)
    }

    /// The power fails now. Nobody may use the disk any more: kill them first, or right after.
    pub fn cut(&mut self, loss: Loss) -> Cut {
        let mut state = lock(&self.state);
        state.is_off = true;
        state.lose(loss, &mut self.random)
    }

    /// The power is back: the file system is unmounted, which changes nothing any more, and mounted again with what is
    /// on the disk.
    pub fn restore(&mut self) -> io::Result<()> {
        self.release()?;
        lock(&self.state).is_off = false;
        self.attach()?;
        self.mount()
    }

    fn attach(&mut self) -> io::Result<()> {
        let file = self.below.join(FILE_NAME);
        let device = run("losetup", &["--find", "--show", &file.to_string_lossy()])?;
        self.device = Some(device.trim().to_owned());
        Ok(())
    }

    fn mount(&self) -> io::Result<()> {
        let device = self.device.as_deref().expect("it is attached");
        run("mount", &["-t", "ext4", "-o", "errors=continue", device, &self.mount_point.to_string_lossy()]).map(|_| ())
    }

    fn release(&mut self) -> io::Result<()> {
        // Processes that were killed may hold it for a moment yet.
        let mut tries = 0;
        while is_mounted(&self.mount_point) {
            match run("umount", &[&*self.mount_point.to_string_lossy()]) {
                Err(error) if tries == 100 => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
                Ok(_) => {}
            }
            tries += 1;
        }
        match self.device.take() {
            Some(device) => run("losetup", &["--detach", &device]).map(|_| ()),
            None => Ok(()),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.release().is_err() {
            Command::new("umount").arg("-l").arg(&self.mount_point).status().ok();
        }
        // The loop device may hold the file for a moment.
        for _ in 0..50 {
            if !is_mounted(&self.below) || Command::new("umount").arg(&self.below).status().is_ok_and(|s| s.success()) {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        drop(self.session.take());
    }
}

impl Platter {
    fn read(&self, offset: u64, size: usize) -> Vec<u8> {
        let end = self.bytes.min(offset + size as u64);
        let mut bytes = Vec::with_capacity(size);
        let mut at = offset;
        while at < end {
            let (sector, skip) = (at / SECTOR_BYTES as u64, (at % SECTOR_BYTES as u64) as usize);
            let take = (SECTOR_BYTES - skip).min((end - at) as usize);
            match self.sector(sector) {
                Some(found) => bytes.extend_from_slice(&found[skip..skip + take]),
                None => bytes.resize(bytes.len() + take, 0),
            }
            at += take as u64;
        }
        bytes
    }

    fn sector(&self, sector: u64) -> Option<&[u8]> {
        let newest = self.unflushed.get(&sector).and_then(|written| written.last());
        newest.or_else(|| self.durable.get(&sector)).map(|bytes| &**bytes)
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let (sector, skip) = (at / SECTOR_BYTES as u64, (at % SECTOR_BYTES as u64) as usize);
            let take = (SECTOR_BYTES - skip).min(data.len() - done);
            let mut bytes = self.sector(sector).map_or_else(|| vec![0; SECTOR_BYTES], <[u8]>::to_vec);
            bytes[skip..skip + take].copy_from_slice(&data[done..done + take]);
            self.unflushed.entry(sector).or_default().push(bytes.into());
            done += take;
        }
    }

    fn flush(&mut self) {
        self.flushes += 1;
        for (sector, mut written) in std::mem::take(&mut self.unflushed) {
            self.settle(sector, written.pop().expect("a sector is here because it was written"));
        }
    }

    fn settle(&mut self, sector: u64, bytes: Box<[u8]>) {
        if bytes.iter().all(|byte| *byte == 0) {
            self.durable.remove(&sector);
        } else {
            self.durable.insert(sector, bytes);
        }
    }

    fn lose(&mut self, loss: Loss, random: &mut Random) -> Cut {
        let mut cut = Cut { unflushed: self.unflushed.len(), forgotten: 0, flushes: std::mem::take(&mut self.flushes) };
        for (sector, mut written) in std::mem::take(&mut self.unflushed) {
            let is_forgotten = match loss {
                Loss::All => true,
                Loss::Some { one_in } => random.below(one_in) == 0,
            };
            if is_forgotten {
                cut.forgotten += 1;
            } else {
                let which = random.below(written.len());
                self.settle(sector, written.swap_remove(which));
            }
        }
        cut
    }
}

/// The file system of one file.
struct Served(Arc<Mutex<Platter>>);

impl Served {
    fn file(&self) -> FileAttr {
        attributes(FILE, FileType::RegularFile, lock(&self.0).bytes)
    }
}

impl Filesystem for Served {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == FILE_NAME {
            reply.entry(&FOREVER, &self.file(), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match inode {
            FILE => reply.attr(&FOREVER, &self.file()),
            _ => reply.attr(&FOREVER, &attributes(INodeNo::ROOT, FileType::Directory, 0)),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Every write of the device comes here before it is answered, and nothing is remembered above.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = lock(&self.0);
        if state.is_off {
            return reply.error(Errno::EIO);
        }
        reply.data(&state.read(offset, size as usize));
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = lock(&self.0);
        if state.is_off {
            return reply.error(Errno::EIO);
        }
        state.write(offset, data);
        reply.written(data.len() as u32);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = lock(&self.0);
        if state.is_off {
            return reply.error(Errno::EIO);
        }
        state.flush();
        reply.ok();
    }
}

fn attributes(ino: INodeNo, kind: FileType, size: u64) -> FileAttr {
    FileAttr {
        ino,
        size,
        blocks: size / 512,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: 0o700,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn run(program: &str, arguments: &[&str]) -> io::Result<String> {
    let output = Command::new(program).args(arguments).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program} {}: {}", arguments.join(" "), why.trim())))
}

fn is_mounted(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let wanted = path.to_string_lossy();
    mounts.lines().any(|line| line.split_whitespace().nth(1) == Some(&*wanted))
}

fn lock(state: &Mutex<Platter>) -> MutexGuard<'_, Platter> {
    state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::need::{Need, have};

    const NEEDS: &[Need] = &[Need::Root, Need::Fuse, Need::Program("mkfs.ext4"), Need::Program("losetup")];

    #[test]
    fn a_power_cut_takes_what_was_not_synced_and_leaves_what_was() {
        if !have("a_power_cut_takes_what_was_not_synced_and_leaves_what_was", NEEDS) {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let mut disk = Disk::new(folder.path(), 32 << 20, 1).unwrap();
        let (synced, other) = (folder.path().join("synced"), folder.path().join("other"));
        for loss in [Loss::All, Loss::Some { one_in: 2 }] {
            std::fs::write(&synced, vec![7; 300_000]).unwrap();
            std::fs::File::open(&synced).unwrap().sync_all().unwrap();
            std::fs::File::open(folder.path()).unwrap().sync_all().unwrap();
            std::fs::write(&other, vec![9; 300_000]).unwrap();
            let cut = disk.cut(loss);
            assert!(cut.flushes > 0, "the loop device hands no flush on: {cut:?}");
            disk.restore().unwrap();
            assert_eq!(std::fs::read(&synced).unwrap(), vec![7; 300_000], "{loss:?}");
            assert!(!other.exists() || std::fs::read(&other).unwrap().len() < 300_000, "nothing was lost: {loss:?}");
        }
    }

    #[test]
    fn a_sector_keeps_what_it_had_or_takes_any_content_that_was_written_since() {
        let empty =
            || Platter { bytes: 4096, durable: BTreeMap::new(), unflushed: BTreeMap::new(), flushes: 0, is_off: false };
        let mut random = Random::new(1);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let mut platter = empty();
            platter.write(0, &[1; 1024]);
            platter.flush();
            platter.write(100, &[2; 1024]);
            platter.write(100, &[3; 1024]);
            platter.lose(Loss::Some { one_in: 3 }, &mut random);
            let found = platter.read(0, 2048);
            assert_eq!((found[0], found[1500]), (1, 0));
            seen.insert((found[200], found[600], found[1100]));
        }
        assert!(seen.len() > 20, "too few of the 27 outcomes: {seen:?}");
    }
}
