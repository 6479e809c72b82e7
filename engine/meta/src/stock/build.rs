//! A namespace out of the records of a metadata file. Spec 50, 8 and 10.2.
//!
//! Everything that names something keeps its number: inodes, chunks and their versions, sessions, servers, the
//! identity and the version of the whole, so that mounts and chunkservers go on as they are.

use std::collections::BTreeSet;

use wire::limits::{CHUNK_INDEX_MAX, FILE_BYTES_MAX, PATH_BYTES_MAX, RESERVED_INODE_MIN};
use wire::{Inode, MetaId, NodeKind, SessionId};

use super::parser::{Head, Parser, Piece};
use super::records::{
    AclRecord, ClassRecord, NodeData, NodeRecord, QuotaRecord, Record, SessionRecord, TrashTime, words_of,
};
use super::{Broken, Section, StockError, must, sessions};
use crate::acl::{self, Acl};
use crate::apply::{name_is_legal, put_acl, trash_hours};
use crate::change::Change;
use crate::class::StorageClass;
use crate::locks::{LockKind, LockOwner, RangeLock};
use crate::namespace::{Namespace, Policy};
use crate::node::{Edge, FIRST_EDGE_ID, Node, mark};
use crate::owners::Ownership;
use crate::quota::{Limits, Quota};
use crate::session::{Session, SessionParams};
use crate::state::{ROOT, ServerEntry, State};
use crate::times::Times;

/// A bit of a session's flags that only a replaying master sets. Spec 50, 7.
const INTERNAL: u8 = 0x80;
/// No file system comes to so many changes; those that follow must have numbers, too.
const VERSION_MAX: u64 = 1 << 62;
/// Limits of goals for a session of which the file says none.
const GOALS: (u8, u8) = (1, 9);

/// What was read, and what a person should know of it.
#[derive(Debug)]
pub struct Imported {
    pub namespace: Namespace,
    pub notes: Vec<String>,
}

/// Gives metadata without an identity one, as a MooseFS master does at its start. One change, as any other.
pub fn name(namespace: &mut Namespace, meta_id: MetaId, now: u32) {
    if namespace.meta_id().0 == 0 {
        let named = namespace.commit(now.into(), &Change::SetMetaId { meta_id: meta_id.0 });
        named.expect("metadata without an identity takes any");
    }
}

/// What a MooseFS master makes of a file that only asks for a new file system (`MFSM NEW`), before its first change. Its
/// change logs go on from here. `created`: Unix seconds. Spec 50, 8.4.
pub fn new_file_system(policy: Policy, created: u32) -> Namespace {
    Namespace::from_state(State::new(created.into()), policy)
}

/// Takes a metadata file of MooseFS in pieces of any size and builds the state.
pub struct Loader {
    parser: Parser,
    builder: Builder,
}

impl Default for Loader {
    fn default() -> Loader {
        Loader::new()
    }
}

impl Loader {
    pub fn new() -> Loader {
        Loader { parser: Parser::new(), builder: Builder::new() }
    }

    /// `bytes`: of the file `sessions.mfs` that a MooseFS 1.6 keeps beside `metadata.mfs`. To be called first. An error
    /// says what is wrong with the file; the sessions are then lost, and nothing else. Spec 50, 6.
    pub fn sessions(&mut self, bytes: &[u8]) -> Result<(), String> {
        let taken = sessions::take(bytes)?.iter().try_for_each(|record| self.builder.session(record));
        taken.map_err(|broken| {
            self.builder.forget_sessions();
            match broken {
                Broken::Short => "sessions.mfs ends too early".to_owned(),
                Broken::Rule(what) => format!("sessions.mfs: {what}"),
            }
        })
    }

    /// The next bytes of the file.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), StockError> {
        let Loader { parser, builder } = self;
        parser.push(bytes, &mut |piece| builder.take(piece))
    }

    /// The state, after all bytes. A file of MooseFS before 2.0 has no identity: then it is 0, and `name` gives one, after
    /// the change logs. `now`: Unix seconds.
    pub fn finish(self, policy: Policy, now: u32) -> Result<Imported, StockError> {
        self.parser.finish()?;
        self.builder.finish(policy, now).map_err(|broken| StockError::Malformed {
            section: None,
            offset: 0,
            what: match broken {
                Broken::Short => "it is not whole".to_owned(),
                Broken::Rule(what) => what,
            },
        })
    }
}

