//! Everything that lasts: what an image holds and what the journal changes.
//!
//! `State` keeps the tables consistent with each other (edges with directories and their sums, slots with chunk
//! references); whether a change is allowed is decided above it. It is a pure function of the changes applied.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use wire::limits::{CHUNK_BYTES, NAME_BYTES_MAX, PATH_BYTES_MAX, RESERVED_INODE_MIN};
use wire::{Inode, Ip4, NodeKind, SessionId, Time};

use crate::acl::Acl;
use crate::arena::{Arena, Memory, Pages};
use crate::chunk_table::ChunkTable;
use crate::class::Classes;
use crate::index::{Filling, Index, Twice, hash};
use crate::locks::Locks;
use crate::names::Names;
use crate::node::{ChunkList, Dir, Edge, FIRST_EDGE_ID, Figures, LINK_BYTES, Node, mark, size_on_disk};
use crate::owners::{Owners, Ownership};
use crate::quota::Quota;
use crate::session::Session;
use crate::times::{FarTimes, PackedTimes, Times};

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

    // --- edges

    #[inline]
    pub(crate) fn edge(&self, edge: u32) -> &Edge {
        self.edges.get(edge)
    }

    #[inline]
    pub(crate) fn name(&self, edge: u32) -> &[u8] {
        let edge = self.edges.get(edge);
        name_of(&self.names, edge)
    }

    pub(crate) fn find(&self, parent: u32, name: &[u8]) -> Option<u32> {
        self.name_index.find(hash(u64::from(parent), name), |edge| {
            self.edges.get(edge).parent == parent && self.name(edge) == name
        })
    }

    pub(crate) fn find_child(&self, parent: u32, name: &[u8]) -> Option<u32> {
        self.find(parent, name).map(|edge| self.edges.get(edge).child)
    }

    /// Edges of a directory, newest first.
    pub(crate) fn children(&self, directory: u32) -> impl Iterator<Item = u32> + '_ {
        self.list(self.at(directory).newest())
    }

    /// Edges that name a node.
    pub(crate) fn links(&self, inode: u32) -> impl Iterator<Item = u32> + '_ {
        let mut next = self.at(inode).edge;
        std::iter::from_fn(move || {
            let edge = next;
            (edge != 0).then(|| {
                next = self.next_link(edge);
                edge
            })
        })
    }

    pub(crate) fn directory(&self, inode: u32) -> &Dir {
        self.directory_of(self.at(inode))
    }

    /// `node`: of a directory.
    pub(crate) fn directory_of(&self, node: &Node) -> &Dir {
        self.dirs.get(node.chunks)
    }

    /// The directory that a directory lies in; the root's is itself.
    pub(crate) fn parent_of_directory(&self, inode: u32) -> u32 {
        match self.at(inode).edge {
            0 => inode,
            edge => self.edges.get(edge).parent,
        }
    }

    /// True if `inode` is `ancestor` or lies below it, by any of its names.
    pub(crate) fn is_below(&self, inode: u32, ancestor: u32) -> bool {
        if inode == ancestor {
            return true;
        }
        self.links(inode).any(|edge| {
            let parent = self.edges.get(edge).parent;
            parent != 0 && self.directory_is_below(parent, ancestor)
        })
    }

    /// The same for a directory, which has one name.
    pub(crate) fn directory_is_below(&self, directory: u32, ancestor: u32) -> bool {
        self.ancestors(directory).any(|above| above == ancestor)
    }

    /// A directory, the one it lies in, and so on to the root.
    pub(crate) fn ancestors(&self, directory: u32) -> impl Iterator<Item = u32> + '_ {
        let mut next = Some(directory);
        std::iter::from_fn(move || {
            let here = next?;
            let parent = self.parent_of_directory(here);
            next = (parent != here).then_some(parent);
            Some(here)
        })
    }

    /// Gives `child` the name `name` in `parent`, where it is not taken. The edge becomes the newest of both.
    pub(crate) fn link(&mut self, parent: u32, child: u32, name: &[u8]) -> u32 {
        debug_assert!(name.len() <= NAME_BYTES_MAX && self.find(parent, name).is_none());
        let id = self.take_edge_id();
        let edge = self.new_edge(parent, child, name, id);
        let newest = self.at(parent).newest();
        self.put_before(edge, newest);
        self.at_mut(parent).set_newest(edge);
        self.enter_directory(edge);
        edge
    }

    /// For a file of MooseFS's: as `link`, but with the id given and behind `newer`, the entry of the same directory that
    /// was read before (0: none).
    pub(crate) fn link_as_oldest(&mut self, parent: u32, child: u32, name: &[u8], id: u64, newer: u32) -> u32 {
        let edge = self.new_oldest(parent, child, name, id, newer);
        self.enter_directory(edge);
        edge
    }

    /// For an image: as `link_as_oldest`, but the name can be looked for, and counts in directories above `parent`, only
    /// after `finish_links`. Errors: `Twice` if a directory has a name twice, this one or one read before.
    pub(crate) fn link_from_image(
        &mut self,
        (parent, child): (u32, u32),
        name: &[u8],
        id: u64,
        newer: u32,
        filling: &mut Filling,
    ) -> Result<u32, Twice> {
        let edge = self.new_oldest(parent, child, name, id, newer);
        let is_directory = self.count_entry(edge);
        if !is_directory {
            let figures = self.figures(child);
            let directory = self.at(parent).chunks;
            self.dirs.get_mut(directory).below.change(&Figures::default(), &figures);
        }
        let State { edges, names, name_index, .. } = self;
        let hashes = |batch: &mut [_]| name_hashes(edges, names, batch);
        filling.add(name_index, hash(u64::from(parent), name), edge, hashes, |a, b| same_name(edges, names, a, b))?;
        Ok(edge)
    }

    fn new_oldest(&mut self, parent: u32, child: u32, name: &[u8], id: u64, newer: u32) -> u32 {
        let edge = self.new_edge(parent, child, name, id);
        self.put_behind(edge, newer);
        if newer == 0 {
            self.at_mut(parent).set_newest(edge);
        }
        edge
    }

    /// Takes a name away. The child keeps what else it has.
    pub(crate) fn unlink(&mut self, edge: u32) {
        let Edge { parent, child, .. } = *self.edges.get(edge);
        let figures = self.figures(child);
        let is_directory = self.at(child).is_directory();
        self.change_up(parent, &figures, &Figures::default());
        let directory = self.at(parent).chunks;
        let directory = self.dirs.get_mut(directory);
        directory.children -= 1;
        directory.subdirectories -= u32::from(is_directory);
        let hash = hash(u64::from(parent), self.name(edge));
        let found = self.name_index.remove(hash, |other| other == edge);
        debug_assert_eq!(found, Some(edge));
        if self.at(parent).newest() == edge {
            let older = self.edges.get(edge).older;
            self.at_mut(parent).set_newest(older);
        }
        if !is_directory {
            self.at_mut(child).links -= 1;
        }
        self.drop_edge(edge);
    }

    // --- trash and sustained files

    /// Makes a file without names one that waits in the trash or is sustained, under its old path.
    pub(crate) fn detach(&mut self, inode: u32, kind: NodeKind, path: &[u8]) {
        debug_assert!(self.at(inode).edge == 0 && self.at(inode).kind() == NodeKind::File);
        self.at_mut(inode).set_kind(kind);
        let id = self.take_edge_id();
        self.add_detached(inode, path, id, None);
    }

    /// For an image: the entry of a trash or sustained node, behind `newer` (0: first) of the same bucket.
    pub(crate) fn detached_as_oldest(&mut self, inode: u32, path: &[u8], id: u64, newer: u32) -> u32 {
        self.add_detached(inode, path, id, Some(newer))
    }

    fn add_detached(&mut self, inode: u32, path: &[u8], id: u64, behind: Option<u32>) -> u32 {
        debug_assert!(path.len() <= PATH_BYTES_MAX);
        let edge = self.new_edge(0, inode, path, id);
        let head = *self.bucket_of(inode);
        match behind {
            Some(newer) => {
                self.put_behind(edge, newer);
                if newer == 0 {
                    *self.bucket_of(inode) = edge;
                }
            }
            None => {
                self.put_before(edge, head);
                *self.bucket_of(inode) = edge;
            }
        }
        let length = self.at(inode).length();
        self.count_detached(inode, 0, length, 1);
        edge
    }

    /// For a file of MooseFS's: the entry of a trash or sustained node, newer than what its bucket holds. Without an id it
    /// gets the next one.
    pub(crate) fn put_detached(&mut self, inode: u32, path: &[u8], id: Option<u64>) {
        let id = id.unwrap_or_else(|| self.take_edge_id());
        self.add_detached(inode, path, id, None);
    }

    /// Gives all entries of directories new ids, in the order in which they stand, from the first id on.
    /// Spec 50, 4.6 "Renumeration".
    pub(crate) fn renumber_edges(&mut self) {
        let mut next_id = FIRST_EDGE_ID;
        let mut directories = vec![ROOT];
        while let Some(directory) = directories.pop() {
            let entries: Vec<u32> = self.children(directory).collect();
            next_id -= entries.len() as u64;
            for (edge, id) in entries.iter().zip(next_id..) {
                // The new counter lies one below the last id that was given.
                self.edges.get_mut(*edge).set_id(id + 1);
            }
            let below = entries.iter().rev().map(|edge| self.edges.get(*edge).child);
            directories.extend(below.filter(|child| self.at(*child).is_directory()));
        }
        self.next_edge_id = next_id;
    }

    /// Takes a trash or sustained file out of its bucket; it is a file without names then.
    pub(crate) fn attach(&mut self, inode: u32) {
        let edge = self.at(inode).edge;
        let length = self.at(inode).length();
        self.count_detached(inode, length, 0, u32::MAX);
        if *self.bucket_of(inode) == edge {
            *self.bucket_of(inode) = self.edges.get(edge).older;
        }
        self.drop_edge(edge);
        self.at_mut(inode).set_kind(NodeKind::File);
    }

    pub(crate) fn trash_bucket(&self, bucket: u32) -> impl Iterator<Item = u32> + '_ {
        self.list(self.trash[bucket as usize])
    }

    pub(crate) fn sustained_bucket(&self, bucket: u32) -> impl Iterator<Item = u32> + '_ {
        self.list(self.sustained[bucket as usize])
    }

    /// All of the trash, then all sustained files, bucket by bucket, newest first.
    pub(crate) fn all_detached(&self) -> impl Iterator<Item = u32> + '_ {
        self.trash.iter().chain(&self.sustained).flat_map(|first| self.list(*first))
    }

    pub(crate) fn same_bucket(&self, left: u32, right: u32) -> bool {
        let place = |inode: u32| match self.at(inode).kind() {
            NodeKind::Trash => (true, inode % TRASH_BUCKETS),
            _ => (false, inode % SUSTAINED_BUCKETS),
        };
        place(left) == place(right)
    }

    pub(crate) fn bucket_is_empty(&mut self, inode: u32) -> bool {
        *self.bucket_of(inode) == 0
    }

    fn bucket_of(&mut self, inode: u32) -> &mut u32 {
        match self.at(inode).kind() {
            NodeKind::Trash => &mut self.trash[(inode % TRASH_BUCKETS) as usize],
            _ => &mut self.sustained[(inode % SUSTAINED_BUCKETS) as usize],
        }
    }

    fn count_detached(&mut self, inode: u32, before: u64, after: u64, nodes: u32) {
        let (bytes, count) = match self.at(inode).kind() {
            NodeKind::Trash => (&mut self.trash_bytes, &mut self.trash_nodes),
            _ => (&mut self.sustained_bytes, &mut self.sustained_nodes),
        };
        *bytes = bytes.wrapping_add(after).wrapping_sub(before);
        *count = count.wrapping_add(nodes);
    }

    /// The path of a file that is about to lose this name: without leading "/", at most 1024 bytes, cut in front.
    pub(crate) fn path(&self, edge: u32) -> Vec<u8> {
        let mut path = self.path_below(edge, ROOT);
        let cut = path.len().saturating_sub(PATH_BYTES_MAX);
        path.drain(..cut);
        path
    }

    /// The path of an edge as seen from a directory above it (or from the root, if that is not above).
    pub(crate) fn path_below(&self, edge: u32, top: u32) -> Vec<u8> {
        let mut parts: Vec<&[u8]> = vec![self.name(edge)];
        let mut directory = self.edges.get(edge).parent;
        while directory != top {
            match self.at(directory).edge {
                0 => break,
                above => {
                    parts.push(self.name(above));
                    directory = self.edges.get(above).parent;
                }
            }
        }
        parts.reverse();
        parts.join(&b'/')
    }

    // --- sums

    /// A node's own figures; for a directory with everything below it.
    pub(crate) fn figures(&self, inode: u32) -> Figures {
        let node = self.at(inode);
        match node.kind() {
            NodeKind::Directory => self.dirs.get(node.chunks).below,
            NodeKind::File | NodeKind::Trash | NodeKind::Sustained => self.file_figures(node),
            NodeKind::Symlink => Figures { inodes: 1, length: node.target().1 as u64, ..Figures::default() },
            _ => Figures { inodes: 1, ..Figures::default() },
        }
    }

    /// What lies in a directory, itself not counted: what a quota of it is compared with.
    pub(crate) fn inside(&self, directory: u32) -> Figures {
        let mut figures = self.figures(directory);
        figures.inodes -= 1;
        figures.dirs -= 1;
        figures
    }

    fn file_figures(&self, node: &Node) -> Figures {
        self.file_figures_at(node, node.length())
    }

    /// What a file would count if its length were this, with the chunks that it has.
    pub(crate) fn file_figures_at(&self, node: &Node, length: u64) -> Figures {
        let mut figures = Figures { inodes: 1, files: 1, length, ..Figures::default() };
        figures.chunks = self.used_slots(node);
        if figures.chunks != 0 {
            let last = last_index(length);
            let mut full = figures.chunks;
            let mut last_exists = false;
            for (index, _) in self.chunks_from(node, last) {
                full -= 1;
                last_exists |= index == last;
            }
            figures.size = size_on_disk(length, u64::from(full), last_exists);
            figures.realsize = figures.size * u64::from(self.classes.copies_max(node.class));
        }
        figures
    }

    /// Does something to a node that may change its figures, and tells all directories above.
    pub(crate) fn change_figures<T>(&mut self, inode: u32, change: impl FnOnce(&mut State) -> T) -> T {
        let before = self.figures(inode);
        let result = change(self);
        let after = self.figures(inode);
        if before != after {
            let first = self.at(inode).edge;
            let mut next = first;
            while next != 0 {
                let parent = self.edges.get(next).parent;
                let next_link = self.next_link(next);
                if parent == 0 {
                    self.count_detached(inode, before.length, after.length, 0);
                } else {
                    self.change_up(parent, &before, &after);
                }
                next = next_link;
            }
        }
        result
    }

    fn change_up(&mut self, directory: u32, before: &Figures, after: &Figures) {
        let mut directory = directory;
        loop {
            let node = *self.at(directory);
            self.dirs.get_mut(node.chunks).below.change(before, after);
            if node.edge == 0 {
                return;
            }
            directory = self.edges.get(node.edge).parent;
        }
    }

    /// Computes all directories' sums anew: after a storage class changed.
    pub(crate) fn recount(&mut self) {
        let directories: Vec<u32> = self.inodes().filter(|inode| self.at(*inode).is_directory()).collect();
        for directory in &directories {
            let dir = self.at(*directory).chunks;
            self.dirs.get_mut(dir).below = Figures { inodes: 1, dirs: 1, ..Figures::default() };
        }
        for directory in &directories {
            let edges: Vec<u32> = self.children(*directory).collect();
            let dir = self.at(*directory).chunks;
            for edge in edges {
                let child = self.edges.get(edge).child;
                if !self.at(child).is_directory() {
                    let figures = self.figures(child);
                    self.dirs.get_mut(dir).below.change(&Figures::default(), &figures);
                }
            }
        }
        self.sum_up();
    }

    /// Adds to each directory, which has counted itself and what is no directory in it, what lies in those below it.
    fn sum_up(&mut self) {
        // How deep each lies, by handle; 0 is not known yet.
        let mut depths = vec![0u32; self.dirs.end() as usize];
        let mut by_depth: Vec<(u32, u32)> = Vec::new();
        let mut unknown = Vec::new();
        for inode in self.inodes().filter(|inode| self.at(*inode).is_directory()) {
            unknown.extend(self.ancestors(inode).take_while(|above| depths[self.at(*above).chunks as usize] == 0));
            while let Some(directory) = unknown.pop() {
                let above = self.parent_of_directory(directory);
                let depth = if above == directory { 1 } else { depths[self.at(above).chunks as usize] + 1 };
                depths[self.at(directory).chunks as usize] = depth;
                by_depth.push((depth, directory));
            }
        }
        by_depth.sort_unstable_by(|left, right| right.cmp(left));
        for (_, directory) in by_depth {
            let above = self.parent_of_directory(directory);
            if above != directory {
                let below = self.dirs.get(self.at(directory).chunks).below;
                self.dirs.get_mut(self.at(above).chunks).below.change(&Figures::default(), &below);
            }
        }
    }

    // --- files

    pub(crate) fn set_length(&mut self, inode: u32, length: u64) {
        self.change_figures(inode, |state| {
            state.at_mut(inode).set_length(length);
            let first_beyond = length.div_ceil(u64::from(CHUNK_BYTES));
            if let Ok(first) = u32::try_from(first_beyond) {
                state.drop_chunks_from(inode, first);
            }
        });
    }

    /// Raises the length without touching slots.
    pub(crate) fn raise_length(&mut self, inode: u32, length: u64) {
        if self.at(inode).length() < length {
            self.change_figures(inode, |state| state.at_mut(inode).set_length(length));
        }
    }

    /// The storage class and with it the class of the file's chunks.
    pub(crate) fn set_class(&mut self, inode: u32, class: u8) {
        self.change_figures(inode, |state| {
            let old = state.at(inode).class;
            state.at_mut(inode).class = class;
            let node = *state.at(inode);
            *state.class_nodes[usize::from(old)].of(&node) -= 1;
            *state.class_nodes[usize::from(class)].of(&node) += 1;
            if state.at(inode).has_data() {
                let chunks: Vec<u32> = state.chunks_from(state.at(inode), 0).map(|(_, chunk)| chunk).collect();
                for chunk in chunks {
                    state.chunks.add_reference(chunk, class, &state.classes);
                    state.chunks.drop_reference(chunk, old, &state.classes);
                }
            }
        });
    }

    /// The chunk at an index of a file, 0 if there is none.
    pub(crate) fn chunk_of(&self, node: &Node, index: u32) -> u32 {
        if node.marked(mark::CHUNK_LIST) {
            self.lists.get(node.chunks).get(index)
        } else if index == 0 {
            node.chunks
        } else {
            0
        }
    }

    /// One more than the last slot of a file that holds a chunk.
    pub(crate) fn slots(&self, node: &Node) -> u32 {
        if node.marked(mark::CHUNK_LIST) { self.lists.get(node.chunks).slots() } else { u32::from(node.chunks != 0) }
    }

    pub(crate) fn used_slots(&self, node: &Node) -> u32 {
        if node.marked(mark::CHUNK_LIST) { self.lists.get(node.chunks).used() } else { u32::from(node.chunks != 0) }
    }

    /// (index, chunk) of the slots from `first` on that hold one, in order.
    pub(crate) fn chunks_from(&self, node: &Node, first: u32) -> impl Iterator<Item = (u32, u32)> + '_ {
        let (list, only) = match node.marked(mark::CHUNK_LIST) {
            true => (Some(self.lists.get(node.chunks)), 0),
            false => (None, node.chunks),
        };
        let only = (only != 0 && first == 0).then_some((0, only));
        only.into_iter().chain(list.into_iter().flat_map(move |list| list.from(first)))
    }

    /// Puts a chunk (0: none) at an index of a file and counts the references.
    pub(crate) fn put_chunk(&mut self, inode: u32, index: u32, chunk: u32) {
        self.change_figures(inode, |state| state.put_chunk_unsummed(inode, index, chunk));
    }

    fn put_chunk_unsummed(&mut self, inode: u32, index: u32, chunk: u32) {
        let class = self.at(inode).class;
        if chunk != 0 {
            self.chunks.add_reference(chunk, class, &self.classes);
        }
        let previous = self.set_slot(inode, index, chunk);
        if previous != 0 {
            self.chunks.drop_reference(previous, class, &self.classes);
        }
    }

    fn set_slot(&mut self, inode: u32, index: u32, chunk: u32) -> u32 {
        let node = *self.at(inode);
        if !node.marked(mark::CHUNK_LIST) {
            if index == 0 {
                self.at_mut(inode).chunks = chunk;
                return node.chunks;
            }
            if chunk == 0 {
                return 0;
            }
            let mut list = ChunkList::default();
            list.set(0, node.chunks);
            list.set(index, chunk);
            let handle = self.lists.insert(list);
            let node = self.at_mut(inode);
            node.chunks = handle;
            node.set_mark(mark::CHUNK_LIST, true);
            return 0;
        }
        let list = self.lists.get_mut(node.chunks);
        let previous = list.set(index, chunk);
        if list.slots() <= 1 {
            let only = list.get(0);
            self.lists.remove(node.chunks);
            let node = self.at_mut(inode);
            node.chunks = only;
            node.set_mark(mark::CHUNK_LIST, false);
        }
        previous
    }

    fn drop_chunks_from(&mut self, inode: u32, first: u32) {
        let node = *self.at(inode);
        if self.slots(&node) <= first {
            return;
        }
        let mut indexes: Vec<u32> = self.chunks_from(&node, first).map(|(index, _)| index).collect();
        indexes.reverse();
        for index in indexes {
            self.put_chunk_unsummed(inode, index, 0);
        }
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

    // --- below: lists of edges

    fn list(&self, first: u32) -> impl Iterator<Item = u32> + '_ {
        let mut next = first;
        std::iter::from_fn(move || {
            let edge = next;
            (edge != 0).then(|| {
                next = self.edges.get(edge).older;
                edge
            })
        })
    }

    fn take_edge_id(&mut self) -> u64 {
        let id = self.next_edge_id;
        self.next_edge_id -= 1;
        id
    }

    fn new_edge(&mut self, parent: u32, child: u32, name: &[u8], id: u64) -> u32 {
        let edge = Edge::new(parent, child, self.names.insert(name), name.len(), id);
        let edge = self.edges.insert(edge);
        self.set_next_link(edge, self.at(child).edge);
        self.at_mut(child).edge = edge;
        edge
    }

    /// The next older name of the same node; 0 is none.
    fn next_link(&self, edge: u32) -> u32 {
        let edge = self.edges.get(edge);
        if !edge.has_link() {
            return 0;
        }
        let link = self.names.get(edge.name, LINK_BYTES);
        u32::from_be_bytes(link.try_into().expect("a link has 4 bytes"))
    }

    fn set_next_link(&mut self, edge: u32, next: u32) {
        let Edge { name, .. } = *self.edges.get(edge);
        if self.edges.get(edge).has_link() {
            self.names.get_mut(name, LINK_BYTES).copy_from_slice(&next.to_be_bytes());
        } else if next != 0 {
            let bytes = self.edges.get(edge).name_bytes();
            let linked = [&next.to_be_bytes(), self.names.get(name, bytes)].concat();
            self.names.remove(name, bytes);
            let name = self.names.insert(&linked);
            let edge = self.edges.get_mut(edge);
            edge.name = name;
            edge.set_has_link();
        }
    }

    /// Orders the names of a node newest first, as they are when made one after the other. For an image, whose edges
    /// come by directory.
    pub(crate) fn sort_links(&mut self, inode: u32) {
        let mut links: Vec<u32> = self.links(inode).collect();
        links.sort_unstable_by_key(|edge| self.edges.get(*edge).id());
        let mut next = 0;
        for edge in links.iter().rev() {
            self.set_next_link(*edge, next);
            next = *edge;
        }
        self.at_mut(inode).edge = next;
    }

    fn put_before(&mut self, edge: u32, head: u32) {
        self.edges.get_mut(edge).older = head;
        if head != 0 {
            self.edges.get_mut(head).newer = edge;
        }
    }

    fn put_behind(&mut self, edge: u32, newer: u32) {
        self.edges.get_mut(edge).newer = newer;
        if newer != 0 {
            self.edges.get_mut(newer).older = edge;
        }
    }

    fn enter_directory(&mut self, edge: u32) {
        let Edge { parent, child, .. } = *self.edges.get(edge);
        let (edges, names) = (&self.edges, &self.names);
        let hash = name_hash(edges, names, edge);
        self.name_index.insert(hash, edge, |batch| name_hashes(edges, names, batch));
        self.count_entry(edge);
        let figures = self.figures(child);
        self.change_up(parent, &Figures::default(), &figures);
    }

    /// Counts an entry in its directory and a name at its node. Returns whether that is a directory.
    fn count_entry(&mut self, edge: u32) -> bool {
        let Edge { parent, child, .. } = *self.edges.get(edge);
        let is_directory = self.at(child).is_directory();
        if !is_directory {
            self.at_mut(child).links += 1;
        }
        let directory = self.at(parent).chunks;
        let directory = self.dirs.get_mut(directory);
        directory.children += 1;
        directory.subdirectories += u32::from(is_directory);
        is_directory
    }

    fn drop_edge(&mut self, edge: u32) {
        let next_link = self.next_link(edge);
        let removed = self.edges.remove(edge);
        let Edge { child, older, newer, .. } = removed;
        if older != 0 {
            self.edges.get_mut(older).newer = newer;
        }
        if newer != 0 {
            self.edges.get_mut(newer).older = older;
        }
        if self.at(child).edge == edge {
            self.at_mut(child).edge = next_link;
        } else {
            let mut before = self.at(child).edge;
            loop {
                let next = self.next_link(before);
                if next == edge {
                    break;
                }
                assert!(next != 0, "every name of a node is in its list");
                before = next;
            }
            self.set_next_link(before, next_link);
        }
        let link_bytes = if removed.has_link() { LINK_BYTES } else { 0 };
        self.names.remove(removed.name, link_bytes + removed.name_bytes());
    }
}

