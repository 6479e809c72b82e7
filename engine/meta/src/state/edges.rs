//! Names in directories, in the trash, and of sustained files.

use wire::NodeKind;
use wire::limits::{NAME_BYTES_MAX, PATH_BYTES_MAX};

use super::{ROOT, SUSTAINED_BUCKETS, State, TRASH_BUCKETS};
use crate::arena::Arena;
use crate::index::{Filling, Twice, hash};
use crate::names::Names;
use crate::node::{Dir, Edge, FIRST_EDGE_ID, Figures, LINK_BYTES, Node};

impl State {
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

    pub(super) fn new_oldest(&mut self, parent: u32, child: u32, name: &[u8], id: u64, newer: u32) -> u32 {
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

    pub(super) fn add_detached(&mut self, inode: u32, path: &[u8], id: u64, behind: Option<u32>) -> u32 {
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

    pub(super) fn bucket_of(&mut self, inode: u32) -> &mut u32 {
        match self.at(inode).kind() {
            NodeKind::Trash => &mut self.trash[(inode % TRASH_BUCKETS) as usize],
            _ => &mut self.sustained[(inode % SUSTAINED_BUCKETS) as usize],
        }
    }

    pub(super) fn count_detached(&mut self, inode: u32, before: u64, after: u64, nodes: u32) {
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

    // --- below: lists of edges

    pub(super) fn list(&self, first: u32) -> impl Iterator<Item = u32> + '_ {
        let mut next = first;
        std::iter::from_fn(move || {
            let edge = next;
            (edge != 0).then(|| {
                next = self.edges.get(edge).older;
                edge
            })
        })
    }

    pub(super) fn take_edge_id(&mut self) -> u64 {
        let id = self.next_edge_id;
        self.next_edge_id -= 1;
        id
    }

    pub(super) fn new_edge(&mut self, parent: u32, child: u32, name: &[u8], id: u64) -> u32 {
        let edge = Edge::new(parent, child, self.names.insert(name), name.len(), id);
        let edge = self.edges.insert(edge);
        self.set_next_link(edge, self.at(child).edge);
        self.at_mut(child).edge = edge;
        edge
    }

    /// The next older name of the same node; 0 is none.
    pub(super) fn next_link(&self, edge: u32) -> u32 {
        let edge = self.edges.get(edge);
        if !edge.has_link() {
            return 0;
        }
        let link = self.names.get(edge.name, LINK_BYTES);
        u32::from_be_bytes(link.try_into().expect("a link has 4 bytes"))
    }

    pub(super) fn set_next_link(&mut self, edge: u32, next: u32) {
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

    pub(super) fn put_before(&mut self, edge: u32, head: u32) {
        self.edges.get_mut(edge).older = head;
        if head != 0 {
            self.edges.get_mut(head).newer = edge;
        }
    }

    pub(super) fn put_behind(&mut self, edge: u32, newer: u32) {
        self.edges.get_mut(edge).newer = newer;
        if newer != 0 {
            self.edges.get_mut(newer).older = edge;
        }
    }

    pub(super) fn enter_directory(&mut self, edge: u32) {
        let Edge { parent, child, .. } = *self.edges.get(edge);
        let (edges, names) = (&self.edges, &self.names);
        let hash = name_hash(edges, names, edge);
        self.name_index.insert(hash, edge, |batch| name_hashes(edges, names, batch));
        self.count_entry(edge);
        let figures = self.figures(child);
        self.change_up(parent, &Figures::default(), &figures);
    }

    /// Counts an entry in its directory and a name at its node. Returns whether that is a directory.
    pub(super) fn count_entry(&mut self, edge: u32) -> bool {
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

    pub(super) fn drop_edge(&mut self, edge: u32) {
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
pub(super) fn name_hash(edges: &Arena<Edge>, names: &Names, edge: u32) -> u64 {
    let edge = edges.get(edge);
    hash(u64::from(edge.parent), name_of(names, edge))
}

/// Puts the hash in front of each edge. All edges are read first, then all names, from end to end since they may lie across
/// two cache lines: the processor waits for many at once.
pub(super) fn name_hashes(edges: &Arena<Edge>, names: &Names, batch: &mut [(u64, u32)]) {
    let touched = batch.iter().map(|(_, at)| {
        let edge = edges.get(*at);
        edge.parent ^ edge.name_bytes() as u32
    });
    std::hint::black_box(touched.fold(0, std::ops::BitXor::bitxor));
    let touched = batch.iter().map(|(_, at)| {
        let edge = edges.get(*at);
        let name = names.get(edge.name, edge.name_bytes());
        name[0] ^ name[name.len() - 1]
    });
    std::hint::black_box(touched.fold(0, std::ops::BitXor::bitxor));
    for (hash, edge) in batch {
        *hash = name_hash(edges, names, *edge);
    }
}

/// Are two edges the same name in the same directory?
pub(super) fn same_name(edges: &Arena<Edge>, names: &Names, left: u32, right: u32) -> bool {
    let (left, right) = (edges.get(left), edges.get(right));
    left.parent == right.parent && name_of(names, left) == name_of(names, right)
}

#[inline]
pub(super) fn name_of<'a>(names: &'a Names, edge: &Edge) -> &'a [u8] {
    let link_bytes = if edge.has_link() { LINK_BYTES } else { 0 };
    &names.get(edge.name, link_bytes + edge.name_bytes())[link_bytes..]
}
