//! One data folder ("disk"): its lock, its identity, its sub-folders, its space, its errors.
//!
//! A volume knows no chunk; which file holds which chunk is the registry's business. Spec 21, 1, 4 and 8.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use ring::{File, Instant, OpenHow, Ring};
use wire::limits::{BLOCK_BYTES, BLOCKS_PER_CHUNK};
use wire::{ChunkId, MetaId, Version};

use crate::folders::{FolderLine, SpaceLimit};
use crate::intents::IntentLog;
use crate::layout::{
    Form, HEADER_USED_BYTES, SUBFOLDERS, TEMPORARY_PREFIX, decode_header, parse_chunk_name, shape, subfolder_name,
    temporary_name,
};
use crate::settings::{IoMode, Settings};

/// Errors that are kept per disk. Spec 21, 8.5.
const ERRORS_KEPT: usize = 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VolumeState {
    Scanning,
    Ready,
    /// Too many errors, or its folder is gone: its chunks count as lost.
    Damaged,
}

pub(crate) struct Volume {
    pub(crate) line: FolderLine,
    pub(crate) folder: PathBuf,
    pub(crate) state: Cell<VolumeState>,
    /// Falls to `Buffered` when the file system refuses direct IO.
    pub(crate) mode: Cell<IoMode>,
    /// None on read-only volumes.
    pub(crate) intents: Option<Rc<IntentLog>>,
    pub(crate) space: Cell<VolumeSpace>,
    pub(crate) chunks: Cell<u32>,
    pub(crate) blocks: Cell<u64>,
    pub(crate) scanned_subfolders: Cell<u32>,
    pub(crate) stats: DiskCounters,
    errors: RefCell<VecDeque<DiskError>>,
    subfolder_files: RefCell<[u32; SUBFOLDERS]>,
    current_subfolder: Cell<u8>,
    files_per_subfolder_turn: u32,
    /// Weighted round robin of new chunks: what this disk is owed. See `store::choose_volume`.
    pub(crate) credit: Cell<f64>,
    /// Keeps the folder ours.
    _lock: File,
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

/// Counters of a disk since the start.
#[derive(Default)]
pub(crate) struct DiskCounters {
    pub(crate) read: OperationCounter,
    pub(crate) write: OperationCounter,
}

#[derive(Default)]
pub(crate) struct OperationCounter {
    pub(crate) bytes: Cell<u64>,
    pub(crate) count: Cell<u32>,
    pub(crate) micros: Cell<u64>,
    pub(crate) micros_max: Cell<u32>,
}

impl OperationCounter {
    pub(crate) fn add(&self, bytes: u64, took: Duration) {
        let micros = took.as_micros().min(u128::from(u32::MAX)) as u32;
        self.bytes.set(self.bytes.get() + bytes);
        self.count.set(self.count.get().wrapping_add(1));
        self.micros.set(self.micros.get() + u64::from(micros));
        self.micros_max.set(self.micros_max.get().max(micros));
    }
}

/// Why a folder cannot be used.
#[derive(Debug)]
pub(crate) enum FolderError {
    /// Another process holds `.lock`.
    Locked,
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

impl Volume {
    pub(crate) fn is_usable(&self) -> bool {
        self.state.get() != VolumeState::Damaged
    }

    /// May new chunks be put here?
    pub(crate) fn takes_chunks(&self) -> bool {
        self.state.get() == VolumeState::Ready
            && !self.line.marked_for_removal
            && !self.line.drain
            && self.space.get().available_bytes > 0
    }

    /// The folder of the next new file.
    pub(crate) fn pick_subfolder(&self) -> u8 {
        let files = self.subfolder_files.borrow();
        let emptiest = (0..SUBFOLDERS).min_by_key(|at| files[*at]).expect("there are 256");
        let current = self.current_subfolder.get();
        if files[usize::from(current)] >= files[emptiest].saturating_add(self.files_per_subfolder_turn) {
            self.current_subfolder.set(emptiest as u8);
        }
        self.current_subfolder.get()
    }

    pub(crate) fn count_file(&self, subfolder: u8, change: i32) {
        let files = &mut self.subfolder_files.borrow_mut()[usize::from(subfolder)];
        *files = files.saturating_add_signed(change);
        self.chunks.set(self.chunks.get().saturating_add_signed(change));
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
        let mut errors = self.errors.borrow_mut();
        errors.push_back(DiskError { chunk, at: now, wall_sec, hard });
        if errors.len() > ERRORS_KEPT {
            errors.pop_front();
        }
        let recent = errors.iter().filter(|error| error.hard && now - error.at <= settings.disk_errors_period).count();
        let too_many = recent > settings.disk_errors_tolerated as usize && self.is_usable();
        if too_many {
            self.state.set(VolumeState::Damaged);
        }
        too_many
    }

