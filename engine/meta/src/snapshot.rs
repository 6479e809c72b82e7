//! Snapshots: copies of trees that share their chunks, and their removal. Spec 32, 32.5; Spec 51, 6.5.

use std::collections::BTreeMap;

use wire::{Inode, NodeKind, Status, Time};

use crate::access::{EXECUTE, READ, WRITE};
use crate::acl;
use crate::apply::{NewNode, borrowed, name_is_legal, new_node, put_acl, remove_name};
use crate::change::{Change, GidList};
use crate::journal::Outcome;
use crate::namespace::{Caller, Namespace};
use crate::node::{Node, eattr, mark};
use crate::session::{disables, session_flags};
use crate::state::State;
use crate::times::Times;

/// Bits of `smode` in SNAPSHOT. Spec 32, 32.5.
pub mod snapshot_flags {
    /// Existing nodes that are no directories may be replaced.
    pub const CAN_OVERWRITE: u8 = 0x01;
    /// Owner, mode, times, class as `cp` would make them.
    pub const CP_LIKE: u8 = 0x02;
    /// With DELETE: remove what may be removed, skip the rest.
    pub const FORCE_REMOVAL: u8 = 0x04;
    /// Names of one node become names of one copy.
    pub const PRESERVE_HARDLINKS: u8 = 0x08;
    pub const DELETE: u8 = 0x80;
}

const FROZEN: u8 = eattr::UNDELETABLE | eattr::IMMUTABLE | eattr::APPEND_ONLY;

/// Who asked, as the line keeps it.
pub(crate) struct Identity<'a> {
    pub(crate) flags: u8,
    pub(crate) uid: u32,
    pub(crate) gids: &'a [u32],
    pub(crate) umask: u16,
}

impl Identity<'_> {
    fn allows(&self, state: &State, inode: u32, mask: u16) -> bool {
        let ignore_gid = self.flags & session_flags::IGNORE_GID != 0;
        let bits = state.access_bits(inode, self.uid, ignore_gid, &|gid| self.gids.contains(&gid));
        bits & 1 << mask != 0
    }
}

impl Namespace {
    /// Copies a node or tree to a name, sharing chunks; or (DELETE, source 0) removes such a copy.
    pub fn snapshot(
        &mut self,
        caller: &Caller<'_>,
        source: Inode,
        parent: Inode,
        name: &[u8],
        smode: u8,
        umask: u16,
    ) -> Result<(), Status> {
        let who = self.who(caller)?;
        let (source, parent) = if smode & snapshot_flags::DELETE != 0 {
            who.must_not_be_disabled(disables::UNLINK | disables::RMDIR)?;
            who.must_be_writable()?;
            if source.0 != 0 {
                return Err(Status::EINVAL);
            }
            let parent = self.resolve(&who, parent, false)?;
            if !self.state.at(parent).is_directory() {
                return Err(Status::EPERM);
            }
            self.must_allow(&who, parent, WRITE | EXECUTE)?;
            if !name_is_legal(name) {
                return Err(Status::EINVAL);
            }
            let child = self.state.find_child(parent, name).ok_or(Status::ENOENT)?;
            if !self.passes_sticky(&who, parent, child) {
                return Err(Status::EPERM);
            }
            (0, parent)
        } else {
            who.must_not_be_disabled(disables::SNAPSHOT)?;
            who.must_be_writable()?;
            if source.0 == 0 {
                return Err(Status::EINVAL);
            }
            let source = self.resolve(&who, source, false)?;
            let parent = self.resolve(&who, parent, false)?;
            if self.state.at(parent).has_eattr(eattr::IMMUTABLE) {
                return Err(Status::EPERM);
            }
            self.must_allow(&who, source, READ)?;
            if !self.state.at(parent).is_directory() {
                return Err(Status::EPERM);
            }
            if self.state.at(source).is_directory() && self.state.directory_is_below(parent, source) {
                return Err(Status::EINVAL);
            }
            self.must_allow(&who, parent, WRITE | EXECUTE)?;
            if !name_is_legal(name) {
                return Err(Status::EINVAL);
            }
            check_copy(&self.state, source, parent, name, smode)?;
            self.must_fit_quotas(parent, &self.state.figures(source))?;
            (source, parent)
        };
        let change = Change::Snapshot {
            source: Inode(source),
            parent: Inode(parent),
            name: borrowed(name),
            smode,
            flags: who.flags,
            uid: who.uid,
            gids: GidList(who.groups()),
            umask: (umask | who.umask) & 0o777,
        };
        self.commit(who.now, &change).map(drop)
    }
}

