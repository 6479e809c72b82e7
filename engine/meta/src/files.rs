//! Files: opening, lengths, and the chunks behind their bytes. Spec 31, 31.6 to 31.9.
//!
//! Which servers take part is decided by the caller: it asks what stands at a slot (`check_write`), decides, and says
//! what shall be written down (`grant_write`).

use wire::limits::{CHUNK_BYTES, CHUNK_INDEX_MAX, FILE_BYTES_MAX};
use wire::{Attr, ChunkId, Inode, NodeKind, SessionId, Status, Time, Version, VersionWord};

use crate::access::{READ, WRITE, Who};
use crate::apply::WRITE_LOCK_SECONDS;
use crate::change::{Change, raise};
use crate::chunk_table::ChunkRecord;
use crate::namespace::{Caller, Namespace};
use crate::node::{Figures, eattr, last_chunk_size};
use crate::session::{disables, session_flags};
use crate::state::last_index;

/// Bits of the request flags of OPEN. Spec 31, 31.6.
pub mod open_flags {
    pub const READ: u8 = 0x01;
    pub const WRITE: u8 = 0x02;
    /// Permissions were tested already.
    pub const AFTER_CREATE: u8 = 0x04;
    pub const TRUNCATE: u8 = 0x08;
    pub const CACHE_CLEARED: u8 = 0x10;
}

/// Bits of the answer flags of OPEN and CREATE. Spec 31, 31.6.
pub mod opened_flags {
    pub const KEEPCACHE: u8 = 0x01;
    pub const DIRECTMODE: u8 = 0x02;
    pub const APPENDONLY: u8 = 0x04;
}

/// Bits of the request flags of TRUNCATE. Spec 31, 31.9.
pub mod truncate_flags {
    pub const OPENED: u8 = 0x01;
    pub const UPDATE: u8 = 0x02;
    pub const TIMEFIX: u8 = 0x04;
    pub const RESERVE: u8 = 0x08;
}

/// An open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    pub inode: Inode,
    /// As in `Found`: whoever does not give KEEPCACHE clears ALLOWDATACACHE, unless DIRECTMODE is set.
    pub attr: Attr,
    /// `opened_flags` without KEEPCACHE.
    pub flags: u8,
    /// The file was cut to nothing (O_TRUNC).
    pub truncated: bool,
}

/// What stands at a slot of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Bytes of the file.
    pub length: u64,
    /// None: a hole.
    pub chunk: Option<ChunkId>,
}

/// What a write to a slot meets. Spec 41, 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteTarget {
    /// Nothing: a new chunk is needed.
    Empty,
    /// A chunk of this file alone.
    Sole(ChunkId),
    /// A chunk that other slots hold, too: it must be duplicated.
    Shared(ChunkId),
}

/// A chunk that may be written now; locked for 120 seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    pub chunk: ChunkId,
    pub version: Version,
    /// What the slot held before, for `rollback`.
    pub previous: Option<ChunkId>,
    /// Bytes of the file before and after the change.
    pub length_before: u64,
    pub length: u64,
    /// Unix seconds.
    pub locked_to: u32,
}

/// How far TRUNCATE came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncate {
    Done {
        /// Length before; for RESERVE the offset that the append gets.
        previous: u64,
        attr: Attr,
    },
    /// The chunk that holds the new end must be cut first: `grant_truncate`, the chunk operation, then
    /// `truncate_finish` or `rollback`.
    Chunk {
        previous: u64,
        index: u32,
        chunk: ChunkId,
        shared: bool,
        /// Bytes of the chunk that stay.
        chunk_length: u32,
    },
}

impl Namespace {
    /// Makes a file and opens it. Spec 31, 31.6 "CREATE".
    pub fn create(
        &mut self,
        caller: &Caller<'_>,
        parent: Inode,
        name: &[u8],
        mode: u16,
        umask: u16,
    ) -> Result<Opened, Status> {
        let kind = (NodeKind::File, disables::CREATE);
        let (inode, attr) = self.make(caller, parent, name, kind, (mode, umask), false, 0)?;
        self.acquire(caller.now, caller.session, inode.0)?;
        Ok(Opened { inode, attr, flags: self.opened_flags(inode.0), truncated: false })
    }

