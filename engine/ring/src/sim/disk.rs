//! A disk that remembers what was synced.
//!
//! Contents: each file has its present bytes and, for every sector that was written since the last sync, what the
//! sector held before. A crash decides sector by sector which of the two survives, so writes are lost, kept or torn.
//! Names: changes are applied in order, and become durable in order: by syncing a folder that they touch, or after
//! some time. A crash keeps a prefix of them, as journaling file systems do; a synced file whose name was not synced
//! may be gone.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::path::{Component, Path};

use super::random::Dice;

/// What a crash keeps or loses as a whole.
pub(super) const SECTOR_BYTES: u64 = 512;
const ROOT: u64 = 1;
/// Longest file; what the simulated memory can bear.
const FILE_BYTES_MAX: u64 = 1 << 32;

/// Result of a disk operation: an errno.
pub(super) type Outcome<T> = Result<T, i32>;

#[derive(Default, Clone)]
pub(super) struct Disk {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    names: Names,
    durable_names: Names,
    /// Changes of names that a crash may undo, oldest first, each with its time.
    pending: VecDeque<(u64, Change)>,
    used_bytes: u64,
    pub(super) capacity_bytes: u64,
}

/// Folder and name to inode.
type Names = BTreeMap<(u64, OsString), u64>;
/// What names are to become, all at once.
type Change = Vec<((u64, OsString), Option<u64>)>;

#[derive(Clone)]
pub(super) struct Inode {
    pub(super) is_dir: bool,
    bytes: Vec<u8>,
    /// Former contents of sectors that were written since the last sync.
    before: BTreeMap<u64, Vec<u8>>,
    durable_length: u64,
    pub(super) mtime_sec: i64,
    /// Handles that are open on it.
    opened: u32,
}

impl Inode {
    fn new(is_dir: bool) -> Inode {
        Inode { is_dir, bytes: Vec::new(), before: BTreeMap::new(), durable_length: 0, mtime_sec: 0, opened: 0 }
    }

    pub(super) fn length(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Keeps the former contents of the sectors in a range.
    fn remember(&mut self, start: u64, end: u64) {
        for sector in start / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES) {
            let bytes = &self.bytes;
            self.before.entry(sector).or_insert_with(|| {
                let from = (sector * SECTOR_BYTES).min(bytes.len() as u64) as usize;
                let to = ((sector + 1) * SECTOR_BYTES).min(bytes.len() as u64) as usize;
                bytes[from..to].to_vec()
            });
        }
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        self.remember(offset, end);
        if end > self.length() {
            self.bytes.resize(end as usize, 0);
        }
        self.bytes[offset as usize..end as usize].copy_from_slice(bytes);
    }

    fn make_durable(&mut self) {
        self.before.clear();
        self.durable_length = self.length();
    }

    /// Decides what of the unsynced writes survives.
    fn crash(&mut self, dice: &mut Dice) {
        let length = match dice.below(3) {
            0 => self.durable_length,
            1 => self.length(),
            _ => {
                let (low, high) = (self.durable_length.min(self.length()), self.durable_length.max(self.length()));
                low + dice.below(high - low + 1)
            }
        };
        let lost_percent = [0, 50, 100][dice.below(3) as usize];
        let before = std::mem::take(&mut self.before);
        self.bytes.resize((length.max(self.length())) as usize, 0);
        for (sector, old) in before {
            if dice.chance(lost_percent) {
                let from = (sector * SECTOR_BYTES) as usize;
                let to = (from + SECTOR_BYTES as usize).min(self.bytes.len());
                if from < to {
                    let mut old = old;
                    old.resize(to - from, 0);
                    self.bytes[from..to].copy_from_slice(&old);
                }
            }
        }
        self.bytes.resize(length as usize, 0);
        self.durable_length = length;
        self.opened = 0;
    }
}

