//! What was done about chunks in the last while, for those who watch. Spec 70, 4.6.
//!
//! The planner looks at all chunks again and again, at a small table within a second. What is told is of a span that
//! lasts as long as a sweep may take: what was done in it, and what waited in the queues at its end.
//!
//! Beside that all chunks are looked at in passes, some at a time: which are locked, and for which servers it holds that
//! their disks marked for removal may go.

use std::collections::BTreeMap;
use std::time::Duration;

use meta::chunks::{QUEUES, Queue, Statistics};

use super::Shared;
use super::core::Core;

/// What is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// Unix seconds; 0 = no span has ended yet.
    pub(super) began: u32,
    pub(super) ended: u32,
    pub(super) done: Statistics,
    pub(super) waiting: [usize; QUEUES],
    pub(super) locked: Locked,
}

/// The present span, and the last one.
#[derive(Debug, Default)]
pub(super) struct ChunkLoop {
    began: u32,
    at_its_begin: Statistics,
    pub(super) last: Report,
    /// Chunks are looked at by slots, some in each step.
    slot: u32,
    pass_began: u32,
    /// By csid.
    removal: BTreeMap<u16, Removal>,
    counting: Locked,
    counted: Locked,
}

/// Chunks under a writer's lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Locked {
    pub(super) unused: u32,
    pub(super) used: u32,
}

impl Report {
    pub(super) fn waiting(&self, queue: Queue) -> u32 {
        u32::try_from(self.waiting[queue as usize]).unwrap_or(u32::MAX)
    }

    /// Chunks with too few copies.
    pub(super) fn undergoal(&self) -> u32 {
        use Queue::{Endangered, EndangeredHighGoal, Marked, Undergoal, UndergoalMarked};
        [EndangeredHighGoal, Endangered, UndergoalMarked, Marked, Undergoal]
            .map(|queue| self.waiting(queue))
            .into_iter()
            .fold(0, u32::saturating_add)
    }
}

const STEPS_PER_SECOND: u32 = 20;
/// Slots of the chunk table that are looked at in one step, at least.
const SLOTS_PER_STEP: u32 = 100;

/// Once a second: a span ends with a sweep, when it has lasted long enough.
pub(super) fn second(core: &mut Core, now: u32) {
    let found = core.chunks.statistics();
    let span = &mut core.chunk_loop;
    if span.began == 0 {
        (span.began, span.at_its_begin) = (now, found);
    }
    let lasted = now.saturating_sub(span.began);
    if lasted < core.settings.chunks.sweep_seconds || found.sweep_ended <= span.began {
        return;
    }
    span.last = Report {
        began: span.began,
        ended: now,
        done: since(&found, &span.at_its_begin),
        waiting: core.chunks.queue_lengths(),
        locked: span.counted,
    };
    (span.began, span.at_its_begin) = (now, found);
}

/// Goes on through the table, at a pace that is through it before a span ends. While chunkservers come, go or report,
/// what was seen says nothing: the pass begins anew.
fn look_at_some_chunks(core: &mut Core, now: u32) {
    let Core { chunks, namespace, chunk_loop, settings, .. } = core;
    if chunks.in_progress(now) {
        (chunk_loop.slot, chunk_loop.counting, chunk_loop.pass_began) = (0, Locked::default(), now);
        return;
    }
    let slots = namespace.chunk_slots();
    let pace = slots / settings.chunks.sweep_seconds.max(1) / STEPS_PER_SECOND;
    let end = chunk_loop.slot.saturating_add(pace.max(SLOTS_PER_STEP)).min(slots);
    for chunk in (chunk_loop.slot..end).filter_map(|slot| namespace.chunk_at_slot(slot)) {
        let locked = &mut chunk_loop.counting;
        if chunk.is_locked(now) {
            *if chunk.references > 0 { &mut locked.used } else { &mut locked.unused } += 1;
        }
        if chunk.references > 0 && chunks.census(chunk.id).regular() < namespace.goal_of(&chunk) {
            let marked = chunks.copies(chunk.id).filter(|(_, state)| state.marked && state.is_usable());
            for server in marked.filter_map(|(server, _)| chunks.servers().get(server)) {
                chunk_loop.removal.insert(server.csid, Removal::Running);
            }
        }
    }
    chunk_loop.slot = end;
    if end < slots || now <= chunk_loop.pass_began {
        return;
    }
    chunk_loop.counted = std::mem::take(&mut chunk_loop.counting);
    (chunk_loop.slot, chunk_loop.pass_began) = (0, now);
    for (_, server) in chunks.servers().iter() {
        let state = chunk_loop.removal.entry(server.csid).or_default();
        *state = state.after_a_pass();
    }
}

/// May the disks of a server that are marked for removal go? Spec 41, 8.7.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Removal {
    #[default]
    Unknown,
    /// All chunks were looked at once since servers came or went.
    Unsettled,
    /// A chunk has too few copies elsewhere.
    Running,
    Ran,
    Possible,
}

impl Removal {
    fn after_a_pass(self) -> Removal {
        match self {
            Removal::Unknown => Removal::Unsettled,
            Removal::Unsettled | Removal::Ran | Removal::Possible => Removal::Possible,
            Removal::Running => Removal::Ran,
        }
    }
}

impl ChunkLoop {
    /// 0 not known yet, 1 chunks are being copied, 2 the disks may go. Spec 70, 4.2.
    pub(super) fn removal(&self, csid: u16) -> u8 {
        match self.removal.get(&csid).copied().unwrap_or_default() {
            Removal::Unknown | Removal::Unsettled => 0,
            Removal::Running | Removal::Ran => 1,
            Removal::Possible => 2,
        }
    }

    /// A chunkserver went: what was known of copies elsewhere is not.
    pub(super) fn server_gone(&mut self) {
        self.removal.clear();
        self.slot = 0;
    }
}

/// Looks at chunks until the task is dropped.
pub(super) async fn keep_looking(master: Shared) {
    loop {
        master.ring.sleep(Duration::from_secs(1) / STEPS_PER_SECOND).await;
        let now = master.now();
        look_at_some_chunks(&mut master.core.borrow_mut(), now);
    }
}

fn since(now: &Statistics, before: &Statistics) -> Statistics {
    Statistics {
        deleted_invalid: now.deleted_invalid.wrapping_sub(before.deleted_invalid),
        deleted_unused: now.deleted_unused.wrapping_sub(before.deleted_unused),
        deleted_marked: now.deleted_marked.wrapping_sub(before.deleted_marked),
        deleted_overgoal: now.deleted_overgoal.wrapping_sub(before.deleted_overgoal),
        replicated_undergoal: now.replicated_undergoal.wrapping_sub(before.replicated_undergoal),
        replicated_labels: now.replicated_labels.wrapping_sub(before.replicated_labels),
        rebalanced: now.rebalanced.wrapping_sub(before.rebalanced),
        ..*now
    }
}
