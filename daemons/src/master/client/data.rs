//! Reading, writing and cutting chunks: where are the copies, who may change them. Spec 31, 31.7 to 31.9; Spec 41, 4.
//!
//! ```text
//! attempt -> answer at once                                       the usual case
//!         -> the chunk is locked or busy: park, wait, try again   at most 30 s
//!         -> an operation was begun: wait for its end, then answer or undo
//! ```
//!
//! An attempt that can be answered at once is, within the handler; only the others become tasks. A request of a
//! connection that ends is dropped where it waits; what it had begun is undone.

use std::time::Duration;

use meta::chunks::{ServerId, WriteStep};
use meta::{Caller, Grant, Truncate, WriteTarget};
use ring::local::{OneshotReceiver, oneshot};
use tracing::warn;
use wire::{
    ChunkId, CltomaFuseReadChunk, CltomaFuseTruncate, CltomaFuseWriteChunk, CltomaFuseWriteChunkEnd,
    CltomaWriteUncleanEnd, Field, GivenTicket, Inode, MatoclFuseChunkHasChanged, MatoclFuseFlengHasChanged,
    MatoclFuseWriteChunkEnd, MatoclWriteUncleanEnd, Packet, Status, Time, Version, VersionWord, chunk_op_flags,
    encode_status, knows_open_flags, ticket_rights, truncate_flags,
};

use super::{Request, Who, packet};
use crate::master::Shared;
use crate::master::core::{Core, Waiting};

/// How long a request waits for a locked or busy chunk. Spec 41, 5.2.
const PARKED_MAX: Duration = Duration::from_secs(30);

/// What a request waits for.
enum Wait {
    /// For its chunk to be free.
    Parked { chunk: ChunkId, status: Status, ticket: u64, woken: OneshotReceiver<()> },
    /// For chunkservers.
    Begun { grant: Grant, ended: OneshotReceiver<Status> },
}

/// How long a ticket for a chunk is good. A client whose ticket has ended asks again.
const TICKET_SECONDS: u32 = 3600;

/// What came of one attempt.
pub(super) enum Attempt {
    Answer(Vec<u8>),
    Refuse(Status),
    /// The chunk is not free.
    Park {
        chunk: ChunkId,
        status: Status,
    },
    /// Chunkservers were asked to do something.
    Begun {
        grant: Grant,
        ended: OneshotReceiver<Status>,
    },
}

/// A request that may have to be tried several times.
pub(super) trait Patient: Clone + 'static {
    fn msgid(&self) -> u32;
    fn attempt(&self, core: &mut Core, who: &Who, now: u32) -> Attempt;
    /// The slot that an operation works on.
    fn slot(&self, grant: &Grant) -> (Inode, u32);
    /// The operation succeeded.
    fn complete(&self, core: &mut Core, who: &Who, grant: &Grant, now: u32) -> Result<Vec<u8>, Status>;
}

/// Answers at once if that is possible, else leaves the request to a task.
pub(super) fn serve<P: Patient>(master: &Shared, who: Who, request: P) {
    if let Some(first) = try_once(master, &who, &request) {
        let deadline = master.ring.now() + PARKED_MAX;
        drop(master.ring.spawn(wait(master.clone(), who, request, first, deadline)));
    }
}

/// One attempt; its answer is sent. What is left to wait for is returned.
///
/// A request is parked within the attempt that found its chunk taken. If it were parked later, the chunk could be freed
/// in between, and nobody would wake the request.
fn try_once<P: Patient>(master: &Shared, who: &Who, request: &P) -> Option<Wait> {
    master.with(|core, now| match request.attempt(core, who, now) {
        Attempt::Answer(packet) => {
            who.reply(core, packet);
            None
        }
        Attempt::Refuse(status) => {
            refuse(core, who, request, status);
            None
        }
        Attempt::Park { chunk, status } => {
            // It may be in doubt, with nobody else there who would have that settled.
            core.chunks.settle(chunk, &core.namespace, &mut core.effects);
            let (ticket, woken) = core.park(chunk, who.id);
            Some(Wait::Parked { chunk, status, ticket, woken })
        }
        Attempt::Begun { grant, ended } => Some(Wait::Begun { grant, ended }),
    })
}