/// The entry of a directory that was read last.
#[derive(Clone, Copy, Default)]
struct Last {
    parent: u32,
    edge: u32,
    id: u64,
}

struct Builder {
    state: State,
    /// No inode number is beyond this.
    inode_max: u32,
    /// Sessions of which the file does not know since when they are away.
    undated: Vec<SessionId>,
    /// The root's entries may be apart from each other, those of others not.
    last: Last,
    last_of_root: Last,
    /// Entries need new ids. Spec 50, 4.6 "Renumeration".
    renumber: bool,
    /// ACLs may have a mask that means nothing.
    old_acls: bool,
    /// Nodes with several names.
    linked: Vec<u32>,
    /// What has no directory: child, old path, id.
    detached: Vec<(u32, Vec<u8>, u64)>,
    /// Who has what open, by lists of old nodes and by the section of open files.
    openers: Vec<(SessionId, u32)>,
    /// What that section said.
    opened: BTreeSet<(SessionId, u32)>,
    /// Storage classes that the file defines.
    defined: BTreeSet<u16>,
    dropped_open: u32,
    dropped_locks: u32,
    dropped_attributes: u32,
    /// Chunks that files name before the section of chunks comes.
    named: u32,
}

impl Builder {
    fn new() -> Builder {
        Builder {
            state: State::empty(),
            inode_max: 0,
            undated: Vec::new(),
            last: Last::default(),
            last_of_root: Last::default(),
            renumber: false,
            old_acls: false,
            linked: Vec::new(),
            detached: Vec::new(),
            openers: Vec::new(),
            opened: BTreeSet::new(),
            defined: BTreeSet::new(),
            dropped_open: 0,
            dropped_locks: 0,
            dropped_attributes: 0,
            named: 0,
        }
    }

    fn take(&mut self, piece: Piece<'_>) -> Result<(), Broken> {
        match piece {
            Piece::Head(head) => self.head(&head),
            Piece::Section { section, layout, .. } => {
                self.renumber |= section == Section::Edges && layout == 0x10;
                self.old_acls |= section == Section::Acls && layout == 0x10;
                Ok(())
            }
            Piece::Record(record) => self.record(record),
            Piece::End => Ok(()),
        }
    }

    fn head(&mut self, head: &Head) -> Result<(), Broken> {
        must(head.version > 0, || "its version is 0".to_owned())?;
        must(head.version <= VERSION_MAX, || format!("its version, {}, is beyond what there can be", head.version))?;
        self.state.version = head.version;
        self.state.meta_id = head.meta_id;
        if let Some((inode_max, next_session)) = head.old {
            self.set_inode_max(inode_max)?;
            self.state.next_session = next_session;
        } else {
            // A later file has its own sessions: those beside it were left by a MooseFS before 2.0.
            self.forget_sessions();
        }
        Ok(())
    }

    fn set_inode_max(&mut self, inode_max: u32) -> Result<(), Broken> {
        must(inode_max < RESERVED_INODE_MIN, || format!("inode number {inode_max} is beyond what there can be"))?;
        self.inode_max = inode_max;
        Ok(())
    }

