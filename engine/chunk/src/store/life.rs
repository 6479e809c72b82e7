//! The beginning and the end of a store, and what goes on in the background between.

use std::rc::Rc;
use std::time::Duration;

use ring::Instant;
use wire::{ChunkId, Version};

use super::disks::Closed;
use super::{Duplicate, Store};
use crate::error::ChunkError;
use crate::health::Load;
use crate::layout::BlockIndex;
use crate::volume::{Volume, VolumeState};

/// How often the background looks at everything.
const BEAT: Duration = Duration::from_secs(1);
/// Beats between two checkpoints.
const CHECKPOINT_BEATS: u32 = 10;
/// Beats between two looks at the disks' space. Spec 21, 8.2.
const SPACE_BEATS: u32 = 60;
/// A log that cannot be relieved so many times in a row, a beat each, is that of a disk that does not work.
const FAILED_RELIEFS_MAX: u32 = 10;
/// How often the test of a disk looks whether it may go on.
const SCRUB_NAP: Duration = Duration::from_secs(10);
/// How long a stop waits for the disks.
const FINISH_WAIT: Duration = Duration::from_secs(60);

impl Store {
    /// Writes tables when the intent log fills up.
    pub(super) async fn relieve_log(self: Rc<Self>, index: u16, volume: Rc<Volume>) {
        let Some(log) = volume.intents.clone() else { return };
        let mut failed = 0;
        loop {
            let mut all_written = true;
            for id in log.under_pressure().await {
                let chunk = self.in_use.borrow().get(&id).cloned();
                let written = match chunk {
                    Some(chunk) => self.write_table_anyway(&chunk).await,
                    None => Err(ChunkError::NoChunk),
                };
                match written {
                    Ok(()) => {}
                    // Closed, for which its table was written; a disk that is given up or taken out closes without.
                    Err(ChunkError::NoChunk) if volume.is_usable() => log.table_written(id, log.next_page()),
                    Err(_) if volume.is_usable() => all_written = false, // reported there
                    Err(_) => return,
                }
            }
            if let Err(error) = self.checkpoint(index).await {
                self.note_failed_checkpoint(&volume, error);
                all_written = false;
            }
            failed = if all_written { 0 } else { failed + 1 };
            if failed == FAILED_RELIEFS_MAX {
                tracing::error!("{}: tables of sums cannot be written, and the log is full", volume.folder.display());
                self.lose_volume(&volume);
            }
            if !volume.is_usable() {
                return;
            }
            self.ring.sleep(if all_written { Duration::from_millis(1) } else { BEAT }).await;
        }
    }

    /// Closes what is idle, looks at the disks' space, removes duplicates whose time has come.
    pub(crate) async fn background(self: Rc<Self>) {
        let mut beat = 0u32;
        loop {
            self.ring.sleep(BEAT).await;
            beat = beat.wrapping_add(1);
            self.close_idle();
            if self.core.is_first() {
                self.look_at_health().await;
                self.look_where_room_is_short();
                if beat.is_multiple_of(CHECKPOINT_BEATS) {
                    self.checkpoint_all();
                }
            }
            if beat.is_multiple_of(SPACE_BEATS) {
                if self.core.is_first() {
                    self.look_at_all_space();
                }
                self.ring.spawn(self.clone().remove_duplicates()); // a disk that hangs delays nothing else
            }
        }
    }

    /// Judges of each disk by what all cores have under way there.
    async fn look_at_health(&self) {
        let now = self.ring.now();
        let of_cores = self.core.ask_all(move |server| async move { server.store.loads(now) }).await;
        for (index, volume) in self.volumes.borrow().iter().enumerate().filter(|(_, volume)| volume.is_usable()) {
            let load =
                of_cores.iter().filter_map(|volumes| volumes.get(index).copied()).fold(Load::default(), Load::and);
            let hangs = load.hangs(now);
            if !volume.set_hangs(hangs) {
                continue;
            }
            if hangs {
                tracing::error!("{}: the disk does not answer; left alone until it does", volume.folder.display());
                self.core.shared.reports.disk_error();
            } else {
                tracing::warn!("{}: the disk answers again", volume.folder.display());
            }
        }
    }

