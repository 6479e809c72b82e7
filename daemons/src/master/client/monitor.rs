//! Answers for monitors: chunks by goal and copies, quotas, exports, open files, locks, storage classes. Spec 70, 4.

use std::collections::BTreeSet;

use meta::chunks::Queue;
use meta::class::LabelSets;
use meta::locks::LockKind;
use wire::{ChunkId, Field, Inode, Input, Name, SessionId};

use crate::master::core::Core;
use crate::master::file_check::Found;
use crate::master::overview;

pub(super) const FSTEST_INFO: u32 = 512;
pub(super) const CHUNKSTEST_INFO: u32 = 514;
pub(super) const CHUNKS_MATRIX: u32 = 516;
pub(super) const QUOTA_INFO: u32 = 518;
pub(super) const EXPORTS_INFO: u32 = 520;
pub(super) const MEMORY_INFO: u32 = 528;
pub(super) const LIST_OPEN_FILES: u32 = 532;
pub(super) const LIST_ACQUIRED_LOCKS: u32 = 534;
pub(super) const MASS_RESOLVE_PATHS: u32 = 536;
pub(super) const SCLASS_INFO: u32 = 542;
pub(super) const MISSING_CHUNKS: u32 = 544;

/// The payload of the answer, if the question is one of this module's.
pub(super) fn answer(core: &Core, kind: u32, payload: &[u8], now: u32) -> Option<Vec<u8>> {
    match (kind, payload.len()) {
        (FSTEST_INFO, 0 | 1) => Some(files_found(core, !payload.is_empty())),
        (CHUNKSTEST_INFO, 0) => Some(loop_statistics(core)),
        (CHUNKS_MATRIX, 0) => Some(matrices(core, now)),
        (CHUNKS_MATRIX, 1) => Some(matrix(core, payload[0], now)),
        (QUOTA_INFO, 0) => Some(quotas(core, now)),
        (EXPORTS_INFO, 0 | 1) => Some(core.exports.describe(payload.first().copied().unwrap_or(0))),
        (MEMORY_INFO, 0) => Some(memory(core, now)),
        (LIST_OPEN_FILES, 4 | 8) => Some(with_msgid(payload, |session| open_files(core, SessionId(session)))),
        (LIST_ACQUIRED_LOCKS, 4 | 8) => Some(with_msgid(payload, |inode| locks(core, inode))),
        (MASS_RESOLVE_PATHS, bytes) if bytes % 4 == 0 => Some(paths(core, payload)),
        (SCLASS_INFO, 0) => Some(classes(core, now)),
        (MISSING_CHUNKS, 0 | 1) => Some(missing_chunks(core, payload.first().is_some_and(|mode| *mode > 0), now)),
        _ => None,
    }
}

fn numbers(values: &[u32]) -> Vec<u8> {
    let mut out = Vec::with_capacity(values.len() * 4);
    values.iter().for_each(|value| value.put(&mut out));
    out
}

/// Spec 70, 4.6.
fn loop_statistics(core: &Core) -> Vec<u8> {
    let report = &core.chunk_loop.last;
    let done = &report.done;
    numbers(&[
        report.began,
        report.ended,
        done.deleted_invalid,
        report.waiting(Queue::Cleanup),
        done.deleted_unused,
        report.waiting(Queue::Unused),
        done.deleted_marked,
        0, // such a copy goes only where that makes room, and then at once
        done.deleted_overgoal,
        report.waiting(Queue::Overgoal),
        done.replicated_undergoal,
        report.undergoal(),
        done.replicated_labels,
        report.waiting(Queue::WrongLabel),
        done.rebalanced,
        report.waiting(Queue::WrongLabel),
        report.locked.unused,
        report.locked.used,
    ])
}

/// The last round over all files. Spec 70, 4.5.
fn files_found(core: &Core, with_detached: bool) -> Vec<u8> {
    let nothing = Found::default();
    let found = core.file_check.last.as_ref().unwrap_or(&nothing);
    let mut out = numbers(&[found.began, found.ended, found.files, found.undergoal_files, found.missing_files]);
    if with_detached {
        out.extend(numbers(&[found.missing_trash_files, found.missing_sustained_files]));
    }
    out.extend(numbers(&[found.chunks, found.undergoal_chunks, found.missing_chunks]));
    put_text(b"", &mut out); // MooseFS's tells of broken tables here, of which ours has none
    out
}

