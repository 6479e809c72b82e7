//! Sums over directories out of a metadata file, without a master: `mfsmetadirinfo`. Spec 50, 12.
//!
//! The file is read three times, since a record of a node does not say where the node is: entries mark what lies below the
//! paths, chunks say which of them are archived, nodes are summed. Memory is a bit per inode and path, and the chunks
//! below the paths. A directory's entry comes before those in it, as masters write them.

use std::collections::BTreeSet;

use super::parser::{Parser, Piece};
use super::records::{ClassRecord, NodeData, NodeRecord, Record, words_of};
use super::{Broken, StockError, must};
use crate::state::ROOT;
use wire::limits::{BLOCK_BYTES, CHUNK_BYTES, RESERVED_INODE_MIN};

/// What a chunk takes on a disk in front of its data. Spec 50, 12.
const HEADER_BYTES: u64 = 8192;

/// What lies below a path. Each inode and each chunk counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    pub inodes: u64,
    pub files: u64,
    pub dirs: u64,
    pub chunks: u64,
    pub keep_chunks: u64,
    pub arch_chunks: u64,
    pub length: u64,
    pub size: u64,
    pub keep_size: u64,
    pub arch_size: u64,
    pub real_size: u64,
}

/// What a reading of the file is for; all three in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    Edges,
    Chunks,
    Nodes,
}

/// Paths, and what was found below them.
pub struct DirInfo {
    targets: Vec<Target>,
    /// All paths together.
    total: Option<Target>,
    archived: Vec<u64>,
    /// Copies of a class: keep, arch.
    copies: [(u64, u64); 256],
    parser: Option<(Pass, Parser)>,
}

#[derive(Default)]
struct Target {
    /// Names that are still to be found, the last one first.
    names: Vec<Vec<u8>>,
    /// The directory that the next name is in.
    at: u32,
    /// A bit for each inode below.
    below: Vec<u64>,
    seen: BTreeSet<u64>,
    sums: Sums,
}

impl DirInfo {
    /// `paths`: from the root of the file system; empty names in them are nothing. `with_total`: also all of them
    /// together.
    pub fn new(paths: &[Vec<u8>], with_total: bool) -> DirInfo {
        let target = |path: &Vec<u8>| {
            let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
            let mut target = Target { names: names.rev().map(<[u8]>::to_vec).collect(), at: ROOT, ..Target::default() };
            if target.names.is_empty() {
                target.mark(ROOT);
            }
            target
        };
        let mut copies = [(0, 0); 256];
        for goal in 1..=crate::class::SIMPLE_GOAL_MAX {
            copies[usize::from(goal)] = (u64::from(goal), u64::from(goal));
        }
        DirInfo {
            targets: paths.iter().map(target).collect(),
            total: with_total.then(Target::default),
            archived: Vec::new(),
            copies,
            parser: None,
        }
    }

    /// The next bytes of the file, in this pass.
    pub fn push(&mut self, pass: Pass, bytes: &[u8]) -> Result<(), StockError> {
        let mut parser = match self.parser.take() {
            Some((of, parser)) if of == pass => parser,
            _ => Parser::new(),
        };
        let result = parser.push(bytes, &mut |piece| match (pass, piece) {
            (_, Piece::Record(Record::Class(class))) => self.class(&class),
            (Pass::Edges, Piece::Record(Record::Edge { parent, child, name, .. })) => self.edge(parent, child, name),
            (Pass::Chunks, Piece::Record(Record::Chunk { id, archived, .. })) => {
                self.archived.extend(archived.is_some_and(|archived| archived != 0).then_some(id));
                Ok(())
            }
            (Pass::Nodes, Piece::Record(Record::Node(node))) => self.node(&node),
            _ => Ok(()),
        });
        self.parser = Some((pass, parser));
        result
    }