    fn record(&mut self, record: Record<'_>) -> Result<(), Broken> {
        let state = &mut self.state;
        match record {
            Record::SessionsHead { next, .. } => state.next_session = next,
            Record::Session(record) => return self.session(&record),
            Record::LabelDescription { .. } => {}
            Record::Class(record) => {
                let id = record.id;
                must(self.defined.insert(id), || format!("storage class {id} occurs twice"))?;
                return class(state, &record);
            }
            Record::NodesHead { inode_max, .. } => return self.set_inode_max(inode_max),
            Record::Node(record) => return self.node(&record),
            Record::EdgesHead { next } => state.next_edge_id = next,
            Record::Edge { parent: 0, child, id, name } => return self.detached_edge(child, id, name),
            Record::Edge { parent, child, id, name } => return self.edge(parent, child, id, name),
            Record::FreeHead { .. } | Record::QuotasHead { .. } | Record::ServersHead { .. } => {}
            Record::Free { inode, since } => {
                let inode_max = self.inode_max;
                must(inode <= inode_max, || format!("free inode {inode} is beyond the largest number, {inode_max}"))?;
                let numbers = state.inode_numbers();
                must(numbers.take(inode), || format!("inode {inode} is free and in use"))?;
                // The queue is in the order of time, whatever the clock did.
                let since = numbers.waiting.back().map_or(since, |(_, last)| since.max(*last));
                numbers.waiting.push_back((inode, since));
            }
            Record::Quota(record) => return quota(state, &record),
            Record::Xattr { inode, name, value } => {
                if state.node(inode).is_some() {
                    let before = state.xattrs.entry(inode).or_default().insert(name.to_vec(), value.to_vec());
                    let name = name.escape_ascii();
                    must(before.is_none(), || format!("inode {inode} has two attributes named `{name}`"))?;
                    state.at_mut(inode).set_mark(mark::XATTR, true);
                } else {
                    self.dropped_attributes += 1;
                }
            }
            Record::Acl(record) => {
                if state.node(record.inode).is_some() {
                    return acl(state, record, self.old_acls);
                }
                self.dropped_attributes += 1;
            }
            Record::Open { session, inode } => {
                let is_new = self.opened.insert((SessionId(session), inode));
                must(is_new, || format!("session {session} has inode {inode} open twice"))?;
                let is_there = state.node(inode).is_some();
                must(is_there, || format!("session {session} has inode {inode} open, which is not there"))?;
                self.openers.push((SessionId(session), inode));
            }
            Record::Lock { inode, owner, session, kind } => {
                let holder = LockOwner { session: SessionId(session), owner };
                let kind = match kind {
                    0 => LockKind::Shared,
                    1 => LockKind::Exclusive,
                    _ => return Err(Broken::Rule(format!("a lock of inode {inode} is of an unknown kind"))),
                };
                self.settle_open();
                if !self.state.is_open_by(holder.session, inode) {
                    self.dropped_locks += 1;
                    return Ok(());
                }
                let is_new = self.state.locks.whole(inode).all(|(other, _)| other != holder);
                let taken = is_new && self.state.locks.take_whole(inode, holder, kind);
                return must(taken, || format!("locks of inode {inode} contradict each other"));
            }
            Record::Range { inode, owner, session, pid, start, end, kind } => {
                let holder = LockOwner { session: SessionId(session), owner };
                let kind = match kind {
                    1 => LockKind::Shared,
                    2 => LockKind::Exclusive,
                    _ => return Err(Broken::Rule(format!("a locked range of inode {inode} is of an unknown kind"))),
                };
                self.settle_open();
                if !self.state.is_open_by(holder.session, inode) {
                    self.dropped_locks += 1;
                    return Ok(());
                }
                let mut others = self.state.locks.ranges(inode).iter().filter(|other| other.holder == holder);
                let is_new = others.all(|other| other.end <= start || end <= other.start);
                let range = RangeLock { holder, pid, start, end, kind };
                let taken = is_new && self.state.locks.take_range(inode, range);
                return must(taken, || format!("locked ranges of inode {inode} contradict each other"));
            }
            Record::Server { ip, port, csid, maintenance, until } => {
                let csid = csid.unwrap_or(0);
                let repeated = state.servers.contains_key(&(ip, port))
                    || csid != 0 && state.servers.values().any(|entry| entry.csid == csid);
                must(!repeated, || format!("chunkserver {ip}:{port} (number {csid}) occurs twice"))?;
                let maintenance = maintenance.unwrap_or(0);
                let entry = ServerEntry { csid, maintenance, maintenance_until: until.unwrap_or(0) };
                state.servers.insert((ip, port), entry);
            }
            Record::ChunksHead { next } => state.chunks.set_next_id(next),
            Record::Chunk { id, version, locked_to, archived } => {
                let next = state.chunks.next_id();
                must(id < next, || format!("chunk {id:016X} was never made: the next one is {next:016X}"))?;
                must(version != 0, || format!("chunk {id:016X} has version 0"))?;
                let archived = archived.unwrap_or(0) != 0;
                match state.chunks.find(id) {
                    None => drop(state.chunks.insert(id, version, locked_to, archived)),
                    Some(slot) => {
                        must(state.chunks.at(slot).version.0 == 0, || format!("chunk {id:016X} occurs twice"))?;
                        state.chunks.set_version(slot, version);
                        state.chunks.set_locked_to(slot, locked_to);
                        state.chunks.set_archived(slot, archived);
                        self.named -= 1;
                    }
                }
            }
        }
        Ok(())
    }

