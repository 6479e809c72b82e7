//! The image: the whole state as a file of ours, and a digest of it. No IO: bytes go to, and come from, the caller.
//!
//! ```text
//! header   "MOORMETA", format u32, 0 u32, meta id u64, version u64, written at u32, CRC-32C u32 of these 36 bytes
//! frame    section 4 letters, payload bytes u32, CRC-32C u32 of section, length and payload; payload: whole records
//! ...      sections in the order of `Section`, each in as many frames as it needs, empty ones in none
//! frame    "END ": records u64, digest u64
//! ```
//!
//! All numbers are big-endian. Records are written in the order of the tables, and loading is one pass over the bytes
//! in which each is checked against what was read before. The digest is a sum over the records, so it does not depend
//! on where they lie in memory; it is equal for a live state, its image, and the state that replay gives.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use wire::{ChunkId, Field, Inode, Input, Ip4, MetaId, NodeKind, SessionId, Time, WireError};

use crate::acl::{self, Acl};
use crate::apply::{name_is_legal, put_acl};
use crate::class::{LabelSets, StorageClass};
use crate::index::{Filling, Twice, hash};
use crate::locks::{LockKind, LockOwner, RangeLock};
use crate::namespace::{Namespace, Policy, Snapshot};
use crate::node::{Edge, Node, mark};
use crate::owners::Ownership;
use crate::quota::{Limits, Quota};
use crate::session::{Session, SessionParams};
use crate::state::{ROOT, ServerEntry, State};
use crate::times::Times;

const MAGIC: &[u8; 8] = b"MOORMETA";
/// Layout of the records below. A change of it makes a new number; old ones stay readable.
const FORMAT: u32 = 2;
/// The first layout: times of nodes are whole seconds in 32 bits.
const FORMAT_SECONDS: u32 = 1;
const HEADER_BYTES: usize = 40;
pub(crate) const FRAME_HEAD_BYTES: usize = 12;
/// A frame is closed when its payload has reached this size.
const FRAME_BYTES: usize = 1 << 20;
/// No record is longer: a session's text, a symlink, a value of an attribute.
const RECORD_BYTES_MAX: usize = 1 << 20;
/// Handles are 32 bits.
const MANY: u64 = 1 << 32;
/// No record of an edge and none of a chunk is shorter, so an image of so many bytes has not more of them, whatever its
/// counters say.
const EDGE_BYTES_MIN: u64 = 21;
const CHUNK_BYTES_MIN: u64 = 17;
/// Inodes that a thread takes at a time to count their digest.
const DIGEST_INODES: u32 = 1 << 16;
const FRAME_BYTES_MAX: usize = FRAME_BYTES + RECORD_BYTES_MAX;

/// Kinds of records, in the order in which they stand in the file: what is named comes before what names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// Counters: next edge, chunk, session.
    Counters,
    Classes,
    Chunks,
    Nodes,
    /// Chunks of files that have more than the first.
    Slots,
    /// Names; parent 0: trash and sustained files with their paths.
    Edges,
    /// Inode numbers that wait.
    Free,
    Xattrs,
    Acls,
    Quotas,
    Sessions,
    OpenFiles,
    /// BSD locks.
    Locks,
    /// POSIX locks.
    Ranges,
    Servers,
    End,
}

const SECTIONS: [(Section, &[u8; 4]); 16] = [
    (Section::Counters, b"CNTR"),
    (Section::Classes, b"SCLA"),
    (Section::Chunks, b"CHNK"),
    (Section::Nodes, b"NODE"),
    (Section::Slots, b"SLOT"),
    (Section::Edges, b"EDGE"),
    (Section::Free, b"FREE"),
    (Section::Xattrs, b"XATR"),
    (Section::Acls, b"PACL"),
    (Section::Quotas, b"QUOT"),
    (Section::Sessions, b"SESS"),
    (Section::OpenFiles, b"OPEN"),
    (Section::Locks, b"FLCK"),
    (Section::Ranges, b"PLCK"),
    (Section::Servers, b"CSDB"),
    (Section::End, b"END "),
];

