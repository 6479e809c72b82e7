//! What was done about chunks in the last while, for those who watch. Spec 70, 4.6.
//!
//! The planner looks at all chunks again and again, at a small table within a second. What is told is of a span that
//! lasts as long as a sweep may take: what was done in it, and what waited in the queues at its end.

use meta::chunks::{QUEUES, Queue, Statistics};

use super::core::Core;
use super::overview::Locked;

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

/// Once a second: a span ends with a sweep, when it has lasted long enough.
pub(super) fn second(core: &mut Core, now: u32) {
    let found = core.chunks.statistics();
    let locked = core.passes.last().locked;
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
        locked,
    };
    (span.began, span.at_its_begin) = (now, found);
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
