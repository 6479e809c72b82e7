//! What each change does to the state. Spec 51, 6.
//!
//! The same function serves the live master and replay, so they cannot differ. It is a pure function of state, change
//! and time; whether a caller may ask for the change was decided before (Spec 51, 9). An error means that nothing
//! was changed: live it is the answer to the caller, at replay it says that the journal does not fit.

use std::borrow::Cow;

use wire::limits::{CHUNK_BYTES, CHUNK_INDEX_MAX, FILE_BYTES_MAX, GOAL_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX};
use wire::{ChunkId, Inode, NodeKind, SessionId, Status, Time};

use crate::acl::{self, Acl};
use crate::change::{Bytes, Change, LockLetter, raise};
use crate::chunk_table::Attach;
use crate::class::{LabelSets, StorageClass};
use crate::journal::Outcome;
use crate::locks::{LockKind, LockOwner, RangeLock};
use crate::node::{Node, eattr, mark};
use crate::owners::Ownership;
use crate::quota::{Limits, Quota};
use crate::session::{Session, SessionParams};
use crate::snapshot;
use crate::state::{DEFAULT_TRASH_HOURS, ROOT, SUSTAINED_BUCKETS, State, TRASH_BUCKETS};
use crate::times::Times;

/// Seconds that a write grant locks a chunk. Spec 31, 31.9.
pub(crate) const WRITE_LOCK_SECONDS: u32 = 120;
/// A reported chunk whose id is further ahead is refused. Spec 41, 4.5.
const CHUNK_ID_LEAP_MAX: u64 = 1_000_000_000;
/// Bit of `smode` in SETSCLASS: the session had the admin flag.
pub(crate) const SMODE_ADMIN: u8 = 8;
pub(crate) const SMODE_RECURSIVE: u8 = 4;

type Applied = Result<Outcome, Status>;
const DONE: Applied = Ok(Outcome::NONE);