fn refuse<P: Patient>(core: &mut Core, who: &Who, request: &P, status: Status) {
    // Clients before 3.0.8 do not know EAGAIN. Spec 10, 4.
    let old = status == Status::EAGAIN && !who.link.version.at_least(3, 0, 8);
    let status = if old { Status::LOCKED } else { status };
    who.reply(core, encode_status(who.answer, request.msgid(), status));
}

/// Waits as often as it takes.
async fn wait<P: Patient>(master: Shared, who: Who, request: P, first: Wait, deadline: ring::Instant) {
    let mut next = Some(first);
    while let Some(waiting) = next {
        match waiting {
            Wait::Parked { chunk, status, ticket, woken } => {
                let left = deadline - master.ring.now();
                match master.ring.timeout(left, woken.recv()).await {
                    Ok(Some(())) => next = try_once(&master, &who, &request),
                    Ok(None) => return, // the connection is gone
                    Err(_) => {
                        return master.with(|core, _| {
                            core.unpark(chunk, ticket);
                            refuse(core, &who, &request, status);
                        });
                    }
                }
            }
            Wait::Begun { grant, ended } => {
                let status = ended.recv().await;
                return master.with(|core, now| end_operation(core, &who, &request, &grant, status, now));
            }
        }
    }
}

/// The servers are done. `status` None: the client is gone.
fn end_operation<P: Patient>(core: &mut Core, who: &Who, request: &P, grant: &Grant, status: Option<Status>, now: u32) {
    let status = match status {
        // Nobody is let in while a change is in doubt: the file may have been cut while its own copy was being made.
        Some(Status::OK) if !core.namespace.chunk(grant.chunk).is_some_and(|chunk| chunk.is_settled()) => {
            Some(Status::NOTDONE)
        }
        Some(Status::OK) => match request.complete(core, who, grant, now) {
            Ok(packet) => return who.reply(core, packet),
            Err(status) => Some(status),
        },
        other => other,
    };
    if status.is_none() {
        core.chunks.forget_client(grant.chunk);
    }
    let (inode, index) = request.slot(grant);
    if let Err(refused) = core.namespace.rollback(core.time, inode, index, grant.previous, grant.chunk) {
        warn!(chunk = %grant.chunk, status = %refused, "a grant whose operation failed cannot be undone");
    }
    core.chunks.unlocked(grant.chunk, &core.namespace, now, &mut core.effects);
    if let Some(status) = status {
        refuse(core, who, request, status);
    }
}

/// Remembers who waits for the operation on a chunk.
fn begun(core: &mut Core, who: &Who, grant: Grant) -> Attempt {
    let (sender, ended) = oneshot();
    core.writers.insert(grant.chunk, who.session);
    core.waiting.insert(grant.chunk, Waiting { connection: who.id, ended: sender });
    Attempt::Begun { grant, ended }
}

/// LOCKED and CHUNKBUSY pass by themselves; all else is told.
fn park_or_refuse(chunk: ChunkId, status: Status) -> Attempt {
    match status {
        Status::LOCKED | Status::CHUNKBUSY => Attempt::Park { chunk, status },
        other => Attempt::Refuse(other),
    }
}

// --- reading

impl Patient for CltomaFuseReadChunk {
    fn msgid(&self) -> u32 {
        self.msgid
    }

