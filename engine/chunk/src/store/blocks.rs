//! Reading and writing the blocks of one chunk.
//!
//! What one 64 KiB read costs: one disk read straight into the pool buffer it is sent from, 1.1 µs of checksum, no
//! copy. A 64 KiB write: the log's page (shared with whoever writes at that moment), one disk write from the buffer it
//! came in, no read. A part of a block: a read and a write of that part, rounded to the disk's sectors.
//!
//! Locks, always in this order: a turn at the block, a shared hold of the chunk, the file lock. A reader takes no turn
//! at first; if the sum does not fit, somebody may be writing the block just now, so it looks again when it is its turn
//! and only then calls the block bad.

use std::ops::Range;
use std::rc::Rc;

use ring::{Block, File, IoBuf, IoBufExt, SharedBlock, Slice};
use wire::limits::{BLOCK_BYTES, BLOCKS_PER_CHUNK, EMPTY_BLOCK_CRC};
use wire::{Crc, Version};

use super::sync::copy_of;
use super::{Chunk, Store, check_version};
use crate::error::ChunkError;
use crate::fair_lock::{Guard, Hold, Turn};
use crate::intents::record::Intent;
use crate::layout::{BlockIndex, Form, TABLE_BYTES};
use crate::registry::Place;
use crate::sums::{sum_after_patch, sum_in_zero_block, sum_of};
use crate::volume::Volume;

const BLOCK: usize = BLOCK_BYTES as usize;

/// A part of one block. `offset_bytes + size_bytes` is at most a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) block: BlockIndex,
    pub(crate) offset_bytes: u32,
    pub(crate) size_bytes: u32,
}

impl Part {
    fn is_whole_block(self) -> bool {
        self.size_bytes == BLOCK_BYTES
    }

    fn tail_bytes(self) -> u32 {
        BLOCK_BYTES - self.offset_bytes - self.size_bytes
    }

    /// The part widened to whole sectors: start and length.
    fn aligned(self, alignment: u32) -> (usize, usize) {
        let start = self.offset_bytes - self.offset_bytes % alignment;
        let end = (self.offset_bytes + self.size_bytes).next_multiple_of(alignment);
        (start as usize, (end - start) as usize)
    }
}

/// What one operation on a block needs to know of the open file; a snapshot.
struct View {
    file: File,
    volume: Rc<Volume>,
    place: Place,
    form: Form,
    alignment: u32,
    exists: bool,
    file_reaches: bool,
    sum: Crc,
}

impl Chunk {
    fn view(&self, block: BlockIndex, version: Version) -> Result<View, ChunkError> {
        let state = self.state.borrow();
        let open = state.as_ref().ok_or(ChunkError::NoChunk)?;
        check_version(open.place.version, version)?;
        Ok(View {
            file: open.file.clone(),
            volume: open.volume.clone(),
            place: open.place,
            form: open.form,
            alignment: open.alignment,
            exists: block.number() < open.blocks,
            file_reaches: block.number() < open.file_blocks,
            sum: open.sums.get(block),
        })
    }

    /// Where the chunk's file is and which sum the block has; None if there is no such block.
    fn identity(&self, block: BlockIndex) -> Option<(Place, Crc)> {
        let state = self.state.borrow();
        let open = state.as_ref().filter(|open| block.number() < open.blocks)?;
        Some((open.place, open.sums.get(block)))
    }

    /// Notes that a write begins; see `OpenFile::writes_under_way`.
    fn begin_write(&self, first_page: u64) -> u64 {
        let mut state = self.state.borrow_mut();
        let open = state.as_mut().expect("the chunk is held and was seen open");
        let ticket = open.next_write;
        open.next_write += 1;
        open.writes_under_way.push((ticket, first_page));
        ticket
    }