fn matrices(core: &Core, now: u32) -> Vec<u8> {
    let mut out = vec![if core.chunks.in_progress(now) { 2 } else { 0 }];
    core.overview(now).matrices.iter().for_each(|matrix| out.extend(numbers(matrix)));
    out
}

/// One of them; there are no others. Spec 70, 4.7.
fn matrix(core: &Core, which: u8, now: u32) -> Vec<u8> {
    let overview = core.overview(now);
    numbers(overview.matrices.get(usize::from(which)).unwrap_or(&[0; overview::MATRIX_CELLS]))
}

/// The eleven tables of a stock master as far as ours have the like: no index of nodes, targets of symlinks among the
/// names. Spec 70, 4.10.
fn memory(core: &Core, now: u32) -> Vec<u8> {
    let tables = core.namespace.memory();
    let copies = core.chunks.memory(u64::from(core.overview(now).copies[0]));
    let none = meta::Memory::default();
    let in_order = [
        tables.chunk_index,
        tables.chunks,
        copies,
        tables.name_index,
        tables.edges,
        none,
        tables.nodes,
        tables.free_inodes,
        tables.chunk_lists,
        none,
        tables.quotas,
    ];
    in_order.iter().flat_map(|table| [table.allocated, table.used]).flat_map(u64::to_be_bytes).collect()
}

/// Chunks without a usable copy by the files that they belong to: as they are now, or, where that would take long, those
/// of the last round over all files that still have none. While servers report, none is called missing. Spec 70, 4.15.
fn missing_chunks(core: &Core, with_type: bool, now: u32) -> Vec<u8> {
    let mut out = Vec::new();
    if core.chunks.in_progress(now) {
        return out;
    }
    let mut put = |id: ChunkId, inode: Inode, index: u32| {
        id.put(&mut out);
        inode.put(&mut out);
        index.put(&mut out);
        if with_type {
            let census = core.chunks.census(id);
            let why: u8 = match (census.invalid, census.wrong_version) {
                (_, 1..) => 2,
                (1.., _) => 1,
                _ => 0,
            };
            why.put(&mut out);
        }
    };
    if !core.is_small() {
        let last = core.file_check.last.iter().flat_map(|found| &found.missing);
        let still = last.filter(|(id, ..)| core.chunks.census(*id).usable() == 0);
        still.for_each(|&(id, inode, index)| put(id, inode, index));
        return out;
    }
    let all = core.namespace.chunks().map(|chunk| chunk.id);
    let lost: BTreeSet<ChunkId> = all.filter(|id| core.chunks.census(*id).usable() == 0).collect();
    if !lost.is_empty() {
        let slots = core.namespace.slots_of_chunks(|id| lost.contains(&id)).take(core.settings.missing_listed);
        slots.for_each(|(id, inode, index)| put(id, inode, index));
    }
    out
}

/// A length word and the bytes.
fn put_text(text: &[u8], out: &mut Vec<u8>) {
    u32::try_from(text.len()).unwrap_or(0).put(out);
    out.extend_from_slice(text);
}

/// Spec 70, 4.8.
fn quotas(core: &Core, now: u32) -> Vec<u8> {
    let mut out = Vec::new();
    for (inode, path, report) in core.namespace.quotas() {
        let quota = report.quota;
        inode.put(&mut out);
        put_text(&[b"/", &path[..]].concat(), &mut out);
        quota.grace_seconds.put(&mut out);
        u8::from(quota.exceeded).put(&mut out);
        quota.flags.put(&mut out);
        let left = match quota.since {
            0 => u32::MAX,
            since => since.saturating_add(quota.grace_seconds).saturating_sub(now),
        };
        left.put(&mut out);
        for limits in [quota.soft, quota.hard] {
            limits.inodes.put(&mut out);
            limits.length.put(&mut out);
            limits.size.put(&mut out);
            limits.realsize.put(&mut out);
        }
        report.present.inodes.put(&mut out);
        report.present.length.put(&mut out);
        report.present.size.put(&mut out);
        report.present.realsize.put(&mut out);
    }
    out
}

