//! Reading an image: its frames in pieces of any size, each record checked against what was read before.

use wire::limits::CHUNK_BYTES;
use wire::{ChunkId, Field, Inode, Input, Ip4, NodeKind, SessionId, Time, WireError};

use super::{
    Digest, Digester, FORMAT, FORMAT_SECONDS, FRAME_HEAD_BYTES, HEADER_BYTES, ImageError, ImageHeader, Section,
    digest_of_format, whole_frame,
};
use crate::acl::{self, Acl};
use crate::apply::{name_is_legal, put_acl};
use crate::chunk_table::{Attach, Unsettled};
use crate::class::{LabelSets, StorageClass};
use crate::index::{Filling, Twice};
use crate::locks::{LockKind, LockOwner, RangeLock};
use crate::namespace::{Namespace, Policy};
use crate::node::{Edge, Node, mark};
use crate::owners::Ownership;
use crate::quota::{Limits, Quota};
use crate::session::{Session, SessionParams};
use crate::state::{ROOT, ServerEntry, State};
use crate::times::Times;

/// Handles are 32 bits.
const MANY: u64 = 1 << 32;
/// No record of an edge and none of a chunk is shorter, so an image of so many bytes has not more of them, whatever its
/// counters say.
const EDGE_BYTES_MIN: u64 = 21;
const CHUNK_BYTES_MIN: u64 = 17;

/// Takes an image in pieces of any size and builds the state.
pub struct Loader {
    /// Of the whole image.
    bytes: u64,
    state: State,
    header: Option<ImageHeader>,
    /// Layout of the records.
    format: u32,
    /// Bytes that are not a whole frame yet.
    rest: Vec<u8>,
    /// Place of `rest` in the file.
    offset: u64,
    section: Option<Section>,
    digest: Digester,
    end: Option<(u64, u64)>,
    /// Edge read last, to hang the next one of its list behind.
    last_edge: u32,
    /// Nodes with several names: their order is by edge, not by directory.
    linked: Vec<u32>,
    /// Names on their way into the index.
    names: Option<Filling>,
    /// Chunk of the file that was read last: the next file's is often the next one.
    last_chunk: u32,
    /// All inode numbers are below this: a damaged number must not make the tables huge.
    inodes_end: u32,
    /// Edges and chunks, as the counters say.
    counted: (u64, u64),
}

/// What a record does not keep to.
enum Broken {
    Short,
    Rule(&'static str),
}

impl From<WireError> for Broken {
    fn from(_: WireError) -> Broken {
        Broken::Short
    }
}

impl Loader {
    /// For an image of so many bytes.
    pub fn new(bytes: u64) -> Loader {
        Loader {
            bytes,
            state: State::empty(),
            header: None,
            format: FORMAT,
            rest: Vec::new(),
            offset: 0,
            section: None,
            digest: Digester::default(),
            end: None,
            last_edge: 0,
            linked: Vec::new(),
            names: None,
            last_chunk: 0,
            inodes_end: 0,
            counted: (0, 0),
        }
    }

    /// The next bytes of the file.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        let mut bytes = bytes;
        // Frames that lie whole in the caller's bytes are read from there; only a torn one is copied.
        if !self.rest.is_empty() {
            let mut joined = std::mem::take(&mut self.rest);
            joined.extend_from_slice(bytes);
            let used = self.take_frames(&joined)?;
            joined.drain(..used);
            self.rest = joined;
            return Ok(());
        }
        let used = self.take_frames(bytes)?;
        bytes = &bytes[used..];
        self.rest.extend_from_slice(bytes);
        Ok(())
    }

