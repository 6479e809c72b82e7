//! Sums over the whole file system, for those who watch it. Spec 70, 4.1 and 4.3.

use wire::{ChunkId, Inode, NodeKind};

use crate::chunk_table::ChunkRecord;
use crate::namespace::Namespace;
use crate::state::{ClassNodes, ROOT, Tables};

/// What there is in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub nodes: u32,
    pub dirs: u32,
    /// Also those in the trash and sustained; one with several names counts once.
    pub files: u32,
    pub trash_bytes: u64,
    pub trash_nodes: u32,
    pub sustained_bytes: u64,
    pub sustained_nodes: u32,
}

/// Where a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// In directories, under so many names.
    Named(u32),
    Trash,
    Sustained,
}

impl Namespace {
    pub fn totals(&self) -> Totals {
        let tree = self.state.figures(ROOT);
        Totals {
            nodes: self.state.node_count(),
            dirs: tree.dirs,
            files: self.state.file_count(),
            trash_bytes: self.state.trash_bytes,
            trash_nodes: self.state.trash_nodes,
            sustained_bytes: self.state.sustained_bytes,
            sustained_nodes: self.state.sustained_nodes,
        }
    }

    pub fn memory(&self) -> Tables {
        self.state.memory()
    }

    /// Where in files the chunks lie that `is_wanted`: chunk, inode, index of the slot, in the order of inodes. Looks at
    /// every file.
    pub fn slots_of_chunks(&self, is_wanted: impl Fn(ChunkId) -> bool) -> impl Iterator<Item = (ChunkId, Inode, u32)> {
        let files = self.state.inodes().filter(|inode| self.state.at(*inode).has_data());
        let slots = files.flat_map(|inode| {
            self.state.chunks_from(self.state.at(inode), 0).map(move |(index, chunk)| (inode, index, chunk))
        });
        slots.filter_map(move |(inode, index, chunk)| {
            let id = self.state.chunks.get(chunk)?.id;
            is_wanted(id).then_some((id, Inode(inode), index))
        })
    }

    /// Every inode is below it.
    pub fn inodes_end(&self) -> u32 {
        self.state.inodes_end()
    }

    /// Where a file is; `None` for what is none.
    pub fn placed(&self, inode: Inode) -> Option<Placed> {
        let node = self.state.node(inode.0).filter(|node| node.has_data())?;
        Some(match node.kind() {
            NodeKind::Trash => Placed::Trash,
            NodeKind::Sustained => Placed::Sustained,
            _ => Placed::Named(u32::try_from(self.state.links(inode.0).count()).unwrap_or(u32::MAX)),
        })
    }

    /// All paths of a node in the whole tree; none if there is no such node. Spec 70, 4.13.
    pub fn paths_in_all(&self, inode: Inode) -> Vec<Vec<u8>> {
        let Some(node) = self.state.node(inode.0) else { return Vec::new() };
        let detached = |word: &[u8]| vec![[word, self.state.name(node.edge), b")"].concat()];
        match node.kind() {
            _ if node.edge == 0 => vec![b"/".to_vec()],
            NodeKind::Trash => detached(b"./TRASH ("),
            NodeKind::Sustained => detached(b"./SUSTAINED ("),
            _ => self.state.links(inode.0).map(|edge| self.state.path_below(edge, ROOT)).collect(),
        }
    }

    /// Copies that the chunk's class wants.
    pub fn goal_of(&self, chunk: &ChunkRecord) -> usize {
        self.class(chunk.class).map_or(0, |class| if chunk.archived { class.arch.len() } else { class.keep.len() })
    }

    /// Nodes that have a storage class.
    pub fn nodes_of_class(&self, class: u8) -> ClassNodes {
        self.state.nodes_of_class(class)
    }

    /// The path of a directory that is some session's root.
    pub fn path_of_root(&self, directory: Inode) -> Vec<u8> {
        match self.state.node(directory.0).map(|node| node.edge) {
            Some(edge) if edge != 0 => [b"/", &self.state.path_below(edge, ROOT)[..]].concat(),
            _ => b"/".to_vec(),
        }
    }
}
