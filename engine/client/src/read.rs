//! Reading: from a handle's range to verified bytes. Spec 20, 3.2; Spec 72, 5.2.
//!
//! `read` settles what this client has not sent yet, takes what read-ahead has, and fetches the rest. `fetch` asks
//! the master where a chunk is, picks a server, and goes on at the byte reached with the next server when one fails:
//! every byte that counts was verified against the CRC that came with it, so going on is as good as starting anew.
//!
//! One block: one receive into its own 64 KiB buffer, one CRC pass, no copy; readers get slices of that buffer.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::rc::Rc;
use std::time::Duration;

use wire::limits::{BLOCK_BYTES, CHUNK_BYTES, READ_DATA_HEAD_BYTES};
use wire::{CltocsRead, CltomaFuseReadChunk, CstoclReadData, CstoclReadStatus, MatoclFuseReadChunk, Packet, Status};

use crate::Errno;
use crate::client::Inner;
use crate::files::{File, Open};
use crate::locations::{ChunkLocation, Server};
use crate::pool::Lost;
use crate::readahead::{Segment, Unserved, chunk_end};
use crate::retry::{Direction, Failure, Tries};
use crate::types::{Piece, ReadData};

/// No byte for so long: the server is given up. Spec 20, 3.2.
const SILENCE: Duration = Duration::from_secs(2);
/// The same when there is nobody else to ask; 4.x clients wait as long.
const SILENCE_LAST_COPY: Duration = Duration::from_secs(5);
/// Bytes that were changed while they were read are read again this often; after that, bytes from before and after
/// the change may stand side by side, as when two processes use one local file.
const STALE_RETRIES: u32 = 4;
/// Servers that get the form with the protocol byte. Spec 20, 3.2.
const PROTO_SINCE: (u16, u8, u8) = (1, 7, 32);
/// Blocks' buffers kept for the next read.
const BUFFERS_KEPT: usize = 512;

/// Buffers of one block each: lent to readers, and taken back once nobody holds them.
#[derive(Default)]
pub(crate) struct Buffers {
    lent: RefCell<VecDeque<Rc<Vec<u8>>>>,
    zeros: RefCell<Option<Rc<Vec<u8>>>>,
}

impl Buffers {
    /// `size` bytes to be overwritten.
    fn take(&self, size: usize) -> Vec<u8> {
        if size != BLOCK_BYTES as usize {
            return vec![0; size];
        }
        let mut lent = self.lent.borrow_mut();
        for _ in 0..lent.len().min(4) {
            let oldest = lent.pop_front().expect("counted above");
            match Rc::try_unwrap(oldest) {
                Ok(buffer) => return buffer,
                Err(still_held) => lent.push_back(still_held),
            }
        }
        vec![0; size]
    }

    fn lend(&self, buffer: Vec<u8>) -> Rc<Vec<u8>> {
        let buffer = Rc::new(buffer);
        if buffer.len() == BLOCK_BYTES as usize {
            let mut lent = self.lent.borrow_mut();
            if lent.len() >= BUFFERS_KEPT {
                lent.pop_front();
            }
            lent.push_back(buffer.clone());
        }
        buffer
    }

    /// A block of zeros that all holes share.
    fn zeros(&self) -> Rc<Vec<u8>> {
        self.zeros.borrow_mut().get_or_insert_with(|| Rc::new(vec![0; BLOCK_BYTES as usize])).clone()
    }
}

impl Inner {
    /// Bytes `offset..offset + size` of an open file, fewer only at its end. Errors: what the tries end with.
    pub(crate) async fn read_file(self: &Rc<Self>, open: &Rc<Open>, offset: u64, size: u32) -> Result<ReadData, Errno> {
        let file = &open.file;
        let asked_end = offset.checked_add(u64::from(size)).filter(|end| *end <= wire::limits::FILE_BYTES_MAX);
        let asked_end = asked_end.ok_or(Errno::EFBIG)?;
        if size == 0 {
            return Ok(ReadData::default());
        }
        self.files.note_read(file.inode, self.master.clock(&self.ring));
        let mut attempt = 0;
        loop {
            self.settle(file, offset, asked_end).await;
            let end = asked_end.min(file.length());
            if offset >= end {
                return Ok(ReadData::default());
            }
            match self.read_settled(open, offset, end, attempt >= STALE_RETRIES).await {
                Ok(pieces) => return Ok(ReadData { pieces }),
                Err(Unserved::Failed(errno)) => return Err(errno),
                Err(Unserved::Stale) => attempt += 1,
            }
        }
    }

