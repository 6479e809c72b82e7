//! Packets of our own, numbers from 10000 up: MooseFS has none there.
//!
//! A peer that does not know them hangs up, so nobody sends one before the peer has named the extension in its answer
//! to the option `MOORING_EXTENSIONS`: names, separated by blanks. ARCHITECTURE.md lists them.

use crate::codec::packets;
use crate::types::{ChunkId, Status, Version};

/// Name of the extension "the device of this chunkserver has all of the chunk that it acknowledged".
pub const SYNC_EXTENSION: &str = "sync";

packets! {
    /// Asks a chunkserver, on its data port, to put what it has of a chunk on the device: data, sums and name. NOPs
    /// may come before the answer.
    CltocsSyncChunk = 10001 { chunkid: ChunkId, version: Version }

    CstoclSyncChunk = 10002 { chunkid: ChunkId, status: Status }
}

/// Whether `value`, the answer for `MOORING_EXTENSIONS`, names the extension.
pub fn has_extension(value: &[u8], name: &str) -> bool {
    value.split(|byte| *byte == b' ').any(|word| word == name.as_bytes())
}