    fn end_write(&self, ticket: u64, written: Option<(BlockIndex, Crc)>) {
        let mut state = self.state.borrow_mut();
        let Some(open) = state.as_mut() else { return };
        open.writes_under_way.retain(|(other, _)| *other != ticket);
        if let Some((block, sum)) = written {
            open.sums.set(block, sum);
            let grown = block.count_through().saturating_sub(open.blocks);
            open.blocks += grown;
            open.volume.add_blocks(u64::from(grown));
            open.sums_changed = true;
        }
    }
}

impl Store {
    /// A whole block and its sum from the cache, if it is there and nothing stands in the way of reading it now.
    /// `part_bytes`: what of it is wanted.
    pub(crate) fn cached_block(
        &self,
        chunk: &Chunk,
        version: Version,
        block: BlockIndex,
        part_bytes: Range<u32>,
    ) -> Option<(SharedBlock, Crc)> {
        if !chunk.lock.is_open() {
            return None; // the chunk is being changed as a whole
        }
        let (place, sum) = chunk.identity(block)?;
        check_version(place.version, version).ok()?;
        let shared = self.cache.get(chunk.id, block, (place, sum), part_bytes)?;
        Some((shared, sum))
    }

    /// Is the block in the cache as the chunk has it now?
    pub(crate) fn is_cached(&self, chunk: &Chunk, block: BlockIndex) -> bool {
        chunk.identity(block).is_some_and(|identity| self.cache.has(chunk.id, block, identity))
    }

    /// As `read_block`; the block is left in the cache. `read_to_bytes`: where the part ends that is wanted.
    pub(crate) async fn read_block_to_share(
        &self,
        chunk: &Rc<Chunk>,
        version: Version,
        block: BlockIndex,
        read_to_bytes: u32,
        buffer: Block,
    ) -> Result<(SharedBlock, Crc), ChunkError> {
        let load = self.cache.begin_load(chunk.id, block);
        let read = self.read_block(chunk, version, block, buffer).await;
        // From here on nothing waits: the chunk is as the read left it.
        let read = read.map(|(buffer, sum)| (buffer.share(), sum));
        let identity = chunk.identity(block);
        let loaded = match (&read, identity) {
            (Ok((shared, sum)), Some((place, current_sum))) if *sum == current_sum => Some((place, *sum, shared)),
            _ => None,
        };
        self.cache.end_load(load, loaded, read_to_bytes);
        read
    }

    /// A whole block, verified, in a pool buffer, with its sum. Behind the end of the chunk: zeros.
    ///
    /// Errors: `Sum` if the block on disk is not what the table says; `Disk`, `WrongVersion`, `NoChunk`, `Busy`. The
    /// first two are reported to the master.
    pub(crate) async fn read_block(
        &self,
        chunk: &Rc<Chunk>,
        version: Version,
        block: BlockIndex,
        buffer: Block,
    ) -> Result<(Block, Crc), ChunkError> {
        let volume = chunk.volume();
        let result = self.read_block_twice(chunk, version, block, buffer).await;
        if let (Err(error), Some(volume)) = (&result, volume) {
            self.note_fault(chunk.id, &volume, error);
        }
        result
    }

    async fn read_block_twice(
        &self,
        chunk: &Rc<Chunk>,
        version: Version,
        block: BlockIndex,
        buffer: Block,
    ) -> Result<(Block, Crc), ChunkError> {
        let shared = self.hold(chunk, Hold::Shared).await?;
        let (buffer, first) = self.read_block_once(chunk, version, block, buffer).await?;
        if let Some(sum) = first {
            return Ok((buffer, sum));
        }
        drop(shared); // whoever has the turn at the block may wait for the chunk
        let _turn = self.wait_turn(chunk.block_turn(block)).await?;
        let _shared = self.hold(chunk, Hold::Shared).await?;
        let (buffer, second) = self.read_block_once(chunk, version, block, buffer).await?;
        Ok((buffer, second.ok_or(ChunkError::Sum)?))
    }

