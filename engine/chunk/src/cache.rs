//! Verified blocks kept in memory.
//!
//! A block here was read from the disk and fitted its sum, or was written whole by a client and fitted its sum; it lies
//! in a buffer of the pool and is sent from there, without a copy and without hashing it again.
//!
//! **What stays** is decided by S3-FIFO (Yang and others, SOSP 2023): new blocks go through a small queue; what is not
//! used again there leaves after a tenth of the room was read past it, so one long scan displaces a tenth at most; what
//! is used again, or comes back soon after it left (a ghost: its key alone is kept), goes to the main queue, which gives
//! a used block another round. There is no list to reorder at a hit, which is all that happens on the hot path. Against
//! LRU: scans pass through. Against ARC and LIRS: less state, as good in the paper's traces. A reader that goes through a
//! block in small steps uses it once: a use counts when bytes are read that were read before.
//!
//! **What is true** rests on three rules. A lookup asks for the place (disk, sub-folder, version) and the sum that the
//! open chunk has now. Whoever changes a block takes it out before the disk is touched and once more when the new sum is
//! in the table, in one step with that. A read from disk announces itself before it looks at the table and puts its
//! block in only if nobody took that block out meanwhile: so what was read before a write never appears after it.

use std::cell::RefCell;
use std::collections::HashMap;

use ring::SharedBlock;
use wire::limits::{BLOCK_BYTES, BLOCKS_PER_CHUNK};
use wire::{ChunkId, Crc};

use crate::layout::BlockIndex;
use crate::registry::Place;

/// Blocks in one MiB.
pub(crate) const BLOCKS_PER_MIB: usize = (1 << 20) / BLOCK_BYTES as usize;
/// A use more than this makes no difference.
const USES_MAX: u8 = 3;
/// No entry.
const NONE: u32 = u32::MAX;

pub(crate) struct Cache {
    state: RefCell<State>,
}

type Key = (ChunkId, BlockIndex);

struct State {
    /// Blocks that may be held; 0: the cache is off.
    blocks_max: usize,
    index: HashMap<Key, u32>,
    entries: Vec<Entry>,
    free: Vec<u32>,
    /// Read once; read again; gone, but remembered.
    queues: [Queue; 3],
    /// Reads from disk that will put their block in.
    loads: Vec<(u64, Key)>,
    next_load: u64,
    stats: CacheStats,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Small = 0,
    Main = 1,
    Ghost = 2,
}

/// First in, first out; anything may leave from the middle.
#[derive(Clone, Copy)]
struct Queue {
    newest: u32,
    oldest: u32,
    length: usize,
}

struct Entry {
    key: Key,
    place: Place,
    sum: Crc,
    /// None in the ghost queue.
    block: Option<SharedBlock>,
    uses: u8,
    /// Where the last reader ended.
    read_to_bytes: u32,
    queue: Which,
    newer: u32,
    older: u32,
}

/// A read from disk under way. See `begin_load`.
pub(crate) struct Load(Option<u64>);

/// What the cache did since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CacheStats {
    pub(crate) hits: u64,
    pub(crate) misses: u64,
}

impl Cache {
    /// A cache of so many blocks.
    pub(crate) fn new(blocks_max: usize) -> Cache {
        let nothing = Queue { newest: NONE, oldest: NONE, length: 0 };
        Cache {
            state: RefCell::new(State {
                blocks_max,
                index: HashMap::with_capacity(blocks_max * 4), // twice what is in use: it never grows
                entries: Vec::with_capacity(blocks_max * 2),
                free: Vec::with_capacity(blocks_max * 2),
                queues: [nothing; 3],
                loads: Vec::new(),
                next_load: 0,
                stats: CacheStats::default(),
            }),
        }
    }