    fn attempt(&self, core: &mut Core, who: &Who, now: u32) -> Attempt {
        if let Err(status) = drop_stillborn(core, who, self.inode, self.index, now) {
            return Attempt::Refuse(status);
        }
        let slot = match core.namespace.check_read(who.session, self.inode, self.index) {
            Ok(slot) => slot,
            Err(status) => return Attempt::Refuse(status),
        };
        let Some(chunk) = slot.chunk else {
            core.cache.read(self.inode, who.session);
            let none = ticket(core, who, ChunkId(0), 0, now);
            return Attempt::Answer(located(self, who, none, slot.length, ChunkId(0), Version(0), &[]));
        };
        if let Err(status) = core.chunks.before_read(chunk, &core.namespace, now) {
            return park_or_refuse(chunk, status);
        }
        match core.chunks.locations(chunk, who.link.ip, &core.namespace, now) {
            Ok((version, locations)) => {
                core.cache.read(self.inode, who.session);
                let ticket = ticket(core, who, chunk, ticket_rights::READ, now);
                Attempt::Answer(located(self, who, ticket, slot.length, chunk, version, &locations))
            }
            Err(status) => Attempt::Refuse(status),
        }
    }

    fn slot(&self, _: &Grant) -> (Inode, u32) {
        (self.inode, self.index)
    }

    fn complete(&self, _: &mut Core, _: &Who, _: &Grant, _: u32) -> Result<Vec<u8>, Status> {
        Err(Status::EINVAL) // a read begins no operation
    }
}

/// What a client that asks for a ticket gets: one that allows nothing if this master gives none out.
fn ticket(core: &Core, who: &Who, chunk: ChunkId, rights: u8, now: u32) -> GivenTicket {
    if !who.long_times {
        return GivenTicket(None);
    }
    let expires = now.saturating_add(TICKET_SECONDS);
    let signed = core.settings.ticket_key.as_ref().map(|key| GivenTicket::new(&key.sign(chunk, rights, expires)));
    signed.unwrap_or(GivenTicket(Some((0, 0, [0; 16]))))
}

/// The answer to READ_CHUNK and WRITE_CHUNK, by the client's version. Spec 31, 31.7.
fn located<P: Patient>(
    request: &P,
    who: &Who,
    ticket: GivenTicket,
    length: u64,
    chunk: ChunkId,
    version: Version,
    locations: &[wire::Location],
) -> Vec<u8> {
    let client = who.link.version;
    let form: u8 = match () {
        () if client.at_least(3, 0, 10) => 2,
        () if client >= VersionWord::new(1, 7, 32) => 1,
        () => 0,
    };
    packet(who.answer, request.msgid(), |out| {
        ticket.put(out);
        if form > 0 {
            form.put(out);
        }
        length.put(out);
        chunk.put(out);
        version.put(out);
        for location in locations {
            location.ip.put(out);
            location.port.put(out);
            if form > 0 {
                location.version.put(out);
            }
            if form > 1 {
                location.labels.put(out);
            }
        }
    })
}

// --- writing

impl Patient for CltomaFuseWriteChunk {
    fn msgid(&self) -> u32 {
        self.msgid
    }

    fn attempt(&self, core: &mut Core, who: &Who, now: u32) -> Attempt {
        match write_attempt(self, core, who, now) {
            Ok(attempt) => attempt,
            Err(status) => Attempt::Refuse(status),
        }
    }

    fn slot(&self, _: &Grant) -> (Inode, u32) {
        (self.inode, self.index)
    }

    fn complete(&self, core: &mut Core, who: &Who, grant: &Grant, now: u32) -> Result<Vec<u8>, Status> {
        write_granted(self, core, who, grant, now)
    }
}