    /// After all bytes of a pass. Errors: the file is not whole.
    pub fn finish(&mut self) -> Result<(), StockError> {
        let Some((pass, parser)) = self.parser.take() else { return Parser::new().finish() };
        parser.finish()?;
        if pass == Pass::Chunks {
            self.archived.sort_unstable();
        }
        Ok(())
    }

    /// For each path; None: there is no such path.
    pub fn sums(&self) -> impl Iterator<Item = Option<Sums>> + '_ {
        self.targets.iter().map(|target| target.names.is_empty().then_some(target.sums))
    }

    /// For all paths together.
    pub fn total(&self) -> Option<Sums> {
        self.total.as_ref().map(|total| total.sums)
    }

    fn class(&mut self, class: &ClassRecord<'_>) -> Result<(), Broken> {
        let keep = class.keep.as_ref().unwrap_or(&class.create);
        let copies = (keep.len() as u64, class.arch.as_ref().unwrap_or(keep).len() as u64);
        let place = self.copies.get_mut(usize::from(class.id));
        *place.ok_or_else(|| Broken::Rule(format!("there can be no storage class {}", class.id)))? = copies;
        Ok(())
    }

    fn edge(&mut self, parent: u32, child: u32, name: &[u8]) -> Result<(), Broken> {
        must(child < RESERVED_INODE_MIN, || format!("there can be no inode {child}"))?;
        for target in &mut self.targets {
            match target.names.last() {
                Some(next) if target.at == parent && next == name => {
                    target.names.pop();
                    target.at = child;
                    if target.names.is_empty() {
                        target.mark(child);
                    }
                }
                None if parent != 0 && target.has(parent) => target.mark(child),
                _ => {}
            }
        }
        Ok(())
    }

    fn node(&mut self, node: &NodeRecord<'_>) -> Result<(), Broken> {
        let mut is_below = false;
        for target in self.targets.iter_mut().filter(|target| target.names.is_empty() && target.has(node.inode)) {
            is_below = true;
            target.add(node, self.copies[usize::from(node.class)], &self.archived)?;
        }
        match &mut self.total {
            Some(total) if is_below => total.add(node, self.copies[usize::from(node.class)], &self.archived),
            _ => Ok(()),
        }
    }
}

impl Target {
    fn has(&self, inode: u32) -> bool {
        self.below.get(inode as usize / 64).is_some_and(|word| word >> (inode % 64) & 1 != 0)
    }

    fn mark(&mut self, inode: u32) {
        let word = inode as usize / 64;
        if word >= self.below.len() {
            self.below.resize(word + 1, 0);
        }
        self.below[word] |= 1 << (inode % 64);
    }

    fn add(&mut self, node: &NodeRecord<'_>, copies: (u64, u64), archived: &[u64]) -> Result<(), Broken> {
        let sums = &mut self.sums;
        sums.inodes += 1;
        sums.dirs += u64::from(node.kind == wire::NodeKind::Directory as u8);
        let NodeData::File { length, chunks, .. } = &node.data else { return Ok(()) };
        must(*length <= wire::limits::FILE_BYTES_MAX, || format!("file {} is too long", node.inode))?;
        sums.files += 1;
        sums.length += length;
        // As MooseFS's tool has it, a hole uses up nothing of the length.
        let mut left = *length;
        for id in words_of::<8>(chunks).filter(|id| *id != 0) {
            let data = left.min(u64::from(CHUNK_BYTES));
            left -= data;
            if !self.seen.insert(id) {
                continue;
            }
            let size = data.next_multiple_of(u64::from(BLOCK_BYTES)) + HEADER_BYTES;
            let is_archived = archived.binary_search(&id).is_ok();
            let (keep, arch) = (size * copies.0, size * copies.1);
            sums.chunks += 1;
            sums.keep_chunks += u64::from(!is_archived);
            sums.arch_chunks += u64::from(is_archived);
            sums.size += size;
            sums.keep_size += keep;
            sums.arch_size += arch;
            sums.real_size += if is_archived { arch } else { keep };
        }
        Ok(())
    }
}