    /// What this core has under way on each volume.
    fn loads(&self, now: Instant) -> Vec<Load> {
        self.volumes.borrow().iter().map(|volume| volume.health.load(now)).collect()
    }

    fn look_where_room_is_short(self: &Rc<Self>) {
        let volumes = self.volumes.borrow().clone();
        volumes.into_iter().filter(|volume| volume.take_look_soon()).for_each(|volume| self.look_at_space(volume));
    }

    pub(crate) fn look_at_all_space(self: &Rc<Self>) {
        let volumes = self.volumes.borrow().clone();
        volumes.into_iter().for_each(|volume| self.look_at_space(volume));
    }

    /// Looks at a disk's space, beside everything else: a disk that hangs delays nobody.
    pub(super) fn look_at_space(self: &Rc<Self>, volume: Rc<Volume>) {
        if !volume.is_usable() || volume.looking_at_space.replace(true) {
            return;
        }
        let store = self.clone();
        self.ring.spawn(async move {
            let looked = volume.refresh_space(&store.ring, &store.settings.get()).await;
            volume.looking_at_space.set(false);
            if let Err(error) = looked
                && volume.is_usable()
            {
                tracing::error!("{}: {error}", volume.folder.display());
                store.lose_volume(&volume);
            }
        });
    }

    /// Deletes files that lost against a better copy long enough ago. The file that is in use is never among them.
    async fn remove_duplicates(self: Rc<Self>) {
        let now = self.ring.now();
        let keep = self.settings.get().keep_duplicates;
        let is_due =
            |duplicate: &Duplicate| now - duplicate.found_at >= keep && !self.volume(duplicate.place.volume).hangs();
        let (due, rest): (Vec<_>, Vec<_>) = self.duplicates.take().into_iter().partition(is_due);
        *self.duplicates.borrow_mut() = rest;
        for duplicate in due {
            let volume = self.volume(duplicate.place.volume);
            if self.core.place(duplicate.id) == Some(duplicate.place) || volume.is_read_only {
                continue;
            }
            let Duplicate { id, place, .. } = duplicate;
            if self.ring.unlink(&volume.chunk_path(place.subfolder, id, place.version)).await.is_ok() {
                volume.count_file(place.subfolder, -1);
            }
        }
    }

    /// Verifies all blocks of this core's chunks on a volume in turn, as slowly as the settings say; a round begins no sooner after
    /// the one before than a chunk may be tested again. Not on a disk that is marked for removal. Spec 21, 9.
    pub(crate) async fn scrub(self: Rc<Self>, index: u16) {
        let volume = self.volume(index);
        let mut after = ChunkId(0);
        let mut round_began = self.ring.now();
        loop {
            if !self.may_scrub(&volume) {
                self.ring.sleep(SCRUB_NAP).await;
                continue;
            }
            let next = self.core.some_after(after, 64);
            let Some((last, _)) = next.last().copied() else {
                after = ChunkId(0);
                while self.ring.now() < round_began + self.settings.get().min_test_interval.max(SCRUB_NAP) {
                    self.ring.sleep(SCRUB_NAP).await;
                }
                round_began = self.ring.now();
                continue;
            };
            after = last;
            for (id, place) in next.into_iter().filter(|(_, place)| place.volume == index) {
                if !self.may_scrub(&volume) {
                    break;
                }
                if let Err(error) = self.scrub_chunk(id, place.version).await {
                    tracing::debug!("scrubbing chunk {id}: {error}");
                }
            }
            self.ring.yield_now().await;
        }
    }