    async fn read_settled(
        self: &Rc<Self>,
        open: &Rc<Open>,
        start: u64,
        end: u64,
        even_stale: bool,
    ) -> Result<Vec<Piece>, Unserved> {
        let file = &open.file;
        let (ahead, is_sequential) = open.reader.advance(start, end, file.length());
        let mut pieces = Vec::new();
        let mut at = start;
        let mut wanted = Vec::new();
        // First start everything that this read needs, then what the next ones will need, then wait.
        while at < end {
            let (segment, is_ours) = match open.reader.find(at) {
                Some(segment) => (segment, false),
                None => {
                    let segment = Segment::new(at..end.min(chunk_end(at)), None);
                    if is_sequential {
                        open.reader.add(segment.clone());
                    }
                    (segment, true)
                }
            };
            at = segment.end;
            wanted.push((segment, is_ours));
        }
        let is_only_one = wanted.len() == 1 && !is_sequential;
        if !is_only_one {
            for (segment, is_ours) in &wanted {
                if *is_ours {
                    self.spawn_fetch(open, segment);
                }
            }
            self.read_ahead(open, ahead);
        }
        for (segment, is_ours) in wanted {
            if is_only_one && is_ours {
                // A random read: nobody else will want this, so no task for it.
                self.fetch(file, &segment).await.map_err(Unserved::Failed)?;
            }
            let upto = end.min(segment.end);
            match segment.wait(upto, even_stale).await {
                Ok(()) => segment.slices(start.max(segment.start), upto, &mut pieces),
                Err(Unserved::Failed(errno)) => {
                    open.reader.remove(&segment);
                    // Read-ahead may have failed before anybody asked; who asks gets tries of his own.
                    return Err(if is_ours || even_stale { Unserved::Failed(errno) } else { Unserved::Stale });
                }
                Err(Unserved::Stale) => return Err(Unserved::Stale),
            }
        }
        if end == file.length() {
            open.reader.forget_before(end); // nobody reads on from here
        }
        Ok(pieces)
    }

    /// Starts fetching ranges nobody has asked for yet, as far as memory goes. A file with unsent data is not read
    /// ahead: the chunkservers do not have its bytes yet.
    fn read_ahead(self: &Rc<Self>, open: &Rc<Open>, ranges: Vec<std::ops::Range<u64>>) {
        if !open.file.dirty.is_empty() {
            return;
        }
        for range in ranges {
            let size = usize::try_from(range.end - range.start).expect("a segment is smaller than a chunk");
            let Some(share) = self.read_ahead_budget.try_take(size) else {
                open.reader.shrink();
                return;
            };
            let segment = Segment::new(range, Some(share));
            open.reader.add(segment.clone());
            self.spawn_fetch(open, &segment);
        }
    }

    fn spawn_fetch(self: &Rc<Self>, open: &Rc<Open>, segment: &Rc<Segment>) {
        let (inner, file, segment) = (self.clone(), open.file.clone(), segment.clone());
        drop(self.ring.spawn(async move {
            if let Err(errno) = inner.fetch(&file, &segment).await {
                segment.fail(errno);
            }
        }));
    }

    /// Fills a segment. Returns early, with success, when the segment is stale and nobody will use it.
    async fn fetch(self: &Rc<Self>, file: &Rc<File>, segment: &Segment) -> Result<(), Errno> {
        let index = chunk_index(segment.start);
        let mut tries = Tries::new(Direction::Read, &self.settings);
        let mut failed_servers: Vec<SocketAddrV4> = Vec::new();
        while segment.position() < segment.end {
            let failure = match self.locate(file, index).await? {
                Err(status) => Failure::Master(status),
                Ok(location) if location.is_hole() => {
                    self.fill_with_zeros(segment);
                    continue;
                }
                Ok(location) if location.servers.is_empty() => {
                    self.locations.forget(file.inode, index);
                    Failure::NoServers
                }
                Ok(location) => match self.read_from_any(&location, segment, &mut failed_servers).await {
                    Ok(()) => {
                        self.check_still_there(file, index, &location, segment);
                        continue;
                    }
                    Err(failure) => {
                        self.locations.forget(file.inode, index);
                        failure
                    }
                },
            };
            let pause = tries.after(self.ring.now(), failure).inspect_err(|errno| {
                tracing::warn!("inode {} chunk {index}: {failure:?}, giving up: {errno}", file.inode);
            })?;
            if tries.count() >= 5 {
                tracing::info!("inode {} chunk {index}: {failure:?}, try {}", file.inode, tries.count());
            }
            if !pause.is_zero() {
                failed_servers.clear();
                self.ring.sleep(pause).await;
            }
        }
        Ok(())
    }

