//! A read. Spec 20, 3.1.
//!
//! Block by block: from the cache, or by one disk read into a pool buffer and a verification. Blocks that are ready go
//! out together, up to 1 MiB with their heads and the status in one send, straight from the buffers that cache and disk
//! filled. While they are being sent the next ones are being read, as many as free buffers allow.

use std::rc::Rc;

use futures_util::FutureExt;
use ring::{Block, Gather, SharedBlock};
use wire::limits::{BLOCK_BYTES, CHUNK_BYTES, HEADER_BYTES};
use wire::{CltocsRead, Crc, CstoclReadData, Packet, Status};

use super::window::{BlockResult, Window};
use super::{Connection, Hangup, SEND_MAX, read_status};
use crate::layout::BlockIndex;
use crate::server::{CHAIN_CLASSES, Server};
use crate::store::Chunk;
use crate::sums::sum_of;

/// Blocks of one request that are read at the same time.
const BLOCKS_AHEAD: usize = 16;

/// One block to be read from disk. Done beyond the request that asked: a buffer that is lent to the disk comes back in
/// its own time.
pub(crate) struct ReadJob {
    server: Rc<Server>,
    window: Rc<Window<BlockResult>>,
    place: u64,
    chunk: Rc<Chunk>,
    request: CltocsRead,
    block: BlockIndex,
    buffer: Block,
}

impl ReadJob {
    pub(crate) async fn run(self) {
        let ReadJob { server, window, place, chunk, request, block, buffer } = self;
        let (_, end) = part_of(&request, block);
        let read = server.store.read_block_to_share(&chunk, request.version, block, end, buffer).await;
        window.put(place, read);
    }
}

impl Connection {
    pub(super) async fn read(&mut self, request: CltocsRead) -> Result<(), Hangup> {
        let status = match check_range(&request) {
            Err(status) => status,
            Ok(()) if request.size == 0 => Status::OK,
            Ok(()) => match self.server.begin_job() {
                None => Status::NOTDONE,
                Some(_job) => {
                    let sent = self.send_blocks(&request).await;
                    self.window.end();
                    sent?
                }
            },
        };
        self.packets.clear();
        read_status(&request, status).encode_into(&mut self.packets);
        let mut gather = self.gather.take().unwrap_or_default();
        gather.push(&self.packets);
        self.send_gathered(gather).await
    }

    /// Sends all data, or as much as there is before the status that comes back; the last of it may be left in the
    /// gather, for the status to go with it.
    async fn send_blocks(&mut self, request: &CltocsRead) -> Result<Status, Hangup> {
        let server = self.server.clone();
        let nops = request.with_proto;
        let opened = match server.store.opened(request.chunkid, request.version) {
            Some(chunk) => Ok(chunk),
            None => self.open(nops, request.chunkid, request.version).await?,
        };
        let chunk = match opened {
            Ok(chunk) => chunk,
            Err(error) => return Ok(error.status()),
        };
        self.ahead.begin(request);
        let last = (request.offset + request.size - 1) / BLOCK_BYTES;
        let mut next = request.offset / BLOCK_BYTES;
        let mut number = next;
        while number <= last {
            // What is ready, and what can be asked for, before anything is waited for.
            self.ask_for_blocks(&chunk, request, &mut next, last);
            if self.window.len() == 0 && self.ahead.is_coming(next) {
                if self.gather.as_ref().is_some_and(|gather| !gather.is_empty()) {
                    self.send_what_is_gathered().await?;
                } else {
                    let coming = self.ahead.wait();
                    if self.wait_for_disk(nops, request.chunkid, coming).await?.is_none() {
                        return Ok(Status::NOTDONE);
                    }
                }
                continue;
            }
            if self.window.len() == 0 {
                let buffer = self.working(nops, server.ring.wait_buffer()).await?;
                self.begin_read(&chunk, request, &mut next, buffer);
            }
            match self.window.take_ready() {
                Some(Ok((block, sum))) => {
                    self.gather_block(request, number, block, sum);
                    number += 1;
                    if !self.gather.as_ref().is_some_and(|gather| gather.has_room(ROOM_BYTES)) {
                        self.send_what_is_gathered().await?;
                    }
                }
                Some(Err(error)) => return Ok(error.status()),
                None if self.gather.as_ref().is_some_and(|gather| !gather.is_empty()) => {
                    self.send_what_is_gathered().await?;
                }
                None => {
                    let window = self.window.clone();
                    if self.wait_for_disk(nops, request.chunkid, window.first_ready()).await?.is_none() {
                        return Ok(Status::NOTDONE);
                    }
                }
            }
        }
        self.ahead.go_on(&server, &chunk, request);
        Ok(Status::OK)
    }

    /// Fills the window: from the cache, or from disk as far as there are buffers to spare.
    fn ask_for_blocks(&mut self, chunk: &Rc<Chunk>, request: &CltocsRead, next: &mut u32, last: u32) {
        while *next <= last && self.window.len() < BLOCKS_AHEAD {
            if self.ahead.is_coming(*next) {
                return;
            }
            let block = BlockIndex::new(*next).expect("the range was checked");
            let (start, end) = part_of(request, block);
            if let Some(cached) = self.server.store.cached_block(chunk, request.version, block, start..end) {
                self.window.push(Some(Ok(cached)));
                *next += 1;
                continue;
            }
            let ring = &self.server.ring;
            let is_first = self.window.len() == 0;
            let may_take = is_first || ring.free_buffers() > self.server.buffers_per_class * CHAIN_CLASSES;
            match if may_take { ring.buffer() } else { None } {
                Some(buffer) => self.begin_read(chunk, request, next, buffer),
                None => return,
            }
        }
    }

