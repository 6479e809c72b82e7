//! Port 9422: clients, other chunkservers and tools. Spec 20.
//!
//! A connection is a sequence of requests, each finished before the next is sent. Between them it is idle; reads
//! (`read`), write sessions (`write`) and questions (`questions`) borrow it while they last. The first core accepts it;
//! a read or write goes on at the core that owns its chunk, and the connection with it. Questions stay where they are and
//! ask the owner.

mod ahead;
pub(crate) mod peers;
pub(crate) mod questions;
mod read;
mod tickets;
mod window;
mod write;

pub(crate) use ahead::AheadJob;
pub(crate) use read::ReadJob;
pub(crate) use write::WriteJob;

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::{Either, select};
use ring::{BufferedReader, DetachedStream, Gather, Instant, IoBuf, Listener, Stream};
use wire::limits::{DATA_PORT_BYTES_MAX, HEADER_BYTES};
use wire::{
    ChunkId, CltocsRead, CltocsTicket, CltocsWrite, CltocsWriteData, CltocsWriteFinish, CstoclReadStatus,
    CstoclWriteStatus, Header, Ip4, Packet, Refusals, Status, Version, WireError, ticket_rights,
};

use crate::cores::Shared;
use crate::error::ChunkError;
use crate::server::Server;
use crate::store::Chunk;
use ahead::ReadAhead;
use tickets::Admission;
use window::{BlockResult, Window};

/// A NOP is sent after so long without sending. Spec 20, 2.1.
const IDLE_NOP_AFTER: Duration = Duration::from_micros(5_000_000 / 3);
/// A peer that sends nothing for so long is gone. Spec 20, 2.1 and 4.2.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// A packet must be taken by the peer within this. Spec 20, 3.1.
const SEND_MAX: Duration = Duration::from_secs(5);
/// NOPs while a request waits for the disk or for other servers. Spec 20, 3.1.
const BUSY_NOP_AFTER: Duration = Duration::from_secs(1);
/// How often a request that waits for a disk looks whether it hangs.
const HANG_LOOK: Duration = Duration::from_secs(1);
/// Bytes buffered per connection: heads and controls; data go to pool buffers.
const READER_BYTES: usize = 4096;
/// Longest packet that is taken whole into the reader: the longest chain, the longest option name.
const CONTROL_BYTES_MAX: u32 = 2048;
/// Connections at a time; more wait in the listener's queue.
const CONNECTIONS_MAX: u32 = 10_000;

/// Why a connection ends.
#[derive(Debug)]
pub(crate) enum Hangup {
    /// The peer closed it.
    Closed,
    /// Nothing came for too long.
    Silent,
    /// It does not take what we send.
    Stuck,
    Io(io::Error),
    UnknownType(u32),
    TooLong {
        kind: u32,
        length: u32,
    },
    BadPacket {
        kind: u32,
        why: WireError,
    },
    /// A packet that has no place here.
    OutOfPlace(&'static str),
    /// The session failed and its status was sent; more packets were on their way.
    AfterError,
}

impl std::fmt::Display for Hangup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Hangup::Closed => write!(f, "closed by the peer"),
            Hangup::Silent => write!(f, "the peer is silent"),
            Hangup::Stuck => write!(f, "the peer does not take what it is sent"),
            Hangup::Io(error) => write!(f, "{error}"),
            Hangup::UnknownType(kind) => write!(f, "packet of unknown type {kind}"),
            Hangup::TooLong { kind, length } => write!(f, "packet of type {kind} with {length} bytes is too long"),
            Hangup::BadPacket { kind, why } => write!(f, "bad packet of type {kind}: {why}"),
            Hangup::OutOfPlace(what) => write!(f, "{what} has no place here"),
            Hangup::AfterError => write!(f, "a write session failed with packets on their way"),
        }
    }
}

impl Hangup {
    /// Did the peer break the rules?
    fn is_peers_fault(&self) -> bool {
        use Hangup::*;
        matches!(self, UnknownType(_) | TooLong { .. } | BadPacket { .. } | OutOfPlace(_))
    }
}

impl From<io::Error> for Hangup {
    fn from(error: io::Error) -> Hangup {
        if error.kind() == io::ErrorKind::UnexpectedEof { Hangup::Closed } else { Hangup::Io(error) }
    }
}

/// A connection that counts as long as it lasts, on whatever core.
struct Counted(Arc<Shared>);