    /// The block, if it is here and is what the open chunk has now. `from_bytes..to_bytes`: the part that is read.
    pub(crate) fn get(
        &self,
        id: ChunkId,
        block: BlockIndex,
        (place, sum): (Place, Crc),
        part_bytes: std::ops::Range<u32>,
    ) -> Option<SharedBlock> {
        let state = &mut *self.state.borrow_mut();
        if state.blocks_max == 0 {
            return None;
        }
        let found = state.index.get(&(id, block)).map(|at| &mut state.entries[*at as usize]);
        let entry = found.filter(|entry| entry.place == place && entry.sum == sum);
        let Some((entry, shared)) = entry.and_then(|entry| entry.block.clone().map(|shared| (entry, shared))) else {
            state.stats.misses += 1;
            return None;
        };
        if part_bytes.start < entry.read_to_bytes {
            entry.uses = (entry.uses + 1).min(USES_MAX);
        }
        entry.read_to_bytes = part_bytes.end;
        state.stats.hits += 1;
        Some(shared)
    }

    /// Whether the block is here as the open chunk has it now. No use of it.
    pub(crate) fn has(&self, id: ChunkId, block: BlockIndex, (place, sum): (Place, Crc)) -> bool {
        let state = self.state.borrow();
        let entry = state.index.get(&(id, block)).map(|at| &state.entries[*at as usize]);
        entry.is_some_and(|entry| entry.place == place && entry.sum == sum && entry.block.is_some())
    }

    /// Announces a read from disk, before the caller looks at the chunk's table. Pair with `end_load`.
    pub(crate) fn begin_load(&self, id: ChunkId, block: BlockIndex) -> Load {
        let state = &mut *self.state.borrow_mut();
        if state.blocks_max == 0 {
            return Load(None);
        }
        state.next_load += 1;
        state.loads.push((state.next_load, (id, block)));
        Load(Some(state.next_load))
    }

    /// The read from disk is over. Takes its block, with the place and sum that the open chunk has now, unless the
    /// block was changed meanwhile. `loaded` is None if the read failed. `read_to_bytes`: where the reader ends.
    pub(crate) fn end_load(&self, load: Load, loaded: Option<(Place, Crc, &SharedBlock)>, read_to_bytes: u32) {
        let Load(Some(number)) = load else { return };
        let state = &mut *self.state.borrow_mut();
        let Some(at) = state.loads.iter().position(|(other, _)| *other == number) else { return };
        let (_, key) = state.loads.swap_remove(at);
        if let Some((place, sum, block)) = loaded {
            state.put(key, place, sum, block.clone(), read_to_bytes);
        }
    }

    /// Takes a block that was just written whole.
    pub(crate) fn put(&self, id: ChunkId, block: BlockIndex, (place, sum): (Place, Crc), shared: SharedBlock) {
        let state = &mut *self.state.borrow_mut();
        if state.blocks_max > 0 {
            state.put((id, block), place, sum, shared, 0);
        }
    }

    /// The block is about to change, or has changed. Gives back what was here, if it was what the chunk has now.
    pub(crate) fn take(&self, id: ChunkId, block: BlockIndex, (place, sum): (Place, Crc)) -> Option<SharedBlock> {
        let state = &mut *self.state.borrow_mut();
        state.loads.retain(|(_, key)| *key != (id, block));
        let at = *state.index.get(&(id, block))?;
        let entry = &mut state.entries[at as usize];
        let is_current = entry.place == place && entry.sum == sum;
        let shared = entry.block.take();
        state.bury(at);
        shared.filter(|_| is_current)
    }

    /// The chunk has changed as a whole, or is no more.
    pub(crate) fn forget_chunk(&self, id: ChunkId) {
        let state = &mut *self.state.borrow_mut();
        state.loads.retain(|(_, key)| key.0 != id);
        if state.index.is_empty() {
            return;
        }
        for block in (0..u32::from(BLOCKS_PER_CHUNK)).filter_map(BlockIndex::new) {
            if let Some(at) = state.index.get(&(id, block)).copied() {
                state.forget(at);
            }
        }
    }

    /// A disk came or went.
    pub(crate) fn clear(&self) {
        let state = &mut *self.state.borrow_mut();
        state.loads.clear();
        for which in [Which::Small, Which::Main, Which::Ghost] {
            while state.queues[which as usize].oldest != NONE {
                state.forget(state.queues[which as usize].oldest);
            }
        }
    }

