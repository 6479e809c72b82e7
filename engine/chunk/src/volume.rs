//! One data folder ("disk"): its lock, its identity, its sub-folders, its space, its errors.
//!
//! A volume knows no chunk; which file holds which chunk is the registry's business. What all cores must know of it is
//! in `SharedVolume`; each core has a `Volume` of its own beside that. Spec 21, 1, 4 and 8.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::ops::Deref;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ring::local::Semaphore;
use ring::{File, Instant, JoinHandle, OpenHow, Ring};
use wire::data::DiskStats;
use wire::limits::BLOCK_BYTES;
use wire::{ChunkId, MetaId, Version};

use crate::chunkdb::{FoundIndex, find_index};
use crate::cores::lock;
use crate::disk_stats::{DiskCounters, DiskHistory, no_stats, sum as sum_of_stats};
use crate::error::ChunkError;
use crate::folders::{FolderLine, SpaceLimit};
use crate::health::Health;
use crate::intents::IntentLog;
use crate::layout::{SUBFOLDERS, subfolder_name, temporary_name};
use crate::settings::{IoMode, Settings};
use crate::store::scratch::Shares;
use crate::store::sync::Checkpoints;

/// Errors that are kept per disk. Spec 21, 8.5.
const ERRORS_KEPT: usize = 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum VolumeState {
    Scanning,
    Ready,
    /// Too many errors, or its folder is gone: its chunks count as lost.
    Damaged,
    /// Taken out of the configuration: its chunks are being closed.
    Leaving,
    /// Not ours any more. Stays in the list of volumes, since chunks know their volume by its place there.
    Gone,
}

impl VolumeState {
    const ALL: [VolumeState; 5] =
        [VolumeState::Scanning, VolumeState::Ready, VolumeState::Damaged, VolumeState::Leaving, VolumeState::Gone];

    fn is_usable(self) -> bool {
        matches!(self, VolumeState::Scanning | VolumeState::Ready)
    }
}

/// What all cores know of a volume. Counts are sums over the cores.
pub(crate) struct SharedVolume {
    /// A reload changes its marks and its limit, never its path.
    line: Mutex<FolderLine>,
    pub(crate) folder: PathBuf,
    /// Device and inode of the folder, so that it is not used twice.
    pub(crate) identity: (u64, u64),
    pub(crate) is_read_only: bool,
    state: AtomicU8,
    /// Falls to `Buffered` when the file system refuses direct IO.
    is_as_configured: AtomicBool,
    configured_mode: IoMode,
    space: Mutex<VolumeSpace>,
    chunks: AtomicU32,
    blocks: AtomicU64,
    pub(crate) scanned_subfolders: AtomicU32,
    /// A crash left something to put right: nobody may use its chunks until that is done.
    pub(crate) recovering: AtomicBool,
    /// Size of the file system when it was first looked at.
    first_total_bytes: AtomicU64,
    /// What each core did.
    pub(crate) stats: Vec<Arc<DiskCounters>>,
    pub(crate) history: Mutex<DiskHistory>,
    errors: Mutex<VecDeque<DiskError>>,
    hangs: AtomicBool,
    /// A core has no log here, and can write nothing.
    lacks_log: AtomicBool,
    /// A write found no room: its space is to be looked at with the next beat.
    look_soon: AtomicBool,
    subfolders: Mutex<Subfolders>,
}

/// Files per sub-folder, and the one that takes the next.
struct Subfolders {
    files: [u32; SUBFOLDERS],
    current: u8,
}

