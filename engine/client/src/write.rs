//! Writing: from a handle's bytes to acknowledged blocks on every copy. Spec 20, 4.6; Spec 72, 5.3.
//!
//! `write_file` puts bytes into the queue of their chunk and returns; memory is bounded by a budget that writers wait
//! for. Each chunk with unsent data has one task, at most `CHUNKS_AT_ONCE` per file: WRITE_CHUNK at the master, one
//! session down the chain of chunkservers (`session`), WRITE_CHUNK_END. What a session could not get acknowledged
//! goes back to the head of the queue, in order, and into the next session.
//!
//! Data is not copied: a block is a slice of the buffer that the writer gave, and leaves in one send with its header.
//! Only small neighbouring writes are joined, in a buffer of their own, so that a block costs one packet.
//!
//! Small files: create, write and close cost CREATE, WRITE_CHUNK (asked for at the first write), one round trip to
//! the chain and WRITE_CHUNK_END; nothing waits for a timer.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use ring::local::Notify;
use ring::{Instant, IoBufExt};
use wire::limits::{BLOCK_BYTES, CHUNK_BYTES};
use wire::{
    AmtimeEntryLong, AntoanNop, ChainServer, CltocsWrite, CltocsWriteData, CltocsWriteFinish, CltomaFuseWriteChunk,
    CltomaFuseWriteChunkEnd, CltomaWriteUncleanEnd, Crc, CstoclWriteStatus, MatoclFuseWriteChunk, Packet, Status, Time,
    chunk_op_flags,
};

use crate::Errno;
use crate::client::Inner;
use crate::files::{File, Open, Share};
use crate::locations::{ChunkLocation, Server};
use crate::pool::{Connection, Lost};
use crate::read::{chunk_index, in_chunk};
use crate::retry::{Direction, Failure, Tries};
use crate::types::WriteData;
use crate::unsynced::Syncing;

/// Chunks of one file that are written at the same time. Spec 20, 4.6.
const CHUNKS_AT_ONCE: u32 = 16;
/// Statuses waited for in one session, the initial one included. Spec 20, 4.6.
const OUTSTANDING_MAX: usize = 64;
/// A block that is not full waits this long for more. Spec 20, 4.6.
const PARTIAL_BLOCK_DELAY: Duration = Duration::from_millis(50);
/// A session without data ends after this. Spec 20, 4.6.
const IDLE_SPAN: Duration = Duration::from_millis(100);
/// New blocks go into a session for so long; the chunk's lock at the master lasts 120 s. Spec 20, 4.6.
const SESSION_SPAN: Duration = Duration::from_secs(25);
/// No byte from the chain while statuses are due. 3.x gives up after 2 s, 4.x after 5 s. Spec 20, 4.6.
const SILENCE: Duration = Duration::from_secs(5);
const NOP_AFTER: Duration = Duration::from_secs(1);
/// Connect tries to the head of the chain.
const CONNECT_PATIENCE: Duration = Duration::from_secs(1);
const PROTO_SINCE: (u16, u8, u8) = (1, 7, 32);

/// Unsent data of one file.
#[derive(Default)]
pub(crate) struct Dirty {
    chunks: RefCell<BTreeMap<u32, Rc<ChunkWriter>>>,
    /// End of the furthest write that the master's length does not cover yet; 0: none.
    end: Cell<u64>,
    active: Cell<u32>,
    /// Flushes that wait; writers wait for them.
    flushing: Cell<u32>,
    /// A block was acknowledged, a chunk is done, a flush has ended, or an error was set.
    changed: Notify,
}

impl Dirty {
    pub(crate) fn end(&self) -> u64 {
        self.end.get()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.borrow().is_empty()
    }

    /// Where a chunk is that we are writing: the master would let a READ_CHUNK wait until we have finished.
    pub(crate) fn granted(&self, index: u32) -> Option<ChunkLocation> {
        self.chunks.borrow().get(&index)?.granted.borrow().clone()
    }
}

/// Unsent data of one chunk.
struct ChunkWriter {
    index: u32,
    state: RefCell<Queue>,
    /// Something for the session's sender: data, an acknowledgement, a flush.
    wake: Notify,
    is_active: Cell<bool>,
    /// What was sent in the session under way was dropped: nobody waits for its end.
    was_dropped: Cell<bool>,
    /// A reader waits for these bytes: send partial blocks at once.
    is_urgent: Cell<bool>,
    /// The superuser wrote some of it.
    by_root: Cell<bool>,
    /// Where the chunk is, while the master holds it locked for us.
    granted: RefCell<Option<ChunkLocation>>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Block>,
    /// Sent, not acknowledged, oldest first.
    sent: VecDeque<(u32, Block)>,
}