impl Section {
    pub(crate) fn letters(self) -> &'static [u8; 4] {
        SECTIONS[self as usize].1
    }

    fn from_letters(letters: &[u8]) -> Option<Section> {
        SECTIONS.iter().find(|(_, own)| own.as_slice() == letters).map(|(section, _)| *section)
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.letters().escape_ascii())
    }
}

/// Identity of a state. Equal states have equal digests; it is no protection against forgery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(pub u64);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", self.0)
    }
}

/// What an image says about itself in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageHeader {
    pub meta_id: MetaId,
    /// Version of the metadata: the journal line of this version is the first one that is not in the image.
    pub version: u64,
    /// Unix seconds.
    pub written_at: u32,
}

/// Why bytes are no image, or not a sound one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// The file does not begin as an image of ours does.
    NotAnImage,
    /// Written by a newer program.
    Format(u32),
    /// The header's checksum is wrong.
    Header,
    /// The bytes end inside this section. Offsets are those of the frame in the file.
    Truncated { section: Option<Section>, offset: u64 },
    /// The frame was altered after it was written.
    Checksum { section: Option<Section>, offset: u64 },
    /// The checksum holds but the records do not fit together.
    Malformed { section: Section, offset: u64, what: &'static str },
    /// Bytes follow after the end.
    Trailing { offset: u64 },
    /// All sections are sound, yet the whole is not what was written.
    Digest { written: Digest, computed: Digest },
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |f: &mut fmt::Formatter<'_>, section: &Option<Section>, offset: &u64| match section {
            Some(section) => write!(f, " (section {section}, offset {offset})"),
            None => write!(f, " (offset {offset})"),
        };
        match self {
            ImageError::NotAnImage => f.write_str("this is no Mooring metadata image"),
            ImageError::Format(format) => {
                write!(f, "the image has format {format}, this program knows up to {FORMAT}: use a newer one")
            }
            ImageError::Header => f.write_str("the header of the image is damaged"),
            ImageError::Truncated { section, offset } => {
                f.write_str("the image ends too early")?;
                at(f, section, offset)
            }
            ImageError::Checksum { section, offset } => {
                f.write_str("the image is damaged: wrong checksum")?;
                at(f, section, offset)
            }
            ImageError::Malformed { section, offset, what } => {
                write!(f, "the image contradicts itself: {what}")?;
                at(f, &Some(*section), offset)
            }
            ImageError::Trailing { offset } => write!(f, "bytes follow after the end of the image (offset {offset})"),
            ImageError::Digest { written, computed } => {
                write!(f, "the image's digest is {written}, its records give {computed}")
            }
        }
    }
}

impl std::error::Error for ImageError {}

impl Namespace {
    /// Digest of everything that lasts. Reads the whole state: seconds for a large one.
    pub fn digest(&self) -> Digest {
        digest(&self.state)
    }
}

impl Snapshot {
    pub fn digest(&self) -> Digest {
        digest(&self.state)
    }
}

/// Writes an image: calls `sink` with its bytes in order, about a megabyte at a time. The first error ends it.
pub fn write<E>(
    snapshot: &Snapshot,
    written_at: u32,
    sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
) -> Result<Digest, E> {
    let state = &snapshot.state;
    let header = ImageHeader { meta_id: MetaId(state.meta_id), version: state.version, written_at };
    sink(&header.encode())?;
    let mut digest = Digester::default();
    let mut frames = Frames { sink, section: Section::Counters, payload: Vec::new(), result: Ok(()) };
    put_state(state, FORMAT, &mut |section, record| {
        digest.add(section, record);
        frames.add(section, record);
    });
    let mut end = Vec::new();
    digest.records.put(&mut end);
    digest.sum.put(&mut end);
    frames.add(Section::End, &end);
    frames.close();
    frames.result.map(|()| Digest(digest.sum))
}

