//! A hash index from keys that live elsewhere to 32-bit handles.
//!
//! It stores no key and no hash: one byte of the hash as a tag and the handle. Who asks compares the key behind a
//! handle itself. Twelve slots share a cache line, so that most questions cost one miss here:
//!
//! ```text
//! block, 64 bytes:  12 tags (0: free)   beyond, u32   12 handles
//! ```
//!
//! A handle lies in the block that its hash names or, if that is full, in the next one with room; `beyond` counts
//! those that passed a block, so a search ends where it is 0, and nothing has to be left behind by a removal.
//!
//! The table is cut into shards by the hash's top bits; each grows on its own, by a quarter, so the longest pause is a
//! thousandth of a rehash. What it grows by are segments of one size that are never given back: pieces of many sizes
//! left holes between them that came to 3 bytes an entry. Nothing ever iterates over it: its order decides nothing.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::arena::{Memory, PAGE_BYTES, Pages};

const SHARD_BITS: u32 = 10;
const FREE: u8 = 0;
const SLOTS: usize = 12;
/// Blocks of a segment, 256 bytes. A page of the table holds a whole number of segments.
const SEGMENT_BITS: u32 = 2;
const SEGMENT_BLOCKS: usize = 1 << SEGMENT_BITS;
/// Of 12 slots so many may be in use, on average of a shard.
const FULL_SLOTS: usize = 11;
/// Keys that are hashed together when a shard grows, so that one is not waited for after the other.
const HASHED_AT_ONCE: usize = 64;

#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
struct Block {
    tags: [u8; SLOTS],
    beyond: u32,
    handles: [u32; SLOTS],
}
const _: () = assert!(size_of::<Block>() == 64 && (PAGE_BYTES / 64).is_multiple_of(SEGMENT_BLOCKS));

#[derive(Debug)]
pub(crate) struct Index {
    blocks: Pages<Block>,
    shards: Vec<Shard>,
    /// What a shard holds while it grows: hashes and handles. Kept, so that its memory leaves no holes.
    moving: Vec<(u64, u32)>,
}

/// What a hash names beside its shard: the block to begin at, and the tag.
#[derive(Clone, Copy)]
struct Home {
    at: usize,
    tag: u8,
}

#[derive(Debug, Default)]
struct Shard {
    /// First block of each segment.
    segments: Vec<u32>,
    live: usize,
}

impl Index {
    pub(crate) fn new() -> Index {
        let shards = (0..1 << SHARD_BITS).map(|_| Shard::default()).collect();
        Index { blocks: Pages::new(), shards, moving: Vec::new() }
    }

    /// Makes room for so many handles in an empty index, so that filling it moves none.
    fn reserve(&mut self, handles: u64) {
        let share = (handles >> SHARD_BITS) as usize;
        // The fullest shard holds a little more than its share.
        let slots = share + share / 8 + SLOTS;
        let segments = slots.div_ceil(FULL_SLOTS).div_ceil(SEGMENT_BLOCKS);
        for shard in self.shards.iter_mut().filter(|shard| shard.live == 0) {
            shard.extend(&mut self.blocks, segments);
        }
    }

    /// The handle under `hash` for which `is_it` holds.
    pub(crate) fn find(&self, hash: u64, is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let shard = &self.shards[shard_of(hash)];
        let (block, slot) = shard.position(&self.blocks, hash, is_it)?;
        Some(self.blocks.get(shard.place(block)).handles[slot])
    }

    /// Adds a handle that is not in the index. `hashes` puts the hash of the key in front of each handle.
    pub(crate) fn insert(&mut self, hash: u64, handle: u32, hashes: impl Fn(&mut [(u64, u32)])) {
        let shard = &mut self.shards[shard_of(hash)];
        if shard.is_full() {
            shard.grow(&mut self.blocks, &mut self.moving, hashes);
        }
        shard.put(&mut self.blocks, hash, handle);
    }

