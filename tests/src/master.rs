//! The master's side of port 9420, as far as a chunkserver needs one: it takes every server that registers, keeps the
//! connections alive, gives orders, and remembers what is reported as damaged. Spec 40.
//!
//! With it the chunks, their versions and the order of a chain are a test's (or a measurement's) to choose, and servers
//! of either kind can be driven alike. A few threads and no ring: it may serve a program that has no ring of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::time::{Duration, Instant};

use wire::{
    AntoanNop, ChunkId, CstomaChunkDamaged, CstomaCreate, CstomaDelete, CstomaDuplicate, CstomaDuptrunc,
    CstomaRegister, CstomaReplicate, CstomaSetVersion, CstomaSpace, CstomaTruncate, HEADER_BYTES, Header, MatocsCreate,
    MatocsDelete, MatocsMasterAck, MetaId, Packet, Status, Version, VersionWord, WireError,
};

/// The identity of the file system that is not there. It must not be 0. Spec 40, 4.
const META_ID: MetaId = MetaId(0x4D6F_6F72_696E_6721);
/// Seconds of silence after which a server gives up on us.
const TIMEOUT_SEC: u16 = 60;
const NOP_AFTER: Duration = Duration::from_secs(1);
/// How long a server may take for its commands.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Longest packet that is taken: a list of all chunks, and there are few.
const PACKET_BYTES_MAX: u32 = 1 << 20;

/// A master that listens. Dropping it leaves its threads to the end of the process.
pub struct Master {
    shared: Arc<Shared>,
    port: u16,
}

#[derive(Default)]
struct Shared {
    links: Mutex<BTreeMap<Ipv4Addr, Link>>,
    damaged: Mutex<BTreeSet<ChunkId>>,
}

/// One registered server.
struct Link {
    stream: TcpStream,
    /// Who waits for an answer about a chunk: one order for a chunk at a time.
    waiting: Arc<Waiting>,
    listed: BTreeMap<ChunkId, Version>,
    csid: u16,
}

type Waiting = Mutex<BTreeMap<ChunkId, mpsc::Sender<Status>>>;

/// An order whose answer is on its way.
pub struct Ordered {
    chunk: ChunkId,
    answer: mpsc::Receiver<Status>,
}

impl Ordered {
    /// The answer. Errors: the server is gone, or does not answer.
    pub fn answer(self) -> Result<Status, String> {
        let answer = self.answer.recv_timeout(ANSWER_LIMIT);
        answer.map_err(|why| format!("no answer to an order about chunk {}: {why}", self.chunk))
    }
}

impl Master {
    /// Listens at `address`. Errors: as bind(2).
    pub fn listen(address: SocketAddrV4) -> Result<Master, String> {
        let listener =
            TcpListener::bind(address).map_err(|error| format!("the master cannot use {address}: {error}"))?;
        let local = listener.local_addr().map_err(|error| error.to_string())?;
        let shared = Arc::new(Shared::default());
        let its = shared.clone();
        std::thread::spawn(move || {
            for (csid, stream) in (1..).zip(listener.incoming().flatten()) {
                let its = its.clone();
                std::thread::spawn(move || {
                    if let Err(error) = serve(&its, stream, csid) {
                        eprintln!("a chunkserver's connection to the master: {error}");
                    }
                    // Those who wait learn that there will be no answer.
                    its.links().retain(|_, link| {
                        let is_ours = link.csid == csid;
                        if is_ours {
                            link.waiting.lock().expect("nobody panics with it").clear();
                        }
                        !is_ours
                    });
                });
            }
        });
        Ok(Master { shared, port: local.port() })
    }

    /// The port that was taken, where port 0 was asked for.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Has the server at this address registered to the end, and a disk that is ready?
    pub fn has(&self, server: Ipv4Addr) -> bool {
        self.shared.links().contains_key(&server)
    }

    /// The chunks that a server listed when it registered; None if it has not.
    pub fn listed(&self, server: Ipv4Addr) -> Option<BTreeMap<ChunkId, Version>> {
        self.shared.links().get(&server).map(|link| link.listed.clone())
    }

    /// Gives an order about `chunk`: the chunk that the answer will name. Errors: the server is gone.
    pub fn order(&self, server: Ipv4Addr, chunk: ChunkId, order: &impl Packet) -> Result<Ordered, String> {
        let links = self.shared.links();
        let link = links.get(&server).ok_or_else(|| format!("{server} is not registered"))?;
        let (sender, answer) = mpsc::channel();
        link.waiting.lock().expect("nobody panics with it").insert(chunk, sender);
        (&link.stream).write_all(&order.encode()).map_err(|error| format!("{server}: {error}"))?;
        Ok(Ordered { chunk, answer })
    }

    /// Has these chunks made by a server, with this version. Errors: what it answered, or that it did not.
    pub fn create(&self, server: Ipv4Addr, chunks: &[ChunkId], version: Version) -> Result<(), String> {
        self.each(chunks, |chunkid| self.order(server, chunkid, &MatocsCreate { chunkid, version }))
    }