/// Hash of the name of an edge, as it is looked for.
fn name_hash(edges: &Arena<Edge>, names: &Names, edge: u32) -> u64 {
    let edge = edges.get(edge);
    hash(u64::from(edge.parent), name_of(names, edge))
}

/// Puts the hash in front of each edge. All edges are read first, then the beginnings of all names: the processor waits
/// for many at once.
fn name_hashes(edges: &Arena<Edge>, names: &Names, batch: &mut [(u64, u32)]) {
    let touched = batch.iter().map(|(_, edge)| edges.get(*edge).name);
    std::hint::black_box(touched.fold(0, std::ops::BitXor::bitxor));
    let touched = batch.iter().map(|(_, edge)| names.get(edges.get(*edge).name, 1)[0]);
    std::hint::black_box(touched.fold(0, std::ops::BitXor::bitxor));
    for (hash, edge) in batch {
        *hash = name_hash(edges, names, *edge);
    }
}

/// Are two edges the same name in the same directory?
fn same_name(edges: &Arena<Edge>, names: &Names, left: u32, right: u32) -> bool {
    let (left, right) = (edges.get(left), edges.get(right));
    left.parent == right.parent && name_of(names, left) == name_of(names, right)
}

#[inline]
fn name_of<'a>(names: &'a Names, edge: &Edge) -> &'a [u8] {
    let link_bytes = if edge.has_link() { LINK_BYTES } else { 0 };
    &names.get(edge.name, link_bytes + edge.name_bytes())[link_bytes..]
}