    fn session(&mut self, record: &SessionRecord<'_>) -> Result<(), Broken> {
        let id = SessionId(record.id);
        must(!self.state.sessions.contains_key(&id), || format!("session {} occurs twice", record.id))?;
        if record.disconnected.is_none() {
            self.undated.push(id);
        }
        let params = SessionParams {
            exports_checksum: record.exports_checksum.unwrap_or(0),
            root: Inode(record.root),
            flags: record.flags & !INTERNAL,
            umask: record.umask.unwrap_or(0),
            root_uid: record.ids[0],
            root_gid: record.ids[1],
            map_all_uid: record.ids[2],
            map_all_gid: record.ids[3],
            goal_min: if record.goals == (0, 0) { GOALS.0 } else { record.goals.0 },
            goal_max: if record.goals == (0, 0) { GOALS.1 } else { record.goals.1 },
            trash_time_min_seconds: record.trash_seconds.0,
            trash_time_max_seconds: record.trash_seconds.1,
            disables: record.disables.unwrap_or(0),
            peer_ip: record.peer_ip,
            info: record.info.to_vec(),
        };
        let session = Session { params, disconnected: record.disconnected.unwrap_or(0) };
        self.state.sessions.insert(id, session);
        Ok(())
    }

    fn forget_sessions(&mut self) {
        self.state.sessions.clear();
        self.undated.clear();
    }

    fn node(&mut self, record: &NodeRecord<'_>) -> Result<(), Broken> {
        let (inode, inode_max, state) = (record.inode, self.inode_max, &mut self.state);
        must(inode <= inode_max, || format!("inode {inode} is beyond the largest number, {inode_max}"))?;
        must(state.node(inode).is_none(), || format!("inode {inode} occurs twice"))?;
        must(state.inode_numbers().take(inode), || format!("there can be no inode {inode}"))?;
        let kind = NodeKind::from_number(record.kind).ok_or(Broken::Short)?;
        let mut node = Node::new(kind, record.mode);
        node.set_eattr(record.eattr);
        node.set_winattr(record.winattr.unwrap_or(0));
        let times = Times { atime: record.atime.into(), mtime: record.mtime.into(), ctime: record.ctime.into() };
        let trash_hours = match record.trash_time {
            TrashTime::Hours(hours) => hours,
            TrashTime::Seconds(seconds) => trash_hours(seconds),
        };
        let ownership = Ownership { uid: record.uid, gid: record.gid, trash_hours };
        if matches!(kind, NodeKind::File | NodeKind::Directory | NodeKind::Trash | NodeKind::Sustained) {
            let class = record.class;
            let is_defined = state.classes.get(class).is_some();
            must(is_defined, || format!("inode {inode} has storage class {class}, which is not defined"))?;
            node.class = class;
        }
        match &record.data {
            NodeData::Nothing => state.insert_node(inode, node, ownership, &times),
            NodeData::Device(rdev) => {
                node.set_rdev(*rdev);
                state.insert_node(inode, node, ownership, &times);
            }
            NodeData::Target(target) => {
                must(!target.is_empty(), || format!("symlink {inode} has no target"))?;
                state.insert_node(inode, node, ownership, &times);
                state.set_target(inode, target);
            }
            NodeData::File { length, chunks, sessions } => {
                must(*length <= FILE_BYTES_MAX, || format!("file {inode} is too long"))?;
                node.set_length(*length);
                state.insert_node(inode, node, ownership, &times);
                for (index, id) in (0..=CHUNK_INDEX_MAX).zip(words_of::<8>(chunks)).filter(|(_, id)| *id != 0) {
                    let slot = match state.chunks.find(id) {
                        Some(slot) => slot,
                        None => {
                            self.named += 1;
                            state.chunks.insert(id, 0, 0, false)
                        }
                    };
                    state.put_chunk(inode, index, slot);
                }
                for session in words_of::<4>(sessions.unwrap_or(&[])) {
                    self.openers.push((SessionId(session as u32), inode));
                }
            }
        }
        Ok(())
    }

    fn detached_edge(&mut self, child: u32, id: u64, path: &[u8]) -> Result<(), Broken> {
        let kind = self.state.node(child).map(Node::kind);
        let is_detached = matches!(kind, Some(NodeKind::Trash | NodeKind::Sustained));
        must(is_detached, || format!("inode {child} has an entry of trash, and is not in it"))?;
        let fits = (1..=PATH_BYTES_MAX).contains(&path.len());
        must(fits, || format!("the path of deleted file {child} has {} bytes", path.len()))?;
        self.detached.push((child, path.to_vec(), id));
        Ok(())
    }

