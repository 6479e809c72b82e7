//! The records of the intent log, byte by byte, and what a log means after a crash. Pure.
//!
//! ```text
//! page, 4096 bytes:  "MOORINT1" | sequence u64 | wall seconds u64 | records u16 | 0 u16 | CRC-32C u32 | 127 × record
//! record, 32 bytes:  kind u8 | 0 u8 | block u16 | sum u32 | chunk id u64 | version u32 | length u32 | before u64
//! ```
//!
//! The CRC covers the whole page, its own field taken as zero. Integers are big-endian like all else on the disk.

use std::collections::BTreeMap;

use wire::{ChunkId, Crc, Version};

use crate::layout::BlockIndex;

pub(crate) const PAGE_BYTES: usize = 4096;
const PAGE_HEAD_BYTES: usize = 32;
const RECORD_BYTES: usize = 32;
pub(crate) const RECORDS_PER_PAGE: usize = (PAGE_BYTES - PAGE_HEAD_BYTES) / RECORD_BYTES;
const MAGIC: &[u8; 8] = b"MOORINT1";

/// What is about to be done to a chunk file, or was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    /// This block is about to get content with this sum.
    Write { id: ChunkId, version: Version, block: BlockIndex, sum: Crc },
    /// The chunk is about to be cut or extended to `length_bytes` and to bear `version`; the block in which the
    /// length lies will then have `last_sum`.
    Truncate { id: ChunkId, version: Version, length_bytes: u32, last_sum: Crc },
    /// The chunk's table on disk covers all that was logged of it before page `before`.
    Settled { id: ChunkId, before: u64 },
    /// All tables cover all that was logged: the server stopped in good order.
    Clean,
}

/// A page of records. `records`: at most `RECORDS_PER_PAGE`. `out`: `PAGE_BYTES`, overwritten whole.
pub(crate) fn encode_page(sequence: u64, wall_sec: u64, records: &[Intent], out: &mut [u8]) {
    assert!(records.len() <= RECORDS_PER_PAGE && out.len() == PAGE_BYTES, "the caller cuts batches into pages");
    out.fill(0);
    out[..8].copy_from_slice(MAGIC);
    out[8..16].copy_from_slice(&sequence.to_be_bytes());
    out[16..24].copy_from_slice(&wall_sec.to_be_bytes());
    out[24..26].copy_from_slice(&(records.len() as u16).to_be_bytes());
    for (record, slot) in records.iter().zip(out[PAGE_HEAD_BYTES..].chunks_exact_mut(RECORD_BYTES)) {
        encode_record(record, slot);
    }
    let crc = crc32c::crc32c(out);
    out[28..32].copy_from_slice(&crc.to_be_bytes());
}

/// A page as it was read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) sequence: u64,
    pub(crate) wall_sec: u64,
    pub(crate) records: Vec<Intent>,
}

/// None if this is no whole page: never written, torn or rotten.
pub(crate) fn decode_page(bytes: &[u8]) -> Option<Page> {
    if bytes.len() != PAGE_BYTES || !bytes.starts_with(MAGIC) {
        return None;
    }
    let stored = word32(&bytes[28..32]);
    let mut summed = bytes.to_vec();
    summed[28..32].fill(0);
    let count = usize::from(u16::from_be_bytes([bytes[24], bytes[25]]));
    if crc32c::crc32c(&summed) != stored || count > RECORDS_PER_PAGE {
        return None;
    }
    let records =
        bytes[PAGE_HEAD_BYTES..].chunks_exact(RECORD_BYTES).take(count).map(decode_record).collect::<Option<_>>()?;
    Some(Page { sequence: word64(&bytes[8..16]), wall_sec: word64(&bytes[16..24]), records })
}

fn encode_record(record: &Intent, out: &mut [u8]) {
    let (kind, block, sum, id, version, length, before) = match *record {
        Intent::Write { id, version, block, sum } => (1, block.number(), sum.0, id.0, version.0, 0, 0),
        Intent::Truncate { id, version, length_bytes, last_sum } => {
            (2, 0, last_sum.0, id.0, version.0, length_bytes, 0)
        }
        Intent::Settled { id, before } => (3, 0, 0, id.0, 0, 0, before),
        Intent::Clean => (4, 0, 0, 0, 0, 0, 0),
    };
    out[0] = kind;
    out[2..4].copy_from_slice(&u16::to_be_bytes(block));
    out[4..8].copy_from_slice(&u32::to_be_bytes(sum));
    out[8..16].copy_from_slice(&u64::to_be_bytes(id));
    out[16..20].copy_from_slice(&u32::to_be_bytes(version));
    out[20..24].copy_from_slice(&u32::to_be_bytes(length));
    out[24..32].copy_from_slice(&u64::to_be_bytes(before));
}