    /// The sum is None if it does not fit the bytes.
    async fn read_block_once(
        &self,
        chunk: &Chunk,
        version: Version,
        block: BlockIndex,
        mut buffer: Block,
    ) -> Result<(Block, Option<Crc>), ChunkError> {
        let view = chunk.view(block, version)?;
        if !view.exists {
            buffer.payload_mut().fill(0);
            return Ok((buffer, Some(Crc(EMPTY_BLOCK_CRC))));
        }
        let started = self.ring.now();
        let _under_way = view.volume.health.begin(&self.ring);
        let (result, buffer) = view.file.read_at(buffer, view.form.block_offset(block)).await;
        let count = result?;
        view.volume.stats.read.add(count as u64, self.ring.now() - started);
        let sound = count == BLOCK && sum_of(buffer.payload()) == view.sum;
        Ok((buffer, sound.then_some(view.sum)))
    }

    /// Writes a part of a block. `turn`: the place in the line at this block, taken when the data came in. `data`:
    /// exactly the part's bytes, whose sum the caller has checked to be `sum`.
    ///
    /// The bytes are with the disk when this returns; the table is in memory, and its new entry in the intent log.
    /// Errors: as `read_block`; all but `Busy`, `WrongVersion`, `NoChunk` are reported to the master.
    pub(crate) async fn write_part(
        &self,
        chunk: &Rc<Chunk>,
        version: Version,
        turn: Turn,
        part: Part,
        sum: Crc,
        data: Slice<SharedBlock>,
    ) -> Result<(), ChunkError> {
        assert_eq!(data.range(), 0..part.size_bytes as usize, "data and part agree");
        let volume = chunk.volume();
        let result = self.write_part_in_turn(chunk, version, turn, part, sum, data).await;
        match (&result, volume) {
            (Err(ChunkError::NoSpace), Some(volume)) => self.note_no_space(chunk.id, &volume),
            (Err(error), Some(volume)) => self.note_fault(chunk.id, &volume, error),
            _ => {}
        }
        result
    }

    async fn write_part_in_turn(
        &self,
        chunk: &Rc<Chunk>,
        version: Version,
        turn: Turn,
        part: Part,
        sum: Crc,
        data: Slice<SharedBlock>,
    ) -> Result<(), ChunkError> {
        let _turn = self.wait_turn(turn).await?;
        let _shared = self.hold(chunk, Hold::Shared).await?;
        let view = chunk.view(part.block, version)?;
        if part.size_bytes == 0 {
            return Ok(());
        }
        let log = view.volume.log()?.clone();
        if !view.file_reaches {
            self.extend(chunk, part.block).await?;
        }
        let started = self.ring.now();
        let old = self.cache.take(chunk.id, part.block, (view.place, view.sum)).filter(|_| view.exists);
        let (new_sum, region) = match (part.is_whole_block(), view.exists) {
            (true, _) => (sum, None),
            (false, false) => {
                let region = self.region_in_zeros(&view, part, &data).await;
                (sum_in_zero_block(sum, part.size_bytes, part.tail_bytes()), Some(region))
            }
            (false, true) => {
                let (region, old_part_sum) = self.region_over_old(&view, part, &data, old.as_ref()).await?;
                (sum_after_patch(view.sum, old_part_sum, sum, part.tail_bytes()), region)
            }
        };
        let ticket = chunk.begin_write(log.page_at_hand());
        let is_in_zeros = !view.exists && new_sum.0 == EMPTY_BLOCK_CRC && data.as_bytes().iter().all(|byte| *byte == 0);
        let written = match is_in_zeros {
            true => {
                let _under_way = view.volume.health.begin(&self.ring);
                self.sync_if_asked(chunk, &view.file).await // the file holds zeros here already
            }
            false => self.log_and_write(chunk, &view, part, new_sum, data.clone(), region).await,
        };
        let written = match written {
            Err(ChunkError::NoSpace) => Err(self.after_no_space(&view, part.block).await),
            other => other,
        };
        chunk.end_write(ticket, written.is_ok().then_some((part.block, new_sum)));
        // In one step with the table: what was read meanwhile is not kept, what is there now is.
        self.cache.take(chunk.id, part.block, (view.place, new_sum));
        if written.is_ok()
            && let Some(block) = block_after_write(part, old, data)
        {
            self.cache.put(chunk.id, part.block, (view.place, new_sum), block);
        }
        view.volume.stats.write.add(u64::from(part.size_bytes), self.ring.now() - started);
        written
    }