    /// Spec 31, 31.6 "OPEN".
    pub fn open(&mut self, caller: &Caller<'_>, inode: Inode, flags: u8) -> Result<Opened, Status> {
        let who = self.who(caller)?;
        let truncates = flags & open_flags::TRUNCATE != 0;
        let writes = flags & open_flags::WRITE != 0;
        if truncates {
            who.must_not_be_disabled(disables::TRUNCATE)?;
        }
        if writes || truncates {
            who.must_be_writable()?;
        }
        let inode = self.resolve(&who, inode, false)?;
        let node = *self.state.at(inode);
        if node.kind() != NodeKind::File {
            return Err(Status::EPERM);
        }
        if node.has_eattr(eattr::IMMUTABLE) && (writes || truncates) || node.has_eattr(eattr::APPEND_ONLY) && truncates
        {
            return Err(Status::EPERM);
        }
        if flags & open_flags::AFTER_CREATE == 0 {
            let reads = if flags & open_flags::READ != 0 { READ } else { 0 };
            self.must_allow(&who, inode, reads | if writes { WRITE } else { 0 })?;
        }
        if truncates {
            self.must_allow(&who, inode, WRITE)?;
        }
        if node.has_eattr(eattr::APPEND_ONLY) && writes && !who.knows_append_only() {
            return Err(Status::EACCES);
        }
        if truncates {
            self.append_ends.remove(&inode);
            self.commit(who.now, &Change::Length { inode: Inode(inode), length: 0, touch_times: 1 })?;
        }
        self.acquire(who.now, who.session, inode)?;
        let attr = self.attr(&who, inode, None);
        Ok(Opened { inode: Inode(inode), attr, flags: self.opened_flags(inode), truncated: truncates })
    }

    fn opened_flags(&self, inode: u32) -> u8 {
        let node = self.state.at(inode);
        let direct = if node.has_eattr(eattr::NO_DATA_CACHE) { opened_flags::DIRECTMODE } else { 0 };
        let append = if node.has_eattr(eattr::APPEND_ONLY) { opened_flags::APPENDONLY } else { 0 };
        direct | append
    }

    // --- reading and writing

    /// What a read of this slot meets. Errors: `EPERM`, `ENOENT`, `INDEXTOOBIG`. Spec 31, 31.8.
    pub fn check_read(&self, session: SessionId, inode: Inode, index: u32) -> Result<Slot, Status> {
        let who = self.session_itself(session, Time(0))?;
        who.must_not_be_disabled(disables::READ)?;
        let inode = self.data_inode(&who, inode)?;
        if index > CHUNK_INDEX_MAX {
            return Err(Status::INDEXTOOBIG);
        }
        let node = self.state.at(inode);
        Ok(Slot { length: node.length(), chunk: self.chunk_id(self.state.chunk_of(node, index)) })
    }

    /// What a write to this slot meets, after all tests that need no servers; free space is tested by the caller
    /// between `EROFS` and `ENOENT`. Spec 31, 31.9 "WRITE_CHUNK".
    pub fn check_write(
        &self,
        session: SessionId,
        version: VersionWord,
        inode: Inode,
        index: u32,
    ) -> Result<WriteTarget, Status> {
        let who = self.session_itself(session, Time(0))?;
        self.may_write(&who, version)?;
        let inode = self.data_inode(&who, inode)?;
        let node = self.state.at(inode);
        if node.has_eattr(eattr::IMMUTABLE) {
            return Err(Status::EPERM);
        }
        if index > CHUNK_INDEX_MAX {
            return Err(Status::INDEXTOOBIG);
        }
        self.must_fit_quotas_of_links(inode, &self.growth_of_write(inode, index))?;
        let slot = self.state.chunk_of(node, index);
        if slot == 0 {
            return Ok(WriteTarget::Empty);
        }
        let chunk = self.state.chunks.at(slot);
        Ok(if chunk.references > 1 { WriteTarget::Shared(chunk.id) } else { WriteTarget::Sole(chunk.id) })
    }

