//! The records of an image as they are written, in the order in which they stand in the file.

use std::ops::Range;

use wire::{Field, NodeKind, SessionId};

use super::{FORMAT_SECONDS, Section};
use crate::acl::Acl;
use crate::chunk_table::Attach;
use crate::class::StorageClass;
use crate::locks::{LockKind, LockOwner};
use crate::node::mark;
use crate::quota::Quota;
use crate::session::Session;
use crate::state::State;
use crate::times::Times;

pub(super) fn put_state(state: &State, format: u32, emit: Emit<'_>) {
    put_before_nodes(state, emit);
    let all = 0..state.inodes_end();
    put_nodes(state, format, all.clone(), emit);
    put_slots(state, format, all.clone(), emit);
    put_edges(state, format, all, emit);
    put_behind_edges(state, emit);
}

/// Takes a record.
pub(super) type Emit<'a> = &'a mut dyn FnMut(Section, &[u8]);

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

pub(super) fn put_before_nodes(state: &State, emit: Emit<'_>) {
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

pub(super) fn put_nodes(state: &State, format: u32, inodes: Range<u32>, emit: Emit<'_>) {
    let mut to = Put::new(emit);
    for inode in state.inodes_in(inodes) {
        to.put(Section::Nodes, |out| put_node(state, inode, format, out));
    }
}

/// Chunks of files that have more than the first.
pub(super) fn put_slots(state: &State, _: u32, inodes: Range<u32>, emit: Emit<'_>) {
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
pub(super) fn put_edges(state: &State, _: u32, inodes: Range<u32>, emit: Emit<'_>) {
    let mut to = Put::new(emit);
    for inode in state.inodes_in(inodes) {
        if state.at(inode).is_directory() {
            for edge in state.children(inode) {
                to.put(Section::Edges, |out| put_edge(state, edge, out));
            }
        }
    }
}

pub(super) fn put_behind_edges(state: &State, emit: Emit<'_>) {
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
    for (slot, unsettled) in state.chunks.unsettled() {
        to.put(Section::Unsettled, |out| {
            state.chunks.at(slot).id.put(out);
            unsettled.floor.put(out);
            out.push(u8::from(unsettled.cut.is_some()));
            unsettled.cut.unwrap_or(0).put(out);
            let attach = unsettled.attach.unwrap_or(Attach { inode: 0, index: 0, previous: 0 });
            attach.inode.put(out);
            attach.index.put(out);
            attach.previous.put(out);
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