    fn may_scrub(&self, volume: &Volume) -> bool {
        volume.state() == VolumeState::Ready
            && !volume.hangs()
            && !volume.is_marked()
            && self.settings.get().test_speed > 0.0
    }

    /// The time that one block may take at the speed that is set now, of which each core has its share.
    fn block_time(&self) -> Duration {
        let bytes_per_second = (self.settings.get().test_speed * 1_000_000.0).max(1.0);
        Duration::from_secs_f64(f64::from(wire::limits::BLOCK_BYTES) / bytes_per_second) * self.core.count() as u32
    }

    async fn scrub_chunk(&self, id: ChunkId, version: Version) -> Result<(), ChunkError> {
        if self.core.place(id).is_none() {
            return Ok(()); // deleted since the list was made
        }
        if self.in_use.borrow().get(&id).is_some_and(|chunk| chunk.write_sessions.get() > 0) {
            return Ok(()); // its turn comes when it rests; those that are only read may come from memory all the time
        }
        let chunk = self.open(id, version).await?;
        self.counters.tested.add(1);
        for block in (0..chunk.blocks()).filter_map(|block| BlockIndex::new(u32::from(block))) {
            self.ring.sleep(self.block_time()).await;
            let buffer = self.ring.wait_buffer().await;
            self.read_block(&chunk, version, block, buffer).await?;
        }
        Ok(())
    }

    /// Everything on disk, nothing to repair: the end in good order. A disk that hangs is not waited for. By the first
    /// core, when no core has a request under way.
    pub(crate) async fn finish(self: &Rc<Self>) {
        let indexes = 0..self.volumes.borrow().len() as u16;
        let ends: Vec<_> = indexes.map(|index| self.ring.spawn(self.clone().finish_volume(index))).collect();
        let until = self.ring.now() + FINISH_WAIT;
        for (index, end) in ends.into_iter().enumerate() {
            let wait = until.saturating_duration_since(self.ring.now());
            if self.ring.timeout(wait, end).await.is_err() {
                let folder = &self.volume(index as u16).folder;
                tracing::error!("{}: hangs; its next start looks at everything", folder.display());
            }
        }
        let stats = self.core.ask_all(|server| async move {
            let crate::cache::CacheStats { hits, misses } = server.store.cache.stats();
            (hits, misses)
        });
        let (hits, misses) = stats.await.into_iter().fold((0, 0), |sum, core| (sum.0 + core.0, sum.1 + core.1));
        tracing::info!("block cache: {hits} blocks were there, {misses} were not");
        let count = self.volumes.borrow().len() as u16;
        for index in 0..count {
            self.release(index).await;
        }
    }

    async fn finish_volume(self: Rc<Self>, index: u16) {
        if !self.volume(index).is_usable() {
            return;
        }
        let at_rest = self.core.ask_all(move |server| async move { server.store.rest_here(index).await });
        let at_rest = Closed::of_all(at_rest.await);
        if at_rest.sound && at_rest.listable {
            self.leave_list(&self.volume(index), at_rest.chunks).await;
        }
    }

    /// This core's chunks of a volume are brought to rest, and its log says so.
    async fn rest_here(&self, index: u16) -> Closed {
        let volume = self.volume(index);
        let chunks: Vec<_> = self.in_use.borrow().values().cloned().collect();
        let mut sound = true;
        for chunk in chunks {
            let is_here = |chunk: &super::Chunk| chunk.volume().is_some_and(|of_chunk| Rc::ptr_eq(&of_chunk, &volume));
            if !is_here(&chunk) {
                continue;
            }
            let _alone = chunk.lock.enqueue(crate::fair_lock::Hold::Exclusive).await;
            if is_here(&chunk) {
                sound &= self.bring_to_rest(&chunk).await.is_ok();
            }
        }
        if sound {
            sound = self.rest_log(index, &volume).await;
        }
        Closed { sound, listable: !self.has_duplicates(index), chunks: self.core.of_volume(index) }
    }
}