/// Index of the chunk that holds the last byte of a file; 0 if it is empty.
pub(crate) fn last_index(length: u64) -> u32 {
    u32::try_from(length.saturating_sub(1) / u64::from(CHUNK_BYTES)).unwrap_or(u32::MAX)
}

/// Which inode numbers are taken, and those that wait until they may be used again. Spec 50, 8.3; Spec 51, 9.
#[derive(Clone, Debug)]
pub(crate) struct InodeNumbers {
    /// Bit set: taken or waiting.
    taken: Vec<u64>,
    /// All words before this one are full.
    search_from: usize,
    /// (inode, Unix seconds when it became free), in order.
    pub(crate) waiting: VecDeque<(u32, u32)>,
}

impl InodeNumbers {
    fn new() -> InodeNumbers {
        InodeNumbers { taken: vec![1], search_from: 0, waiting: VecDeque::new() }
    }

    /// Marks a number as taken; false if it was already, or is none that a master may give.
    pub(crate) fn take(&mut self, inode: u32) -> bool {
        if inode == 0 || inode >= RESERVED_INODE_MIN {
            return false;
        }
        let word = inode as usize / 64;
        if word >= self.taken.len() {
            self.taken.resize(word + 1, 0);
        }
        let bit = 1 << (inode % 64);
        let was_free = self.taken[word] & bit == 0;
        self.taken[word] |= bit;
        was_free
    }

