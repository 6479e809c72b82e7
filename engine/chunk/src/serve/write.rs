//! A write session, as the last server of a chain or in its middle. Spec 20, 4.
//!
//! ```text
//!                 WRITE_DATA                        same buffer, at once
//!   client/prev ─────────────▶ receive ─┬─────────▶ forward ──────────▶ next
//!        ▲                              └▶ verify, write (own task)       │
//!        │     WRITE_STATUS                        │ local status         │ WRITE_STATUS
//!        └───────────────────── report ◀─ pending, in order ◀─────────────┘
//! ```
//!
//! A piece of data is received into a pool buffer behind the head it came with, so that it can be forwarded verbatim
//! from there and written from there. Pieces are written at the same time as far as they touch different blocks; their
//! places in the line of a block are taken in the order in which they came. A piece is reported when our disk and the
//! rest of the chain have it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::pin;
use std::rc::Rc;

use futures_util::{FutureExt, select_biased};
use ring::local::{Notify, Receiver, Sender, channel};
use ring::{BufferedReader, Gather, IoBuf, IoBufExt, SharedBlock, Stream};
use wire::limits::{BLOCK_BYTES, BLOCKS_PER_CHUNK, HEADER_BYTES, WRITE_DATA_HEAD_BYTES};
use wire::{
    ChunkId, CltocsWrite, CltocsWriteData, CltocsWriteFinish, Crc, CstoclWriteStatus, Header, Packet, Status,
    ticket_rights,
};

use super::peers::address_of;
use super::{BUSY_NOP_AFTER, Connection, Hangup, NOP, SEND_MAX, SILENCE_MAX, write_status};
use crate::error::ChunkError;
use crate::fair_lock::Turn;
use crate::layout::BlockIndex;
use crate::server::{CHAIN_CLASSES, Server};
use crate::store::Chunk;
use crate::store::blocks::Part;
use crate::sums::sum_of;

/// Pieces of one session between receipt and report.
const PIECES_MAX: usize = 32;
/// Data of a piece from which on it is received straight into its buffer, past the reader's.
const STRAIGHT_BYTES: u32 = 16 << 10;
/// Bytes of statuses in one send.
const STATUSES_BYTES: usize = PIECES_MAX * (HEADER_BYTES + 13);

/// A piece as it came, header, head and data in one buffer: the data are the payload, the rest lies right in front.
struct Frame {
    block: SharedBlock,
    size: usize,
}

/// What goes to the next server.
enum Forward {
    Piece(Frame),
    Finish(CltocsWriteFinish),
    Nop,
}

/// A piece that is to be written. Done beyond the session: a buffer that is lent to the disk comes back in its own time.
pub(crate) struct WriteJob {
    session: Rc<Session>,
    number: u64,
    turn: Turn,
    part: Part,
    sum: Crc,
    block: SharedBlock,
}

impl WriteJob {
    pub(crate) async fn run(self) {
        let WriteJob { session, number, turn, part, sum, block } = self;
        let data = block.slice(0..part.size_bytes as usize);
        let store = &session.server.store;
        let written = store.write_part(&session.chunk, session.request.version, turn, part, sum, data).await;
        session.local_is_done(number, written.map_or_else(|error: ChunkError| error.status(), |()| Status::OK));
    }
}

/// A piece that was received and not yet reported.
struct Pending {
    writeid: u32,
    /// How our disk took it.
    local: Option<Status>,
    /// The rest of the chain has it.
    next_has_it: bool,
}

/// What the parts of one session share.
struct Session {
    server: Rc<Server>,
    chunk: Rc<Chunk>,
    request: CltocsWrite,
    is_last: bool,
    pending: RefCell<VecDeque<Pending>>,
    /// Number of the oldest pending piece, counted from the session's beginning.
    reported: Cell<u64>,
    /// The next server has taken the session.
    opened: Cell<bool>,
    finishing: Cell<bool>,
    /// Set once: the status of what went wrong outside of a piece.
    failure: Cell<Option<Status>>,
    writes_under_way: Cell<usize>,
    /// Something above changed.
    changed: Notify,
    /// A packet is half received.
    amid_packet: Cell<bool>,
    last_writeid: Cell<u32>,
}

/// How a session went.
enum Outcome {
    /// WRITE_FINISH came, everything was reported.
    Clean,
    /// A status other than OK was sent; nothing follows.
    Failed,
    Hangup(Hangup),
}