/// Applies one change that was made at `now`.
pub(crate) fn apply(state: &mut State, change: &Change<'_>, now: Time) -> Applied {
    match change {
        Change::SetMetaId { meta_id } => set_meta_id(state, *meta_id),
        Change::Idle {} => DONE,

        Change::Create { parent, name, kind, mode, umask, uid, gid, rdev } => {
            let kind = NodeKind::from_number(*kind).ok_or(Status::EINVAL)?;
            let new = NewNode { kind, mode: *mode, umask: *umask, uid: *uid, gid: *gid };
            create(state, *parent, name, &new, *rdev, now)
        }
        Change::Symlink { parent, name, target, uid, gid } => symlink(state, *parent, name, target, (*uid, *gid), now),
        Change::Link { inode, parent, name } => link(state, *inode, *parent, name, now),
        Change::Unlink { parent, name } => unlink(state, *parent, name, now),
        Change::Move { source_parent, source_name, target_parent, target_name } => {
            rename(state, (*source_parent, source_name), (*target_parent, target_name), now)
        }
        Change::Access { inode } => {
            existing(state, *inode)?;
            state.set_atime(inode.0, now);
            DONE
        }
        Change::Times { inode, atime, mtime, ctime } => {
            existing(state, *inode)?;
            state.set_times(inode.0, &Times { atime: *atime, mtime: *mtime, ctime: *ctime });
            DONE
        }
        Change::Attributes { inode, mode, uid, gid, atime, mtime, winattr, acl_mode } => {
            existing(state, *inode)?;
            state.set_owner(inode.0, *uid, *gid);
            state.set_times(inode.0, &Times { atime: *atime, mtime: *mtime, ctime: now });
            let node = state.at_mut(inode.0);
            node.set_mode(*mode);
            node.set_winattr(*winattr);
            if let Some(acl) = state.acls.get_mut(&(inode.0, acl::ACCESS)) {
                (acl.user, acl.mask, acl.other) = (acl_mode >> 6 & 7, acl_mode >> 3 & 7, acl_mode & 7);
            }
            DONE
        }
        Change::SetClass { inode, uid, source, target, smode } => {
            set_class(state, *inode, *uid, (*source, *target), *smode, now)
        }
        Change::SetTrashTime { inode, uid, seconds, smode } => {
            set_trash_time(state, *inode, *uid, *seconds, *smode, now)
        }
        Change::SetEattr { inode, uid, eattr, smode } => set_eattr(state, *inode, *uid, *eattr, *smode, now),
        Change::SetXattr { inode, name, value, mode } => set_xattr(state, *inode, name, value, *mode, now),
        Change::SetAcl { inode, mode, change_ctime, kind, user, group, other, mask, users, groups, entries } => {
            let counts = (usize::from(*users), usize::from(*groups));
            let (users, groups) = acl_entries(entries, counts).ok_or(Status::EINVAL)?;
            let acl = Acl { user: *user, group: *group, other: *other, mask: *mask, users, groups };
            set_acl(state, *inode, *kind, acl, *mode, *change_ctime != 0, now)
        }
        Change::SetQuota {
            inode,
            exceeded,
            flags,
            since,
            soft_inodes,
            hard_inodes,
            soft_length,
            hard_length,
            soft_size,
            hard_size,
            soft_realsize,
            hard_realsize,
            grace_seconds,
        } => {
            let soft =
                Limits { inodes: *soft_inodes, length: *soft_length, size: *soft_size, realsize: *soft_realsize };
            let hard =
                Limits { inodes: *hard_inodes, length: *hard_length, size: *hard_size, realsize: *hard_realsize };
            let (exceeded, since, grace_seconds) = (*exceeded != 0, *since, *grace_seconds);
            set_quota(state, *inode, Quota { flags: *flags, exceeded, since, grace_seconds, soft, hard })
        }
        Change::Snapshot { source, parent, name, smode, flags, uid, gids, umask } => {
            let identity = snapshot::Identity { flags: *flags, uid: *uid, gids: &gids.0, umask: *umask };
            snapshot::apply(state, *source, *parent, name, *smode, &identity, now)
        }

        Change::SetPath { inode, path } => set_path(state, *inode, path),
        Change::Undelete { inode } => undelete(state, *inode, now),
        Change::Purge { inode } => purge(state, *inode, now),
        Change::EmptyTrash { bucket } => empty_trash(state, *bucket, now),
        Change::EmptySustained { bucket } => empty_sustained(state, *bucket, now),
        Change::FreeInodes { delay_seconds } => free_inodes(state, *delay_seconds, now.seconds()),

        Change::Write { inode, index, raise_version, touch_times } => {
            write(state, *inode, *index, *raise_version, *touch_times != 0, now)
        }
        Change::Cut { inode, index, length } => cut(state, *inode, *index, *length, now),
        Change::Length { inode, length, touch_times } => set_length(state, *inode, *length, *touch_times != 0, now),
        Change::Truncate { inode, index } => {
            let chunk = grant(state, *inode, *index, raise::AT_ONCE, None, now)?;
            Ok(chunk_outcome(state, chunk))
        }
        Change::Unlock { chunk } => {
            let slot = chunk_slot(state, *chunk)?;
            state.chunks.set_locked_to(slot, 0);
            DONE
        }
        Change::Rollback { inode, index, previous, chunk } => rollback(state, *inode, *index, *previous, *chunk),
        Change::Repair { inode, index, version } => repair(state, *inode, *index, version.0, now),
        Change::Append { inode, source, first, last } => append(state, *inode, *source, (*first, *last), now),
        Change::SetFileChunk { inode, index, chunk } => set_file_chunk(state, *inode, *index, *chunk),
        Change::Archive { inode, uid, command } => archive(state, *inode, *uid, *command, now),
        Change::ChunkAdd { chunk, version, locked_to } => {
            chunk_add(state, *chunk, version.0, *locked_to, now.seconds())
        }
        Change::ChunkDelete { chunk, version } => chunk_delete(state, *chunk, version.0, now.seconds()),
        Change::SetVersion { chunk, version } => settle(state, *chunk, version.0),
        Change::Raise { chunk, version } => {
            let slot = chunk_slot(state, *chunk)?;
            if *version <= state.chunks.at(slot).version {
                return Err(Status::WRONGVERSION);
            }
            state.chunks.raise(slot, version.0, None);
            DONE
        }
        Change::NextChunkId { next } => {
            if next.0 < state.chunks.next_id() {
                return Err(Status::EINVAL);
            }
            state.chunks.set_next_id(next.0);
            DONE
        }

        Change::SessionAdd {
            checksum,
            root,
            flags,
            umask,
            root_uid,
            root_gid,
            map_all_uid,
            map_all_gid,
            goal_min,
            goal_max,
            trash_min,
            trash_max,
            disables,
            peer,
            info,
        } => {
            let params = SessionParams {
                exports_checksum: checksum.0,
                root: *root,
                flags: *flags,
                umask: umask.0,
                root_uid: *root_uid,
                root_gid: *root_gid,
                map_all_uid: *map_all_uid,
                map_all_gid: *map_all_gid,
                goal_min: *goal_min,
                goal_max: *goal_max,
                trash_time_min_seconds: *trash_min,
                trash_time_max_seconds: *trash_max,
                disables: disables.0,
                peer_ip: *peer,
                info: info.to_vec(),
            };
            let id = state.next_session;
            state.next_session += 1;
            state.sessions.insert(SessionId(id), Session { params, disconnected: 0 });
            Ok(Outcome::of([u64::from(id)]))
        }
        Change::SessionChange {
            session,
            checksum,
            root,
            flags,
            umask,
            root_uid,
            root_gid,
            map_all_uid,
            map_all_gid,
            goal_min,
            goal_max,
            trash_min,
            trash_max,
            disables,
            peer,
            info,
        } => {
            let session = state.sessions.get_mut(session).ok_or(Status::BADSESSIONID)?;
            session.params = SessionParams {
                exports_checksum: checksum.0,
                root: *root,
                flags: *flags,
                umask: umask.0,
                root_uid: *root_uid,
                root_gid: *root_gid,
                map_all_uid: *map_all_uid,
                map_all_gid: *map_all_gid,
                goal_min: *goal_min,
                goal_max: *goal_max,
                trash_time_min_seconds: *trash_min,
                trash_time_max_seconds: *trash_max,
                disables: disables.0,
                peer_ip: *peer,
                info: info.to_vec(),
            };
            session.disconnected = 0;
            DONE
        }
        Change::SessionDelete { session } => session_delete(state, *session),
        Change::SessionDisconnect { session } => {
            state.sessions.get_mut(session).ok_or(Status::BADSESSIONID)?.disconnected = now.seconds();
            DONE
        }
        Change::SessionConnect { session } => {
            state.sessions.get_mut(session).ok_or(Status::BADSESSIONID)?.disconnected = 0;
            DONE
        }
        Change::Acquire { session, inode } => {
            if !state.sessions.contains_key(session) {
                return Err(Status::BADSESSIONID);
            }
            if state.acquire(*session, inode.0) { DONE } else { Err(Status::EINVAL) }
        }
        Change::Release { session, inode } => {
            if state.release(*session, inode.0) {
                DONE
            } else {
                Err(Status::NOTOPENED)
            }
        }
        Change::Flock { inode, session, owner, lock } => {
            flock(state, *inode, LockOwner { session: *session, owner: *owner }, *lock)
        }
        Change::PosixLock { inode, session, owner, lock, start, end, pid } => {
            let holder = LockOwner { session: *session, owner: *owner };
            posix_lock(state, *inode, holder, *lock, (*start, *end), *pid)
        }

        Change::Server { operation, ip, port, argument } => server(state, *operation, (*ip, *port), *argument),
        Change::ClassSet { name, new, create, keep, arch, mode, arch_delay_days, admin_only, masks } => {
            let (create, keep, arch) = label_sets(&masks.0, create.0, keep.0, arch.0).ok_or(Status::EINVAL)?;
            let class = StorageClass {
                name: name.to_vec(),
                admin_only: *admin_only != 0,
                mode: *mode,
                arch_delay_days: *arch_delay_days,
                create,
                keep,
                arch,
            };
            class_set(state, class, *new != 0)
        }
        Change::ClassDuplicate { source, target } => class_duplicate(state, source, target),
        Change::ClassRename { source, target } => class_rename(state, source, target),
        Change::ClassDelete { name } => class_delete(state, name),
    }
}

fn set_meta_id(state: &mut State, meta_id: u64) -> Applied {
    if state.meta_id != 0 && state.meta_id != meta_id {
        return Err(Status::MISMATCH);
    }
    state.meta_id = meta_id;
    DONE
}

// --- what others ask for