    pub(crate) fn last_error(&self) -> Option<DiskError> {
        self.errors.borrow().back().copied()
    }

    /// Asks the file system for its space. Errors: the disk's.
    pub(crate) async fn refresh_space(&self, ring: &Ring, settings: &Settings) -> io::Result<()> {
        let space = ring.space(&self.folder).await?;
        let volume_bytes =
            space.total_bytes - space.free_bytes.saturating_sub(space.available_bytes).min(space.total_bytes);
        let own_bytes = self.blocks.get() * u64::from(BLOCK_BYTES) + u64::from(self.chunks.get()) * 8192;
        self.space.set(usable_space(
            self.line.limit,
            volume_bytes,
            space.available_bytes,
            own_bytes,
            settings.leave_space_bytes,
        ));
        Ok(())
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

/// A chunk file found by a scan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) id: ChunkId,
    pub(crate) version: Version,
    pub(crate) subfolder: u8,
    /// 0 where nobody needs to know.
    pub(crate) blocks: u16,
}

/// Takes a folder: lock, identity, log. `metaid`: the file system we belong to, if it is known.
pub(crate) async fn open_volume(
    ring: &Ring,
    settings: &Settings,
    line: &FolderLine,
    metaid: Option<MetaId>,
) -> Result<(Volume, crate::store::Repairs, Option<MetaId>), FolderError> {
    let folder = line.folder();
    let lock_how = OpenHow { read: true, write: true, create: true, truncate: true, mode: 0o640, ..OpenHow::default() };
    let (lock, read_only) = match ring.open(&folder.join(".lock"), lock_how).await {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem && line.marked_for_removal => {
            (ring.open(&folder.join(".lock"), OpenHow::read()).await?, true)
        }
        other => (other?, false),
    };
    if !read_only && !lock.try_lock()? {
        return Err(FolderError::Locked);
    }
    let found = read_metaid(ring, &folder).await?;
    if let (Some(expected), Some(found)) = (metaid, found)
        && expected != found
    {
        return Err(FolderError::Foreign { expected, found });
    }
    let direct = settings.io_mode == IoMode::Direct;
    let (intents, repairs) = if read_only {
        (None, crate::store::Repairs::new())
    } else {
        let (log, repairs) =
            IntentLog::open(ring, &folder, direct, direct || settings.is_synced(), settings.file_mode).await?;
        (Some(log), repairs)
    };
    let volume = Volume {
        line: line.clone(),
        folder,
        state: Cell::new(VolumeState::Scanning),
        mode: Cell::new(settings.io_mode),
        intents,
        space: Cell::default(),
        chunks: Cell::new(0),
        blocks: Cell::new(0),
        scanned_subfolders: Cell::new(0),
        stats: DiskCounters::default(),
        errors: RefCell::default(),
        subfolder_files: RefCell::new([0; SUBFOLDERS]),
        current_subfolder: Cell::new(0),
        files_per_subfolder_turn: settings.files_per_subfolder_turn,
        credit: Cell::new(0.0),
        _lock: lock,
    };
    Ok((volume, repairs, found))
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
    if volume.intents.is_none() || read_metaid(ring, &volume.folder).await.ok().flatten() == Some(metaid) {
        return Ok(());
    }
    ring.write_file_durably(&path, 0o640, metaid.0.to_be_bytes().to_vec()).await
}

/// Lists all chunk files of a volume, by their names alone; with `check_sizes` (after a crash) files that no chunk can
/// have are left out; so they are where the size of all files matters. Makes missing sub-folders, moves files of the old one-digit layout to their place, removes
/// temporary copies that were left over. Spec 21, 7.
pub(crate) async fn scan(
    ring: &Ring,
    volume: &Volume,
    settings: &Settings,
    check_sizes: bool,
    mut found: impl FnMut(Found),
) -> io::Result<()> {
    if volume.intents.is_some() {
        prepare_folder(ring, volume, settings).await?;
    }
    for subfolder in 0..=u8::MAX {
        let path = volume.folder.join(subfolder_name(subfolder));
        let entries = match ring.list(&path).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound && volume.line.marked_for_removal => continue,
            other => other?,
        };
        for entry in entries {
            let Some((id, version)) = parse_chunk_name(entry.name.as_encoded_bytes()) else { continue };
            let mut blocks = Some(0);
            if check_sizes || matches!(volume.line.limit, SpaceLimit::AtMost(_)) {
                blocks = shape(ring.stat(&path.join(&entry.name)).await?.size).map(|(_, blocks)| blocks);
                if blocks.is_none() && check_sizes && volume.intents.is_some() {
                    blocks = mend_length(ring, &path.join(&entry.name)).await?;
                }
            }
            match blocks.filter(|_| id.0 != 0) {
                Some(blocks) => found(Found { id, version, subfolder, blocks }),
                None => tracing::warn!("{} cannot be a chunk, left alone", path.join(&entry.name).display()),
            }
        }
        volume.scanned_subfolders.set(u32::from(subfolder) + 1);
        ring.yield_now().await;
    }
    Ok(())
}

/// Cuts a file that a crash left with a part of a block at its end: it was being extended or trimmed there, and what
/// was acknowledged reaches no further than its whole blocks. Gives their number; None if this is no chunk file.
async fn mend_length(ring: &Ring, path: &std::path::Path) -> io::Result<Option<u16>> {
    let file = ring.open(path, OpenHow::read_write()).await?;
    let (result, front) = file.read_at(vec![0; Form::Aligned.header_bytes() as usize], 0).await;
    if result? < front.len() || decode_header(&front).is_none() {
        return Ok(None);
    }
    // Where the old layout has its table, which is never all zeros once there are blocks, the new one has zeros.
    let is_aligned = front[HEADER_USED_BYTES..].iter().all(|byte| *byte == 0);
    let form = if is_aligned { Form::Aligned } else { Form::Legacy };
    let Some(data_bytes) = file.stat().await?.size.checked_sub(form.data_offset()) else { return Ok(None) };
    let blocks = (data_bytes / u64::from(BLOCK_BYTES)).min(u64::from(BLOCKS_PER_CHUNK)) as u16;
    tracing::warn!("{}: ends inside a block after a crash, cut to {blocks} blocks", path.display());
    file.set_len(form.file_bytes(blocks)).await?;
    Ok(Some(blocks))
}

/// Sub-folders, left-overs, and the list of a stock server that our changes make untrue. Spec 21, 1 and 5.
async fn prepare_folder(ring: &Ring, volume: &Volume, settings: &Settings) -> io::Result<()> {
    let entries = ring.list(&volume.folder).await?;
    let mut present = [false; SUBFOLDERS];
    for entry in &entries {
        let name = entry.name.as_encoded_bytes();
        let path = volume.folder.join(&entry.name);
        if let Some(subfolder) = subfolder_of_name(name) {
            present[usize::from(subfolder)] = true;
        } else if name.starts_with(TEMPORARY_PREFIX.as_bytes()) || name == b".chunkdb" || name == b".tmp_chunkdb" {
            ring.unlink(&path).await?;
        }
    }
    if !volume.line.marked_for_removal {
        for subfolder in (0..=u8::MAX).filter(|subfolder| !present[usize::from(*subfolder)]) {
            ring.mkdir(&volume.folder.join(subfolder_name(subfolder)), settings.folder_mode).await?;
        }
        if present.contains(&false) {
            ring.sync_dir(&volume.folder).await?;
        }
    }
    for entry in entries.iter().filter(|entry| is_old_subfolder(entry.name.as_encoded_bytes())) {
        move_old_subfolder(ring, volume, &volume.folder.join(&entry.name)).await?;
    }
    Ok(())
}

fn subfolder_of_name(name: &[u8]) -> Option<u8> {
    (0..=u8::MAX).find(|subfolder| subfolder_name(*subfolder).as_bytes() == name)
}

fn is_old_subfolder(name: &[u8]) -> bool {
    matches!(name, [b'0'..=b'9' | b'A'..=b'F'])
}

async fn move_old_subfolder(ring: &Ring, volume: &Volume, old: &std::path::Path) -> io::Result<()> {
    for entry in ring.list(old).await? {
        if let Some((id, _)) = parse_chunk_name(entry.name.as_encoded_bytes()) {
            let folder = volume.folder.join(subfolder_name(id.0 as u8));
            ring.rename(&old.join(&entry.name), &folder.join(&entry.name)).await?;
        }
    }
    if let Err(error) = ring.rmdir(old).await {
        tracing::info!("{} of the old layout stays: {error}", old.display());
    }
    Ok(())
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

    #[test]
    fn only_the_names_of_subfolders_are_subfolders() {
        assert_eq!(subfolder_of_name(b"0F"), Some(15));
        assert_eq!(subfolder_of_name(b"0f"), None);
        assert_eq!(subfolder_of_name(b"F"), None);
        assert!(is_old_subfolder(b"F") && !is_old_subfolder(b"0F") && !is_old_subfolder(b"G"));
    }
}
