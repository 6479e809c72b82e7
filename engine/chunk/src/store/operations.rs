//! What the master orders: create, delete, set version, duplicate, truncate, duptrunc, test. Spec 20, 6; Spec 40, 8.
//!
//! Each leaves the chunk as before or as after, also when the server dies in the middle. New files are built under a
//! temporary name and renamed when they are whole. A change of version is the renaming; a header that lags behind is
//! put right when the file is next opened. A truncation is logged before it begins, and done again at the next start
//! if it may not have ended.

use std::io;
use std::path::Path;
use std::rc::Rc;

use ring::{File, IoBufExt, OpenHow};
use wire::limits::{BLOCK_BYTES, BLOCKS_PER_CHUNK, CHUNK_BYTES, EMPTY_BLOCK_CRC};
use wire::{ChunkId, Crc, MatocsChunkop, Version};

use super::{Chunk, OpenFile, Store};
use crate::error::ChunkError;
use crate::fair_lock::{Guard, Hold};
use crate::intents::record::Intent;
use crate::layout::{BlockIndex, Form, HeaderWords, TABLE_BYTES, encode_header, shape};
use crate::registry::Place;
use crate::sums::{SumTable, sum_of};
use crate::volume::Volume;

/// A chunk file that is being built under a temporary name.
pub(crate) struct NewFile {
    pub(super) chunk: Rc<Chunk>,
    pub(super) _alone: Guard,
    pub(crate) volume: Rc<Volume>,
    pub(crate) file: File,
    pub(super) sums: SumTable,
    pub(super) blocks: u16,
}

impl Store {
    /// A chunk without data. Errors: `Exists`, `NoSpace`, `Disk`.
    pub(crate) async fn create(&self, id: ChunkId, version: Version) -> Result<(), ChunkError> {
        let new = self.begin_file(id).await?;
        self.finish_file(new, version, false).await
    }

