//! The table of checksums of one chunk, and the arithmetic of one sum.
//!
//! CRC-32 is linear, so the sum of a changed block follows from the old sum and the changed bytes alone:
//!
//! ```text
//! crc(new block) = crc(old block) ^ shift(crc(old part) ^ crc(new part), bytes behind the part)
//! ```
//!
//! The table is kept whole in memory while a chunk is open: a write touches one word of it, a read checks one.
//! Entries behind the last block are the sum of a block of zeros, in memory always and on disk after the first write
//! of the table, so that a file may be extended ahead of its data. Spec 10, 6 and Spec 21, 2.

use wire::Crc;
use wire::limits::{BLOCK_BYTES, BLOCKS_PER_CHUNK, EMPTY_BLOCK_CRC};

use crate::layout::{BlockIndex, TABLE_BYTES};

/// Sum of `data`.
pub fn sum_of(data: &[u8]) -> Crc {
    Crc(crc32fast::hash(data))
}

/// Sum of so many zeros.
pub fn sum_of_zeros(bytes: u32) -> Crc {
    // Zeros shift a sum; with the initial value and the final xor written out: the register starts as all ones.
    let mut sum = crc32fast::Hasher::new_with_initial_len(0, 0);
    let mut piece_bytes = 1u64;
    let mut piece_sum = crc32fast::hash(&[0]);
    let mut rest = bytes;
    while rest > 0 {
        if rest & 1 == 1 {
            sum.combine(&crc32fast::Hasher::new_with_initial_len(piece_sum, piece_bytes));
        }
        let mut double = crc32fast::Hasher::new_with_initial_len(piece_sum, piece_bytes);
        double.combine(&crc32fast::Hasher::new_with_initial_len(piece_sum, piece_bytes));
        (piece_sum, piece_bytes) = (double.finalize(), piece_bytes * 2);
        rest >>= 1;
    }
    Crc(sum.finalize())
}

/// The sum of a block of which one part was replaced.
///
/// `old_block`: sum of the whole block before; `old_part`, `new_part`: sums of the replaced bytes and of what replaces
/// them; `tail_bytes`: how many bytes of the block follow that part. If `old_part` does not fit `old_block` (the bytes
/// had rotted), the result does not fit the new block either: the block stays bad rather than passing for good.
pub fn sum_after_patch(old_block: Crc, old_part: Crc, new_part: Crc, tail_bytes: u32) -> Crc {
    let mut difference = crc32fast::Hasher::new_with_initial_len(old_part.0 ^ new_part.0, 0);
    difference.combine(&crc32fast::Hasher::new_with_initial_len(0, u64::from(tail_bytes)));
    Crc(old_block.0 ^ difference.finalize())
}

/// The sum of a block that held zeros before a part of it was written.
pub fn sum_in_zero_block(part: Crc, part_bytes: u32, tail_bytes: u32) -> Crc {
    if part_bytes == BLOCK_BYTES {
        return part;
    }
    sum_after_patch(Crc(EMPTY_BLOCK_CRC), sum_of_zeros(part_bytes), part, tail_bytes)
}

/// The sums of one chunk's blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SumTable {
    sums: Box<[u32; BLOCKS_PER_CHUNK as usize]>,
}

impl Default for SumTable {
    /// The table of a chunk without data.
    fn default() -> SumTable {
        SumTable { sums: Box::new([EMPTY_BLOCK_CRC; BLOCKS_PER_CHUNK as usize]) }
    }
}

impl SumTable {
    /// The table of a chunk of so many blocks as it lies on disk. Entries behind the end come out as empty blocks;
    /// the second value says whether the disk had them so already.
    pub fn decode(bytes: &[u8; TABLE_BYTES], blocks: u16) -> (SumTable, bool) {
        let mut table = SumTable::default();
        let mut tail_is_empty = true;
        for (index, (sum, word)) in table.sums.iter_mut().zip(bytes.chunks_exact(4)).enumerate() {
            let stored = u32::from_be_bytes(word.try_into().expect("four bytes"));
            if index < usize::from(blocks) {
                *sum = stored;
            } else {
                tail_is_empty &= stored == EMPTY_BLOCK_CRC;
            }
        }
        (table, tail_is_empty)
    }

    /// `out`: 4096 bytes.
    pub fn encode(&self, out: &mut [u8]) {
        assert_eq!(out.len(), TABLE_BYTES, "a table has 4096 bytes");
        for (word, sum) in out.chunks_exact_mut(4).zip(self.sums.iter()) {
            word.copy_from_slice(&sum.to_be_bytes());
        }
    }

