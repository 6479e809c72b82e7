//! Disks come and go: at the start, when the configuration changes, when one fails.
//!
//! A volume keeps its number for life, since the registry names it by that; one that is gone leaves an empty place. Its
//! files are listed in the background while everything else goes on. Spec 21, 7 and 8.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use wire::{ChunkId, MetaId};

use super::{Chunk, Duplicate, Repairs, Store, torn};
use crate::chunkdb::{self, Record};
use crate::error::ChunkError;
use crate::fair_lock::Hold;
use crate::folders::FolderLine;
use crate::layout::{SUBFOLDERS, shape};
use crate::registry::{Place, Verdict};
use crate::scan::{Blocks, Found, make_subfolders, scan};
use crate::volume::{Volume, VolumeState, open_volume, write_metaid};

/// Why a store cannot begin.
#[derive(Debug)]
pub(crate) struct FoldersUnusable(pub(crate) String);

/// A disk that is taken out waits so long for what is under way on a chunk.
const CLOSE_WAIT: Duration = Duration::from_secs(10);

impl Store {
    /// Takes all folders and begins to list their chunks. `metaid`: the file system we belong to, if it is known. Gives
    /// the one that is known now.
    ///
    /// Errors: a folder that cannot be used, unless the settings allow that; two folders of different file systems.
    pub(crate) async fn start(self: &Rc<Self>, metaid: Option<MetaId>) -> Result<Option<MetaId>, FoldersUnusable> {
        self.scratch.fill().await;
        self.table_scratch.fill().await;
        let mut metaid = metaid;
        let mut opened = Vec::new();
        let settings = self.settings.get();
        for line in &settings.folders {
            match self.add_volume(line, metaid).await {
                Ok((index, repairs, found)) => {
                    metaid = metaid.or(found);
                    opened.push((index, repairs));
                }
                Err(why) if settings.start_with_invalid_disks => tracing::error!("{}: not used: {why}", line.path),
                Err(why) => return Err(FoldersUnusable(format!("{}: {why}", line.path))),
            }
        }
        for (index, repairs) in opened {
            self.begin_scan(index, repairs);
        }
        Ok(metaid)
    }

    /// Makes the folders in use those of the settings: takes new ones, lets go of those that are not named any more,
    /// changes marks and limits, and tries damaged ones again. What cannot be used is logged. Spec 21, 8.4.
    pub(crate) async fn change_folders(self: &Rc<Self>, metaid: Option<MetaId>) {
        let settings = self.settings.get();
        let mut metaid = metaid;
        for index in 0..self.volumes.borrow().len() as u16 {
            let volume = self.volume(index);
            if volume.is_ours() && !settings.folders.iter().any(|line| volume.path_is(&line.path)) {
                tracing::info!("{}: taken out of the configuration", volume.folder.display());
                volume.state.set(VolumeState::Leaving);
                self.ring.spawn(self.clone().detach(index));
            }
        }
        for line in &settings.folders {
            let known = self
                .volumes
                .borrow()
                .iter()
                .position(|volume| volume.path_is(&line.path) && volume.state.get() != VolumeState::Gone);
            if let Some(index) = known {
                let volume = self.volume(index as u16);
                match volume.state.get() {
                    VolumeState::Leaving => {
                        tracing::error!("{}: is still being taken out; reload again when it is", line.path);
                        continue;
                    }
                    VolumeState::Damaged => {
                        tracing::info!("{}: tried again", line.path);
                        volume.release();
                    }
                    _ => {
                        self.change_line(index as u16, line).await;
                        continue;
                    }
                }
            }
            match self.add_volume(line, metaid).await {
                Ok((index, repairs, found)) => {
                    metaid = metaid.or(found);
                    if let Some(metaid) = metaid {
                        self.ring.spawn(self.clone().mark_as_ours(index, metaid));
                    }
                    self.begin_scan(index, repairs);
                }
                Err(why) => tracing::error!("{}: not used: {why}", line.path),
            }
        }
    }