    /// The first tests of WRITE_CHUNK and WRITE_CHUNK_END: `EPERM` (disabled), `EROFS` (old clients: `IO`).
    pub fn check_may_write(&self, session: SessionId, version: VersionWord) -> Result<(), Status> {
        self.may_write(&self.session_itself(session, Time(0))?, version)
    }

    fn may_write(&self, who: &Who<'_>, version: VersionWord) -> Result<(), Status> {
        who.must_not_be_disabled(disables::WRITE)?;
        if who.has(session_flags::READ_ONLY) {
            return Err(if version.at_least(3, 0, 101) { Status::EROFS } else { Status::IO });
        }
        Ok(())
    }

    /// Any node with data, wherever it is. Spec 31, 31.1: no ancestor test, no permission test.
    fn data_inode(&self, who: &Who<'_>, inode: Inode) -> Result<u32, Status> {
        let inode = if inode == Inode::ROOT && who.root != 0 { who.root } else { inode.0 };
        let node = self.state.node(inode).ok_or(Status::ENOENT)?;
        if node.has_data() { Ok(inode) } else { Err(Status::EPERM) }
    }

    fn chunk_id(&self, slot: u32) -> Option<ChunkId> {
        (slot != 0).then(|| self.state.chunks.at(slot).id)
    }

    /// Writes down that a slot is being written: a raised version, a new chunk, or neither. The chunk is locked for
    /// 120 seconds. Spec 41, 4.1 to 4.3.
    ///
    /// `raise_version` counts only if the chunk is the file's own. `touch_times`: set mtime and ctime (clients before
    /// 3.0.74).
    pub fn grant_write(
        &mut self,
        now: impl Into<Time>,
        inode: Inode,
        index: u32,
        raise_version: bool,
        touch_times: bool,
    ) -> Result<Grant, Status> {
        let now = now.into();
        let raise_version = match raise_version {
            // Nothing has to be ended of a new chunk in an empty place.
            true if self.chunk_in_slot(inode, index).is_none() => raise::AT_ONCE,
            true => raise::BEGUN,
            false => raise::NO,
        };
        let touch_times = u8::from(touch_times);
        self.grant(now, inode, index, &Change::Write { inode, index, raise_version, touch_times })
    }

    /// Writes down that the chunk that holds a file's new end is being cut, for a file of `length` bytes. A shorter length
    /// holds from now on, unless the chunk is shared. `settle_chunk` ends it. Spec 41, 4.4.
    pub fn grant_truncate(
        &mut self,
        now: impl Into<Time>,
        inode: Inode,
        index: u32,
        length: u64,
    ) -> Result<Grant, Status> {
        let now = now.into();
        let grant = self.grant(now, inode, index, &Change::Cut { inode, index, length })?;
        if grant.length < grant.length_before {
            self.append_ends.remove(&inode.0);
        }
        Ok(grant)
    }

    fn grant(&mut self, now: Time, inode: Inode, index: u32, change: &Change<'_>) -> Result<Grant, Status> {
        let node = self.state.node(inode.0).ok_or(Status::ENOENT)?;
        if !node.has_data() {
            return Err(Status::EPERM);
        }
        let (previous, length_before) = (self.chunk_id(self.state.chunk_of(node, index)), node.length());
        let outcome = self.commit(now, change)?;
        let slot = self.state.chunks.find(outcome.first()).expect("the change gave this chunk");
        let chunk = self.state.chunks.at(slot);
        let locked_to = now.seconds().saturating_add(WRITE_LOCK_SECONDS);
        let length = self.state.at(inode.0).length();
        Ok(Grant { chunk: chunk.id, version: chunk.version, previous, length_before, length, locked_to })
    }

