//! A copy of a chunk from another chunkserver. Spec 20, 7.1 and Spec 40, 8.3.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use ring::{BufferedReader, IoBufExt, Ring};
use wire::limits::{BLOCK_BYTES, BLOCKS_PER_CHUNK, HEADER_BYTES, READ_DATA_HEAD_BYTES};
use wire::{
    AntocsGetChunkBlocks, ChunkId, CltocsRead, CstoanChunkBlocks, CstoclReadData, CstoclReadStatus, Header, Packet,
    Status, Version, ticket_rights,
};

use crate::cores::lock;
use crate::error::ChunkError;
use crate::layout::BlockIndex;
use crate::store::Store;
use crate::store::operations::NewFile;
use crate::sums::sum_of;

/// Each step of the talk with the source may take this long.
const STEP_MAX: Duration = Duration::from_secs(5);

/// Copies a chunk. The file gets its name, and the chunk is known, only when every block has come and fitted its sum.
///
/// Errors: `Exists`, `NoSpace`, `Disk`, and `Peer` with what the source answered or did.
pub(crate) async fn replicate(
    store: &Store,
    id: ChunkId,
    version: Version,
    source: SocketAddr,
) -> Result<(), ChunkError> {
    let mut new = store.begin_file(id).await?;
    match copy(store, &mut new, id, version, source).await {
        Ok(()) => store.finish_file(new, version, true).await,
        Err(error) => {
            tracing::warn!("chunk {id}: copying from {source} failed: {error}");
            store.abandon_file(new).await;
            Err(error)
        }
    }
}

impl Store {
    /// Waits until one more block may come from another server, if there is a limit to their speed.
    async fn wait_for_replication(&self) {
        let bytes_per_second = self.settings.get().replication_speed * 1_000_000.0;
        if bytes_per_second <= 0.0 {
            return;
        }
        let turn = {
            let mut next = lock(&self.core.shared.next_replicated_block);
            let turn = (*next).max(self.ring.now());
            *next = turn + Duration::from_secs_f64(f64::from(BLOCK_BYTES) / bytes_per_second);
            turn
        };
        self.ring.sleep_until(turn).await;
    }
}

async fn copy(
    store: &Store,
    new: &mut NewFile,
    id: ChunkId,
    version: Version,
    source: SocketAddr,
) -> Result<(), ChunkError> {
    let mut talk = Talk::connect(&store.ring, source).await?;
    talk.say(AntocsGetChunkBlocks { chunkid: id, version }.encode()).await?;
    let blocks = talk.blocks(id, version).await?;
    store.size_file(new, blocks).await?;
    if blocks == 0 {
        return Ok(());
    }
    let size = u32::from(blocks) * BLOCK_BYTES;
    let mut request = store.settings.own_ticket(id, ticket_rights::READ, store.ring.wall_seconds());
    request.extend(CltocsRead { with_proto: false, chunkid: id, version, offset: 0, size }.encode());
    talk.say(request).await?;
    let mut buffer = store.ring.wait_buffer().await;
    for number in 0..blocks {
        store.wait_for_replication().await;
        let head = talk.data_head(id, number).await?;
        let received = store.ring.timeout(STEP_MAX, talk.reader.read_into(buffer.slice(0..BLOCK_BYTES as usize))).await;
        let (result, piece) = received.map_err(|_| DISCONNECTED)?;
        result.map_err(|_| DISCONNECTED)?;
        buffer = piece.into_inner();
        store.counters.replication_in_bytes.add(u64::from(BLOCK_BYTES));
        if sum_of(buffer.payload()) != head.crc {
            return Err(ChunkError::Peer(Status::CRC));
        }
        let block = BlockIndex::new(u32::from(number)).expect("a count of blocks was checked");
        let data = Rc::new(buffer);
        store.append(new, block, head.crc, data.clone()).await?;
        buffer = match Rc::try_unwrap(data) {
            Ok(buffer) => buffer,
            Err(_) => store.ring.wait_buffer().await,
        };
    }
    talk.end(id).await
}

const DISCONNECTED: ChunkError = ChunkError::Peer(Status::DISCONNECTED);

/// The connection to a source.
struct Talk {
    ring: Ring,
    reader: BufferedReader,
}

