//! The records of the namespace: nodes, edges, what directories keep beside, chunk lists of files.
//!
//! Packed, since there are hundreds of millions of them; the sizes are asserted below. A record holds handles into
//! other tables, 0 meaning none, and no pointers.

use std::collections::BTreeMap;

use wire::NodeKind;
use wire::limits::{BLOCK_BYTES, CHUNK_BYTES};

use crate::times::PackedTimes;

/// Bits of a node's extra attributes. Spec 32, 32.2.
pub mod eattr {
    /// Every user counts as the owner.
    pub const NO_OWNER: u8 = 0x01;
    pub const NO_ATTR_CACHE: u8 = 0x02;
    /// Directories only.
    pub const NO_ENTRY_CACHE: u8 = 0x04;
    pub const NO_DATA_CACHE: u8 = 0x08;
    /// Made by a snapshot and not changed since.
    pub const SNAPSHOT: u8 = 0x10;
    pub const UNDELETABLE: u8 = 0x20;
    pub const APPEND_ONLY: u8 = 0x40;
    pub const IMMUTABLE: u8 = 0x80;
}

/// What a node has besides the record itself.
pub(crate) mod mark {
    /// `Node::chunks` is a handle of a chunk list, not of the only chunk.
    pub(crate) const CHUNK_LIST: u8 = 0x01;
    pub(crate) const XATTR: u8 = 0x02;
    pub(crate) const ACCESS_ACL: u8 = 0x04;
    pub(crate) const DEFAULT_ACL: u8 = 0x08;
    pub(crate) const QUOTA: u8 = 0x10;
}

/// One object of the file system, found by its inode number.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Node {
    /// kind 4 bits, mode 12 bits, extra attributes 8 bits, winattr 8 bits. Kind 0: no such node.
    word: u32,
    /// Handle in `Owners`: uid, gid and trash time.
    pub(crate) owner: u32,
    pub(crate) times: PackedTimes,
    /// Names of a node that is no directory.
    pub(crate) links: u16,
    /// Storage class id; 0 for what is neither file nor directory.
    pub(crate) class: u8,
    pub(crate) marks: u8,
    /// First edge that names this node.
    pub(crate) edge: u32,
    /// File: length, high and low. Device: rdev, 0. Symlink: handle of the target, its length. Directory: newest
    /// edge, 0.
    data: [u32; 2],
    /// File: its only chunk (index 0) or, by `mark::CHUNK_LIST`, a list. Directory: handle of its `Dir`.
    pub(crate) chunks: u32,
}
const _: () = assert!(size_of::<Node>() == 40);

impl Node {
    pub(crate) fn new(kind: NodeKind, mode: u16) -> Node {
        let mut node = Node::default();
        node.set_kind(kind);
        node.set_mode(mode);
        node
    }

    #[inline]
    pub(crate) fn exists(&self) -> bool {
        self.word >> 28 != 0
    }

    #[inline]
    pub(crate) fn kind(&self) -> NodeKind {
        NodeKind::from_number((self.word >> 28) as u8).expect("only asked of nodes that exist")
    }

    pub(crate) fn set_kind(&mut self, kind: NodeKind) {
        self.word = self.word & 0x0FFF_FFFF | (kind as u32) << 28;
    }

    #[inline]
    pub(crate) fn mode(&self) -> u16 {
        (self.word >> 16) as u16 & 0o7777
    }

    pub(crate) fn set_mode(&mut self, mode: u16) {
        self.word = self.word & 0xF000_FFFF | u32::from(mode & 0o7777) << 16;
    }

    #[inline]
    pub(crate) fn eattr(&self) -> u8 {
        (self.word >> 8) as u8
    }

    pub(crate) fn set_eattr(&mut self, eattr: u8) {
        self.word = self.word & 0xFFFF_00FF | u32::from(eattr) << 8;
    }

    #[inline]
    pub(crate) fn has_eattr(&self, any_of: u8) -> bool {
        self.eattr() & any_of != 0
    }

    #[inline]
    pub(crate) fn winattr(&self) -> u8 {
        self.word as u8
    }

    pub(crate) fn set_winattr(&mut self, winattr: u8) {
        self.word = self.word & 0xFFFF_FF00 | u32::from(winattr);
    }

    #[inline]
    pub(crate) fn marked(&self, mark: u8) -> bool {
        self.marks & mark != 0
    }