impl Connection {
    pub(super) async fn write(&mut self, request: CltocsWrite) -> Result<(), Hangup> {
        let server = self.server.clone();
        let id = request.chunkid;
        let Some(_job) = server.begin_job() else {
            return self.send(write_status(id, 0, Status::NOTDONE).encode()).await;
        };
        let mut next = None;
        if let [first, rest @ ..] = request.chain.as_slice() {
            let mut opening = server.settings.own_ticket(id, ticket_rights::WRITE, server.ring.wall_seconds());
            opening.extend(CltocsWrite { chain: rest.to_vec(), ..request.clone() }.encode());
            let connecting = server.peers.connect(address_of(first), &opening);
            next = self.working(request.with_proto, connecting).await?;
            if next.is_none() {
                return self.send(write_status(id, 0, Status::CANTCONNECT).encode()).await;
            }
        }
        let opened = self.open(request.with_proto, id, request.version).await?;
        let chunk = match opened {
            Ok(chunk) => chunk,
            Err(error) => return self.send(write_status(id, 0, error.status()).encode()).await,
        };
        let session = Rc::new(Session::new(server.clone(), chunk.clone(), request, next.is_none()));
        server.store.begin_session(&chunk);
        let outcome = self.run_session(&session, next).await;
        // The table is written behind the client's back, but before another request of this connection.
        let ended = server.ring.spawn(async move { session.end().await });
        match outcome {
            Outcome::Clean => {
                ended.await;
                Ok(())
            }
            Outcome::Failed => {
                ended.await;
                Ok(())
            }
            Outcome::Hangup(hangup) => Err(hangup),
        }
    }

    async fn run_session(&mut self, session: &Rc<Session>, next: Option<BufferedReader>) -> Outcome {
        let (to_next, from_session) = channel(PIECES_MAX);
        let mut chain = Chain { session: session.clone(), next, said_finish: Cell::new(false) };
        let outcome = {
            let mut receive = pin!(receive(session, &mut self.reader, &to_next).fuse());
            let mut report = pin!(report(session, &self.stream).fuse());
            let mut downstream = pin!(chain.run(from_session).fuse());
            loop {
                select_biased! {
                    outcome = report => break outcome,
                    received = receive => match received {
                        Ok(()) => session.finish(),
                        Err(hangup) => break Outcome::Hangup(hangup),
                    },
                    status = downstream => session.fail(status),
                }
            }
        };
        self.last_sent = session.server.ring.now();
        match outcome {
            Outcome::Clean => {
                if let Some(reader) =
                    chain.next.take().filter(|_| chain.said_finish.get() && session.request.with_proto)
                {
                    session.server.peers.park(reader);
                }
                Outcome::Clean
            }
            Outcome::Failed => {
                let more_is_coming =
                    session.amid_packet.get() || !session.is_last || !self.reader.buffered().is_empty();
                if more_is_coming { Outcome::Hangup(Hangup::AfterError) } else { Outcome::Failed }
            }
            hangup => hangup,
        }
    }
}

impl Session {
    fn new(server: Rc<Server>, chunk: Rc<Chunk>, request: CltocsWrite, is_last: bool) -> Session {
        Session {
            server,
            chunk,
            request,
            is_last,
            pending: RefCell::default(),
            reported: Cell::new(0),
            opened: Cell::new(is_last),
            finishing: Cell::new(false),
            failure: Cell::new(None),
            writes_under_way: Cell::new(0),
            changed: Notify::new(),
            amid_packet: Cell::new(false),
            last_writeid: Cell::new(0),
        }
    }

    fn finish(&self) {
        self.finishing.set(true);
        self.changed.notify_all();
    }

    fn fail(&self, status: Status) {
        if self.failure.get().is_none() {
            self.failure.set(Some(status));
        }
        self.changed.notify_all();
    }

    /// Puts a piece in the line of those to be reported. Gives its number.
    fn expect_report(&self, writeid: u32, local: Option<Status>) -> u64 {
        let mut pending = self.pending.borrow_mut();
        pending.push_back(Pending { writeid, local, next_has_it: self.is_last });
        self.last_writeid.set(writeid);
        let number = self.reported.get() + pending.len() as u64 - 1;
        drop(pending);
        self.changed.notify_all();
        number
    }