pub(crate) fn apply(
    state: &mut State,
    source: Inode,
    parent: Inode,
    name: &[u8],
    smode: u8,
    identity: &Identity<'_>,
    now: Time,
) -> Result<Outcome, Status> {
    if state.node(parent.0).is_none_or(|node| !node.is_directory()) {
        return Err(Status::EPERM);
    }
    if smode & snapshot_flags::DELETE != 0 {
        let edge = state.find(parent.0, name).ok_or(Status::ENOENT)?;
        if smode & snapshot_flags::FORCE_REMOVAL == 0 {
            check_removal(state, edge, identity)?;
        }
        let (removed, inodes) = remove_tree(state, edge, identity, now);
        return Ok(Outcome::of([u64::from(inodes), removed, 0, 0, 0, 0]));
    }
    if state.node(source.0).is_none() {
        return Err(Status::ENOENT);
    }
    if !name_is_legal(name) || state.directory_is_below(parent.0, source.0) {
        return Err(Status::EINVAL);
    }
    check_copy(state, source.0, parent.0, name, smode)?;
    let mut copy = Copy { identity, now, smode, counts: Counts::default(), copies: BTreeMap::new() };
    copy.copy_tree(state, source.0, parent.0, name);
    let Counts { inodes, same, existing, hard_links, new } = copy.counts;
    Ok(Outcome::of([u64::from(inodes), 0, same, existing, hard_links, new]))
}

/// May a copy of `source` take this place, and those of all below theirs? Spec 32, 32.5 "tree test".
fn check_copy(state: &State, source: u32, parent: u32, name: &[u8], smode: u8) -> Result<(), Status> {
    if matches!(state.at(source).kind(), NodeKind::Trash | NodeKind::Sustained) {
        return Err(Status::ENOENT);
    }
    if !state.has_free_inodes(u64::from(state.figures(source).inodes)) {
        return Err(Status::NOSPACE);
    }
    let mut places = vec![(source, state.find_child(parent, name))];
    while let Some((source, place)) = places.pop() {
        let Some(there) = place else { continue };
        if there == source {
            return Err(Status::EINVAL);
        }
        let (source_node, node) = (state.at(source), state.at(there));
        if node.has_eattr(FROZEN) || node.kind() != source_node.kind() {
            return Err(Status::EPERM);
        }
        if node.is_directory() {
            for edge in state.children(source) {
                places.push((state.edge(edge).child, state.find_child(there, state.name(edge))));
            }
        } else if smode & snapshot_flags::CAN_OVERWRITE == 0 {
            return Err(Status::EEXIST);
        }
    }
    Ok(())
}

/// Results of a copy, as the line keeps them.
#[derive(Default)]
struct Counts {
    /// XOR of all inodes that came or went.
    inodes: u32,
    same: u64,
    existing: u64,
    hard_links: u64,
    new: u64,
}

struct Copy<'a> {
    identity: &'a Identity<'a>,
    now: Time,
    smode: u8,
    counts: Counts,
    /// Copies of nodes with several names, by their source.
    copies: BTreeMap<u32, u32>,
}

enum CopyStep {
    Make {
        source: u32,
        parent: u32,
        name: Vec<u8>,
    },
    /// Everything below is in place.
    Finish {
        made: u32,
        like: Like,
    },
}

/// What a copy gets at last. Held by value: the source may be gone by then.
struct Like {
    mode: u16,
    uid: u32,
    gid: u32,
    times: Times,
}

