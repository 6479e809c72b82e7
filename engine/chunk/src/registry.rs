//! Which file holds which chunk. Pure: no IO. Spec 21, 7.

use std::collections::BTreeMap;

use wire::{ChunkId, Version};

/// Where a chunk's file is. Volumes are numbered in the order of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) version: Version,
    pub(crate) volume: u16,
    pub(crate) subfolder: u8,
}

#[derive(Default)]
pub(crate) struct Registry {
    chunks: BTreeMap<ChunkId, Place>,
}

/// What became of a file that a scan found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The first file of this chunk.
    New,
    /// The better copy; the one at the place was known before and is now a duplicate.
    Better { loser: Place },
    /// The chunk has a copy that is as good; this file is a duplicate.
    Duplicate,
    /// This very file was known before.
    Known,
}

impl Registry {
    pub(crate) fn get(&self, id: ChunkId) -> Option<Place> {
        self.chunks.get(&id).copied()
    }

    pub(crate) fn insert(&mut self, id: ChunkId, place: Place) {
        self.chunks.insert(id, place);
    }

    pub(crate) fn remove(&mut self, id: ChunkId) -> Option<Place> {
        self.chunks.remove(&id)
    }

    /// Takes in a file found by a scan: the higher version wins, of equal versions the first found; a chunk in use
    /// wins too.
    pub(crate) fn found(&mut self, id: ChunkId, place: Place, known_is_in_use: bool) -> Verdict {
        match self.get(id) {
            None => {
                self.insert(id, place);
                Verdict::New
            }
            Some(known) if known == place => Verdict::Known,
            Some(known) if known_is_in_use || known.version >= place.version => Verdict::Duplicate,
            Some(known) => {
                self.insert(id, place);
                Verdict::Better { loser: known }
            }
        }
    }

    /// At most `count` chunks with ids above `after`, ascending.
    pub(crate) fn some_after(&self, after: ChunkId, count: usize) -> Vec<(ChunkId, Place)> {
        let range = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        self.chunks.range(range).take(count).map(|(id, place)| (*id, *place)).collect()
    }

    /// The chunks of one volume.
    pub(crate) fn of_volume(&self, volume: u16) -> Vec<(ChunkId, Place)> {
        self.chunks.iter().filter(|(_, place)| place.volume == volume).map(|(id, place)| (*id, *place)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: ChunkId = ChunkId(5);

    fn place(version: u32, volume: u16) -> Place {
        Place { version: Version(version), volume, subfolder: 0 }
    }

    #[test]
    fn the_higher_version_wins_and_of_equal_ones_the_first() {
        let mut registry = Registry::default();
        assert_eq!(registry.found(ID, place(2, 0), false), Verdict::New);
        assert_eq!(registry.found(ID, place(2, 0), false), Verdict::Known);
        assert_eq!(registry.found(ID, place(2, 1), false), Verdict::Duplicate);
        assert_eq!(registry.found(ID, place(1, 1), false), Verdict::Duplicate);
        assert_eq!(registry.found(ID, place(3, 1), false), Verdict::Better { loser: place(2, 0) });
        assert_eq!(registry.get(ID), Some(place(3, 1)));
    }

    #[test]
    fn a_chunk_in_use_stays_where_it_is() {
        let mut registry = Registry::default();
        registry.found(ID, place(2, 0), false);
        assert_eq!(registry.found(ID, place(3, 1), true), Verdict::Duplicate);
        assert_eq!(registry.get(ID), Some(place(2, 0)));
    }

    #[test]
    fn a_listing_goes_on_where_it_stopped() {
        let mut registry = Registry::default();
        for id in [3, 1, 2, 9] {
            registry.insert(ChunkId(id), place(1, (id % 2) as u16));
        }
        let ids = |list: Vec<(ChunkId, Place)>| list.into_iter().map(|(id, _)| id.0).collect::<Vec<_>>();
        assert_eq!(ids(registry.some_after(ChunkId(0), 2)), [1, 2]);
        assert_eq!(ids(registry.some_after(ChunkId(2), 9)), [3, 9]);
        assert_eq!(registry.of_volume(0), [(ChunkId(2), place(1, 0))]);
        assert_eq!((registry.remove(ChunkId(2)).is_some(), registry.get(ChunkId(2))), (true, None));
    }
}