    fn local_is_done(&self, number: u64, status: Status) {
        if let Some(at) = number.checked_sub(self.reported.get())
            && let Some(piece) = self.pending.borrow_mut().get_mut(at as usize)
        {
            piece.local = Some(status);
        }
        self.count_writes(-1);
        self.changed.notify_all();
    }

    fn count_writes(&self, change: isize) {
        for count in [&self.writes_under_way, &self.server.writes_under_way] {
            count.set(count.get().checked_add_signed(change).expect("each write is counted once"));
        }
    }

    /// After the last write: the table to disk, the file to its true length.
    async fn end(&self) {
        while self.writes_under_way.get() > 0 {
            let changed = self.changed.notified();
            if self.writes_under_way.get() > 0 {
                changed.await;
            }
        }
        self.server.store.end_session(&self.chunk).await;
    }
}

// --- from the client or the previous server

/// Takes pieces until WRITE_FINISH. Spec 20, 4.2 and 4.3.
async fn receive(session: &Rc<Session>, reader: &mut BufferedReader, to_next: &Sender<Forward>) -> Result<(), Hangup> {
    let ring = session.server.ring.clone();
    let mut last_piece_bytes = 0;
    loop {
        session.room_for_a_piece().await;
        let header = {
            // In a stream of large pieces only the head goes through the reader's buffer.
            let front_bytes = CltocsWriteData::FRONT_BYTES;
            let at_most = if last_piece_bytes >= STRAIGHT_BYTES { front_bytes } else { usize::MAX };
            let filled = reader.fill_within(HEADER_BYTES, at_most);
            let filled = ring.timeout(SILENCE_MAX, filled).await.map_err(|_| Hangup::Silent)?;
            Header::decode(filled?.first_chunk().expect("eight bytes were asked for"))
        };
        if header.length > wire::limits::DATA_PORT_BYTES_MAX {
            return Err(Hangup::TooLong { kind: header.kind, length: header.length });
        }
        session.amid_packet.set(true);
        match header.kind {
            CltocsWriteData::TYPE => {
                last_piece_bytes = header.length;
                receive_piece(session, reader, to_next, header).await?;
            }
            CltocsWriteFinish::TYPE => {
                let finish = receive_control::<CltocsWriteFinish>(session, reader, header).await?;
                session.amid_packet.set(false);
                let _ = to_next.send(Forward::Finish(finish.clone())).await; // a lost chain is reported by itself
                if finish.chunkid != session.request.chunkid || finish.version != session.request.version {
                    session.expect_report(
                        if session.is_last { session.last_writeid.get() } else { 0 },
                        Some(Status::WRONGCHUNKID),
                    );
                    return std::future::pending().await; // the report ends the session
                }
                return Ok(());
            }
            0 if header.length == 0 => {
                reader.consume(HEADER_BYTES);
                let _ = to_next.send(Forward::Nop).await;
            }
            _ if session.is_last => {
                // Other types mean nothing here.
                let whole = HEADER_BYTES + header.length as usize;
                ring.timeout(SILENCE_MAX, reader.fill(whole)).await.map_err(|_| Hangup::Silent)??;
                reader.consume(whole);
            }
            _ => return Err(Hangup::OutOfPlace("this packet in a write session")),
        }
        session.amid_packet.set(false);
    }
}

async fn receive_control<P: Packet>(
    session: &Session,
    reader: &mut BufferedReader,
    header: Header,
) -> Result<P, Hangup> {
    if header.length > super::CONTROL_BYTES_MAX {
        return Err(Hangup::TooLong { kind: header.kind, length: header.length });
    }
    let whole = HEADER_BYTES + header.length as usize;
    let filled = session.server.ring.timeout(SILENCE_MAX, reader.fill(whole)).await.map_err(|_| Hangup::Silent)?;
    let packet = P::decode(&filled?[HEADER_BYTES..whole]);
    reader.consume(whole);
    packet.map_err(|why| Hangup::BadPacket { kind: header.kind, why })
}