    fn begin_read(&mut self, chunk: &Rc<Chunk>, request: &CltocsRead, next: &mut u32, buffer: Block) {
        let block = BlockIndex::new(*next).expect("the range was checked");
        *next += 1;
        let place = self.window.push(None);
        let (server, window, chunk) = (self.server.clone(), self.window.clone(), chunk.clone());
        let job = ReadJob { server, window, place, chunk, request: request.clone(), block, buffer };
        self.server.read_crew.give(job);
    }

    /// Puts the part of block `number` that was asked for behind what is to be sent.
    fn gather_block(&mut self, request: &CltocsRead, number: u32, block: SharedBlock, sum: Crc) {
        let (start, end) = part_of(request, BlockIndex::new(number).expect("the range was checked"));
        let size = end - start;
        let range = start as usize..end as usize;
        let crc = if size == BLOCK_BYTES { sum } else { sum_of(&block.payload()[range.clone()]) };
        let head =
            CstoclReadData { chunkid: request.chunkid, blocknum: number as u16, offset: start as u16, size, crc };
        let gather = self.gather.get_or_insert_default();
        gather.push(&head.front());
        gather.push_payload(block, range);
    }

    async fn send_what_is_gathered(&mut self) -> Result<(), Hangup> {
        let gather = self.gather.take().unwrap_or_default();
        self.send_gathered(gather).await?;
        self.look_at_reader()
    }

    /// Sends and empties a gather, and keeps it for the next time.
    async fn send_gathered(&mut self, gather: Gather) -> Result<(), Hangup> {
        // Each packet has its time.
        let packets = gather.total_bytes().div_ceil(BLOCK_BYTES as usize) as u32;
        let sent = self.server.ring.timeout(SEND_MAX * packets, self.stream.send_gather(gather)).await;
        let (result, mut gather) = sent.map_err(|_| Hangup::Stuck)?;
        let sent_bytes = gather.total_bytes() as u64;
        gather.clear();
        self.gather = Some(gather);
        result?;
        self.server.store.counters.served_out_bytes.add(sent_bytes);
        self.last_sent = self.server.ring.now();
        Ok(())
    }

    /// What has come meanwhile, without waiting: NOPs are dropped, anything else ends the connection.
    fn look_at_reader(&mut self) -> Result<(), Hangup> {
        if self.reader.buffered().len() < HEADER_BYTES
            && let Some(received) = self.reader.more().now_or_never()
            && received? == 0
        {
            return Err(Hangup::Closed);
        }
        while let Some(bytes) = self.reader.buffered().first_chunk::<HEADER_BYTES>() {
            if *bytes != [0; HEADER_BYTES] {
                return Err(Hangup::OutOfPlace("a packet during a read"));
            }
            self.reader.consume(HEADER_BYTES);
        }
        Ok(())
    }
}

/// Room that a gather must have left: one more head, and the status.
const ROOM_BYTES: usize = CstoclReadData::FRONT_BYTES + 32;

/// The part of a block that was asked for: from and to, in bytes.
fn part_of(request: &CltocsRead, block: BlockIndex) -> (u32, u32) {
    let block_start = u32::from(block.number()) * BLOCK_BYTES;
    let start = request.offset.saturating_sub(block_start);
    let end = (request.offset + request.size - block_start).min(BLOCK_BYTES);
    (start, end)
}

/// Is this a range inside a chunk? Spec 20, 3.1: the statuses in the order of the checks.
fn check_range(request: &CltocsRead) -> Result<(), Status> {
    let CltocsRead { offset, size, .. } = *request;
    if size > CHUNK_BYTES {
        return Err(Status::WRONGSIZE);
    }
    if size > 0 && (offset >= CHUNK_BYTES || offset + size > CHUNK_BYTES) {
        return Err(Status::WRONGOFFSET);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::{ChunkId, Version};

    #[test]
    fn ranges_are_checked_in_the_order_of_the_specification() {
        let check = |offset, size| {
            check_range(&CltocsRead { with_proto: true, chunkid: ChunkId(1), version: Version(1), offset, size })
        };
        assert_eq!(check(u32::MAX, 0), Ok(()));
        assert_eq!(check(0, CHUNK_BYTES), Ok(()));
        assert_eq!(check(u32::MAX, CHUNK_BYTES + 1), Err(Status::WRONGSIZE));
        assert_eq!(check(CHUNK_BYTES, 1), Err(Status::WRONGOFFSET));
        assert_eq!(check(1, CHUNK_BYTES), Err(Status::WRONGOFFSET));
        assert_eq!(check(u32::MAX, 1), Err(Status::WRONGOFFSET));
        assert_eq!(check(CHUNK_BYTES - 1, 1), Ok(()));
    }
}