/// An image as one piece of memory: for tests and small states.
pub fn to_bytes(snapshot: &Snapshot, written_at: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut sink = |piece: &[u8]| -> Result<(), std::convert::Infallible> {
        bytes.extend_from_slice(piece);
        Ok(())
    };
    let Ok(_) = write(snapshot, written_at, &mut sink);
    bytes
}

/// Reads an image that is in memory as a whole.
pub fn load(bytes: &[u8], policy: Policy) -> Result<Namespace, ImageError> {
    let mut loader = Loader::new(bytes.len() as u64);
    loader.push(bytes)?;
    loader.finish(policy)
}

impl ImageHeader {
    /// Bytes to read for `decode`.
    pub const BYTES: usize = HEADER_BYTES;

    /// Errors: `NotAnImage`, `Format`, `Header`, `Truncated`.
    pub fn decode(bytes: &[u8]) -> Result<ImageHeader, ImageError> {
        ImageHeader::decode_with_format(bytes).map(|(header, _)| header)
    }

    /// Also the layout of the records.
    fn decode_with_format(bytes: &[u8]) -> Result<(ImageHeader, u32), ImageError> {
        if !bytes.starts_with(&MAGIC[..bytes.len().min(MAGIC.len())]) {
            return Err(ImageError::NotAnImage);
        }
        let Some(bytes) = bytes.get(..HEADER_BYTES) else {
            return Err(ImageError::Truncated { section: None, offset: 0 });
        };
        let mut input = Input::new(&bytes[MAGIC.len()..]);
        let read = |input: &mut Input<'_>| -> Result<(u32, ImageHeader, u32), WireError> {
            let format = u32::take(input)?;
            u32::take(input)?;
            let header = ImageHeader {
                meta_id: MetaId::take(input)?,
                version: u64::take(input)?,
                written_at: u32::take(input)?,
            };
            Ok((format, header, u32::take(input)?))
        };
        let (format, header, sum) = read(&mut input).map_err(|_| ImageError::Header)?;
        if sum != crc32c::crc32c(&bytes[..HEADER_BYTES - 4]) {
            return Err(ImageError::Header);
        }
        if !(FORMAT_SECONDS..=FORMAT).contains(&format) {
            return Err(ImageError::Format(format));
        }
        Ok((header, format))
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        FORMAT.put(&mut bytes);
        0u32.put(&mut bytes);
        self.meta_id.put(&mut bytes);
        self.version.put(&mut bytes);
        self.written_at.put(&mut bytes);
        crc32c::crc32c(&bytes).put(&mut bytes);
        bytes
    }
}

/// The frame at the beginning of the bytes, if it is there whole: its section and payload, with its checksum and its
/// place behind `last` checked. `offset`: where the bytes lie in the file.
pub(crate) fn whole_frame(
    bytes: &[u8],
    last: Option<Section>,
    offset: u64,
) -> Result<Option<(Section, &[u8])>, ImageError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    if last == Some(Section::End) {
        return Err(ImageError::Trailing { offset });
    }
    let Some(head) = bytes.get(..FRAME_HEAD_BYTES) else { return Ok(None) };
    let section = Section::from_letters(&head[..4]);
    let damaged = ImageError::Checksum { section: section.or(last), offset };
    let word = |at: usize| head[at..at + 4].iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte));
    let (length, sum) = (word(4) as usize, word(8));
    let Some(section) = section.filter(|_| length <= FRAME_BYTES_MAX) else { return Err(damaged) };
    let Some(payload) = bytes.get(FRAME_HEAD_BYTES..FRAME_HEAD_BYTES + length) else { return Ok(None) };
    if crc32c::crc32c_append(crc32c::crc32c(&head[..8]), payload) != sum {
        return Err(damaged);
    }
    if last.is_some_and(|last| last > section) {
        return Err(ImageError::Malformed { section, offset, what: "sections are out of order" });
    }
    Ok(Some((section, payload)))
}

