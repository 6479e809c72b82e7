//! The master's side of port 9420, as far as a chunkserver needs one: it takes every server that registers, keeps the
//! connections alive, has chunks made and removed, and remembers what is reported as damaged. Spec 40.
//!
//! With it the order of a chain, the chunks and their versions are ours to choose, and the same program drives servers
//! of either kind. A few threads and no ring: it works between the measurements and is silent during them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::time::{Duration, Instant};

use wire::{
    AntoanNop, ChunkId, CstomaChunkDamaged, CstomaCreate, CstomaDelete, CstomaRegister, HEADER_BYTES, Header,
    MatocsCreate, MatocsDelete, MatocsMasterAck, MetaId, Packet, Status, VersionWord,
};

use crate::load::VERSION;

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
}

#[derive(Default)]
struct Shared {
    links: Mutex<BTreeMap<Ipv4Addr, Link>>,
    damaged: Mutex<BTreeSet<ChunkId>>,
}

/// One registered server.
struct Link {
    stream: TcpStream,
    answers: Arc<Mutex<mpsc::Receiver<Answer>>>,
    csid: u16,
}

struct Answer {
    kind: u32,
    chunkid: ChunkId,
    status: Status,
}

impl Master {
    /// Listens at `address`. Errors: as bind(2).
    pub fn listen(address: SocketAddrV4) -> Result<Master, String> {
        let listener =
            TcpListener::bind(address).map_err(|error| format!("the master cannot use {address}: {error}"))?;
        let shared = Arc::new(Shared::default());
        let its = shared.clone();
        std::thread::spawn(move || {
            for (csid, stream) in (1..).zip(listener.incoming().flatten()) {
                let its = its.clone();
                std::thread::spawn(move || {
                    if let Err(error) = serve(&its, stream, csid) {
                        eprintln!("a chunkserver's connection to the master: {error}");
                    }
                    its.links().retain(|_, link| link.csid != csid);
                });
            }
        });
        Ok(Master { shared })
    }

    /// Has the server at this address registered to the end?
    pub fn has(&self, server: Ipv4Addr) -> bool {
        self.shared.links().contains_key(&server)
    }

    /// Has these chunks made by a server. Errors: what it answered, or that it did not.
    pub fn create(&self, server: Ipv4Addr, chunks: &[ChunkId]) -> Result<(), String> {
        let packets = chunks.iter().flat_map(|chunkid| MatocsCreate { chunkid: *chunkid, version: VERSION }.encode());
        self.command(server, CstomaCreate::TYPE, &packets.collect::<Vec<u8>>(), chunks)
    }

    /// Has them removed.
    pub fn delete(&self, server: Ipv4Addr, chunks: &[ChunkId]) -> Result<(), String> {
        let packets = chunks.iter().flat_map(|chunkid| MatocsDelete { chunkid: *chunkid, version: VERSION }.encode());
        self.command(server, CstomaDelete::TYPE, &packets.collect::<Vec<u8>>(), chunks)
    }

    /// Chunks that any server has called damaged.
    pub fn damaged(&self) -> Vec<ChunkId> {
        self.shared.damaged.lock().expect("nobody panics with it").iter().copied().collect()
    }