    async fn log_and_write(
        &self,
        chunk: &Chunk,
        view: &View,
        part: Part,
        new_sum: Crc,
        data: Slice<SharedBlock>,
        region: Option<super::scratch::Scratch>,
    ) -> Result<(), ChunkError> {
        let log = view.volume.intents.as_ref().expect("the caller has seen the log");
        let version = chunk.version().ok_or(ChunkError::NoChunk)?;
        log.record(Intent::Write { id: chunk.id, version, block: part.block, sum: new_sum }).await?;
        if chunk.flushes.get() > 0 || log.is_hurried() {
            log.make_durable().await?; // what is written now may be on the device before the log, and torn
        }
        // Not before: whoever waits for a log that is full does not wait for the disk.
        let _under_way = view.volume.health.begin(&self.ring);
        let block_offset = view.form.block_offset(part.block);
        match region {
            None => view.file.write_all_at(data, block_offset + u64::from(part.offset_bytes)).await.0?,
            Some(mut region) => {
                let (start, length) = part.aligned(view.alignment);
                let (result, piece) =
                    view.file.write_all_at(region.take().slice(0..length), block_offset + start as u64).await;
                region.put(piece.into_inner());
                result?;
            }
        }
        self.sync_if_asked(chunk, &view.file).await
    }

    /// A write into a block found no room. Gives `NoSpace` if the block is as it was before, and else why it is bad.
    ///
    /// A file system that overwrites in place needs room only where a file has a hole, which reads as zeros; what came in
    /// there before the room ended is made zeros again. One that copies on write keeps the old content by itself.
    async fn after_no_space(&self, view: &View, block: BlockIndex) -> ChunkError {
        let old_sum = if view.exists { view.sum } else { Crc(EMPTY_BLOCK_CRC) };
        let position = view.form.block_offset(block);
        let mut scratch = self.scratch.take(&view.volume).await;
        for try_zeros in [true, false] {
            let (result, buffer) = view.file.read_at(scratch.take(), position).await;
            scratch.put(buffer);
            match result {
                Ok(BLOCK) if sum_of(scratch.payload()) == old_sum => return ChunkError::NoSpace,
                Ok(_) if try_zeros && old_sum.0 == EMPTY_BLOCK_CRC => {
                    scratch.payload_mut().fill(0);
                    let (_, buffer) = view.file.write_all_at(scratch.take(), position).await; // as far as it came
                    scratch.put(buffer);
                }
                Ok(_) => return ChunkError::Sum,
                Err(error) => return ChunkError::Disk(error),
            }
        }
        ChunkError::Sum
    }

    /// Under the policy `synced`: as `flush`.
    pub(super) async fn sync_if_asked(&self, chunk: &Chunk, file: &File) -> Result<(), ChunkError> {
        if self.settings.is_synced() { self.flush(chunk, file).await } else { Ok(()) }
    }

    /// Returns when the device has all that was written to the file until now. Those who wait at the same time share a
    /// flush.
    pub(super) async fn flush(&self, chunk: &Chunk, file: &File) -> Result<(), ChunkError> {
        let mine = chunk.writes_ended.get() + 1;
        chunk.writes_ended.set(mine);
        let _flushing = chunk.sync_lock.enqueue(Hold::Exclusive).await;
        if chunk.writes_synced.get() >= mine {
            return Ok(());
        }
        let ended = chunk.writes_ended.get();
        self.sync_file(chunk, file).await?;
        chunk.writes_synced.set(ended);
        Ok(())
    }