    /// Removes a chunk; also one whose file is damaged or gone. Errors: `NoChunk`, `WrongVersion`, `Busy`, `Disk`.
    pub(crate) async fn delete(&self, id: ChunkId, version: Version) -> Result<(), ChunkError> {
        let chunk = self.known(id)?;
        let _alone = self.hold(&chunk, Hold::Exclusive).await?;
        let place = self.place(id)?;
        super::check_version(place.version, version)?;
        let volume = self.volume(place.volume);
        let _under_way = volume.health.begin(&self.ring);
        let path = volume.chunk_path(place.subfolder, id, place.version);
        let mut blocks = chunk.counted_blocks();
        if chunk.state.borrow().is_none() && volume.has_limit() {
            let shape = self.ring.stat(&path).await.ok().and_then(|stat| shape(stat.size));
            blocks = shape.map_or(0, |(_, blocks)| blocks);
        }
        match self.ring.unlink(&path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let error = ChunkError::Disk(error);
                self.note_fault(id, &volume, &error);
                return Err(error);
            }
            _ => {}
        }
        self.sync_name_if_asked(&path).await?;
        self.core.remove(id);
        volume.count_file(place.subfolder, -1);
        volume.remove_blocks(u64::from(blocks));
        if let Some(log) = &volume.intents {
            log.settle(id, u64::MAX);
        }
        self.forget(&chunk);
        self.core.shared.reports.forget(id);
        self.forget_torn(id).await;
        Ok(())
    }

    /// Errors: `Invalid` for version 0, `NoChunk`, `WrongVersion`, `Busy`, `Disk`; `Sum` if a crash tore a block and the
    /// master may not have heard of it yet.
    pub(crate) async fn set_version(&self, id: ChunkId, new: Version, old: Version) -> Result<(), ChunkError> {
        if new == Version::ANY {
            return Err(ChunkError::Invalid);
        }
        let torn = self.torn_to_accept(id)?;
        let (chunk, _alone) = self.open_alone(id, old).await?;
        if let Some(torn) = torn {
            self.accept_torn(&chunk, &torn).await?;
        }
        self.change_version(&chunk, new).await
    }

    /// A new chunk with the content of another one, cut or extended to `length_bytes` if that is given.
    ///
    /// Errors: `Invalid`, `Exists`, `NoSpace`, `NoChunk`, `WrongVersion`, `Busy`, `Sum`, `Disk`.
    pub(crate) async fn duplicate(
        &self,
        new: (ChunkId, Version),
        old: (ChunkId, Version),
        length_bytes: Option<u32>,
    ) -> Result<(), ChunkError> {
        if new.0.0 == 0 || old.1 == Version::ANY || length_bytes.is_some_and(|length| length > CHUNK_BYTES) {
            return Err(ChunkError::Invalid);
        }
        let (source, _alone) = self.open_alone(old.0, old.1).await?;
        self.duplicate_from(&source, new, length_bytes).await
    }

    async fn duplicate_from(
        &self,
        source: &Rc<Chunk>,
        (id, version): (ChunkId, Version),
        length_bytes: Option<u32>,
    ) -> Result<(), ChunkError> {
        let version = if version == Version::ANY { source.version().ok_or(ChunkError::NoChunk)? } else { version };
        if !self.core.owns(id) {
            return self.duplicate_for_another_core(source, (id, version), length_bytes).await;
        }
        let mut new = self.begin_file(id).await?;
        if let Err(error) = self.copy_blocks(source, &mut new, length_bytes).await {
            self.abandon_file(new).await;
            return Err(error);
        }
        self.finish_file(new, version, true).await
    }

    /// Sets the version, then cuts or extends to `length_bytes`.
    ///
    /// Errors: `Invalid`, `NoChunk`, `WrongVersion`, `Busy`, `Disk`; `Sum` if the block in which the chunk is cut has
    /// rotted: then nothing is changed, since its new sum would call the rot good.
    pub(crate) async fn truncate(
        &self,
        id: ChunkId,
        length_bytes: u32,
        new: Version,
        old: Version,
    ) -> Result<(), ChunkError> {
        if length_bytes > CHUNK_BYTES || new == Version::ANY {
            return Err(ChunkError::Invalid);
        }
        self.refuse_torn(id)?;
        let (chunk, _alone) = self.open_alone(id, old).await?;
        self.truncate_held(&chunk, length_bytes, new).await
    }

    async fn truncate_held(&self, chunk: &Rc<Chunk>, length_bytes: u32, new: Version) -> Result<(), ChunkError> {
        self.write_table(chunk).await?;
        let volume = chunk.volume().ok_or(ChunkError::NoChunk)?;
        let _turn = volume.truncations.acquire(1).await;
        let last = self.last_block_after_cut(chunk, length_bytes).await;
        let last = last.inspect_err(|error| self.note_fault(chunk.id, &volume, error))?;
        let last_sum = last.as_ref().map_or(Crc(0), |(_, sum)| *sum);
        let log = volume.log()?;
        log.record(Intent::Truncate { id: chunk.id, version: new, length_bytes, last_sum }).await?;
        log.make_durable().await?; // what is cut is cut at once
        self.change_version(chunk, new).await?;
        let cut = async {
            self.cut(chunk, length_bytes, last).await?;
            // Doing it again after a crash would cut off what is written from now on.
            let file = chunk.state.borrow().as_ref().map(|open| open.file.clone()).ok_or(ChunkError::NoChunk)?;
            self.flush_with_log(chunk, &file, &volume).await
        };
        // It has the new version and not the new length.
        cut.await.map_err(ChunkError::half_done).inspect_err(|error| self.note_fault(chunk.id, &volume, error))
    }

    /// The content and sum of the block inside which a cut to `length_bytes` lies; None if it lies between blocks, or
    /// behind the end of the chunk.
    pub(super) async fn last_block_after_cut(
        &self,
        chunk: &Rc<Chunk>,
        length_bytes: u32,
    ) -> Result<Option<(super::scratch::Scratch, Crc)>, ChunkError> {
        let within_bytes = (length_bytes % BLOCK_BYTES) as usize;
        let block = BlockIndex::new(length_bytes / BLOCK_BYTES).filter(|block| block.number() < chunk.blocks());
        let Some(block) = block.filter(|_| within_bytes > 0) else { return Ok(None) };
        let (file, volume, position, sum) = {
            let state = chunk.state.borrow();
            let open = state.as_ref().ok_or(ChunkError::NoChunk)?;
            (open.file.clone(), open.volume.clone(), open.form.block_offset(block), open.sums.get(block))
        };
        let mut scratch = self.scratch.take(&volume).await;
        let (result, buffer) = file.read_at(scratch.take(), position).await;
        scratch.put(buffer);
        if result? != BLOCK_BYTES as usize || sum_of(scratch.payload()) != sum {
            return Err(ChunkError::Sum);
        }
        scratch.payload_mut()[within_bytes..].fill(0);
        let new_sum = sum_of(scratch.payload());
        Ok(Some((scratch, new_sum)))
    }

    /// Brings file and table to `length_bytes`. Doing it again changes nothing. The caller holds the chunk alone.
    pub(super) async fn cut(
        &self,
        chunk: &Rc<Chunk>,
        length_bytes: u32,
        last: Option<(super::scratch::Scratch, Crc)>,
    ) -> Result<(), ChunkError> {
        let new_blocks = length_bytes.div_ceil(BLOCK_BYTES) as u16;
        self.cache.forget_chunk(chunk.id); // nobody reads from now on until we let go of the chunk
        let (file, form, old_blocks, file_blocks, tail_is_empty) = {
            let state = chunk.state.borrow();
            let open = state.as_ref().ok_or(ChunkError::NoChunk)?;
            (open.file.clone(), open.form, open.blocks, open.file_blocks, open.tail_is_empty)
        };
        if new_blocks > old_blocks && !tail_is_empty {
            let _file_lock = chunk.file_lock.enqueue(Hold::Exclusive).await;
            self.write_table_held(chunk).await?;
        }
        if let Some((mut scratch, sum)) = last {
            let block = BlockIndex::new(u32::from(new_blocks) - 1).expect("a cut inside a block keeps that block");
            let (result, buffer) = file.write_all_at(scratch.take(), form.block_offset(block)).await;
            scratch.put(buffer);
            result?;
            if let Some(open) = chunk.state.borrow_mut().as_mut() {
                open.sums.set(block, sum);
            }
        }
        if new_blocks != file_blocks {
            file.set_len(form.file_bytes(new_blocks)).await?;
        }
        {
            let mut state = chunk.state.borrow_mut();
            let open = state.as_mut().ok_or(ChunkError::NoChunk)?;
            open.sums.cut(new_blocks);
            open.blocks = new_blocks;
            open.file_blocks = new_blocks;
            open.sums_changed = true;
            open.volume.add_blocks(u64::from(new_blocks));
            open.volume.remove_blocks(u64::from(old_blocks.min(file_blocks)));
        }
        self.write_table(chunk).await
    }

    /// Reads and verifies every block. Errors: as `read_block`.
    pub(crate) async fn test(&self, id: ChunkId, version: Version) -> Result<(), ChunkError> {
        let chunk = self.open(id, version).await?;
        let mut buffer = self.ring.wait_buffer().await;
        for block in (0..chunk.blocks()).filter_map(|block| BlockIndex::new(u32::from(block))) {
            (buffer, _) = self.read_block(&chunk, version, block, buffer).await?;
        }
        Ok(())
    }

    /// The generic order. Which operation it means: Spec 40, 8.2.
    pub(crate) async fn chunkop(&self, order: &MatocsChunkop) -> Result<(), ChunkError> {
        const NO_LENGTH: u32 = 0xFFFF_FFFF;
        let &MatocsChunkop { chunkid, version, newversion, copychunkid, copyversion, length } = order;
        let copy = (copychunkid, if copyversion == Version::ANY { newversion } else { copyversion });
        let raises = newversion != version;
        match (newversion.0 > 0, length, copychunkid.0 > 0) {
            (true, NO_LENGTH, false) => self.set_version(chunkid, newversion, version).await,
            (true, 0..=CHUNK_BYTES, false) => self.truncate(chunkid, length, newversion, version).await,
            (true, NO_LENGTH | 0..=CHUNK_BYTES, true) => {
                let (source, _alone) = self.open_alone(chunkid, version).await?;
                if raises {
                    self.change_version(&source, newversion).await?;
                }
                self.duplicate_from(&source, copy, (length != NO_LENGTH).then_some(length)).await
            }
            (false, 0, _) => self.delete(chunkid, version).await,
            (false, 1, _) => self.create(chunkid, version).await,
            (false, 2, _) => self.test(chunkid, version).await,
            _ => Err(ChunkError::Invalid),
        }
    }

    /// Renames the file and rewrites the header. The caller holds the chunk alone.
    pub(super) async fn change_version(&self, chunk: &Rc<Chunk>, new: Version) -> Result<(), ChunkError> {
        self.write_table(chunk).await?;
        let (file, volume, place) = {
            let state = chunk.state.borrow();
            let open = state.as_ref().ok_or(ChunkError::NoChunk)?;
            (open.file.clone(), open.volume.clone(), open.place)
        };
        if place.version == new {
            return Ok(());
        }
        // What the log knows of a chunk ends with its version.
        self.flush_with_log(chunk, &file, &volume).await?;
        let changed = self.rename_and_write_header(chunk, &volume, place, new).await;
        changed.inspect_err(|error| self.note_fault(chunk.id, &volume, error))
    }

    async fn rename_and_write_header(
        &self,
        chunk: &Rc<Chunk>,
        volume: &Rc<Volume>,
        place: Place,
        new: Version,
    ) -> Result<(), ChunkError> {
        let _under_way = volume.health.begin(&self.ring);
        let old_path = volume.chunk_path(place.subfolder, chunk.id, place.version);
        let new_path = volume.chunk_path(place.subfolder, chunk.id, new);
        chunk.name_is_durable.set(false);
        self.ring.rename(&old_path, &new_path).await?;
        let made = self.make_name_true(chunk, new, &new_path).await.map_err(ChunkError::half_done);
        if made.is_err() && self.ring.rename(&new_path, &old_path).await.is_ok() {
            return made; // a header that says otherwise is put right when the file is next opened
        }
        // Also after an error: the file has this name, and by it alone it can be found again.
        if chunk.gone.get() {
            return made.and(Err(ChunkError::NoChunk)); // its disk was given up meanwhile
        }
        let place = Place { version: new, ..place };
        self.core.insert(chunk.id, place);
        if let Some(open) = chunk.state.borrow_mut().as_mut() {
            open.place = place;
        }
        made
    }

    /// The header, and the device, agree with the name that the file was just given.
    async fn make_name_true(&self, chunk: &Rc<Chunk>, new: Version, path: &Path) -> Result<(), ChunkError> {
        let open = chunk.state.borrow_mut().take().ok_or(ChunkError::NoChunk)?;
        let written = self.write_header(&open, chunk.id, new).await;
        let file = open.file.clone();
        *chunk.state.borrow_mut() = Some(open);
        written?;
        self.sync_if_asked(chunk, &file).await?;
        // Under every policy: the master is about to call every other version outdated, so a name that a power cut
        // takes back would make data unreachable that were on the device long before.
        self.sync_name(path).await?;
        chunk.name_is_durable.set(true);
        Ok(())
    }

    /// Under the policy `synced`: as `sync_name`.
    async fn sync_name_if_asked(&self, path: &Path) -> io::Result<()> {
        if self.settings.is_synced() { self.sync_name(path).await } else { Ok(()) }
    }

    /// The file's name, or its absence, outlives a power cut.
    pub(super) async fn sync_name(&self, path: &Path) -> io::Result<()> {
        match path.parent() {
            Some(folder) => self.ring.sync_dir(folder).await,
            None => Ok(()),
        }
    }

    /// Begins a new chunk on a disk that has room. Errors: `Exists`, `Busy`, `NoSpace`, `Disk`.
    pub(crate) async fn begin_file(&self, id: ChunkId) -> Result<NewFile, ChunkError> {
        let (chunk, alone) = self.reserve(id).await?;
        let begun = self.begin_reserved(id).await;
        match begun {
            Ok((volume, file)) => {
                Ok(NewFile { chunk, _alone: alone, volume, file, sums: SumTable::default(), blocks: 0 })
            }
            Err(error) => {
                self.forget(&chunk);
                Err(error)
            }
        }
    }

    async fn begin_reserved(&self, id: ChunkId) -> Result<(Rc<Volume>, File), ChunkError> {
        let volume = self.choose_volume().ok_or(ChunkError::NoSpace)?;
        let file = self.create_on(&volume, id).await?;
        Ok((volume, file))
    }

    /// An empty file under the chunk's temporary name. Errors: the disk's.
    pub(super) async fn create_on(&self, volume: &Rc<Volume>, id: ChunkId) -> Result<File, ChunkError> {
        let _under_way = volume.health.begin(&self.ring);
        let (mode, as_volume) = (self.settings.get().file_mode, super::how_to_open(volume.mode()));
        let how = OpenHow { read: true, write: true, create: true, truncate: true, mode, ..as_volume };
        let path = volume.temporary_path(id);
        let mut file = self.open_as_volume_allows(volume, &path, how).await?;
        if file.direct_alignment() > Form::Aligned.position_alignment() {
            file = self.ring.open(&path, OpenHow { direct: false, ..how }).await?;
        }
        Ok(file)
    }

    /// Writes a whole verified block of a new chunk. Blocks come in ascending order; those left out are zeros.
    pub(crate) async fn append<D: ring::IoBuf>(
        &self,
        new: &mut NewFile,
        block: BlockIndex,
        sum: Crc,
        data: D,
    ) -> Result<(), ChunkError> {
        let is_empty = sum.0 == EMPTY_BLOCK_CRC && data.as_bytes().iter().all(|byte| *byte == 0);
        if !is_empty {
            new.file.write_all_at(data, Form::Aligned.block_offset(block)).await.0?;
            new.sums.set(block, sum);
        }
        new.blocks = new.blocks.max(block.count_through());
        Ok(())
    }

    /// Says how many blocks a new chunk will have. Errors: `Disk`.
    pub(crate) async fn size_file(&self, new: &mut NewFile, blocks: u16) -> Result<(), ChunkError> {
        assert!(blocks <= BLOCKS_PER_CHUNK, "checked where the number came from");
        new.file.set_len(Form::Aligned.file_bytes(blocks)).await?;
        new.blocks = blocks;
        Ok(())
    }

    /// Writes header and table, gives the file its name and takes the chunk in. `synced`: its data reach the device
    /// before it gets its name.
    pub(crate) async fn finish_file(&self, new: NewFile, version: Version, synced: bool) -> Result<(), ChunkError> {
        match self.name_file(&new, version, synced).await {
            Ok(place) => {
                self.take_in(new, place);
                Ok(())
            }
            Err(error) => {
                self.note_not_made(&new, &error);
                self.abandon_file(new).await;
                Err(error)
            }
        }
    }

    /// Notes that a chunk could not be made, against its disk.
    pub(super) fn note_not_made(&self, new: &NewFile, error: &ChunkError) {
        if matches!(error, ChunkError::NoSpace) {
            new.volume.look_soon();
            tracing::warn!("chunk {}: no room for it on {}", new.chunk.id, new.volume.folder.display());
            return;
        }
        tracing::error!("chunk {} cannot be made on {}: {error}", new.chunk.id, new.volume.folder.display());
        self.core.shared.reports.disk_error();
        if new.volume.note_error(new.chunk.id, error.is_hard(), &self.ring, &self.settings.get()) {
            self.lose_volume(&new.volume);
        }
    }

    /// Removes a chunk that was not finished.
    pub(crate) async fn abandon_file(&self, new: NewFile) {
        let _ = self.ring.unlink(&new.volume.temporary_path(new.chunk.id)).await; // else removed at the next start
        self.forget(&new.chunk);
    }

    pub(super) async fn name_file(&self, new: &NewFile, version: Version, synced: bool) -> Result<Place, ChunkError> {
        let id = new.chunk.id;
        let _under_way = new.volume.health.begin(&self.ring);
        let mut scratch = self.scratch.take(&new.volume).await;
        let front_bytes = Form::Aligned.data_offset() as usize;
        let header_bytes = Form::Aligned.header_bytes() as usize;
        scratch.payload_mut()[..header_bytes].fill(0);
        scratch.payload_mut()[..20].copy_from_slice(&encode_header(HeaderWords { minor: b'0', id, version }));
        new.sums.encode(&mut scratch.payload_mut()[header_bytes..header_bytes + TABLE_BYTES]);
        let (result, piece) = new.file.write_all_at(scratch.take().slice(0..front_bytes), 0).await;
        scratch.put(piece.into_inner());
        result?;
        if synced || self.settings.is_synced() {
            new.file.datasync().await?;
        }
        let subfolder = new.volume.pick_subfolder(self.settings.get().files_per_subfolder_turn);
        let path = new.volume.chunk_path(subfolder, id, version);
        self.ring.rename(&new.volume.temporary_path(id), &path).await?;
        let mut named = if synced || self.settings.is_synced() { self.sync_name(&path).await } else { Ok(()) };
        if named.is_ok() && !new.volume.is_usable() {
            named = Err(io::Error::other("the disk was taken out of use"));
        }
        if let Err(error) = named {
            // Nobody knows this file. At a later start it must not be a copy of the chunk.
            if let Err(stays) = self.ring.unlink(&path).await {
                tracing::error!("{}: the file of a chunk that was not made stays: {stays}", path.display());
            }
            return Err(error.into());
        }
        let volume = self.volumes.borrow().iter().position(|volume| Rc::ptr_eq(volume, &new.volume));
        let volume = volume.expect("volumes are never taken out of the list") as u16;
        Ok(Place { version, volume, subfolder })
    }

    pub(super) fn take_in(&self, new: NewFile, place: Place) {
        self.cache.forget_chunk(new.chunk.id);
        let alignment = new.file.direct_alignment().max(1);
        new.volume.count_file(place.subfolder, 1);
        new.volume.add_blocks(u64::from(new.blocks));
        self.core.insert(new.chunk.id, place);
        *new.chunk.state.borrow_mut() = Some(OpenFile {
            file: new.file,
            volume: new.volume,
            place,
            minor: b'0',
            form: Form::Aligned,
            alignment,
            blocks: new.blocks,
            file_blocks: new.blocks,
            sums: new.sums,
            sums_changed: false,
            tail_is_empty: true,
            writes_under_way: Vec::new(),
            next_write: 0,
        });
        new.chunk.last_used.set(self.ring.now());
    }

    /// Copies all blocks that stay, each verified, then cuts or extends. The caller holds the source alone.
    pub(super) async fn copy_blocks(
        &self,
        source: &Rc<Chunk>,
        new: &mut NewFile,
        length_bytes: Option<u32>,
    ) -> Result<(), ChunkError> {
        let source_blocks = source.blocks();
        let blocks = length_bytes.map_or(source_blocks, |length| length.div_ceil(BLOCK_BYTES) as u16);
        let cut_bytes = length_bytes.map_or(0, |length| (length % BLOCK_BYTES) as usize);
        self.size_file(new, blocks).await?;
        let (file, form, sums) = {
            let state = source.state.borrow();
            let open = state.as_ref().ok_or(ChunkError::NoChunk)?;
            (open.file.clone(), open.form, open.sums.clone())
        };
        let mut buffer = self.ring.wait_buffer().await;
        for number in 0..blocks.min(source_blocks) {
            let block = BlockIndex::new(u32::from(number)).expect("a block of a chunk");
            let (result, read) = file.read_at(buffer, form.block_offset(block)).await;
            buffer = read;
            let mut sum = sums.get(block);
            if result? != BLOCK_BYTES as usize || sum_of(buffer.payload()) != sum {
                if let Some(volume) = source.volume() {
                    self.note_fault(source.id, &volume, &ChunkError::Sum);
                }
                return Err(ChunkError::Sum);
            }
            if number + 1 == blocks && cut_bytes > 0 {
                buffer.payload_mut()[cut_bytes..].fill(0);
                sum = sum_of(buffer.payload());
            }
            let data = Rc::new(buffer);
            self.append(new, block, sum, data.clone()).await?;
            buffer = match Rc::try_unwrap(data) {
                Ok(buffer) => buffer,
                Err(_) => self.ring.wait_buffer().await,
            };
        }
        Ok(())
    }

    /// The disk for a new chunk: each gets them in proportion to its size. Spec 21, 8.3.
    pub(super) fn choose_volume(&self) -> Option<Rc<Volume>> {
        let volumes = self.volumes.borrow();
        let takers: Vec<&Rc<Volume>> = volumes.iter().filter(|volume| volume.takes_chunks()).collect();
        let has_room = |volume: &Volume| {
            let space = volume.space();
            space.available_bytes >= space.total_bytes / 1000
        };
        let roomy: Vec<&Rc<Volume>> = takers.iter().copied().filter(|volume| has_room(volume)).collect();
        let candidates = if roomy.is_empty() { takers } else { roomy };
        let total: f64 = candidates.iter().map(|volume| volume.space().total_bytes as f64).sum();
        for volume in &candidates {
            volume.credit.set(volume.credit.get() + volume.space().total_bytes as f64 / total.max(1.0));
        }
        let chosen = candidates.into_iter().max_by(|a, b| a.credit.get().total_cmp(&b.credit.get()))?;
        chosen.credit.set(chosen.credit.get() - 1.0);
        Some(chosen.clone())
    }
}