fn decode_record(bytes: &[u8]) -> Option<Intent> {
    let (sum, version, length_bytes) =
        (Crc(word32(&bytes[4..8])), Version(word32(&bytes[16..20])), word32(&bytes[20..24]));
    let id = ChunkId(word64(&bytes[8..16]));
    match bytes[0] {
        1 => {
            let block = BlockIndex::new(u32::from(u16::from_be_bytes([bytes[2], bytes[3]])))?;
            Some(Intent::Write { id, version, block, sum })
        }
        2 => Some(Intent::Truncate { id, version, length_bytes, last_sum: sum }),
        3 => Some(Intent::Settled { id, before: word64(&bytes[24..32]) }),
        4 => Some(Intent::Clean),
        _ => None,
    }
}

fn word32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().expect("four bytes"))
}

fn word64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("eight bytes"))
}

/// What a crash may have left undone in one chunk file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Repair {
    pub(crate) version: Version,
    /// A truncation that nothing followed: it may be half done, and doing it again does no harm.
    pub(crate) truncate: Option<Truncation>,
    /// Sums that a block may rightly have beside the one in the table, oldest first.
    pub(crate) blocks: BTreeMap<BlockIndex, Vec<Crc>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Truncation {
    pub(crate) length_bytes: u32,
    pub(crate) last_sum: Crc,
    /// When it was logged.
    pub(crate) wall_sec: u64,
}

/// Adds what another core's log asks. A chunk is in one log alone, since logs are emptied before another core owns it;
/// were it in two, each sum of either may be right, and a truncation that the other does not know is not repeated.
pub(crate) fn add_repairs(all: &mut BTreeMap<ChunkId, Repair>, more: BTreeMap<ChunkId, Repair>) {
    for (id, repair) in more {
        match all.get_mut(&id) {
            Some(known) if known.version > repair.version => {}
            Some(known) if known.version == repair.version => {
                known.truncate = known.truncate.filter(|cut| repair.truncate == Some(*cut));
                for (block, sums) in repair.blocks {
                    known.blocks.entry(block).or_default().extend(sums);
                }
            }
            _ => drop(all.insert(id, repair)),
        }
    }
}

/// The chunks to look at after a crash. `pages`: all whole pages of the log, in any order.
pub(crate) fn repairs(mut pages: Vec<Page>) -> BTreeMap<ChunkId, Repair> {
    pages.sort_by_key(|page| page.sequence);
    let mut chunks: BTreeMap<ChunkId, Open> = BTreeMap::new();
    for page in pages {
        for record in page.records {
            match record {
                Intent::Write { id, version, block, sum } => {
                    let open = chunks.entry(id).or_insert_with(|| Open::new(version));
                    if open.version != version || open.truncate.is_some() {
                        // The table was written when the version changed, or when the truncation was done.
                        *open = Open::new(version);
                    }
                    open.writes.push((page.sequence, block, sum));
                }
                Intent::Truncate { id, version, length_bytes, last_sum } => {
                    let truncation = Truncation { length_bytes, last_sum, wall_sec: page.wall_sec };
                    chunks
                        .insert(id, Open { version, truncate: Some((page.sequence, truncation)), writes: Vec::new() });
                }
                Intent::Settled { id, before } => {
                    if let Some(open) = chunks.get_mut(&id) {
                        open.writes.retain(|(sequence, ..)| *sequence >= before);
                        open.truncate = open.truncate.filter(|(sequence, _)| *sequence >= before);
                    }
                }
                Intent::Clean => chunks.clear(),
            }
        }
    }
    chunks.into_iter().filter_map(|(id, open)| Some((id, open.into_repair()?))).collect()
}

struct Open {
    version: Version,
    truncate: Option<(u64, Truncation)>,
    writes: Vec<(u64, BlockIndex, Crc)>,
}

impl Open {
    fn new(version: Version) -> Open {
        Open { version, truncate: None, writes: Vec::new() }
    }

