//! The beginning and the end of a store, and what goes on in the background between.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use wire::data::{DiskEntry, DiskStats};
use wire::{ChunkId, MetaId, ServerSpace, Version};

use super::{Duplicate, Store};
use crate::error::ChunkError;
use crate::folders::FolderLine;
use crate::layout::BlockIndex;
use crate::registry::{Place, Verdict};
use crate::volume::{Found, OperationCounter, Volume, VolumeState, open_volume, scan, write_metaid};

/// How often the background looks at everything.
const BEAT: Duration = Duration::from_secs(1);
/// Beats between two checkpoints.
const CHECKPOINT_BEATS: u32 = 10;
/// Beats between two looks at the disks' space. Spec 21, 8.2.
const SPACE_BEATS: u32 = 60;

/// Why a store cannot begin.
#[derive(Debug)]
pub(crate) struct FoldersUnusable(pub(crate) String);

impl Store {
    /// Takes all folders, lists their chunks, puts right what a crash left. `metaid`: the file system we belong to, if
    /// it is known. Gives the one that is known now.
    ///
    /// Errors: a folder that cannot be used, unless the settings allow that; two folders of different file systems.
    pub(crate) async fn start(self: &Rc<Self>, metaid: Option<MetaId>) -> Result<Option<MetaId>, FoldersUnusable> {
        self.scratch.fill().await;
        let mut metaid = metaid;
        let mut devices = BTreeSet::new();
        let settings = self.settings.clone();
        for line in &settings.folders {
            if let Ok(stat) = self.ring.stat(&line.folder()).await
                && !devices.insert(stat.device)
            {
                tracing::warn!("{}: on the same device as another folder", line.path);
            }
            match self.start_volume(line, metaid).await {
                Ok(found) => metaid = metaid.or(found),
                Err(why) if settings.start_with_invalid_disks => tracing::error!("{}: not used: {why}", line.path),
                Err(why) => return Err(FoldersUnusable(format!("{}: {why}", line.path))),
            }
        }
        Ok(metaid)
    }

    async fn start_volume(
        self: &Rc<Self>,
        line: &FolderLine,
        metaid: Option<MetaId>,
    ) -> Result<Option<MetaId>, String> {
        let opened = open_volume(&self.ring, &self.settings, line, metaid).await;
        let (volume, repairs, found) = opened.map_err(|error| error.to_string())?;
        let volume = Rc::new(volume);
        let index = self.volumes.borrow().len() as u16;
        self.volumes.borrow_mut().push(volume.clone());
        if let Some(log) = &volume.intents {
            self.ring.spawn(log.clone().commit_loop());
            self.ring.spawn(log.clone().follow_loop());
            self.ring.spawn(self.clone().relieve_log(volume.clone()));
        }
        let after_crash = !repairs.is_empty();
        let taken =
            scan(&self.ring, &volume, &self.settings, after_crash, |found| self.take_found(index, &volume, found));
        taken.await.map_err(|error| error.to_string())?;
        volume.state.set(VolumeState::Ready);
        self.load_torn(index, &volume).await.map_err(|error| error.to_string())?;
        if after_crash {
            let done = self.recover(index, repairs).await;
            tracing::warn!("{}: put right after a crash: {done:?}", volume.folder.display());
            if let Some(log) = &volume.intents {
                log.finish().await;
            }
        }
        volume.refresh_space(&self.ring, &self.settings).await.map_err(|error| error.to_string())?;
        tracing::info!("{}: {} chunks", volume.folder.display(), volume.chunks.get());
        Ok(found)
    }

    fn take_found(&self, index: u16, volume: &Volume, found: Found) {
        let place = Place { version: found.version, volume: index, subfolder: found.subfolder };
        let in_use = self.in_use.borrow().contains_key(&found.id);
        let verdict = self.registry.borrow_mut().found(found.id, place, in_use);
        let loser = match verdict {
            Verdict::New => None,
            Verdict::Better { loser } => Some(loser),
            Verdict::Duplicate => Some(place),
        };
        volume.count_file(found.subfolder, 1);
        volume.blocks.set(volume.blocks.get() + u64::from(found.blocks));
        if let Some(place) = loser {
            tracing::warn!("chunk {} has two files here; version {} is the lesser one", found.id, place.version);
            self.duplicates.borrow_mut().push(Duplicate { id: found.id, place, found_at: self.ring.now() });
        }
    }

    /// The master confirmed which file system we belong to.
    pub(crate) async fn confirm_metaid(&self, metaid: MetaId) {
        let volumes = self.volumes.borrow().clone();
        for volume in volumes {
            if let Err(error) = write_metaid(&self.ring, &volume, metaid).await {
                tracing::error!("{}: .metaid cannot be written: {error}", volume.folder.display());
            }
        }
    }

