//! Those who speak to the master: clients without a mount, and a chunkserver without disks.
//!
//! A client here repeats nothing and caches nothing, so that what the master has acknowledged is exactly what its user
//! has seen. The chunkserver obeys at once and never forgets; chunks are numbers to it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use ring::local::Mutex;
use ring::{BufferedReader, Ring, Stream};
use wire::types::ChunkReport;
use wire::{
    AntoanNop, ChunkId, CltomaFuseRegister, CstomaCreate, CstomaCurrentLoad, CstomaDelete, CstomaDuplicate,
    CstomaDuptrunc, CstomaLabels, CstomaRegister, CstomaReplicate, CstomaSetVersion, CstomaSpace, CstomaTruncate,
    HEADER_BYTES, Header, MatoclFuseRegister, MatocsCreate, MatocsDelete, MatocsDuplicate, MatocsDuptrunc,
    MatocsMasterAck, MatocsReplicate, MatocsSetVersion, MatocsTruncate, MetaId, NewSession, Packet, RegisterBegin,
    ServerSpace, SessionId, Status, Text, Version, VersionWord, decode_answer,
};

pub(super) const MASTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(super) const CHUNKSERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 11);

/// A master without power gives no answer at all.
const CONNECT_MAX: Duration = Duration::from_millis(50);
/// Between two tries to connect.
const AGAIN: Duration = Duration::from_millis(10);

/// A session, as its owner remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Session {
    id: SessionId,
    metaid: MetaId,
}

/// One connection to the master. All errors are statuses; DISCONNECTED when it is over.
pub(super) struct Peer {
    stream: Stream,
    reader: BufferedReader,
    /// One packet after the other, though keep-alive has a task of its own.
    sending: Rc<Mutex<()>>,
}

impl Peer {
    /// Connects, again and again while `tries` says so.
    async fn connect(ring: &Ring, port: u16, tries: impl Fn() -> bool) -> Result<Peer, Status> {
        while tries() {
            let connecting = ring.connect(SocketAddr::new(MASTER.into(), port), None);
            if let Ok(Ok(stream)) = ring.timeout(CONNECT_MAX, connecting).await {
                let reader = BufferedReader::new(stream.clone(), 1 << 16);
                return Ok(Peer { stream, reader, sending: Rc::new(Mutex::new(())) });
            }
            ring.sleep(AGAIN).await;
        }
        Err(Status::DISCONNECTED)
    }

    /// A new session; of the META kind, or of a mount of the root.
    pub(super) async fn register(
        ring: &Ring,
        is_meta: bool,
        tries: impl Fn() -> bool,
    ) -> Result<(Peer, Session), Status> {
        let mut peer = Peer::connect(ring, 9421, tries).await?;
        let path = (!is_meta).then(|| Text(b"/\0".to_vec()));
        let info = Text(b"/mnt\0".to_vec());
        let version = VersionWord::OURS;
        let wanted = NewSession { version, info, path, sessionid: None, metaid: None, passcode: None };
        let packet =
            if is_meta { CltomaFuseRegister::NewMetaSession(wanted) } else { CltomaFuseRegister::NewSession(wanted) };
        match peer.register_with(&packet).await? {
            MatoclFuseRegister::Session { sessionid: id, metaid: Some(metaid), .. }
            | MatoclFuseRegister::MetaSession { sessionid: id, metaid, .. } => Ok((peer, Session { id, metaid })),
            MatoclFuseRegister::Status(status) => Err(status),
            other => panic!("a strange answer to a registration: {other:?}"),
        }
    }

    /// Goes on with a session.
    pub(super) async fn reconnect(ring: &Ring, session: Session, tries: impl Fn() -> bool) -> Result<Peer, Status> {
        let mut peer = Peer::connect(ring, 9421, tries).await?;
        let Session { id: sessionid, metaid } = session;
        let packet = CltomaFuseRegister::Reconnect { sessionid, version: VersionWord::OURS, metaid: Some(metaid) };
        match peer.register_with(&packet).await? {
            MatoclFuseRegister::Reconnected { status: Status::OK, .. } => Ok(peer),
            MatoclFuseRegister::Reconnected { status, .. } | MatoclFuseRegister::Status(status) => Err(status),
            other => panic!("a strange answer to a reconnection: {other:?}"),
        }
    }

