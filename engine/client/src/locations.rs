//! Where chunks are: what the master answered, until it says that something changed. Spec 31, 31.12.
//!
//! An entry is made by READ_CHUNK and WRITE_CHUNK answers for files that are open (only for those does the master
//! send notices) and goes with any read failure, a notice, a lost connection, or the last handle of the file.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;

use wire::{ChunkId, CltocsTicket, GivenTicket, Inode, Location, Version, VersionWord};

/// Entries kept: 64 bytes or so each.
const ENTRIES_MAX: usize = 200_000;

/// A chunkserver's data port. Ordered, so that equal runs choose equally.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Server {
    pub(crate) ip: Ipv4Addr,
    pub(crate) port: u16,
    pub(crate) version: VersionWord,
    pub(crate) labels: u32,
}

impl Server {
    pub(crate) fn address(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.ip, self.port)
    }
}

impl From<&Location> for Server {
    fn from(location: &Location) -> Server {
        Server { ip: location.ip.into(), port: location.port, version: location.version, labels: location.labels }
    }
}

/// One chunk. Id 0: a hole, read as zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChunkLocation {
    pub(crate) chunkid: ChunkId,
    pub(crate) version: Version,
    pub(crate) servers: Rc<[Server]>,
    /// What is shown to servers before the chunk is read or written, if the master gives tickets out.
    pub(crate) ticket: Option<CltocsTicket>,
}

impl ChunkLocation {
    pub(crate) fn new(
        chunkid: ChunkId,
        version: Version,
        locations: &[Location],
        ticket: GivenTicket,
    ) -> ChunkLocation {
        let servers = locations.iter().map(Server::from).collect();
        ChunkLocation { chunkid, version, servers, ticket: ticket.for_chunk(chunkid) }
    }

    pub(crate) fn is_hole(&self) -> bool {
        self.chunkid.0 == 0
    }
}

#[derive(Default)]
pub(crate) struct Locations {
    entries: RefCell<BTreeMap<(Inode, u32), ChunkLocation>>,
}

impl Locations {
    pub(crate) fn get(&self, inode: Inode, index: u32) -> Option<ChunkLocation> {
        self.entries.borrow().get(&(inode, index)).cloned()
    }

    pub(crate) fn put(&self, inode: Inode, index: u32, location: ChunkLocation) {
        let mut entries = self.entries.borrow_mut();
        if entries.len() >= ENTRIES_MAX {
            entries.pop_first(); // full: the master knows them all
        }
        entries.insert((inode, index), location);
    }

    pub(crate) fn forget(&self, inode: Inode, index: u32) {
        self.entries.borrow_mut().remove(&(inode, index));
    }

    /// Forgets the chunks of a file from this one on.
    pub(crate) fn forget_from(&self, inode: Inode, index: u32) {
        let mut entries = self.entries.borrow_mut();
        let found: Vec<_> = entries.range((inode, index)..=(inode, u32::MAX)).map(|(key, _)| *key).collect();
        for key in found {
            entries.remove(&key);
        }
    }

    /// A notice: the chunk has this id and version now. An entry that does not exist is not made.
    pub(crate) fn replace(&self, inode: Inode, index: u32, chunkid: ChunkId, version: Version) {
        let mut entries = self.entries.borrow_mut();
        if let Some(entry) = entries.get_mut(&(inode, index))
            && (entry.chunkid != chunkid || entry.version != version)
        {
            // A hole that became a chunk, or a copy made for a shared one: its servers are not known.
            if entry.is_hole() || entry.chunkid != chunkid {
                entries.remove(&(inode, index));
            } else {
                entry.version = version;
            }
        }
    }

    pub(crate) fn clear(&self) {
        self.entries.borrow_mut().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(chunkid: u64, version: u32) -> ChunkLocation {
        let server = Server { ip: Ipv4Addr::LOCALHOST, port: 9422, version: VersionWord::OURS, labels: 0 };
        ChunkLocation { chunkid: ChunkId(chunkid), version: Version(version), servers: [server].into(), ticket: None }
    }

    #[test]
    fn a_notice_about_a_new_version_keeps_the_servers() {
        let locations = Locations::default();
        locations.put(Inode(5), 0, location(7, 1));
        locations.replace(Inode(5), 0, ChunkId(7), Version(2));
        assert_eq!(locations.get(Inode(5), 0), Some(location(7, 2)));
    }

    #[test]
    fn a_notice_about_another_chunk_makes_the_client_ask() {
        let locations = Locations::default();
        locations.put(Inode(5), 0, location(7, 1));
        locations.replace(Inode(5), 0, ChunkId(8), Version(1));
        assert_eq!(locations.get(Inode(5), 0), None);
    }

    #[test]
    fn forgetting_from_a_chunk_on_spares_other_files_and_earlier_chunks() {
        let locations = Locations::default();
        for (inode, index) in [(4, 9), (5, 0), (5, 1), (5, 2), (6, 0)] {
            locations.put(Inode(inode), index, location(1, 1));
        }
        locations.forget_from(Inode(5), 1);
        let left: Vec<_> = locations.entries.borrow().keys().map(|(inode, index)| (inode.0, *index)).collect();
        assert_eq!(left, [(4, 9), (5, 0), (6, 0)]);
    }

    #[test]
    fn the_cache_is_bounded() {
        let locations = Locations::default();
        for index in 0..ENTRIES_MAX as u32 + 10 {
            locations.put(Inode(1), index, location(1, 1));
        }
        assert_eq!(locations.entries.borrow().len(), ENTRIES_MAX);
    }
}
