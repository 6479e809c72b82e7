//! Disks come and go: at the start, when the configuration changes, when one fails.
//!
//! A volume keeps its number for life, since the registry names it by that; one that is gone leaves an empty place. Spec
//! 21, 7 and 8.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use wire::{ChunkId, MetaId};

use super::scanning::SCAN_NAP;
use super::{Chunk, Duplicate, Repairs, Store};
use crate::error::ChunkError;
use crate::fair_lock::Hold;
use crate::folders::FolderLine;
use crate::intents::record::add_repairs;
use crate::intents::{IntentLog, LogKind, PAGES, core_of_name, is_full, repairs_of};
use crate::layout::shape;
use crate::registry::Place;
use crate::scan::make_subfolders;
use crate::settings::IoMode;
use crate::volume::{Opened, SharedVolume, Volume, VolumeState, open_volume, write_metaid};

/// Why a store cannot begin.
#[derive(Debug)]
pub(crate) struct FoldersUnusable(pub(crate) String);

/// A disk that is taken out waits so long for what is under way on a chunk.
const CLOSE_WAIT: Duration = Duration::from_secs(10);
/// How often a disk that is taken out looks whether chunks are still on their way to it.
const ARRIVAL_NAP: Duration = Duration::from_millis(5);

/// What a core leaves of a volume that comes to rest.
pub(super) struct Closed {
    /// Everything is on disk, and the log says so.
    pub(super) sound: bool,
    /// `chunks` are all files, and stay as they are.
    pub(super) listable: bool,
    pub(super) chunks: Vec<(ChunkId, Place)>,
}

impl Closed {
    pub(super) fn of_all(cores: Vec<Closed>) -> Closed {
        let (sound, listable) = (cores.iter().all(|core| core.sound), cores.iter().all(|core| core.listable));
        let mut chunks: Vec<_> = cores.into_iter().flat_map(|core| core.chunks).collect();
        chunks.sort_unstable_by_key(|(id, _)| *id);
        Closed { sound, listable, chunks }
    }
}

/// What begins on the first core.
impl Store {
    /// Keeps buffers aside. First of all.
    pub(crate) async fn prepare(&self) {
        self.scratch.fill().await;
        self.table_scratch.fill().await;
    }