    /// The location must be the same as before the read; else the bytes may be of a chunk that is no longer the
    /// file's, and are read again. Spec 20, 3.2.
    fn check_still_there(&self, file: &File, index: u32, used: &ChunkLocation, segment: &Segment) {
        if let Some(now) = self.locations.get(file.inode, index)
            && (now.chunkid, now.version) != (used.chunkid, used.version)
            && !segment.is_stale()
        {
            segment.restart();
        }
    }

    fn fill_with_zeros(&self, segment: &Segment) {
        let zeros = self.buffers.zeros();
        while segment.position() < segment.end {
            let size = usize::try_from(segment.end - segment.position()).expect("inside a chunk").min(zeros.len());
            segment.push(Piece { buffer: zeros.clone(), range: 0..size });
        }
    }

    /// Where a chunk of a file is: from the cache, or from the master. The inner error is the master's status.
    pub(crate) async fn locate(&self, file: &File, index: u32) -> Result<Result<ChunkLocation, Status>, Errno> {
        if let Some(location) = self.locations.get(file.inode, index).or_else(|| file.dirty.granted(index)) {
            return Ok(Ok(location));
        }
        let mut tries_left = 5;
        loop {
            let notices = file.notices.get();
            let answer: Result<MatoclFuseReadChunk, Status> = self
                .ask_status(|msgid| CltomaFuseReadChunk { msgid, inode: file.inode, index, chunkopflags: Some(0) })
                .await?;
            let answer = match answer {
                Ok(answer) => answer,
                Err(status) => return Ok(Err(status)),
            };
            let location = ChunkLocation::new(answer.chunkid, answer.version, &answer.locations, answer.ticket);
            // A notice that came meanwhile may be newer than this answer, or older: ask again.
            tries_left -= 1;
            if notices == file.notices.get() {
                file.master_length.set(answer.length);
                if !location.servers.is_empty() || location.is_hole() {
                    self.remember_location(file.inode, index, &location);
                }
                return Ok(Ok(location));
            }
            if tries_left == 0 {
                return Ok(Ok(location));
            }
        }
    }

    /// Tries the servers of a location one after the other until the segment is full. Errors: how the last one
    /// failed.
    async fn read_from_any(
        self: &Rc<Self>,
        location: &ChunkLocation,
        segment: &Segment,
        failed: &mut Vec<SocketAddrV4>,
    ) -> Result<(), Failure> {
        let mut last = Failure::NoServers;
        let mut untried = location.servers.len();
        while untried > 0 {
            let preference = &self.settings.preference;
            let server = self.pool.choose(self.ring.now(), &location.servers, preference, failed);
            let Some(server) = server else { break };
            let address = server.address();
            let is_last_copy = untried == 1;
            let before = segment.position();
            match self.read_from(&server, location, segment, is_last_copy).await {
                Ok(()) => return Ok(()),
                Err(ReadFailure { failure, was_stale_connection }) => {
                    if was_stale_connection && segment.position() == before {
                        continue; // the server had hung up on a parked connection: that says nothing about it
                    }
                    tracing::debug!("read of chunk {} from {address}: {failure:?}", location.chunkid);
                    // NOTDONE is a busy server and not a bad one.
                    if failure != Failure::Server(Status::NOTDONE) {
                        self.pool.distrust(self.ring.now(), address);
                    }
                    failed.push(address);
                    untried -= 1;
                    last = failure;
                }
            }
        }
        Err(last)
    }