    /// The master confirmed which file system we belong to.
    pub(crate) fn confirm_metaid(self: &Rc<Self>, metaid: MetaId) {
        for index in 0..self.volumes.borrow().len() as u16 {
            if self.volume(index).is_usable() {
                self.ring.spawn(self.clone().mark_as_ours(index, metaid));
            }
        }
    }

    async fn mark_as_ours(self: Rc<Self>, index: u16, metaid: MetaId) {
        let volume = self.volume(index);
        if let Err(error) = write_metaid(&self.ring, &volume, metaid).await {
            tracing::error!("{}: .metaid cannot be written: {error}", volume.folder.display());
        }
    }

    async fn add_volume(
        self: &Rc<Self>,
        line: &FolderLine,
        metaid: Option<MetaId>,
    ) -> Result<(u16, Repairs, Option<MetaId>), String> {
        let index = u16::try_from(self.volumes.borrow().len())
            .map_err(|_| "disks were changed 65535 times since the start; restart to change more".to_owned())?;
        let taken: Vec<_> = self
            .volumes
            .borrow()
            .iter()
            .filter(|volume| volume.state.get() != VolumeState::Gone)
            .map(|volume| volume.identity)
            .collect();
        let opened = open_volume(&self.ring, &self.settings.get(), line, metaid, &taken).await;
        let (volume, repairs, found) = opened.map_err(|error| error.to_string())?;
        let volume = Rc::new(volume);
        self.volumes.borrow_mut().push(volume.clone());
        self.cache.clear(); // chunks may have better copies here
        if let Some(log) = &volume.intents {
            let tasks = [
                self.ring.spawn(log.clone().commit_loop()),
                self.ring.spawn(log.clone().follow_loop()),
                self.ring.spawn(self.clone().relieve_log(volume.clone())),
            ];
            volume.tasks.borrow_mut().extend(tasks);
        }
        volume.tasks.borrow_mut().push(self.ring.spawn(self.clone().scrub(index)));
        Ok((index, repairs, found))
    }

    fn begin_scan(self: &Rc<Self>, index: u16, repairs: Repairs) {
        self.volume(index).scanning.set(true);
        self.scans_under_way.set(self.scans_under_way.get() + 1);
        let store = self.clone();
        self.ring.spawn(async move {
            let volume = store.volume(index);
            if let Err(error) = store.scan_volume(index, &volume, repairs).await
                && volume.is_usable()
            {
                tracing::error!("{}: cannot be read: {error}", volume.folder.display());
                store.lose_volume(&volume);
            }
            volume.scanning.set(false);
            store.scans_under_way.set(store.scans_under_way.get() - 1);
        });
    }

    /// Lists the files of a disk and puts right what a crash left; then it takes new chunks.
    async fn scan_volume(self: &Rc<Self>, index: u16, volume: &Rc<Volume>, repairs: Repairs) -> std::io::Result<()> {
        let started = self.ring.now();
        let after_crash = !repairs.is_empty();
        let settings = self.settings.get();
        if self.ring.stat(&volume.folder.join(torn::LIST_NAME)).await.is_ok() {
            volume.recovering.set(true); // until we know which chunks it means
        }
        // For tools and for the master, though nothing new comes here before the end.
        volume.refresh_space(&self.ring, &settings).await?;
        let take = |found| self.take_found(index, volume, found);
        let blocks = scan(&self.ring, volume, &settings, after_crash, take).await?;
        if !volume.is_usable() {
            return Ok(());
        }
        self.load_torn(index, volume).await?;
        if after_crash {
            let done = self.recover(index, repairs).await;
            tracing::warn!("{}: put right after a crash: {done:?}", volume.folder.display());
            if let Some(log) = &volume.intents {
                log.finish().await;
            }
        }
        if volume.recovering.replace(false) && self.reports.may_be_sent() {
            self.report_torn();
        }
        if blocks == Blocks::Unknown {
            self.measure(index, volume).await;
        }
        volume.refresh_space(&self.ring, &self.settings.get()).await?;
        if volume.state.get() == VolumeState::Scanning {
            volume.state.set(VolumeState::Ready);
            let took = self.ring.now() - started;
            tracing::info!("{}: {} chunks, listed in {took:?}", volume.folder.display(), volume.chunks.get());
        }
        Ok(())
    }