fn write_attempt(request: &CltomaFuseWriteChunk, core: &mut Core, who: &Who, now: u32) -> Result<Attempt, Status> {
    let (inode, index, client) = (request.inode, request.index, who.link.version);
    let flags = request.chunkopflags.unwrap_or(chunk_op_flags::CANMODTIME);
    let touch_times = flags & chunk_op_flags::CANMODTIME != 0 && !client.at_least(3, 0, 74);
    core.namespace.check_may_write(who.session, client)?;
    let (total, _, avail) = core.space();
    if total > 0 && avail == 0 && flags & chunk_op_flags::CANUSERESERVESPACE == 0 {
        return Err(Status::NOSPACE);
    }
    drop_stillborn(core, who, inode, index, now)?;
    if let Some(chunk) = must_be_cut_first(core, inode, u64::from(index) * u64::from(wire::limits::CHUNK_BYTES)) {
        return Ok(Attempt::Park { chunk, status: Status::CHUNKBUSY });
    }
    let (chunk, shared) = match core.namespace.check_write(who.session, client, inode, index)? {
        WriteTarget::Empty => {
            let targets = choose_servers(core, who, inode, now)?;
            let grant = core.namespace.grant_write(core.time, inode, index, true, touch_times)?;
            core.chunks.begin_create(grant.chunk, grant.version, &targets, &mut core.effects);
            return Ok(begun(core, who, grant));
        }
        WriteTarget::Sole(chunk) => (chunk, false),
        WriteTarget::Shared(chunk) => (chunk, true),
    };
    let continues = flags & chunk_op_flags::CONTINUEOP != 0;
    let step = match core.chunks.before_write(chunk, shared, continues, &core.namespace, now) {
        Ok(step) => step,
        Err(status) => return Ok(park_or_refuse(chunk, status)),
    };
    let record = core.namespace.chunk(chunk).ok_or(Status::NOCHUNK)?;
    let (old, cut) = (record.version, record.cut);
    let operation = step == WriteStep::Operation;
    let grant = core.namespace.grant_write(core.time, inode, index, operation, touch_times)?;
    if !operation {
        return write_granted(request, core, who, &grant, now).map(Attempt::Answer);
    }
    if shared {
        let new = (grant.chunk, grant.version);
        core.chunks.begin_duplicate((chunk, old), new, &mut core.effects);
    } else {
        core.chunks.begin_set_version(chunk, old, grant.version, cut, &mut core.effects);
    }
    Ok(begun(core, who, grant))
}

/// A slot may hold a chunk that exists nowhere, of which nothing can have been promised: it gives its place back to what
/// was there. Either a crash of the master came between the grant of a new chunk and its servers' answers, so nobody was
/// ever told that it may be written; the replayed journal shows that. Or no byte of the file lies in it: its length ends
/// before, so no write to the chunk was ever ended, and the power of all its servers failed before it was synced. Only
/// when no server that could have it is missing.
fn drop_stillborn(core: &mut Core, who: &Who, inode: Inode, index: u32, now: u32) -> Result<(), Status> {
    let slot = core.namespace.check_read(who.session, inode, index)?;
    let Some(chunk) = slot.chunk else { return Ok(()) };
    let newborn = core.newborn_chunks.get(&chunk).copied();
    let is_behind_the_end = slot.length <= u64::from(index) * u64::from(wire::limits::CHUNK_BYTES);
    if newborn.is_none() && !is_behind_the_end {
        return Ok(());
    }
    // Locked or not: who was told of it fails at every server, and asks again.
    let is_first = core.namespace.chunk(chunk).is_some_and(|record| record.version == Version(1));
    if is_first && core.chunks.census(chunk).all() == 0 && core.chunks.all_data_known(now) {
        warn!(%chunk, %inode, index, "a new chunk that no server has, and in which nothing was promised, is given up");
        core.newborn_chunks.remove(&chunk);
        let previous = newborn.flatten().filter(|previous| core.namespace.chunk(*previous).is_some());
        core.namespace.set_file_chunk(core.time, inode, index, previous)?;
    }
    Ok(())
}

/// The chunk that holds the file's end, if the file is to grow to `length` and that chunk was to be cut: what was cut off
/// must not come back.
fn must_be_cut_first(core: &Core, inode: Inode, length: u64) -> Option<ChunkId> {
    core.namespace.owes_cut(inode).filter(|_| core.namespace.length(inode).is_some_and(|present| length > present))
}