/// Bytes for one block or a part of it.
pub(crate) struct Block {
    number: u16,
    /// Inside the block.
    start: u32,
    end: u32,
    bytes: Bytes,
    /// The memory that the bytes are counted in; free when the last holder drops it.
    shares: Vec<Rc<Share>>,
}

enum Bytes {
    /// A slice of what a writer gave.
    Given(Rc<Vec<u8>>, Range<usize>),
    /// Joined from several writes.
    Joined(Vec<u8>),
}

impl Block {
    fn is_full(&self) -> bool {
        self.start == 0 && self.end == BLOCK_BYTES
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    /// Every byte of the other one, which is of the same block, is overwritten by these.
    pub(crate) fn covers(&self, other: &Block) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// The same in no more memory than it takes, if nobody else has the bytes.
    pub(crate) fn shrunk(mut self) -> Block {
        if let Bytes::Given(buffer, range) = &mut self.bytes
            && let Some(only) = Rc::get_mut(buffer)
            && only.capacity() > 2 * range.len()
        {
            *buffer = Rc::new(only[range.clone()].to_vec());
            *range = 0..buffer.len();
        }
        self
    }

    /// Forgets the bytes behind `length_bytes`, counted from the block's beginning. False if none is left.
    pub(crate) fn cut(&mut self, length_bytes: u32) -> bool {
        if length_bytes < self.end {
            let size = length_bytes.saturating_sub(self.start);
            match &mut self.bytes {
                Bytes::Given(_, range) => range.end = range.start + size as usize,
                Bytes::Joined(buffer) => buffer.truncate(size as usize),
            }
            self.end = self.start + size;
        }
        self.end > self.start
    }

    /// Position of the end inside the chunk.
    fn end_in_chunk(&self) -> u32 {
        u32::from(self.number) * BLOCK_BYTES + self.end
    }

    fn overlaps(&self, range: &Range<u32>) -> bool {
        let base = u32::from(self.number) * BLOCK_BYTES;
        base + self.start < range.end && range.start < base + self.end
    }

    fn slice(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Given(buffer, range) => &buffer[range.clone()],
            Bytes::Joined(buffer) => buffer,
        }
    }

    /// True if the bytes of a newer write to the same block touch or overlap these: one packet can carry both.
    fn touches(&self, newer: &Block) -> bool {
        newer.start <= self.end && self.start <= newer.end
    }

    /// Puts newer bytes over and beside these.
    fn join(&mut self, newer: Block) {
        assert!(self.touches(&newer), "joined bytes touch");
        let end = self.end.max(newer.end);
        match &mut self.bytes {
            Bytes::Joined(buffer) if newer.start >= self.start => {
                let (at, bytes) = ((newer.start - self.start) as usize, newer.slice());
                let overlap = (buffer.len() - at).min(bytes.len());
                buffer[at..at + overlap].copy_from_slice(&bytes[..overlap]);
                buffer.extend_from_slice(&bytes[overlap..]);
            }
            _ => {
                let start = self.start.min(newer.start);
                let mut buffer = Vec::with_capacity(BLOCK_BYTES as usize);
                buffer.resize((end - start) as usize, 0);
                for block in [&*self, &newer] {
                    buffer[(block.start - start) as usize..][..block.slice().len()].copy_from_slice(block.slice());
                }
                self.bytes = Bytes::Joined(buffer);
                self.start = start;
            }
        }
        self.end = end;
        debug_assert_eq!(self.slice().len(), (self.end - self.start) as usize);
        for share in newer.shares {
            self.add_share(share);
        }
    }

    /// Counts one share more; many small writes make one share, not many.
    fn add_share(&mut self, share: Rc<Share>) {
        let share = match Rc::try_unwrap(share) {
            Ok(alone) => alone,
            Err(held_by_others) => return self.shares.push(held_by_others),
        };
        match self.shares.last_mut().and_then(Rc::get_mut) {
            Some(own) => own.absorb(share),
            None => self.shares.push(Rc::new(share)),
        }
    }