impl Talk {
    async fn connect(ring: &Ring, source: SocketAddr) -> Result<Talk, ChunkError> {
        match ring.timeout(STEP_MAX, ring.connect(source, None)).await {
            Ok(Ok(stream)) => Ok(Talk { ring: ring.clone(), reader: BufferedReader::new(stream, 4096) }),
            _ => Err(ChunkError::Peer(Status::CANTCONNECT)),
        }
    }

    async fn say(&self, packet: Vec<u8>) -> Result<(), ChunkError> {
        match self.ring.timeout(STEP_MAX, self.reader.stream().send_all(packet)).await {
            Ok((Ok(()), _)) => Ok(()),
            _ => Err(DISCONNECTED),
        }
    }

    async fn fill(&mut self, bytes: usize) -> Result<&[u8], ChunkError> {
        match self.ring.timeout(STEP_MAX, self.reader.fill(bytes)).await {
            Ok(Ok(filled)) => Ok(filled),
            _ => Err(DISCONNECTED),
        }
    }

    /// The next header that is no NOP; it stays in the buffer.
    async fn header(&mut self) -> Result<Header, ChunkError> {
        loop {
            let header = Header::decode(self.fill(HEADER_BYTES).await?.first_chunk().expect("eight bytes"));
            if header != (Header { kind: 0, length: 0 }) {
                return Ok(header);
            }
            self.reader.consume(HEADER_BYTES);
        }
    }

    async fn packet<P: Packet>(&mut self, header: Header, length: u32) -> Result<P, ChunkError> {
        if header.kind != P::TYPE || header.length != length {
            return Err(DISCONNECTED);
        }
        let whole = HEADER_BYTES + length as usize;
        let packet = P::decode(&self.fill(whole).await?[HEADER_BYTES..whole]);
        self.reader.consume(whole);
        packet.map_err(|_| DISCONNECTED)
    }

    async fn blocks(&mut self, id: ChunkId, version: Version) -> Result<u16, ChunkError> {
        let header = self.header().await?;
        let answer: CstoanChunkBlocks = self.packet(header, 15).await?;
        answer.status.into_result().map_err(ChunkError::Peer)?;
        if answer.chunkid != id {
            return Err(ChunkError::Peer(Status::WRONGCHUNKID));
        }
        if answer.version != version {
            return Err(ChunkError::Peer(Status::WRONGVERSION));
        }
        if answer.blocks > BLOCKS_PER_CHUNK { Err(DISCONNECTED) } else { Ok(answer.blocks) }
    }

    /// The head of the data of block `number`, all of it. Spec 20, 7.1.
    async fn data_head(&mut self, id: ChunkId, number: u16) -> Result<CstoclReadData, ChunkError> {
        let header = self.header().await?;
        if header.kind == CstoclReadStatus::TYPE {
            let CstoclReadStatus { status, .. } = self.packet(header, 9).await?;
            return Err(if status.is_ok() { DISCONNECTED } else { ChunkError::Peer(status) });
        }
        if header.kind != CstoclReadData::TYPE || header.length > READ_DATA_HEAD_BYTES + BLOCK_BYTES {
            return Err(DISCONNECTED);
        }
        let front = self.fill(CstoclReadData::FRONT_BYTES).await?;
        let head = CstoclReadData::decode_head(header.length, &front[HEADER_BYTES..CstoclReadData::FRONT_BYTES]);
        self.reader.consume(CstoclReadData::FRONT_BYTES);
        let head = head.map_err(|_| DISCONNECTED)?;
        let wrong = match head {
            CstoclReadData { chunkid, .. } if chunkid != id => Some(Status::WRONGCHUNKID),
            CstoclReadData { blocknum, .. } if blocknum != number => Some(Status::DISCONNECTED),
            CstoclReadData { offset, .. } if offset != 0 => Some(Status::WRONGOFFSET),
            CstoclReadData { size, .. } if size != BLOCK_BYTES => Some(Status::WRONGSIZE),
            _ => None,
        };
        wrong.map_or(Ok(head), |status| Err(ChunkError::Peer(status)))
    }

    async fn end(&mut self, id: ChunkId) -> Result<(), ChunkError> {
        let header = self.header().await?;
        let CstoclReadStatus { chunkid, status } = self.packet(header, 9).await?;
        if chunkid != id {
            return Err(ChunkError::Peer(Status::WRONGCHUNKID));
        }
        status.into_result().map_err(ChunkError::Peer)
    }
}
