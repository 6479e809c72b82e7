//! The bytes that are written, and who wrote what.
//!
//! All data come out of a few random blocks whose sums are computed once: the measuring program must not spend its
//! time on CRCs. What was written where is remembered in two bytes for each 4 KiB, so that `--verify` can compare
//! every byte that any server of a chain gives back.

use std::collections::BTreeMap;
use std::rc::Rc;

use wire::limits::{BLOCK_BYTES, CHUNK_BYTES};
use wire::{ChunkId, Crc, Seed};

use crate::job::UNIT_BYTES;

/// Different blocks.
pub const VARIANTS: usize = 16;
/// A unit that nobody has written: zeros.
const ZEROS: u16 = u16::MAX;
const UNITS_PER_BLOCK: usize = (BLOCK_BYTES / UNIT_BYTES) as usize;
const UNITS_PER_CHUNK: usize = (CHUNK_BYTES / UNIT_BYTES) as usize;

/// Random blocks of 64 KiB; a shorter piece of data is the beginning of one.
pub struct Blocks {
    blocks: Vec<Rc<Vec<u8>>>,
}

impl Blocks {
    pub fn new() -> Blocks {
        let mut seed = Seed(1);
        let mut block = || Rc::new((0..BLOCK_BYTES / 8).flat_map(|_| seed.next_u64().to_be_bytes()).collect());
        Blocks { blocks: (0..VARIANTS).map(|_| block()).collect() }
    }

    pub fn block(&self, variant: usize) -> Rc<Vec<u8>> {
        self.blocks[variant].clone()
    }

    /// Sums of the first `bytes` bytes of each block.
    pub fn sums(&self, bytes: u32) -> Vec<Crc> {
        self.blocks.iter().map(|block| Crc(crc32fast::hash(&block[..bytes as usize]))).collect()
    }
}

impl Default for Blocks {
    fn default() -> Blocks {
        Blocks::new()
    }
}

/// What each chunk holds on each server of a subject.
#[derive(Default)]
pub struct Model {
    chunks: BTreeMap<(usize, ChunkId), Vec<u16>>,
}

impl Model {
    /// `bytes` bytes at `offset` of this chunk are the beginning of block `variant` now. All are multiples of 4 KiB.
    pub fn wrote(&mut self, server: usize, chunk: ChunkId, offset: u32, bytes: u32, variant: usize) {
        let units = self.chunks.entry((server, chunk)).or_insert_with(|| vec![ZEROS; UNITS_PER_CHUNK]);
        let first = (offset / UNIT_BYTES) as usize;
        for (place, unit) in units[first..first + (bytes / UNIT_BYTES) as usize].iter_mut().enumerate() {
            *unit = u16::try_from(variant * UNITS_PER_BLOCK + place).expect("16 blocks of 16 units");
        }
    }

    pub fn forget(&mut self, chunk: ChunkId) {
        self.chunks.retain(|(_, known), _| *known != chunk);
    }

    /// Are these the bytes at `offset` of this chunk?
    pub fn holds(&self, blocks: &Blocks, server: usize, chunk: ChunkId, offset: u32, mut bytes: &[u8]) -> bool {
        let units = self.chunks.get(&(server, chunk));
        let mut at = offset;
        while !bytes.is_empty() {
            let in_unit = at % UNIT_BYTES;
            let (piece, rest) = bytes.split_at(((UNIT_BYTES - in_unit) as usize).min(bytes.len()));
            let unit = units.map_or(ZEROS, |units| units[(at / UNIT_BYTES) as usize]);
            let is_right = if unit == ZEROS {
                piece.iter().all(|byte| *byte == 0)
            } else {
                let start = usize::from(unit) % UNITS_PER_BLOCK * UNIT_BYTES as usize + in_unit as usize;
                blocks.blocks[usize::from(unit) / UNITS_PER_BLOCK][start..start + piece.len()] == *piece
            };
            if !is_right {
                return false;
            }
            at += piece.len() as u32;
            bytes = rest;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_knows_every_byte() {
        let (blocks, mut model, chunk) = (Blocks::new(), Model::default(), ChunkId(5));
        model.wrote(1, chunk, 65536, 65536, 3);
        model.wrote(1, chunk, 65536 + 8192, 4096, 7);
        let mut expected = vec![0; 4096];
        expected.extend_from_slice(&blocks.block(3));
        expected[4096 + 8192..4096 + 12288].copy_from_slice(&blocks.block(7)[..4096]);
        assert!(model.holds(&blocks, 1, chunk, 61440, &expected));
        assert!(model.holds(&blocks, 1, chunk, 61441, &expected[1..69_001]));
        for place in [0, 4095, 4096, 4096 + 8192, 4096 + 12287, 4096 + 12288, expected.len() - 1] {
            let mut changed = expected.clone();
            changed[place] ^= 1;
            assert!(!model.holds(&blocks, 1, chunk, 61440, &changed), "a changed byte at {place} goes unseen");
        }
        assert!(!model.holds(&blocks, 0, chunk, 61440, &expected), "another server has other bytes");
        model.forget(chunk);
        assert!(model.holds(&blocks, 1, chunk, 0, &[0; 10_000]));
    }
}