    pub(crate) fn set_mark(&mut self, mark: u8, on: bool) {
        self.marks = if on { self.marks | mark } else { self.marks & !mark };
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.word >> 28 == NodeKind::Directory as u32
    }

    /// File, trash or sustained: has a length and chunks.
    pub(crate) fn has_data(&self) -> bool {
        matches!(self.kind(), NodeKind::File | NodeKind::Trash | NodeKind::Sustained)
    }

    pub(crate) fn is_symlink(&self) -> bool {
        self.kind() == NodeKind::Symlink
    }

    #[inline]
    pub(crate) fn length(&self) -> u64 {
        debug_assert!(self.has_data());
        u64::from(self.data[0]) << 32 | u64::from(self.data[1])
    }

    pub(crate) fn set_length(&mut self, length: u64) {
        debug_assert!(self.has_data());
        self.data = [(length >> 32) as u32, length as u32];
    }

    pub(crate) fn rdev(&self) -> u32 {
        self.data[0]
    }

    pub(crate) fn set_rdev(&mut self, rdev: u32) {
        self.data[0] = rdev;
    }

    /// Handle and length in bytes of a symlink's target.
    pub(crate) fn target(&self) -> (u32, usize) {
        debug_assert!(self.is_symlink());
        (self.data[0], self.data[1] as usize)
    }

    pub(crate) fn set_target(&mut self, handle: u32, length_bytes: usize) {
        self.data = [handle, u32::try_from(length_bytes).expect("targets are at most 4096 bytes")];
    }

    /// Newest edge of a directory.
    pub(crate) fn newest(&self) -> u32 {
        debug_assert!(self.is_directory());
        self.data[0]
    }

    pub(crate) fn set_newest(&mut self, edge: u32) {
        self.data[0] = edge;
    }
}

/// One name of one node.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Edge {
    /// Directory that holds the name; 0 for what waits in the trash or is sustained, whose name is the old path.
    pub(crate) parent: u32,
    pub(crate) child: u32,
    /// Neighbours in the list of the directory (or bucket): the one made before, the one made after.
    pub(crate) older: u32,
    pub(crate) newer: u32,
    /// Handle in `Names`. See `has_link`.
    pub(crate) name: u32,
    id_low: u32,
    id_high: u16,
    /// Length of the name, and `LINK`.
    name_word: u16,
}
const _: () = assert!(size_of::<Edge>() == 28);

/// Bit of `Edge::name_word`.
const LINK: u16 = 0x8000;
/// Bytes of a link in front of a name.
pub(crate) const LINK_BYTES: usize = size_of::<u32>();

/// The id that a new file system gives to its first edge; they count down. Spec 31, 31.6.
pub(crate) const FIRST_EDGE_ID: u64 = 0x7FFF_FFFF_FFFF_FFFE;

impl Edge {
    pub(crate) fn new(parent: u32, child: u32, name: u32, name_bytes: usize, id: u64) -> Edge {
        let name_word = u16::try_from(name_bytes).ok().filter(|bytes| bytes & LINK == 0);
        let name_word = name_word.expect("names and paths are at most 1024 bytes");
        let mut edge = Edge { parent, child, name, name_word, ..Edge::default() };
        edge.set_id(id);
        edge
    }

    pub(crate) fn name_bytes(&self) -> usize {
        usize::from(self.name_word & !LINK)
    }

    /// The next older name of the same child stands in front of the name, 4 bytes. Few nodes have two names, so only
    /// theirs pay for it.
    pub(crate) fn has_link(&self) -> bool {
        self.name_word & LINK != 0
    }

    pub(crate) fn set_has_link(&mut self) {
        self.name_word |= LINK;
    }

    /// Ids are kept as their distance from the first one, in 48 bits: 10 million a second for 300 days; 300 a second
    /// for 30000 years.
    pub(crate) fn id(&self) -> u64 {
        FIRST_EDGE_ID - (u64::from(self.id_high) << 32 | u64::from(self.id_low))
    }

    pub(crate) fn set_id(&mut self, id: u64) {
        let distance = FIRST_EDGE_ID - id;
        self.id_high = u16::try_from(distance >> 32).expect("2^48 edges outlast the hardware");
        self.id_low = distance as u32;
    }

