//! A metadata file that MooseFS 3.0.117 loads. Spec 50, 10.1.
//!
//! A section's length stands in front of it, so each is made twice: once to be counted, once to be written.

use wire::Field;
use wire::limits::CHUNK_INDEX_MAX;

use super::{END, SECTIONS, Section};
use crate::class::LabelSets;
use crate::locks::{LockKind, RangeLock};
use crate::namespace::Namespace;
use crate::node::Node;
use crate::state::{ROOT, State};
use crate::times::Times;

const SIGNATURE: &[u8; 8] = b"MFSM 2.0";
/// Counters of operations that a session's record has for each of two hours. Spec 50, 4.1.
const SESSION_COUNTERS: u16 = 16;
/// Bytes given to the sink at a time, about.
const PIECE_BYTES: usize = 1 << 20;
/// Zeros of a hole that are put out at a time.
const HOLE_BYTES: usize = 1 << 16;
/// Masks of a label expression. Spec 50, 4.2.
const LABEL_GROUPS: u8 = 4;

/// Writes the file: calls `sink` with its bytes in order, about a megabyte at a time. `now`: Unix seconds; locks of
/// chunks that ended before are not written. The first error ends it.
pub fn write<E>(namespace: &Namespace, now: u32, sink: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
    let state = &namespace.state;
    let mut out = SIGNATURE.to_vec();
    state.version.put(&mut out);
    state.meta_id.put(&mut out);
    sink(&out)?;
    for (section, letters, layout) in SECTIONS {
        let mut length = 0u64;
        put_section(state, section, now, &mut |record| length += record.len() as u64);
        let mut piece = letters.to_vec();
        piece.extend([b' ', b'0' + (layout >> 4), b'.', b'0' + (layout & 15)]);
        length.put(&mut piece);
        let mut result = Ok(());
        put_section(state, section, now, &mut |record| {
            piece.extend_from_slice(record);
            if piece.len() >= PIECE_BYTES && result.is_ok() {
                result = sink(&piece);
                piece.clear();
            }
        });
        result?;
        sink(&piece)?;
    }
    sink(END)
}

/// The file as one piece of memory: for tests and small states.
pub fn to_bytes(namespace: &Namespace, now: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut sink = |piece: &[u8]| -> Result<(), std::convert::Infallible> {
        bytes.extend_from_slice(piece);
        Ok(())
    };
    let Ok(()) = write(namespace, now, &mut sink);
    bytes
}

/// Calls `emit` with one record after the other.
fn put_section(state: &State, section: Section, now: u32, emit: &mut dyn FnMut(&[u8])) {
    let mut record = Vec::new();
    let mut put = |fill: &mut dyn FnMut(&mut Vec<u8>)| {
        record.clear();
        fill(&mut record);
        emit(&record);
    };
    match section {
        Section::Sessions => put_sessions(state, &mut put),
        Section::Classes => put_classes(state, &mut put),
        Section::Nodes => {
            put(&mut |out| {
                (state.inodes_end() - 1).put(out);
                state.node_count().put(out);
            });
            for inode in state.inodes() {
                put_node(state, inode, &mut put);
            }
            put(&mut |out| out.push(0));
        }
        Section::Edges => put_edges(state, &mut put),
        Section::Free => {
            put(&mut |out| (state.free_queue().len() as u32).put(out));
            for (inode, since) in state.free_queue() {
                put(&mut |out| put_words(&[*inode, *since], out));
            }
        }
        Section::Quotas => put_quotas(state, &mut put),
        Section::Xattrs => {
            for (inode, all) in &state.xattrs {
                for (name, value) in all {
                    put(&mut |out| {
                        inode.put(out);
                        out.push(name.len() as u8);
                        (value.len() as u32).put(out);
                        out.extend_from_slice(name);
                        out.extend_from_slice(value);
                    });
                }
            }
            put(&mut |out| out.extend([0; 9]));
        }
        Section::Acls => put_acls(state, &mut put),
        Section::Open => {
            for (session, inode) in state.all_open_files() {
                if state.sessions.contains_key(&session) {
                    put(&mut |out| put_words(&[session.0, inode], out));
                }
            }
            put(&mut |out| out.extend([0; 8]));
        }
        Section::Locks => {
            for (inode, holder, kind) in state.locks.all_whole() {
                if state.is_open_by(holder.session, inode) {
                    put(&mut |out| {
                        inode.put(out);
                        holder.owner.put(out);
                        holder.session.put(out);
                        out.push(u8::from(kind == LockKind::Exclusive));
                    });
                }
            }
            put(&mut |out| out.extend([0; 17]));
        }
        Section::Ranges => put_ranges(state, &mut put),
        Section::Servers => {
            put(&mut |out| (state.servers.len() as u32).put(out));
            for ((ip, port), entry) in &state.servers {
                put(&mut |out| {
                    ip.put(out);
                    port.put(out);
                    entry.csid.put(out);
                    out.push(entry.maintenance);
                    entry.maintenance_until.put(out);
                });
            }
        }
        Section::Chunks => {
            put(&mut |out| state.chunks.next_id().put(out));
            // Version 0: a file names the chunk, and nobody ever knew it.
            for chunk in state.chunks.iter().filter(|chunk| chunk.version.0 != 0) {
                put(&mut |out| {
                    chunk.id.put(out);
                    // In doubt, the copies are most likely at the version of the last writer.
                    (if chunk.floor.0 == 0 { chunk.version } else { chunk.floor }).put(out);
                    (if chunk.locked_to < now { 0 } else { chunk.locked_to }).put(out);
                    out.push(u8::from(chunk.archived));
                });
            }
            put(&mut |out| out.extend([0; 17]));
        }
    }
}