    pub(crate) fn stats(&self) -> CacheStats {
        self.state.borrow().stats
    }
}

impl State {
    fn put(&mut self, key: Key, place: Place, sum: Crc, block: SharedBlock, read_to_bytes: u32) {
        let mut queue = Which::Small;
        if let Some(at) = self.index.get(&key).copied() {
            if self.entries[at as usize].queue != Which::Small {
                queue = Which::Main; // it was here not long ago
            }
            self.forget(at);
        }
        while self.queues[Which::Small as usize].length + self.queues[Which::Main as usize].length >= self.blocks_max {
            self.evict();
        }
        let entry =
            Entry { key, place, sum, block: Some(block), uses: 0, read_to_bytes, queue, newer: NONE, older: NONE };
        let at = match self.free.pop() {
            Some(at) => {
                self.entries[at as usize] = entry;
                at
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as u32
            }
        };
        self.index.insert(key, at);
        self.link(at, queue);
    }

    /// Makes room for one block, or gives one another round.
    fn evict(&mut self) {
        let small = self.queues[Which::Small as usize];
        if small.length >= (self.blocks_max / 10).max(1) {
            let at = small.oldest;
            let entry = &mut self.entries[at as usize];
            if entry.uses > 0 {
                entry.uses = 0;
                self.unlink(at);
                self.link(at, Which::Main);
            } else {
                self.bury(at);
            }
            return;
        }
        let at = self.queues[Which::Main as usize].oldest;
        let entry = &mut self.entries[at as usize];
        if entry.uses > 0 {
            entry.uses -= 1;
            self.unlink(at);
            self.link(at, Which::Main);
        } else {
            self.forget(at);
        }
    }

    /// Lets go of the block and remembers its key.
    fn bury(&mut self, at: u32) {
        self.unlink(at);
        self.entries[at as usize].block = None;
        self.link(at, Which::Ghost);
        let ghosts = self.queues[Which::Ghost as usize];
        if ghosts.length > self.blocks_max {
            self.forget(ghosts.oldest);
        }
    }

    fn forget(&mut self, at: u32) {
        self.unlink(at);
        let entry = &mut self.entries[at as usize];
        entry.block = None;
        self.index.remove(&entry.key);
        self.free.push(at);
    }

    fn link(&mut self, at: u32, which: Which) {
        let queue = &mut self.queues[which as usize];
        let newest = std::mem::replace(&mut queue.newest, at);
        queue.length += 1;
        if newest == NONE {
            queue.oldest = at;
        } else {
            self.entries[newest as usize].newer = at;
        }
        let entry = &mut self.entries[at as usize];
        (entry.queue, entry.newer, entry.older) = (which, NONE, newest);
    }

