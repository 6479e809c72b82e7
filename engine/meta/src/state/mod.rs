//! Everything that lasts: what an image holds and what the journal changes.
//!
//! `State` keeps the tables consistent with each other (edges with directories and their sums, slots with chunk
//! references); whether a change is allowed is decided above it. It is a pure function of the changes applied.

mod edges;
mod files;
mod inodes;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use wire::limits::RESERVED_INODE_MIN;
use wire::{Inode, Ip4, NodeKind, SessionId, Time};

use crate::acl::Acl;
use crate::arena::{Arena, Memory, Pages};
use crate::chunk_table::ChunkTable;
use crate::class::Classes;
use crate::index::{Filling, Index, Twice};
use crate::locks::Locks;
use crate::names::Names;
use crate::node::{ChunkList, Dir, Edge, FIRST_EDGE_ID, Figures, Node};
use crate::owners::{Owners, Ownership};
use crate::quota::Quota;
use crate::session::Session;
use crate::times::{FarTimes, PackedTimes, Times};
use edges::{name_hashes, same_name};
pub(crate) use files::last_index;
use inodes::InodeNumbers;

pub(crate) const ROOT: u32 = Inode::ROOT.0;
/// Storage class of a new root. Spec 32, 32.1.
pub(crate) const ROOT_CLASS: u8 = 2;
/// Trash time of a new root, and of what is neither file nor directory. Spec 31, 31.6.
pub(crate) const DEFAULT_TRASH_HOURS: u16 = 24;
pub(crate) const TRASH_BUCKETS: u32 = 4096;
pub(crate) const SUSTAINED_BUCKETS: u32 = 256;

/// Name, then value.
pub(crate) type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// What the journal knows about a chunkserver. Spec 50, 4.14.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerEntry {
    /// 0: none yet.
    pub csid: u16,
    /// 0 off, 1 on, 2 temporary.
    pub maintenance: u8,
    /// Unix seconds at which maintenance ends by itself; 0 = never.
    pub maintenance_until: u32,
}

/// Numbers of things in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    pub nodes: u64,
    pub edges: u64,
    pub chunks: u64,
    pub name_index_bytes: u64,
    pub chunk_index_bytes: u64,
}

/// Memory of the namespace, by table. Names and targets of symlinks are with the edges, records of directories with the
/// nodes, which need no index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    pub chunk_index: Memory,
    pub chunks: Memory,
    pub name_index: Memory,
    pub edges: Memory,
    pub nodes: Memory,
    /// Numbers of inodes that wait until they may be given again.
    pub free_inodes: Memory,
    /// Of files with more than one chunk; without the slots themselves.
    pub chunk_lists: Memory,
    pub quotas: Memory,
}

/// Nodes of one storage class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassNodes {
    /// All that are no directories.
    pub files: u32,
    pub dirs: u32,
}

impl ClassNodes {
    fn of(&mut self, node: &Node) -> &mut u32 {
        if node.is_directory() { &mut self.dirs } else { &mut self.files }
    }
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) meta_id: u64,
    /// Version of the next change.
    pub(crate) version: u64,
    nodes: Pages<Node>,
    edges: Arena<Edge>,
    dirs: Arena<Dir>,
    lists: Arena<ChunkList>,
    names: Names,
    name_index: Index,
    owners: Owners,
    times: FarTimes,
    node_count: u32,
    /// Those of them that are files, also in the trash and sustained.
    file_count: u32,
    pub(crate) next_edge_id: u64,
    inodes: InodeNumbers,
    /// Newest entry of each bucket.
    trash: Vec<u32>,
    sustained: Vec<u32>,
    pub(crate) trash_bytes: u64,
    pub(crate) trash_nodes: u32,
    pub(crate) sustained_bytes: u64,
    pub(crate) sustained_nodes: u32,
    pub(crate) chunks: ChunkTable,
    pub(crate) classes: Classes,
    /// Nodes of each storage class.
    class_nodes: Vec<ClassNodes>,
    pub(crate) xattrs: BTreeMap<u32, Xattrs>,
    /// By inode and type (1 access, 2 default).
    pub(crate) acls: BTreeMap<(u32, u8), Acl>,
    pub(crate) quotas: BTreeMap<u32, Quota>,
    pub(crate) sessions: BTreeMap<SessionId, Session>,
    pub(crate) next_session: u32,
    open_by_session: BTreeSet<(SessionId, u32)>,
    open_by_inode: BTreeSet<(u32, SessionId)>,
    pub(crate) locks: Locks,
    pub(crate) servers: BTreeMap<(Ip4, u16), ServerEntry>,
    /// Inodes that ceased to exist since the caller asked last. Not kept in images.
    pub(crate) removed_inodes: Vec<Inode>,
}

