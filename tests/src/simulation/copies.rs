//! Each copy of a chunk by itself: the master says which are valid, and each of their servers is read.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use client::{Client, Errno, Inode};
use ring::{BufferedReader, Ring};
use wire::limits::BLOCK_BYTES;
use wire::{
    ChunkId, CltocsRead, CltomaFuseReadChunk, CltomaWhy, CstoclReadData, CstoclReadStatus, Header, MatoclFuseReadChunk,
    MatoclWhy, Packet, Version, why_subjects,
};

/// How long a server may take for one chunk.
const READ_LIMIT: Duration = Duration::from_secs(20);

/// Where one chunk of a file is.
pub(super) struct Chunk {
    pub(super) id: ChunkId,
    pub(super) version: Version,
    pub(super) servers: Vec<SocketAddrV4>,
}

/// What the master answers to a reader of a chunk. None: a hole.
pub(super) async fn locate(client: &Client, inode: Inode, index: u32) -> Result<Option<Chunk>, Errno> {
    let request = CltomaFuseReadChunk { msgid: 0, inode, index, chunkopflags: Some(0) };
    let (kind, payload) = ask(client, &request).await?;
    if kind != MatoclFuseReadChunk::TYPE || payload.len() < 12 {
        return Err(Errno::EIO);
    }
    let answer = MatoclFuseReadChunk::decode(&payload).map_err(|_| Errno::EIO)?;
    let servers = answer.locations.iter().map(|place| SocketAddrV4::new(Ipv4Addr::from(place.ip), place.port));
    let chunk = Chunk { id: answer.chunkid, version: answer.version, servers: servers.collect() };
    Ok((chunk.id.0 != 0).then_some(chunk))
}

/// The master's own words about a file's chunks.
pub(super) async fn why(client: &Client, inode: Inode) -> String {
    let request = CltomaWhy { msgid: 0, subject: why_subjects::FILE, id: u64::from(inode.0), first: 0 };
    match ask(client, &request).await {
        Ok((_, payload)) => match MatoclWhy::decode(&payload) {
            Ok(answer) => String::from_utf8_lossy(&answer.text.0).into_owned(),
            Err(_) => format!("{payload:?}"),
        },
        Err(errno) => errno.to_string(),
    }
}

/// Sends a request in the client's session; gives the answer's type and its payload.
pub(super) async fn ask(client: &Client, request: &impl Packet) -> Result<(u32, Vec<u8>), Errno> {
    let packet = request.encode();
    let kind = Header::decode(packet[..8].try_into().expect("a header has 8 bytes")).kind;
    let (kind, mut payload) = client.forward(kind, &packet[12..]).await?;
    payload.splice(0..0, [0; 4]);
    Ok((kind, payload))
}

/// The first `size` bytes of a chunk as one server has them. Errors: what went wrong, in words.
pub(super) async fn read(ring: &Ring, chunk: &Chunk, server: SocketAddrV4, size: u32) -> Result<Vec<u8>, String> {
    let read = ring.timeout(READ_LIMIT, read_all(ring, chunk, server, size)).await;
    read.unwrap_or_else(|_| Err("no answer".to_owned()))
}

async fn read_all(ring: &Ring, chunk: &Chunk, server: SocketAddrV4, size: u32) -> Result<Vec<u8>, String> {
    let broken = |error: std::io::Error| error.to_string();
    let stream = ring.connect(SocketAddr::V4(server), None).await.map_err(broken)?;
    let request = CltocsRead { with_proto: true, chunkid: chunk.id, version: chunk.version, offset: 0, size };
    stream.send_all(request.encode()).await.0.map_err(broken)?;
    let mut reader = BufferedReader::new(stream, 2 * BLOCK_BYTES as usize);
    let mut bytes = Vec::new();
    loop {
        let header = reader.fill_exactly(8).await.map_err(broken)?[..8].try_into().expect("8 bytes");
        let header = Header::decode(header);
        let length = header.length as usize;
        reader.consume(8);
        let payload = reader.fill_exactly(length).await.map_err(broken)?[..length].to_vec();
        reader.consume(length);
        match header.kind {
            CstoclReadData::TYPE => bytes.extend_from_slice(&payload[20..]),
            CstoclReadStatus::TYPE => {
                let status = CstoclReadStatus::decode(&payload).map_err(|error| format!("{error:?}"))?.status;
                return if status.is_ok() { Ok(bytes) } else { Err(status.to_string()) };
            }
            _ => {} // a NOP
        }
    }
}