    /// Returns when the device has the file. After a failure it fails for good: the system has dropped what it could not
    /// write, and would call the next sync a success.
    pub(super) async fn sync_file(&self, chunk: &Chunk, file: &File) -> Result<(), ChunkError> {
        if let Some(error) = &*chunk.sync_failed.borrow() {
            return Err(ChunkError::Disk(copy_of(error)));
        }
        let Err(error) = file.datasync().await else { return Ok(()) };
        chunk.sync_failed.replace(Some(copy_of(&error)));
        if let Some(volume) = chunk.volume() {
            self.note_failed_sync(chunk.id, &volume, &error);
        }
        Err(ChunkError::Disk(error))
    }

    /// The sectors of a part that is written into zeros.
    async fn region_in_zeros(&self, view: &View, part: Part, data: &impl IoBuf) -> super::scratch::Scratch {
        let (start, length) = part.aligned(view.alignment);
        let mut region = self.scratch.take(&view.volume).await;
        let sectors = &mut region.payload_mut()[..length];
        sectors.fill(0);
        let at = part.offset_bytes as usize - start;
        sectors[at..at + part.size_bytes as usize].copy_from_slice(data.as_bytes());
        region
    }

    /// The sectors of a part that replaces older bytes, and the sum of those bytes. `cached`: the old block, if the cache
    /// had it: then nothing is read, and a part that consists of whole sectors needs no region.
    async fn region_over_old(
        &self,
        view: &View,
        part: Part,
        data: &impl IoBuf,
        cached: Option<&SharedBlock>,
    ) -> Result<(Option<super::scratch::Scratch>, Crc), ChunkError> {
        let (start, length) = part.aligned(view.alignment);
        let at = part.offset_bytes as usize - start;
        let within = at..at + part.size_bytes as usize;
        if let Some(cached) = cached {
            let sectors = &cached.payload()[start..start + length];
            let old_sum = sum_of(&sectors[within.clone()]);
            if within == (0..length) {
                return Ok((None, old_sum));
            }
            let mut region = self.scratch.take(&view.volume).await;
            region.payload_mut()[..length].copy_from_slice(sectors);
            region.payload_mut()[within].copy_from_slice(data.as_bytes());
            return Ok((Some(region), old_sum));
        }
        let position = view.form.block_offset(part.block) + start as u64;
        let mut region = self.scratch.take(&view.volume).await;
        let under_way = view.volume.health.begin(&self.ring);
        let (result, piece) = view.file.read_at(region.take().slice(0..length), position).await;
        drop(under_way);
        region.put(piece.into_inner());
        if result? != length {
            return Err(ChunkError::BadLength);
        }
        let old = &mut region.payload_mut()[within];
        let old_sum = sum_of(old);
        old.copy_from_slice(data.as_bytes());
        Ok((Some(region), old_sum))
    }