    /// The bytes as something that can be sent while the block stays in the queue.
    fn lend(&mut self) -> (Rc<Vec<u8>>, Range<usize>) {
        if let Bytes::Joined(buffer) = &mut self.bytes {
            let buffer = std::mem::take(buffer);
            let range = 0..buffer.len();
            self.bytes = Bytes::Given(Rc::new(buffer), range);
        }
        match &self.bytes {
            Bytes::Given(buffer, range) => (buffer.clone(), range.clone()),
            Bytes::Joined(_) => unreachable!("made Given above"),
        }
    }
}

impl ChunkWriter {
    fn new(index: u32) -> Rc<ChunkWriter> {
        Rc::new(ChunkWriter {
            index,
            state: RefCell::default(),
            wake: Notify::new(),
            is_active: Cell::new(false),
            was_dropped: Cell::new(false),
            is_urgent: Cell::new(false),
            by_root: Cell::new(false),
            granted: RefCell::default(),
        })
    }

    fn is_empty(&self) -> bool {
        let state = self.state.borrow();
        state.waiting.is_empty() && state.sent.is_empty()
    }

    fn overlaps(&self, range: &Range<u32>) -> bool {
        let state = self.state.borrow();
        state.waiting.iter().any(|block| block.overlaps(range))
            || state.sent.iter().any(|(_, block)| block.overlaps(range))
    }

    /// Puts a part of one block into the queue: into the newest unsent bytes of that block if it touches them.
    fn add(&self, block: Block) {
        let mut state = self.state.borrow_mut();
        let newest = state.waiting.iter_mut().rev().find(|other| other.number == block.number);
        match newest {
            Some(newest) if block.is_full() => *newest = block,
            Some(newest) if newest.touches(&block) => newest.join(block),
            _ => state.waiting.push_back(block),
        }
        drop(state);
        self.wake.notify_one();
    }

    /// What was sent and not acknowledged goes first in the next session.
    fn put_back(&self) {
        let mut state = self.state.borrow_mut();
        while let Some((_, block)) = state.sent.pop_back() {
            state.waiting.push_front(block);
        }
    }

    fn drop_all(&self) {
        let mut state = self.state.borrow_mut();
        state.waiting.clear();
        state.sent.clear();
        drop(state);
        self.was_dropped.set(true);
        self.wake.notify_one();
    }
}

impl Inner {
    /// Takes bytes into the write cache. Waits for memory, and for a flush of the file that is under way.
    /// Errors: EFBIG; ENOSPC and the like of an append that the master refuses.
    pub(crate) async fn write_file(self: &Rc<Self>, open: &Open, offset: u64, data: WriteData) -> Result<u32, Errno> {
        let file = &open.file;
        let size = data.len();
        let written = u32::try_from(size).map_err(|_| Errno::EFBIG)?;
        if size == 0 {
            return Ok(0);
        }
        while file.dirty.flushing.get() > 0 {
            file.dirty.changed.notified().await;
        }
        let mut share = Some(Rc::new(self.write_budget.take(size).await));
        let end = offset.checked_add(size as u64).filter(|end| *end <= wire::limits::FILE_BYTES_MAX);
        let end = end.ok_or(Errno::EFBIG)?;

        let WriteData { buffer, range } = data;
        let buffer = Rc::new(buffer);
        let mut at = offset;
        let mut from = range.start;
        while at < end {
            let in_chunk_at = in_chunk(at % u64::from(CHUNK_BYTES));
            let start = in_chunk_at % BLOCK_BYTES;
            let length = u64::from(BLOCK_BYTES - start).min(end - at);
            let until = from + usize::try_from(length).expect("at most a block");
            let is_last = at + length == end;
            let share = if is_last { share.take() } else { share.clone() };
            let block = Block {
                number: u16::try_from(in_chunk_at / BLOCK_BYTES).expect("1024 blocks a chunk"),
                start,
                end: start + in_chunk(length),
                bytes: Bytes::Given(buffer.clone(), from..until),
                shares: share.into_iter().collect(),
            };
            self.add_block(file, chunk_index(at), block, open.is_root);
            at += length;
            from = until;
        }
        file.dirty.end.set(file.dirty.end.get().max(end));
        file.bytes_changed(offset, end);
        self.files.note_write(file.inode, self.master.clock(&self.ring));
        Ok(written)
    }