    /// The chunk that holds the file's end, if its copies must be cut before the file may grow.
    pub fn owes_cut(&self, inode: Inode) -> Option<ChunkId> {
        let node = self.state.node(inode.0).filter(|node| node.has_data() && node.length() > 0)?;
        let record = self.state.chunks.get(self.state.chunk_of(node, last_index(node.length())))?;
        record.cut.map(|_| record.id)
    }

    /// Chunks that were to take a shared one's place, and where: of changes that the last master did not end.
    pub fn unattached_chunks(&self) -> Vec<(ChunkId, Inode, u32)> {
        let chunks = &self.state.chunks;
        let unattached = chunks.unsettled().filter_map(|(slot, unsettled)| Some((slot, unsettled.attach?)));
        unattached.map(|(slot, attach)| (chunks.at(slot).id, Inode(attach.inode), attach.index)).collect()
    }

    /// The end of a run of writes: the length, then the lock. `length` 0 = only unlock. Returns the file's length, if
    /// the file was asked for. The lock goes also when the length cannot be set: the writer has ended, and who reads or
    /// cuts the file next is not to wait until the lock times out. Spec 31, 31.9 "WRITE_CHUNK_END".
    #[allow(clippy::too_many_arguments, reason = "the fields of the packet")]
    pub fn write_end(
        &mut self,
        session: SessionId,
        version: VersionWord,
        now: impl Into<Time>,
        inode: Inode,
        chunk: ChunkId,
        length: u64,
        touch_times: bool,
    ) -> Result<Option<u64>, Status> {
        let now = now.into();
        let who = self.session_itself(session, now)?;
        self.may_write(&who, version)?;
        let set = if length > 0 { self.written_to(&who, inode, length, touch_times).map(Some) } else { Ok(None) };
        let unlocked = self.unlock(now, chunk);
        let length = set?;
        unlocked.map(|()| length)
    }

    /// The file's length after a write that ended there.
    fn written_to(&mut self, who: &Who<'_>, inode: Inode, end: u64, touch_times: bool) -> Result<u64, Status> {
        let inode = self.data_inode(who, inode)?;
        if self.state.at(inode).has_eattr(eattr::IMMUTABLE) {
            return Err(Status::EPERM);
        }
        // The file was cut while this was being written, and its last chunk is not cut yet: what was written behind it is
        // gone, and the length must not say otherwise.
        let was_cut = self.owes_cut(Inode(inode)).is_some();
        if end > self.state.at(inode).length() && !was_cut {
            self.raise(who.now, inode, end, touch_times)?;
        }
        Ok(self.state.at(inode).length())
    }

    /// Raises the length of a file, quotas permitting.
    fn raise(&mut self, now: Time, inode: u32, length: u64, touch_times: bool) -> Result<(), Status> {
        if length > FILE_BYTES_MAX {
            return Err(Status::INDEXTOOBIG);
        }
        self.must_fit_quotas_of_links(inode, &self.growth_to(inode, length))?;
        let touch_times = u8::from(touch_times);
        self.commit(now, &Change::Length { inode: Inode(inode), length, touch_times })?;
        if self.append_ends.get(&inode).is_some_and(|end| *end <= length) {
            self.append_ends.remove(&inode);
        }
        Ok(())
    }

    /// What a greater length adds: with it the last chunk that the file has counts for more.
    fn growth_to(&self, inode: u32, length: u64) -> Figures {
        let node = self.state.at(inode);
        let (old, new) = (self.state.figures(inode), self.state.file_figures_at(node, length));
        Figures {
            length: new.length - old.length,
            size: new.size.saturating_sub(old.size),
            realsize: new.realsize.saturating_sub(old.realsize),
            ..Figures::default()
        }
    }