    fn unlink(&mut self, at: u32) {
        let Entry { queue, newer, older, .. } = self.entries[at as usize];
        let queue = &mut self.queues[queue as usize];
        queue.length -= 1;
        match newer {
            NONE => queue.newest = older,
            newer => self.entries[newer as usize].older = older,
        }
        match older {
            NONE => queue.oldest = newer,
            older => self.entries[older as usize].newer = newer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::Ring;
    use wire::Version;

    const PLACE: Place = Place { version: Version(1), volume: 0, subfolder: 0 };
    const SUM: Crc = Crc(7);

    fn block(number: u32) -> BlockIndex {
        BlockIndex::new(number).unwrap()
    }

    /// Runs a test with blocks of a ring's pool.
    fn with_ring(test: impl FnOnce(&Ring)) {
        let options = ring::Options { driver: ring::DriverChoice::Epoll, buffers: 64, ..ring::Options::default() };
        ring::run(options, |ring| async move { test(&ring) }).unwrap();
    }

    fn load(cache: &Cache, ring: &Ring, number: u32) {
        let load = cache.begin_load(ChunkId(1), block(number));
        let shared = ring.buffer().expect("the cache keeps to its bound").share();
        cache.end_load(load, Some((PLACE, SUM, &shared)), BLOCK_BYTES);
    }

    fn has(cache: &Cache, number: u32) -> bool {
        cache.get(ChunkId(1), block(number), (PLACE, SUM), 0..BLOCK_BYTES).is_some()
    }

    #[test]
    fn a_scan_leaves_what_is_used_again_where_it_is() {
        with_ring(|ring| {
            let cache = Cache::new(40);
            for number in 0..30 {
                load(&cache, ring, number);
            }
            assert!((0..30).all(|number| has(&cache, number)));
            for number in 100..1000 {
                load(&cache, ring, number);
            }
            assert_eq!((0..30).filter(|number| has(&cache, *number)).count(), 30);
            assert_eq!(ring.free_buffers(), 64 - 40, "full, and not more");
            cache.clear();
            assert_eq!(ring.free_buffers(), 64);
        });
    }

    #[test]
    fn a_reader_in_small_steps_uses_a_block_once() {
        with_ring(|ring| {
            let cache = Cache::new(20);
            for number in 0..100 {
                let first = cache.begin_load(ChunkId(1), block(number));
                let shared = ring.buffer().expect("the cache keeps to its bound").share();
                cache.end_load(first, Some((PLACE, SUM, &shared)), 4096);
                for step in 1..16 {
                    let part = step * 4096..(step + 1) * 4096;
                    assert!(cache.get(ChunkId(1), block(number), (PLACE, SUM), part).is_some());
                }
            }
            let main = cache.state.borrow().queues[Which::Main as usize].length;
            assert_eq!(main, 0, "nothing was read twice");
        });
    }

    #[test]
    fn a_block_that_comes_back_soon_goes_where_the_used_ones_are() {
        with_ring(|ring| {
            let cache = Cache::new(10);
            for number in 0..12 {
                load(&cache, ring, number);
            }
            assert!(!has(&cache, 0), "pushed out unused");
            load(&cache, ring, 0);
            for number in 20..60 {
                load(&cache, ring, number);
            }
            assert!(has(&cache, 0));
        });
    }

    #[test]
    fn a_read_that_began_before_a_change_leaves_nothing_behind() {
        with_ring(|ring| {
            let cache = Cache::new(10);
            let old = ring.buffer().unwrap().share();
            let first = cache.begin_load(ChunkId(1), block(0));
            assert!(cache.take(ChunkId(1), block(0), (PLACE, SUM)).is_none());
            cache.end_load(first, Some((PLACE, SUM, &old)), BLOCK_BYTES);
            assert!(!has(&cache, 0));
            let second = cache.begin_load(ChunkId(1), block(0));
            cache.forget_chunk(ChunkId(1));
            cache.end_load(second, Some((PLACE, SUM, &old)), BLOCK_BYTES);
            assert!(!has(&cache, 0));
        });
    }

    #[test]
    fn another_sum_another_place_another_version_is_another_block() {
        with_ring(|ring| {
            let cache = Cache::new(10);
            load(&cache, ring, 0);
            let get = |place, sum| cache.get(ChunkId(1), block(0), (place, sum), 0..BLOCK_BYTES).is_some();
            assert!(get(PLACE, SUM));
            assert!(!get(PLACE, Crc(8)));
            assert!(!get(Place { version: Version(2), ..PLACE }, SUM));
            assert!(!get(Place { volume: 1, ..PLACE }, SUM));
            assert!(cache.take(ChunkId(1), block(0), (PLACE, Crc(8))).is_none());
            assert!(!get(PLACE, SUM), "taken out all the same");
        });
    }

    #[test]
    fn a_cache_that_is_off_keeps_nothing() {
        with_ring(|ring| {
            let cache = Cache::new(0);
            load(&cache, ring, 0);
            cache.put(ChunkId(1), block(1), (PLACE, SUM), ring.buffer().unwrap().share());
            assert!(!has(&cache, 0) && !has(&cache, 1));
            assert_eq!((ring.free_buffers(), cache.stats()), (64, CacheStats::default()));
        });
    }
}