    fn command(&self, server: Ipv4Addr, kind: u32, packets: &[u8], chunks: &[ChunkId]) -> Result<(), String> {
        let answers = {
            let links = self.shared.links();
            let link = links.get(&server).ok_or_else(|| format!("{server} is not registered"))?;
            (&link.stream).write_all(packets).map_err(|error| format!("{server}: {error}"))?;
            link.answers.clone()
        };
        let answers = answers.lock().expect("nobody panics with it");
        let mut open: BTreeSet<ChunkId> = chunks.iter().copied().collect();
        while !open.is_empty() {
            let answer = answers.recv_timeout(ANSWER_LIMIT);
            let answer = answer.map_err(|_| format!("{server} did not answer {} commands", open.len()))?;
            if answer.kind != kind || !open.remove(&answer.chunkid) || !answer.status.is_ok() {
                let Answer { kind, chunkid, status } = answer;
                return Err(format!("{server} answered with packet {kind} for {chunkid}: {status}"));
            }
        }
        Ok(())
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
    let (sender, answers) = mpsc::channel();
    let mut answers = Some(Arc::new(Mutex::new(answers)));
    let mut packets = Packets { stream: &stream, received: Vec::new(), sent: Instant::now(), may_nop: false };
    while let Some((kind, payload)) = packets.next()? {
        let answer = match kind {
            CstomaRegister::TYPE => match CstomaRegister::decode(&payload).map_err(|error| error.to_string())? {
                CstomaRegister::Begin { begin, .. } => {
                    if begin.ip.0 != 0 {
                        address = begin.ip.into();
                    }
                    let ack = MatocsMasterAck::Begin {
                        master_version: VersionWord::OURS,
                        timeout: TIMEOUT_SEC,
                        csid,
                        metaid: META_ID,
                    };
                    packets.send(&ack)?;
                    packets.may_nop = true;
                    continue;
                }
                CstomaRegister::Chunks(_) => {
                    packets.send(&MatocsMasterAck::Next)?;
                    continue;
                }
                CstomaRegister::End => {
                    let answers = answers.take().ok_or("a second end of registration")?;
                    let stream = stream.try_clone().map_err(text)?;
                    shared.links().insert(address, Link { stream, answers, csid });
                    continue;
                }
                CstomaRegister::Disconnect => return Ok(()),
            },
            CstomaCreate::TYPE => CstomaCreate::decode(&payload).map(|answer| (answer.chunkid, answer.status)),
            CstomaDelete::TYPE => CstomaDelete::decode(&payload).map(|answer| (answer.chunkid, answer.status)),
            CstomaChunkDamaged::TYPE => {
                let chunks = CstomaChunkDamaged::decode(&payload).map_err(|error| error.to_string())?.chunks;
                eprintln!("{address} reports as damaged: {chunks:?}");
                shared.damaged.lock().expect("nobody panics with it").extend(chunks);
                continue;
            }
            _ => continue, // space, load and the like
        };
        let (chunkid, status) = answer.map_err(|error| format!("{address}, packet {kind}: {error}"))?;
        sender.send(Answer { kind, chunkid, status }).ok();
    }
    Ok(())
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
    use wire::{RegisterBegin, ServerSpace};

    #[test]
    fn a_server_registers_and_obeys() {
        let master = Master::listen("127.0.0.1:0".parse().expect("an address"));
        drop(master.expect("loopback"));
        // The port must be known, so take one that is free now.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|one| one.local_addr()).expect("loopback").port();
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let master = Master::listen(address).expect("the port was free");
        let stream = TcpStream::connect(address).expect("it listens");
        let mut server = Packets { stream: &stream, received: Vec::new(), sent: Instant::now(), may_nop: false };
        let space = ServerSpace { used: 0, total: 1, chunks: 0, tdused: 0, tdtotal: 0, tdchunks: 0 };
        let ip = Ipv4Addr::new(10, 1, 2, 3);
        let begin = RegisterBegin { version: VersionWord::OURS, ip: ip.into(), port: 9422, timeout: 0, csid: 0, space };
        server.send(&CstomaRegister::Begin { passcode: None, begin }).expect("sent");
        let (kind, ack) = server.next().expect("whole").expect("an answer");
        assert_eq!(kind, MatocsMasterAck::TYPE);
        assert!(matches!(MatocsMasterAck::decode(&ack), Ok(MatocsMasterAck::Begin { metaid: META_ID, .. })));
        server.send(&CstomaRegister::End).expect("sent");
        while !master.has(ip) {
            std::thread::yield_now();
        }
        server.send(&CstomaCreate { chunkid: ChunkId(7), status: Status::OK }).expect("sent");
        assert_eq!(master.create(ip, &[ChunkId(7)]), Ok(()));
        server.send(&CstomaCreate { chunkid: ChunkId(8), status: Status::NOSPACE }).expect("sent");
        assert!(master.create(ip, &[ChunkId(8)]).is_err());
        server.send(&CstomaChunkDamaged { chunks: vec![ChunkId(9)] }).expect("sent");
        while master.damaged() != [ChunkId(9)] {
            std::thread::yield_now();
        }
        drop(stream);
        while master.has(ip) {
            std::thread::yield_now();
        }
    }
}
