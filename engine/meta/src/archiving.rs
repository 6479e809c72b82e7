//! Files whose storage class archives them: what nobody asks for, time brings. Spec 41, 7.3.
//!
//! A walk over all nodes, some at a time, so that no request waits for it. What is due becomes one change of its file
//! in the journal, the same that `mfssetarchive` makes; the chunks' copies then follow the class's archive rule.

use wire::{Inode, Time};

use crate::Namespace;
use crate::change::Change;
use crate::node::eattr;

/// The walk comes round in an hour, as in MooseFS.
const ROUND_SECONDS: u32 = 3600;
/// Nodes looked at in one call, however many there are: about a millisecond.
const STEP_MAX: u32 = 20_000;
/// Files changed in one call.
const CHANGES_MAX: usize = 1000;
const DAY_SECONDS: u64 = 86_400;
/// A longer delay means never. Spec 41, 7.1.
const DELAY_DAYS_MAX: u16 = 49_710;

impl Namespace {
    /// Once a second: looks at the next nodes and archives those files that are due.
    pub fn tick_archive(&mut self, now: Time) {
        let delays: Vec<(u8, u64)> = self
            .classes()
            .filter(|(_, class)| (1..=DELAY_DAYS_MAX).contains(&class.arch_delay_days))
            .map(|(id, class)| (id, u64::from(class.arch_delay_days) * DAY_SECONDS))
            .collect();
        if delays.is_empty() {
            return;
        }
        let end = self.state.inodes_end();
        let step = (end / ROUND_SECONDS + 1).min(STEP_MAX);
        let from = if self.timers.archive_at < end { self.timers.archive_at } else { 0 };
        let to = from.saturating_add(step).min(end);
        let mut due = Vec::new();
        let mut reached = to;
        for inode in from..to {
            if self.is_due(inode, &delays, now.seconds()) {
                due.push(Inode(inode));
                if due.len() == CHANGES_MAX {
                    reached = inode + 1;
                    break;
                }
            }
        }
        self.timers.archive_at = reached;
        for inode in due {
            let change = Change::Archive { inode, uid: 0, command: 1 };
            self.commit(now, &change).expect("the file was just looked at");
        }
    }

    fn is_due(&self, inode: u32, delays: &[(u8, u64)], now: u32) -> bool {
        let Some(node) = self.state.node(inode) else { return false };
        let Some((_, delay)) = delays.iter().find(|(class, _)| *class == node.class) else { return false };
        node.has_data()
            && u64::from(node.times.ctime().seconds()) + delay < u64::from(now)
            && !node.has_eattr(eattr::IMMUTABLE)
            && self.state.chunks_from(node, 0).any(|(_, chunk)| !self.state.chunks.at(chunk).archived)
            // A writer is at it, and its ctime comes with the end of the write.
            && !self.state.chunks_from(node, 0).any(|(_, chunk)| self.state.chunks.at(chunk).is_locked(now))
    }
}