/// Servers for a new chunk of a file, by its storage class.
fn choose_servers(core: &mut Core, who: &Who, inode: Inode, now: u32) -> Result<Vec<ServerId>, Status> {
    let class = core.namespace.get_classes(who.session, inode, 0)?;
    let class = class.files.keys().next().and_then(|class| u8::try_from(*class).ok());
    let class = class.and_then(|class| core.namespace.class(class)).ok_or(Status::EINVAL)?;
    let (copies, labels) = (class.create.len(), meta::chunks::labels_of(class.mode, &class.create));
    core.chunks.choose(copies, labels.as_ref(), who.link.ip, now)
}

/// The chunk is the client's for 120 seconds: tell it where, and others that it changes.
fn write_granted(
    request: &CltomaFuseWriteChunk,
    core: &mut Core,
    who: &Who,
    grant: &Grant,
    now: u32,
) -> Result<Vec<u8>, Status> {
    // The version may have been raised again while servers failed.
    let version = core.namespace.chunk(grant.chunk).ok_or(Status::NOCHUNK)?.version;
    let (_, locations) = core.chunks.locations(grant.chunk, who.link.ip, &core.namespace, now)?;
    core.chunks.write_granted(grant.chunk);
    core.writers.insert(grant.chunk, who.session);
    core.cache.written(request.inode, who.session);
    let (_, length, _) = core.namespace.file(who.session, request.inode)?;
    let changed = MatoclFuseChunkHasChanged {
        msgid: 0,
        inode: request.inode,
        index: request.index,
        chunkid: grant.chunk,
        version,
        length,
        truncflag: 0,
        region: None,
    };
    core.notify_openers(request.inode, who.id, &changed.encode());
    let ticket = ticket(core, who, grant.chunk, ticket_rights::READ | ticket_rights::WRITE, now);
    Ok(located(request, who, ticket, length, grant.chunk, version, &locations))
}

pub(super) fn write_chunk_end(request: &mut Request<'_>, packet: &CltomaFuseWriteChunkEnd) {
    let (msgid, status) = (packet.msgid, end_write(request, packet));
    request.reply(MatoclFuseWriteChunkEnd { msgid, status }.encode());
}

pub(super) fn write_unclean_end(request: &mut Request<'_>, packet: &CltomaWriteUncleanEnd) {
    request.core.chunks.write_failed(packet.chunkid);
    let (msgid, status) = (packet.msgid, end_write(request, &packet.clone().into()));
    request.reply(MatoclWriteUncleanEnd { msgid, status }.encode());
}

fn end_write(request: &mut Request<'_>, packet: &CltomaFuseWriteChunkEnd) -> Status {
    let CltomaFuseWriteChunkEnd { chunkid, inode, index, length, chunkopflags, .. } = *packet;
    let (core, now, client) = (&mut *request.core, request.now, request.link.version);
    let touch_times = chunkopflags & chunk_op_flags::CANMODTIME != 0 && !client.at_least(3, 0, 74);
    let result = core.namespace.write_end(request.session, client, core.time, inode, chunkid, length, touch_times);
    if core.namespace.chunk(chunkid).is_some_and(|chunk| !chunk.is_locked(now)) {
        core.chunks.unlocked(chunkid, &core.namespace, now, &mut core.effects);
    }
    core.cache.written(inode, request.session);
    if let (Some(chunk), Ok((_, length, _))) =
        (core.namespace.chunk(chunkid), core.namespace.file(request.session, inode))
    {
        let version = chunk.version;
        let changed =
            MatoclFuseChunkHasChanged { msgid: 0, inode, index, chunkid, version, length, truncflag: 0, region: None };
        core.notify_openers(inode, request.id, &changed.encode());
    }
    result.err().unwrap_or(Status::OK)
}

// --- cutting

impl Patient for CltomaFuseTruncate {
    fn msgid(&self) -> u32 {
        self.msgid
    }

    fn attempt(&self, core: &mut Core, who: &Who, now: u32) -> Attempt {
        match truncate_attempt(self, core, who, now) {
            Ok(attempt) => attempt,
            Err(status) => Attempt::Refuse(status),
        }
    }

    fn slot(&self, _: &Grant) -> (Inode, u32) {
        (self.inode, chunk_index(self.length))
    }