    /// Has them removed, whatever their version.
    pub fn delete(&self, server: Ipv4Addr, chunks: &[ChunkId]) -> Result<(), String> {
        self.each(chunks, |chunkid| self.order(server, chunkid, &MatocsDelete { chunkid, version: Version::ANY }))
    }

    /// The chunk was replaced: what was reported about it no longer counts.
    pub fn forget_damaged(&self, chunk: ChunkId) {
        self.shared.damaged.lock().expect("nobody panics with it").remove(&chunk);
    }

    fn each(&self, chunks: &[ChunkId], order: impl Fn(ChunkId) -> Result<Ordered, String>) -> Result<(), String> {
        let ordered: Vec<Ordered> = chunks.iter().map(|chunk| order(*chunk)).collect::<Result<_, _>>()?;
        for ordered in ordered {
            let chunk = ordered.chunk;
            ordered.answer()?.into_result().map_err(|status| format!("chunk {chunk}: {status}"))?;
        }
        Ok(())
    }

    /// Chunks that any server has called damaged.
    pub fn damaged(&self) -> BTreeSet<ChunkId> {
        self.shared.damaged.lock().expect("nobody panics with it").clone()
    }
}

impl Shared {
    fn links(&self) -> MutexGuard<'_, BTreeMap<Ipv4Addr, Link>> {
        self.links.lock().expect("nobody panics with it")
    }
}

/// One connection, from its registration to its end. Spec 40, 3.2.
fn serve(shared: &Shared, stream: TcpStream, csid: u16) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    stream.set_nodelay(true).map_err(text)?;
    stream.set_read_timeout(Some(NOP_AFTER / 2)).map_err(text)?;
    let SocketAddr::V4(peer) = stream.peer_addr().map_err(text)? else { return Err("not IPv4".into()) };
    let mut address = *peer.ip();
    let waiting: Arc<Waiting> = Arc::default();
    let mut listed = BTreeMap::new();
    // A server is here once it has listed its chunks and has a disk that is ready, in whichever order it says so.
    let (mut has_ended, mut has_space) = (false, false);
    let mut packets = Packets { stream: &stream, received: Vec::new(), sent: Instant::now(), may_nop: false };
    while let Some((kind, payload)) = packets.next()? {
        let bad = |error: WireError| format!("{address}, packet {kind}: {error}");
        match kind {
            CstomaRegister::TYPE => match CstomaRegister::decode(&payload).map_err(bad)? {
                CstomaRegister::Begin { begin, .. } => {
                    if begin.ip.0 != 0 {
                        address = begin.ip.into();
                    }
                    let master_version = VersionWord::OURS;
                    packets.send(&MatocsMasterAck::Begin {
                        master_version,
                        timeout: TIMEOUT_SEC,
                        csid,
                        metaid: META_ID,
                    })?;
                    packets.may_nop = true;
                }
                CstomaRegister::Chunks(chunks) => {
                    listed.extend(chunks.into_iter().map(|chunk| (chunk.chunkid, Version(chunk.version))));
                    packets.send(&MatocsMasterAck::Next)?;
                }
                CstomaRegister::End => has_ended = true,
                CstomaRegister::Disconnect => break,
            },
            CstomaSpace::TYPE => {
                let space = CstomaSpace::decode(&payload).map_err(bad)?.space;
                has_space |= space.total > 0;
            }
            CstomaChunkDamaged::TYPE => {
                let chunks = CstomaChunkDamaged::decode(&payload).map_err(bad)?.chunks;
                shared.damaged.lock().expect("nobody panics with it").extend(chunks);
            }
            _ => {
                if let Some((chunk, status)) = answered(kind, &payload).transpose().map_err(bad)?
                    && let Some(sender) = waiting.lock().expect("nobody panics with it").remove(&chunk)
                {
                    sender.send(status).ok(); // nobody may wait any more
                }
            }
        }
        if has_ended && has_space && !shared.links().contains_key(&address) {
            let (stream, waiting) = (stream.try_clone().map_err(text)?, waiting.clone());
            let link = Link { stream, waiting, listed: std::mem::take(&mut listed), csid };
            shared.links().insert(address, link);
        }
    }
    Ok(())
}

/// What an answer to an order says; None if it is another packet. Spec 40, 8.1.
fn answered(kind: u32, payload: &[u8]) -> Option<Result<(ChunkId, Status), WireError>> {
    Some(match kind {
        CstomaCreate::TYPE => CstomaCreate::decode(payload).map(|answer| (answer.chunkid, answer.status)),
        CstomaDelete::TYPE => CstomaDelete::decode(payload).map(|answer| (answer.chunkid, answer.status)),
        CstomaDuplicate::TYPE => CstomaDuplicate::decode(payload).map(|answer| (answer.chunkid, answer.status)),
        CstomaDuptrunc::TYPE => CstomaDuptrunc::decode(payload).map(|answer| (answer.chunkid, answer.status)),
        CstomaSetVersion::TYPE => CstomaSetVersion::decode(payload).map(|answer| (answer.chunkid, answer.status)),
        CstomaTruncate::TYPE => CstomaTruncate::decode(payload).map(|answer| (answer.chunkid, answer.status)),
        CstomaReplicate::TYPE => CstomaReplicate::decode(payload).map(|answer| (answer.chunkid, answer.status)),
        _ => return None,
    })
}