type Put<'a> = dyn FnMut(&mut dyn FnMut(&mut Vec<u8>)) + 'a;

fn put_words(words: &[u32], out: &mut Vec<u8>) {
    for word in words {
        word.put(out);
    }
}

fn put_sessions(state: &State, put: &mut Put<'_>) {
    const COUNTERS_BYTES: usize = SESSION_COUNTERS as usize * 4 * 2;
    put(&mut |out| {
        state.next_session.put(out);
        SESSION_COUNTERS.put(out);
    });
    for (id, session) in &state.sessions {
        let params = &session.params;
        put(&mut |out| {
            id.put(out);
            params.exports_checksum.put(out);
            (params.info.len() as u32).put(out);
            params.peer_ip.put(out);
            params.root.put(out);
            out.push(params.flags);
            params.umask.put(out);
            out.extend([params.goal_min, params.goal_max]);
            put_words(&[params.trash_time_min_seconds, params.trash_time_max_seconds], out);
            put_words(&[params.root_uid, params.root_gid, params.map_all_uid, params.map_all_gid], out);
            put_words(&[params.disables, session.disconnected], out);
            out.extend([0; COUNTERS_BYTES]);
            out.extend_from_slice(&params.info);
        });
    }
    put(&mut |out| out.extend([0; 61 + COUNTERS_BYTES]));
}

fn put_classes(state: &State, put: &mut Put<'_>) {
    put(&mut |out| out.push(LABEL_GROUPS));
    for (id, class) in state.classes.iter() {
        put(&mut |out| {
            u16::from(id).put(out);
            out.extend([class.name.len() as u8, u8::from(class.admin_only), class.mode]);
            class.arch_delay_days.put(out);
            let lists: [&[LabelSets]; 3] = [&class.create, &class.keep, &class.arch];
            out.extend(lists.map(|list| list.len() as u8));
            out.extend_from_slice(&class.name);
            for mask in lists.into_iter().flatten().flatten() {
                mask.put(out);
            }
        });
    }
    put(&mut |out| out.extend([0; 10]));
}

fn put_node(state: &State, inode: u32, put: &mut Put<'_>) {
    let node = state.at(inode);
    let (uid, gid) = state.owner(node);
    let slots = state.slots(node).min(CHUNK_INDEX_MAX);
    let Times { atime, mtime, ctime } = state.times(node);
    put(&mut |out| {
        out.push(node.kind() as u8);
        inode.put(out);
        out.extend([node.class, node.eattr(), node.winattr()]);
        node.mode().put(out);
        put_words(&[uid, gid, atime.seconds(), mtime.seconds(), ctime.seconds()], out);
        state.trash_hours(node).put(out);
        if node.has_data() {
            node.length().put(out);
            slots.put(out);
        } else if node.is_symlink() {
            let target = state.target(node);
            (target.len() as u32).put(out);
            out.extend_from_slice(target);
        } else if is_device(node) {
            node.rdev().put(out);
        }
    });
    if !node.has_data() {
        return;
    }
    let mut next = 0;
    for (index, chunk) in state.chunks_from(node, 0).take_while(|(index, _)| *index < slots) {
        // A hole may be as large as the largest file: it is not gathered in memory.
        let mut hole = (index - next) as usize * 8;
        while hole != 0 {
            let piece = hole.min(HOLE_BYTES);
            put(&mut |out| out.resize(piece, 0));
            hole -= piece;
        }
        put(&mut |out| state.chunks.at(chunk).id.put(out));
        next = index + 1;
    }
}