    pub(crate) fn scans_under_way(&self) -> u32 {
        self.scans_under_way.get()
    }

    fn take_found(&self, index: u16, volume: &Volume, found: Found) {
        if volume.state.get() != VolumeState::Scanning {
            return;
        }
        let place = Place { version: found.version, volume: index, subfolder: found.subfolder };
        let in_use = self.in_use.borrow().contains_key(&found.id);
        let verdict = self.registry.borrow_mut().found(found.id, place, in_use);
        let loser = match verdict {
            Verdict::Known => return,
            Verdict::New => {
                self.reports.found(found.id, self.reported_version(place));
                None
            }
            Verdict::Better { loser } => {
                self.reports.changed(found.id, self.reported_version(place));
                Some(loser)
            }
            Verdict::Duplicate => Some(place),
        };
        volume.count_file(found.subfolder, 1);
        volume.blocks.set(volume.blocks.get() + u64::from(found.blocks));
        if let Some(place) = loser {
            tracing::warn!("chunk {} has two files here; version {} is the lesser one", found.id, place.version);
            self.duplicates.borrow_mut().push(Duplicate { id: found.id, place, found_at: self.ring.now() });
        }
    }

    /// Counts the blocks of all chunks of a disk, by the sizes of their files.
    async fn measure(&self, index: u16, volume: &Volume) {
        volume.blocks.set(0);
        let chunks = self.registry.borrow().of_volume(index);
        for (id, place) in chunks {
            let path = volume.chunk_path(place.subfolder, id, place.version);
            let stat = self.ring.stat(&path).await.ok(); // changed meanwhile, or gone: seen at its first use
            let blocks = stat.and_then(|stat| shape(stat.size)).map_or(0, |(_, blocks)| blocks);
            volume.blocks.set(volume.blocks.get() + u64::from(blocks));
        }
    }

    /// Other marks, another limit.
    async fn change_line(self: &Rc<Self>, index: u16, line: &FolderLine) {
        let volume = self.volume(index);
        let old = volume.line();
        if old == *line {
            return;
        }
        tracing::info!("{}: marks and limit changed", line.path);
        if old.marked_for_removal && !line.marked_for_removal && volume.intents.is_some() {
            // A disk on its way out need not have had all of them.
            if let Err(error) = make_subfolders(&self.ring, &volume, &self.settings.get()).await {
                tracing::error!("{}: sub-folders cannot be made: {error}", line.path);
            }
        }
        let had_limit = volume.has_limit();
        volume.set_line(line.clone());
        if old.marked_for_removal != line.marked_for_removal {
            for (id, place) in self.registry.borrow().of_volume(index) {
                self.reports.changed(id, self.reported_version(place));
            }
        }
        if volume.has_limit() && !had_limit {
            self.measure(index, &volume).await;
        }
        self.look_at_space(volume);
    }

    /// The disk had too many errors, or is another one than before: its chunks count as lost until it is tried again.
    pub(crate) fn lose_volume(&self, volume: &Volume) {
        self.cache.clear();
        tracing::error!("{}: the disk is not used any more", volume.folder.display());
        volume.state.set(VolumeState::Damaged);
        let index = self.volumes.borrow().iter().position(|other| std::ptr::eq(&**other, volume));
        let Some(index) = index else { return };
        for (id, _) in self.forget_chunks_of(index as u16) {
            if let Some(chunk) = self.in_use.borrow_mut().remove(&id) {
                chunk.gone.set(true); // whoever is at it ends with the disk's error
            }
        }
    }

