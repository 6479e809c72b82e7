//! What a crash left behind, put right before anybody may read it.
//!
//! The intent log names the chunks that were being changed. For each of their logged blocks the content decides: it
//! fits the table, or one of the logged sums (then the table is put right), or neither: the block was torn, and it stays
//! bad so that it is not served while there is a better copy; see `torn`. Design, section 5.

use std::rc::Rc;

use ring::File;
use wire::limits::{BLOCK_BYTES, EMPTY_BLOCK_CRC};
use wire::{ChunkId, Crc};

use super::torn::{Torn, TornPart};
use super::{Chunk, Repairs, Store, scratch};
use crate::error::ChunkError;
use crate::fair_lock::Hold;
use crate::intents::record::{Repair, Truncation};
use crate::layout::BlockIndex;
use crate::sums::sum_of;

/// A file changed so long after a truncation was logged was changed by somebody else (a stock chunkserver ran on this
/// disk): the truncation is theirs to have, not ours to repeat.
const TRUNCATION_VALID_SEC: u64 = 600;

/// What was found and done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Recovered {
    pub(crate) chunks: u32,
    /// Blocks whose new sum had not reached the table.
    pub(crate) sums_put_right: u32,
    pub(crate) truncations_ended: u32,
    /// Blocks that fit neither the table nor a logged sum.
    pub(crate) torn_blocks: u32,
}

impl std::iter::Sum for Recovered {
    fn sum<Cores: Iterator<Item = Recovered>>(cores: Cores) -> Recovered {
        cores.fold(Recovered::default(), |sum, core| Recovered {
            chunks: sum.chunks + core.chunks,
            sums_put_right: sum.sums_put_right + core.sums_put_right,
            truncations_ended: sum.truncations_ended + core.truncations_ended,
            torn_blocks: sum.torn_blocks + core.torn_blocks,
        })
    }
}

impl Store {
    /// Puts right what the logs of volume `index` ask for, of chunks that this core owns.
    pub(crate) async fn recover(&self, index: u16, repairs: Repairs) -> Recovered {
        let mut done = Recovered::default();
        let mut torn_chunks = Vec::new();
        for (id, repair) in repairs {
            let place = self.core.place(id);
            if place.is_none_or(|place| place.volume != index || place.version != repair.version) {
                continue; // deleted, or the change of its version was later and had the table written
            }
            done.chunks += 1;
            match self.recover_chunk(id, &repair, &mut done).await {
                Ok(None) => {}
                Ok(Some(what)) => {
                    tracing::error!("chunk {id}: torn by the crash: {what:?}");
                    torn_chunks.push((id, Torn { version: repair.version, what }));
                }
                Err(error) => {
                    tracing::error!("chunk {id}: cannot be put right after the crash: {error}");
                    self.core.shared.reports.damaged(id);
                }
            }
        }
        self.remember_torn(index, torn_chunks).await;
        done
    }

    /// Gives what was torn, if anything was.
    async fn recover_chunk(
        &self,
        id: ChunkId,
        repair: &Repair,
        done: &mut Recovered,
    ) -> Result<Option<TornPart>, ChunkError> {
        let chunk = self.handle(id);
        let _alone = self.hold(&chunk, Hold::Exclusive).await?;
        self.load_before_repair(&chunk).await?;
        if let Some(truncation) = repair.truncate
            && !self.end_truncation(&chunk, truncation, done).await?
        {
            return Ok(Some(TornPart::Cut { length_bytes: truncation.length_bytes }));
        }
        let mut highest = 0;
        let mut torn_blocks = Vec::new();
        for (block, sums) in &repair.blocks {
            if block.number() < chunk.blocks() && !self.recover_block(&chunk, *block, sums, done).await? {
                torn_blocks.push(*block);
            }
            highest = highest.max(block.count_through());
        }
        if !repair.blocks.is_empty() {
            self.forget_extension(&chunk, highest);
            self.trim(&chunk).await?;
        }
        self.write_table(&chunk).await?;
        // The log is about to forget this chunk.
        chunk.file()?.datasync().await?;
        self.report_if_cut_short(&chunk);
        Ok((!torn_blocks.is_empty()).then_some(TornPart::Blocks(torn_blocks)))
    }

    /// The master has no better copy: what is torn counts as it is. The caller holds the chunk alone.
    pub(super) async fn accept_torn(&self, chunk: &Rc<Chunk>, torn: &Torn) -> Result<(), ChunkError> {
        tracing::warn!(
            "chunk {}: the master has no better copy; taken as the crash left it: {:?}",
            chunk.id,
            torn.what
        );
        match &torn.what {
            TornPart::Cut { length_bytes } => {
                let last = self.content_after_cut(chunk, *length_bytes).await?;
                self.cut(chunk, *length_bytes, last).await?;
            }
            TornPart::Blocks(blocks) => {
                chunk.end_before_lost(blocks);
                for block in blocks.iter().filter(|block| block.number() < chunk.blocks() && chunk.file_has(**block)) {
                    let found = sum_of(self.read_unverified(chunk, *block).await?.payload());
                    chunk.put_sum_right(*block, found);
                }
                self.write_table(chunk).await?;
            }
        }
        chunk.file()?.datasync().await?;
        self.forget_torn(chunk.id).await;
        Ok(())
    }