    /// The state, after all bytes. Errors: also `Truncated`, `Digest`.
    pub fn finish(mut self, policy: Policy) -> Result<Namespace, ImageError> {
        let Some(header) = self.header else {
            return Err(ImageHeader::decode(&self.rest).err().unwrap_or(ImageError::NotAnImage));
        };
        let truncated = ImageError::Truncated { section: self.section, offset: self.offset };
        if !self.rest.is_empty() {
            return Err(truncated);
        }
        let (records, sum) = self.end.ok_or(truncated)?;
        let malformed = |what| ImageError::Malformed { section: Section::End, offset: self.offset, what };
        if self.state.meta_id != header.meta_id.0 || self.state.version != header.version {
            return Err(malformed("header and counters name different versions"));
        }
        if records != self.digest.records {
            return Err(malformed("records are missing"));
        }
        if self.state.node(ROOT).is_none_or(|root| !root.is_directory()) {
            return Err(malformed("there is no root directory"));
        }
        let sizes = self.state.sizes();
        if self.state.inodes_end() != self.inodes_end || (sizes.edges, sizes.chunks) != self.counted {
            return Err(malformed("a counter does not count what is there"));
        }
        for inode in std::mem::take(&mut self.linked) {
            self.state.sort_links(inode);
        }
        let nameless = |inode: &u32| *inode != ROOT && self.state.at(*inode).edge == 0;
        if self.state.inodes().any(|inode| nameless(&inode)) {
            return Err(malformed("a node has no name"));
        }
        // Directories that only name each other would hang free: from the root all of them must be reached.
        let dirs_in_tree = self.state.figures(ROOT).dirs;
        let dirs = self.state.inodes().filter(|inode| self.state.at(*inode).is_directory()).count();
        if dirs != dirs_in_tree as usize {
            return Err(malformed("a directory is not below the root"));
        }
        let written = Digest(sum);
        let computed = digest_of_format(&self.state, self.format);
        if written != computed {
            return Err(ImageError::Digest { written, computed });
        }
        Ok(Namespace::from_state(self.state, policy))
    }

    /// Bytes used.
    fn take_frames(&mut self, bytes: &[u8]) -> Result<usize, ImageError> {
        let mut used = 0;
        if self.header.is_none() {
            if bytes.len() < HEADER_BYTES {
                return Ok(0);
            }
            let (header, format) = ImageHeader::decode_with_format(bytes)?;
            (self.header, self.format) = (Some(header), format);
            used = HEADER_BYTES;
            self.offset = HEADER_BYTES as u64;
        }
        while let Some(length) = self.take_frame(&bytes[used..])? {
            used += length;
            self.offset += length as u64;
        }
        Ok(used)
    }

    fn take_frame(&mut self, bytes: &[u8]) -> Result<Option<usize>, ImageError> {
        let Some((section, payload)) = whole_frame(bytes, self.section, self.offset)? else { return Ok(None) };
        let offset = self.offset;
        let malformed = |what| ImageError::Malformed { section, offset, what };
        if self.section != Some(section) {
            let settled = match self.section {
                Some(Section::Chunks) => self.state.finish_chunks().map_err(|Twice| CHUNK_TWICE),
                Some(Section::Edges) => self.state.finish_links(self.names.take()).map_err(|Twice| NAME_TWICE),
                _ => Ok(()),
            };
            settled.map_err(malformed)?;
            self.last_edge = 0;
            self.section = Some(section);
        }
        let mut input = Input::new(payload);
        while !input.is_empty() {
            match self.take_record(section, &mut input) {
                Ok(()) => {}
                Err(Broken::Short) => return Err(malformed("a record is cut off")),
                Err(Broken::Rule(what)) => return Err(malformed(what)),
            }
            self.digest.records += u64::from(section != Section::End);
        }
        Ok(Some(FRAME_HEAD_BYTES + payload.len()))
    }

