//! Sums over directories, and the chunks of files.

use wire::NodeKind;
use wire::limits::CHUNK_BYTES;

use super::State;
use crate::node::{ChunkList, Figures, Node, mark, size_on_disk};

impl State {
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

    pub(super) fn file_figures(&self, node: &Node) -> Figures {
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

    pub(super) fn change_up(&mut self, directory: u32, before: &Figures, after: &Figures) {
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
    pub(super) fn sum_up(&mut self) {
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

    pub(super) fn put_chunk_unsummed(&mut self, inode: u32, index: u32, chunk: u32) {
        let class = self.at(inode).class;
        if chunk != 0 {
            self.chunks.add_reference(chunk, class, &self.classes);
        }
        let previous = self.set_slot(inode, index, chunk);
        if previous != 0 {
            self.chunks.drop_reference(previous, class, &self.classes);
        }
    }

    pub(super) fn set_slot(&mut self, inode: u32, index: u32, chunk: u32) -> u32 {
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

    pub(super) fn drop_chunks_from(&mut self, inode: u32, first: u32) {
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
}

/// Index of the chunk that holds the last byte of a file; 0 if it is empty.
pub(crate) fn last_index(length: u64) -> u32 {
    u32::try_from(length.saturating_sub(1) / u64::from(CHUNK_BYTES)).unwrap_or(u32::MAX)
}
