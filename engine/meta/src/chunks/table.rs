//! The namespace as the durable half of chunk management.

use wire::ChunkId;

use super::{Facts, LabelMask, Labels, Mode, Table};
use crate::Namespace;
use crate::chunk_table::ChunkRecord;
use crate::class::{LabelSets, StorageClass};

impl Table for Namespace {
    fn facts(&self, chunk: ChunkId) -> Option<Facts> {
        let record = self.chunk(chunk)?;
        let goal = rule(self, &record).map_or(1, <[LabelSets]>::len);
        Some(Facts {
            version: record.version,
            floor: record.floor,
            cut: record.cut,
            locked_to: record.locked_to,
            files: record.references,
            goal: u8::try_from(goal).unwrap_or(u8::MAX),
        })
    }

    fn next_chunk(&self, position: u32) -> Option<(u32, ChunkId)> {
        (position + 1..self.chunk_slots()).find_map(|slot| self.chunk_at_slot(slot).map(|record| (slot, record.id)))
    }

    fn next_chunk_id(&self) -> u64 {
        Namespace::next_chunk_id(self).0
    }

    fn labels(&self, chunk: ChunkId) -> Option<Labels> {
        let record = self.chunk(chunk)?;
        labels_of(self.class(record.class)?.mode, rule(self, &record)?)
    }
}

/// The copies that the chunk's class wants now. Spec 41, 7.2.
fn rule<'a>(namespace: &'a Namespace, record: &ChunkRecord) -> Option<&'a [LabelSets]> {
    let class: &StorageClass = namespace.class(record.class)?;
    Some(if record.archived { &class.arch } else { &class.keep })
}

/// What a rule of a storage class means for the choice of servers; `None` = any will do. `mode`: 0 LOOSE, 1 STD,
/// 2 STRICT.
pub fn labels_of(mode: u8, rule: &[LabelSets]) -> Option<Labels> {
    let mode = match mode {
        0 => Mode::Loose,
        1 => Mode::Standard,
        _ => Mode::Strict,
    };
    let masks = |sets: &LabelSets| LabelMask(sets.iter().copied().take_while(|set| *set != 0).collect());
    Labels::restricting(mode, rule.iter().map(masks).collect())
}
