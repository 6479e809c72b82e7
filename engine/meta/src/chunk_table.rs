//! The lasting part of the chunk table: which chunks there are, their versions, locks and how often files use them.
//!
//! Copies and running operations are not kept here: they are known from chunkservers alone. Spec 41, 1 and 7.4.

use std::collections::BTreeMap;

use wire::{ChunkId, Version};

use crate::arena::{Arena, Memory};
use crate::class::{Classes, SIMPLE_GOAL_MAX};
use crate::index::{Filling, Index, Twice, hash};

/// One chunk, as others see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRecord {
    /// A small number that stands for the chunk as long as it exists; then another chunk may get it.
    pub slot: u32,
    pub id: ChunkId,
    pub version: Version,
    /// Unix seconds; the chunk is locked while this is not in the past.
    pub locked_to: u32,
    /// The "arch" form of its class applies.
    pub archived: bool,
    /// Slots of files that hold the chunk.
    pub references: u32,
    /// Storage class that decides about its copies; 0 if no file holds it.
    pub class: u8,
    /// Version of the last writer that was let in. Below `version` while a change of the chunk was begun and not ended.
    pub floor: Version,
    /// Bytes to which its copies must be cut before it may grow or be written.
    pub cut: Option<u32>,
}

/// A change of a chunk that was begun, and whose end the journal does not show. docs/versions.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unsettled {
    /// Version of the last writer that was let in; 0: none was.
    pub(crate) floor: u32,
    pub(crate) cut: Option<u32>,
    /// The chunk is a file's own copy of a shared one, not in the file yet.
    pub(crate) attach: Option<Attach>,
}

/// Where a chunk goes once it is settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attach {
    pub(crate) inode: u32,
    pub(crate) index: u32,
    /// Id of the chunk whose place it takes.
    pub(crate) previous: u64,
}

impl ChunkRecord {
    /// Whoever was told that he may write it was told of its present version.
    pub fn is_settled(&self) -> bool {
        self.floor == self.version
    }