    /// Makes the file reach over `block`, and some way further when the chunk seems to grow as a stream: appending
    /// block by block costs three to four times as much. What is extended reads as valid empty blocks, for which the
    /// table on disk must say so before.
    async fn extend(&self, chunk: &Chunk, block: BlockIndex) -> Result<(), ChunkError> {
        let _file_lock = chunk.file_lock.enqueue(Hold::Exclusive).await;
        let (file, form, file_blocks, tail_is_empty) = {
            let state = chunk.state.borrow();
            let open = state.as_ref().ok_or(ChunkError::NoChunk)?;
            (open.file.clone(), open.form, open.file_blocks, open.tail_is_empty)
        };
        if block.number() < file_blocks {
            return Ok(()); // somebody else has been here
        }
        if !tail_is_empty {
            self.write_table_held(chunk).await?;
        }
        let old_bytes = form.file_bytes(file_blocks);
        let allocate = async |blocks: u16| file.allocate(old_bytes, form.file_bytes(blocks) - old_bytes).await;
        let mut reached = blocks_ahead(block);
        let mut allocated = allocate(reached).await;
        if is_full(&allocated) && reached > block.count_through() {
            reached = block.count_through();
            file.set_len(old_bytes).await?; // gives back what was allocated before the room ended
            allocated = allocate(reached).await;
        }
        if is_full(&allocated) {
            file.set_len(old_bytes).await?;
            return Err(ChunkError::NoSpace);
        }
        if allocated.is_err() {
            // A file system that cannot allocate: what this write needs, as a hole.
            reached = block.count_through();
            file.set_len(form.file_bytes(reached)).await?;
        }
        if let Some(open) = chunk.state.borrow_mut().as_mut() {
            open.file_blocks = reached;
        }
        Ok(())
    }

    /// Writes the table if it changed. The caller holds the chunk, shared or alone, or nobody writes.
    pub(crate) async fn write_table(&self, chunk: &Chunk) -> Result<(), ChunkError> {
        let _file_lock = chunk.file_lock.enqueue(Hold::Exclusive).await;
        if chunk.has_unwritten_sums() { self.write_table_held(chunk).await } else { Ok(()) }
    }

    /// Writes the table, changed or not: the intent log wants to be sure.
    pub(super) async fn write_table_anyway(&self, chunk: &Chunk) -> Result<(), ChunkError> {
        let _file_lock = chunk.file_lock.enqueue(Hold::Exclusive).await;
        self.write_table_held(chunk).await
    }

    pub(super) async fn write_table_held(&self, chunk: &Chunk) -> Result<(), ChunkError> {
        let volume = chunk.volume().ok_or(ChunkError::NoChunk)?;
        let mut scratch = self.table_scratch.take_for_table(&volume).await;
        let (file, volume, position, settled_before) = {
            let mut state = chunk.state.borrow_mut();
            let open = state.as_mut().ok_or(ChunkError::NoChunk)?;
            open.sums.encode(&mut scratch.payload_mut()[..TABLE_BYTES]);
            open.sums_changed = false;
            let settled_before = match (open.writes_under_way.iter().map(|(_, page)| *page).min(), &open.volume.intents)
            {
                (Some(first_page), _) => first_page,
                (None, Some(log)) => log.next_page(),
                (None, None) => 0,
            };
            (open.file.clone(), open.volume.clone(), open.form.table_offset(), settled_before)
        };
        let started = self.ring.now();
        let _under_way = volume.health.begin(&self.ring);
        let (result, piece) = file.write_all_at(scratch.take().slice(0..TABLE_BYTES), position).await;
        scratch.put(piece.into_inner());
        volume.stats.header_write.add(TABLE_BYTES as u64, self.ring.now() - started);
        let mut result = result.map_err(ChunkError::from);
        if result.is_ok() && self.settings.is_synced() {
            result = self.sync_file(chunk, &file).await;
        }
        if let Some(open) = chunk.state.borrow_mut().as_mut() {
            open.sums_changed |= result.is_err();
            open.tail_is_empty |= result.is_ok();
        }
        if let Err(error) = result {
            self.note_fault(chunk.id, &volume, &error);
            return Err(error);
        }
        if let Some(log) = &volume.intents {
            log.table_written(chunk.id, settled_before);
            if self.settings.is_synced() {
                log.tables_are_durable([(chunk.id, settled_before)]);
            }
        }
        Ok(())
    }

    /// A write session begins. Pair with `end_session`.
    pub(crate) fn begin_session(&self, chunk: &Chunk) {
        chunk.write_sessions.set(chunk.write_sessions.get() + 1);
    }