    fn edge(&mut self, parent: u32, child: u32, id: u64, name: &[u8]) -> Result<(), Broken> {
        let state = &mut self.state;
        must(child != ROOT, || "the root has a name".to_owned())?;
        let node =
            *state.node(child).ok_or_else(|| Broken::Rule(format!("an entry names inode {child}, not there")))?;
        let is_detached = matches!(node.kind(), NodeKind::Trash | NodeKind::Sustained);
        must(!is_detached, || format!("deleted file {child} is in directory {parent}"))?;
        must(node.edge == 0 || !node.is_directory(), || format!("directory {child} has two names"))?;
        must(node.links != u16::MAX, || format!("inode {child} has more than {} names", u16::MAX))?;
        let newest = state.node(parent).filter(|node| node.is_directory()).map(Node::newest);
        let newest = newest.ok_or_else(|| Broken::Rule(format!("inode {parent} has an entry, and is no directory")))?;
        let last = match parent {
            ROOT => self.last_of_root,
            _ if self.last.parent == parent => self.last,
            _ => Last::default(),
        };
        must(last.edge != 0 || newest == 0, || format!("the entries of directory {parent} are not together"))?;
        must(name_is_legal(name), || format!("an entry of directory {parent} has an illegal name"))?;
        let is_new = state.find(parent, name).is_none();
        must(is_new, || format!("`{}` occurs twice in directory {parent}", name.escape_ascii()))?;
        let closes_ring = node.is_directory() && state.directory_is_below(parent, child);
        must(!closes_ring, || format!("directory {child} is in itself"))?;
        if node.edge != 0 {
            self.linked.push(child);
        }
        self.renumber |= !Edge::id_fits(id) || last.edge != 0 && id <= last.id || id <= state.next_edge_id;
        let kept = if Edge::id_fits(id) { id } else { FIRST_EDGE_ID };
        let edge = state.link_as_oldest(parent, child, name, kept, last.edge);
        let last = Last { parent, edge, id };
        if parent == ROOT {
            self.last_of_root = last;
        }
        self.last = last;
        Ok(())
    }

    /// Locks ask who has a file open.
    fn settle_open(&mut self) {
        for (session, inode) in std::mem::take(&mut self.openers) {
            if self.state.sessions.contains_key(&session) {
                self.state.acquire(session, inode);
            } else {
                self.dropped_open += 1;
            }
        }
    }

    fn finish(mut self, policy: Policy, now: u32) -> Result<Imported, Broken> {
        self.settle_open();
        let state = &mut self.state;
        let root = state.node(ROOT).is_some_and(Node::is_directory);
        must(root, || "there is no root directory".to_owned())?;
        for session in &self.undated {
            if let Some(session) = state.sessions.get_mut(session) {
                session.disconnected = now;
            }
        }
        let last_session = state.sessions.last_key_value().map_or(0, |(id, _)| id.0);
        must(last_session != u32::MAX, || "there are no numbers for new sessions".to_owned())?;
        state.next_session = state.next_session.max(last_session + 1);
        let mut notes = Vec::new();
        if self.named != 0 {
            notes.push(format!("{} chunks of files are not in the table of chunks: they count as lost", self.named));
        }
        let last_chunk = state.chunks.iter().map(|chunk| chunk.id.0).max().unwrap_or(0);
        must(last_chunk < u64::MAX, || "there are no numbers for new chunks".to_owned())?;
        state.chunks.set_next_id(state.chunks.next_id().max(last_chunk + 1));
        for (what, count) in [
            ("open files of unknown sessions", self.dropped_open),
            ("locks of files that are not open", self.dropped_locks),
            ("attributes of inodes that are not there", self.dropped_attributes),
        ] {
            if count != 0 {
                notes.push(format!("{count} {what} are left out"));
            }
        }
        if !Edge::id_fits(state.next_edge_id) {
            self.renumber = true;
        }
        if self.renumber {
            state.renumber_edges();
            notes.push("the entries of directories were numbered anew".to_owned());
        }
        for inode in std::mem::take(&mut self.linked) {
            state.sort_links(inode);
        }
        attach_detached(state, std::mem::take(&mut self.detached))?;
        let nameless = state.inodes().find(|inode| *inode != ROOT && state.at(*inode).edge == 0);
        must(nameless.is_none(), || format!("inode {} has no name", nameless.unwrap_or(0)))?;
        let dirs = state.inodes().filter(|inode| state.at(*inode).is_directory()).count();
        let reached = state.figures(ROOT).dirs as usize;
        must(dirs == reached, || format!("{} directories are not below the root", dirs.abs_diff(reached)))?;
        let mut namespace = Namespace::from_state(self.state, policy);
        // Nobody heard of these chunks yet, so nobody need hear that they changed.
        namespace.take_touched_chunks();
        namespace.take_released_chunks();
        Ok(Imported { namespace, notes })
    }
}

