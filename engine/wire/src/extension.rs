//! Packets of our own, numbers from 10000 up: MooseFS has none there.
//!
//! A peer that does not know them hangs up, so nobody sends one before the peer has named the extension in its answer
//! to the option `MOORING_EXTENSIONS`: names, separated by blanks. ARCHITECTURE.md lists them.

use crate::codec::packets;
use crate::types::{ChunkId, Rest, Status, Version};

/// Name of the extension "the device of this chunkserver has all of the chunk that it acknowledged".
pub const SYNC_EXTENSION: &str = "sync";

/// Name of the extension "this master says in words why a chunk is as it is".
pub const WHY_EXTENSION: &str = "why";

/// What a `CltomaWhy` is about.
pub mod why_subjects {
    /// `id` is an inode: its chunks, from slot `first` on.
    pub const FILE: u8 = 0;
    /// `id` is a chunk.
    pub const CHUNK: u8 = 1;
    /// Chunks that the metadata do not know, from chunk `id` on.
    pub const UNKNOWN: u8 = 2;
}

packets! {
    /// Asks a chunkserver, on its data port, to put what it has of a chunk on the device: data, sums and name. NOPs
    /// may come before the answer.
    CltocsSyncChunk = 10001 { chunkid: ChunkId, version: Version }

    CstoclSyncChunk = 10002 { chunkid: ChunkId, status: Status }

    /// Asks a master, in a session, what is done about chunks and why. See `why_subjects`.
    CltomaWhy = 10003 { msgid: u32, subject: u8, id: u64, first: u32 }

    /// Lines of text. If `next` is not 0 there is more: from that slot, or that unknown chunk, on. A refusal is a status
    /// behind the message id, as for other requests of clients.
    MatoclWhy = 10004 { msgid: u32, next: u64, text: Rest }
}

/// Whether `value`, the answer for `MOORING_EXTENSIONS`, names the extension.
pub fn has_extension(value: &[u8], name: &str) -> bool {
    value.split(|byte| *byte == b' ').any(|word| word == name.as_bytes())
}