    fn complete(&self, core: &mut Core, who: &Who, grant: &Grant, now: u32) -> Result<Vec<u8>, Status> {
        let caller = truncate_caller(self, who, core.time);
        let previous = grant.length_before;
        let attr = core.namespace.truncate_finish(&caller, self.inode, self.flags, self.length, grant.chunk)?;
        core.chunks.unlocked(grant.chunk, &core.namespace, now, &mut core.effects);
        core.cache.written(self.inode, who.session);
        let version = core.namespace.chunk(grant.chunk).map_or(grant.version, |chunk| chunk.version);
        let changed = MatoclFuseChunkHasChanged {
            msgid: 0,
            inode: self.inode,
            index: chunk_index(self.length),
            chunkid: grant.chunk,
            version,
            length: self.length,
            truncflag: 1,
            region: None,
        };
        core.notify_openers(self.inode, who.id, &changed.encode());
        Ok(truncated(self, who, previous, &attr))
    }
}

fn truncate_caller<'a>(request: &'a CltomaFuseTruncate, who: &Who, now: Time) -> Caller<'a> {
    let gids = request.gids.as_slice();
    Caller { session: who.session, version: who.link.version, uid: request.uid, gids, now }
}

fn truncate_attempt(request: &CltomaFuseTruncate, core: &mut Core, who: &Who, now: u32) -> Result<Attempt, Status> {
    let caller = truncate_caller(request, who, core.time);
    let (inode, length) = (request.inode, request.length);
    let grows = request.flags & truncate_flags::RESERVE == 0;
    if let Some(chunk) = must_be_cut_first(core, inode, length).filter(|_| grows) {
        return Ok(Attempt::Park { chunk, status: Status::CHUNKBUSY });
    }
    let (index, chunk, shared, chunk_length) = match core.namespace.truncate(&caller, inode, request.flags, length)? {
        Truncate::Done { previous, attr } => {
            let reserved = request.flags & truncate_flags::RESERVE != 0;
            let told = if reserved { previous.saturating_add(length) } else { length };
            if request.flags & (truncate_flags::UPDATE | truncate_flags::RESERVE) == 0 {
                core.cache.written(inode, who.session);
            }
            let changed = MatoclFuseFlengHasChanged { msgid: 0, inode, length: told }.encode();
            core.notify_openers(inode, who.id, &changed);
            return Ok(Attempt::Answer(truncated(request, who, previous, &attr)));
        }
        Truncate::Chunk { index, chunk, shared, chunk_length, .. } => (index, chunk, shared, chunk_length),
    };
    if let Err(status) = core.chunks.before_truncate(chunk, &core.namespace, now) {
        return Ok(park_or_refuse(chunk, status));
    }
    let old = core.namespace.chunk(chunk).ok_or(Status::NOCHUNK)?.version;
    let grant = core.namespace.grant_truncate(core.time, inode, index, length)?;
    if grant.length < grant.length_before {
        core.cache.written(inode, who.session);
        core.notify_openers(inode, who.id, &MatoclFuseFlengHasChanged { msgid: 0, inode, length }.encode());
    }
    if shared {
        let new = (grant.chunk, grant.version);
        core.chunks.begin_duplicate_truncate((chunk, old), new, chunk_length, &mut core.effects);
    } else {
        core.chunks.begin_truncate(chunk, chunk_length, old, grant.version, &mut core.effects);
    }
    Ok(begun(core, who, grant))
}

fn truncated(request: &CltomaFuseTruncate, who: &Who, previous: u64, attr: &wire::Attr) -> Vec<u8> {
    packet(who.answer, request.msgid, |out| {
        if knows_open_flags(who.link.version) {
            previous.put(out);
        }
        match who.long_times {
            true => attr.put_long(out),
            false => attr.put_for(who.link.version, out),
        }
    })
}

fn chunk_index(offset_bytes: u64) -> u32 {
    u32::try_from(offset_bytes / u64::from(wire::limits::CHUNK_BYTES)).unwrap_or(u32::MAX)
}
