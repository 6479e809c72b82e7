//! A master that does as it is told by a test.

use ring::{BufferedReader, Listener, Ring, Stream};
use wire::types::ChunkReport;
use wire::*;

use super::{MASTER_PORT, Node};

pub(crate) const METAID: MetaId = MetaId(0x1122_3344_5566_7788);

pub(crate) struct Master {
    stream: Stream,
    reader: BufferedReader,
    /// What the chunkserver said of itself.
    pub(crate) begin: RegisterBegin,
    /// What it listed.
    pub(crate) listed: Vec<ChunkReport>,
    /// Packets that came while an answer was awaited, NOPs left out.
    pub(crate) others: Vec<(u32, Vec<u8>)>,
}

impl Master {
    pub(crate) fn listen(node: &Node) -> Listener {
        node.ring.listen((node.ip, MASTER_PORT).into()).unwrap()
    }

    /// Takes one chunkserver through its registration.
    pub(crate) async fn accept(ring: &Ring, listener: &Listener) -> Master {
        Master::accept_as(ring, listener, METAID).await
    }

    pub(crate) async fn accept_as(_ring: &Ring, listener: &Listener, metaid: MetaId) -> Master {
        let mut master = Master::greet(listener).await;
        master.acknowledge(metaid).await;
        master.take_list().await;
        master
    }

    /// Accepts a connection and reads BEGIN.
    pub(crate) async fn greet(listener: &Listener) -> Master {
        let stream = listener.accept().await.unwrap();
        let mut reader = BufferedReader::new(stream.clone(), 4096);
        let (kind, payload) = next_packet(&mut reader).await.expect("a BEGIN");
        assert_eq!((kind, payload.len()), (CstomaRegister::TYPE, 55), "BEGIN is the first packet");
        let Ok(CstomaRegister::Begin { passcode: None, begin }) = CstomaRegister::decode(&payload) else {
            panic!("the first packet is a BEGIN without passcode");
        };
        Master { stream, reader, begin, listed: Vec::new(), others: Vec::new() }
    }

    pub(crate) async fn acknowledge(&mut self, metaid: MetaId) {
        let master_version = VersionWord::OURS;
        self.send(MatocsMasterAck::Begin { master_version, timeout: 60_000, csid: 7, metaid }).await;
    }

    /// LABELS, then the list in parts, each asked for.
    async fn take_list(&mut self) {
        assert_eq!(self.next().await.expect("labels").0, CstomaLabels::TYPE, "labels come before the list");
        loop {
            let (kind, payload) = self.next().await.expect("the list");
            if kind != CstomaRegister::TYPE {
                self.others.push((kind, payload));
                continue;
            }
            match CstomaRegister::decode(&payload).unwrap() {
                CstomaRegister::Chunks(chunks) => {
                    self.listed.extend(chunks);
                    self.send(MatocsMasterAck::Next).await;
                }
                CstomaRegister::End => return,
                other => panic!("{other:?} in the list"),
            }
        }
    }

    pub(crate) async fn send(&mut self, packet: impl Packet) {
        self.stream.send_all(packet.encode()).await.0.unwrap();
    }

    /// The next packet that is no NOP; None at the end of the connection.
    pub(crate) async fn next(&mut self) -> Option<(u32, Vec<u8>)> {
        loop {
            let packet = next_packet(&mut self.reader).await?;
            if packet.0 != 0 {
                return Some(packet);
            }
        }
    }

    /// Sends an order and waits for its answer; what else comes is kept in `others`.
    pub(crate) async fn order<A: Packet>(&mut self, order: impl Packet) -> A {
        self.send(order).await;
        self.answer().await
    }

    pub(crate) async fn answer<A: Packet>(&mut self) -> A {
        loop {
            let (kind, payload) = self.next().await.expect("an answer");
            if kind == A::TYPE {
                return A::decode(&payload).unwrap();
            }
            self.others.push((kind, payload));
        }
    }

    pub(crate) async fn create(&mut self, id: u64, version: u32) -> Status {
        let order = MatocsCreate { chunkid: ChunkId(id), version: Version(version) };
        self.order::<CstomaCreate>(order).await.status
    }

    pub(crate) async fn delete(&mut self, id: u64, version: u32) -> Status {
        let order = MatocsDelete { chunkid: ChunkId(id), version: Version(version) };
        self.order::<CstomaDelete>(order).await.status
    }

    pub(crate) async fn set_version(&mut self, id: u64, new: u32, old: u32) -> Status {
        let order = MatocsSetVersion { chunkid: ChunkId(id), newversion: Version(new), oldversion: Version(old) };
        self.order::<CstomaSetVersion>(order).await.status
    }

    pub(crate) async fn truncate(&mut self, id: u64, length: u32, new: u32, old: u32) -> Status {
        let order = MatocsTruncate { chunkid: ChunkId(id), length, newversion: Version(new), oldversion: Version(old) };
        self.order::<CstomaTruncate>(order).await.status
    }

    pub(crate) async fn duplicate(&mut self, new: (u64, u32), old: (u64, u32)) -> Status {
        let order = MatocsDuplicate {
            newchunkid: ChunkId(new.0),
            newversion: Version(new.1),
            oldchunkid: ChunkId(old.0),
            oldversion: Version(old.1),
        };
        self.order::<CstomaDuplicate>(order).await.status
    }

    pub(crate) async fn duptrunc(&mut self, new: (u64, u32), old: (u64, u32), length: u32) -> Status {
        let order = MatocsDuptrunc {
            newchunkid: ChunkId(new.0),
            newversion: Version(new.1),
            oldchunkid: ChunkId(old.0),
            oldversion: Version(old.1),
            length,
        };
        self.order::<CstomaDuptrunc>(order).await.status
    }

    pub(crate) async fn replicate(&mut self, id: u64, version: u32, source: &Node) -> Status {
        let order = MatocsReplicate {
            chunkid: ChunkId(id),
            version: Version(version),
            srcip: source.ip.into(),
            srcport: super::DATA_PORT,
        };
        self.order::<CstomaReplicate>(order).await.status
    }

    pub(crate) async fn chunkop(&mut self, id: u64, version: u32, new: u32, copy: (u64, u32), length: u32) -> Status {
        let order = MatocsChunkop {
            chunkid: ChunkId(id),
            version: Version(version),
            newversion: Version(new),
            copychunkid: ChunkId(copy.0),
            copyversion: Version(copy.1),
            length,
        };
        self.order::<CstomaChunkop>(order).await.status
    }

    /// Waits for a report of this kind; its chunks.
    pub(crate) async fn report<R: Packet>(&mut self) -> R {
        if let Some(at) = self.others.iter().position(|(kind, _)| *kind == R::TYPE) {
            return R::decode(&self.others.remove(at).1).unwrap();
        }
        self.answer().await
    }
}

pub(crate) async fn next_packet(reader: &mut BufferedReader) -> Option<(u32, Vec<u8>)> {
    let header = Header::decode(reader.fill(HEADER_BYTES).await.ok()?.first_chunk().unwrap());
    let whole = HEADER_BYTES + header.length as usize;
    let payload = reader.fill(whole).await.ok()?[HEADER_BYTES..whole].to_vec();
    reader.consume(whole);
    Some((header.kind, payload))
}