impl Disk {
    pub(super) fn new(capacity_bytes: u64) -> Disk {
        let mut disk = Disk { next_inode: ROOT + 1, capacity_bytes, ..Disk::default() };
        disk.inodes.insert(ROOT, Inode::new(true));
        disk
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    pub(super) fn inode(&self, inode: u64) -> Outcome<&Inode> {
        self.inodes.get(&inode).ok_or(libc::ESTALE)
    }

    /// The inode that a path names.
    pub(super) fn find(&self, path: &Path) -> Outcome<u64> {
        if !path.is_absolute() {
            return Err(libc::EINVAL);
        }
        let mut inode = ROOT;
        for part in path.components() {
            match part {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(name) => inode = self.entry(inode, name)?,
                Component::ParentDir | Component::Prefix(_) => return Err(libc::EINVAL),
            }
        }
        Ok(inode)
    }

    fn entry(&self, folder: u64, name: &OsStr) -> Outcome<u64> {
        if !self.inode(folder)?.is_dir {
            return Err(libc::ENOTDIR);
        }
        self.names.get(&(folder, name.to_owned())).copied().ok_or(libc::ENOENT)
    }

    /// The folder that holds a path's last name, and that name.
    fn place(&self, path: &Path) -> Outcome<(u64, OsString)> {
        let name = path.file_name().ok_or(libc::EEXIST)?;
        let folder = self.find(path.parent().ok_or(libc::EINVAL)?)?;
        if !self.inode(folder)?.is_dir {
            return Err(libc::ENOTDIR);
        }
        if name.len() > 255 {
            return Err(libc::ENAMETOOLONG);
        }
        Ok((folder, name.to_owned()))
    }

    fn change(&mut self, now: u64, change: Change) {
        let mut freed = Vec::new();
        for (place, inode) in &change {
            freed.extend(match inode {
                Some(inode) => self.names.insert(place.clone(), *inode),
                None => self.names.remove(place),
            });
        }
        self.pending.push_back((now, change));
        for inode in freed {
            self.forget_if_unused(inode);
        }
    }

    /// Frees the space of a file that has neither a name nor a handle. Its inode stays while a crash may bring its
    /// name back.
    fn forget_if_unused(&mut self, inode: u64) {
        let is_named = inode == ROOT
            || self.names.values().any(|named| *named == inode)
            || self.durable_names.values().any(|named| *named == inode)
            || self.pending.iter().any(|(_, change)| change.iter().any(|(_, named)| *named == Some(inode)));
        if !is_named
            && let Some(found) = self.inodes.get(&inode)
            && found.opened == 0
        {
            self.used_bytes = self.used_bytes.saturating_sub(found.length());
            self.inodes.remove(&inode);
        }
    }

    pub(super) fn list(&self, folder: u64) -> Outcome<Vec<(OsString, bool)>> {
        if !self.inode(folder)?.is_dir {
            return Err(libc::ENOTDIR);
        }
        let entries = self.names.range((folder, OsString::new())..(folder + 1, OsString::new()));
        entries.map(|((_, name), inode)| Ok((name.clone(), self.inode(*inode)?.is_dir))).collect()
    }

    /// Opens a path; `flags` as open(2).
    pub(super) fn open(&mut self, now: u64, path: &Path, flags: i32) -> Outcome<u64> {
        let inode = match self.find(path) {
            Ok(_) if flags & libc::O_CREAT != 0 && flags & libc::O_EXCL != 0 => return Err(libc::EEXIST),
            Ok(inode) => inode,
            Err(libc::ENOENT) if flags & libc::O_CREAT != 0 => {
                let place = self.place(path)?;
                self.create(now, place, false)
            }
            Err(error) => return Err(error),
        };
        let found = self.inodes.get_mut(&inode).expect("just found");
        if found.is_dir && flags & libc::O_ACCMODE != libc::O_RDONLY {
            return Err(libc::EISDIR);
        }
        found.opened += 1;
        if flags & libc::O_TRUNC != 0 {
            self.set_length(inode, 0)?;
        }
        Ok(inode)
    }

    pub(super) fn close(&mut self, inode: u64) {
        if let Some(found) = self.inodes.get_mut(&inode) {
            found.opened = found.opened.saturating_sub(1);
            self.forget_if_unused(inode);
        }
    }

    fn create(&mut self, now: u64, place: (u64, OsString), is_dir: bool) -> u64 {
        let inode = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(inode, Inode::new(is_dir));
        self.change(now, vec![(place, Some(inode))]);
        inode
    }

    pub(super) fn make_folder(&mut self, now: u64, path: &Path) -> Outcome<()> {
        if self.find(path).is_ok() {
            return Err(libc::EEXIST);
        }
        let place = self.place(path)?;
        self.create(now, place, true);
        Ok(())
    }

    pub(super) fn remove(&mut self, now: u64, path: &Path, folder: bool) -> Outcome<()> {
        let inode = self.find(path)?;
        match (self.inode(inode)?.is_dir, folder) {
            (true, false) => return Err(libc::EISDIR),
            (false, true) => return Err(libc::ENOTDIR),
            (true, true) if !self.list(inode)?.is_empty() => return Err(libc::ENOTEMPTY),
            _ => {}
        }
        let place = self.place(path)?;
        self.change(now, vec![(place, None)]);
        Ok(())
    }

    pub(super) fn rename(&mut self, now: u64, from: &Path, to: &Path) -> Outcome<()> {
        let inode = self.find(from)?;
        let source = self.place(from)?;
        let target = self.place(to)?;
        if let Ok(replaced) = self.find(to) {
            if replaced == inode {
                return Ok(());
            }
            match (self.inode(inode)?.is_dir, self.inode(replaced)?.is_dir) {
                (true, false) => return Err(libc::ENOTDIR),
                (false, true) => return Err(libc::EISDIR),
                (true, true) if !self.list(replaced)?.is_empty() => return Err(libc::ENOTEMPTY),
                _ => {}
            }
        }
        self.change(now, vec![(source, None), (target, Some(inode))]);
        Ok(())
    }

    pub(super) fn read(&self, inode: u64, offset: u64, into: &mut [u8]) -> Outcome<usize> {
        let found = self.inode(inode)?;
        if found.is_dir {
            return Err(libc::EISDIR);
        }
        let start = offset.min(found.length()) as usize;
        let count = into.len().min(found.bytes.len() - start);
        into[..count].copy_from_slice(&found.bytes[start..start + count]);
        Ok(count)
    }

    pub(super) fn write(&mut self, inode: u64, offset: u64, bytes: &[u8], durable: bool) -> Outcome<usize> {
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= FILE_BYTES_MAX).ok_or(libc::EFBIG)?;
        self.reserve(inode, end)?;
        let found = self.inodes.get_mut(&inode).expect("reserve has found it");
        if durable {
            // As if this write alone was synced: what else is unsynced stays so.
            let mut before = std::mem::take(&mut found.before);
            found.put(offset, bytes);
            found.before.clear();
            for sector in offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES) {
                before.remove(&sector);
            }
            found.before = before;
            found.durable_length = found.durable_length.max(end);
        } else {
            found.put(offset, bytes);
        }
        Ok(bytes.len())
    }

    /// A crash interrupts a write: any of its sectors may have got there.
    pub(super) fn tear_write(&mut self, inode: u64, offset: u64, bytes: &[u8], dice: &mut Dice) {
        if self.reserve(inode, offset.saturating_add(bytes.len() as u64)).is_err() {
            return;
        }
        let found = self.inodes.get_mut(&inode).expect("reserve has found it");
        let mut at = 0;
        while at < bytes.len() {
            let into_sector = ((offset + at as u64) % SECTOR_BYTES) as usize;
            let end = bytes.len().min(at + SECTOR_BYTES as usize - into_sector);
            if dice.chance(50) {
                found.put(offset + at as u64, &bytes[at..end]);
            }
            at = end;
        }
    }

    /// Charges the space for a file that is to reach `end`.
    fn reserve(&mut self, inode: u64, end: u64) -> Outcome<()> {
        let found = self.inodes.get(&inode).ok_or(libc::ESTALE)?;
        if found.is_dir {
            return Err(libc::EISDIR);
        }
        let growth = end.saturating_sub(found.length());
        if growth > 0 && self.used_bytes.saturating_add(growth) > self.capacity_bytes {
            return Err(libc::ENOSPC);
        }
        self.used_bytes += growth;
        Ok(())
    }

    pub(super) fn set_length(&mut self, inode: u64, length: u64) -> Outcome<()> {
        if length > FILE_BYTES_MAX {
            return Err(libc::EFBIG);
        }
        self.reserve(inode, length)?;
        let found = self.inodes.get_mut(&inode).expect("reserve has found it");
        let old = found.length();
        found.remember(length.min(old), length.max(old));
        found.bytes.resize(length as usize, 0);
        self.used_bytes = self.used_bytes.saturating_sub(old.saturating_sub(length));
        Ok(())
    }

    pub(super) fn allocate(&mut self, inode: u64, offset: u64, length: u64) -> Outcome<()> {
        let end = offset.checked_add(length).ok_or(libc::EFBIG)?;
        let present = self.inode(inode)?.length();
        if end > present { self.set_length(inode, end) } else { Ok(()) }
    }

    /// Makes a file's contents or a folder's names durable.
    pub(super) fn sync(&mut self, inode: u64) -> Outcome<()> {
        let found = self.inodes.get_mut(&inode).ok_or(libc::ESTALE)?;
        if !found.is_dir {
            found.make_durable();
            return Ok(());
        }
        let touches = |change: &Change| change.iter().any(|((folder, _), _)| *folder == inode);
        if let Some(last) = self.pending.iter().rposition(|(_, change)| touches(change)) {
            self.settle(last + 1);
        }
        Ok(())
    }

    /// Makes all contents and all names durable.
    pub(super) fn sync_all(&mut self) {
        for inode in self.inodes.values_mut().filter(|inode| !inode.is_dir) {
            inode.make_durable();
        }
        self.settle(self.pending.len());
    }

    /// Makes name changes durable that were made until `time`.
    pub(super) fn settle_until(&mut self, time: u64) {
        let count = self.pending.iter().take_while(|(at, _)| *at <= time).count();
        self.settle(count);
    }

    fn settle(&mut self, count: usize) {
        let settled: Vec<_> = self.pending.drain(..count).collect();
        let mut freed = Vec::new();
        for (place, inode) in settled.into_iter().flat_map(|(_, change)| change) {
            let former = match inode {
                Some(inode) => self.durable_names.insert(place, inode),
                None => self.durable_names.remove(&place),
            };
            freed.extend(former);
        }
        for inode in freed {
            self.forget_if_unused(inode);
        }
    }

    /// The power fails.
    pub(super) fn crash(&mut self, dice: &mut Dice) {
        let kept = dice.below(self.pending.len() as u64 + 1) as usize;
        self.settle(kept);
        self.pending.clear();
        self.names = self.durable_names.clone();
        for inode in self.inodes.values_mut() {
            if inode.is_dir {
                inode.opened = 0;
            } else {
                inode.crash(dice);
            }
        }
        let named: std::collections::BTreeSet<u64> = self.names.values().copied().chain([ROOT]).collect();
        self.inodes.retain(|inode, _| named.contains(inode));
        self.used_bytes = self.inodes.values().map(Inode::length).sum();
    }

    /// The medium alters bytes, synced or not.
    pub(super) fn rot(&mut self, inode: u64, offset: u64, mask: u8) -> Outcome<()> {
        let found = self.inodes.get_mut(&inode).ok_or(libc::ESTALE)?;
        let byte = found.bytes.get_mut(offset as usize).ok_or(libc::EINVAL)?;
        *byte ^= mask;
        Ok(())
    }

    pub(super) fn contents(&self, inode: u64) -> Outcome<Vec<u8>> {
        Ok(self.inode(inode)?.bytes.clone())
    }

    pub(super) fn touch(&mut self, inode: u64, mtime_sec: i64) {
        if let Some(found) = self.inodes.get_mut(&inode) {
            found.mtime_sec = mtime_sec;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk_with(bytes: &[u8]) -> (Disk, u64) {
        let mut disk = Disk::new(1 << 20);
        let inode = disk.open(0, Path::new("/file"), libc::O_CREAT | libc::O_RDWR).unwrap();
        disk.write(inode, 0, bytes, false).unwrap();
        disk.sync(inode).unwrap();
        disk.sync(ROOT).unwrap();
        (disk, inode)
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_decides_the_rest_by_sector() {
        let mut outcomes = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let (mut disk, inode) = disk_with(&[1; 2048]);
            disk.write(inode, 512, &[2; 1024], false).unwrap();
            disk.crash(&mut Dice::new(seed));
            let bytes = disk.contents(disk.find(Path::new("/file")).unwrap()).unwrap();
            assert_eq!(bytes.len(), 2048);
            assert_eq!((bytes[0], bytes[511], bytes[1536], bytes[2047]), (1, 1, 1, 1));
            for sector in bytes.chunks(512) {
                assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is never torn");
            }
            outcomes.insert((bytes[512], bytes[1024]));
        }
        assert_eq!(outcomes.len(), 4, "all four outcomes were seen: {outcomes:?}");
    }

    #[test]
    fn a_durable_write_survives_and_does_not_save_its_neighbours() {
        let mut neighbour_was_lost = false;
        for seed in 0..100 {
            let (mut disk, inode) = disk_with(&[1; 1024]);
            disk.write(inode, 0, &[2; 512], false).unwrap();
            disk.write(inode, 512, &[3; 1024], true).unwrap();
            disk.crash(&mut Dice::new(seed));
            let bytes = disk.contents(inode).unwrap();
            assert_eq!(bytes[512..], [3; 1024]);
            neighbour_was_lost |= bytes[0] == 1;
        }
        assert!(neighbour_was_lost);
    }

    #[test]
    fn names_survive_in_order_and_for_sure_once_the_folder_is_synced() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let (mut disk, _) = disk_with(b"x");
            disk.rename(1, Path::new("/file"), Path::new("/a")).unwrap();
            disk.make_folder(2, Path::new("/b")).unwrap();
            disk.crash(&mut Dice::new(seed));
            let names: Vec<_> = disk.list(ROOT).unwrap().into_iter().map(|(name, _)| name).collect();
            seen.insert(names);
        }
        let expected: [&[&str]; 3] = [&["a"], &["a", "b"], &["file"]];
        assert!(seen.iter().eq(expected.iter()), "{seen:?}");
        let (mut disk, _) = disk_with(b"x");
        disk.rename(1, Path::new("/file"), Path::new("/a")).unwrap();
        disk.sync(ROOT).unwrap();
        disk.crash(&mut Dice::new(1));
        assert!(disk.find(Path::new("/a")).is_ok() && disk.find(Path::new("/file")).is_err());
    }

    #[test]
    fn a_full_disk_says_so_and_takes_again_what_was_freed() {
        let mut disk = Disk::new(1000);
        let inode = disk.open(0, Path::new("/file"), libc::O_CREAT | libc::O_RDWR).unwrap();
        disk.write(inode, 0, &[1; 900], false).unwrap();
        assert_eq!(disk.write(inode, 900, &[1; 101], false), Err(libc::ENOSPC));
        disk.set_length(inode, 100).unwrap();
        disk.write(inode, 100, &[1; 900], false).unwrap();
        disk.close(inode);
        disk.remove(1, Path::new("/file"), false).unwrap();
        disk.sync(ROOT).unwrap();
        assert_eq!(disk.used_bytes(), 0);
    }
}