impl Counted {
    fn new(shared: &Arc<Shared>) -> Counted {
        shared.connections.fetch_add(1, Ordering::Relaxed);
        Counted(shared.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request about a chunk, whose owner serves it.
enum Request {
    Read(CltocsRead),
    Write(CltocsWrite),
}

impl Request {
    fn chunk(&self) -> ChunkId {
        match self {
            Request::Read(request) => request.chunkid,
            Request::Write(request) => request.chunkid,
        }
    }
}

/// A connection on its way to the owner of the chunk that its next request names.
struct HandedOver {
    stream: DetachedStream,
    /// What came behind the request.
    buffered: Vec<u8>,
    request: Request,
    last_sent: Instant,
    admission: Admission,
    counted: Counted,
}

/// Accepts connections until the task is dropped.
pub(crate) async fn accept_loop(server: Rc<Server>, listener: Listener) {
    let refusals = Refusals::default();
    loop {
        while server.core.shared.connections.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            server.ring.sleep(Duration::from_millis(10)).await;
        }
        match listener.accept().await {
            Ok(stream) if !serves(&server, stream.peer()) => {
                if let Some(count) = refusals.count(u64::from(server.ring.wall_seconds())) {
                    let peer = stream.peer();
                    tracing::warn!(%peer, count, "a stranger on the data port: CSSERV_ALLOW does not list this address");
                }
                stream.shutdown();
            }
            Ok(stream) => {
                let counted = Counted::new(&server.core.shared);
                let reader = BufferedReader::new(stream.clone(), READER_BYTES);
                let connection = Connection::new(server.clone(), stream, reader, server.ring.now());
                begin_connection(&server, connection, None, counted);
            }
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                server.ring.sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Whether this peer may connect. Lists hold IPv4 addresses, and so does the port.
fn serves(server: &Server, peer: SocketAddr) -> bool {
    let ip = match peer {
        SocketAddr::V4(peer) => Ip4::from(*peer.ip()),
        SocketAddr::V6(_) => Ip4(0),
    };
    server.settings.get().allowed.contains(ip)
}

/// Serves a connection in a task of its own. `first`: a request that was taken off it already.
fn begin_connection(server: &Rc<Server>, connection: Connection, first: Option<Request>, counted: Counted) {
    let number = server.connections.borrow().next;
    let its_server = server.clone();
    let task = server.ring.spawn(async move {
        serve_connection(connection, first, counted).await;
        its_server.connections.borrow_mut().tasks.remove(&number);
    });
    let mut connections = server.connections.borrow_mut();
    connections.next += 1;
    connections.tasks.insert(number, task);
}

async fn serve_connection(mut connection: Connection, first: Option<Request>, counted: Counted) {
    let hangup = match connection.serve_requests(first).await {
        Ok(request) => {
            if let Some(hangup) = connection.hand_over(request, counted) {
                tracing::error!("connection closed: {hangup}");
            }
            return;
        }
        Err(hangup) => hangup,
    };
    connection.stream.shutdown();
    if hangup.is_peers_fault() {
        tracing::warn!("{}: connection closed: {hangup}", connection.peer);
    } else {
        tracing::debug!("{}: connection closed: {hangup}", connection.peer);
    }
}

/// Takes up a connection that another core handed over.
fn take_over(server: &Rc<Server>, handed: HandedOver) {
    if server.stopping.get() {
        return;
    }
    let HandedOver { stream, buffered, request, last_sent, admission, counted } = handed;
    match server.ring.attach(stream) {
        Ok(stream) => {
            let reader = BufferedReader::with_buffered(stream.clone(), READER_BYTES, &buffered);
            let mut connection = Connection::new(server.clone(), stream, reader, last_sent);
            connection.admission = admission;
            begin_connection(server, connection, Some(request), counted);
        }
        Err(error) => tracing::warn!("a connection is lost between two cores: {error}"),
    }
}

/// One connection and what is known of its traffic.
pub(crate) struct Connection {
    server: Rc<Server>,
    peer: SocketAddr,
    stream: Stream,
    reader: BufferedReader,
    last_received: Instant,
    last_sent: Instant,
    /// What the last ticket allows.
    admission: Admission,
    /// Blocks on their way from disk to the peer.
    window: Rc<Window<BlockResult>>,
    ahead: ReadAhead,
    /// What is to be sent with the next send. None until the first read, and during a send.
    gather: Option<Gather>,
    /// Small packets are encoded here.
    packets: Vec<u8>,
}

impl Connection {
    fn new(server: Rc<Server>, stream: Stream, reader: BufferedReader, last_sent: Instant) -> Connection {
        Connection {
            peer: stream.peer(),
            reader,
            stream,
            last_received: server.ring.now(),
            last_sent,
            admission: Admission::default(),
            window: Rc::default(),
            ahead: ReadAhead::default(),
            gather: None,
            packets: Vec::new(),
            server,
        }
    }

    /// Serves requests until the connection ends, or until another core is to serve the one that this gives.
    /// Spec 20, 2.1.
    async fn serve_requests(&mut self, first: Option<Request>) -> Result<Request, Hangup> {
        let mut next = first;
        loop {
            match next.take() {
                Some(request) if self.server.core.owns(request.chunk()) => self.serve_request(request).await?,
                Some(request) => return Ok(request),
                None => next = self.next_request().await?,
            }
        }
    }

    /// The next request about a chunk. What else comes is answered here, and gives none.
    async fn next_request(&mut self) -> Result<Option<Request>, Hangup> {
        let header = self.idle_header().await?;
        match header.kind {
            0..=2 => self.skip(header.length).await?,
            CltocsRead::TYPE => return Ok(Some(Request::Read(self.control(header).await?))),
            CltocsWrite::TYPE => return Ok(Some(Request::Write(self.control(header).await?))),
            CltocsTicket::TYPE => {
                let ticket = self.control(header).await?;
                self.take_ticket(&ticket);
            }
            CltocsWriteData::TYPE | CltocsWriteFinish::TYPE => {
                return Err(Hangup::OutOfPlace("a write packet without a write session"));
            }
            _ => self.answer(header).await?,
        }
        Ok(None)
    }

    async fn serve_request(&mut self, request: Request) -> Result<(), Hangup> {
        let counters = &self.server.store.counters;
        match request {
            Request::Read(request) if !self.may(request.chunkid, ticket_rights::READ) => {
                self.send(read_status(&request, Status::EACCES).encode()).await?;
            }
            Request::Write(request) if !self.may(request.chunkid, ticket_rights::WRITE) => {
                self.send(write_status(request.chunkid, 0, Status::EACCES).encode()).await?;
            }
            Request::Read(request) => {
                counters.reads.add(1);
                self.read(request).await?;
            }
            Request::Write(request) => {
                counters.writes.add(1);
                self.write(request).await?;
            }
        }
        self.renew();
        Ok(())
    }

    /// Gives the connection to the owner of the chunk, with what was received behind the request. Gives the reason if
    /// that cannot be.
    fn hand_over(self, request: Request, counted: Counted) -> Option<Hangup> {
        let Connection { server, stream, reader, last_sent, admission, .. } = self;
        drop(stream); // the reader has the other handle
        let broken = || Some(Hangup::Io(io::Error::other("it is in use and cannot go to another core")));
        let Some((stream, buffered)) = reader.into_parts() else { return broken() };
        let Ok(stream) = stream.detach() else { return broken() };
        let owner = server.core.owner(request.chunk());
        let handed = HandedOver { stream, buffered, request, last_sent, admission, counted };
        server.core.tell(owner, move |server| take_over(server, handed));
        None
    }

    /// The header of the next packet; it is taken off the buffer.
    async fn idle_header(&mut self) -> Result<Header, Hangup> {
        self.idle_fill(HEADER_BYTES).await?;
        self.take_header()
    }

    /// Waits for so many bytes under the rules of an idle connection: NOPs, and an end after silence.
    async fn idle_fill(&mut self, bytes: usize) -> Result<(), Hangup> {
        while self.reader.buffered().len() < bytes {
            let now = self.server.ring.now();
            let silent_at = self.last_received + SILENCE_MAX;
            let nop_at = self.last_sent + IDLE_NOP_AFTER;
            let one_more = self.reader.buffered().len() + 1;
            let wait = silent_at.min(nop_at).saturating_duration_since(now);
            match self.server.ring.timeout(wait, self.reader.fill(one_more)).await {
                Ok(filled) => {
                    filled?;
                    self.last_received = self.server.ring.now();
                }
                Err(_) if self.server.ring.now() >= silent_at => return Err(Hangup::Silent),
                Err(_) => self.send(&NOP).await?,
            }
        }
        Ok(())
    }

    /// Takes a header off the buffer, which holds one. Over-long packets end here, before anything is made for them.
    fn take_header(&mut self) -> Result<Header, Hangup> {
        let bytes = self.reader.buffered().first_chunk::<HEADER_BYTES>().expect("the caller waited for a header");
        let header = Header::decode(bytes);
        self.reader.consume(HEADER_BYTES);
        self.server.store.counters.served_in_bytes.add(HEADER_BYTES as u64 + u64::from(header.length));
        if header.length > DATA_PORT_BYTES_MAX {
            return Err(Hangup::TooLong { kind: header.kind, length: header.length });
        }
        Ok(header)
    }

    /// The rest of a control packet.
    async fn control<P: Packet>(&mut self, header: Header) -> Result<P, Hangup> {
        if header.length > CONTROL_BYTES_MAX {
            return Err(Hangup::TooLong { kind: header.kind, length: header.length });
        }
        let length = header.length as usize;
        self.idle_fill(length).await?;
        let packet = P::decode(&self.reader.buffered()[..length]);
        self.reader.consume(length);
        packet.map_err(|why| Hangup::BadPacket { kind: header.kind, why })
    }

    /// Drops a payload that means nothing.
    async fn skip(&mut self, length: u32) -> Result<(), Hangup> {
        let mut rest = length as usize;
        while rest > 0 {
            self.idle_fill(1).await?;
            let piece = self.reader.buffered().len().min(rest);
            self.reader.consume(piece);
            rest -= piece;
        }
        Ok(())
    }

    async fn send<B: IoBuf>(&mut self, bytes: B) -> Result<(), Hangup> {
        let sent = self.server.ring.timeout(SEND_MAX, self.stream.send_all(bytes)).await;
        let (result, bytes) = sent.map_err(|_| Hangup::Stuck)?;
        result?;
        self.server.store.counters.served_out_bytes.add(bytes.as_bytes().len() as u64);
        self.last_sent = self.server.ring.now();
        Ok(())
    }

    /// Waits for `work`; with `nops`, the peer gets one each second meanwhile.
    async fn working<F: Future>(&mut self, nops: bool, work: F) -> Result<F::Output, Hangup> {
        let mut work = std::pin::pin!(work);
        if !nops {
            return Ok(work.await);
        }
        loop {
            let nap = self.server.ring.sleep_until(self.last_sent + BUSY_NOP_AFTER);
            match select(work.as_mut(), std::pin::pin!(nap)).await {
                Either::Left((output, _)) => return Ok(output),
                Either::Right(_) => self.send(&NOP).await?,
            }
        }
    }

    /// As `working`, for what comes from the disk of a chunk: None when that disk begins to hang meanwhile, and the
    /// peer had better ask another copy. What is under way there ends in its own time.
    async fn wait_for_disk<F: Future>(
        &mut self,
        nops: bool,
        id: ChunkId,
        work: F,
    ) -> Result<Option<F::Output>, Hangup> {
        let server = self.server.clone();
        let mut work = std::pin::pin!(work);
        loop {
            match self.working(nops, server.ring.timeout(HANG_LOOK, work.as_mut())).await? {
                Ok(output) => return Ok(Some(output)),
                Err(_) if server.store.waits_for_hanging_disk(id) => return Ok(None),
                Err(_) => {}
            }
        }
    }

    /// Opens a chunk, as `Store::open` does. A disk that begins to hang meanwhile makes it `Busy`.
    async fn open(
        &mut self,
        nops: bool,
        id: ChunkId,
        version: Version,
    ) -> Result<Result<Rc<Chunk>, ChunkError>, Hangup> {
        let store = self.server.store.clone();
        let opening = self.server.ring.spawn(async move { store.open(id, version).await });
        let opened = self.wait_for_disk(nops, id, opening).await?;
        Ok(opened.flatten().unwrap_or(Err(ChunkError::Busy)))
    }

    /// A request has ended: silence counts from now.
    fn renew(&mut self) {
        self.last_received = self.server.ring.now();
    }
}

/// A packet that says that we are alive. Spec 20, 2.1.
static NOP: [u8; HEADER_BYTES] = [0; HEADER_BYTES];

fn read_status(request: &CltocsRead, status: Status) -> CstoclReadStatus {
    CstoclReadStatus { chunkid: request.chunkid, status }
}

fn write_status(chunkid: ChunkId, writeid: u32, status: Status) -> CstoclWriteStatus {
    CstoclWriteStatus { chunkid, writeid, status }
}
