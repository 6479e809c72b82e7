//! All files are looked at in turn: which have too few copies, which have chunks without any. Spec 70, 4.5 and Spec 41, 12.
//!
//! A few at a time, so that nobody waits; a round takes as long as a sweep over the chunks may. While chunkservers come,
//! go or report it rests. What was found in a round is told until the next one has ended.

use std::time::Duration;

use meta::Placed;
use wire::{ChunkId, Inode};

use super::Shared;
use super::core::Core;

/// Between two steps.
const STEP: Duration = Duration::from_millis(100);
/// Inodes and chunks that one step looks at: some milliseconds.
const STEP_MAX: u32 = 2000;
/// The first round begins as soon as all chunkservers are there, at the latest so long after the start. Spec 41, 12.
const FIRST_AFTER_SECONDS: u32 = 900;

/// What a round has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Unix seconds.
    pub(super) began: u32,
    pub(super) ended: u32,
    pub(super) files: u32,
    pub(super) undergoal_files: u32,
    /// By names: a file with two is two of these.
    pub(super) missing_files: u32,
    pub(super) missing_trash_files: u32,
    pub(super) missing_sustained_files: u32,
    pub(super) chunks: u32,
    pub(super) undergoal_chunks: u32,
    pub(super) missing_chunks: u32,
    /// Where the chunks without copy lie: chunk, inode, index.
    pub(super) missing: Vec<(ChunkId, Inode, u32)>,
}

/// The round that is under way, and the last whole one.
#[derive(Debug, Default)]
pub(super) struct FileCheck {
    present: Option<Round>,
    pub(super) last: Option<Found>,
}

#[derive(Debug, Default)]
struct Round {
    found: Found,
    /// The file to go on with, and its slot.
    inode: u32,
    slot: u32,
    /// What was seen of that file before.
    undergoal: bool,
    missing: bool,
}

pub(super) async fn keep_checking(master: Shared) {
    loop {
        master.ring.sleep(STEP).await;
        let now = master.now();
        master.core.borrow_mut().check_some_files(now);
    }
}

impl Core {
    fn check_some_files(&mut self, now: u32) {
        if self.chunks.in_progress(now) {
            return;
        }
        let Some(mut round) = self.file_check.present.take() else {
            let overdue = now >= self.started.saturating_add(FIRST_AFTER_SECONDS);
            if overdue || self.file_check.last.is_some() || self.chunks.all_data_known(now) {
                let found = Found { began: now, ..Found::default() };
                self.file_check.present = Some(Round { found, ..Round::default() });
            }
            return;
        };
        // Never ahead of an even pace, and never more than a step may take.
        let end = self.namespace.inodes_end();
        let elapsed = u64::from(now.saturating_sub(round.found.began));
        let pace = u64::from(end) * elapsed / u64::from(self.settings.chunks.sweep_seconds.max(1));
        let until = u32::try_from(pace).unwrap_or(u32::MAX).min(end);
        let mut budget = STEP_MAX;
        while budget > 0 && round.inode < until {
            budget = self.check_file(&mut round, budget);
        }
        if round.inode < end || elapsed < u64::from(self.settings.chunks.sweep_seconds) {
            self.file_check.present = Some(round);
            return;
        }
        round.found.ended = now;
        self.file_check.last = Some(round.found);
    }

    /// Goes on with one file. Returns what is left of the budget.
    fn check_file(&self, round: &mut Round, mut budget: u32) -> u32 {
        budget -= 1;
        let inode = Inode(round.inode);
        let Some(placed) = self.namespace.placed(inode) else {
            // It may have been there when the step before looked at its first chunks.
            let found = std::mem::take(&mut round.found);
            *round = Round { found, inode: round.inode + 1, ..Round::default() };
            return budget;
        };
        for (index, chunk) in self.namespace.file_chunks(inode, round.slot).into_iter().flatten() {
            if budget == 0 {
                round.slot = index;
                return 0;
            }
            budget -= 1;
            let goal = self.namespace.chunk(chunk).map_or(0, |record| self.namespace.goal_of(&record));
            let usable = self.chunks.census(chunk).usable();
            round.found.chunks += 1;
            if usable == 0 {
                round.found.missing_chunks += 1;
                round.missing = true;
                if round.found.missing.len() < self.settings.missing_listed {
                    round.found.missing.push((chunk, inode, index));
                }
            } else if usable < goal {
                round.found.undergoal_chunks += 1;
                round.undergoal = true;
            }
        }
        round.found.files += 1;
        round.found.undergoal_files += u32::from(round.undergoal);
        if round.missing {
            match placed {
                Placed::Named(names) => round.found.missing_files += names,
                Placed::Trash => round.found.missing_trash_files += 1,
                Placed::Sustained => round.found.missing_sustained_files += 1,
            }
        }
        let found = std::mem::take(&mut round.found);
        *round = Round { found, inode: round.inode + 1, ..Round::default() };
        budget
    }
}