    fn end(&self) -> u32 {
        let last = self.taken.iter().rposition(|word| *word != 0).expect("number 0 is taken");
        last as u32 * 64 + (64 - self.taken[last].leading_zeros())
    }

    fn lowest(&self) -> u32 {
        let words = self.taken[self.search_from..].iter().position(|word| *word != u64::MAX);
        match words.map(|words| words + self.search_from) {
            Some(word) => word as u32 * 64 + self.taken[word].trailing_ones(),
            None => u32::try_from(self.taken.len() * 64).expect("numbers end below 2^31"),
        }
    }

    fn has_free(&self) -> bool {
        self.lowest() < RESERVED_INODE_MIN
    }

    fn take_lowest(&mut self) -> Option<u32> {
        let inode = self.lowest();
        self.search_from = inode as usize / 64;
        self.take(inode).then_some(inode)
    }

    /// The number waits from now on. If the clock went back, numbers that wait since later count from now, too.
    pub(crate) fn release_later(&mut self, inode: u32, now: u32) {
        for (_, since) in self.waiting.iter_mut().rev().take_while(|(_, since)| *since > now) {
            *since = now;
        }
        self.waiting.push_back((inode, now));
    }

    /// The number may be used again.
    pub(crate) fn release(&mut self, inode: u32) {
        let word = inode as usize / 64;
        self.taken[word] &= !(1 << (inode % 64));
        self.search_from = self.search_from.min(word);
    }
}