async fn receive_piece(
    session: &Rc<Session>,
    reader: &mut BufferedReader,
    to_next: &Sender<Forward>,
    header: Header,
) -> Result<(), Hangup> {
    let ring = &session.server.ring;
    if header.length < WRITE_DATA_HEAD_BYTES {
        let why = wire::WireError::Short { field: "write data" };
        return Err(Hangup::BadPacket { kind: header.kind, why });
    }
    let front_bytes = CltocsWriteData::FRONT_BYTES;
    let filled = ring.timeout(SILENCE_MAX, reader.fill(front_bytes)).await.map_err(|_| Hangup::Silent)??;
    let head = CltocsWriteData::decode_head(header.length, &filled[HEADER_BYTES..front_bytes])
        .map_err(|why| Hangup::BadPacket { kind: header.kind, why })?;
    reader.consume(front_bytes);
    session.server.store.counters.served_in_bytes.add(front_bytes as u64 + u64::from(head.size));
    if head.size > BLOCK_BYTES {
        // More than a buffer holds: answered at once, and the connection ends with the rest unread.
        let status = check_head(session, &head).err().unwrap_or(Status::WRONGSIZE);
        session.expect_report(head.writeid, Some(status));
        return std::future::pending().await;
    }
    let mut buffer = session.piece_buffer().await;
    let lead_bytes = buffer.lead().len();
    buffer.lead_mut()[lead_bytes - front_bytes..].copy_from_slice(&head.front());
    let size = head.size as usize;
    let received = ring.timeout(SILENCE_MAX, reader.read_into(buffer.slice(0..size))).await;
    let (result, buffer) = received.map_err(|_| Hangup::Silent)?;
    result?;
    let block = buffer.into_inner().share();
    if !session.is_last {
        let frame = Frame { block: block.clone(), size };
        let _ = to_next.send(Forward::Piece(frame)).await; // a lost chain is reported by itself
    }
    take_piece(session, head, block);
    Ok(())
}

/// Checks a piece and begins to write it, or puts its error in the line.
fn take_piece(session: &Rc<Session>, head: CltocsWriteData, frame: SharedBlock) {
    let checked = check_head(session, &head).and_then(|block| {
        let data = &frame.payload()[..head.size as usize];
        if sum_of(data) == head.crc { Ok(block) } else { Err(Status::CRC) }
    });
    let block = match checked {
        Ok(block) => block,
        Err(status) => {
            session.expect_report(head.writeid, Some(status));
            return;
        }
    };
    let number = session.expect_report(head.writeid, None);
    let turn = session.chunk.block_turn(block);
    let part = Part { block, offset_bytes: u32::from(head.offset), size_bytes: head.size };
    session.count_writes(1);
    let job = WriteJob { session: session.clone(), number, turn, part, sum: head.crc, block: frame };
    session.server.write_crew.give(job);
}

/// What the receiver checks before the sum, in order. Spec 20, 4.4.
fn check_head(session: &Session, head: &CltocsWriteData) -> Result<BlockIndex, Status> {
    if head.chunkid != session.request.chunkid {
        return Err(Status::WRONGCHUNKID);
    }
    let version = session.request.version;
    if version.0 != 0 && session.chunk.version() != Some(version) {
        return Err(Status::WRONGVERSION);
    }
    check_part(head.blocknum, head.offset, head.size)
}

fn check_part(blocknum: u16, offset: u16, size: u32) -> Result<BlockIndex, Status> {
    if blocknum >= BLOCKS_PER_CHUNK {
        return Err(Status::BNUMTOOBIG);
    }
    if size > BLOCK_BYTES {
        return Err(Status::WRONGSIZE);
    }
    if u32::from(offset) + size > BLOCK_BYTES {
        return Err(Status::WRONGOFFSET);
    }
    Ok(BlockIndex::new(u32::from(blocknum)).expect("below 1024"))
}

impl Session {
    /// Waits until few enough pieces wait for their report.
    async fn room_for_a_piece(&self) {
        loop {
            let changed = self.changed.notified();
            if self.pending.borrow().len() < PIECES_MAX {
                return;
            }
            changed.await;
        }
    }

    /// A buffer for the next piece. The more servers stand behind us, the more buffers we leave to others: a buffer
    /// comes back when those behind us have taken the piece, so they must find one when we hold ours. Who is last
    /// needs nobody. With fewer buffers than that, chains in opposite directions would wait for one another.
    async fn piece_buffer(&self) -> ring::Block {
        let ring = &self.server.ring;
        let left_to_others = self.request.chain.len().min(CHAIN_CLASSES) * self.server.buffers_per_class;
        while left_to_others > 0 && ring.free_buffers() <= left_to_others {
            ring.sleep(std::time::Duration::from_millis(1)).await;
        }
        ring.wait_buffer().await
    }
}