    /// Takes all folders and begins to list their chunks. `metaid`: the file system we belong to, if it is known. Gives
    /// the one that is known now.
    ///
    /// Errors: a folder that cannot be used, unless the settings allow that; two folders of different file systems.
    pub(crate) async fn start(self: &Rc<Self>, metaid: Option<MetaId>) -> Result<Option<MetaId>, FoldersUnusable> {
        let mut metaid = metaid;
        let mut opened = Vec::new();
        let settings = self.settings.get();
        for line in &settings.folders {
            match self.add_volume(line, metaid).await {
                Ok((index, repairs, found)) => {
                    metaid = metaid.or(found);
                    opened.push((index, repairs));
                }
                Err(why) if settings.start_with_invalid_disks => tracing::error!("{:?}: not used: {why}", line.path),
                Err(why) => return Err(FoldersUnusable(format!("{:?}: {why}", line.path))),
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
                let is_sound = volume.leave();
                self.ring.spawn(self.clone().detach(index, is_sound));
            }
        }
        for line in &settings.folders {
            let known = self
                .volumes
                .borrow()
                .iter()
                .position(|volume| volume.path_is(&line.path) && volume.state() != VolumeState::Gone);
            if let Some(index) = known {
                let volume = self.volume(index as u16);
                match volume.state() {
                    VolumeState::Leaving => {
                        tracing::error!("{}: is still being taken out; reload again when it is", line.path);
                        continue;
                    }
                    VolumeState::Damaged if !self.scan_ends(&volume).await => {
                        tracing::error!(
                            "{}: its files are still being listed; reload again when it answers",
                            line.path
                        );
                        continue;
                    }
                    VolumeState::Damaged => {
                        tracing::info!("{}: tried again", line.path);
                        self.release(index as u16).await;
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
            .filter(|volume| volume.state() != VolumeState::Gone)
            .map(|volume| volume.identity)
            .collect();
        let cores = self.core.count();
        let opened = open_volume(&self.ring, &self.settings.get(), line, metaid, &taken, cores).await;
        let Opened { shared, lock, index: list, metaid: found } = opened.map_err(|error| error.to_string())?;
        let repairs = self.open_logs(&shared).await.map_err(|error| error.to_string())?;
        shared.recovering.store(!repairs.is_empty(), Ordering::Release);
        // Its copies may be older than what clients were told about them when it was here before.
        self.core.begin_epoch(self.ring.random_u64());
        let is_alike = self.attach(index, shared.clone());
        assert!(is_alike, "this core decides on the numbers");
        self.volume(index).keep(lock, list.filter(|_| repairs.is_empty()));
        self.core.tell_others(move |server| {
            let is_alike = server.store.attach(index, shared);
            assert!(is_alike, "volumes come to all cores in the order in which they came to the first");
        });
        Ok((index, repairs, found))
    }

    /// Has each core open its log of a volume, and gives what they ask to repair, and what logs ask that cores of an
    /// earlier start left behind.
    async fn open_logs(&self, shared: &Arc<SharedVolume>) -> io::Result<Repairs> {
        if shared.is_read_only {
            return Ok(Repairs::new());
        }
        let folder = shared.folder.clone();
        let mut repairs = Repairs::new();
        for path in self.logs_of_former_cores(&folder).await? {
            add_repairs(&mut repairs, repairs_of(&self.ring, &path).await?);
        }
        let opened = self.core.ask_all(move |server| async move { server.store.open_log(&folder).await });
        for of_core in opened.await {
            add_repairs(&mut repairs, of_core?);
        }
        Ok(repairs)
    }

    /// Logs in a folder that no core writes: there were more cores once.
    pub(super) async fn logs_of_former_cores(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        let mut logs = Vec::new();
        for entry in self.ring.list(folder).await? {
            if core_of_name(entry.name.as_encoded_bytes()).is_some_and(|core| core >= self.core.count()) {
                logs.push(folder.join(&entry.name));
            }
        }
        Ok(logs)
    }

    /// Lets go of a volume on all cores; on this one last, which holds its lock.
    pub(super) async fn release(&self, index: u16) {
        for core in (0..self.core.count()).rev() {
            self.core.ask(core, move |server| async move { server.store.volume(index).release() }).await;
        }
    }

    /// Counts the blocks of all chunks of a disk.
    pub(super) async fn measure(&self, index: u16) {
        self.volume(index).set_blocks(0);
        self.core.ask_all(move |server| async move { server.store.measure_here(index).await }).await;
    }

    /// Other marks, another limit.
    async fn change_line(self: &Rc<Self>, index: u16, line: &FolderLine) {
        let volume = self.volume(index);
        let old = volume.line();
        if old == *line {
            return;
        }
        tracing::info!("{}: marks and limit changed", line.path);
        if old.marked_for_removal && !line.marked_for_removal && !volume.is_read_only {
            // A disk on its way out need not have had all of them.
            if let Err(error) = make_subfolders(&self.ring, &volume, &self.settings.get()).await {
                tracing::error!("{}: sub-folders cannot be made: {error}", line.path);
            }
        }
        let had_limit = volume.has_limit();
        volume.set_line(line.clone());
        if old.marked_for_removal != line.marked_for_removal {
            for (id, _) in self.core.all_of_volume(index) {
                self.core.shared.reports.changed(id);
            }
        }
        if volume.has_limit() && !had_limit {
            self.measure(index).await;
        }
        self.look_at_space(volume);
    }

    /// Brings a disk to rest and lets go of it. One whose chunks are lost is let go of as it is: its logs keep what is
    /// to be put right.
    async fn detach(self: Rc<Self>, index: u16, is_sound: bool) {
        let volume = self.volume(index);
        while volume.scanning.get() {
            self.ring.sleep(SCAN_NAP).await;
        }
        if is_sound {
            self.bring_all_to_rest(index, &volume).await;
        }
        self.release(index).await;
        tracing::info!("{}: is free", volume.folder.display());
    }

    async fn bring_all_to_rest(&self, index: u16, volume: &Volume) {
        let closed = self.core.ask_all(move |server| async move { server.store.close_chunks_of(index).await });
        let closed = Closed::of_all(closed.await);
        if closed.sound && closed.listable {
            self.leave_list(volume, closed.chunks).await;
        }
    }
}

/// What each core does for its chunks.
impl Store {
    /// This core's log of the volume that comes next, and what it asks to repair. On a full disk there may be none: then
    /// this core changes nothing there. Errors: the disk's.
    async fn open_log(&self, folder: &Path) -> io::Result<Repairs> {
        self.next_log.take(); // of a volume that another core could not open
        let settings = self.settings.get();
        let direct = settings.io_mode == IoMode::Direct;
        let kind = LogKind { direct, synced: direct || settings.is_synced(), mode: settings.file_mode };
        match IntentLog::open(&self.ring, folder, (self.core.number, PAGES), kind).await {
            Ok((log, repairs)) => {
                self.next_log.replace(Some(log));
                Ok(repairs)
            }
            Err(error) if is_full(&error) => {
                tracing::error!(
                    "{}: no room for an intent log: chunks are read and not written here; make room and start again",
                    folder.display()
                );
                Ok(Repairs::new())
            }
            Err(error) => Err(error),
        }
    }

    /// Takes a volume in, with the log that was opened before. False if it has not the next number here.
    fn attach(self: &Rc<Self>, index: u16, shared: Arc<SharedVolume>) -> bool {
        if self.volumes.borrow().len() != usize::from(index) {
            return false;
        }
        let log = self.next_log.take().filter(|_| !shared.is_read_only);
        if log.is_none() {
            shared.note_missing_log();
        }
        let volume = Rc::new(Volume::new(shared, self.core.number, &self.shares, log));
        self.volumes.borrow_mut().push(volume.clone());
        self.cache.clear(); // chunks may have better copies here
        if let Some(log) = &volume.intents {
            let tasks = [
                self.ring.spawn(log.clone().commit_loop(volume.health.clone())),
                self.ring.spawn(log.clone().follow_loop()),
                self.ring.spawn(self.clone().relieve_log(index, volume.clone())),
            ];
            volume.tasks.borrow_mut().extend(tasks);
        }
        volume.tasks.borrow_mut().push(self.ring.spawn(self.clone().scrub(index)));
        true
    }

    pub(super) async fn finish_log(&self, index: u16) -> io::Result<()> {
        match &self.volume(index).intents {
            Some(log) => log.finish().await,
            None => Ok(()),
        }
    }

    /// Adds the blocks of this core's chunks of a disk, by the sizes of their files.
    async fn measure_here(&self, index: u16) {
        let volume = self.volume(index);
        let chunks = self.core.of_volume(index);
        for (id, place) in chunks {
            let path = volume.chunk_path(place.subfolder, id, place.version);
            let stat = self.ring.stat(&path).await.ok(); // changed meanwhile, or gone: seen at its first use
            let blocks = stat.and_then(|stat| shape(stat.size)).map_or(0, |(_, blocks)| blocks);
            volume.add_blocks(u64::from(blocks));
        }
    }

    /// The disk had too many errors, or is another one than before: its chunks count as lost until it is tried again. By
    /// any core.
    pub(crate) fn lose_volume(&self, volume: &Volume) {
        if !volume.give_up() {
            return; // by another core, or it is being taken out
        }
        tracing::error!("{}: the disk is not used any more", volume.folder.display());
        self.core.begin_epoch(self.ring.random_u64());
        let index = self.volumes.borrow().iter().position(|other| std::ptr::eq(&**other, volume));
        let Some(index) = index else { return };
        self.lose_chunks_of(index as u16);
        self.core.tell_others(move |server| server.store.lose_chunks_of(index as u16));
    }

    fn lose_chunks_of(&self, index: u16) {
        self.cache.clear();
        for (id, _) in self.forget_chunks_of(index) {
            if let Some(chunk) = self.in_use.borrow_mut().remove(&id) {
                chunk.gone.set(true); // whoever is at it ends with the disk's error
            }
        }
    }

    /// Takes the chunks of a disk out of the registry. The master learns that they are lost, but for those of which
    /// another file was found.
    fn forget_chunks_of(&self, index: u16) -> Vec<(ChunkId, Place)> {
        let chunks = self.core.of_volume(index);
        self.duplicates.borrow_mut().retain(|duplicate| duplicate.place.volume != index);
        self.forget_torn_of(index);
        let mut others: BTreeMap<ChunkId, Place> = BTreeMap::new();
        for Duplicate { id, place, .. } in self.duplicates.borrow().iter() {
            let best = others.entry(*id).or_insert(*place);
            if place.version > best.version {
                *best = *place;
            }
        }
        for (id, _) in &chunks {
            self.core.remove(*id);
            match others.get(id) {
                Some(place) => {
                    self.core.insert(*id, *place);
                    self.duplicates.borrow_mut().retain(|duplicate| (duplicate.id, duplicate.place) != (*id, *place));
                    self.core.shared.reports.changed(*id);
                }
                None => self.core.shared.reports.lost(*id),
            }
        }
        chunks
    }

    /// Brings this core's chunks of a disk to rest, and its log; the disk is being taken out.
    async fn close_chunks_of(&self, index: u16) -> Closed {
        let volume = self.volume(index);
        let has_duplicates = self.has_duplicates(index);
        let until = self.ring.now() + CLOSE_WAIT;
        while volume.arrivals.get() > 0 && self.ring.now() < until {
            self.ring.sleep(ARRIVAL_NAP).await;
        }
        let all_arrived = volume.arrivals.get() == 0;
        let chunks = self.forget_chunks_of(index);
        let mut sound = true;
        let mut listable = !has_duplicates && all_arrived;
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
            sound = self.rest_log(index, &volume).await;
        }
        Closed { sound, listable, chunks }
    }

    /// True length and table, with the device: the log will not speak of this chunk any more. The caller holds it alone.
    pub(super) async fn bring_to_rest(&self, chunk: &Chunk) -> Result<(), ChunkError> {
        self.trim(chunk).await?;
        self.write_table(chunk).await?;
        let file = chunk.state.borrow().as_ref().map(|open| open.file.clone());
        match file {
            Some(file) => self.sync_file(chunk, &file).await,
            None => Ok(()),
        }
    }

    pub(super) fn has_duplicates(&self, index: u16) -> bool {
        self.duplicates.borrow().iter().any(|duplicate| duplicate.place.volume == index)
    }

    /// All tables are written: says so in this core's log. False if that cannot be said.
    pub(super) async fn rest_log(&self, index: u16, volume: &Volume) -> bool {
        let Some(log) = &volume.intents else { return true };
        // The log has to say again what was not put right, and what is on a disk that was given up.
        let must_speak = || volume.is_recovering() || volume.state() == VolumeState::Damaged;
        if must_speak() {
            return false;
        }
        if let Err(error) = self.checkpoint(index).await {
            tracing::error!("{}: cannot be synced: {error}", volume.folder.display());
            return false;
        }
        if must_speak() {
            return false;
        }
        if let Err(error) = log.finish().await {
            tracing::error!("{}: the next start looks at everything: {error}", volume.folder.display());
            return false;
        }
        true
    }
}