    /// Whether the block is good now; if not, it was torn.
    async fn recover_block(
        &self,
        chunk: &Rc<Chunk>,
        block: BlockIndex,
        logged: &[Crc],
        done: &mut Recovered,
    ) -> Result<bool, ChunkError> {
        if !chunk.file_has(block) {
            // A file that grew and a table that was written, of which the power cut took the one and left the other.
            done.torn_blocks += 1;
            return Ok(false);
        }
        let (found, in_table) = {
            let scratch = self.read_unverified(chunk, block).await?;
            let state = chunk.state.borrow();
            let open = state.as_ref().ok_or(ChunkError::NoChunk)?;
            (sum_of(scratch.payload()), open.sums.get(block))
        };
        if found == in_table {
            return Ok(true);
        }
        if !logged.contains(&found) {
            done.torn_blocks += 1;
            return Ok(false);
        }
        done.sums_put_right += 1;
        chunk.put_sum_right(block, found);
        Ok(true)
    }

    /// Whether it could be ended; if not, the last block is torn.
    async fn end_truncation(
        &self,
        chunk: &Rc<Chunk>,
        truncation: Truncation,
        done: &mut Recovered,
    ) -> Result<bool, ChunkError> {
        let changed_sec = u64::try_from(chunk.file()?.stat().await?.mtime_sec).unwrap_or(0);
        if changed_sec > truncation.wall_sec + TRUNCATION_VALID_SEC {
            return Ok(true);
        }
        let last = self.content_after_cut(chunk, truncation.length_bytes).await?;
        // The block was sound when the truncation began, and is now as it was or as it should become: both give the
        // logged sum. Anything else is torn, or has lost writes of before.
        if last.as_ref().is_some_and(|(_, sum)| !is_as_cut(*sum, truncation.last_sum)) {
            done.torn_blocks += 1;
            return Ok(false);
        }
        done.truncations_ended += 1;
        self.cut(chunk, truncation.length_bytes, last).await?;
        Ok(true)
    }

    /// Whatever the block holds in which a cut to `length_bytes` lies, with zeros behind the cut; None if there is no
    /// such block.
    async fn content_after_cut(
        &self,
        chunk: &Rc<Chunk>,
        length_bytes: u32,
    ) -> Result<Option<(scratch::Scratch, Crc)>, ChunkError> {
        let within_bytes = (length_bytes % BLOCK_BYTES) as usize;
        let block = BlockIndex::new(length_bytes / BLOCK_BYTES).filter(|block| block.number() < chunk.blocks());
        let Some(block) = block.filter(|_| within_bytes > 0) else { return Ok(None) };
        let mut scratch = self.read_unverified(chunk, block).await?;
        scratch.payload_mut()[within_bytes..].fill(0);
        let sum = sum_of(scratch.payload());
        Ok(Some((scratch, sum)))
    }

    async fn read_unverified(&self, chunk: &Rc<Chunk>, block: BlockIndex) -> Result<scratch::Scratch, ChunkError> {
        let (file, volume, position) = {
            let state = chunk.state.borrow();
            let open = state.as_ref().ok_or(ChunkError::NoChunk)?;
            (open.file.clone(), open.volume.clone(), open.form.block_offset(block))
        };
        let mut scratch = self.scratch.take(&volume).await;
        let (result, buffer) = file.read_at(scratch.take(), position).await;
        scratch.put(buffer);
        if result? == BLOCK_BYTES as usize { Ok(scratch) } else { Err(ChunkError::BadLength) }
    }

    /// Blocks behind everything logged that count as empty were extended ahead: the chunk ends before them.
    fn forget_extension(&self, chunk: &Chunk, highest_logged: u16) {
        if let Some(open) = chunk.state.borrow_mut().as_mut() {
            let filled = open.sums.words()[..usize::from(open.blocks)].iter().rposition(|sum| *sum != EMPTY_BLOCK_CRC);
            let filled = filled.map_or(0, |at| at as u16 + 1);
            open.blocks = open.blocks.min(highest_logged.max(filled));
        }
    }
}

/// Is the block in which a cut lies, with zeros behind it, what the log says? Where the cut makes the chunk longer, there
/// was no such block when it was logged, and there is one of zeros once the file was extended.
fn is_as_cut(found: Crc, logged: Crc) -> bool {
    found == logged || (logged == Crc(0) && found == Crc(EMPTY_BLOCK_CRC))
}

impl Chunk {
    fn file(&self) -> Result<File, ChunkError> {
        self.state.borrow().as_ref().map(|open| open.file.clone()).ok_or(ChunkError::NoChunk)
    }

    fn file_has(&self, block: BlockIndex) -> bool {
        self.state.borrow().as_ref().is_some_and(|open| block.number() < open.file_blocks)
    }

    /// Those of `lost` that the file does not have count as never written.
    fn end_before_lost(&self, lost: &[BlockIndex]) {
        let mut state = self.state.borrow_mut();
        let Some(open) = state.as_mut() else { return };
        for block in lost.iter().filter(|block| block.number() >= open.file_blocks) {
            open.sums.set(*block, Crc(EMPTY_BLOCK_CRC));
            open.sums_changed = true;
        }
        let rest = open.sums.words()[..usize::from(open.blocks)].iter().rposition(|sum| *sum != EMPTY_BLOCK_CRC);
        open.blocks = open.file_blocks.max(rest.map_or(0, |at| at as u16 + 1)).min(open.blocks);
    }

    fn put_sum_right(&self, block: BlockIndex, sum: Crc) {
        if let Some(open) = self.state.borrow_mut().as_mut() {
            open.sums.set(block, sum);
            open.sums_changed = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_that_was_being_made_longer_ends_in_zeros_and_is_not_torn() {
        assert!(is_as_cut(Crc(7), Crc(7)));
        assert!(is_as_cut(Crc(EMPTY_BLOCK_CRC), Crc(0)), "the log knew no block there");
        assert!(!is_as_cut(Crc(7), Crc(0)) && !is_as_cut(Crc(EMPTY_BLOCK_CRC), Crc(7)));
    }
}