fn digest(state: &State) -> Digest {
    digest_of_format(state, FORMAT)
}

/// The digest that an image of this format says of the state. Being a sum it is counted by as many threads as there are
/// processors, if the state is large.
fn digest_of_format(state: &State, format: u32) -> Digest {
    let end = state.inodes_end();
    let pieces = end.div_ceil(DIGEST_INODES);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(pieces as usize);
    let next = AtomicU32::new(0);
    let count = || {
        let mut digest = Digester::default();
        loop {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            if piece >= pieces {
                return digest.sum;
            }
            let inodes = piece * DIGEST_INODES..(piece + 1).saturating_mul(DIGEST_INODES).min(end);
            for kind in [put_nodes, put_slots, put_edges] {
                kind(state, format, inodes.clone(), &mut |section, record| digest.add(section, record));
            }
        }
    };
    let mut rest = Digester::default();
    let of_inodes = std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(count)).collect();
        let mut add = |section: Section, record: &[u8]| rest.add(section, record);
        put_before_nodes(state, &mut add);
        put_behind_edges(state, &mut add);
        let own = count();
        let theirs = helpers.into_iter().map(|helper| helper.join().expect("it only reads and adds"));
        theirs.fold(own, u64::wrapping_add)
    });
    Digest(rest.sum.wrapping_add(of_inodes))
}

#[derive(Default)]
struct Digester {
    sum: u64,
    records: u64,
    /// Numbers that wait are a queue: their order counts.
    waiting: u64,
}

impl Digester {
    fn add(&mut self, section: Section, record: &[u8]) {
        let mut seed = section as u64;
        if section == Section::Free {
            self.waiting += 1;
            seed |= self.waiting << 8;
        }
        self.sum = self.sum.wrapping_add(hash(seed, record));
        self.records += 1;
    }
}

struct Frames<'a, E> {
    sink: &'a mut dyn FnMut(&[u8]) -> Result<(), E>,
    section: Section,
    payload: Vec<u8>,
    result: Result<(), E>,
}

impl<E> Frames<'_, E> {
    fn add(&mut self, section: Section, record: &[u8]) {
        debug_assert!(record.len() <= RECORD_BYTES_MAX);
        if section != self.section || self.payload.len() >= FRAME_BYTES {
            self.close();
            self.section = section;
        }
        self.payload.extend_from_slice(record);
    }

    fn close(&mut self) {
        if self.payload.is_empty() || self.result.is_err() {
            return;
        }
        let mut head = self.section.letters().to_vec();
        (self.payload.len() as u32).put(&mut head);
        let sum = crc32c::crc32c_append(crc32c::crc32c(&head), &self.payload);
        sum.put(&mut head);
        self.result = (self.sink)(&head).and_then(|()| (self.sink)(&self.payload));
        self.payload.clear();
    }
}

// --- records, as they are written

fn put_state(state: &State, format: u32, emit: Emit<'_>) {
    put_before_nodes(state, emit);
    let all = 0..state.inodes_end();
    put_nodes(state, format, all.clone(), emit);
    put_slots(state, format, all.clone(), emit);
    put_edges(state, format, all, emit);
    put_behind_edges(state, emit);
}

/// Takes a record.
type Emit<'a> = &'a mut dyn FnMut(Section, &[u8]);

/// Makes records in one buffer after the other.
struct Put<'a> {
    record: Vec<u8>,
    emit: Emit<'a>,
}

impl Put<'_> {
    fn new(emit: Emit<'_>) -> Put<'_> {
        Put { record: Vec::new(), emit }
    }

    fn put(&mut self, section: Section, fill: impl FnOnce(&mut Vec<u8>)) {
        self.record.clear();
        fill(&mut self.record);
        (self.emit)(section, &self.record);
    }
}