/// Answers a question that is one number, perhaps behind a message id. Spec 70, 1.4.
fn with_msgid(payload: &[u8], answer: impl FnOnce(u32) -> Vec<u8>) -> Vec<u8> {
    let (msgid, number) = payload.split_at(payload.len() - 4);
    let number = u32::take(&mut Input::new(number)).unwrap_or(0);
    [msgid.to_vec(), answer(number)].concat()
}

fn open_files(core: &Core, session: SessionId) -> Vec<u8> {
    let mut out = Vec::new();
    if session == SessionId(0) {
        for (session, inode) in core.namespace.all_open_files() {
            session.put(&mut out);
            inode.put(&mut out);
        }
    } else {
        core.namespace.open_files(session).for_each(|inode| inode.put(&mut out));
    }
    out
}

/// Bytes of paths after which the rest is left out: who asks needs no leave, and everybody waits meanwhile.
const PATHS_BYTES_MAX: usize = 16 << 20;

/// For each inode its paths in the whole tree; those that found no room are left out. Spec 70, 4.13.
fn paths(core: &Core, payload: &[u8]) -> Vec<u8> {
    let mut input = Input::new(payload);
    let inodes: Vec<Inode> = Field::take(&mut input).unwrap_or_default();
    let mut out = Vec::new();
    for inode in inodes.into_iter().filter(|inode| inode.0 != 0) {
        if out.len() > PATHS_BYTES_MAX {
            break;
        }
        let mut found = core.namespace.paths_in_all(inode);
        if found.is_empty() {
            found.push(b"(deleted)".to_vec());
        }
        let mut records = Vec::new();
        found.iter().for_each(|path| put_text(path, &mut records));
        inode.put(&mut out);
        put_text(&records, &mut out);
    }
    out
}

/// POSIX locks, then BSD locks. Spec 70, 4.12.
fn locks(core: &Core, wanted: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let mut put = |inode: Inode, session: SessionId, owner: u64, pid: u32, range: (u64, u64), kind: LockKind| {
        if wanted != 0 && inode.0 != wanted {
            return;
        }
        if wanted == 0 {
            inode.put(&mut out);
        }
        session.put(&mut out);
        owner.put(&mut out);
        pid.put(&mut out);
        range.0.put(&mut out);
        range.1.put(&mut out);
        (if kind == LockKind::Shared { 1u8 } else { 2 }).put(&mut out);
    };
    for (inode, lock) in core.namespace.range_locks() {
        put(inode, lock.holder.session, lock.holder.owner, lock.pid, (lock.start, lock.end), lock.kind);
    }
    for (inode, holder, kind) in core.namespace.whole_file_locks() {
        put(inode, holder.session, holder.owner, 0, (0, 0), kind);
    }
    out
}

/// Spec 70, 4.14: the form of 3.0.117.
fn classes(core: &Core, now: u32) -> Vec<u8> {
    let overview = core.overview(now);
    let servers = core.chunks.servers();
    let word = |count: usize| u16::try_from(count).unwrap_or(u16::MAX);
    let matching = |sets: &LabelSets| {
        let fits =
            |labels: u32| sets[0] == 0 || sets.iter().take_while(|set| **set != 0).any(|set| labels & set == *set);
        word(servers.iter().filter(|(_, server)| fits(server.labels)).count())
    };
    let mut out = Vec::new();
    word(servers.len()).put(&mut out);
    for (id, class) in core.namespace.classes() {
        let Ok(name) = Name::new(&class.name) else { continue };
        id.put(&mut out);
        name.put(&mut out);
        let nodes = core.namespace.nodes_of_class(id);
        nodes.files.put(&mut out);
        nodes.dirs.put(&mut out);
        overview.classes[usize::from(id)].iter().flatten().for_each(|count| count.put(&mut out));
        u8::from(class.admin_only).put(&mut out);
        class.mode.put(&mut out);
        class.arch_delay_days.put(&mut out);
        for rule in [&class.create, &class.keep, &class.arch] {
            let served = rule.iter().all(|sets| usize::from(matching(sets)) > 0) && servers.len() >= rule.len();
            (if served { 3u8 } else { 0 }).put(&mut out);
            u8::try_from(rule.len()).unwrap_or(u8::MAX).put(&mut out);
        }
        for sets in [&class.create, &class.keep, &class.arch].into_iter().flatten() {
            sets.iter().for_each(|set| set.put(&mut out));
            matching(sets).put(&mut out);
        }
    }
    out
}