    fn take_record(&mut self, section: Section, input: &mut Input<'_>) -> Result<(), Broken> {
        let state = &mut self.state;
        match section {
            Section::Counters => {
                must(self.names.is_none(), "there are two records of counters")?;
                state.meta_id = u64::take(input)?;
                state.version = u64::take(input)?;
                let next_edge_id = u64::take(input)?;
                must(Edge::id_fits(next_edge_id), "the counter of edges is out of range")?;
                state.next_edge_id = next_edge_id;
                state.chunks.set_next_id(u64::take(input)?);
                state.next_session = u32::take(input)?;
                self.inodes_end = u32::take(input)?;
                let (edges, chunks) = (u64::take(input)?, u64::take(input)?);
                must(edges < MANY && chunks < MANY, "the counters are out of range")?;
                self.counted = (edges, chunks);
                self.names = Some(state.begin_links(edges.min(self.bytes / EDGE_BYTES_MIN)));
                state.begin_chunks(chunks.min(self.bytes / CHUNK_BYTES_MIN));
            }
            Section::Classes => {
                let (id, class) = take_class(input)?;
                must(id != 0, "a storage class has id 0")?;
                state.classes.set(id, Some(class));
            }
            Section::Chunks => {
                let id = ChunkId::take(input)?;
                let (version, locked_to, archived) = (u32::take(input)?, u32::take(input)?, u8::take(input)?);
                must(id.0 != 0 && id.0 < state.chunks.next_id(), "a chunk's id was never given")?;
                state
                    .chunks
                    .fill(id.0, version, locked_to, archived != 0)
                    .map_err(|Twice| Broken::Rule(CHUNK_TWICE))?;
            }
            Section::Nodes => self.take_node(input)?,
            Section::Slots => {
                let (inode, index, chunk) = (u32::take(input)?, u32::take(input)?, ChunkId::take(input)?);
                must(state.node(inode).is_some_and(Node::has_data), "chunks of what is no file")?;
                must(index <= wire::limits::CHUNK_INDEX_MAX, "a chunk index is out of range")?;
                let slot = state.chunks.find_after(self.last_chunk, chunk.0).ok_or(UNKNOWN_CHUNK)?;
                self.last_chunk = slot;
                must(state.chunk_of(state.at(inode), index) == 0, "a slot occurs twice")?;
                state.put_chunk(inode, index, slot);
            }
            Section::Edges => self.take_edge(input)?,
            Section::Free => {
                let (inode, since) = (u32::take(input)?, u32::take(input)?);
                must(inode < self.inodes_end, "a free inode number is out of range")?;
                must(state.inode_numbers().take(inode), "a free inode number is in use or out of range")?;
                state.inode_numbers().waiting.push_back((inode, since));
            }
            Section::Xattrs => {
                let inode = u32::take(input)?;
                let (name, value) = (take_bytes(input)?, take_bytes(input)?);
                must(state.node(inode).is_some(), "an attribute of an unknown node")?;
                state.xattrs.entry(inode).or_default().insert(name, value);
                state.at_mut(inode).set_mark(mark::XATTR, true);
            }
            Section::Acls => {
                let (inode, kind, acl) = take_acl(input)?;
                must(state.node(inode).is_some(), "an ACL of an unknown node")?;
                must(matches!(kind, acl::ACCESS | acl::DEFAULT), "an ACL of unknown type")?;
                put_acl(state, inode, kind, Some(acl));
            }
            Section::Quotas => {
                let (inode, quota) = take_quota(input)?;
                must(state.node(inode).is_some_and(Node::is_directory), "a quota of what is no directory")?;
                state.quotas.insert(inode, quota);
                state.at_mut(inode).set_mark(mark::QUOTA, true);
            }
            Section::Sessions => {
                let (id, session) = take_session(input)?;
                must(id.0 != 0 && id.0 < state.next_session, "a session's id was never given")?;
                state.sessions.insert(id, session);
            }
            Section::OpenFiles => {
                let (session, inode) = (SessionId::take(input)?, u32::take(input)?);
                must(state.sessions.contains_key(&session), "a file is open by an unknown session")?;
                state.acquire(session, inode);
            }
            Section::Locks => {
                let inode = u32::take(input)?;
                let (holder, kind) = (take_holder(input)?, take_lock_kind(input)?);
                must(state.locks.take_whole(inode, holder, kind), "locks contradict each other")?;
            }
            Section::Ranges => {
                let inode = u32::take(input)?;
                let holder = take_holder(input)?;
                let (pid, start, end) = (u32::take(input)?, u64::take(input)?, u64::take(input)?);
                let range = RangeLock { holder, pid, start, end, kind: take_lock_kind(input)? };
                must(state.locks.take_range(inode, range), "locked ranges contradict each other")?;
            }
            Section::Servers => {
                let key = (Ip4::take(input)?, u16::take(input)?);
                let csid = u16::take(input)?;
                let (maintenance, maintenance_until) = (u8::take(input)?, u32::take(input)?);
                state.servers.insert(key, ServerEntry { csid, maintenance, maintenance_until });
            }
            Section::Unsettled => {
                let chunk = ChunkId::take(input)?;
                let (floor, has_cut, cut) = (u32::take(input)?, u8::take(input)?, u32::take(input)?);
                let attach = Attach { inode: u32::take(input)?, index: u32::take(input)?, previous: u64::take(input)? };
                let slot = state.chunks.find(chunk.0).ok_or(UNKNOWN_CHUNK)?;
                let attach = (attach.inode != 0).then_some(attach);
                must(state.chunks.at(slot).version.0 > floor, "a chunk is older than its last writer")?;
                must(attach.is_none() || floor == 0, "a chunk that is in no file had a writer")?;
                must(
                    attach.is_none_or(|attach| attach.index <= wire::limits::CHUNK_INDEX_MAX),
                    "a chunk index is out of range",
                )?;
                must(cut <= CHUNK_BYTES, "a chunk is to be cut behind its end")?;
                let cut = (has_cut != 0).then_some(cut);
                state.chunks.set_unsettled(slot, Unsettled { floor, cut, attach });
            }
            Section::End => {
                must(self.end.is_none(), "there are two ends")?;
                self.end = Some((u64::take(input)?, u64::take(input)?));
            }
        }
        Ok(())
    }