// --- back to the client or the previous server

/// Sends statuses in order, all that are ready in one send, and NOPs when there are none. Ends with the session.
async fn report(session: &Session, stream: &Stream) -> Outcome {
    let ring = &session.server.ring;
    let mut said_opened = false;
    let mut statuses = Vec::with_capacity(STATUSES_BYTES);
    loop {
        let changed = session.changed.notified();
        statuses.clear();
        let failed = session.ready_statuses(&mut said_opened, &mut statuses);
        if !statuses.is_empty() {
            match send_within(ring, stream, statuses).await {
                Ok(back) => statuses = back,
                Err(hangup) => return Outcome::Hangup(hangup),
            }
            if failed {
                return Outcome::Failed;
            }
            continue;
        }
        if session.finishing.get() && session.pending.borrow().is_empty() {
            return Outcome::Clean;
        }
        if ring.timeout(BUSY_NOP_AFTER, changed).await.is_err()
            && session.request.with_proto
            && let Err(hangup) = send_within(ring, stream, &NOP).await
        {
            return Outcome::Hangup(hangup);
        }
    }
}

impl Session {
    /// Encodes what can be reported now. True: the last of it ends the session.
    fn ready_statuses(&self, said_opened: &mut bool, statuses: &mut Vec<u8>) -> bool {
        if let Some(status) = self.failure.get() {
            let writeid = self.pending.borrow().front().map_or(0, |piece| piece.writeid);
            write_status(self.chunk_id(), writeid, status).encode_into(statuses);
            return true;
        }
        if self.opened.get() && !*said_opened {
            write_status(self.chunk_id(), 0, Status::OK).encode_into(statuses);
            *said_opened = true;
        }
        while *said_opened && let Some((writeid, status)) = self.next_report() {
            write_status(self.chunk_id(), writeid, status).encode_into(statuses);
            if status != Status::OK {
                return true;
            }
        }
        false
    }

    /// Takes the oldest piece out of the line if all who must have it do, or if one of them failed.
    fn next_report(&self) -> Option<(u32, Status)> {
        let mut pending = self.pending.borrow_mut();
        let piece = pending.front()?;
        let status = piece.local?;
        if status == Status::OK && !piece.next_has_it {
            return None;
        }
        let piece = pending.pop_front().expect("the front was just seen");
        self.reported.set(self.reported.get() + 1);
        drop(pending);
        self.changed.notify_all(); // there is room for another piece
        Some((piece.writeid, status))
    }
}

/// Sends; gives the buffer back.
async fn send_within<B: IoBuf>(ring: &ring::Ring, stream: &Stream, bytes: B) -> Result<B, Hangup> {
    let sent = ring.timeout(SEND_MAX, stream.send_all(bytes)).await;
    let (result, bytes) = sent.map_err(|_| Hangup::Stuck)?;
    result?;
    Ok(bytes)
}

// --- to and from the next server

struct Chain {
    session: Rc<Session>,
    next: Option<BufferedReader>,
    said_finish: Cell<bool>,
}

impl Chain {
    /// Forwards pieces and takes the next server's statuses. Ends only when the chain is broken, with a status that
    /// says how. The last server has no chain, which never breaks.
    async fn run(&mut self, mut from_session: Receiver<Forward>) -> Status {
        let Some(reader) = self.next.as_mut() else {
            // Controls are queued for a next server that there is not.
            while from_session.recv().await.is_some() {}
            return std::future::pending().await;
        };
        let stream = reader.stream().clone();
        let mut forward = pin!(forward(&self.session, &stream, from_session, &self.said_finish).fuse());
        let mut statuses = pin!(take_statuses(&self.session, reader).fuse());
        loop {
            select_biased! {
                broken = statuses => return broken,
                forwarded = forward => if forwarded.is_err() {
                    return Status::DISCONNECTED;
                },
            }
        }
    }
}

