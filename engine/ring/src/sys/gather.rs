//! Several packets in one send.
//!
//! Heads are copied in, payload stays in its shared blocks; the kernel gets a list of all of them. Everything is made
//! once and used again, so that sending allocates nothing.

use std::ops::Range;

use super::operation::Message;
use super::shared::SharedBlock;

/// Parts of one message: heads and payload of so many blocks, and something at the end.
pub(crate) const PARTS_MAX: usize = 2 * BLOCKS_MAX + 2;
/// Blocks of one [`Gather`]: 1 MiB.
const BLOCKS_MAX: usize = 16;
/// Bytes of heads in one [`Gather`].
const COPIED_BYTES_MAX: usize = 1024;

/// What one send takes: copied bytes and parts of shared blocks, in the order in which they were put in.
///
/// Room is for 16 blocks with 64 bytes of heads each; `has_room` says whether one more fits.
pub struct Gather {
    message: Box<Message>,
    copied: Box<[u8; COPIED_BYTES_MAX]>,
    copied_bytes: usize,
    parts: Vec<Part>,
    blocks: usize,
    total_bytes: usize,
}

enum Part {
    Copied(Range<usize>),
    Block { block: SharedBlock, head_bytes: usize, range: Range<usize> },
}

impl Default for Gather {
    fn default() -> Gather {
        Gather {
            message: Message::new(),
            copied: Box::new([0; COPIED_BYTES_MAX]),
            copied_bytes: 0,
            parts: Vec::with_capacity(PARTS_MAX),
            blocks: 0,
            total_bytes: 0,
        }
    }
}

impl Gather {
    /// Without parts.
    pub fn new() -> Gather {
        Gather::default()
    }

    /// Bytes of all parts.
    pub fn total_bytes(&self) -> usize {
        self.total_bytes
    }

    /// Nothing was put in.
    pub fn is_empty(&self) -> bool {
        self.total_bytes == 0
    }

    /// Whether so many copied bytes and one more block fit.
    pub fn has_room(&self, copied_bytes: usize) -> bool {
        self.blocks < BLOCKS_MAX
            && self.parts.len() + 2 <= PARTS_MAX
            && self.copied_bytes + copied_bytes <= COPIED_BYTES_MAX
    }

    /// Copies `bytes` in. Panics when they do not fit.
    pub fn push(&mut self, bytes: &[u8]) {
        let start = self.copied_bytes;
        let end = start + bytes.len();
        self.copied[start..end].copy_from_slice(bytes);
        self.copied_bytes = end;
        self.total_bytes += bytes.len();
        match self.parts.last_mut() {
            Some(Part::Copied(range)) => range.end = end,
            _ => self.put(Part::Copied(start..end)),
        }
    }

    /// Puts in a part of a block's payload. Panics when there is no room, or no such part.
    pub fn push_payload(&mut self, block: SharedBlock, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= block.payload().len(), "a part of the payload");
        self.put_block(block, 0, range);
    }

    /// Puts in the last `head_bytes` of a block's lead and the first `payload_bytes` of its payload. Panics as
    /// `push_payload`.
    pub fn push_framed(&mut self, block: SharedBlock, head_bytes: usize, payload_bytes: usize) {
        assert!(!block.framed(head_bytes, payload_bytes).is_empty(), "a part of the block");
        self.put_block(block, head_bytes, 0..payload_bytes);
    }

    /// Lets go of all parts.
    pub fn clear(&mut self) {
        self.parts.clear();
        (self.copied_bytes, self.blocks, self.total_bytes) = (0, 0, 0);
    }

    fn put_block(&mut self, block: SharedBlock, head_bytes: usize, range: Range<usize>) {
        assert!(self.blocks < BLOCKS_MAX, "room for the block was asked for");
        self.blocks += 1;
        self.total_bytes += head_bytes + range.len();
        self.put(Part::Block { block, head_bytes, range });
    }

    fn put(&mut self, part: Part) {
        assert!(self.parts.len() < PARTS_MAX, "room for the part was asked for");
        self.parts.push(part);
    }

    /// The kernel's list of what follows the first `skip` bytes. What it points to stays where it is when `self` is
    /// moved: the message and the copied bytes are boxed, blocks lie in the pool.
    pub(super) fn message(&mut self, skip: usize) -> *const libc::msghdr {
        let copied = &self.copied;
        let parts = self.parts.iter().map(|part| match part {
            Part::Copied(range) => &copied[range.clone()],
            Part::Block { block, head_bytes: 0, range } => &block.payload()[range.clone()],
            Part::Block { block, head_bytes, range } => block.framed(*head_bytes, range.end),
        });
        self.message.set(parts, skip)
    }
}

impl std::fmt::Debug for Gather {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gather({} parts, {} bytes)", self.parts.len(), self.total_bytes)
    }
}