    fn take_edge(&mut self, input: &mut Input<'_>) -> Result<(), Broken> {
        let state = &mut self.state;
        let (parent, child, id) = (u32::take(input)?, u32::take(input)?, u64::take(input)?);
        let length = u32::take(input)?;
        let name = input.bytes(length as usize, "name")?;
        must(Edge::id_fits(id) && id > state.next_edge_id, "an edge's id was never given")?;
        must(child != ROOT, "the root has a name")?;
        let node = *state.node(child).ok_or(Broken::Rule("an edge names an unknown node"))?;
        let detached = matches!(node.kind(), NodeKind::Trash | NodeKind::Sustained);
        must(detached == (parent == 0), "an edge of trash is in a directory, or the other way round")?;
        must(node.edge == 0 || !node.is_directory() && !detached, "a node has too many names")?;
        must(node.links != u16::MAX, "a node has too many names")?;
        let mut newer = self.last_edge;
        if newer != 0 {
            let last = state.edge(newer);
            let same_list = last.parent == parent && (parent != 0 || state.same_bucket(last.child, child));
            // A purged file keeps its entry's id, and goes to the head of another list.
            must(!same_list || last.id() < id || detached, "entries are out of order")?;
            if !same_list {
                newer = 0;
            }
        }
        if detached {
            must((1..=wire::limits::PATH_BYTES_MAX).contains(&name.len()), "a path has an illegal length")?;
            must(newer != 0 || state.bucket_is_empty(child), "entries of a bucket are not together")?;
            self.last_edge = state.detached_as_oldest(child, name, id, newer);
            return Ok(());
        }
        let directory = state.node(parent).filter(|node| node.is_directory());
        let directory = directory.ok_or(Broken::Rule("an edge lies in what is no directory"))?;
        must(newer != 0 || directory.newest() == 0, "entries of a directory are not together")?;
        must(name_is_legal(name), "a name is illegal")?;
        must(!node.is_directory() || !state.directory_is_below(parent, child), "directories form a ring")?;
        if node.edge != 0 {
            self.linked.push(child);
        }
        let names = self.names.get_or_insert_with(|| state.begin_links(0));
        let linked = state.link_from_image((parent, child), name, id, newer, names);
        self.last_edge = linked.map_err(|Twice| Broken::Rule(NAME_TWICE))?;
        Ok(())
    }

    fn take_node(&mut self, input: &mut Input<'_>) -> Result<(), Broken> {
        let (state, format) = (&mut self.state, self.format);
        let inode = u32::take(input)?;
        let kind = NodeKind::take(input)?;
        let mode = u16::take(input)?;
        let (eattr, winattr, class) = (u8::take(input)?, u8::take(input)?, u8::take(input)?);
        must(state.node(inode).is_none(), "an inode occurs twice")?;
        must(inode < self.inodes_end && state.inode_numbers().take(inode), "an inode number is out of range")?;
        let mut node = Node::new(kind, mode);
        node.set_eattr(eattr);
        node.set_winattr(winattr);
        node.class = class;
        let trash_hours = u16::take(input)?;
        let ownership = Ownership { uid: u32::take(input)?, gid: u32::take(input)?, trash_hours };
        let mut time = || match format {
            FORMAT_SECONDS => u32::take(input).map(Time::from),
            _ => Time::take(input),
        };
        let times = Times { atime: time()?, mtime: time()?, ctime: time()? };
        match kind {
            NodeKind::File | NodeKind::Trash | NodeKind::Sustained => {
                let (length, chunk) = (u64::take(input)?, ChunkId::take(input)?);
                must(length <= wire::limits::FILE_BYTES_MAX, "a file is too long")?;
                node.set_length(length);
                state.insert_node(inode, node, ownership, &times);
                if chunk.0 != 0 {
                    let slot = state.chunks.find_after(self.last_chunk, chunk.0).ok_or(UNKNOWN_CHUNK)?;
                    self.last_chunk = slot;
                    state.put_chunk(inode, 0, slot);
                }
            }
            NodeKind::Symlink => {
                let target = take_bytes(input)?;
                let fits = (1..=wire::limits::SYMLINK_BYTES_MAX).contains(&target.len());
                must(fits, "a symlink has an illegal target")?;
                state.insert_node(inode, node, ownership, &times);
                state.set_target(inode, &target);
            }
            NodeKind::BlockDevice | NodeKind::CharDevice => {
                node.set_rdev(u32::take(input)?);
                state.insert_node(inode, node, ownership, &times);
            }
            NodeKind::Directory | NodeKind::Fifo | NodeKind::Socket => {
                state.insert_node(inode, node, ownership, &times)
            }
        }
        Ok(())
    }
}

