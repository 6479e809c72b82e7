//! A client of the data port that does as it is told by a test.

use std::net::SocketAddr;

use ring::{BufferedReader, Ring};
use wire::types::ChainServer;
use wire::*;

use super::Node;
use super::master::next_packet;

pub(crate) struct Client {
    pub(crate) ring: Ring,
    reader: BufferedReader,
    /// NOPs that came.
    pub(crate) nops: u32,
}

impl Client {
    pub(crate) async fn connect(ring: &Ring, to: SocketAddr) -> Client {
        let stream = ring.connect(to, None).await.unwrap();
        Client { ring: ring.clone(), reader: BufferedReader::new(stream, 4096), nops: 0 }
    }

    pub(crate) async fn send(&mut self, bytes: Vec<u8>) {
        let _ = self.reader.stream().send_all(bytes).await; // a closed connection shows at the next receive
    }

    /// The next packet that is no NOP; None at the end of the connection.
    pub(crate) async fn next(&mut self) -> Option<(u32, Vec<u8>)> {
        loop {
            let packet = next_packet(&mut self.reader).await?;
            if packet.0 != 0 {
                return Some(packet);
            }
            self.nops += 1;
        }
    }

    pub(crate) async fn ask<A: Packet>(&mut self, question: impl Packet) -> A {
        self.send(question.encode()).await;
        self.next_as().await
    }

    pub(crate) async fn next_as<A: Packet>(&mut self) -> A {
        let (kind, payload) = self.next().await.expect("an answer");
        assert_eq!(kind, A::TYPE, "{} is the answer", A::NAME);
        A::decode(&payload).unwrap()
    }

    /// Reads a range: all bytes that came, and the status that ended them. Checks every head and sum.
    pub(crate) async fn read(&mut self, id: u64, version: u32, offset: u32, size: u32) -> (Vec<u8>, Status) {
        let (chunkid, version) = (ChunkId(id), Version(version));
        self.send(CltocsRead { with_proto: true, chunkid, version, offset, size }.encode()).await;
        let mut data = Vec::new();
        loop {
            let (kind, payload) = self.next().await.expect("data or a status");
            if kind == CstoclReadStatus::TYPE {
                return (data, CstoclReadStatus::decode(&payload).unwrap().status);
            }
            assert_eq!(kind, CstoclReadData::TYPE);
            let head = CstoclReadData::decode_head(payload.len() as u32, &payload[..20]).unwrap();
            let position = offset + data.len() as u32;
            assert_eq!((u32::from(head.blocknum), u32::from(head.offset)), (position / 65536, position % 65536));
            assert_eq!(head.crc, chunk::sums::sum_of(&payload[20..]), "the sum is that of the bytes carried");
            data.extend_from_slice(&payload[20..]);
        }
    }

    /// Reads a range that must be whole.
    pub(crate) async fn read_ok(&mut self, id: u64, version: u32, offset: u32, size: u32) -> Vec<u8> {
        let (data, status) = self.read(id, version, offset, size).await;
        assert_eq!((data.len(), status), (size as usize, Status::OK));
        data
    }

    /// Opens a session to the servers behind this one. The initial status.
    pub(crate) async fn open_write(&mut self, id: u64, version: u32, chain: &[&Node]) -> Status {
        self.begin_write(id, version, chain, true).await;
        let status: CstoclWriteStatus = self.next_as().await;
        assert_eq!((status.chunkid, status.writeid), (ChunkId(id), 0));
        status.status
    }

    pub(crate) async fn begin_write(&mut self, id: u64, version: u32, chain: &[&Node], with_proto: bool) {
        let chain = chain.iter().map(|node| ChainServer { ip: node.ip.into(), port: super::DATA_PORT }).collect();
        let (chunkid, version) = (ChunkId(id), Version(version));
        self.send(CltocsWrite { with_proto, chunkid, version, chain }.encode()).await;
    }

    pub(crate) async fn send_piece(&mut self, id: u64, writeid: u32, block: u16, offset: u16, data: &[u8]) {
        self.send_piece_with_sum(id, writeid, block, offset, data, chunk::sums::sum_of(data)).await;
    }

    pub(crate) async fn send_piece_with_sum(
        &mut self,
        id: u64,
        writeid: u32,
        blocknum: u16,
        offset: u16,
        data: &[u8],
        crc: Crc,
    ) {
        let head = CltocsWriteData { chunkid: ChunkId(id), writeid, blocknum, offset, size: data.len() as u32, crc };
        let mut packet = head.front().to_vec();
        packet.extend_from_slice(data);
        self.send(packet).await;
    }

    /// The next status: write id and status.
    pub(crate) async fn status(&mut self) -> (u32, Status) {
        let status: CstoclWriteStatus = self.next_as().await;
        (status.writeid, status.status)
    }

    /// As `status`; None at the end of the connection.
    pub(crate) async fn status_or_end(&mut self) -> Option<(u32, Status)> {
        let (kind, payload) = self.next().await?;
        assert_eq!(kind, CstoclWriteStatus::TYPE);
        let status = CstoclWriteStatus::decode(&payload).unwrap();
        Some((status.writeid, status.status))
    }

    pub(crate) async fn finish_write(&mut self, id: u64, version: u32) {
        self.send(CltocsWriteFinish { chunkid: ChunkId(id), version: Version(version) }.encode()).await;
    }

    /// A whole session: opens, writes `data` from `offset` on in pieces that end at blocks, waits, finishes.
    pub(crate) async fn write(&mut self, id: u64, version: u32, chain: &[&Node], offset: u32, data: &[u8]) {
        assert_eq!(self.open_write(id, version, chain).await, Status::OK);
        let mut writeid = 0;
        let mut at = 0usize;
        while at < data.len() {
            let position = offset as usize + at;
            let piece = (65536 - position % 65536).min(data.len() - at);
            writeid += 1;
            self.send_piece(id, writeid, (position / 65536) as u16, (position % 65536) as u16, &data[at..at + piece])
                .await;
            at += piece;
        }
        for expected in 1..=writeid {
            assert_eq!(self.status().await, (expected, Status::OK));
        }
        self.finish_write(id, version).await;
    }
}