    /// What a write to a slot may add: up to a full chunk, and the length up to the chunk's start.
    fn growth_of_write(&self, inode: u32, index: u32) -> Figures {
        let node = self.state.at(inode);
        let start = u64::from(index) * u64::from(CHUNK_BYTES);
        let length = start.saturating_sub(node.length());
        let full = last_chunk_size(u64::from(CHUNK_BYTES));
        let present = match self.state.chunk_of(node, index) {
            0 => 0,
            _ if last_index(node.length()) == index => last_chunk_size(node.length()),
            _ if node.length() > start => full,
            _ => 0,
        };
        let size = full - present;
        let copies = u64::from(self.state.classes.copies_max(node.class));
        Figures { length, size, realsize: size * copies, ..Figures::default() }
    }

    // --- lengths

    /// Sets or raises the length of a file, or reserves room for an append. Spec 31, 31.9 "TRUNCATE".
    pub fn truncate(&mut self, caller: &Caller<'_>, inode: Inode, flags: u8, length: u64) -> Result<Truncate, Status> {
        use truncate_flags::*;
        let who = self.who(caller)?;
        let only_raises = flags & (UPDATE | RESERVE) != 0;
        let both = who.is_disabled(disables::TRUNCATE) && who.is_disabled(disables::SETLENGTH);
        if if only_raises { who.is_disabled(disables::WRITE) } else { both } {
            return Err(Status::EPERM);
        }
        who.must_be_writable()?;
        let inode = self.resolve(&who, inode, flags & OPENED != 0)?;
        let node = *self.state.at(inode);
        if node.has_eattr(eattr::IMMUTABLE) || node.has_eattr(eattr::APPEND_ONLY) && !only_raises {
            return Err(Status::EPERM);
        }
        if flags & OPENED == 0 {
            self.must_allow(&who, inode, WRITE)?;
        }
        if !node.has_data() {
            return Err(Status::EPERM);
        }
        let previous = node.length();
        if flags & RESERVE != 0 {
            let previous = self.reserve(inode, length)?;
            return Ok(Truncate::Done { previous, attr: self.attr(&who, inode, None) });
        }
        if flags & UPDATE != 0 {
            self.append_ends.remove(&inode);
            if length > previous {
                self.raise(who.now, inode, length, false)?;
            }
            return Ok(Truncate::Done { previous, attr: self.attr(&who, inode, None) });
        }
        if length < previous {
            who.must_not_be_disabled(disables::TRUNCATE)?;
        } else if length > previous {
            who.must_not_be_disabled(disables::SETLENGTH)?;
            if length > FILE_BYTES_MAX {
                return Err(Status::INDEXTOOBIG);
            }
            self.must_fit_quotas_of_links(inode, &self.growth_to(inode, length))?;
        }
        let chunk_length = (length % u64::from(CHUNK_BYTES)) as u32;
        let index = (length / u64::from(CHUNK_BYTES)) as u32;
        let owes_cut = length == previous && self.owes_cut(Inode(inode)).is_some();
        if (length != previous || owes_cut) && chunk_length != 0 {
            let slot = self.state.chunk_of(&node, index);
            if slot != 0 {
                let chunk = self.state.chunks.at(slot);
                let shared = chunk.references > 1;
                return Ok(Truncate::Chunk { previous, index, chunk: chunk.id, shared, chunk_length });
            }
        }
        let attr = self.cut(&who, inode, flags, length)?;
        Ok(Truncate::Done { previous, attr })
    }

    /// The chunk at the new end is cut: unlock it and set the length.
    pub fn truncate_finish(
        &mut self,
        caller: &Caller<'_>,
        inode: Inode,
        flags: u8,
        length: u64,
        chunk: ChunkId,
    ) -> Result<Attr, Status> {
        let who = self.who(caller)?;
        self.unlock(who.now, chunk)?;
        let inode = self.resolve(&who, inode, true)?;
        if !self.state.at(inode).has_data() {
            return Err(Status::EPERM);
        }
        self.cut(&who, inode, flags, length)
    }