const CHUNK_TWICE: &str = "a chunk occurs twice";
const NAME_TWICE: &str = "a name occurs twice in a directory";
const UNKNOWN_CHUNK: Broken = Broken::Rule("a file names an unknown chunk");

fn must(holds: bool, rule: &'static str) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(Broken::Rule(rule)) }
}

fn take_bytes(input: &mut Input<'_>) -> Result<Vec<u8>, Broken> {
    let length = u32::take(input)?;
    Ok(input.bytes(length as usize, "bytes")?.to_vec())
}

fn take_class(input: &mut Input<'_>) -> Result<(u8, StorageClass), Broken> {
    let id = u8::take(input)?;
    let name = take_bytes(input)?;
    let (admin_only, mode, arch_delay_days) = (u8::take(input)? != 0, u8::take(input)?, u16::take(input)?);
    let mut sets = || -> Result<Vec<LabelSets>, Broken> {
        let count = u8::take(input)?;
        (0..count).map(|_| Ok([u32::take(input)?, u32::take(input)?, u32::take(input)?, u32::take(input)?])).collect()
    };
    let (create, keep, arch) = (sets()?, sets()?, sets()?);
    Ok((id, StorageClass { name, admin_only, mode, arch_delay_days, create, keep, arch }))
}

fn take_acl(input: &mut Input<'_>) -> Result<(u32, u8, Acl), Broken> {
    let (inode, kind) = (u32::take(input)?, u8::take(input)?);
    let (user, group, other, mask) = (u16::take(input)?, u16::take(input)?, u16::take(input)?, u16::take(input)?);
    let mut entries = || -> Result<Vec<(u32, u16)>, Broken> {
        let count = u32::take(input)?;
        must(count as usize * 6 <= input.remaining(), "an ACL has too many entries")?;
        (0..count).map(|_| Ok((u32::take(input)?, u16::take(input)?))).collect()
    };
    let (users, groups) = (entries()?, entries()?);
    Ok((inode, kind, Acl { user, group, other, mask, users, groups }))
}

fn take_quota(input: &mut Input<'_>) -> Result<(u32, Quota), Broken> {
    let (inode, flags, exceeded) = (u32::take(input)?, u8::take(input)?, u8::take(input)? != 0);
    let (since, grace_seconds) = (u32::take(input)?, u32::take(input)?);
    let mut limits = || -> Result<Limits, Broken> {
        Ok(Limits {
            inodes: u32::take(input)?,
            length: u64::take(input)?,
            size: u64::take(input)?,
            realsize: u64::take(input)?,
        })
    };
    let (soft, hard) = (limits()?, limits()?);
    Ok((inode, Quota { flags, exceeded, since, grace_seconds, soft, hard }))
}

fn take_session(input: &mut Input<'_>) -> Result<(SessionId, Session), Broken> {
    let id = SessionId::take(input)?;
    let mut params = SessionParams::full_access();
    params.exports_checksum = u64::take(input)?;
    params.root = Inode::take(input)?;
    params.flags = u8::take(input)?;
    params.umask = u16::take(input)?;
    let ids = [&mut params.root_uid, &mut params.root_gid, &mut params.map_all_uid, &mut params.map_all_gid];
    for id in ids {
        *id = u32::take(input)?;
    }
    (params.goal_min, params.goal_max) = (u8::take(input)?, u8::take(input)?);
    params.trash_time_min_seconds = u32::take(input)?;
    params.trash_time_max_seconds = u32::take(input)?;
    params.disables = u32::take(input)?;
    params.peer_ip = Ip4::take(input)?;
    let disconnected = u32::take(input)?;
    params.info = take_bytes(input)?;
    Ok((id, Session { params, disconnected }))
}

fn take_holder(input: &mut Input<'_>) -> Result<LockOwner, Broken> {
    Ok(LockOwner { session: SessionId::take(input)?, owner: u64::take(input)? })
}

fn take_lock_kind(input: &mut Input<'_>) -> Result<LockKind, Broken> {
    match u8::take(input)? {
        0 => Ok(LockKind::Shared),
        1 => Ok(LockKind::Exclusive),
        _ => Err(Broken::Rule("a lock is of an unknown kind")),
    }
}