/// A volume as one core has it: its part of the intent log, its work under way.
pub(crate) struct Volume {
    pub(crate) shared: Arc<SharedVolume>,
    /// None on read-only volumes, and where there was no room for one: then no block is written.
    pub(crate) intents: Option<Rc<IntentLog>>,
    /// A look at its space is under way: on a disk that hangs there must not be more and more of them.
    pub(crate) looking_at_space: Cell<bool>,
    /// A checkpoint is under way, or about to be. On the first core.
    pub(crate) syncing: Cell<bool>,
    /// One checkpoint at a time, and the number of the last one that succeeded. On the first core.
    pub(crate) checkpoint_turn: Semaphore,
    pub(crate) checkpoints: Cell<Checkpoints>,
    pub(crate) stats: Arc<DiskCounters>,
    pub(crate) health: Rc<Health>,
    /// What work on this disk may hold of the buffers that are kept aside.
    pub(crate) scratch_share: Semaphore,
    /// As `scratch_share`, of what is kept for tables and headers.
    pub(crate) table_share: Semaphore,
    pub(crate) truncations: Semaphore,
    /// Chunks that this core moves here from other disks.
    pub(crate) arrivals: Cell<u32>,
    /// Weighted round robin of new chunks: what this disk is owed. See `store::choose_volume`.
    pub(crate) credit: Cell<f64>,
    /// The log's tasks and the test; they end with the volume.
    pub(crate) tasks: RefCell<Vec<JoinHandle<()>>>,
    /// A scan is under way. On the first core, as all that follows.
    pub(crate) scanning: Cell<bool>,
    /// The list of chunks that the last clean stop left, until the scan takes it.
    pub(crate) index: RefCell<Option<FoundIndex>>,
    /// Keeps the folder ours.
    lock: RefCell<Option<File>>,
}

impl Deref for Volume {
    type Target = SharedVolume;

    fn deref(&self) -> &SharedVolume {
        &self.shared
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct VolumeSpace {
    pub(crate) total_bytes: u64,
    pub(crate) available_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskError {
    pub(crate) chunk: ChunkId,
    pub(crate) at: Instant,
    pub(crate) wall_sec: u32,
    /// EIO, EROFS, ENOENT: the disk itself fails.
    pub(crate) hard: bool,
}

/// Why a folder cannot be used.
#[derive(Debug)]
pub(crate) enum FolderError {
    /// Another process holds `.lock`.
    Locked,
    /// Another line names the same folder.
    Twice,
    /// It belongs to another file system.
    Foreign {
        expected: MetaId,
        found: MetaId,
    },
    Disk(io::Error),
}

impl std::fmt::Display for FolderError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FolderError::Locked => write!(f, "another process uses it (.lock is held)"),
            FolderError::Twice => write!(f, "another line names the same folder"),
            FolderError::Foreign { expected, found } => {
                write!(f, "it belongs to the file system with metaid {found}, and we to {expected}")
            }
            FolderError::Disk(error) => write!(f, "{error}"),
        }
    }
}

impl From<io::Error> for FolderError {
    fn from(error: io::Error) -> FolderError {
        FolderError::Disk(error)
    }
}

impl SharedVolume {
    pub(crate) fn state(&self) -> VolumeState {
        VolumeState::ALL[usize::from(self.state.load(Ordering::Acquire))]
    }

