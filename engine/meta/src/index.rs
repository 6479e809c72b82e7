//! A hash index from keys that live elsewhere to 32-bit handles.
//!
//! It stores no key and no hash: one byte of the hash as a tag and the handle, 5 bytes a slot. Who asks compares the
//! key behind a handle itself. The table is cut into shards by the hash's top bits; each grows on its own, by a half,
//! so the longest pause is a thousandth of a rehash. Nothing ever iterates over it: its order decides nothing.

use crate::arena::Memory;

const SHARD_BITS: u32 = 10;
const EMPTY: u8 = 0;
const REMOVED: u8 = 1;
/// Tags from here on mark live slots.
const TAG_MIN: u8 = 2;
const FIRST_SLOTS: usize = 8;

#[derive(Debug)]
pub(crate) struct Index {
    shards: Vec<Shard>,
}

#[derive(Debug, Default)]
struct Shard {
    tags: Box<[u8]>,
    handles: Box<[u32]>,
    live: usize,
    removed: usize,
}

impl Index {
    pub(crate) fn new() -> Index {
        Index { shards: (0..1 << SHARD_BITS).map(|_| Shard::default()).collect() }
    }

    /// Makes room for so many handles in an empty index, so that filling it moves none.
    pub(crate) fn reserve(&mut self, handles: u64) {
        let share = handles >> SHARD_BITS;
        // The fullest shard holds a little more than its share; an eighth stays free.
        let slots = (share + share / 4 + FIRST_SLOTS as u64) as usize;
        for shard in self.shards.iter_mut().filter(|shard| shard.live == 0) {
            shard.tags = vec![EMPTY; slots].into_boxed_slice();
            shard.handles = vec![0; slots].into_boxed_slice();
            shard.removed = 0;
        }
    }

    /// The handle under `hash` for which `is_it` holds.
    pub(crate) fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let shard = &self.shards[shard_of(hash)];
        shard.position(hash, is_it).map(|at| shard.handles[at])
    }

    /// Adds a handle that is not in the index. `hash_of` gives the hash of the key behind a handle.
    pub(crate) fn insert(&mut self, hash: u64, handle: u32, hash_of: impl Fn(u32) -> u64) {
        let shard = &mut self.shards[shard_of(hash)];
        if (shard.live + shard.removed + 1) * 8 > shard.tags.len() * 7 {
            shard.rebuild(hash_of);
        }
        shard.place(hash, handle);
    }

    /// Takes out the handle under `hash` for which `is_it` holds.
    pub(crate) fn remove(&mut self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let shard = &mut self.shards[shard_of(hash)];
        let at = shard.position(hash, is_it)?;
        let next = if at + 1 == shard.tags.len() { 0 } else { at + 1 };
        // A probe that came this far ends at an empty neighbour anyway, so the slot may become empty at once.
        if shard.tags[next] == EMPTY {
            shard.tags[at] = EMPTY;
        } else {
            shard.tags[at] = REMOVED;
            shard.removed += 1;
        }
        shard.live -= 1;
        Some(shard.handles[at])
    }

    /// Bytes held, and those of slots in use.
    pub(crate) fn memory(&self) -> Memory {
        Memory::of(self.bytes(), self.shards.iter().map(|shard| shard.live * 5).sum())
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| size_of::<Shard>() + shard.tags.len() * 5).sum()
    }
}

impl Shard {
    fn position(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<usize> {
        if self.tags.is_empty() {
            return None;
        }
        let tag = tag_of(hash);
        let mut at = start_of(hash, self.tags.len());
        loop {
            match self.tags[at] {
                EMPTY => return None,
                found if found == tag && is_it(self.handles[at]) => return Some(at),
                _ => {}
            }
            at += 1;
            if at == self.tags.len() {
                at = 0;
            }
        }
    }

    fn place(&mut self, hash: u64, handle: u32) {
        let mut at = start_of(hash, self.tags.len());
        while self.tags[at] >= TAG_MIN {
            at += 1;
            if at == self.tags.len() {
                at = 0;
            }
        }
        if self.tags[at] == REMOVED {
            self.removed -= 1;
        }
        self.tags[at] = tag_of(hash);
        self.handles[at] = handle;
        self.live += 1;
    }

    /// Room for more, and no removed slots: half as many again if the live ones need it, else the same size.
    fn rebuild(&mut self, hash_of: impl Fn(u32) -> u64) {
        let slots = self.tags.len();
        let wanted = if (self.live + 1) * 4 > slots * 3 { (slots + slots / 2).max(FIRST_SLOTS) } else { slots };
        let old = std::mem::replace(
            self,
            Shard {
                tags: vec![EMPTY; wanted].into_boxed_slice(),
                handles: vec![0; wanted].into_boxed_slice(),
                live: 0,
                removed: 0,
            },
        );
        for (tag, handle) in old.tags.iter().zip(&old.handles) {
            if *tag >= TAG_MIN {
                self.place(hash_of(*handle), *handle);
            }
        }
    }
}

fn shard_of(hash: u64) -> usize {
    (hash >> (64 - SHARD_BITS)) as usize
}

fn tag_of(hash: u64) -> u8 {
    let byte = (hash >> 40) as u8;
    if byte < TAG_MIN { byte + TAG_MIN } else { byte }
}

fn start_of(hash: u64, slots: usize) -> usize {
    (((hash & 0xFFFF_FFFF) * slots as u64) >> 32) as usize
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

    #[test]
    fn what_was_put_in_is_found_until_it_is_taken_out() {
        let mut index = Index::new();
        let hash_of = |handle: u32| hash(u64::from(handle), b"");
        for handle in 1..20_000 {
            index.insert(hash_of(handle), handle, hash_of);
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
    fn endless_coming_and_going_does_not_grow_the_table() {
        let mut index = Index::new();
        let hash_of = |handle: u32| hash(u64::from(handle), b"x");
        for handle in 1..200_000u32 {
            index.insert(hash_of(handle), handle, hash_of);
            if handle > 100 {
                let old = handle - 100;
                assert_eq!(index.remove(hash_of(old), |found| found == old), Some(old));
            }
        }
        assert!(index.bytes() < 300_000, "{} bytes for 100 entries in {} shards", index.bytes(), 1 << SHARD_BITS);
    }
}