impl Copy<'_> {
    fn has(&self, flag: u8) -> bool {
        self.smode & flag != 0
    }

    /// Copies a tree: node first, then what is below it, newest first, so inode numbers come in a known order. No
    /// recursion: trees may be deeper than the stack.
    fn copy_tree(&mut self, state: &mut State, source: u32, parent: u32, name: &[u8]) {
        let mut steps = vec![CopyStep::Make { source, parent, name: name.to_vec() }];
        while let Some(step) = steps.pop() {
            match step {
                CopyStep::Make { source, parent, name } => self.copy(state, source, parent, &name, &mut steps),
                CopyStep::Finish { made, like } => self.finish(state, made, &like),
            }
        }
    }

    fn copy(&mut self, state: &mut State, source: u32, parent: u32, name: &[u8], steps: &mut Vec<CopyStep>) {
        // A copy into a tree that holds the source may have overwritten what was to be copied.
        let Some(node) = state.node(source).copied() else { return };
        let gone = matches!(node.kind(), NodeKind::Trash | NodeKind::Sustained);
        if gone || node.kind() == NodeKind::File && !self.identity.allows(state, source, READ) {
            return;
        }
        let like = self.like(state, &node);
        let made = match state.find(parent, name) {
            None => match self.link_to_earlier_copy(state, source, &node, parent, name) {
                true => return,
                false => self.make(state, source, &node, &like, parent, name),
            },
            Some(edge) if state.at(state.edge(edge).child).kind() != node.kind() => return,
            Some(edge) => self.update(state, source, &node, &like, edge),
        };
        steps.push(CopyStep::Finish { made, like });
        if node.is_directory() && self.identity.allows(state, source, READ | EXECUTE) {
            let first = steps.len();
            steps.extend(state.children(source).map(|edge| CopyStep::Make {
                source: state.edge(edge).child,
                parent: made,
                name: state.name(edge).to_vec(),
            }));
            steps[first..].reverse();
        }
    }

    fn link_to_earlier_copy(&mut self, state: &mut State, source: u32, node: &Node, parent: u32, name: &[u8]) -> bool {
        let shared = self.has(snapshot_flags::PRESERVE_HARDLINKS) && !node.is_directory() && node.links > 1;
        let Some(copy) = self.copies.get(&source).copied().filter(|_| shared) else { return false };
        state.link(parent, copy, name);
        state.set_modified(parent, self.now);
        self.counts.hard_links += 1;
        true
    }

    fn make(&mut self, state: &mut State, source: u32, node: &Node, like: &Like, parent: u32, name: &[u8]) -> u32 {
        let new = NewNode { kind: node.kind(), mode: like.mode, umask: 0, uid: like.uid, gid: like.gid };
        let made = new_node(state, parent, name, &new, self.now);
        self.counts.inodes ^= made;
        self.counts.new += 1;
        self.copies.insert(source, made);
        if !self.has(snapshot_flags::CP_LIKE) {
            if state.at(made).class != node.class {
                state.set_class(made, node.class);
            }
            state.set_trash_hours(made, state.trash_hours(node));
            let copy = state.at_mut(made);
            copy.set_eattr(node.eattr());
            copy.set_winattr(node.winattr());
            copy_names(state, source, made);
        }
        match node.kind() {
            NodeKind::File => share_data(state, source, made),
            NodeKind::Symlink => {
                let target = state.target(node).to_vec();
                state.set_target(made, &target);
            }
            NodeKind::BlockDevice | NodeKind::CharDevice => state.at_mut(made).set_rdev(node.rdev()),
            _ => {}
        }
        made
    }

    /// What stands at the place already becomes like the source.
    fn update(&mut self, state: &mut State, source: u32, node: &Node, like: &Like, edge: u32) -> u32 {
        let there = state.edge(edge).child;
        let old = *state.at(there);
        match node.kind() {
            NodeKind::File if same_data(state, node, &old) => {
                self.counts.same += 1;
                return there;
            }
            NodeKind::File => {
                let (parent, name) = (state.edge(edge).parent, state.name(edge).to_vec());
                self.counts.inodes ^= there;
                let trash_hours = state.trash_hours(node);
                remove_name(state, edge, self.now);
                let new = NewNode { kind: NodeKind::File, mode: like.mode, umask: 0, uid: like.uid, gid: like.gid };
                let made = new_node(state, parent, &name, &new, self.now);
                self.counts.inodes ^= made;
                self.counts.existing += 1;
                state.set_class(made, node.class);
                state.set_trash_hours(made, trash_hours);
                share_data(state, source, made);
                return made;
            }
            NodeKind::Symlink => {
                let target = state.target(node).to_vec();
                state.replace_target(there, &target);
            }
            NodeKind::BlockDevice | NodeKind::CharDevice => state.at_mut(there).set_rdev(node.rdev()),
            _ => {}
        }
        self.counts.existing += 1;
        there
    }

    /// Mode, owner and times, after everything below is in place.
    fn finish(&self, state: &mut State, made: u32, like: &Like) {
        let cp_like = self.has(snapshot_flags::CP_LIKE);
        state.set_owner(made, like.uid, like.gid);
        state.set_times(made, &like.times);
        let copy = state.at_mut(made);
        if !(copy.marked(mark::ACCESS_ACL) && cp_like) {
            copy.set_mode(like.mode);
        }
        copy.set_eattr(copy.eattr() | eattr::SNAPSHOT);
    }

    fn like(&self, state: &State, node: &Node) -> Like {
        let (uid, gid) = state.owner(node);
        let own_gid = self.identity.gids.first().copied().unwrap_or(0);
        let (mode, uid, gid) = if self.has(snapshot_flags::CP_LIKE) {
            (node.mode() & !self.identity.umask, self.identity.uid, own_gid)
        } else if self.identity.uid == 0 || self.identity.uid == uid {
            (node.mode(), uid, gid)
        } else {
            (node.mode() & 0o1777, self.identity.uid, own_gid)
        };
        let times = if self.has(snapshot_flags::CP_LIKE) { Times::all(self.now) } else { state.times(node) };
        Like { mode, uid, gid, times }
    }
}