fn is_device(node: &Node) -> bool {
    matches!(node.kind(), wire::NodeKind::BlockDevice | wire::NodeKind::CharDevice)
}

/// A directory's entries, then those of its directories in the same order; trash and sustained files behind.
/// Spec 50, 4.6.
fn put_edges(state: &State, put: &mut Put<'_>) {
    put(&mut |out| state.next_edge_id.put(out));
    let mut put_edge = |number: u32| {
        let (edge, name) = (state.edge(number), state.name(number));
        put(&mut |out| {
            put_words(&[edge.parent, edge.child], out);
            edge.id().put(out);
            (name.len() as u16).put(out);
            out.extend_from_slice(name);
        });
    };
    let mut directories = vec![ROOT];
    while let Some(directory) = directories.pop() {
        let first = directories.len();
        for edge in state.children(directory) {
            put_edge(edge);
            let child = state.edge(edge).child;
            if state.at(child).is_directory() {
                directories.push(child);
            }
        }
        directories[first..].reverse();
    }
    state.all_detached().for_each(put_edge);
    put(&mut |out| out.extend([0; 18]));
}

fn put_quotas(state: &State, put: &mut Put<'_>) {
    put(&mut |out| (state.quotas.len() as u32).put(out));
    for (inode, quota) in &state.quotas {
        put(&mut |out| {
            put_words(&[*inode, quota.grace_seconds], out);
            out.extend([u8::from(quota.exceeded), quota.flags]);
            put_words(&[quota.since, quota.soft.inodes, quota.hard.inodes], out);
            let (soft, hard) = (&quota.soft, &quota.hard);
            let pairs = [(soft.length, hard.length), (soft.size, hard.size), (soft.realsize, hard.realsize)];
            for (soft, hard) in pairs {
                soft.put(out);
                hard.put(out);
            }
        });
    }
}

fn put_acls(state: &State, put: &mut Put<'_>) {
    for ((inode, kind), acl) in &state.acls {
        put(&mut |out| {
            inode.put(out);
            out.push(*kind);
            for perm in [acl.user, acl.group, acl.other, acl.mask, acl.users.len() as u16, acl.groups.len() as u16] {
                perm.put(out);
            }
            for (id, perm) in acl.users.iter().chain(&acl.groups) {
                id.put(out);
                perm.put(out);
            }
        });
    }
    put(&mut |out| out.extend([0; 17]));
}

/// MooseFS wants touching ranges of one holder and kind to be one, whatever process took them. Spec 50, 4.13.
fn put_ranges(state: &State, put: &mut Put<'_>) {
    let mut put_range = |inode: u32, range: &RangeLock| {
        put(&mut |out| {
            inode.put(out);
            range.holder.owner.put(out);
            put_words(&[range.holder.session.0, range.pid], out);
            range.start.put(out);
            range.end.put(out);
            out.push(if range.kind == LockKind::Exclusive { 2 } else { 1 });
        });
    };
    let mut last: Option<(u32, RangeLock)> = None;
    let open = |(inode, range): &(u32, &RangeLock)| state.is_open_by(range.holder.session, *inode);
    for (inode, range) in state.locks.all_ranges().filter(open) {
        match &mut last {
            Some((of, before))
                if *of == inode
                    && (before.holder, before.kind, before.end) == (range.holder, range.kind, range.start) =>
            {
                before.end = range.end;
            }
            _ => {
                if let Some((of, before)) = last.replace((inode, *range)) {
                    put_range(of, &before);
                }
            }
        }
    }
    if let Some((of, before)) = last {
        put_range(of, &before);
    }
    put(&mut |out| out.extend([0; 37]));
}
