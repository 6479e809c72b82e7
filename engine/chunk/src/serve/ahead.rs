//! Reading ahead for a connection that reads one chunk from front to back.
//!
//! After two requests in a row the blocks behind them are read into the cache, more with each request that follows, up to
//! 1 MiB: while the peer takes what it has and asks for more, the disk is at work. The kernel's own reading ahead is
//! switched off (`store`), since it does not know which of several reads under way comes next, and direct files have
//! none. What was read ahead is only ever taken from the cache, which knows whether it is still true.

use std::rc::Rc;

use ring::Block;
use wire::limits::BLOCK_BYTES;
use wire::{ChunkId, CltocsRead, Version};

use super::window::Window;
use crate::layout::BlockIndex;
use crate::server::{CHAIN_CLASSES, Server};
use crate::store::Chunk;

/// Blocks that are read ahead for one connection.
const AHEAD_MAX: u32 = 16;
/// A smaller cache would lose them before they are asked for.
const CACHE_BLOCKS_MIN: usize = 256;

/// What is known of a connection's reads.
#[derive(Default)]
pub(super) struct ReadAhead {
    /// Where the last request ended.
    last_end: Option<(ChunkId, u32)>,
    /// Requests in a row, each of which began where the one before had ended.
    in_a_row: u32,
    /// Blocks under way or ready, from number `first` on.
    blocks: Rc<Window<()>>,
    first: u32,
}

/// One block to be read into the cache.
pub(crate) struct AheadJob {
    server: Rc<Server>,
    blocks: Rc<Window<()>>,
    place: u64,
    chunk: Rc<Chunk>,
    version: Version,
    block: BlockIndex,
    buffer: Block,
}

impl AheadJob {
    pub(crate) async fn run(self) {
        let AheadJob { server, blocks, place, chunk, version, block, buffer } = self;
        // A block that cannot be read is reported there, and found bad again when it is asked for.
        let _ = server.store.read_block_to_share(&chunk, version, block, 0, buffer).await;
        blocks.put(place, ());
    }
}

impl ReadAhead {
    /// A request comes.
    pub(super) fn begin(&mut self, request: &CltocsRead) {
        let goes_on = self.last_end == Some((request.chunkid, request.offset));
        self.last_end = Some((request.chunkid, request.offset + request.size));
        self.in_a_row = if goes_on { self.in_a_row + 1 } else { 0 };
        if !goes_on {
            self.blocks.end();
        }
    }

    /// Whether a block is being read ahead just now: then `wait` for it and look into the cache.
    pub(super) fn is_coming(&mut self, number: u32) -> bool {
        while self.first <= number && self.blocks.take_ready().is_some() {
            self.first += 1;
        }
        self.first == number && self.blocks.len() > 0
    }

    /// What ends when the first block under way is there.
    pub(super) fn wait(&self) -> impl Future<Output = ()> + use<> {
        let blocks = self.blocks.clone();
        async move { blocks.first_ready().await }
    }

    /// The request was answered but for its last packets: asks for what comes behind it.
    pub(super) fn go_on(&mut self, server: &Rc<Server>, chunk: &Rc<Chunk>, request: &CltocsRead) {
        if self.in_a_row == 0 || server.store.cache_blocks < CACHE_BLOCKS_MIN {
            return;
        }
        let behind = (request.offset + request.size).div_ceil(BLOCK_BYTES);
        let until = (behind + (1 << self.in_a_row.min(10)).min(AHEAD_MAX)).min(u32::from(chunk.blocks()));
        if self.blocks.len() == 0 {
            self.first = behind;
        }
        for number in self.first + self.blocks.len() as u32..until {
            let block = BlockIndex::new(number).expect("a block of the chunk");
            if server.store.is_cached(chunk, block) {
                self.blocks.push(Some(()));
                continue;
            }
            let may_take = server.ring.free_buffers() > server.buffers_per_class * CHAIN_CLASSES;
            let Some(buffer) = (if may_take { server.ring.buffer() } else { None }) else { return };
            let place = self.blocks.push(None);
            let (server, blocks, chunk) = (server.clone(), self.blocks.clone(), chunk.clone());
            let version = request.version;
            server.clone().ahead_crew.give(AheadJob { server, blocks, place, chunk, version, block, buffer });
        }
    }
}