    /// A write session ended: the table goes to disk, and after the last one the file gets its true length.
    pub(crate) async fn end_session(&self, chunk: &Rc<Chunk>) {
        chunk.write_sessions.set(chunk.write_sessions.get() - 1);
        chunk.last_used.set(self.ring.now());
        let alone = chunk.lock.enqueue(Hold::Exclusive).await;
        self.rest(chunk, alone).await;
    }

    /// Table and length as any chunkserver wants them. Errors were reported where they arose.
    async fn rest(&self, chunk: &Rc<Chunk>, alone: Guard) {
        if chunk.state.borrow().is_none() {
            return; // deleted meanwhile
        }
        if chunk.write_sessions.get() == 0
            && let Err(error) = self.trim(chunk).await
        {
            tracing::warn!("chunk {}: cannot give back what was allocated ahead: {error}", chunk.id);
        }
        let _ = self.write_table(chunk).await; // reported to the master there
        drop(alone);
    }

    /// Cuts off what was extended ahead. The caller holds the chunk alone.
    pub(crate) async fn trim(&self, chunk: &Chunk) -> Result<(), ChunkError> {
        let (file, length, blocks) = {
            let state = chunk.state.borrow();
            let open = state.as_ref().ok_or(ChunkError::NoChunk)?;
            if open.file_blocks <= open.blocks {
                return Ok(()); // less: it was cut short, and zeros in place of what it lost help nobody
            }
            (open.file.clone(), open.form.file_bytes(open.blocks), open.blocks)
        };
        file.set_len(length).await?;
        if let Some(open) = chunk.state.borrow_mut().as_mut() {
            open.file_blocks = blocks;
        }
        Ok(())
    }
}

impl Chunk {
    pub(crate) fn version(&self) -> Option<Version> {
        self.state.borrow().as_ref().map(|open| open.place.version)
    }
}

fn is_full(result: &std::io::Result<()>) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    result.as_ref().is_err_and(|error| matches!(error.kind(), StorageFull | QuotaExceeded))
}

/// What the cache may hold after a write: the block that was written whole, or the old one with the part replaced, if
/// nobody is sending it just now.
fn block_after_write(part: Part, old: Option<SharedBlock>, data: Slice<SharedBlock>) -> Option<SharedBlock> {
    if part.is_whole_block() {
        return Some(data.into_inner());
    }
    let mut block = old?.unshare().ok()?;
    let start = part.offset_bytes as usize;
    block.payload_mut()[start..start + part.size_bytes as usize].copy_from_slice(data.as_bytes());
    Some(block.share())
}

/// Blocks that a file should have when `block` is written to: a first block alone, since most files are small; then as
/// much again, from 1 MiB to 8 MiB.
fn blocks_ahead(block: BlockIndex) -> u16 {
    let needed = block.count_through();
    if needed == 1 { 1 } else { (needed + needed.clamp(16, 128)).min(BLOCKS_PER_CHUNK) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_file_takes_one_block_and_a_stream_more_and_more() {
        let ahead = |block| blocks_ahead(BlockIndex::new(block).unwrap());
        assert_eq!(
            [ahead(0), ahead(1), ahead(63), ahead(500), ahead(1000), ahead(1023)],
            [1, 18, 128, 629, 1024, 1024]
        );
    }

    #[test]
    fn a_part_is_widened_to_whole_sectors() {
        let part = |offset_bytes, size_bytes| Part { block: BlockIndex::new(0).unwrap(), offset_bytes, size_bytes };
        assert_eq!(part(0, 1).aligned(512), (0, 512));
        assert_eq!(part(511, 2).aligned(512), (0, 1024));
        assert_eq!(part(65_535, 1).aligned(4096), (61_440, 4096));
        assert_eq!(part(3, 10).aligned(1), (3, 10));
        assert!(part(0, 65_536).is_whole_block());
        assert_eq!(part(3, 10).tail_bytes(), 65_523);
    }
}