fn put_before_nodes(state: &State, emit: Emit<'_>) {
    let mut to = Put::new(emit);
    to.put(Section::Counters, |out| {
        state.meta_id.put(out);
        state.version.put(out);
        state.next_edge_id.put(out);
        state.chunks.next_id().put(out);
        state.next_session.put(out);
        state.inodes_end().put(out);
        let sizes = state.sizes();
        sizes.edges.put(out);
        sizes.chunks.put(out);
    });
    for (id, class) in state.classes.iter() {
        to.put(Section::Classes, |out| put_class(id, class, out));
    }
    for chunk in state.chunks.iter() {
        to.put(Section::Chunks, |out| {
            chunk.id.put(out);
            chunk.version.put(out);
            chunk.locked_to.put(out);
            out.push(u8::from(chunk.archived));
        });
    }
}

fn put_nodes(state: &State, format: u32, inodes: Range<u32>, emit: Emit<'_>) {
    let mut to = Put::new(emit);
    for inode in state.inodes_in(inodes) {
        to.put(Section::Nodes, |out| put_node(state, inode, format, out));
    }
}

/// Chunks of files that have more than the first.
fn put_slots(state: &State, _: u32, inodes: Range<u32>, emit: Emit<'_>) {
    let mut to = Put::new(emit);
    for inode in state.inodes_in(inodes) {
        let node = state.at(inode);
        if node.has_data() && node.marked(mark::CHUNK_LIST) {
            for (index, chunk) in state.chunks_from(node, 0) {
                to.put(Section::Slots, |out| {
                    inode.put(out);
                    index.put(out);
                    state.chunks.at(chunk).id.put(out);
                });
            }
        }
    }
}

/// Entries of those of these inodes that are directories.
fn put_edges(state: &State, _: u32, inodes: Range<u32>, emit: Emit<'_>) {
    let mut to = Put::new(emit);
    for inode in state.inodes_in(inodes) {
        if state.at(inode).is_directory() {
            for edge in state.children(inode) {
                to.put(Section::Edges, |out| put_edge(state, edge, out));
            }
        }
    }
}

fn put_behind_edges(state: &State, emit: Emit<'_>) {
    let mut to = Put::new(emit);
    for edge in state.all_detached() {
        to.put(Section::Edges, |out| put_edge(state, edge, out));
    }
    for (inode, since) in state.free_queue() {
        to.put(Section::Free, |out| {
            inode.put(out);
            since.put(out);
        });
    }
    for (inode, all) in &state.xattrs {
        for (name, value) in all {
            to.put(Section::Xattrs, |out| {
                inode.put(out);
                put_bytes(name, out);
                put_bytes(value, out);
            });
        }
    }
    for ((inode, kind), acl) in &state.acls {
        to.put(Section::Acls, |out| put_acl_record(*inode, *kind, acl, out));
    }
    for (inode, quota) in &state.quotas {
        to.put(Section::Quotas, |out| put_quota(*inode, quota, out));
    }
    for (id, session) in &state.sessions {
        to.put(Section::Sessions, |out| put_session(*id, session, out));
    }
    for (session, inode) in state.all_open_files() {
        to.put(Section::OpenFiles, |out| {
            session.put(out);
            inode.put(out);
        });
    }
    for (inode, holder, kind) in state.locks.all_whole() {
        to.put(Section::Locks, |out| {
            inode.put(out);
            put_holder(holder, out);
            out.push(lock_number(kind));
        });
    }
    for (inode, range) in state.locks.all_ranges() {
        to.put(Section::Ranges, |out| {
            inode.put(out);
            put_holder(range.holder, out);
            range.pid.put(out);
            range.start.put(out);
            range.end.put(out);
            out.push(lock_number(range.kind));
        });
    }
    for ((ip, port), entry) in &state.servers {
        to.put(Section::Servers, |out| {
            ip.put(out);
            port.put(out);
            entry.csid.put(out);
            out.push(entry.maintenance);
            entry.maintenance_until.put(out);
        });
    }
}