    /// Takes out the handle under `hash` for which `is_it` holds.
    pub(crate) fn remove(&mut self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let shard = &mut self.shards[shard_of(hash)];
        let (found, slot) = shard.position(&self.blocks, hash, is_it)?;
        let mut at = shard.home(hash).at;
        while at != found {
            self.blocks.get_mut(shard.place(at)).beyond -= 1;
            at = shard.after(at);
        }
        shard.live -= 1;
        let block = self.blocks.get_mut(shard.place(found));
        block.tags[slot] = FREE;
        Some(block.handles[slot])
    }

    /// Bytes held, and those of slots in use.
    pub(crate) fn memory(&self) -> Memory {
        Memory::of(self.bytes(), self.shards.iter().map(|shard| shard.live * (size_of::<Block>() / SLOTS)).sum())
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        let segments = self.shards.iter().map(|shard| shard.segments.capacity() * size_of::<u32>()).sum::<usize>();
        let moving = self.moving.capacity() * size_of::<(u64, u32)>();
        self.blocks.bytes() + segments + moving + self.shards.len() * size_of::<Shard>()
    }
}

impl Shard {
    fn blocks(&self) -> usize {
        self.segments.len() << SEGMENT_BITS
    }

    /// Where a block of the shard lies in the table.
    #[inline]
    fn place(&self, block: usize) -> usize {
        self.segments[block >> SEGMENT_BITS] as usize + (block & (SEGMENT_BLOCKS - 1))
    }

    fn after(&self, block: usize) -> usize {
        if block + 1 == self.blocks() { 0 } else { block + 1 }
    }

    #[inline]
    fn home(&self, hash: u64) -> Home {
        let at = ((hash & 0xFFFF_FFFF) * self.blocks() as u64) >> 32;
        Home { at: at as usize, tag: ((hash >> 40) as u8).max(FREE + 1) }
    }

    /// Block and slot.
    #[inline]
    fn position(&self, table: &Pages<Block>, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<(usize, usize)> {
        if self.live == 0 {
            return None;
        }
        let Home { mut at, tag } = self.home(hash);
        loop {
            let block = table.get(self.place(at));
            for slot in 0..SLOTS {
                if block.tags[slot] == tag && is_it(block.handles[slot]) {
                    return Some((at, slot));
                }
            }
            if block.beyond == 0 {
                return None;
            }
            at = self.after(at);
        }
    }

    fn is_full(&self) -> bool {
        self.live >= self.blocks() * FULL_SLOTS
    }

    fn put(&mut self, table: &mut Pages<Block>, hash: u64, handle: u32) {
        let Home { mut at, tag } = self.home(hash);
        self.live += 1;
        loop {
            let block = table.get_mut(self.place(at));
            if let Some(slot) = block.tags.iter().position(|tag| *tag == FREE) {
                block.tags[slot] = tag;
                block.handles[slot] = handle;
                return;
            }
            block.beyond += 1;
            at = self.after(at);
        }
    }

    fn extend(&mut self, table: &mut Pages<Block>, segments: usize) {
        self.segments.reserve_exact(segments);
        for _ in 0..segments {
            self.segments.push(u32::try_from(table.len()).expect("2^32 blocks are 256 GiB"));
            table.grow_to(table.len() + SEGMENT_BLOCKS);
        }
    }

    /// A quarter more room. All handles move to their new places.
    fn grow(&mut self, table: &mut Pages<Block>, moving: &mut Vec<(u64, u32)>, hashes: impl Fn(&mut [(u64, u32)])) {
        moving.clear();
        moving.reserve_exact(self.live);
        for at in 0..self.blocks() {
            let block = table.get_mut(self.place(at));
            let live = block.tags.iter().zip(block.handles).filter(|(tag, _)| **tag != FREE);
            moving.extend(live.map(|(_, handle)| (0, handle)));
            *block = Block::default();
        }
        moving.chunks_mut(HASHED_AT_ONCE).for_each(hashes);
        self.extend(table, (self.segments.len() / 4).max(1));
        self.live = 0;
        for (hash, handle) in moving.drain(..) {
            self.put(table, hash, handle);
        }
    }
}

fn shard_of(hash: u64) -> usize {
    (hash >> (64 - SHARD_BITS)) as usize
}

/// Handles on their way into an index that has room for all: kept back by shard, so that one shard's blocks are in the
/// processor's cache when theirs come. Filling in the order of keys misses the cache with each of them.
///
/// Of a large index another thread does the work, while its owner reads the keys that come next. It cannot compare keys,
/// so it notes handles that may stand for the same one; the owner looks at these in the end.
#[derive(Debug, Default)]
pub(crate) struct Filling {
    waiting: Vec<Vec<(u64, u32)>>,
    helper: Option<Helper>,
}

/// Two handles have the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Twice;

impl Filling {
    /// Handles of a shard that go in together.
    const BATCH: usize = 256;