    fn into_repair(self) -> Option<Repair> {
        if self.truncate.is_none() && self.writes.is_empty() {
            return None;
        }
        let mut blocks: BTreeMap<BlockIndex, Vec<Crc>> = BTreeMap::new();
        for (_, block, sum) in self.writes {
            blocks.entry(block).or_default().push(sum);
        }
        Some(Repair { version: self.version, truncate: self.truncate.map(|(_, truncation)| truncation), blocks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: ChunkId = ChunkId(7);
    const V1: Version = Version(1);

    fn block(number: u32) -> BlockIndex {
        BlockIndex::new(number).unwrap()
    }

    fn write(number: u32, sum: u32) -> Intent {
        Intent::Write { id: ID, version: V1, block: block(number), sum: Crc(sum) }
    }

    fn pages(lists: &[&[Intent]]) -> Vec<Page> {
        lists
            .iter()
            .enumerate()
            .map(|(at, records)| Page { sequence: at as u64, wall_sec: 5, records: records.to_vec() })
            .collect()
    }

    #[test]
    fn a_page_is_read_back_as_it_was_written_and_never_when_torn() {
        let records = [
            write(1023, 0xDEAD_BEEF),
            Intent::Truncate { id: ID, version: Version(9), length_bytes: 70_000, last_sum: Crc(3) },
            Intent::Settled { id: ID, before: u64::MAX },
            Intent::Clean,
        ];
        let mut bytes = vec![0xAA; PAGE_BYTES];
        encode_page(12, 34, &records, &mut bytes);
        assert_eq!(decode_page(&bytes), Some(Page { sequence: 12, wall_sec: 34, records: records.to_vec() }));
        for at in [0, 9, 17, 24, 29, 40, 4095] {
            let mut torn = bytes.clone();
            torn[at] ^= 0x10;
            assert_eq!(decode_page(&torn), None, "byte {at}");
        }
        assert_eq!(decode_page(&[0; PAGE_BYTES]), None);
    }

    #[test]
    fn a_full_page_holds_127_records() {
        let records = vec![write(0, 1); RECORDS_PER_PAGE];
        let mut bytes = vec![0; PAGE_BYTES];
        encode_page(0, 0, &records, &mut bytes);
        assert_eq!(decode_page(&bytes).map(|page| page.records.len()), Some(127));
    }

    #[test]
    fn what_was_settled_needs_no_repair() {
        let log = pages(&[&[write(1, 10)], &[write(2, 20)], &[Intent::Settled { id: ID, before: 1 }]]);
        let repair = &repairs(log)[&ID];
        assert_eq!(repair.blocks, BTreeMap::from([(block(2), vec![Crc(20)])]));
        let log = pages(&[&[write(1, 10)], &[Intent::Settled { id: ID, before: 1 }]]);
        assert!(repairs(log).is_empty());
        assert!(repairs(pages(&[&[write(1, 10), Intent::Clean]])).is_empty());
    }

    #[test]
    fn pages_count_in_the_order_of_their_numbers() {
        let mut log = pages(&[&[write(1, 10)], &[write(1, 11)]]);
        log.reverse();
        assert_eq!(repairs(log)[&ID].blocks[&block(1)], vec![Crc(10), Crc(11)]);
    }

    #[test]
    fn what_another_log_says_of_a_chunk_is_added() {
        let cut = Intent::Truncate { id: ID, version: V1, length_bytes: 5, last_sum: Crc(3) };
        let newer = Intent::Write { id: ID, version: Version(2), block: block(9), sum: Crc(90) };
        let other = Intent::Write { id: ChunkId(8), version: V1, block: block(0), sum: Crc(80) };
        let after = |logs: &[&[Intent]]| {
            let mut all = BTreeMap::new();
            logs.iter().for_each(|log| add_repairs(&mut all, repairs(pages(&[log]))));
            all
        };
        let both = after(&[&[write(1, 10), other], &[write(1, 11), write(2, 20)]]);
        assert_eq!(both.keys().copied().collect::<Vec<_>>(), [ID, ChunkId(8)]);
        let blocks = [(block(1), vec![Crc(10), Crc(11)]), (block(2), vec![Crc(20)])];
        assert_eq!(both[&ID].blocks, BTreeMap::from(blocks));
        for logs in [[&[write(1, 10)], &[newer]], [&[newer], &[write(1, 10)]]] {
            assert_eq!(after(&[logs[0], logs[1]])[&ID].blocks, BTreeMap::from([(block(9), vec![Crc(90)])]));
        }
        for logs in [[&[write(1, 10)], &[cut]], [&[cut], &[write(1, 10)]]] {
            assert_eq!(after(&[logs[0], logs[1]])[&ID].truncate, None, "the other log knows better");
        }
        assert_eq!(after(&[&[cut]])[&ID].truncate.map(|cut| cut.length_bytes), Some(5));
    }

    #[test]
    fn a_truncation_is_repeated_only_if_nothing_followed() {
        let cut = Intent::Truncate { id: ID, version: V1, length_bytes: 5, last_sum: Crc(3) };
        let repair = &repairs(pages(&[&[write(1, 10)], &[cut]]))[&ID];
        assert_eq!(repair.truncate.map(|cut| cut.length_bytes), Some(5));
        assert!(repair.blocks.is_empty());
        let repair = &repairs(pages(&[&[cut], &[write(4, 10)]]))[&ID];
        assert_eq!(repair.truncate, None);
        assert_eq!(repair.blocks.len(), 1);
    }
}