    fn add_block(self: &Rc<Self>, file: &Rc<File>, index: u32, block: Block, is_root: bool) {
        let writer = file.dirty.chunks.borrow_mut().entry(index).or_insert_with(|| ChunkWriter::new(index)).clone();
        if is_root {
            writer.by_root.set(true);
        }
        writer.add(block);
        self.start_writers(file);
    }

    /// Starts tasks for chunks that have none, lowest first, up to the bound.
    fn start_writers(self: &Rc<Self>, file: &Rc<File>) {
        while file.dirty.active.get() < CHUNKS_AT_ONCE {
            let next = file.dirty.chunks.borrow().values().find(|writer| !writer.is_active.get()).cloned();
            let Some(writer) = next else { return };
            writer.is_active.set(true);
            file.dirty.active.set(file.dirty.active.get() + 1);
            let (inner, file) = (self.clone(), file.clone());
            drop(self.ring.spawn(async move { inner.write_chunk(&file, &writer).await }));
        }
    }

    /// Waits until what this client wrote to `start..end` is on the chunkservers, so that a read finds it there; or
    /// until it is lost, which writers are told.
    pub(crate) async fn settle(&self, file: &File, start: u64, end: u64) {
        let losses = file.losses.count();
        loop {
            if file.dirty.is_empty() || file.losses.count() != losses {
                return;
            }
            let mut is_waiting = false;
            for (index, writer) in file.dirty.chunks.borrow().range(chunk_index(start)..=chunk_index(end - 1)) {
                let base = u64::from(*index) * u64::from(CHUNK_BYTES);
                let from = in_chunk(start.saturating_sub(base));
                let until = in_chunk((end - base).min(u64::from(CHUNK_BYTES)));
                if writer.overlaps(&(from..until)) {
                    is_waiting = true;
                    writer.is_urgent.set(true);
                    writer.wake.notify_one();
                }
            }
            if !is_waiting {
                return;
            }
            file.dirty.changed.notified().await;
        }
    }

    /// Everything that was written to the file is acknowledged by every copy and the master knows the length. New writes
    /// wait meanwhile. Errors: something was lost while this waited.
    pub(crate) async fn flush_file(&self, file: &File) -> Result<(), Errno> {
        let losses = file.losses.count();
        if !file.dirty.is_empty() {
            let _flushing = Flushing::new(file);
            for writer in file.dirty.chunks.borrow().values() {
                writer.wake.notify_one();
            }
            while !file.dirty.is_empty() && file.losses.count() == losses {
                file.dirty.changed.notified().await;
            }
        }
        file.losses.since(losses)
    }

    /// Writes bytes once more that were acknowledged and may be lost, before anything newer. Returns when they are
    /// acknowledged again. Errors: as `flush_file`.
    pub(crate) async fn write_again(self: &Rc<Self>, file: &Rc<File>, index: u32) -> Result<(), Errno> {
        let _flushing = Flushing::new(file);
        self.flush_file(file).await?;
        let blocks = file.unsynced.take(index);
        if blocks.is_empty() {
            return Ok(());
        }
        let writer = file.dirty.chunks.borrow_mut().entry(index).or_insert_with(|| ChunkWriter::new(index)).clone();
        writer.state.borrow_mut().waiting.extend(blocks);
        self.start_writers(file);
        self.flush_file(file).await
    }

    /// The life of one chunk with unsent data.
    async fn write_chunk(self: &Rc<Self>, file: &Rc<File>, writer: &Rc<ChunkWriter>) {
        let mut tries = Tries::new(Direction::Write, &self.settings);
        while !writer.is_empty() {
            let failure = match self.write_chunk_once(file, writer).await {
                Ok(()) => {
                    tries.succeeded();
                    continue;
                }
                Err(WriteFailure::Final(errno)) => {
                    self.fail_file(file, writer, errno);
                    break;
                }
                Err(WriteFailure::Again(_)) if writer.is_empty() => break, // dropped with another chunk's loss
                Err(WriteFailure::Again(failure)) => failure,
            };
            match tries.after(self.ring.now(), failure) {
                Ok(pause) => {
                    if tries.count() >= 5 {
                        tracing::info!(
                            "inode {} chunk {}: {failure:?}, try {}",
                            file.inode,
                            writer.index,
                            tries.count()
                        );
                    }
                    self.ring.sleep(pause).await;
                }
                Err(errno) => {
                    tracing::warn!("inode {} chunk {}: {failure:?}, giving up", file.inode, writer.index);
                    self.fail_file(file, writer, errno);
                    break;
                }
            }
        }
        file.dirty.chunks.borrow_mut().remove(&writer.index);
        file.dirty.active.set(file.dirty.active.get() - 1);
        if file.dirty.is_empty() {
            file.dirty.end.set(0); // the master's length covers it now, or the data is lost
        }
        file.dirty.changed.notify_all();
        self.start_writers(file);
    }