    /// Writes tables when the intent log fills up.
    async fn relieve_log(self: Rc<Self>, volume: Rc<Volume>) {
        let Some(log) = volume.intents.clone() else { return };
        loop {
            for id in log.under_pressure().await {
                let chunk = self.in_use.borrow().get(&id).cloned();
                match chunk {
                    Some(chunk) => {
                        let _ = self.write_table_anyway(&chunk).await; // reported there
                    }
                    None => log.table_written(id, log.next_page()), // closed, for which its table was written
                }
            }
            if let Err(error) = self.checkpoint(&volume).await {
                tracing::error!("{}: cannot be synced: {error}", volume.folder.display());
                self.reports.disk_error();
                self.ring.sleep(BEAT).await;
            }
            self.ring.sleep(Duration::from_millis(1)).await;
        }
    }

    /// Closes what is idle, looks at the disks' space, removes duplicates whose time has come.
    pub(crate) async fn background(self: Rc<Self>) {
        let mut beat = 0u32;
        loop {
            self.ring.sleep(BEAT).await;
            beat = beat.wrapping_add(1);
            self.close_idle().await;
            if beat.is_multiple_of(CHECKPOINT_BEATS) {
                self.checkpoint_all().await;
            }
            if beat.is_multiple_of(SPACE_BEATS) {
                self.refresh_space().await;
                self.remove_duplicates().await;
            }
        }
    }

    async fn refresh_space(&self) {
        let volumes = self.volumes.borrow().clone();
        for volume in volumes.iter().filter(|volume| volume.is_usable()) {
            if let Err(error) = volume.refresh_space(&self.ring, &self.settings).await {
                tracing::error!("{}: {error}", volume.folder.display());
                volume.state.set(VolumeState::Damaged);
                self.lose_volume(volume);
            }
        }
    }

    /// Deletes files that lost against a better copy long enough ago. The file that is in use is never among them.
    async fn remove_duplicates(&self) {
        let now = self.ring.now();
        let keep = self.settings.keep_duplicates;
        let (due, rest): (Vec<_>, Vec<_>) =
            self.duplicates.take().into_iter().partition(|duplicate| now - duplicate.found_at >= keep);
        *self.duplicates.borrow_mut() = rest;
        for duplicate in due {
            let volume = self.volume(duplicate.place.volume);
            if self.registry.borrow().get(duplicate.id) == Some(duplicate.place) || volume.intents.is_none() {
                continue;
            }
            let Duplicate { id, place, .. } = duplicate;
            if self.ring.unlink(&volume.chunk_path(place.subfolder, id, place.version)).await.is_ok() {
                volume.count_file(place.subfolder, -1);
            }
        }
    }

    /// Verifies all blocks of a volume's chunks in turn, as slowly as the settings say. Spec 21, 9.
    pub(crate) async fn scrub(self: Rc<Self>, index: u16) {
        let bytes_per_second = self.settings.test_speed * 1_000_000.0;
        let volume = self.volume(index);
        if bytes_per_second <= 0.0 || volume.line.marked_for_removal {
            return;
        }
        let block_time = Duration::from_secs_f64(f64::from(wire::limits::BLOCK_BYTES) / bytes_per_second);
        let mut after = ChunkId(0);
        loop {
            if !volume.is_usable() {
                return;
            }
            let next = self.registry.borrow().some_after(after, 64);
            let Some((last, _)) = next.last().copied() else {
                after = ChunkId(0);
                self.ring.sleep(Duration::from_secs(60)).await;
                continue;
            };
            after = last;
            for (id, place) in next.into_iter().filter(|(_, place)| place.volume == index) {
                if let Err(error) = self.scrub_chunk(id, place.version, block_time).await {
                    tracing::debug!("scrubbing chunk {id}: {error}");
                }
            }
        }
    }

    async fn scrub_chunk(&self, id: ChunkId, version: Version, block_time: Duration) -> Result<(), ChunkError> {
        if self.registry.borrow().get(id).is_none() {
            return Ok(()); // deleted since the list was made
        }
        if self.in_use.borrow().contains_key(&id) {
            self.ring.sleep(block_time).await;
            return Ok(()); // in use: it is being verified by its readers
        }
        let chunk = self.open(id, version).await?;
        for block in (0..chunk.blocks()).filter_map(|block| BlockIndex::new(u32::from(block))) {
            self.ring.sleep(block_time).await;
            let buffer = self.ring.wait_buffer().await;
            self.read_block(&chunk, version, block, buffer).await?;
        }
        Ok(())
    }