    pub fn get(&self, block: BlockIndex) -> Crc {
        Crc(self.sums[block.as_usize()])
    }

    pub fn set(&mut self, block: BlockIndex, sum: Crc) {
        self.sums[block.as_usize()] = sum.0;
    }

    /// Forgets all blocks from `blocks` on.
    pub fn cut(&mut self, blocks: u16) {
        self.sums[usize::from(blocks)..].fill(EMPTY_BLOCK_CRC);
    }

    pub fn words(&self) -> &[u32; BLOCKS_PER_CHUNK as usize] {
        &self.sums
    }

    /// The one number that stands for all sums when copies are compared. Spec 20, 8.1.
    pub fn checksum(&self) -> u32 {
        self.sums.iter().fold(1u32, |sum, word| sum.wrapping_mul(426_265_243) ^ word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::Seed;

    const BLOCK: usize = BLOCK_BYTES as usize;

    #[test]
    fn zeros_have_the_known_sum() {
        assert_eq!(sum_of_zeros(BLOCK_BYTES), Crc(EMPTY_BLOCK_CRC));
        for bytes in [0u32, 1, 2, 511, 512, 65_535] {
            assert_eq!(sum_of_zeros(bytes), sum_of(&vec![0; bytes as usize]), "{bytes}");
        }
    }

    #[test]
    fn the_sum_after_a_patch_is_that_of_the_whole_block() {
        let mut seed = Seed(1);
        let mut block: Vec<u8> = (0..BLOCK).map(|_| seed.next_u64() as u8).collect();
        let mut sum = sum_of(&block);
        for case in 0..4000 {
            let offset = seed.below(BLOCK as u64) as usize;
            let longest = (BLOCK - offset).min(if case % 10 == 0 { BLOCK } else { 8192 });
            let length = 1 + seed.below(longest as u64) as usize;
            let fill = seed.next_u64();
            let part: Vec<u8> = (0..length).map(|at| (fill >> (at % 57)) as u8).collect();
            let old = sum_of(&block[offset..offset + length]);
            block[offset..offset + length].copy_from_slice(&part);
            sum = sum_after_patch(sum, old, sum_of(&part), (BLOCK - offset - length) as u32);
            assert_eq!(sum, sum_of(&block), "case {case}: {length} bytes at {offset}");
        }
    }

    #[test]
    fn a_part_written_into_an_empty_block_needs_no_read() {
        let mut seed = Seed(2);
        for case in 0..300 {
            let offset = seed.below(BLOCK as u64) as usize;
            let length = 1 + seed.below((BLOCK - offset) as u64) as usize;
            let mut block = vec![0u8; BLOCK];
            block[offset..offset + length].fill_with(|| seed.next_u64() as u8);
            let part = sum_of(&block[offset..offset + length]);
            let sum = sum_in_zero_block(part, length as u32, (BLOCK - offset - length) as u32);
            assert_eq!(sum, sum_of(&block), "case {case}: {length} bytes at {offset}");
        }
    }

    #[test]
    fn rot_under_a_patch_stays_visible() {
        let mut block = vec![7u8; BLOCK];
        let sum = sum_of(&block);
        block[100] ^= 1; // rots
        let old = sum_of(&block[0..4096]);
        block[0..4096].fill(9);
        assert_ne!(sum_after_patch(sum, old, sum_of(&[9; 4096]), 65_536 - 4096), sum_of(&block));
    }

    #[test]
    fn entries_behind_the_end_count_as_empty() {
        let zeros = [0u8; TABLE_BYTES];
        let (table, tail_is_empty) = SumTable::decode(&zeros, 1);
        assert!(!tail_is_empty);
        assert_eq!(table.get(BlockIndex::new(0).unwrap()), Crc(0));
        assert_eq!(table.get(BlockIndex::new(1).unwrap()), Crc(EMPTY_BLOCK_CRC));
        let mut bytes = [0u8; TABLE_BYTES];
        table.encode(&mut bytes);
        assert_eq!(SumTable::decode(&bytes, 1), (table, true));
    }

    #[test]
    fn a_cut_table_forgets_what_was_behind() {
        let mut table = SumTable::default();
        let last = BlockIndex::new(1023).unwrap();
        table.set(last, Crc(5));
        table.cut(1023);
        assert!(table == SumTable::default());
    }
}