    /// For so many handles, which come into `index` with `finish`. It must not be asked before.
    pub(crate) fn new(index: &mut Index, handles: u64) -> Filling {
        index.reserve(handles);
        let has_help = handles >= HELP_FROM && std::thread::available_parallelism().is_ok_and(|count| count.get() > 1);
        Filling {
            waiting: (0..1 << SHARD_BITS).map(|_| Vec::new()).collect(),
            helper: has_help.then(|| Helper::start(index)).flatten(),
        }
    }

    /// `hashes` as for `Index::insert`; `is_same`: do two handles stand for the same key? Errors: `Twice`, of this
    /// handle or of one before.
    pub(crate) fn add(
        &mut self,
        index: &mut Index,
        hash: u64,
        handle: u32,
        hashes: impl Fn(&mut [(u64, u32)]),
        is_same: impl Fn(u32, u32) -> bool,
    ) -> Result<(), Twice> {
        let waiting = &mut self.waiting[shard_of(hash)];
        waiting.push((hash, handle));
        if waiting.len() < Filling::BATCH {
            return Ok(());
        }
        match &self.helper {
            Some(helper) => helper.give(waiting),
            None => index.fill(waiting, hashes, is_same)?,
        }
        Ok(())
    }

    /// What still waits goes in. Errors: `Twice`.
    pub(crate) fn finish(
        mut self,
        index: &mut Index,
        hashes: impl Fn(&mut [(u64, u32)]),
        is_same: impl Fn(u32, u32) -> bool,
    ) -> Result<(), Twice> {
        let Some(helper) = self.helper.take() else {
            return self.waiting.iter_mut().try_for_each(|waiting| index.fill(waiting, &hashes, &is_same));
        };
        for waiting in &mut self.waiting {
            helper.give(waiting);
        }
        let Filled { index: filled, alike, mut left } = helper.finish();
        *index = filled;
        if alike.into_iter().any(|(one, other)| is_same(one, other)) {
            return Err(Twice);
        }
        index.fill(&mut left, hashes, is_same)
    }
}

impl Index {
    fn home_block(&self, hash: u64) -> Option<&Block> {
        let shard = &self.shards[shard_of(hash)];
        (!shard.segments.is_empty()).then(|| self.blocks.get(shard.place(shard.home(hash).at)))
    }

    /// Asks for the blocks of handles that will go in, all at once: one after the other each would be waited for.
    fn touch(&self, batch: &[(u64, u32)]) {
        let touched = batch.iter().map(|(hash, _)| self.home_block(*hash).map_or(0, |block| block.beyond));
        std::hint::black_box(touched.fold(0, std::ops::BitXor::bitxor));
    }

