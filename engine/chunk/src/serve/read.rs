//! A read. Spec 20, 3.1.
//!
//! Block by block: a pool buffer, one disk read, verify, the packet's header right in front of the data, one send from
//! the same buffer. While a block is being sent the next ones are being read, as many as free buffers allow.

use std::collections::VecDeque;
use std::rc::Rc;

use futures_util::FutureExt;
use ring::{Block, JoinHandle};
use wire::limits::{BLOCK_BYTES, CHUNK_BYTES, HEADER_BYTES};
use wire::{CltocsRead, Crc, CstoclReadData, Status};

use super::{Connection, Hangup, read_status};
use crate::error::ChunkError;
use crate::layout::BlockIndex;
use crate::server::{CHAIN_CLASSES, Server};
use crate::store::Chunk;
use crate::sums::sum_of;

/// Blocks of one request that are read at the same time.
const BLOCKS_AHEAD: usize = 8;

type BlockRead = JoinHandle<Result<(Block, Crc), ChunkError>>;

impl Connection {
    pub(super) async fn read(&mut self, request: CltocsRead) -> Result<(), Hangup> {
        let status = match check_range(&request) {
            Err(status) => status,
            Ok(()) if request.size == 0 => Status::OK,
            Ok(()) => match self.server.begin_job() {
                None => Status::NOTDONE,
                Some(_job) => self.send_blocks(&request).await?,
            },
        };
        self.send(read_status(&request, status)).await
    }

    /// Sends all data, or as much as there is before the status that comes back.
    async fn send_blocks(&mut self, request: &CltocsRead) -> Result<Status, Hangup> {
        let server = self.server.clone();
        let nops = request.with_proto;
        let opened = self.working(nops, server.store.open(request.chunkid, request.version)).await?;
        let chunk = match opened {
            Ok(chunk) => chunk,
            Err(error) => return Ok(error.status()),
        };
        let first = request.offset / BLOCK_BYTES;
        let last = (request.offset + request.size - 1) / BLOCK_BYTES;
        let mut next = first;
        let mut reads: VecDeque<BlockRead> = VecDeque::new();
        for number in first..=last {
            while next <= last && reads.len() < BLOCKS_AHEAD {
                let buffer = if reads.is_empty() {
                    self.working(nops, server.ring.wait_buffer()).await?
                } else if server.ring.free_buffers() > server.buffers_per_class * CHAIN_CLASSES
                    && let Some(buffer) = server.ring.buffer()
                {
                    buffer
                } else {
                    break;
                };
                reads.push_back(begin_read(&server, &chunk, request, next, buffer));
                next += 1;
            }
            let read = reads.pop_front().expect("at least one read is under way");
            match self.working(nops, read).await? {
                Some(Ok((block, sum))) => self.send_block(request, number, block, sum).await?,
                Some(Err(error)) => return Ok(error.status()),
                None => return Ok(Status::NOTDONE), // the server stops
            }
            self.look_at_reader()?;
        }
        Ok(Status::OK)
    }

    /// Sends the part of block `number` that was asked for.
    async fn send_block(
        &mut self,
        request: &CltocsRead,
        number: u32,
        mut block: Block,
        sum: Crc,
    ) -> Result<(), Hangup> {
        let block_start = number * BLOCK_BYTES;
        let start = request.offset.saturating_sub(block_start);
        let end = (request.offset + request.size - block_start).min(BLOCK_BYTES);
        let size = end - start;
        if start > 0 {
            block.payload_mut().copy_within(start as usize..end as usize, 0);
        }
        let crc = if size == BLOCK_BYTES { sum } else { sum_of(&block.payload()[..size as usize]) };
        let head =
            CstoclReadData { chunkid: request.chunkid, blocknum: number as u16, offset: start as u16, size, crc };
        let lead_bytes = block.lead().len();
        block.lead_mut()[lead_bytes - CstoclReadData::FRONT_BYTES..].copy_from_slice(&head.front());
        self.send(block.with_head(CstoclReadData::FRONT_BYTES, size as usize)).await
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

/// Reads beyond the task that asked: a buffer that is lent to the disk comes back in its own time.
fn begin_read(server: &Rc<Server>, chunk: &Rc<Chunk>, request: &CltocsRead, number: u32, buffer: Block) -> BlockRead {
    let (server, chunk, version) = (server.clone(), chunk.clone(), request.version);
    let block = BlockIndex::new(number).expect("the range was checked");
    server.ring.clone().spawn(async move { server.store.read_block(&chunk, version, block, buffer).await })
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