    fn cut(&mut self, who: &Who<'_>, inode: u32, flags: u8, length: u64) -> Result<Attr, Status> {
        let unchanged = self.state.at(inode).length() == length;
        let touch_times = u8::from(!unchanged || flags & truncate_flags::TIMEFIX == 0);
        self.append_ends.remove(&inode);
        self.commit(who.now, &Change::Length { inode: Inode(inode), length, touch_times })?;
        Ok(self.attr(who, inode, None))
    }

    /// Room for an append at the end; says where it goes. Nothing of it is kept over a restart.
    fn reserve(&mut self, inode: u32, bytes: u64) -> Result<u64, Status> {
        let length = self.state.at(inode).length();
        let start = self.append_ends.get(&inode).copied().unwrap_or(0).max(length);
        let end = start.checked_add(bytes).filter(|end| *end <= FILE_BYTES_MAX).ok_or(Status::INDEXTOOBIG)?;
        self.must_fit_quotas_of_links(inode, &Figures { length: end - length, ..Figures::default() })?;
        self.append_ends.insert(inode, end);
        Ok(start)
    }

    // --- chunks

    /// Undoes a grant whose chunk operation failed: the slot gets back what it held, the chunk is unlocked.
    pub fn rollback(
        &mut self,
        now: impl Into<Time>,
        inode: Inode,
        index: u32,
        previous: Option<ChunkId>,
        chunk: ChunkId,
    ) -> Result<(), Status> {
        let now = now.into();
        let previous = previous.unwrap_or(ChunkId(0));
        self.commit(now, &Change::Rollback { inode, index, previous, chunk }).map(drop)
    }

    /// Errors: `NOCHUNK`.
    pub fn unlock(&mut self, now: impl Into<Time>, chunk: ChunkId) -> Result<(), Status> {
        let now = now.into();
        self.commit(now, &Change::Unlock { chunk }).map(drop)
    }

    /// Copies are about to be given this version, which is higher than the chunk's. Errors: `NOCHUNK`, `WRONGVERSION`.
    pub fn raise_chunk(&mut self, now: impl Into<Time>, chunk: ChunkId, version: Version) -> Result<(), Status> {
        let now = now.into();
        self.commit(now, &Change::Raise { chunk, version }).map(drop)
    }

    /// This is the chunk's version, and what was begun with it is done. Errors: `NOCHUNK`; `WRONGCHUNKID`, `ENOENT`: it
    /// was to take another's place in a file, which has changed.
    pub fn set_chunk_version(&mut self, now: impl Into<Time>, chunk: ChunkId, version: Version) -> Result<(), Status> {
        let now = now.into();
        self.commit(now, &Change::SetVersion { chunk, version }).map(drop)
    }

    /// A chunk that a server reported and nobody knows. Spec 41, 4.5 "CHUNKADD".
    pub fn chunk_add(
        &mut self,
        now: impl Into<Time>,
        chunk: ChunkId,
        version: Version,
        locked_to: u32,
    ) -> Result<(), Status> {
        let now = now.into();
        self.commit(now, &Change::ChunkAdd { chunk, version, locked_to }).map(drop)
    }

    /// Ids below `next` are never given to new chunks: servers may hold some that nobody knows. Errors: `EINVAL` if the
    /// next id is higher already.
    pub fn raise_next_chunk_id(&mut self, now: impl Into<Time>, next: ChunkId) -> Result<(), Status> {
        let now = now.into();
        self.commit(now, &Change::NextChunkId { next }).map(drop)
    }

    /// Forgets a chunk. Errors: `NOCHUNK`, `WRONGVERSION`, `ACTIVE` (a file holds it), `LOCKED`. Spec 41, 13.
    pub fn chunk_delete(&mut self, now: impl Into<Time>, chunk: ChunkId, version: Version) -> Result<(), Status> {
        let now = now.into();
        self.commit(now, &Change::ChunkDelete { chunk, version })?;
        self.state.chunks.forget_last_deleted();
        Ok(())
    }