    /// A write that cannot succeed: all unsent data of the file is dropped, and every handle hears of it once. What is
    /// written from now on is tried again. MooseFS's mount refuses everything until the last handle is closed: Spec 72,
    /// 5.3.
    fn fail_file(&self, file: &File, writer: &ChunkWriter, errno: Errno) {
        tracing::warn!("inode {} chunk {}: written data is lost: {errno}", file.inode, writer.index);
        file.losses.add(errno);
        for writer in file.dirty.chunks.borrow().values() {
            writer.drop_all();
        }
        file.bytes_changed(0, u64::MAX);
        file.dirty.changed.notify_all();
    }

    /// WRITE_CHUNK, one session, WRITE_CHUNK_END.
    async fn write_chunk_once(self: &Rc<Self>, file: &Rc<File>, writer: &Rc<ChunkWriter>) -> Result<(), WriteFailure> {
        let flags = if writer.by_root.get() { chunk_op_flags::CANUSERESERVESPACE } else { 0 };
        let grant: Result<MatoclFuseWriteChunk, Status> = self
            .ask_status(|msgid| CltomaFuseWriteChunk {
                msgid,
                inode: file.inode,
                index: writer.index,
                chunkopflags: Some(flags),
            })
            .await
            .map_err(WriteFailure::Final)?;
        let grant = grant.map_err(|status| WriteFailure::Again(Failure::Master(status)))?;
        let location = ChunkLocation::new(grant.chunkid, grant.version, &grant.locations, grant.ticket);
        let links = self.master.links();
        file.noticed();
        file.master_length.set(file.master_length.get().max(grant.length));
        let (outcome, end_in_chunk, is_unclean) = if location.servers.is_empty() || location.is_hole() {
            (Err(Failure::NoServers), 0, false)
        } else {
            self.remember_location(file.inode, writer.index, &location);
            writer.granted.replace(Some(location.clone()));
            let before = self.ask_before_data(&location).await;
            writer.was_dropped.set(false);
            let session = Session::new(self, file, writer, &location, before);
            let outcome = session.run().await;
            if outcome.is_err() {
                location.servers.iter().for_each(|server| self.pool.forget_syncing(server.address()));
            }
            (outcome, session.acknowledged_end.get(), session.is_unclean.get())
        };
        writer.put_back();
        let base = u64::from(writer.index) * u64::from(CHUNK_BYTES);
        // 0 asks for the unlocking alone (Spec 31, 31.9). The length that the grant told is left out: should another
        // client have cut the file meanwhile, it would come back.
        let length = if end_in_chunk > 0 { base + u64::from(end_in_chunk) } else { 0 };
        let end = |msgid| CltomaFuseWriteChunkEnd {
            msgid,
            chunkid: grant.chunkid,
            inode: file.inode,
            index: writer.index,
            length,
            chunkopflags: 0,
            region: None,
        };
        // In front of the end, on the same connection: who waits for the end knows that the master has the time, and
        // that it is not told again over what others set.
        self.tell_times_of(file.inode);
        let ended = match is_unclean && self.master.has_unclean_ends() {
            true => self.ask_done(|msgid| CltomaWriteUncleanEnd::from(end(msgid))).await,
            false => self.ask_done(end).await,
        };
        writer.granted.replace(None);
        file.noticed();
        if self.master.links() != links && file.written_at.get() != Time::default() {
            let (inode, atime, mtime) = (file.inode, Time::default(), file.written_at.get());
            self.tell_these_times(vec![AmtimeEntryLong { inode, atime, mtime }]);
        }
        match ended {
            Ok(()) => {
                file.unsynced.touched.set(self.master.clock(&self.ring));
                file.master_length.set(file.master_length.get().max(length));
            }
            // Spec 31, 31.11: the file is gone, the quota is full, or the master has lost the chunk.
            Err(Errno::ENOENT) => return Err(WriteFailure::Final(Errno::EBADF)),
            Err(errno @ (Errno::EDQUOT | Errno::EIO)) => return Err(WriteFailure::Final(errno)),
            Err(_) => return Err(WriteFailure::Final(Errno::ENXIO)),
        }
        if let Err(failure) = outcome {
            self.locations.forget(file.inode, writer.index);
            return Err(WriteFailure::Again(failure));
        }
        Ok(())
    }
}