/// Packets of one connection; NOPs are sent while it waits.
struct Packets<'a> {
    stream: &'a TcpStream,
    received: Vec<u8>,
    sent: Instant,
    /// A NOP before the first acknowledgement would mean a very old master. Spec 40, 1.1.
    may_nop: bool,
}

impl Packets<'_> {
    /// The next packet; None at the end of the connection.
    fn next(&mut self) -> Result<Option<(u32, Vec<u8>)>, String> {
        loop {
            if let Some(header) = self.received.first_chunk::<HEADER_BYTES>().map(Header::decode) {
                if header.length > PACKET_BYTES_MAX {
                    return Err(format!("packet {} of {} bytes is too long", header.kind, header.length));
                }
                let end = HEADER_BYTES + header.length as usize;
                if self.received.len() >= end {
                    let payload = self.received[HEADER_BYTES..end].to_vec();
                    self.received.drain(..end);
                    return Ok(Some((header.kind, payload)));
                }
            }
            if self.may_nop && self.sent.elapsed() >= NOP_AFTER {
                self.send(&AntoanNop {})?;
            }
            let mut piece = [0; 4096];
            match (&mut &*self.stream).read(&mut piece) {
                Ok(0) => return Ok(None),
                Ok(bytes) => self.received.extend_from_slice(&piece[..bytes]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::Interrupted) => {
                    return Ok(None); // a server that was stopped
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    fn send(&mut self, packet: &impl Packet) -> Result<(), String> {
        self.sent = Instant::now();
        (&mut &*self.stream).write_all(&packet.encode()).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::types::ChunkReport;
    use wire::{RegisterBegin, ServerSpace};

    use crate::wait::wait_until;

    const LIMIT: Duration = Duration::from_secs(30);

    #[test]
    fn a_server_registers_and_obeys() {
        let master = Master::listen("127.0.0.1:0".parse().expect("an address")).expect("loopback");
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, master.port())).expect("it listens");
        let mut server = Packets { stream: &stream, received: Vec::new(), sent: Instant::now(), may_nop: false };
        let space = ServerSpace { used: 0, total: 1, chunks: 0, tdused: 0, tdtotal: 0, tdchunks: 0 };
        let ip = Ipv4Addr::new(10, 1, 2, 3);
        let begin = RegisterBegin {
            version: VersionWord::OURS,
            ip: ip.into(),
            port: 9422,
            timeout: 0,
            csid: 0,
            space: space.clone(),
        };
        server.send(&CstomaRegister::Begin { passcode: None, begin }).expect("sent");
        let (kind, ack) = server.next().expect("whole").expect("an answer");
        assert_eq!(kind, MatocsMasterAck::TYPE);
        assert!(matches!(MatocsMasterAck::decode(&ack), Ok(MatocsMasterAck::Begin { metaid: META_ID, .. })));
        let chunks = vec![ChunkReport { chunkid: ChunkId(5), version: 3 }];
        server.send(&CstomaRegister::Chunks(chunks)).expect("sent");
        assert_eq!(server.next().map(|next| next.map(|(kind, _)| kind)), Ok(Some(MatocsMasterAck::TYPE)));
        server.send(&CstomaRegister::End).expect("sent");
        assert!(!master.has(ip), "no disk is ready");
        server.send(&CstomaSpace { space }).expect("sent");
        wait_until("the server is there", LIMIT, || master.has(ip));
        assert_eq!(master.listed(ip), Some(BTreeMap::from([(ChunkId(5), Version(3))])));
        let obey = |status: Status, server: &mut Packets<'_>| {
            let order = MatocsCreate { chunkid: ChunkId(7), version: Version(1) };
            let ordered = master.order(ip, ChunkId(7), &order).expect("it is there");
            while server.next().expect("whole").expect("an order").0 != MatocsCreate::TYPE {}
            server.send(&CstomaCreate { chunkid: ChunkId(7), status }).expect("sent");
            ordered.answer()
        };
        assert_eq!(obey(Status::OK, &mut server), Ok(Status::OK));
        assert_eq!(obey(Status::NOSPACE, &mut server), Ok(Status::NOSPACE));
        server.send(&CstomaChunkDamaged { chunks: vec![ChunkId(9)] }).expect("sent");
        wait_until("the damage is noted", LIMIT, || master.damaged().contains(&ChunkId(9)));
        let order = MatocsDelete { chunkid: ChunkId(5), version: Version(3) };
        let ordered = master.order(ip, ChunkId(5), &order).expect("it is there");
        drop(stream);
        assert!(ordered.answer().is_err(), "a server that left does not answer");
        wait_until("the server is gone", LIMIT, || !master.has(ip));
    }
}