    /// True if `id` can be kept.
    pub(crate) fn id_fits(id: u64) -> bool {
        FIRST_EDGE_ID.checked_sub(id).is_some_and(|distance| distance >> 48 == 0)
    }
}

/// What a directory keeps beside its node.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Dir {
    pub(crate) below: Figures,
    pub(crate) children: u32,
    pub(crate) subdirectories: u32,
}
const _: () = assert!(size_of::<Dir>() == 48);

/// Sums over a node, or over a directory and everything below it. Spec 32, 32.3 and 32.6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Bytes: lengths of files and symlinks.
    pub length: u64,
    /// Bytes on disk of one copy.
    pub size: u64,
    /// Bytes on disk of all copies that the storage classes ask for.
    pub realsize: u64,
    pub inodes: u32,
    pub dirs: u32,
    pub files: u32,
    /// Chunk slots that hold a chunk.
    pub chunks: u32,
}

impl Figures {
    /// `self + after - before`, each field.
    pub(crate) fn change(&mut self, before: &Figures, after: &Figures) {
        let word = |own: &mut u32, before: u32, after: u32| *own = own.wrapping_add(after).wrapping_sub(before);
        let long = |own: &mut u64, before: u64, after: u64| *own = own.wrapping_add(after).wrapping_sub(before);
        word(&mut self.inodes, before.inodes, after.inodes);
        word(&mut self.dirs, before.dirs, after.dirs);
        word(&mut self.files, before.files, after.files);
        word(&mut self.chunks, before.chunks, after.chunks);
        long(&mut self.length, before.length, after.length);
        long(&mut self.size, before.size, after.size);
        long(&mut self.realsize, before.realsize, after.realsize);
    }

    /// The length that a directory shows. Spec 31, 31.2.
    pub fn pseudo_length(&self) -> u64 {
        let length = self.length;
        let scaled = |shift: u32, base: u64| ((length * 100) >> shift) + base;
        let scaled_far = |shift: u32, base: u64| (((length >> 10) * 100) >> shift) + base;
        match length {
            0 => 1,
            _ if length < 1 << 10 => 100 * length,
            _ if length < 1 << 20 => scaled(10, 1_000_000),
            _ if length < 1 << 30 => scaled(20, 2_000_000),
            _ if length < 1 << 40 => scaled(30, 3_000_000),
            _ if length < 1 << 50 => scaled(40, 4_000_000),
            _ if length < 1 << 60 => scaled_far(40, 5_000_000),
            _ => scaled_far(50, 6_000_000),
        }
    }
}

/// Bytes that a chunk file has before its data: header and checksums. Spec 32, 32.6.
const CHUNK_HEAD_BYTES: u64 = 8 << 10;

/// Bytes on disk of one copy of a file of this length whose slots below the last chunk number `full` and whose last
/// chunk exists or not. Spec 32, 32.6.
pub(crate) fn size_on_disk(length: u64, full: u64, last_exists: bool) -> u64 {
    let whole = full * (u64::from(CHUNK_BYTES) + CHUNK_HEAD_BYTES);
    if last_exists { whole + last_chunk_size(length) } else { whole }
}

/// Bytes on disk of the last chunk of a file of this length. That of an empty file, which is just being written, has its
/// head.
pub(crate) fn last_chunk_size(length: u64) -> u64 {
    let in_last = length.checked_sub(1).map_or(0, |last| last % u64::from(CHUNK_BYTES) + 1);
    in_last.next_multiple_of(u64::from(BLOCK_BYTES)) + CHUNK_HEAD_BYTES
}

/// The chunks of a file with more than one slot. A far slot of a sparse file does not fill the space before it.
#[derive(Clone, Debug, Default)]
pub(crate) struct ChunkList {
    /// Chunk handles by index; 0 is a hole.
    near: Vec<u32>,
    /// Those at or beyond `near.len()`; no holes.
    far: BTreeMap<u32, u32>,
    used: u32,
}

/// Holes that `near` may get at its end for one slot.
const NEAR_GAP_SLOTS: u32 = 1024;

impl ChunkList {
    pub(crate) fn get(&self, index: u32) -> u32 {
        match self.near.get(index as usize) {
            Some(chunk) => *chunk,
            None => self.far.get(&index).copied().unwrap_or(0),
        }
    }