    /// Puts another chunk, or none, in the place of one that is lost. Spec 41, 12 "SETFILECHUNK".
    pub fn set_file_chunk(
        &mut self,
        now: impl Into<Time>,
        inode: Inode,
        index: u32,
        chunk: Option<ChunkId>,
    ) -> Result<(), Status> {
        let now = now.into();
        let chunk = chunk.unwrap_or(ChunkId(0));
        self.commit(now, &Change::SetFileChunk { inode, index, chunk }).map(drop)
    }

    /// The tests of REPAIR: `EROFS`, `ENOENT`, `EPERM`, `EACCES`. Spec 32, 32.4.
    pub fn check_repair(&self, caller: &Caller<'_>, inode: Inode) -> Result<Inode, Status> {
        let who = self.who(caller)?;
        who.must_be_writable()?;
        let inode = self.resolve(&who, inode, false)?;
        let node = self.state.at(inode);
        if node.kind() != NodeKind::File || node.has_eattr(eattr::IMMUTABLE) {
            return Err(Status::EPERM);
        }
        self.must_allow(&who, inode, WRITE)?;
        Ok(Inode(inode))
    }

    /// Makes a version that servers have the chunk's version, or (0) empties the slot. Spec 41, 12.
    pub fn repair_slot(
        &mut self,
        now: impl Into<Time>,
        inode: Inode,
        index: u32,
        version: Version,
    ) -> Result<(), Status> {
        let now = now.into();
        self.commit(now, &Change::Repair { inode, index, version }).map(drop)
    }

    /// (index, chunk) of the slots that hold one, from `first` on, in order. Errors: `ENOENT`, `EPERM` (no file).
    pub fn file_chunks(&self, inode: Inode, first: u32) -> Result<impl Iterator<Item = (u32, ChunkId)> + '_, Status> {
        let node = self.state.node(inode.0).ok_or(Status::ENOENT)?;
        if !node.has_data() {
            return Err(Status::EPERM);
        }
        Ok(self.state.chunks_from(node, first).map(|(index, slot)| (index, self.state.chunks.at(slot).id)))
    }

    /// A file as a session names it, with its length and number of slots, for CHECK and NODE_INFO. Errors: `ENOENT`,
    /// `EPERM`.
    pub fn file(&self, session: SessionId, inode: Inode) -> Result<(Inode, u64, u32), Status> {
        let who = self.session_itself(session, Time(0))?;
        let inode = self.resolve(&who, inode, false)?;
        let node = self.state.at(inode);
        if !node.has_data() {
            return Err(Status::EPERM);
        }
        Ok((Inode(inode), node.length(), self.state.slots(node)))
    }

    pub fn chunk(&self, id: ChunkId) -> Option<ChunkRecord> {
        self.state.chunks.find(id.0).map(|slot| self.state.chunks.at(slot))
    }

    /// Bytes of a file, if it is one.
    pub fn length(&self, inode: Inode) -> Option<u64> {
        self.state.node(inode.0).filter(|node| node.has_data()).map(|node| node.length())
    }

    /// What stands at a slot of a file, if that is a file.
    pub fn chunk_in_slot(&self, inode: Inode, index: u32) -> Option<ChunkId> {
        let node = self.state.node(inode.0).filter(|node| node.has_data())?;
        self.chunk_id(self.state.chunk_of(node, index))
    }

    pub fn chunk_at_slot(&self, slot: u32) -> Option<ChunkRecord> {
        self.state.chunks.get(slot)
    }

    /// Slots of chunks are below this.
    pub fn chunk_slots(&self) -> u32 {
        self.state.chunks.slots_end()
    }

    pub fn chunks(&self) -> impl Iterator<Item = ChunkRecord> + '_ {
        self.state.chunks.iter()
    }

    pub fn chunk_count(&self) -> u32 {
        self.state.chunks.count() as u32
    }

    pub fn next_chunk_id(&self) -> ChunkId {
        ChunkId(self.state.chunks.next_id())
    }
}