    async fn register_with(&mut self, packet: &CltomaFuseRegister) -> Result<MatoclFuseRegister, Status> {
        self.send(packet.encode()).await?;
        let (_, payload) = self.next().await?;
        Ok(MatoclFuseRegister::decode(&payload).expect("the answer is well-formed"))
    }

    pub(super) async fn send(&self, packets: Vec<u8>) -> Result<(), Status> {
        let _turn = self.sending.lock().await;
        self.stream.send_all(packets).await.0.map_err(|_| Status::DISCONNECTED)
    }

    /// The next packet that is no NOP and no notice.
    pub(super) async fn next(&mut self) -> Result<(u32, Vec<u8>), Status> {
        loop {
            let head = self.reader.fill(HEADER_BYTES).await.map_err(|_| Status::DISCONNECTED)?;
            let head = head[..HEADER_BYTES].try_into().expect("filled");
            let header = Header::decode(head);
            let bytes = HEADER_BYTES + header.length as usize;
            let whole = self.reader.fill(bytes).await.map_err(|_| Status::DISCONNECTED)?;
            let payload = whole[HEADER_BYTES..bytes].to_vec();
            self.reader.consume(bytes);
            let is_notice = header.kind >= 700 || header.kind == 0;
            if !is_notice {
                return Ok((header.kind, payload));
            }
        }
    }

    /// Asks, and takes the answer: a packet, or the status in its place.
    pub(super) async fn get<P: Packet, A: Packet>(&mut self, packet: &P) -> Result<A, Status> {
        self.send(packet.encode()).await?;
        let (kind, payload) = self.next().await?;
        assert_eq!(kind, P::TYPE + 1, "the answer is one to this question");
        decode_answer(&payload).expect("the answer is well-formed")
    }

    /// As `get`, where success is a status too.
    pub(super) async fn order<P: Packet>(&mut self, packet: &P) -> Result<(), Status> {
        self.send(packet.encode()).await?;
        let (kind, payload) = self.next().await?;
        assert_eq!(kind, P::TYPE + 1, "the answer is one to this question");
        match payload.get(4) {
            Some(0) | None => Ok(()),
            Some(status) if payload.len() == 5 => Err(Status(*status)),
            Some(_) => Ok(()),
        }
    }