    pub fn is_locked(&self, now: u32) -> bool {
        self.locked_to >= now && self.locked_to != 0
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Chunk {
    /// 0: the slot is free.
    id: u64,
    version: u32,
    locked_to: u32,
    references: u32,
    class: u8,
    archived: bool,
}
const _: () = assert!(size_of::<Chunk>() == 24);

#[derive(Debug)]
pub(crate) struct ChunkTable {
    chunks: Arena<Chunk>,
    index: Index,
    /// While an image is read: what is on its way into the index.
    filling: Option<Box<Filling>>,
    next_id: u64,
    /// By slot: few.
    unsettled: BTreeMap<u32, Unsettled>,
    /// References by class, of chunks that files of several classes hold.
    mixed: BTreeMap<u32, BTreeMap<u8, u32>>,
    /// Chunks that lost their last file since the caller asked last.
    released: Vec<ChunkId>,
    /// Chunks whose class or archive flag changed since then.
    touched: Vec<ChunkId>,
    /// Chunks that replay forgot since then.
    deleted: Vec<ChunkId>,
}

impl ChunkTable {
    pub(crate) fn new() -> ChunkTable {
        ChunkTable {
            chunks: Arena::new(),
            index: Index::new(),
            filling: None,
            next_id: 1,
            unsettled: BTreeMap::new(),
            mixed: BTreeMap::new(),
            released: Vec::new(),
            touched: Vec::new(),
            deleted: Vec::new(),
        }
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.next_id
    }

    pub(crate) fn set_next_id(&mut self, next: u64) {
        self.next_id = next;
    }

    pub(crate) fn count(&self) -> usize {
        self.chunks.live()
    }

    /// Slots are below this.
    pub(crate) fn slots_end(&self) -> u32 {
        self.chunks.end()
    }

    pub(crate) fn find(&self, id: u64) -> Option<u32> {
        self.index.find(hash_of(id), |slot| self.chunks.get(slot).id == id)
    }

    /// The chunk in a slot, if there is one.
    pub(crate) fn get(&self, slot: u32) -> Option<ChunkRecord> {
        if slot == 0 || slot >= self.chunks.end() {
            return None;
        }
        let chunk = self.chunks.get(slot);
        let unsettled = if self.unsettled.is_empty() { None } else { self.unsettled.get(&slot) };
        (chunk.id != 0).then_some(ChunkRecord {
            slot,
            floor: Version(unsettled.map_or(chunk.version, |unsettled| unsettled.floor)),
            cut: unsettled.and_then(|unsettled| unsettled.cut),
            id: ChunkId(chunk.id),
            version: Version(chunk.version),
            locked_to: chunk.locked_to,
            archived: chunk.archived,
            references: chunk.references,
            class: chunk.class,
        })
    }

    /// The chunk in a slot that a file names.
    pub(crate) fn at(&self, slot: u32) -> ChunkRecord {
        self.get(slot).expect("files name chunks that exist")
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = ChunkRecord> + '_ {
        (1..self.chunks.end()).filter_map(|slot| self.get(slot))
    }

    /// Before a table is filled by `fill`.
    pub(crate) fn begin_filling(&mut self, chunks: u64) {
        self.filling = Some(Box::new(Filling::new(&mut self.index, chunks)));
    }

    /// Adds a chunk of an image. It is found after `finish_filling`. Errors: `Twice` if there are two with one id, this or
    /// one before.
    pub(crate) fn fill(&mut self, id: u64, version: u32, locked_to: u32, archived: bool) -> Result<(), Twice> {
        let slot = self.chunks.insert(Chunk { id, version, locked_to, references: 0, class: 0, archived });
        let ChunkTable { chunks, index, filling, .. } = self;
        let filling = filling.get_or_insert_with(|| Box::new(Filling::new(index, 0)));
        let id_of = |slot| chunks.get(slot).id;
        filling.add(index, hash_of(id), slot, |batch| hashes(chunks, batch), |a, b| id_of(a) == id_of(b))
    }

    /// The chunks that were added by `fill` can be found. Errors: `Twice`.
    pub(crate) fn finish_filling(&mut self) -> Result<(), Twice> {
        let (chunks, filling) = (&self.chunks, self.filling.take());
        let id_of = |slot| chunks.get(slot).id;
        let finish = |filling: Box<Filling>| {
            filling.finish(&mut self.index, |batch| hashes(chunks, batch), |a, b| id_of(a) == id_of(b))
        };
        filling.map_or(Ok(()), finish)
    }

    /// As `find`, for ids that come in the order of the slots more often than not: `after` is the slot of the last one.
    pub(crate) fn find_after(&self, after: u32, id: u64) -> Option<u32> {
        let next = after + 1;
        if next < self.chunks.end() && self.chunks.get(next).id == id { Some(next) } else { self.find(id) }
    }

    /// A new chunk with the next id, version 1, unlocked, without files.
    pub(crate) fn create(&mut self) -> u32 {
        let id = self.next_id;
        self.next_id += 1;
        self.insert(id, 1, 0, false)
    }

    /// Adds a chunk whose id is not in the table.
    pub(crate) fn insert(&mut self, id: u64, version: u32, locked_to: u32, archived: bool) -> u32 {
        let slot = self.chunks.insert(Chunk { id, version, locked_to, references: 0, class: 0, archived });
        let chunks = &self.chunks;
        self.index.insert(hash_of(id), slot, |batch| hashes(chunks, batch));
        slot
    }

    /// Removes a chunk that no file holds.
    pub(crate) fn remove(&mut self, slot: u32) {
        let chunk = self.chunks.remove(slot);
        assert!(chunk.references == 0, "only chunks without files are removed");
        self.unsettled.remove(&slot);
        self.deleted.push(ChunkId(chunk.id));
        let found = self.index.remove(hash_of(chunk.id), |at| at == slot);
        debug_assert_eq!(found, Some(slot));
    }

    /// The chunk has this version, and nothing about it is in doubt.
    pub(crate) fn set_version(&mut self, slot: u32, version: u32) {
        self.chunks.get_mut(slot).version = version;
        self.unsettled.remove(&slot);
    }

    /// A change to this version begins: copies may have it or an older one, down to that of the last writer. `cut`: they
    /// are to be cut to so many bytes.
    pub(crate) fn raise(&mut self, slot: u32, version: u32, cut: Option<u32>) {
        let chunk = self.chunks.get_mut(slot);
        let unsettled =
            self.unsettled.entry(slot).or_insert(Unsettled { floor: chunk.version, cut: None, attach: None });
        unsettled.cut = cut.or(unsettled.cut);
        chunk.version = version;
    }

    /// The chunk, new, goes to a slot of a file once it is settled.
    pub(crate) fn attach_later(&mut self, slot: u32, attach: Attach) {
        self.unsettled.insert(slot, Unsettled { floor: 0, cut: None, attach: Some(attach) });
    }

    /// The chunk will not take another's place.
    pub(crate) fn forget_attach(&mut self, slot: u32) -> Option<Attach> {
        let attach = self.unsettled.get(&slot)?.attach?;
        self.unsettled.remove(&slot);
        Some(attach)
    }

    /// No file will hold the chunk: the caller of `take_released` hears of it.
    pub(crate) fn release(&mut self, slot: u32) {
        self.released.push(ChunkId(self.chunks.get(slot).id));
    }

    pub(crate) fn attach_of(&self, slot: u32) -> Option<Attach> {
        self.unsettled.get(&slot)?.attach
    }

    /// Changes in doubt, by slot.
    pub(crate) fn unsettled(&self) -> impl Iterator<Item = (u32, &Unsettled)> + '_ {
        self.unsettled.iter().map(|(slot, unsettled)| (*slot, unsettled))
    }

    /// As an image tells it.
    pub(crate) fn set_unsettled(&mut self, slot: u32, unsettled: Unsettled) {
        self.unsettled.insert(slot, unsettled);
    }

    pub(crate) fn set_locked_to(&mut self, slot: u32, locked_to: u32) {
        self.chunks.get_mut(slot).locked_to = locked_to;
    }

    /// Returns whether that changed anything.
    pub(crate) fn set_archived(&mut self, slot: u32, archived: bool) -> bool {
        let chunk = self.chunks.get_mut(slot);
        let changed = std::mem::replace(&mut chunk.archived, archived) != archived;
        if changed {
            self.touched.push(ChunkId(chunk.id));
        }
        changed
    }

    /// One more slot of a file of this class holds the chunk.
    pub(crate) fn add_reference(&mut self, slot: u32, class: u8, classes: &Classes) {
        let chunk = self.chunks.get_mut(slot);
        chunk.references += 1;
        if chunk.references == 1 {
            chunk.class = class;
            return;
        }
        if let Some(counts) = self.mixed.get_mut(&slot) {
            *counts.entry(class).or_insert(0) += 1;
        } else if chunk.class != class {
            self.mixed.insert(slot, BTreeMap::from([(chunk.class, chunk.references - 1), (class, 1)]));
        }
        self.choose_class(slot, classes);
    }

    /// One slot fewer of files of this class holds the chunk.
    pub(crate) fn drop_reference(&mut self, slot: u32, class: u8, classes: &Classes) {
        let chunk = self.chunks.get_mut(slot);
        chunk.references -= 1;
        if chunk.references == 0 {
            chunk.class = 0;
            self.mixed.remove(&slot);
            self.released.push(ChunkId(chunk.id));
            return;
        }
        if let Some(counts) = self.mixed.get_mut(&slot) {
            let count = counts.get_mut(&class).expect("counted when it was added");
            *count -= 1;
            if *count == 0 {
                counts.remove(&class);
            }
            if let (1, Some(only)) = (counts.len(), counts.keys().next().copied()) {
                self.mixed.remove(&slot);
                self.set_class(slot, only);
                return;
            }
        }
        self.choose_class(slot, classes);
    }

    /// After a class changed: chunks of several classes choose again, and all chunks of the class are touched.
    pub(crate) fn class_changed(&mut self, class: u8, classes: &Classes) {
        let slots: Vec<u32> = self.mixed.keys().copied().collect();
        for slot in slots {
            self.choose_class(slot, classes);
        }
        let of_class = (1..self.chunks.end()).filter_map(|slot| self.get(slot)).filter(|chunk| chunk.class == class);
        let touched: Vec<ChunkId> = of_class.map(|chunk| chunk.id).collect();
        self.touched.extend(touched);
    }

    pub(crate) fn take_released(&mut self) -> Vec<ChunkId> {
        let mut released = std::mem::take(&mut self.released);
        // Some found a file again, or were deleted, or are named twice.
        released.sort_unstable();
        released.dedup();
        released.retain(|id| self.find(id.0).is_some_and(|slot| self.at(slot).references == 0));
        released
    }

    pub(crate) fn take_touched(&mut self) -> Vec<ChunkId> {
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        touched
    }

    pub(crate) fn take_deleted(&mut self) -> Vec<ChunkId> {
        std::mem::take(&mut self.deleted)
    }

    /// The caller knows of the chunk that was removed last.
    pub(crate) fn forget_last_deleted(&mut self) {
        self.deleted.pop();
    }

    fn set_class(&mut self, slot: u32, class: u8) {
        let chunk = self.chunks.get_mut(slot);
        if chunk.class != class {
            chunk.class = class;
            self.touched.push(ChunkId(chunk.id));
        }
    }

    /// The same chunks for a reader elsewhere, which does not look them up by id.
    pub(crate) fn freeze(&mut self) -> ChunkTable {
        ChunkTable {
            chunks: self.chunks.freeze(),
            index: Index::new(),
            filling: None,
            next_id: self.next_id,
            unsettled: self.unsettled.clone(),
            mixed: BTreeMap::new(),
            released: Vec::new(),
            touched: Vec::new(),
            deleted: Vec::new(),
        }
    }

    /// Of the index and of the records.
    pub(crate) fn memory(&self) -> (Memory, Memory) {
        (self.index.memory(), self.chunks.memory())
    }

    pub(crate) fn index_bytes(&self) -> usize {
        self.index.bytes()
    }

    /// The class of a chunk that files of several classes hold. Spec 41, 7.4.
    fn choose_class(&mut self, slot: u32, classes: &Classes) {
        let Some(counts) = self.mixed.get(&slot) else { return };
        let (mut choice, mut goal, mut settled) = (0, 0, false);
        for class in counts.keys().copied() {
            let copies = classes.copies_max(class);
            if copies > goal {
                (choice, goal, settled) = (class, copies, false);
            } else if copies == goal && !settled {
                if choice <= SIMPLE_GOAL_MAX {
                    choice = class;
                } else {
                    (choice, settled) = (goal, true);
                }
            }
        }
        self.set_class(slot, choice);
    }
}

fn hashes(chunks: &Arena<Chunk>, batch: &mut [(u64, u32)]) {
    for (hash, slot) in batch {
        *hash = hash_of(chunks.get(*slot).id);
    }
}

fn hash_of(id: u64) -> u64 {
    hash(id, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_of_several_files_follows_the_class_with_the_most_copies() {
        let classes = Classes::new();
        let mut table = ChunkTable::new();
        let slot = table.create();
        table.add_reference(slot, 2, &classes);
        assert_eq!(table.at(slot).class, 2);
        table.add_reference(slot, 3, &classes);
        table.add_reference(slot, 1, &classes);
        assert_eq!((table.at(slot).class, table.at(slot).references), (3, 3));
        table.drop_reference(slot, 3, &classes);
        assert_eq!(table.at(slot).class, 2);
        table.drop_reference(slot, 2, &classes);
        assert_eq!(table.at(slot).class, 1);
        assert!(table.take_released().is_empty());
        table.drop_reference(slot, 1, &classes);
        assert_eq!(table.at(slot).class, 0);
        assert_eq!(table.take_released(), [ChunkId(1)]);
        table.remove(slot);
        assert_eq!(table.find(1), None);
        assert_eq!(table.count(), 0);
    }

    #[test]
    fn two_named_classes_of_equal_goal_fall_back_to_the_plain_goal() {
        let mut classes = Classes::new();
        for id in [10, 11] {
            let class = class_of(2, id);
            classes.set(id, Some(class));
        }
        let mut table = ChunkTable::new();
        let slot = table.create();
        table.add_reference(slot, 10, &classes);
        table.add_reference(slot, 11, &classes);
        assert_eq!(table.at(slot).class, 2);
        table.drop_reference(slot, 11, &classes);
        assert_eq!(table.at(slot).class, 10);
    }

    fn class_of(copies: u8, id: u8) -> crate::class::StorageClass {
        let mut class = crate::class::StorageClass::simple_goal(copies);
        class.name = vec![b'c', id];
        class
    }
}