    /// One READ for the rest of the segment. Spec 20, 3.
    async fn read_from(
        self: &Rc<Self>,
        server: &Server,
        location: &ChunkLocation,
        segment: &Segment,
        is_last_copy: bool,
    ) -> Result<(), ReadFailure> {
        let address = server.address();
        let _busy = self.pool.busy(address);
        let silence = if is_last_copy { SILENCE_LAST_COPY } else { SILENCE };
        let patience = Duration::from_millis(if is_last_copy { 2000 } else { 400 });
        let connection = self.pool.connect(&self.ring, address, self.bind(), patience).await;
        let mut connection = match connection {
            Ok(connection) => connection,
            Err(error) => {
                tracing::debug!("chunkserver {address}: {error}");
                return Err(ReadFailure { failure: Failure::CannotConnect, was_stale_connection: false });
            }
        };
        let was_used = connection.is_used;
        let mut has_answered = false;
        let failed = |failure, has_answered: bool| ReadFailure {
            failure,
            was_stale_connection: was_used && !has_answered && failure == Failure::Broken,
        };

        let chunk_start = u64::from(chunk_index(segment.start)) * u64::from(CHUNK_BYTES);
        let offset = in_chunk(segment.position() - chunk_start);
        let size = in_chunk(segment.end - segment.position());
        let with_proto = server.version.at_least(PROTO_SINCE.0, PROTO_SINCE.1, PROTO_SINCE.2);
        let request = CltocsRead { with_proto, chunkid: location.chunkid, version: location.version, offset, size };
        let request = connection.with_ticket(location.ticket.as_ref(), request.encode());
        if connection.stream.send_all(request).await.0.is_err() {
            return Err(failed(Failure::Broken, has_answered));
        }
        loop {
            let header = connection
                .next_header(&self.ring, silence, true)
                .await
                .map_err(|_| failed(Failure::Broken, has_answered))?;
            has_answered = true;
            match header.kind {
                CstoclReadData::TYPE => {
                    let data = self.receive_block(&mut connection, header.length, location, segment, silence).await;
                    let data = data.map_err(|failure| failed(failure, true))?;
                    segment.push(data);
                }
                CstoclReadStatus::TYPE if header.length == 9 => {
                    let head = connection.head(&self.ring, silence, 9).await;
                    let head = head.map_err(|_| failed(Failure::Broken, true))?;
                    let status = CstoclReadStatus::decode(head).map_err(|_| failed(Failure::Broken, true))?;
                    connection.reader.consume(9);
                    if status.chunkid != location.chunkid {
                        return Err(failed(Failure::Broken, true));
                    }
                    let is_whole = segment.position() == segment.end;
                    if status.status.is_ok() && !is_whole {
                        return Err(failed(Failure::Broken, true)); // it ended too early
                    }
                    // After a status the connection is idle again, also after errors. Spec 20, 3.1.
                    self.pool.park(self.ring.now(), connection);
                    return status.status.into_result().map_err(|status| failed(Failure::Server(status), true));
                }
                _ => return Err(failed(Failure::Broken, true)),
            }
        }
    }

    /// The rest of a READ_DATA, verified.
    async fn receive_block(
        &self,
        connection: &mut crate::pool::Connection,
        length: u32,
        location: &ChunkLocation,
        segment: &Segment,
        silence: Duration,
    ) -> Result<Piece, Failure> {
        let broken = |_: Lost| Failure::Broken;
        let head = connection.head(&self.ring, silence, READ_DATA_HEAD_BYTES as usize).await.map_err(broken)?;
        let data = CstoclReadData::decode_head(length, head).map_err(|_| Failure::Broken)?;
        connection.reader.consume(READ_DATA_HEAD_BYTES as usize);
        // Exactly the part of the block that comes next. Spec 20, 3.1.
        let at = in_chunk(segment.position() % u64::from(CHUNK_BYTES));
        let left = segment.end - segment.position();
        let expected_size = u64::from(BLOCK_BYTES - at % BLOCK_BYTES).min(left);
        let is_expected = data.chunkid == location.chunkid
            && u32::from(data.blocknum) == at / BLOCK_BYTES
            && u32::from(data.offset) == at % BLOCK_BYTES
            && u64::from(data.size) == expected_size;
        if !is_expected {
            return Err(Failure::Broken);
        }
        let size = data.size as usize;
        let buffer = self.buffers.take(size);
        let buffer = connection.data(&self.ring, silence, buffer).await.map_err(broken)?;
        if crc32fast::hash(&buffer) != data.crc.0 {
            tracing::warn!("chunk {} block {} from {}: wrong CRC", data.chunkid, data.blocknum, connection.address);
            return Err(Failure::Server(Status::CRC));
        }
        Ok(Piece { buffer: self.buffers.lend(buffer), range: 0..size })
    }
}

struct ReadFailure {
    failure: Failure,
    /// The connection came from the pool and ended before any answer.
    was_stale_connection: bool,
}

/// The chunk that holds this position of a file.
pub(crate) fn chunk_index(position: u64) -> u32 {
    u32::try_from(position / u64::from(CHUNK_BYTES)).expect("positions are below FILE_BYTES_MAX, checked on entry")
}

/// A length or position inside a chunk.
pub(crate) fn in_chunk(bytes: u64) -> u32 {
    u32::try_from(bytes).expect("not larger than a chunk")
}