impl State {
    /// A new file system: the root alone. Spec 50, 8.4.
    pub(crate) fn new(now: Time) -> State {
        let mut state = State::empty();
        let mut root = Node::new(NodeKind::Directory, 0o777);
        root.class = ROOT_CLASS;
        let inode = state.inodes.take_lowest().expect("none is taken yet");
        debug_assert_eq!(inode, ROOT);
        let ownership = Ownership { uid: 0, gid: 0, trash_hours: DEFAULT_TRASH_HOURS };
        state.insert_node(ROOT, root, ownership, &Times::all(now));
        state
    }

    /// Nothing at all, for an image to fill.
    pub(crate) fn empty() -> State {
        State {
            meta_id: 0,
            version: 1,
            nodes: Pages::new(),
            edges: Arena::new(),
            dirs: Arena::new(),
            lists: Arena::new(),
            names: Names::new(),
            name_index: Index::new(),
            owners: Owners::new(),
            times: FarTimes::new(),
            node_count: 0,
            file_count: 0,
            next_edge_id: FIRST_EDGE_ID,
            inodes: InodeNumbers::new(),
            trash: vec![0; TRASH_BUCKETS as usize],
            sustained: vec![0; SUSTAINED_BUCKETS as usize],
            trash_bytes: 0,
            trash_nodes: 0,
            sustained_bytes: 0,
            sustained_nodes: 0,
            chunks: ChunkTable::new(),
            classes: Classes::new(),
            class_nodes: vec![ClassNodes::default(); 256],
            xattrs: BTreeMap::new(),
            acls: BTreeMap::new(),
            quotas: BTreeMap::new(),
            sessions: BTreeMap::new(),
            next_session: 1,
            open_by_session: BTreeSet::new(),
            open_by_inode: BTreeSet::new(),
            locks: Locks::default(),
            servers: BTreeMap::new(),
            removed_inodes: Vec::new(),
        }
    }

    /// The same state for a reader elsewhere. Large tables are shared, small ones copied, indexes left out: the copy
    /// can be walked, not searched by name.
    pub(crate) fn freeze(&mut self) -> State {
        State {
            meta_id: self.meta_id,
            version: self.version,
            nodes: self.nodes.freeze(),
            edges: self.edges.freeze(),
            dirs: self.dirs.freeze(),
            lists: self.lists.freeze(),
            names: self.names.freeze(),
            name_index: Index::new(),
            owners: self.owners.freeze(),
            times: self.times.freeze(),
            node_count: self.node_count,
            file_count: self.file_count,
            next_edge_id: self.next_edge_id,
            inodes: self.inodes.clone(),
            trash: self.trash.clone(),
            sustained: self.sustained.clone(),
            trash_bytes: self.trash_bytes,
            trash_nodes: self.trash_nodes,
            sustained_bytes: self.sustained_bytes,
            sustained_nodes: self.sustained_nodes,
            chunks: self.chunks.freeze(),
            classes: self.classes.clone(),
            class_nodes: self.class_nodes.clone(),
            xattrs: self.xattrs.clone(),
            acls: self.acls.clone(),
            quotas: self.quotas.clone(),
            sessions: self.sessions.clone(),
            next_session: self.next_session,
            open_by_session: self.open_by_session.clone(),
            open_by_inode: self.open_by_inode.clone(),
            locks: self.locks.clone(),
            servers: self.servers.clone(),
            removed_inodes: Vec::new(),
        }
    }

    /// Before the names of an image are read.
    pub(crate) fn begin_links(&mut self, names: u64) -> Filling {
        Filling::new(&mut self.name_index, names)
    }

    /// Before the chunks of an image are read.
    pub(crate) fn begin_chunks(&mut self, chunks: u64) {
        self.chunks.begin_filling(chunks);
    }

    /// After all chunks of an image were read, and before they are looked for. Errors: `Twice`.
    pub(crate) fn finish_chunks(&mut self) -> Result<(), Twice> {
        self.chunks.finish_filling()
    }

    /// After all names of an image were read: they can be looked for, and directories have their sums. Errors: `Twice`
    /// if a directory has a name twice.
    pub(crate) fn finish_links(&mut self, filling: Option<Filling>) -> Result<(), Twice> {
        let State { edges, names, name_index, .. } = self;
        if let Some(filling) = filling {
            filling.finish(
                name_index,
                |batch| name_hashes(edges, names, batch),
                |a, b| same_name(edges, names, a, b),
            )?;
        }
        self.sum_up();
        Ok(())
    }

    // --- nodes

    /// Files, each counted once however many names it has.
    pub(crate) fn file_count(&self) -> u32 {
        self.file_count
    }

    pub(crate) fn node_count(&self) -> u32 {
        self.node_count
    }

    pub(crate) fn node(&self, inode: u32) -> Option<&Node> {
        if (inode as usize) < self.nodes.len() {
            let node = self.nodes.get(inode as usize);
            return node.exists().then_some(node);
        }
        None
    }