    /// Asks all of it at once; payloads of the answers, without the message's number.
    pub(super) async fn ask_all(&mut self, packets: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, Status> {
        self.send(packets.concat()).await?;
        let mut answers = Vec::new();
        for _ in packets {
            answers.push(self.next().await?.1.split_off(4));
        }
        Ok(answers)
    }
}

/// What a pretended chunkserver has.
#[derive(Default)]
pub(super) struct Held {
    chunks: RefCell<BTreeMap<ChunkId, Version>>,
    pub(super) registered: Cell<bool>,
}

/// A chunkserver for ever.
pub(super) async fn serve_chunks(ring: Ring, held: Rc<Held>) {
    loop {
        held.registered.set(false);
        let Ok(mut peer) = Peer::connect(&ring, 9420, || true).await else { return };
        if register_server(&mut peer, &held).await.is_err() {
            ring.sleep(AGAIN).await;
            continue;
        }
        held.registered.set(true);
        let (beating, sending) = (peer.stream.clone(), peer.sending.clone());
        let pause = ring.clone();
        let heart = ring.spawn(async move {
            loop {
                let turn = sending.lock().await;
                if beating.send_all(AntoanNop {}.encode()).await.0.is_err() {
                    return;
                }
                drop(turn);
                pause.sleep(Duration::from_secs(1)).await;
            }
        });
        while let Ok((kind, payload)) = peer.next().await {
            if peer.send(obey(&held, kind, &payload)).await.is_err() {
                break;
            }
        }
        heart.abort();
    }
}

async fn register_server(peer: &mut Peer, held: &Held) -> Result<(), Status> {
    let space = ServerSpace { used: 0, total: 1 << 40, chunks: 0, tdused: 0, tdtotal: 0, tdchunks: 0 };
    let (version, ip) = (VersionWord::OURS, CHUNKSERVER.into());
    let begin = RegisterBegin { version, ip, port: 9422, timeout: 0, csid: 0, space: space.clone() };
    peer.send(CstomaRegister::Begin { passcode: None, begin }.encode()).await?;
    peer.next().await?;
    let report = |(&chunkid, version): (&ChunkId, &Version)| ChunkReport { chunkid, version: version.0 };
    let list = held.chunks.borrow().iter().map(report).collect();
    let packets = [CstomaLabels { labelmask: 0 }.encode(), CstomaRegister::Chunks(list).encode()].concat();
    peer.send(packets).await?;
    let (kind, _) = peer.next().await?;
    assert_eq!(kind, MatocsMasterAck::TYPE, "each part is acknowledged");
    let load = CstomaCurrentLoad { load: 0, hlstatus: Some(1), transferring: None };
    peer.send([CstomaRegister::End.encode(), CstomaSpace { space }.encode(), load.encode()].concat()).await
}

/// Carries an order out. Gives the answer.
fn obey(held: &Held, kind: u32, payload: &[u8]) -> Vec<u8> {
    const FORM: &str = "the master's packets are well-formed";
    let mut chunks = held.chunks.borrow_mut();
    let mut change = |old: ChunkId, from: Version, new: ChunkId, to: Version| match chunks.get(&old) {
        None => Status::NOCHUNK,
        Some(version) if *version != from => Status::WRONGVERSION,
        Some(_) => {
            chunks.insert(new, to);
            Status::OK
        }
    };
    match kind {
        MatocsCreate::TYPE => {
            let MatocsCreate { chunkid, version } = MatocsCreate::decode(payload).expect(FORM);
            chunks.insert(chunkid, version);
            CstomaCreate { chunkid, status: Status::OK }.encode()
        }
        MatocsDelete::TYPE => {
            let MatocsDelete { chunkid, .. } = MatocsDelete::decode(payload).expect(FORM);
            let status = if chunks.remove(&chunkid).is_some() { Status::OK } else { Status::NOCHUNK };
            CstomaDelete { chunkid, status }.encode()
        }
        MatocsSetVersion::TYPE => {
            let packet = MatocsSetVersion::decode(payload).expect(FORM);
            let status = change(packet.chunkid, packet.oldversion, packet.chunkid, packet.newversion);
            CstomaSetVersion { chunkid: packet.chunkid, status }.encode()
        }
        MatocsTruncate::TYPE => {
            let packet = MatocsTruncate::decode(payload).expect(FORM);
            let status = change(packet.chunkid, packet.oldversion, packet.chunkid, packet.newversion);
            CstomaTruncate { chunkid: packet.chunkid, status }.encode()
        }
        MatocsDuplicate::TYPE => {
            let packet = MatocsDuplicate::decode(payload).expect(FORM);
            let status = change(packet.oldchunkid, packet.oldversion, packet.newchunkid, packet.newversion);
            CstomaDuplicate { chunkid: packet.newchunkid, status }.encode()
        }
        MatocsDuptrunc::TYPE => {
            let packet = MatocsDuptrunc::decode(payload).expect(FORM);
            let status = change(packet.oldchunkid, packet.oldversion, packet.newchunkid, packet.newversion);
            CstomaDuptrunc { chunkid: packet.newchunkid, status }.encode()
        }
        MatocsReplicate::TYPE => {
            let MatocsReplicate { chunkid, version, .. } = MatocsReplicate::decode(payload).expect(FORM);
            CstomaReplicate { chunkid, version, status: Status::NOTDONE }.encode()
        }
        other => panic!("a chunkserver of 3.0.117 would hang up on type {other}"),
    }
}