/// Extended attributes and ACLs. What a copy has from the default ACL of its new directory stays where the source has
/// none, as under MooseFS. Spec 51, 6.5.
fn copy_names(state: &mut State, source: u32, made: u32) {
    if let Some(all) = state.xattrs.get(&source).cloned() {
        state.xattrs.insert(made, all);
        state.at_mut(made).set_mark(mark::XATTR, true);
    }
    for kind in [acl::ACCESS, acl::DEFAULT] {
        if let Some(acl) = state.acls.get(&(source, kind)).cloned() {
            put_acl(state, made, kind, Some(acl));
        }
    }
}

/// Gives an empty file the source's length and chunks.
fn share_data(state: &mut State, source: u32, made: u32) {
    let node = *state.at(source);
    let chunks: Vec<(u32, u32)> = state.chunks_from(&node, 0).collect();
    state.set_length(made, node.length());
    for (index, chunk) in chunks {
        state.put_chunk(made, index, chunk);
    }
}

fn same_data(state: &State, left: &Node, right: &Node) -> bool {
    left.length() == right.length() && state.chunks_from(left, 0).eq(state.chunks_from(right, 0))
}

/// May a whole snapshot be removed? Spec 32, 32.5 "DELETE".
fn check_removal(state: &State, edge: u32, identity: &Identity<'_>) -> Result<(), Status> {
    if state.at(state.edge(edge).parent).has_eattr(eattr::APPEND_ONLY | eattr::IMMUTABLE) {
        return Err(Status::EPERM);
    }
    // (inode, what is below was visited): a directory is tested for its entries first, for its own removal last.
    let mut next = vec![(state.edge(edge).child, false)];
    while let Some((inode, visited)) = next.pop() {
        let node = state.at(inode);
        if visited || !node.is_directory() {
            if !node.has_eattr(eattr::SNAPSHOT) || node.has_eattr(FROZEN) {
                return Err(Status::EPERM);
            }
            continue;
        }
        if !identity.allows(state, inode, WRITE | EXECUTE) {
            return Err(Status::EACCES);
        }
        if node.has_eattr(eattr::APPEND_ONLY | eattr::IMMUTABLE) {
            return Err(Status::EPERM);
        }
        next.push((inode, true));
        let first = next.len();
        next.extend(state.children(inode).map(|edge| (state.edge(edge).child, false)));
        next[first..].reverse();
    }
    Ok(())
}

/// Removes a tree, children first; only what carries the snapshot flag goes, and without trash. Says how many nodes
/// went and the XOR of their inodes.
fn remove_tree(state: &mut State, edge: u32, identity: &Identity<'_>, now: Time) -> (u64, u32) {
    let (mut removed, mut inodes) = (0, 0);
    // (edge, its children were visited)
    let mut steps = vec![(edge, false)];
    while let Some((edge, visited)) = steps.pop() {
        let (parent, inode) = (state.edge(edge).parent, state.edge(edge).child);
        let node = *state.at(inode);
        if !visited && node.is_directory() {
            steps.push((edge, true));
            if identity.allows(state, inode, WRITE | EXECUTE) {
                let first = steps.len();
                steps.extend(state.children(inode).map(|edge| (edge, false)));
                steps[first..].reverse();
            }
            continue;
        }
        let held = state.at(parent).has_eattr(eattr::APPEND_ONLY | eattr::IMMUTABLE);
        let full = node.is_directory() && state.directory(inode).children != 0;
        if held || full || !node.has_eattr(eattr::SNAPSHOT) || node.has_eattr(FROZEN) {
            continue;
        }
        state.set_trash_hours(inode, 0);
        remove_name(state, edge, now);
        removed += 1;
        inodes ^= inode;
    }
    (removed, inodes)
}