/// Trash and sustained files, in the order in which they were deleted: buckets are read in any.
fn attach_detached(state: &mut State, mut detached: Vec<(u32, Vec<u8>, u64)>) -> Result<(), Broken> {
    // Newest first, as ids count down.
    detached.sort_by_key(|(child, _, id)| (*id, *child));
    let next = state.next_edge_id;
    let keep_ids = detached.iter().all(|(_, _, id)| Edge::id_fits(*id) && *id > next)
        && detached.windows(2).all(|pair| pair[0].2 != pair[1].2);
    for (child, path, id) in detached.iter().rev() {
        must(state.at(*child).edge == 0, || format!("deleted file {child} has two paths"))?;
        state.put_detached(*child, path, keep_ids.then_some(*id));
    }
    Ok(())
}

fn class(state: &mut State, record: &ClassRecord<'_>) -> Result<(), Broken> {
    let id =
        u8::try_from(record.id).map_err(|_| Broken::Rule(format!("there can be no storage class {}", record.id)))?;
    must(record.mode <= 2, || format!("storage class {id} has mode {}, and there are 0 to 2", record.mode))?;
    // Old files define 10 and up; new ones also what the plain goals mean.
    let name = match (record.name, id.checked_sub(crate::class::SIMPLE_GOAL_MAX)) {
        (Some(name), _) => name.to_vec(),
        (None, Some(number @ 1..)) => format!("sclass_{number}").into_bytes(),
        (None, _) => return Err(Broken::Rule(format!("storage class {id} has no name"))),
    };
    let taken = state.classes.by_name(&name).is_some_and(|other| other != id);
    must(!taken, || format!("two storage classes are named `{}`", name.escape_ascii()))?;
    let keep = record.keep.as_ref().unwrap_or(&record.create).clone();
    let arch = record.arch.as_ref().unwrap_or(&keep).clone();
    let class = StorageClass {
        name,
        admin_only: record.admin_only != 0,
        mode: record.mode,
        arch_delay_days: record.arch_delay_days,
        create: record.create.clone(),
        keep,
        arch,
    };
    state.classes.set(id, Some(class));
    Ok(())
}

fn quota(state: &mut State, record: &QuotaRecord) -> Result<(), Broken> {
    let inode = record.inode;
    let is_directory = state.node(inode).is_some_and(Node::is_directory);
    must(is_directory, || format!("inode {inode} has a quota, and is no directory"))?;
    let limits = |(inodes, [length, size, realsize]): (u32, [u64; 3])| Limits { inodes, length, size, realsize };
    let quota = Quota {
        flags: record.flags,
        exceeded: record.exceeded != 0,
        since: record.since,
        grace_seconds: record.grace_seconds.unwrap_or(crate::quota::DEFAULT_GRACE_SECONDS),
        soft: limits(record.soft),
        hard: limits(record.hard),
    };
    must(state.quotas.insert(inode, quota).is_none(), || format!("inode {inode} has two quotas"))?;
    state.at_mut(inode).set_mark(mark::QUOTA, true);
    Ok(())
}

fn acl(state: &mut State, record: AclRecord, is_old: bool) -> Result<(), Broken> {
    let (inode, kind) = (record.inode, record.kind);
    must(matches!(kind, acl::ACCESS | acl::DEFAULT), || format!("an ACL of inode {inode} is of an unknown kind"))?;
    must(!state.acls.contains_key(&(inode, kind)), || format!("inode {inode} has two ACLs of one kind"))?;
    let [mut user, group, mut other, mut mask] = record.perms;
    if is_old && mask == 0 {
        // A mistake of MooseFS before 3.0.98. Spec 50, 4.10.
        let mode = state.at(inode).mode();
        (user, other, mask) = (mode >> 6 & 7, mode & 7, 7);
    }
    let acl = Acl { user, group, other, mask, users: record.users, groups: record.groups };
    put_acl(state, inode, kind, Some(acl));
    Ok(())
}