fn put_class(id: u8, class: &StorageClass, out: &mut Vec<u8>) {
    out.push(id);
    put_bytes(&class.name, out);
    out.extend([u8::from(class.admin_only), class.mode]);
    class.arch_delay_days.put(out);
    for sets in [&class.create, &class.keep, &class.arch] {
        out.push(sets.len() as u8);
        for mask in sets.iter().flatten() {
            mask.put(out);
        }
    }
}

fn put_node(state: &State, inode: u32, format: u32, out: &mut Vec<u8>) {
    let node = state.at(inode);
    let (uid, gid) = state.owner(node);
    inode.put(out);
    node.kind().put(out);
    node.mode().put(out);
    out.extend([node.eattr(), node.winattr(), node.class]);
    state.trash_hours(node).put(out);
    uid.put(out);
    gid.put(out);
    let Times { atime, mtime, ctime } = state.times(node);
    for time in [atime, mtime, ctime] {
        match format {
            FORMAT_SECONDS => time.seconds().put(out),
            _ => time.put(out),
        }
    }
    match node.kind() {
        NodeKind::File | NodeKind::Trash | NodeKind::Sustained => {
            let only = if node.marked(mark::CHUNK_LIST) { 0 } else { node.chunks };
            node.length().put(out);
            (if only == 0 { 0 } else { state.chunks.at(only).id.0 }).put(out);
        }
        NodeKind::Symlink => put_bytes(state.target(node), out),
        NodeKind::BlockDevice | NodeKind::CharDevice => node.rdev().put(out),
        NodeKind::Directory | NodeKind::Fifo | NodeKind::Socket => {}
    }
}

fn put_edge(state: &State, edge: u32, out: &mut Vec<u8>) {
    let name = state.name(edge);
    let edge = state.edge(edge);
    edge.parent.put(out);
    edge.child.put(out);
    edge.id().put(out);
    put_bytes(name, out);
}

fn put_acl_record(inode: u32, kind: u8, acl: &Acl, out: &mut Vec<u8>) {
    inode.put(out);
    out.push(kind);
    for perm in [acl.user, acl.group, acl.other, acl.mask] {
        perm.put(out);
    }
    for entries in [&acl.users, &acl.groups] {
        (entries.len() as u32).put(out);
        for (id, perm) in entries {
            id.put(out);
            perm.put(out);
        }
    }
}

fn put_quota(inode: u32, quota: &Quota, out: &mut Vec<u8>) {
    inode.put(out);
    out.extend([quota.flags, u8::from(quota.exceeded)]);
    quota.since.put(out);
    quota.grace_seconds.put(out);
    for limits in [&quota.soft, &quota.hard] {
        limits.inodes.put(out);
        for limit in [limits.length, limits.size, limits.realsize] {
            limit.put(out);
        }
    }
}

fn put_session(id: SessionId, session: &Session, out: &mut Vec<u8>) {
    let params = &session.params;
    id.put(out);
    params.exports_checksum.put(out);
    params.root.put(out);
    out.push(params.flags);
    params.umask.put(out);
    for id in [params.root_uid, params.root_gid, params.map_all_uid, params.map_all_gid] {
        id.put(out);
    }
    out.extend([params.goal_min, params.goal_max]);
    params.trash_time_min_seconds.put(out);
    params.trash_time_max_seconds.put(out);
    params.disables.put(out);
    params.peer_ip.put(out);
    session.disconnected.put(out);
    put_bytes(&params.info, out);
}

fn put_holder(holder: LockOwner, out: &mut Vec<u8>) {
    holder.session.put(out);
    holder.owner.put(out);
}

fn lock_number(kind: LockKind) -> u8 {
    match kind {
        LockKind::Shared => 0,
        LockKind::Exclusive => 1,
    }
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    (bytes.len() as u32).put(out);
    out.extend_from_slice(bytes);
}

// --- loading

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