    /// Everything on disk, nothing to repair: the end in good order.
    pub(crate) async fn finish(&self) {
        let chunks: Vec<_> = self.in_use.borrow().values().cloned().collect();
        let mut sound = true;
        for chunk in chunks {
            let _alone = chunk.lock.enqueue(crate::fair_lock::Hold::Exclusive).await;
            if chunk.state.borrow().is_some() {
                sound &= self.trim(&chunk).await.is_ok();
                sound &= self.write_table(&chunk).await.is_ok();
            }
        }
        let volumes = self.volumes.borrow().clone();
        for volume in volumes.iter().filter(|volume| volume.is_usable() && sound) {
            match (self.checkpoint(volume).await, &volume.intents) {
                (Ok(()), Some(log)) => log.finish().await,
                (Ok(()), None) => {}
                (Err(error), _) => tracing::error!("{}: cannot be synced: {error}", volume.folder.display()),
            }
        }
    }

    /// Sums over the disks, for the master. Spec 40, 3.1.
    pub(crate) fn server_space(&self) -> ServerSpace {
        let mut sum = ServerSpace { used: 0, total: 0, chunks: 0, tdused: 0, tdtotal: 0, tdchunks: 0 };
        for volume in self.volumes.borrow().iter().filter(|volume| volume.state.get() == VolumeState::Ready) {
            let space = volume.space.get();
            let used = space.total_bytes.saturating_sub(space.available_bytes);
            if volume.line.marked_for_removal {
                sum.tdused += used;
                sum.tdtotal += space.total_bytes;
                sum.tdchunks += volume.chunks.get();
            } else {
                sum.used += used;
                sum.total += space.total_bytes;
                sum.chunks += volume.chunks.get();
            }
        }
        sum
    }

    /// The disks as tools see them, last line first. Spec 20, 8.2.
    pub(crate) fn disk_entries(&self) -> Vec<DiskEntry> {
        let volumes = self.volumes.borrow();
        let entry_of = |line: &FolderLine| match volumes.iter().find(|volume| volume.line == *line) {
            Some(volume) => disk_entry(volume),
            None => unusable_entry(line),
        };
        self.settings.folders.iter().rev().map(entry_of).collect()
    }
}

/// Flags of a disk in `DiskEntry`. Spec 20, 8.2.
const MARKED: u8 = 1;
const DAMAGED: u8 = 2;
const SCANNING: u8 = 4;
const INVALID: u8 = 8;

fn disk_entry(volume: &Volume) -> DiskEntry {
    let state = volume.state.get();
    let space = volume.space.get();
    let mark = if volume.line.marked_for_removal { MARKED } else { 0 };
    let last_error = volume.last_error();
    let (used, total, state_flag) = match state {
        VolumeState::Scanning => (u64::from(volume.scanned_subfolders.get()) * 100 / 256, 0, SCANNING),
        VolumeState::Ready => (space.total_bytes.saturating_sub(space.available_bytes), space.total_bytes, 0),
        VolumeState::Damaged => (0, 0, DAMAGED),
    };
    let stats = disk_stats(volume);
    DiskEntry {
        path: volume.line.shown_path(),
        flags: mark | state_flag,
        errchunkid: last_error.map_or(ChunkId(0), |error| error.chunk),
        errtime: last_error.map_or(0, |error| error.wall_sec),
        used,
        total,
        chunks: volume.chunks.get(),
        stats: [stats.clone(), stats.clone(), stats],
    }
}

fn unusable_entry(line: &FolderLine) -> DiskEntry {
    let none = no_stats();
    DiskEntry {
        path: line.shown_path(),
        flags: DAMAGED | INVALID,
        errchunkid: ChunkId(0),
        errtime: 0,
        used: 0,
        total: 0,
        chunks: 0,
        stats: [none.clone(), none.clone(), none],
    }
}

fn disk_stats(volume: &Volume) -> DiskStats {
    let counters = |counter: &OperationCounter| {
        (counter.bytes.get(), counter.micros.get(), counter.count.get(), counter.micros_max.get())
    };
    let (rbytes, usecread, rops, usecreadmax) = counters(&volume.stats.read);
    let (wbytes, usecwrite, wops, usecwritemax) = counters(&volume.stats.write);
    DiskStats {
        rbytes,
        wbytes,
        usecread,
        usecwrite,
        usecfsync: 0,
        rops,
        wops,
        fsyncops: 0,
        usecreadmax,
        usecwritemax,
        usecfsyncmax: 0,
    }
}

fn no_stats() -> DiskStats {
    DiskStats {
        rbytes: 0,
        wbytes: 0,
        usecread: 0,
        usecwrite: 0,
        usecfsync: 0,
        rops: 0,
        wops: 0,
        fsyncops: 0,
        usecreadmax: 0,
        usecwritemax: 0,
        usecfsyncmax: 0,
    }
}