    /// Takes the chunks of a disk out of the registry. The master learns that they are lost, but for those of which
    /// another file was found.
    fn forget_chunks_of(&self, index: u16) -> Vec<(ChunkId, Place)> {
        let chunks = self.registry.borrow().of_volume(index);
        self.duplicates.borrow_mut().retain(|duplicate| duplicate.place.volume != index);
        self.torn.borrow_mut().forget_volume(index);
        let mut others: BTreeMap<ChunkId, Place> = BTreeMap::new();
        for Duplicate { id, place, .. } in self.duplicates.borrow().iter() {
            let best = others.entry(*id).or_insert(*place);
            if place.version > best.version {
                *best = *place;
            }
        }
        for (id, _) in &chunks {
            self.registry.borrow_mut().remove(*id);
            match others.get(id) {
                Some(place) => {
                    self.registry.borrow_mut().insert(*id, *place);
                    self.duplicates.borrow_mut().retain(|duplicate| (duplicate.id, duplicate.place) != (*id, *place));
                    self.reports.changed(*id, self.reported_version(*place));
                }
                None => self.reports.lost(*id),
            }
        }
        chunks
    }

    /// Brings a disk to rest and lets go of it.
    async fn detach(self: Rc<Self>, index: u16) {
        let volume = self.volume(index);
        while volume.scanning.get() {
            self.ring.sleep(Duration::from_millis(20)).await;
        }
        let has_duplicates = self.has_duplicates(index);
        let chunks = self.forget_chunks_of(index);
        let mut sound = true;
        let mut listable = !has_duplicates;
        for (id, _) in &chunks {
            let chunk = self.in_use.borrow_mut().remove(id);
            let Some(chunk) = chunk else { continue };
            chunk.gone.set(true);
            listable &= chunk.lock.is_idle(); // else its version may be changing
            match self.ring.timeout(CLOSE_WAIT, chunk.lock.enqueue(Hold::Exclusive)).await {
                Ok(_alone) => {
                    if chunk.state.borrow().is_some() {
                        sound &= self.bring_to_rest(&chunk).await.is_ok();
                    }
                    chunk.state.take();
                }
                Err(_) => sound = false,
            }
        }
        if sound {
            self.rest_volume(&volume, chunks, listable).await;
        }
        volume.release();
        tracing::info!("{}: is free", volume.folder.display());
    }

    /// True length and table, with the device: the log will not speak of this chunk any more. The caller holds it alone.
    pub(super) async fn bring_to_rest(&self, chunk: &Chunk) -> Result<(), ChunkError> {
        self.trim(chunk).await?;
        self.write_table(chunk).await?;
        let file = chunk.state.borrow().as_ref().map(|open| open.file.clone());
        match file {
            Some(file) => Ok(file.datasync().await?),
            None => Ok(()),
        }
    }

    pub(super) fn has_duplicates(&self, index: u16) -> bool {
        self.duplicates.borrow().iter().any(|duplicate| duplicate.place.volume == index)
    }

    /// All tables are written: says so in the log, and leaves the list for the next start if it is `listable`. Spec 21, 5.
    pub(super) async fn rest_volume(&self, volume: &Volume, chunks: Vec<(ChunkId, Place)>, listable: bool) {
        let Some(log) = &volume.intents else { return };
        if volume.recovering.get() {
            return; // the log has to say it again
        }
        if let Err(error) = self.checkpoint(volume).await {
            tracing::error!("{}: cannot be synced: {error}", volume.folder.display());
            return;
        }
        log.finish().await;
        if !listable || volume.scanned_subfolders.get() < SUBFOLDERS as u32 {
            return;
        }
        let record =
            |(id, place): (_, Place)| Record { id, version: place.version, blocks: None, subfolder: place.subfolder };
        let records = chunks.into_iter().map(record);
        let mode = self.settings.get().file_mode;
        let path = volume.line().path;
        if let Err(error) = chunkdb::write(&self.ring, &volume.folder, &path, mode, records).await {
            tracing::warn!("{path}: the list of chunks cannot be written, the next start will scan: {error}");
        }
    }
}