    /// Puts `chunk` (0: a hole) at `index`, returns what was there.
    pub(crate) fn set(&mut self, index: u32, chunk: u32) -> u32 {
        let previous = self.get(index);
        self.used = self.used + u32::from(chunk != 0) - u32::from(previous != 0);
        if (index as usize) < self.near.len() {
            self.near[index as usize] = chunk;
            while self.near.last() == Some(&0) {
                self.near.pop();
            }
        } else if chunk == 0 {
            self.far.remove(&index);
        } else {
            self.far.insert(index, chunk);
            self.draw_near();
        }
        previous
    }

    /// Slots that hold a chunk.
    pub(crate) fn used(&self) -> u32 {
        self.used
    }

    /// One more than the last slot that holds a chunk.
    pub(crate) fn slots(&self) -> u32 {
        match self.far.last_key_value() {
            Some((index, _)) => index + 1,
            None => u32::try_from(self.near.len()).expect("indices are 31 bits"),
        }
    }

    /// Slots from `first` on that hold a chunk, in order.
    pub(crate) fn from(&self, first: u32) -> impl Iterator<Item = (u32, u32)> + '_ {
        let start = (first as usize).min(self.near.len());
        let near = self.near[start..].iter().zip(first..).filter(|(chunk, _)| **chunk != 0).map(|(c, i)| (i, *c));
        near.chain(self.far.range(first..).map(|(index, chunk)| (*index, *chunk)))
    }

    /// Moves far slots that are near enough by now.
    fn draw_near(&mut self) {
        while let Some((index, chunk)) = self.far.first_key_value().map(|(index, chunk)| (*index, *chunk)) {
            if index as usize > self.near.len() + NEAR_GAP_SLOTS as usize {
                return;
            }
            self.far.remove(&index);
            self.near.resize(index as usize + 1, 0);
            self.near[index as usize] = chunk;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_far_slot_of_a_sparse_file_costs_no_memory_before_it() {
        let mut list = ChunkList::default();
        assert_eq!(list.set(0x7FFF_FFFF, 9), 0);
        assert_eq!(list.set(3, 4), 0);
        assert_eq!(list.set(0, 1), 0);
        assert_eq!(list.near.len(), 4);
        assert_eq!((list.used(), list.slots()), (3, 0x8000_0000));
        assert_eq!(list.from(0).collect::<Vec<_>>(), [(0, 1), (3, 4), (0x7FFF_FFFF, 9)]);
        assert_eq!(list.from(1).collect::<Vec<_>>(), [(3, 4), (0x7FFF_FFFF, 9)]);
        assert_eq!(list.set(0x7FFF_FFFF, 0), 9);
        assert_eq!(list.set(3, 0), 4);
        assert_eq!((list.used(), list.slots()), (1, 1));
    }

    #[test]
    fn slots_set_in_any_order_read_back_in_order() {
        let mut list = ChunkList::default();
        for index in (0..5000u32).rev() {
            list.set(index * 3, index + 1);
        }
        assert_eq!(list.used(), 5000);
        for (at, (index, chunk)) in list.from(0).enumerate() {
            assert_eq!((index, chunk), (at as u32 * 3, at as u32 + 1));
        }
    }

    #[test]
    fn a_directory_shows_the_length_that_the_table_gives() {
        let check = |length: u64, expected: u64| {
            assert_eq!(Figures { length, ..Figures::default() }.pseudo_length(), expected, "{length}");
        };
        check(0, 1);
        check(5, 500);
        check(1023, 102_300);
        check(1024, 1_000_100);
        check(1 << 20, 2_000_100);
        check(1 << 30, 3_000_100);
        check(1 << 40, 4_000_100);
        check(1 << 50, 5_000_100);
        check(1 << 60, 6_000_100);
        check((1 << 50) - 1, 4_102_399);
    }

    #[test]
    fn a_node_s_packed_fields_do_not_touch_each_other() {
        let mut node = Node::new(NodeKind::Socket, 0o7654);
        node.set_eattr(0xA5);
        node.set_winattr(0x5A);
        node.set_mode(0o1357);
        assert_eq!((node.kind(), node.mode(), node.eattr(), node.winattr()), (NodeKind::Socket, 0o1357, 0xA5, 0x5A));
        node.set_kind(NodeKind::File);
        node.set_eattr(0);
        assert_eq!((node.kind(), node.mode(), node.eattr(), node.winattr()), (NodeKind::File, 0o1357, 0, 0x5A));
    }
}