    /// A node that is known to exist.
    #[inline]
    pub(crate) fn at(&self, inode: u32) -> &Node {
        let node = self.nodes.get(inode as usize);
        assert!(node.exists(), "inode {inode} was looked up before");
        node
    }

    pub(crate) fn at_mut(&mut self, inode: u32) -> &mut Node {
        let node = self.nodes.get_mut(inode as usize);
        assert!(node.exists(), "inode {inode} was looked up before");
        node
    }

    /// Inodes in ascending order.
    pub(crate) fn inodes(&self) -> impl Iterator<Item = u32> + '_ {
        self.inodes_in(0..u32::MAX)
    }

    /// Those of these numbers that exist, upwards.
    pub(crate) fn inodes_in(&self, numbers: Range<u32>) -> impl Iterator<Item = u32> + '_ {
        let end = (numbers.end as usize).min(self.nodes.len()) as u32;
        (numbers.start.max(1)..end).filter(|inode| self.nodes.get(*inode as usize).exists())
    }

    /// (uid, gid)
    #[inline]
    pub(crate) fn owner(&self, node: &Node) -> (u32, u32) {
        let Ownership { uid, gid, .. } = self.owners.get(node.owner);
        (uid, gid)
    }

    pub(crate) fn trash_hours(&self, node: &Node) -> u16 {
        self.owners.get(node.owner).trash_hours
    }

    pub(crate) fn set_owner(&mut self, inode: u32, uid: u32, gid: u32) {
        let trash_hours = self.trash_hours(self.at(inode));
        self.set_ownership(inode, Ownership { uid, gid, trash_hours });
    }

    pub(crate) fn set_trash_hours(&mut self, inode: u32, trash_hours: u16) {
        let (uid, gid) = self.owner(self.at(inode));
        self.set_ownership(inode, Ownership { uid, gid, trash_hours });
    }

    fn set_ownership(&mut self, inode: u32, ownership: Ownership) {
        let old = self.at(inode).owner;
        if self.owners.get(old) != ownership {
            self.at_mut(inode).owner = self.owners.take(ownership);
            self.owners.drop(old);
        }
    }

    #[inline]
    pub(crate) fn times(&self, node: &Node) -> Times {
        self.times.get(node.times)
    }

    pub(crate) fn set_times(&mut self, inode: u32, times: &Times) {
        let old = self.at(inode).times;
        self.at_mut(inode).times = self.times.replace(old, times);
    }

    pub(crate) fn set_atime(&mut self, inode: u32, atime: Time) {
        let times = self.times(self.at(inode));
        self.set_times(inode, &Times { atime, ..times });
    }

    pub(crate) fn set_ctime(&mut self, inode: u32, ctime: Time) {
        let times = self.times(self.at(inode));
        self.set_times(inode, &Times { ctime, ..times });
    }

    /// mtime and ctime.
    pub(crate) fn set_modified(&mut self, inode: u32, now: Time) {
        let times = self.times(self.at(inode));
        self.set_times(inode, &Times { mtime: now, ctime: now, ..times });
    }

    /// The number that the next new node gets; None if all usable ones are taken.
    pub(crate) fn take_inode(&mut self) -> Option<u32> {
        self.inodes.take_lowest()
    }

    pub(crate) fn has_free_inode(&self) -> bool {
        self.inodes.has_free()
    }

    /// Are there numbers for so many new nodes?
    pub(crate) fn has_free_inodes(&self, count: u64) -> bool {
        let in_use = u64::from(self.node_count) + self.inodes.waiting.len() as u64;
        in_use + count < u64::from(RESERVED_INODE_MIN)
    }

    /// Puts a node under a number that is taken from the numbers already.
    pub(crate) fn insert_node(&mut self, inode: u32, mut node: Node, ownership: Ownership, times: &Times) {
        node.owner = self.owners.take(ownership);
        node.times = self.times.replace(PackedTimes::default(), times);
        if node.is_directory() {
            let below = Figures { inodes: 1, dirs: 1, ..Figures::default() };
            node.chunks = self.dirs.insert(Dir { below, ..Dir::default() });
        }
        self.nodes.grow_to(inode as usize + 1);
        *self.class_nodes[usize::from(node.class)].of(&node) += 1;
        self.file_count += u32::from(node.has_data());
        *self.nodes.get_mut(inode as usize) = node;
        self.node_count += 1;
    }

    /// Takes away a node that has no edge any more; its number waits in the queue of free ones.
    pub(crate) fn remove_node(&mut self, inode: u32, now: u32) {
        let node = *self.at(inode);
        debug_assert!(node.edge == 0);
        if node.is_directory() {
            self.dirs.remove(node.chunks);
        } else if node.has_data() {
            self.drop_chunks_from(inode, 0);
        } else if node.is_symlink() {
            let (handle, length) = node.target();
            self.names.remove(handle, length);
        }
        self.xattrs.remove(&inode);
        self.acls.remove(&(inode, 1));
        self.acls.remove(&(inode, 2));
        self.quotas.remove(&inode);
        self.owners.drop(node.owner);
        self.times.remove(node.times);
        *self.class_nodes[usize::from(node.class)].of(&node) -= 1;
        *self.nodes.get_mut(inode as usize) = Node::default();
        self.node_count -= 1;
        self.file_count -= u32::from(node.has_data());
        self.inodes.release_later(inode, now);
        self.removed_inodes.push(Inode(inode));
    }

    pub(crate) fn free_queue(&self) -> &VecDeque<(u32, u32)> {
        &self.inodes.waiting
    }

    /// One more than the largest inode number that is taken or waits.
    pub(crate) fn inodes_end(&self) -> u32 {
        self.inodes.end()
    }

    pub(crate) fn inode_numbers(&mut self) -> &mut InodeNumbers {
        &mut self.inodes
    }

    pub(crate) fn nodes_of_class(&self, class: u8) -> ClassNodes {
        self.class_nodes[usize::from(class)]
    }

    pub(crate) fn class_is_used(&self, class: u8) -> bool {
        self.class_nodes[usize::from(class)] != ClassNodes::default()
    }

    // --- symlinks

    pub(crate) fn target(&self, node: &Node) -> &[u8] {
        let (handle, length) = node.target();
        self.names.get(handle, length)
    }

    /// Gives a symlink without a target one.
    pub(crate) fn set_target(&mut self, inode: u32, target: &[u8]) {
        let handle = self.names.insert(target);
        self.change_figures(inode, |state| state.at_mut(inode).set_target(handle, target.len()));
    }

    /// Gives a symlink another target.
    pub(crate) fn replace_target(&mut self, inode: u32, target: &[u8]) {
        let (handle, length) = self.at(inode).target();
        self.names.remove(handle, length);
        self.set_target(inode, target);
    }

    // --- open files

    pub(crate) fn is_open(&self, inode: u32) -> bool {
        self.openers(inode).next().is_some()
    }

    pub(crate) fn is_open_by(&self, session: SessionId, inode: u32) -> bool {
        self.open_by_session.contains(&(session, inode))
    }

    pub(crate) fn openers(&self, inode: u32) -> impl Iterator<Item = SessionId> + '_ {
        self.open_by_inode.range((inode, SessionId(0))..=(inode, SessionId(u32::MAX))).map(|(_, session)| *session)
    }

    pub(crate) fn open_files(&self, session: SessionId) -> impl Iterator<Item = u32> + '_ {
        self.open_by_session.range((session, 0)..=(session, u32::MAX)).map(|(_, inode)| *inode)
    }

    pub(crate) fn all_open_files(&self) -> impl Iterator<Item = (SessionId, u32)> + '_ {
        self.open_by_session.iter().copied()
    }

    /// False if it was open already.
    pub(crate) fn acquire(&mut self, session: SessionId, inode: u32) -> bool {
        self.open_by_inode.insert((inode, session));
        self.open_by_session.insert((session, inode))
    }

    /// Closes, with the locks that go with the handle. False if it was not open.
    pub(crate) fn release(&mut self, session: SessionId, inode: u32) -> bool {
        self.open_by_inode.remove(&(inode, session));
        let was_open = self.open_by_session.remove(&(session, inode));
        if was_open {
            self.locks.release(inode, session);
        }
        was_open
    }

    pub(crate) fn memory(&self) -> Tables {
        let (chunk_index, chunks) = self.chunks.memory();
        let nodes = Memory::of(self.nodes.bytes(), self.node_count as usize * size_of::<Node>());
        let waiting = &self.inodes.waiting;
        let number = size_of::<(u32, u32)>();
        let quotas = self.quotas.len() * size_of::<(u32, Quota)>();
        Tables {
            chunk_index,
            chunks,
            name_index: self.name_index.memory(),
            edges: self.edges.memory() + self.names.memory(),
            nodes: nodes + self.dirs.memory() + self.owners.memory() + self.times.memory(),
            free_inodes: Memory::of(waiting.capacity() * number, waiting.len() * number),
            chunk_lists: self.lists.memory(),
            quotas: Memory::of(quotas, quotas),
        }
    }

    /// What there is, for monitoring and for measuring.
    pub(crate) fn sizes(&self) -> Sizes {
        Sizes {
            nodes: u64::from(self.node_count),
            edges: self.edges.live() as u64,
            chunks: self.chunks.count() as u64,
            name_index_bytes: self.name_index.bytes() as u64,
            chunk_index_bytes: self.chunks.index_bytes() as u64,
        }
    }
}