enum WriteFailure {
    Again(Failure),
    Final(Errno),
}

/// Counts a flush that waits, also when it is dropped.
struct Flushing<'a> {
    file: &'a File,
}

impl<'a> Flushing<'a> {
    fn new(file: &'a File) -> Flushing<'a> {
        file.dirty.flushing.set(file.dirty.flushing.get() + 1);
        Flushing { file }
    }
}

impl Drop for Flushing<'_> {
    fn drop(&mut self) {
        let dirty = &self.file.dirty;
        dirty.flushing.set(dirty.flushing.get() - 1);
        dirty.changed.notify_all();
    }
}

/// One write session: from CLTOCS_WRITE to WRITE_FINISH. Sender and receiver run side by side on one connection.
struct Session<'a> {
    inner: &'a Rc<Inner>,
    file: &'a Rc<File>,
    writer: &'a Rc<ChunkWriter>,
    location: &'a ChunkLocation,
    /// What each server said about syncing before it got data.
    before: RefCell<Vec<Option<Syncing>>>,
    is_opened: Cell<bool>,
    /// Some of what was sent may reach a server after the session's end.
    is_unclean: Cell<bool>,
    /// Furthest position in the chunk that is on every copy.
    acknowledged_end: Cell<u32>,
    acknowledged_any: Cell<bool>,
    /// Since when the chain owes us a status, or the time of the last one.
    due_since: Cell<Instant>,
}

/// A block on its way: header and head, and the slice that follows them.
struct Outgoing {
    writeid: u32,
    front: Vec<u8>,
    bytes: Rc<Vec<u8>>,
    range: Range<usize>,
}

/// Why a session ended that was not finished.
enum SessionEnd {
    Failed(Failure),
    /// The chain fell silent. Not an error if it had confirmed data before. Spec 20, 4.6.
    Silent,
}