    fn fill(
        &mut self,
        waiting: &mut Vec<(u64, u32)>,
        hashes: impl Fn(&mut [(u64, u32)]),
        is_same: impl Fn(u32, u32) -> bool,
    ) -> Result<(), Twice> {
        self.touch(waiting);
        for (hash, handle) in waiting.drain(..) {
            if self.find(hash, |other| is_same(other, handle)).is_some() {
                return Err(Twice);
            }
            self.insert(hash, handle, &hashes);
        }
        Ok(())
    }
}

/// From so many handles on a thread pays.
const HELP_FROM: u64 = 1 << 18;
/// So many handles may be like another one by chance.
const ALIKE_MAX: usize = 32;
/// Batches that may wait for the thread.
const BATCHES_WAITING: usize = 256;

/// A thread that fills an index.
#[derive(Debug)]
struct Helper {
    batches: SyncSender<Vec<(u64, u32)>>,
    thread: JoinHandle<Filled>,
}

struct Filled {
    index: Index,
    /// Handles that have as much of the hash in common as the index knows.
    alike: Vec<(u32, u32)>,
    /// Those for which a shard would have to grow, for which keys must be hashed; and those like very many others.
    left: Vec<(u64, u32)>,
}

impl Helper {
    /// None, and the index stays, if the system has no thread for it.
    fn start(index: &mut Index) -> Option<Helper> {
        let (batches, given) = sync_channel::<Vec<(u64, u32)>>(BATCHES_WAITING);
        let (hand_over, handed_over) = sync_channel(1);
        let fill = move || {
            let index = handed_over.recv().expect("it is sent at once");
            let mut filled = Filled { index, alike: Vec::new(), left: Vec::new() };
            for batch in given {
                filled.take(batch);
            }
            filled
        };
        let thread = std::thread::Builder::new().name("index".to_owned()).spawn(fill).ok()?;
        hand_over.send(std::mem::replace(index, Index::new())).expect("the thread waits for it");
        Some(Helper { batches, thread })
    }

    fn give(&self, batch: &mut Vec<(u64, u32)>) {
        let next = Vec::with_capacity(Filling::BATCH);
        self.batches.send(std::mem::replace(batch, next)).expect("the thread takes batches until there are no more");
    }