/// Sends what comes, all that is there in one send, and NOPs when nothing does, until WRITE_FINISH was passed on.
async fn forward(
    session: &Session,
    stream: &Stream,
    mut from_session: Receiver<Forward>,
    said_finish: &Cell<bool>,
) -> Result<(), Hangup> {
    let ring = &session.server.ring;
    let mut gather = Gather::new();
    loop {
        match ring.timeout(BUSY_NOP_AFTER, from_session.recv()).await {
            Ok(Some(first)) => {
                let mut is_finish = gather_forward(&mut gather, first);
                while !is_finish
                    && gather.has_room(CONTROL_BYTES)
                    && let Some(next) = from_session.try_recv()
                {
                    is_finish = gather_forward(&mut gather, next);
                }
                let packets = gather.total_bytes().div_ceil(BLOCK_BYTES as usize) as u32;
                let sent = ring.timeout(SEND_MAX * packets, stream.send_gather(gather)).await;
                let (result, back) = sent.map_err(|_| Hangup::Stuck)?;
                gather = back;
                gather.clear();
                result?;
                if is_finish {
                    said_finish.set(true);
                    return Ok(());
                }
            }
            Ok(None) => return Ok(()),
            Err(_) if session.request.with_proto => {
                send_within(ring, stream, &NOP).await?;
            }
            Err(_) => {}
        }
    }
}

/// Bytes of a packet of ours without data, at most.
const CONTROL_BYTES: usize = 32;

/// Puts in what goes to the next server. True: it is the session's end.
fn gather_forward(gather: &mut Gather, forward: Forward) -> bool {
    match forward {
        Forward::Piece(Frame { block, size }) => gather.push_framed(block, CltocsWriteData::FRONT_BYTES, size),
        Forward::Nop => gather.push(&NOP),
        Forward::Finish(finish) => {
            gather.push(&finish.encode());
            return true;
        }
    }
    false
}

/// Notes which pieces the rest of the chain has. Gives the status that breaks the chain.
async fn take_statuses(session: &Session, reader: &mut BufferedReader) -> Status {
    loop {
        let header = match reader.fill(HEADER_BYTES).await {
            Ok(bytes) => Header::decode(bytes.first_chunk().expect("eight bytes were asked for")),
            Err(_) => return Status::DISCONNECTED,
        };
        if header.length > super::CONTROL_BYTES_MAX {
            return Status::DISCONNECTED;
        }
        let whole = HEADER_BYTES + header.length as usize;
        let Ok(bytes) = reader.fill(whole).await else { return Status::DISCONNECTED };
        let status = match header.kind {
            CstoclWriteStatus::TYPE => match CstoclWriteStatus::decode(&bytes[HEADER_BYTES..whole]) {
                Ok(status) => Some(status),
                Err(_) => return Status::DISCONNECTED,
            },
            _ => None, // NOPs and whatever else: dropped
        };
        reader.consume(whole);
        if let Some(status) = status
            && let Err(broken) = session.next_answered(&status)
        {
            return broken;
        }
    }
}

impl Session {
    /// One status of the next server. Errors: what breaks the chain.
    fn next_answered(&self, answer: &CstoclWriteStatus) -> Result<(), Status> {
        answer.status.into_result()?;
        if answer.chunkid != self.chunk_id() {
            return Err(Status::DISCONNECTED);
        }
        if answer.writeid == 0 {
            self.opened.set(true);
            self.changed.notify_all();
            return Ok(());
        }
        let mut pending = self.pending.borrow_mut();
        let oldest = pending.iter_mut().find(|piece| !piece.next_has_it).ok_or(Status::DISCONNECTED)?;
        if oldest.writeid != answer.writeid {
            return Err(Status::DISCONNECTED);
        }
        oldest.next_has_it = true;
        drop(pending);
        self.changed.notify_all();
        Ok(())
    }

    fn chunk_id(&self) -> ChunkId {
        self.request.chunkid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_checked_in_the_order_of_the_specification() {
        let status = |blocknum, offset, size| check_part(blocknum, offset, size).err();
        assert_eq!(status(1024, 65_535, 70_000), Some(Status::BNUMTOOBIG));
        assert_eq!(status(1023, 65_535, 70_000), Some(Status::WRONGSIZE));
        assert_eq!(status(0, 65_535, 2), Some(Status::WRONGOFFSET));
        assert_eq!(status(0, 1, 65_536), Some(Status::WRONGOFFSET));
        assert_eq!(status(1023, 65_535, 1), None);
        assert_eq!(status(0, 0, 0), None);
    }
}