impl<'a> Session<'a> {
    fn new(
        inner: &'a Rc<Inner>,
        file: &'a Rc<File>,
        writer: &'a Rc<ChunkWriter>,
        location: &'a ChunkLocation,
        before: Vec<Option<Syncing>>,
    ) -> Session<'a> {
        Session {
            inner,
            file,
            writer,
            location,
            before: RefCell::new(before),
            is_opened: Cell::new(false),
            is_unclean: Cell::new(false),
            acknowledged_end: Cell::new(0),
            acknowledged_any: Cell::new(false),
            due_since: Cell::new(inner.ring.now()),
        }
    }

    /// Runs until everything queued is acknowledged and it is time to end, or something fails.
    async fn run(&self) -> Result<(), Failure> {
        let inner = self.inner;
        let chain: Vec<Server> = self.location.servers.to_vec();
        let (head, rest) = chain.split_first().expect("a grant without servers opens no session");
        let with_proto =
            chain.iter().all(|server| server.version.at_least(PROTO_SINCE.0, PROTO_SINCE.1, PROTO_SINCE.2));
        let request = CltocsWrite {
            with_proto,
            chunkid: self.location.chunkid,
            version: self.location.version,
            chain: rest.iter().map(|server| ChainServer { ip: server.ip.into(), port: server.port }).collect(),
        }
        .encode();
        let _busy: Vec<_> = chain.iter().map(|server| inner.pool.busy(server.address())).collect();

        // A parked connection may be dead: one that does not answer at all costs no try.
        loop {
            let connection =
                inner.pool.connect(&inner.ring, head.address(), inner.bind(), CONNECT_PATIENCE).await.map_err(
                    |error| {
                        tracing::debug!("chunkserver {}: {error}", head.address());
                        inner.pool.distrust(inner.ring.now(), head.address());
                        Failure::CannotConnect
                    },
                )?;
            let was_used = connection.is_used;
            let ended = self.run_on(connection, &request, with_proto).await;
            self.is_unclean.set(self.is_unclean.get() || ended.is_err());
            match ended {
                Ok(()) => return Ok(()),
                Err(SessionEnd::Failed(Failure::Broken)) if was_used && !self.is_opened.get() => {
                    self.writer.put_back();
                    // It may have started anew.
                    inner.pool.forget_syncing(head.address());
                    self.before.replace(inner.ask_before_data(self.location).await);
                }
                Err(SessionEnd::Silent) if self.acknowledged_any.get() => return Ok(()),
                Err(SessionEnd::Silent) => return Err(Failure::Broken),
                Err(SessionEnd::Failed(failure)) => {
                    tracing::debug!("write of chunk {} by {}: {failure:?}", self.location.chunkid, head.address());
                    return Err(failure);
                }
            }
        }
    }

    async fn run_on(&self, mut connection: Connection, request: &[u8], with_proto: bool) -> Result<(), SessionEnd> {
        let broken = |_| SessionEnd::Failed(Failure::Broken);
        let stream = connection.stream.clone();
        let request = connection.with_ticket(self.location.ticket.as_ref(), request.to_vec());
        stream.send_all(request).await.0.map_err(broken)?;
        {
            let sending = std::pin::pin!(self.send(&stream));
            let receiving = std::pin::pin!(self.receive(&mut connection));
            match select(sending, receiving).await {
                Either::Left((sent, _)) => sent?,
                Either::Right((end, _)) => return Err(end),
            }
        }
        // Everything is acknowledged. Old chains know no WRITE_FINISH: there the end of the connection says it.
        if with_proto {
            let finish = CltocsWriteFinish { chunkid: self.location.chunkid, version: self.location.version };
            if stream.send_all(finish.encode()).await.0.is_ok() {
                self.inner.pool.park(self.inner.ring.now(), connection);
            }
        }
        Ok(())
    }

    /// Sends blocks as they may go, and NOPs; returns when the session should end and all is acknowledged.
    async fn send(&self, stream: &ring::Stream) -> Result<(), SessionEnd> {
        let ring = &self.inner.ring;
        let broken = |_| SessionEnd::Failed(Failure::Broken);
        let started = ring.now();
        let (mut last_sent, mut last_block, mut last_writeid) = (started, started, 0u32);
        loop {
            let now = ring.now();
            if self.writer.was_dropped.get() {
                return Err(SessionEnd::Failed(Failure::Broken));
            }
            if let Some(block) = self.next_block(now, started, last_block, last_writeid) {
                let (sent, _, _) = stream.send_two(block.front, block.bytes.slice(block.range)).await;
                sent.map_err(broken)?;
                last_writeid = block.writeid;
                last_sent = ring.now();
                last_block = last_sent;
                continue;
            }
            if self.should_end(now, started, last_block) {
                return Ok(());
            }
            if now - last_sent >= NOP_AFTER {
                stream.send_all(AntoanNop {}.encode()).await.0.map_err(broken)?;
                last_sent = ring.now();
            }
            let until = self.next_look(now, last_sent, last_block);
            let _ = ring.timeout(until, self.writer.wake.notified()).await; // whichever comes first
        }
    }

    /// The next block that may leave now: its id, packet front, and bytes. It moves to `sent`.
    fn next_block(&self, now: Instant, started: Instant, last_block: Instant, last_writeid: u32) -> Option<Outgoing> {
        let mut state = self.writer.state.borrow_mut();
        let due = state.sent.len() + usize::from(!self.is_opened.get());
        let first = state.waiting.front()?;
        let is_full_or_followed = first.is_full() || state.waiting.len() > 1;
        let may_go = is_full_or_followed || self.is_pressed() || now - last_block >= PARTIAL_BLOCK_DELAY;
        if !may_go || due >= OUTSTANDING_MAX || now - started >= SESSION_SPAN {
            return None;
        }
        let mut block = state.waiting.pop_front().expect("looked at above");
        let (bytes, range) = block.lend();
        let writeid = last_writeid + 1;
        let data = CltocsWriteData {
            chunkid: self.location.chunkid,
            writeid,
            blocknum: block.number,
            offset: u16::try_from(block.start).expect("below 65536"),
            size: block.end - block.start,
            crc: Crc(crc32fast::hash(&bytes[range.clone()])),
        };
        if state.sent.is_empty() {
            self.due_since.set(now);
        }
        state.sent.push_back((writeid, block));
        Some(Outgoing { writeid, front: data.front().to_vec(), bytes, range })
    }

    /// Somebody waits for the data to arrive.
    fn is_pressed(&self) -> bool {
        self.file.dirty.flushing.get() > 0 || self.writer.is_urgent.get() || self.inner.write_budget.is_scarce()
    }

    fn should_end(&self, now: Instant, started: Instant, last_block: Instant) -> bool {
        let state = self.writer.state.borrow();
        if !state.sent.is_empty() || !self.is_opened.get() {
            return false;
        }
        if now - started >= SESSION_SPAN {
            return true;
        }
        // A chunk that is written to its end gets no more from a sequential writer.
        let is_complete = self.acknowledged_end.get() == CHUNK_BYTES;
        let is_crowded = self.file.dirty.active.get() >= CHUNKS_AT_ONCE;
        state.waiting.is_empty()
            && (self.file.dirty.flushing.get() > 0 || is_complete || is_crowded || now - last_block >= IDLE_SPAN)
    }

    /// How long the sender may sleep if nothing wakes it.
    fn next_look(&self, now: Instant, last_sent: Instant, last_block: Instant) -> Duration {
        let nop = NOP_AFTER.saturating_sub(now - last_sent);
        let state = self.writer.state.borrow();
        let own = if !state.waiting.is_empty() && state.sent.len() + 1 < OUTSTANDING_MAX {
            PARTIAL_BLOCK_DELAY.saturating_sub(now - last_block)
        } else if state.waiting.is_empty() && state.sent.is_empty() && self.is_opened.get() {
            IDLE_SPAN.saturating_sub(now - last_block)
        } else {
            NOP_AFTER
        };
        own.min(nop).max(Duration::from_millis(1))
    }

    /// Takes statuses; never returns but with the session's end.
    async fn receive(&self, connection: &mut Connection) -> SessionEnd {
        let ring = &self.inner.ring;
        loop {
            let header = match connection.next_header(ring, SILENCE, false).await {
                Ok(header) => header,
                // Silence counts only while something is due.
                Err(Lost::Silent) => {
                    let is_due = !self.is_opened.get() || !self.writer.state.borrow().sent.is_empty();
                    if is_due && ring.now() - self.due_since.get() >= SILENCE {
                        return SessionEnd::Silent;
                    }
                    continue;
                }
                Err(Lost::Ended | Lost::Protocol) => return SessionEnd::Failed(Failure::Broken),
            };
            if header.kind != CstoclWriteStatus::TYPE || header.length != 13 {
                return SessionEnd::Failed(Failure::Broken);
            }
            let Ok(head) = connection.head(ring, SILENCE, 13).await else {
                return SessionEnd::Failed(Failure::Broken);
            };
            let Ok(status) = CstoclWriteStatus::decode(head) else {
                return SessionEnd::Failed(Failure::Broken);
            };
            connection.reader.consume(13);
            if let Err(failure) = self.take_status(&status) {
                return SessionEnd::Failed(failure);
            }
        }
    }

    fn take_status(&self, status: &CstoclWriteStatus) -> Result<(), Failure> {
        if status.chunkid != self.location.chunkid {
            return Err(Failure::Broken);
        }
        status.status.into_result().map_err(Failure::Server)?;
        if status.writeid == 0 {
            if self.is_opened.replace(true) {
                return Err(Failure::Broken); // the opening is confirmed once
            }
            self.writer.wake.notify_one();
            return Ok(());
        }
        let acknowledged = {
            let mut state = self.writer.state.borrow_mut();
            let place = state.sent.iter().position(|(writeid, _)| *writeid == status.writeid);
            let (_, block) = place.and_then(|place| state.sent.remove(place)).ok_or(Failure::Broken)?;
            if state.waiting.is_empty() && state.sent.is_empty() {
                self.writer.is_urgent.set(false);
            }
            block
        };
        self.acknowledged_any.set(true);
        self.due_since.set(self.inner.ring.now());
        self.acknowledged_end.set(self.acknowledged_end.get().max(acknowledged.end_in_chunk()));
        if self.inner.settings.durable_fsync {
            let unsynced = &self.file.unsynced;
            unsynced.add(self.writer.index, self.location, &self.before.borrow(), acknowledged);
            unsynced.touched.set(self.inner.master.clock(&self.inner.ring));
            self.inner.sync_early();
        } // else dropped, which gives its memory back
        self.writer.wake.notify_one();
        self.file.dirty.changed.notify_all();
        Ok(())
    }
}