    fn finish(self) -> Filled {
        drop(self.batches);
        self.thread.join().expect("the thread ends when there are no more batches")
    }
}

impl Filled {
    fn take(&mut self, batch: Vec<(u64, u32)>) {
        let Filled { index, alike, left } = self;
        index.touch(&batch);
        for (hash, handle) in batch {
            let shard = shard_of(hash);
            if index.shards[shard].is_full() {
                left.push((hash, handle));
                continue;
            }
            let before = alike.len();
            index.find(hash, |other| {
                alike.push((other, handle));
                alike.len() - before > ALIKE_MAX
            });
            // So many are no chance: somebody makes names for it. Their owner looks at them one by one.
            if alike.len() - before > ALIKE_MAX {
                alike.truncate(before);
                left.push((hash, handle));
                continue;
            }
            index.shards[shard].put(&mut index.blocks, hash, handle);
        }
    }
}

/// Hash of a number and some bytes; spreads well, resists no attacker who knows it.
pub(crate) fn hash(number: u64, bytes: &[u8]) -> u64 {
    const FIRST: u64 = 0x9E37_79B9_7F4A_7C15;
    const SECOND: u64 = 0xD6E8_FEB8_6659_FD93;
    let fold = |left: u64, right: u64| {
        let wide = u128::from(left) * u128::from(right);
        (wide as u64) ^ ((wide >> 64) as u64)
    };
    let mut state = fold(number ^ FIRST, SECOND ^ bytes.len() as u64);
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let word = u64::from_be_bytes(word.try_into().expect("8 bytes"));
        state = fold(state ^ word, SECOND);
    }
    let mut last = [0; 8];
    let rest = words.remainder();
    last[..rest.len()].copy_from_slice(rest);
    fold(fold(state ^ u64::from_be_bytes(last), FIRST) ^ FIRST, SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hashes of many from the hash of one.
    fn each(hash_of: impl Fn(u32) -> u64) -> impl Fn(&mut [(u64, u32)]) {
        move |batch| batch.iter_mut().for_each(|(hash, handle)| *hash = hash_of(*handle))
    }

    #[test]
    fn what_was_put_in_is_found_until_it_is_taken_out() {
        let mut index = Index::new();
        let hash_of = |handle: u32| hash(u64::from(handle), b"");
        for handle in 1..20_000 {
            index.insert(hash_of(handle), handle, each(hash_of));
        }
        for handle in (1..20_000).step_by(3) {
            assert_eq!(index.remove(hash_of(handle), |found| found == handle), Some(handle));
        }
        for handle in 1..20_000 {
            let expected = (handle % 3 != 1).then_some(handle);
            assert_eq!(index.find(hash_of(handle), |found| found == handle), expected);
        }
    }

    #[test]
    fn what_is_filled_in_by_shards_is_found_and_a_second_one_is_noticed() {
        // More than waits at a time, so that the first of two is in the index, or waits with the second; with a helper
        // and without, and with too little room.
        let counts = [(600_000, 600_000), (200_000, 200_000), (1000, 1000), (700_000, 300_000), (200_000, 10)];
        for (count, room, twice) in counts.into_iter().flat_map(|(n, room)| [(n, room, None), (n, room, Some(3))]) {
            let mut index = Index::new();
            let mut filling = Filling::new(&mut index, room);
            let key_of = |handle: u32| if handle == count { twice.unwrap_or(handle) } else { handle };
            let hash_of = |handle| hash(u64::from(key_of(handle)), b"");
            let is_same = |left, right| key_of(left) == key_of(right);
            let mut added = (1..=count).map(|n| filling.add(&mut index, hash_of(n), n, each(hash_of), is_same));
            let result = added.find(Result::is_err).unwrap_or(Ok(()));
            let result = result.and_then(|()| filling.finish(&mut index, each(hash_of), is_same));
            assert_eq!(result, if twice.is_some() { Err(Twice) } else { Ok(()) });
            if twice.is_none() {
                let found = |n| index.find(hash_of(n), |other| other == n) == Some(n);
                assert!((1..=count).all(found));
            }
        }
    }

    #[test]
    fn keys_that_somebody_made_alike_take_no_more_room_than_others() {
        let mut index = Index::new();
        let hash_of = |_: u32| 7;
        index.reserve(HELP_FROM);
        let helper = Helper::start(&mut index).expect("there are threads");
        // One hash for all, so that each is like all before it.
        helper.give(&mut (1..3000).map(|handle| (7, handle)).collect());
        let Filled { index: mut filled, alike, mut left } = helper.finish();
        assert!(alike.len() <= ALIKE_MAX * 3000 && left.len() > 2900, "{} {}", alike.len(), left.len());
        assert_eq!(filled.fill(&mut left, each(hash_of), |one, other| one == other), Ok(()));
        assert!((1..3000).all(|handle| filled.find(7, |found| found == handle) == Some(handle)));
    }

    #[test]
    fn handles_that_all_want_one_place_are_found_and_go_without_traces() {
        let mut index = Index::new();
        let hash_of = |_: u32| 7;
        for handle in 1..500 {
            index.insert(7, handle, each(hash_of));
        }
        // From the middle outwards, so that blocks in between become free before those behind them.
        for step in 0..499u32 {
            let handle = if step % 2 == 0 { 250 + step / 2 } else { 249 - step / 2 };
            assert_eq!(index.remove(7, |found| found == handle), Some(handle));
            assert_eq!(index.find(7, |found| found == handle), None);
            let left: Vec<u32> = (1..500).filter(|other| index.find(7, |found| found == *other).is_some()).collect();
            assert_eq!(left.len(), 498 - step as usize);
        }
        assert!((0..index.blocks.len()).all(|at| index.blocks.get(at).beyond == 0), "a search goes on for nothing");
    }

    #[test]
    fn endless_coming_and_going_does_not_grow_the_table() {
        let mut index = Index::new();
        let hash_of = |handle: u32| hash(u64::from(handle), b"x");
        for handle in 1..200_000u32 {
            index.insert(hash_of(handle), handle, each(hash_of));
            if handle > 100 {
                let old = handle - 100;
                assert_eq!(index.remove(hash_of(old), |found| found == old), Some(old));
            }
        }
        assert!(index.bytes() < 400_000, "{} bytes for 100 entries in {} shards", index.bytes(), 1 << SHARD_BITS);
    }
}
