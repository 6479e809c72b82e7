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

/// A table as it was found on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTable {
    /// Entries behind `blocks` come out as empty blocks.
    pub sums: SumTable,
    /// Blocks that the chunk has by its file and by its table. More than the file has: the file was cut short.
    pub blocks: u16,
    /// The disk has the sum of an empty block in every entry behind `blocks`, not 0.
    pub tail_is_empty: bool,
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
    /// Decodes the table as it lies on disk, of a file that has so many blocks.
    ///
    /// Behind the file's end an entry is the sum of an empty block, or 0 where the table was never written. Any other
    /// entry there says that the chunk had content which the file has lost; see `StoredTable::blocks`.
    pub fn decode(bytes: &[u8; TABLE_BYTES], file_blocks: u16) -> StoredTable {
        let mut sums = SumTable::default();
        for (sum, word) in sums.sums.iter_mut().zip(bytes.chunks_exact(4)) {
            *sum = u32::from_be_bytes(word.try_into().expect("four bytes"));
        }
        let filled = sums.sums.iter().rposition(|sum| ![0, EMPTY_BLOCK_CRC].contains(sum));
        let blocks = file_blocks.max(filled.map_or(0, |last| last as u16 + 1));
        let tail_is_empty = sums.sums[usize::from(blocks)..].iter().all(|sum| *sum == EMPTY_BLOCK_CRC);
        sums.cut(blocks);
        StoredTable { sums, blocks, tail_is_empty }
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
        let StoredTable { sums, blocks, tail_is_empty } = SumTable::decode(&zeros, 1);
        assert!(!tail_is_empty && blocks == 1);
        assert_eq!(sums.get(BlockIndex::new(0).unwrap()), Crc(0));
        assert_eq!(sums.get(BlockIndex::new(1).unwrap()), Crc(EMPTY_BLOCK_CRC));
        let mut bytes = [0u8; TABLE_BYTES];
        sums.encode(&mut bytes);
        assert_eq!(SumTable::decode(&bytes, 1), StoredTable { sums, blocks: 1, tail_is_empty: true });
    }

    #[test]
    fn an_entry_with_content_behind_the_end_makes_the_chunk_longer_than_its_file() {
        let mut sums = SumTable::default();
        let block = |number| BlockIndex::new(number).unwrap();
        (0..10).for_each(|number| sums.set(block(number), Crc(number + 5)));
        sums.set(block(7), Crc(EMPTY_BLOCK_CRC));
        let mut bytes = [0u8; TABLE_BYTES];
        sums.encode(&mut bytes);
        for file_blocks in [0, 3, 7, 8, 9, 10] {
            let stored = SumTable::decode(&bytes, file_blocks);
            assert_eq!((stored.blocks, stored.tail_is_empty), (10, true), "{file_blocks}");
            assert!(stored.sums == sums, "no sum is forgotten: {file_blocks}");
        }
        assert_eq!(SumTable::decode(&bytes, 11).blocks, 11);
        bytes[4 * 11..][..4].fill(0);
        let stored = SumTable::decode(&bytes, 3);
        assert_eq!((stored.blocks, stored.tail_is_empty), (10, false));
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