    /// It fails, and its chunks count as lost. False if it was given up, or is being taken out, already.
    pub(crate) fn give_up(&self) -> bool {
        let damaged = VolumeState::Damaged as u8;
        let lose = |state: u8| VolumeState::ALL[usize::from(state)].is_usable().then_some(damaged);
        self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, lose).is_ok()
    }

    /// It is taken out of the configuration. False if its chunks are lost, so that there is nothing to bring to rest.
    pub(crate) fn leave(&self) -> bool {
        let former = self.state.swap(VolumeState::Leaving as u8, Ordering::AcqRel);
        VolumeState::ALL[usize::from(former)].is_usable()
    }

    /// All chunks are listed. False if it was given up, or taken out, meanwhile.
    pub(crate) fn scan_has_ended(&self) -> bool {
        let (from, to) = (VolumeState::Scanning as u8, VolumeState::Ready as u8);
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    pub(crate) fn is_usable(&self) -> bool {
        self.state().is_usable()
    }

    /// Is it in the configuration?
    pub(crate) fn is_ours(&self) -> bool {
        !matches!(self.state(), VolumeState::Leaving | VolumeState::Gone)
    }

    pub(crate) fn is_recovering(&self) -> bool {
        self.recovering.load(Ordering::Acquire)
    }

    pub(crate) fn mode(&self) -> IoMode {
        if self.is_as_configured.load(Ordering::Relaxed) { self.configured_mode } else { IoMode::Buffered }
    }

    /// The file system refuses direct IO.
    pub(crate) fn fall_to_buffered(&self) {
        self.is_as_configured.store(false, Ordering::Relaxed);
    }

    pub(crate) fn line(&self) -> FolderLine {
        lock(&self.line).clone()
    }

    pub(crate) fn set_line(&self, line: FolderLine) {
        *lock(&self.line) = line;
    }

    pub(crate) fn path_is(&self, path: &str) -> bool {
        lock(&self.line).path == path
    }

    /// `*`: its chunks are to be made again elsewhere.
    pub(crate) fn is_marked(&self) -> bool {
        lock(&self.line).marked_for_removal
    }

    /// Must we know how much its chunks take?
    pub(crate) fn has_limit(&self) -> bool {
        matches!(lock(&self.line).limit, SpaceLimit::AtMost(_))
    }

    pub(crate) fn space(&self) -> VolumeSpace {
        let space = *lock(&self.space);
        if self.lacks_log.load(Ordering::Relaxed) { VolumeSpace { available_bytes: 0, ..space } } else { space }
    }

    pub(crate) fn chunks(&self) -> u32 {
        self.chunks.load(Ordering::Relaxed)
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed)
    }

    pub(crate) fn set_blocks(&self, blocks: u64) {
        self.blocks.store(blocks, Ordering::Relaxed);
    }

    pub(crate) fn add_blocks(&self, more: u64) {
        self.blocks.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn remove_blocks(&self, fewer: u64) {
        let subtract = |blocks: u64| Some(blocks.saturating_sub(fewer));
        let _ = self.blocks.fetch_update(Ordering::Relaxed, Ordering::Relaxed, subtract); // never refused
    }

    /// The folder of the next new file.
    pub(crate) fn pick_subfolder(&self, files_per_turn: u32) -> u8 {
        let Subfolders { files, current } = &mut *lock(&self.subfolders);
        let emptiest = (0..SUBFOLDERS).min_by_key(|at| files[*at]).expect("there are 256");
        if files[usize::from(*current)] >= files[emptiest].saturating_add(files_per_turn) {
            *current = emptiest as u8;
        }
        *current
    }

    pub(crate) fn count_file(&self, subfolder: u8, change: i32) {
        let mut subfolders = lock(&self.subfolders);
        let files = &mut subfolders.files[usize::from(subfolder)];
        *files = files.saturating_add_signed(change);
        self.chunks.store(self.chunks().saturating_add_signed(change), Ordering::Relaxed); // under the lock
    }

    pub(crate) fn chunk_path(&self, subfolder: u8, id: ChunkId, version: Version) -> PathBuf {
        self.folder.join(subfolder_name(subfolder)).join(crate::layout::chunk_name(id, version))
    }

    pub(crate) fn temporary_path(&self, id: ChunkId) -> PathBuf {
        self.folder.join(temporary_name(id))
    }

    /// Notes an error. True if the disk has now had too many: it is damaged. Spec 21, 8.5.
    pub(crate) fn note_error(&self, chunk: ChunkId, hard: bool, ring: &Ring, settings: &Settings) -> bool {
        let now = ring.now();
        let wall_sec = (ring.wall_micros() / 1_000_000) as u32;
        let mut errors = lock(&self.errors);
        errors.push_back(DiskError { chunk, at: now, wall_sec, hard });
        if errors.len() > ERRORS_KEPT {
            errors.pop_front();
        }
        // A chunk counts once: a client that asks for a bad one again and again does not make the disk bad.
        let recent = errors.iter().filter(|error| error.hard && now - error.at <= settings.disk_errors_period);
        let chunks: BTreeSet<ChunkId> = recent.map(|error| error.chunk).collect();
        chunks.len() > settings.disk_errors_tolerated as usize && self.is_usable()
    }

    /// It does not answer: nobody asks it for anything until it does. See `health`.
    pub(crate) fn hangs(&self) -> bool {
        self.hangs.load(Ordering::Relaxed)
    }

    /// By the first core. True if that is a change.
    pub(crate) fn set_hangs(&self, hangs: bool) -> bool {
        self.hangs.swap(hangs, Ordering::Relaxed) != hangs
    }

    /// A core found no room for its log here. What it cannot write to has no space for the master either.
    pub(crate) fn note_missing_log(&self) {
        self.lacks_log.store(true, Ordering::Relaxed);
    }

    /// A write found no room here. Returns whether that was known already.
    pub(crate) fn look_soon(&self) -> bool {
        self.look_soon.swap(true, Ordering::Relaxed)
    }

    /// Whether a write found no room since this was asked.
    pub(crate) fn take_look_soon(&self) -> bool {
        self.look_soon.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn last_error(&self) -> Option<DiskError> {
        lock(&self.errors).back().copied()
    }

    /// What all cores did since the start.
    pub(crate) fn stats_totals(&self) -> DiskStats {
        self.stats.iter().fold(no_stats(), |sum, of_core| sum_of_stats(sum, &of_core.totals()))
    }

    /// A minute has passed.
    pub(crate) fn end_minute(&self) {
        let maxima =
            self.stats.iter().fold(no_stats(), |sum, of_core| sum_of_stats(sum, &of_core.take_minute_maxima()));
        lock(&self.history).end_minute(self.stats_totals(), &maxima);
    }

    /// Asks the file system for its space. Errors: the disk's; one of our own if this is another file system than
    /// before (its size changed by more than a tenth, and the line has no `~`): what was mounted here is not any more.
    pub(crate) async fn refresh_space(&self, ring: &Ring, settings: &Settings) -> io::Result<()> {
        let space = ring.space(&self.folder).await?;
        let line = self.line();
        let first = self.first_total_bytes.load(Ordering::Relaxed);
        if first == 0 || line.any_size {
            self.first_total_bytes.store(space.total_bytes, Ordering::Relaxed);
        } else if space.total_bytes.abs_diff(first) > first / 10 {
            return Err(io::Error::other(format!(
                "the size of the file system changed from {first} to {} bytes (mark the line with ~ to allow that)",
                space.total_bytes
            )));
        }
        let volume_bytes =
            space.total_bytes - space.free_bytes.saturating_sub(space.available_bytes).min(space.total_bytes);
        let chunks = u64::from(self.chunks());
        let own_bytes = self.blocks() * u64::from(BLOCK_BYTES) + chunks * 8192;
        let usable =
            usable_space(line.limit, volume_bytes, space.available_bytes, own_bytes, settings.leave_space_bytes);
        let files = FreeFiles { total: space.files_total, free: space.files_free };
        let file_bytes = volume_bytes.saturating_sub(space.available_bytes) / chunks.max(1);
        *lock(&self.space) = within_files(usable, files, if chunks > 0 { file_bytes } else { 0 });
        Ok(())
    }
}

impl Volume {
    /// A core's part of a volume. `intents`: its part of the log; none if the volume is read-only.
    pub(crate) fn new(
        shared: Arc<SharedVolume>,
        core: usize,
        shares: &Shares,
        intents: Option<Rc<IntentLog>>,
    ) -> Volume {
        Volume {
            stats: shared.stats[core].clone(),
            shared,
            intents,
            looking_at_space: Cell::new(false),
            syncing: Cell::new(false),
            checkpoint_turn: Semaphore::new(1),
            checkpoints: Cell::default(),
            health: Rc::default(),
            scratch_share: Semaphore::new(shares.scratch_of_a_disk),
            table_share: Semaphore::new(shares.tables_of_a_disk),
            truncations: Semaphore::new(shares.truncations_of_a_disk),
            arrivals: Cell::new(0),
            credit: Cell::new(0.0),
            tasks: RefCell::default(),
            scanning: Cell::new(false),
            index: RefCell::default(),
            lock: RefCell::default(),
        }
    }

    /// The first core's part: what only it has.
    pub(crate) fn keep(&self, lock: File, index: Option<FoundIndex>) {
        self.lock.replace(Some(lock));
        self.index.replace(index);
    }

    /// Lets another process have the folder, when the first core does it last.
    pub(crate) fn release(&self) {
        self.shared.state.store(VolumeState::Gone as u8, Ordering::Release);
        self.tasks.borrow_mut().drain(..).for_each(|task| task.abort());
        self.index.take();
        self.lock.take();
    }

    /// The log, without which nothing may be written. Errors: `NoSpace` where there was no room for one; `Disk` on
    /// read-only volumes.
    pub(crate) fn log(&self) -> Result<&Rc<IntentLog>, ChunkError> {
        self.intents.as_ref().ok_or_else(|| match self.is_read_only {
            true => ChunkError::Disk(io::ErrorKind::ReadOnlyFilesystem.into()),
            false => ChunkError::NoSpace,
        })
    }

    /// May new chunks be put here?
    pub(crate) fn takes_chunks(&self) -> bool {
        let line = self.line();
        self.state() == VolumeState::Ready
            && self.intents.is_some()
            && !self.hangs()
            && !line.marked_for_removal
            && !line.drain
            && self.space().available_bytes > 0
    }
}

/// Files that a file system can have.
#[derive(Clone, Copy, Debug)]
struct FreeFiles {
    /// 0: it does not say.
    total: u64,
    free: u64,
}

/// What can be used where files of `file_bytes` each may run out before the space does. Pure. Spec 21, 8.2.
fn within_files(space: VolumeSpace, files: FreeFiles, file_bytes: u64) -> VolumeSpace {
    if files.total == 0 || file_bytes == 0 {
        return space;
    }
    let unreachable = space.available_bytes.saturating_sub(files.free.saturating_mul(file_bytes));
    VolumeSpace {
        total_bytes: space.total_bytes.saturating_sub(unreachable),
        available_bytes: space.available_bytes - unreachable,
    }
}

/// What of a volume may be used. Pure. Spec 21, 8.2.
fn usable_space(
    limit: SpaceLimit,
    volume_bytes: u64,
    free_bytes: u64,
    own_bytes: u64,
    leave_default_bytes: u64,
) -> VolumeSpace {
    let leaving =
        |bytes: u64| VolumeSpace { total_bytes: volume_bytes, available_bytes: free_bytes.saturating_sub(bytes) };
    match limit {
        SpaceLimit::Default => leaving(leave_default_bytes),
        SpaceLimit::Leave(bytes) => leaving(bytes),
        SpaceLimit::AtMost(bytes) if bytes == 0 || bytes > volume_bytes => leaving(leave_default_bytes),
        SpaceLimit::AtMost(bytes) => {
            VolumeSpace { total_bytes: bytes, available_bytes: bytes.saturating_sub(own_bytes).min(free_bytes) }
        }
    }
}

/// A folder that was taken.
pub(crate) struct Opened {
    pub(crate) shared: Arc<SharedVolume>,
    pub(crate) lock: File,
    /// The list of its chunks, if it has one that can be believed.
    pub(crate) index: Option<FoundIndex>,
    pub(crate) metaid: Option<MetaId>,
}

/// Takes a folder for so many cores: lock, identity, and the list of chunks if it has one. `metaid`: the file system we
/// belong to, if it is known. `taken`: device and inode of the folders that are in use.
pub(crate) async fn open_volume(
    ring: &Ring,
    settings: &Settings,
    line: &FolderLine,
    metaid: Option<MetaId>,
    taken: &[(u64, u64)],
    cores: usize,
) -> Result<Opened, FolderError> {
    let folder = line.folder();
    let of_folder = ring.stat(&folder).await?;
    let identity = (of_folder.device, of_folder.inode);
    if taken.iter().any(|(device, inode)| (*device, *inode) == identity) {
        return Err(FolderError::Twice);
    }
    if taken.iter().any(|(device, _)| *device == identity.0) {
        tracing::warn!("{}: on the same device as another folder", line.path);
    }
    let lock_how = OpenHow { read: true, write: true, create: true, truncate: true, mode: 0o640, ..OpenHow::default() };
    let (lock, is_read_only) = match ring.open(&folder.join(".lock"), lock_how).await {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem && line.marked_for_removal => {
            (ring.open(&folder.join(".lock"), OpenHow::read()).await?, true)
        }
        other => (other?, false),
    };
    if !is_read_only && !lock.try_lock()? {
        return Err(FolderError::Locked);
    }
    let found = read_metaid(ring, &folder).await?;
    if let (Some(expected), Some(found)) = (metaid, found)
        && expected != found
    {
        return Err(FolderError::Foreign { expected, found });
    }
    // Before the log, which may be a new file in the folder.
    let index = if is_read_only { None } else { find_index(ring, &folder, &line.path).await };
    let shared = SharedVolume {
        line: Mutex::new(line.clone()),
        folder,
        identity,
        is_read_only,
        state: AtomicU8::new(VolumeState::Scanning as u8),
        is_as_configured: AtomicBool::new(true),
        configured_mode: settings.io_mode,
        space: Mutex::default(),
        chunks: AtomicU32::new(0),
        blocks: AtomicU64::new(0),
        scanned_subfolders: AtomicU32::new(0),
        recovering: AtomicBool::new(false),
        first_total_bytes: AtomicU64::new(0),
        stats: (0..cores).map(|_| Arc::default()).collect(),
        history: Mutex::default(),
        errors: Mutex::default(),
        hangs: AtomicBool::new(false),
        lacks_log: AtomicBool::new(false),
        look_soon: AtomicBool::new(false),
        subfolders: Mutex::new(Subfolders { files: [0; SUBFOLDERS], current: 0 }),
    };
    Ok(Opened { shared: Arc::new(shared), lock, index, metaid: found })
}

/// None if the folder bears no identity. Spec 21, 4: a missing or short file means no check.
async fn read_metaid(ring: &Ring, folder: &std::path::Path) -> io::Result<Option<MetaId>> {
    match ring.read_file(&folder.join(".metaid")).await {
        Ok(bytes) => Ok(bytes.first_chunk().map(|word| MetaId(u64::from_be_bytes(*word)))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes the identity that the master confirmed.
pub(crate) async fn write_metaid(ring: &Ring, volume: &Volume, metaid: MetaId) -> io::Result<()> {
    let path = volume.folder.join(".metaid");
    if volume.is_read_only || read_metaid(ring, &volume.folder).await.ok().flatten() == Some(metaid) {
        return Ok(());
    }
    ring.write_file_durably(&path, 0o640, metaid.0.to_be_bytes().to_vec()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_follows_the_limit_of_the_line() {
        let space = |limit| {
            let space = usable_space(limit, 1000, 400, 150, 100);
            (space.total_bytes, space.available_bytes)
        };
        assert_eq!(space(SpaceLimit::Default), (1000, 300));
        assert_eq!(space(SpaceLimit::Leave(399)), (1000, 1));
        assert_eq!(space(SpaceLimit::Leave(500)), (1000, 0));
        assert_eq!(space(SpaceLimit::AtMost(0)), (1000, 300));
        assert_eq!(space(SpaceLimit::AtMost(2000)), (1000, 300));
        assert_eq!(space(SpaceLimit::AtMost(200)), (200, 50));
        assert_eq!(space(SpaceLimit::AtMost(900)), (900, 400), "no more than the volume has");
        assert_eq!(space(SpaceLimit::AtMost(100)), (100, 0));
    }
}