fn existing(state: &State, inode: Inode) -> Result<&Node, Status> {
    state.node(inode.0).ok_or(Status::ENOENT)
}

fn directory(state: &State, inode: Inode) -> Result<&Node, Status> {
    let node = existing(state, inode)?;
    if node.is_directory() { Ok(node) } else { Err(Status::ENOTDIR) }
}

fn data_node(state: &State, inode: Inode) -> Result<&Node, Status> {
    let node = existing(state, inode)?;
    if node.has_data() { Ok(node) } else { Err(Status::EPERM) }
}

fn trash_node(state: &State, inode: Inode) -> Result<&Node, Status> {
    state.node(inode.0).filter(|node| node.kind() == NodeKind::Trash).ok_or(Status::ENOENT)
}

fn chunk_slot(state: &State, chunk: ChunkId) -> Result<u32, Status> {
    state.chunks.find(chunk.0).ok_or(Status::NOCHUNK)
}

/// Is this a name that a directory may hold? Spec 31, 31.1.
pub(crate) fn name_is_legal(name: &[u8]) -> bool {
    let length_fits = (1..=NAME_BYTES_MAX).contains(&name.len());
    length_fits && name != b"." && name != b".." && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

fn free_name(state: &State, parent: Inode, name: &[u8]) -> Result<(), Status> {
    directory(state, parent)?;
    if !name_is_legal(name) {
        return Err(Status::EINVAL);
    }
    if state.find(parent.0, name).is_some() { Err(Status::EEXIST) } else { Ok(()) }
}

/// Gives a node a name in a directory, which is no plain copy of a snapshot any more.
fn enter(state: &mut State, parent: u32, child: u32, name: &[u8], now: Time) {
    state.link(parent, child, name);
    state.set_modified(parent, now);
    let parent = state.at_mut(parent);
    parent.set_eattr(parent.eattr() & !eattr::SNAPSHOT);
    state.set_ctime(child, now);
}

// --- names and nodes

pub(crate) struct NewNode {
    pub(crate) kind: NodeKind,
    pub(crate) mode: u16,
    pub(crate) umask: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Makes a node in a directory where the name is free and says its number. Spec 31, 31.6 "Creating".
pub(crate) fn new_node(state: &mut State, parent: u32, name: &[u8], new: &NewNode, now: Time) -> u32 {
    let above = *state.at(parent);
    let mut node = Node::new(new.kind, new.mode & !new.umask);
    let is_directory = new.kind == NodeKind::Directory;
    let mut trash_hours = DEFAULT_TRASH_HOURS;
    if is_directory || new.kind == NodeKind::File {
        (node.class, trash_hours) = (above.class, state.trash_hours(&above));
    }
    let mut not_inherited = eattr::SNAPSHOT | eattr::UNDELETABLE | eattr::APPEND_ONLY | eattr::IMMUTABLE;
    if !is_directory {
        not_inherited |= eattr::NO_ENTRY_CACHE;
    }
    node.set_eattr(above.eattr() & !not_inherited);
    let default_acl = state.acls.get(&(parent, acl::DEFAULT)).cloned();
    let mut access_acl = None;
    if let Some(acl) = &default_acl {
        let (mode, access) = acl.inherit(new.mode);
        node.set_mode(mode);
        access_acl = access;
    }
    let inode = state.take_inode().expect("asked before whether there is one");
    state.insert_node(inode, node, Ownership { uid: new.uid, gid: new.gid, trash_hours }, &Times::all(now));
    if let Some(acl) = access_acl {
        put_acl(state, inode, acl::ACCESS, Some(acl));
    }
    if let Some(acl) = default_acl.filter(|_| is_directory) {
        put_acl(state, inode, acl::DEFAULT, Some(acl));
    }
    enter(state, parent, inode, name, now);
    inode
}

fn create(state: &mut State, parent: Inode, name: &[u8], new: &NewNode, rdev: u32, now: Time) -> Applied {
    if matches!(new.kind, NodeKind::Symlink | NodeKind::Trash | NodeKind::Sustained) {
        return Err(Status::EINVAL);
    }
    free_name(state, parent, name)?;
    if !state.has_free_inode() {
        return Err(Status::NOSPACE);
    }
    let inode = new_node(state, parent.0, name, new, now);
    if matches!(new.kind, NodeKind::BlockDevice | NodeKind::CharDevice) {
        state.at_mut(inode).set_rdev(rdev);
    }
    Ok(Outcome::of([u64::from(inode)]))
}

fn symlink(state: &mut State, parent: Inode, name: &[u8], target: &[u8], (uid, gid): (u32, u32), now: Time) -> Applied {
    free_name(state, parent, name)?;
    if !(1..=wire::limits::SYMLINK_BYTES_MAX).contains(&target.len()) || target.contains(&0) {
        return Err(Status::EINVAL);
    }
    if !state.has_free_inode() {
        return Err(Status::NOSPACE);
    }
    let new = NewNode { kind: NodeKind::Symlink, mode: 0o777, umask: 0, uid, gid };
    let inode = new_node(state, parent.0, name, &new, now);
    state.set_target(inode, target);
    Ok(Outcome::of([u64::from(inode)]))
}

fn link(state: &mut State, inode: Inode, parent: Inode, name: &[u8], now: Time) -> Applied {
    let node = existing(state, inode)?;
    match node.kind() {
        NodeKind::Trash | NodeKind::Sustained => return Err(Status::ENOENT),
        NodeKind::Directory => return Err(Status::EPERM),
        _ if node.links == u16::MAX => return Err(Status::NOSPACE),
        _ => {}
    }
    free_name(state, parent, name)?;
    enter(state, parent.0, inode.0, name, now);
    DONE
}

fn unlink(state: &mut State, parent: Inode, name: &[u8], now: Time) -> Applied {
    directory(state, parent)?;
    let edge = state.find(parent.0, name).ok_or(Status::ENOENT)?;
    let child = state.edge(edge).child;
    if state.at(child).is_directory() && state.directory(child).children != 0 {
        return Err(Status::ENOTEMPTY);
    }
    remove_name(state, edge, now);
    Ok(Outcome::of([u64::from(child)]))
}

/// Takes a name from a node, and the node away if it was the last one. Spec 32, 32.9 "Unlink of the last link".
pub(crate) fn remove_name(state: &mut State, edge: u32, now: Time) {
    let (parent, child) = (state.edge(edge).parent, state.edge(edge).child);
    let node = *state.at(child);
    let is_last = node.is_directory() || node.links == 1;
    let path = (is_last && node.kind() == NodeKind::File).then(|| state.path(edge));
    let trash_hours = state.trash_hours(&node);
    state.unlink(edge);
    state.set_modified(parent, now);
    state.set_ctime(child, now);
    if !is_last {
        return;
    }
    match path {
        Some(path) if trash_hours != 0 => state.detach(child, NodeKind::Trash, &path),
        Some(path) if state.is_open(child) => state.detach(child, NodeKind::Sustained, &path),
        _ => state.remove_node(child, now.seconds()),
    }
}

fn rename(state: &mut State, source: (Inode, &[u8]), target: (Inode, &[u8]), now: Time) -> Applied {
    directory(state, source.0)?;
    directory(state, target.0)?;
    if !name_is_legal(target.1) || source == target {
        return Err(Status::EINVAL);
    }
    let edge = state.find(source.0.0, source.1).ok_or(Status::ENOENT)?;
    let child = state.edge(edge).child;
    if state.at(child).is_directory() && state.directory_is_below(target.0.0, child) {
        return Err(Status::EINVAL);
    }
    if let Some(taken) = state.find(target.0.0, target.1) {
        let there = state.edge(taken).child;
        if state.at(there).is_directory() && state.directory(there).children != 0 {
            return Err(Status::ENOTEMPTY);
        }
        remove_name(state, taken, now);
    }
    state.unlink(edge);
    state.set_modified(source.0.0, now);
    enter(state, target.0.0, child, target.1, now);
    Ok(Outcome::of([u64::from(child)]))
}

// --- attributes of trees

/// How a node answered to a change that a user asked for. Spec 32.
enum Answer {
    Changed,
    Unchanged,
    Denied,
}

/// Goes over a node, or over a tree, and counts the answers; changed nodes get a new ctime. The visitor says None of
/// what does not count.
fn over_tree(
    state: &mut State,
    inode: u32,
    recursive: bool,
    now: Time,
    mut visit: impl FnMut(&mut State, u32) -> Option<Answer>,
) -> Outcome {
    let mut counts = [0u64; 3];
    for inode in tree(state, inode, recursive) {
        match visit(state, inode) {
            Some(Answer::Changed) => {
                state.set_ctime(inode, now);
                counts[0] += 1;
            }
            Some(Answer::Unchanged) => counts[1] += 1,
            Some(Answer::Denied) => counts[2] += 1,
            None => {}
        }
    }
    Outcome::of(counts)
}

/// A node, and all below it if asked for: parents before children, children newest first.
pub(crate) fn tree(state: &State, inode: u32, recursive: bool) -> Vec<u32> {
    let mut all = Vec::new();
    let mut next = vec![inode];
    while let Some(inode) = next.pop() {
        all.push(inode);
        if recursive && state.at(inode).is_directory() {
            let first = next.len();
            next.extend(state.children(inode).map(|edge| state.edge(edge).child));
            next[first..].reverse();
        }
    }
    all
}

fn is_owner(state: &State, inode: u32, uid: u32) -> bool {
    let node = state.at(inode);
    uid == 0 || node.has_eattr(eattr::NO_OWNER) || state.owner(node).0 == uid
}

fn has_class(kind: NodeKind) -> bool {
    matches!(kind, NodeKind::File | NodeKind::Directory | NodeKind::Trash | NodeKind::Sustained)
}

fn set_class(state: &mut State, inode: Inode, uid: u32, (source, target): (u8, u8), smode: u8, now: Time) -> Applied {
    if !has_class(existing(state, inode)?.kind()) {
        return Err(Status::EPERM);
    }
    if state.classes.get(target).is_none() || smode & 3 != 0 && smode & 3 != 3 && target > GOAL_MAX {
        return Err(Status::EINVAL);
    }
    let is_admin = smode & SMODE_ADMIN != 0;
    Ok(over_tree(state, inode.0, smode & SMODE_RECURSIVE != 0, now, |state, inode| {
        let node = *state.at(inode);
        if !has_class(node.kind()) {
            return None;
        }
        let admin_only = |class: u8| state.classes.get(class).is_some_and(|class| class.admin_only);
        let admin_needed = admin_only(node.class) || admin_only(target);
        if !is_owner(state, inode, uid) || node.has_eattr(eattr::IMMUTABLE) || admin_needed && !is_admin {
            return Some(Answer::Denied);
        }
        let wanted = match smode & 3 {
            0 => node.class != target,
            1 => node.class < target,
            2 => node.class > target && node.class <= GOAL_MAX,
            _ => node.class == source && node.class != target,
        };
        if !wanted {
            return Some(Answer::Unchanged);
        }
        state.set_class(inode, target);
        Some(Answer::Changed)
    }))
}

/// Hours that a trash time in seconds is kept as. Spec 32, 32.2.
pub(crate) fn trash_hours(seconds: u32) -> u16 {
    (seconds.wrapping_add(3599) / 3600) as u16
}

fn set_trash_time(state: &mut State, inode: Inode, uid: u32, seconds: u32, smode: u8, now: Time) -> Applied {
    if !has_class(existing(state, inode)?.kind()) {
        return Err(Status::EPERM);
    }
    let hours = trash_hours(seconds);
    Ok(over_tree(state, inode.0, smode & SMODE_RECURSIVE != 0, now, |state, inode| {
        let node = *state.at(inode);
        if !has_class(node.kind()) {
            return None;
        }
        if !is_owner(state, inode, uid) || node.has_eattr(eattr::IMMUTABLE) {
            return Some(Answer::Denied);
        }
        let old = state.trash_hours(&node);
        let wanted = match smode & 3 {
            0 => old != hours,
            1 => old < hours,
            2 => old > hours,
            _ => false,
        };
        if !wanted {
            return Some(Answer::Unchanged);
        }
        state.set_trash_hours(inode, hours);
        Some(Answer::Changed)
    }))
}

fn set_eattr(state: &mut State, inode: Inode, uid: u32, bits: u8, smode: u8, now: Time) -> Applied {
    existing(state, inode)?;
    Ok(over_tree(state, inode.0, smode & SMODE_RECURSIVE != 0, now, |state, inode| {
        let node = *state.at(inode);
        let frozen = node.has_eattr(eattr::IMMUTABLE) && bits & eattr::NO_OWNER != 0;
        if !is_owner(state, inode, uid) || frozen {
            return Some(Answer::Denied);
        }
        let mut wanted = match smode & 3 {
            0 => bits,
            1 => node.eattr() | bits,
            2 => node.eattr() & !bits,
            _ => node.eattr(),
        };
        if !node.is_directory() {
            wanted &= !eattr::NO_ENTRY_CACHE;
        }
        if wanted == node.eattr() {
            return Some(Answer::Unchanged);
        }
        state.at_mut(inode).set_eattr(wanted);
        Some(Answer::Changed)
    }))
}

fn archive(state: &mut State, inode: Inode, uid: u32, command: u8, now: Time) -> Applied {
    existing(state, inode)?;
    let archived = command == 1;
    let mut counts = [0u64; 3];
    for inode in tree(state, inode.0, true) {
        let node = *state.at(inode);
        if !node.has_data() {
            continue;
        }
        if !is_owner(state, inode, uid) || node.has_eattr(eattr::IMMUTABLE) {
            counts[2] += 1;
            continue;
        }
        let chunks: Vec<u32> = state.chunks_from(&node, 0).map(|(_, chunk)| chunk).collect();
        for chunk in chunks {
            let changed = state.chunks.set_archived(chunk, archived);
            counts[usize::from(!changed)] += 1;
        }
        if !archived {
            state.set_ctime(inode, now);
        }
    }
    Ok(Outcome::of(counts))
}

// --- extended attributes, ACLs, quotas

fn set_xattr(state: &mut State, inode: Inode, name: &[u8], value: &[u8], mode: u8, now: Time) -> Applied {
    existing(state, inode)?;
    let exists = state.xattrs.get(&inode.0).is_some_and(|all| all.contains_key(name));
    match mode {
        0 => {}
        1 if exists => return Err(Status::EEXIST),
        2 | 3 if !exists => return Err(Status::ENOATTR),
        1..=3 => {}
        _ => return Err(Status::EINVAL),
    }
    let all = state.xattrs.entry(inode.0).or_default();
    if mode == 3 {
        all.remove(name);
        if all.is_empty() {
            state.xattrs.remove(&inode.0);
        }
    } else {
        all.insert(name.to_vec(), value.to_vec());
    }
    let marked = state.xattrs.contains_key(&inode.0);
    state.at_mut(inode.0).set_mark(mark::XATTR, marked);
    state.set_ctime(inode.0, now);
    DONE
}

/// (id, permissions) of users or groups.
type AclEntries = Vec<(u32, u16)>;

fn acl_entries(bytes: &Bytes<'_>, (users, groups): (usize, usize)) -> Option<(AclEntries, AclEntries)> {
    if bytes.len() != (users + groups) * 6 {
        return None;
    }
    let entry = |six: &[u8]| {
        let word = six.iter().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        ((word >> 16) as u32, word as u16)
    };
    let mut users_then_groups: Vec<(u32, u16)> = bytes.chunks_exact(6).map(entry).collect();
    let groups = users_then_groups.split_off(users);
    Some((users_then_groups, groups))
}

/// The entries of a list as they stand in its line: users first.
pub(crate) fn acl_entry_bytes(acl: &Acl) -> Vec<u8> {
    let mut bytes = Vec::with_capacity((acl.users.len() + acl.groups.len()) * 6);
    for (id, perm) in acl.users.iter().chain(&acl.groups) {
        bytes.extend_from_slice(&id.to_be_bytes());
        bytes.extend_from_slice(&perm.to_be_bytes());
    }
    bytes
}

pub(crate) fn put_acl(state: &mut State, inode: u32, kind: u8, acl: Option<Acl>) {
    let bit = if kind == acl::ACCESS { mark::ACCESS_ACL } else { mark::DEFAULT_ACL };
    state.at_mut(inode).set_mark(bit, acl.is_some());
    match acl {
        Some(acl) => state.acls.insert((inode, kind), acl),
        None => state.acls.remove(&(inode, kind)),
    };
}

fn set_acl(state: &mut State, inode: Inode, kind: u8, acl: Acl, mode: u16, change_ctime: bool, now: Time) -> Applied {
    existing(state, inode)?;
    if !matches!(kind, acl::ACCESS | acl::DEFAULT) {
        return Err(Status::EINVAL);
    }
    if acl.is_removal() {
        put_acl(state, inode.0, kind, None);
        return DONE;
    }
    let stored = (kind == acl::DEFAULT || !acl.is_plain()).then_some(acl);
    put_acl(state, inode.0, kind, stored);
    state.at_mut(inode.0).set_mode(mode);
    if change_ctime {
        state.set_ctime(inode.0, now);
    }
    DONE
}

fn set_quota(state: &mut State, inode: Inode, quota: Quota) -> Applied {
    directory(state, inode)?;
    if quota.flags == 0 {
        state.quotas.remove(&inode.0);
    } else {
        state.quotas.insert(inode.0, quota);
    }
    state.at_mut(inode.0).set_mark(mark::QUOTA, quota.flags != 0);
    DONE
}

// --- trash, sustained files, free inodes

fn set_path(state: &mut State, inode: Inode, path: &[u8]) -> Applied {
    trash_node(state, inode)?;
    if !(1..=PATH_BYTES_MAX).contains(&path.len()) || path.contains(&0) {
        return Err(Status::EINVAL);
    }
    state.attach(inode.0);
    state.detach(inode.0, NodeKind::Trash, path);
    DONE
}

/// Brings a file back to its path; missing directories are made. Spec 32, 32.8 "UNDEL".
fn undelete(state: &mut State, inode: Inode, now: Time) -> Applied {
    let edge = trash_node(state, inode)?.edge;
    let path = state.name(edge).to_vec();
    let path = path.strip_prefix(b"/").unwrap_or(&path);
    let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    let (name, directories) = parts.split_last().expect("splitting gives at least one part");
    if !parts.iter().all(|part| name_is_legal(part)) {
        return Err(Status::CANTCREATEPATH);
    }
    // Look first, change then.
    let mut here = Some(ROOT);
    let mut missing = 0;
    for part in directories {
        let Some(parent) = here else {
            missing += 1;
            continue;
        };
        here = state.find_child(parent, part);
        match here {
            Some(child) if !state.at(child).is_directory() => return Err(Status::CANTCREATEPATH),
            Some(_) => {}
            None if state.at(parent).has_eattr(eattr::IMMUTABLE) => return Err(Status::EPERM),
            None => missing += 1,
        }
    }
    if let Some(parent) = here {
        if state.at(parent).has_eattr(eattr::IMMUTABLE) {
            return Err(Status::EPERM);
        }
        if state.find(parent, name).is_some() {
            return Err(Status::EEXIST);
        }
    }
    if missing != 0 && !state.has_free_inodes(missing) {
        return Err(Status::NOSPACE);
    }
    let mut here = ROOT;
    for part in directories {
        here = match state.find_child(here, part) {
            Some(child) => child,
            None => {
                let new = NewNode { kind: NodeKind::Directory, mode: 0o755, umask: 0, uid: 0, gid: 0 };
                new_node(state, here, part, &new, now)
            }
        };
    }
    state.attach(inode.0);
    enter(state, here, inode.0, name, now);
    DONE
}

/// Removes a trash file for good; true if it is still open and therefore sustained.
fn purge_node(state: &mut State, inode: u32, now: Time) -> bool {
    let is_open = state.is_open(inode);
    if is_open {
        // The entry goes from one bucket to another, with its number.
        let edge = state.at(inode).edge;
        let (path, id) = (state.name(edge).to_vec(), state.edge(edge).id());
        state.attach(inode);
        state.at_mut(inode).set_kind(NodeKind::Sustained);
        state.put_detached(inode, &path, Some(id));
    } else {
        state.attach(inode);
        state.remove_node(inode, now.seconds());
    }
    is_open
}

fn purge(state: &mut State, inode: Inode, now: Time) -> Applied {
    trash_node(state, inode)?;
    purge_node(state, inode.0, now);
    DONE
}

/// Has the trash time of a file passed? In whole seconds. Spec 32, 32.9.
pub(crate) fn trash_expired(state: &State, inode: u32, now: u32) -> bool {
    let node = state.at(inode);
    let keep = u64::from(state.trash_hours(node)) * 3600;
    let Times { atime, mtime, ctime } = state.times(node);
    [atime, mtime, ctime].iter().all(|time| u64::from(time.seconds()) + keep < u64::from(now))
}

fn empty_trash(state: &mut State, bucket: u32, now: Time) -> Applied {
    if bucket >= TRASH_BUCKETS {
        return Err(Status::EINVAL);
    }
    let entries: Vec<u32> = state.trash_bucket(bucket).map(|edge| state.edge(edge).child).collect();
    let (mut freed, mut sustained, mut all) = (0, 0, 0);
    for inode in entries.into_iter().filter(|inode| trash_expired(state, *inode, now.seconds())).collect::<Vec<_>>() {
        let kept = purge_node(state, inode, now);
        freed += u64::from(!kept);
        sustained += u64::from(kept);
        all ^= inode;
    }
    Ok(Outcome::of([freed, sustained, u64::from(all)]))
}

fn empty_sustained(state: &mut State, bucket: u32, now: Time) -> Applied {
    if bucket >= SUSTAINED_BUCKETS {
        return Err(Status::EINVAL);
    }
    let entries: Vec<u32> = state.sustained_bucket(bucket).map(|edge| state.edge(edge).child).collect();
    let (mut freed, mut all) = (0, 0);
    for inode in entries {
        if !state.is_open(inode) {
            state.attach(inode);
            state.remove_node(inode, now.seconds());
            freed += 1;
            all ^= inode;
        }
    }
    Ok(Outcome::of([freed, u64::from(all)]))
}

fn free_inodes(state: &mut State, delay_seconds: u32, now: u32) -> Applied {
    let (mut freed, mut sustained, mut all) = (0, 0, 0);
    while let Some((inode, since)) = state.free_queue().front().copied() {
        if u64::from(since) + u64::from(delay_seconds) >= u64::from(now) {
            break;
        }
        let is_open = state.is_open(inode);
        let numbers = state.inode_numbers();
        numbers.waiting.pop_front();
        if is_open {
            numbers.release_later(inode, now);
            sustained += 1;
        } else {
            numbers.release(inode);
            freed += 1;
        }
        all ^= inode;
    }
    Ok(Outcome::of([freed, sustained, u64::from(all)]))
}

// --- file data and chunks

/// A chunk to write into at a slot: the file's own, with a higher version if asked for, or a new one. `cut`: the chunk
/// will have so many bytes. Spec 41, 4.
fn grant(
    state: &mut State,
    inode: Inode,
    index: u32,
    raise_version: u8,
    cut: Option<u32>,
    now: Time,
) -> Result<u32, Status> {
    let node = *data_node(state, inode)?;
    if index > CHUNK_INDEX_MAX {
        return Err(Status::INDEXTOOBIG);
    }
    let mut chunk = state.chunk_of(&node, index);
    if chunk == 0 {
        chunk = state.chunks.create();
        state.put_chunk(inode.0, index, chunk);
    } else if state.chunks.at(chunk).references > 1 {
        let previous = state.chunks.at(chunk).id.0;
        chunk = state.chunks.create();
        if raise_version == raise::BEGUN {
            state.chunks.attach_later(chunk, Attach { inode: inode.0, index, previous });
        } else {
            state.put_chunk(inode.0, index, chunk);
        }
    } else if raise_version != raise::NO {
        let version = state.chunks.at(chunk).version.next();
        if raise_version == raise::BEGUN {
            state.chunks.raise(chunk, version.0, cut);
        } else {
            state.chunks.set_version(chunk, version.0);
        }
    }
    state.chunks.set_locked_to(chunk, now.seconds().saturating_add(WRITE_LOCK_SECONDS));
    Ok(chunk)
}

/// What was begun with a chunk is done, on all copies that count.
fn settle(state: &mut State, chunk: ChunkId, version: u32) -> Applied {
    let slot = chunk_slot(state, chunk)?;
    if let Some(Attach { inode, index, previous }) = state.chunks.attach_of(slot) {
        let node = *data_node(state, Inode(inode))?;
        let present = state.chunk_of(&node, index);
        if present == 0 || state.chunks.at(present).id.0 != previous {
            return Err(Status::WRONGCHUNKID); // the file was cut, or became another's copy, meanwhile
        }
        state.put_chunk(inode, index, slot);
    }
    state.chunks.set_version(slot, version);
    DONE
}

/// The chunk that holds a file's new end is about to be cut. A shorter length holds at once, so that whatever becomes of
/// the copies, nobody reads what was to be cut off; that it does not come back when the file grows is what `cut` in the
/// chunk's record is for. A chunk that is shared stays as it is, and so does the length, until the file's own is there.
fn cut(state: &mut State, inode: Inode, index: u32, length: u64, now: Time) -> Applied {
    if length > FILE_BYTES_MAX {
        return Err(Status::INDEXTOOBIG);
    }
    let in_chunk = (length % u64::from(CHUNK_BYTES)) as u32;
    let present = state.chunk_of(data_node(state, inode)?, index);
    let shared = present != 0 && state.chunks.at(present).references > 1;
    let chunk = grant(state, inode, index, raise::BEGUN, Some(in_chunk), now)?;
    if !shared && length < state.at(inode.0).length() {
        state.set_length(inode.0, length);
        file_changed(state, inode.0, true, now);
    }
    Ok(chunk_outcome(state, chunk))
}

fn chunk_outcome(state: &State, chunk: u32) -> Outcome {
    Outcome::of([state.chunks.at(chunk).id.0])
}

fn write(state: &mut State, inode: Inode, index: u32, raise_version: u8, touch_times: bool, now: Time) -> Applied {
    let chunk = grant(state, inode, index, raise_version, None, now)?;
    state.raise_length(inode.0, u64::from(index) * u64::from(CHUNK_BYTES));
    file_changed(state, inode.0, touch_times, now);
    Ok(chunk_outcome(state, chunk))
}

/// The file is no plain copy of a snapshot any more; perhaps its times change.
fn file_changed(state: &mut State, inode: u32, touch_times: bool, now: Time) {
    let node = state.at_mut(inode);
    node.set_eattr(node.eattr() & !eattr::SNAPSHOT);
    if touch_times {
        state.set_modified(inode, now);
    }
}

fn set_length(state: &mut State, inode: Inode, length: u64, touch_times: bool, now: Time) -> Applied {
    data_node(state, inode)?;
    if length > FILE_BYTES_MAX {
        return Err(Status::INDEXTOOBIG);
    }
    state.set_length(inode.0, length);
    file_changed(state, inode.0, touch_times, now);
    DONE
}

fn rollback(state: &mut State, inode: Inode, index: u32, previous: ChunkId, chunk: ChunkId) -> Applied {
    let slot = chunk_slot(state, chunk)?;
    if state.chunks.forget_attach(slot).is_some() {
        state.chunks.set_locked_to(slot, 0);
        state.chunks.release(slot);
        return DONE;
    }
    let node = *data_node(state, inode)?;
    if previous != chunk {
        let previous = if previous.0 == 0 { 0 } else { chunk_slot(state, previous)? };
        if state.chunk_of(&node, index) != slot {
            return Err(Status::WRONGCHUNKID);
        }
        state.put_chunk(inode.0, index, previous);
    }
    state.chunks.set_locked_to(slot, 0);
    DONE
}

fn repair(state: &mut State, inode: Inode, index: u32, version: u32, now: Time) -> Applied {
    let node = *data_node(state, inode)?;
    let chunk = state.chunk_of(&node, index);
    if chunk == 0 {
        return Err(Status::NOCHUNK);
    }
    if version == 0 {
        state.put_chunk(inode.0, index, 0);
    } else {
        state.chunks.set_version(chunk, version);
    }
    state.set_modified(inode.0, now);
    DONE
}

/// Shares the source's chunks `first..=last` behind the end of a file. Spec 32, 32.4.
fn append(state: &mut State, inode: Inode, source: Inode, (first, last): (u32, u32), now: Time) -> Applied {
    if inode == source {
        return Err(Status::EINVAL);
    }
    let (target_node, source_node) = (*data_node(state, inode)?, *data_node(state, source)?);
    let chunk_bytes = u64::from(CHUNK_BYTES);
    let start = target_node.length().div_ceil(chunk_bytes);
    let slice_end = source_node.length().min((u64::from(last) + 1) * chunk_bytes);
    let slice_start = u64::from(first) * chunk_bytes;
    if first > last || slice_end <= slice_start {
        return Err(Status::EINVAL);
    }
    let length = start * chunk_bytes + (slice_end - slice_start);
    if length > FILE_BYTES_MAX {
        return Err(Status::INDEXTOOBIG);
    }
    let chunks: Vec<(u32, u32)> =
        state.chunks_from(&source_node, first).take_while(|(index, _)| *index <= last).collect();
    state.set_length(inode.0, start * chunk_bytes);
    for (index, chunk) in chunks {
        // Below FILE_BYTES_MAX, so the index fits.
        state.put_chunk(inode.0, start as u32 + (index - first), chunk);
    }
    state.raise_length(inode.0, length);
    file_changed(state, inode.0, false, now);
    let ctime = state.times(state.at(inode.0)).ctime;
    state.set_times(inode.0, &Times { atime: now, mtime: now, ctime });
    state.set_atime(source.0, now);
    DONE
}

fn set_file_chunk(state: &mut State, inode: Inode, index: u32, chunk: ChunkId) -> Applied {
    data_node(state, inode)?;
    let slot = if chunk.0 == 0 { 0 } else { chunk_slot(state, chunk)? };
    state.put_chunk(inode.0, index, slot);
    DONE
}

fn chunk_add(state: &mut State, chunk: ChunkId, version: u32, locked_to: u32, now: u32) -> Applied {
    if chunk.0 == 0 || state.chunks.find(chunk.0).is_some() {
        return Err(Status::CHUNKEXIST);
    }
    if chunk.0 > state.chunks.next_id() + CHUNK_ID_LEAP_MAX || locked_to != 0 && locked_to < now {
        return Err(Status::EINVAL);
    }
    state.chunks.insert(chunk.0, version, locked_to, false);
    if chunk.0 >= state.chunks.next_id() {
        state.chunks.set_next_id(chunk.0 + 1);
    }
    DONE
}

fn chunk_delete(state: &mut State, chunk: ChunkId, version: u32, now: u32) -> Applied {
    let slot = chunk_slot(state, chunk)?;
    let record = state.chunks.at(slot);
    if record.version.0 != version {
        return Err(Status::WRONGVERSION);
    }
    if record.references != 0 {
        return Err(Status::ACTIVE);
    }
    if record.is_locked(now) {
        return Err(Status::LOCKED);
    }
    state.chunks.remove(slot);
    DONE
}

// --- sessions and locks

fn session_delete(state: &mut State, session: SessionId) -> Applied {
    state.sessions.remove(&session).ok_or(Status::BADSESSIONID)?;
    let open: Vec<u32> = state.open_files(session).collect();
    for inode in open {
        state.release(session, inode);
    }
    DONE
}

fn flock(state: &mut State, inode: Inode, owner: LockOwner, lock: LockLetter) -> Applied {
    let done = match lock {
        LockLetter::Unlocked => state.locks.drop_whole(inode.0, owner),
        LockLetter::Shared => state.locks.take_whole(inode.0, owner, LockKind::Shared),
        LockLetter::Exclusive => state.locks.take_whole(inode.0, owner, LockKind::Exclusive),
    };
    if done { DONE } else { Err(Status::MISMATCH) }
}

fn posix_lock(
    state: &mut State,
    inode: Inode,
    holder: LockOwner,
    lock: LockLetter,
    (start, end): (u64, u64),
    pid: u32,
) -> Applied {
    let kind = match lock {
        LockLetter::Unlocked => {
            state.locks.drop_range(inode.0, holder, start, end);
            return DONE;
        }
        LockLetter::Shared => LockKind::Shared,
        LockLetter::Exclusive => LockKind::Exclusive,
    };
    let taken = state.locks.take_range(inode.0, RangeLock { holder, pid, start, end, kind });
    if taken { DONE } else { Err(Status::MISMATCH) }
}

// --- servers and classes

/// Spec 51, 6.4 "CSDBOP".
fn server(state: &mut State, operation: u8, key: (wire::Ip4, u16), argument: u32) -> Applied {
    let csid = || u16::try_from(argument).map_err(|_| Status::EINVAL);
    let servers = &mut state.servers;
    match operation {
        0 => {
            if servers.contains_key(&key) {
                return Err(Status::EEXIST);
            }
            servers.insert(key, crate::state::ServerEntry { csid: csid()?, ..Default::default() });
        }
        1 => {
            servers.remove(&key).ok_or(Status::NOTFOUND)?;
        }
        2 => {
            let csid = csid()?;
            let old = servers.iter().find(|(_, entry)| entry.csid == csid && csid != 0).map(|(key, _)| *key);
            let entry = servers.remove(&old.ok_or(Status::NOTFOUND)?).expect("found just now");
            servers.insert(key, entry);
        }
        3 => servers.get_mut(&key).ok_or(Status::NOTFOUND)?.csid = csid()?,
        4..=6 => {
            let entry = servers.get_mut(&key).ok_or(Status::NOTFOUND)?;
            (entry.maintenance, entry.maintenance_until) = match operation {
                4 => (1, argument),
                5 => (0, 0),
                _ => (2, argument),
            };
        }
        _ => return Err(Status::EINVAL),
    }
    DONE
}

/// Cuts the masks of SCSET into the label sets of create, keep and arch.
#[allow(clippy::type_complexity, reason = "three lists of one type, named where they are used")]
fn label_sets(
    masks: &[u32],
    create: u32,
    keep: u32,
    arch: u32,
) -> Option<(Vec<LabelSets>, Vec<LabelSets>, Vec<LabelSets>)> {
    let goals = 1..=u32::from(GOAL_MAX);
    if ![create, keep, arch].iter().all(|count| goals.contains(count)) {
        return None;
    }
    if masks.len() != (create + keep + arch) as usize * 4 {
        return None;
    }
    let mut sets = masks.chunks_exact(4).map(|set| [set[0], set[1], set[2], set[3]]);
    let mut take = |count: u32| sets.by_ref().take(count as usize).collect();
    Some((take(create), take(keep), take(arch)))
}

fn class_set(state: &mut State, class: StorageClass, new: bool) -> Applied {
    if !(1..=NAME_BYTES_MAX).contains(&class.name.len()) || class.name.contains(&0) {
        return Err(Status::EINVAL);
    }
    let id = match (state.classes.by_name(&class.name), new) {
        (Some(_), true) => return Err(Status::CLASSEXISTS),
        (None, false) => return Err(Status::NOSUCHCLASS),
        (Some(id), false) => id,
        (None, true) => state.classes.lowest_free().ok_or(Status::CLASSLIMITREACH)?,
    };
    let copies_before = state.classes.copies_max(id);
    state.classes.set(id, Some(class));
    if state.class_is_used(id) {
        if copies_before != state.classes.copies_max(id) {
            state.recount();
        }
        let State { chunks, classes, .. } = state;
        chunks.class_changed(id, classes);
    }
    Ok(Outcome::of([u64::from(id)]))
}

fn class_duplicate(state: &mut State, source: &[u8], target: &[u8]) -> Applied {
    let old = state.classes.by_name(source).ok_or(Status::NOSUCHCLASS)?;
    let mut class = state.classes.get(old).expect("found by name").clone();
    class.name = target.to_vec();
    let new = class_set(state, class, true)?.first();
    Ok(Outcome::of([u64::from(old), new]))
}

fn class_rename(state: &mut State, source: &[u8], target: &[u8]) -> Applied {
    let id = state.classes.by_name(source).ok_or(Status::NOSUCHCLASS)?;
    if !(1..=NAME_BYTES_MAX).contains(&target.len()) || target.contains(&0) {
        return Err(Status::EINVAL);
    }
    if state.classes.by_name(target).is_some() {
        return Err(Status::CLASSEXISTS);
    }
    let mut class = state.classes.get(id).expect("found by name").clone();
    class.name = target.to_vec();
    state.classes.set(id, Some(class));
    Ok(Outcome::of([u64::from(id)]))
}

fn class_delete(state: &mut State, name: &[u8]) -> Applied {
    let id = state.classes.by_name(name).ok_or(Status::NOSUCHCLASS)?;
    if id <= GOAL_MAX {
        return Err(Status::EPERM);
    }
    if state.class_is_used(id) {
        return Err(Status::CLASSINUSE);
    }
    state.classes.set(id, None);
    Ok(Outcome::of([u64::from(id)]))
}

/// Borrowed bytes as a change's argument.
pub(crate) fn borrowed(bytes: &[u8]) -> Bytes<'_> {
    Cow::Borrowed(bytes)
}
