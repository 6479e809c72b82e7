//! The last resort: a chunk all of whose copies are damaged.
//!
//! A copy is damaged as a whole as soon as one of its blocks is. That is right while there is another copy; if there is
//! none, it would make 64 MiB unreadable for the sake of one block. So the copies are taken back one after the other,
//! by setting their version: the server still refuses the block whose checksum does not fit, and a server of ours
//! takes it for its word that what a crash tore, but did not rot, counts as it is. Once for each time that the server
//! registered, and only when no server is missing that could have a good copy.

use std::collections::BTreeMap;

use wire::ChunkId;

use super::copies::{CopyKind, Operation};
use super::{Chunks, Effect, Effects, Facts, Notice, ServerId, Table};

/// Between the report of damage and the first attempt, and between attempts: servers may still be on their way, and the
/// report must have been read by whoever sent an order before.
const WAIT_SECONDS: u32 = 10;

/// Chunks that have nothing but damaged copies.
pub(super) type Rescues = BTreeMap<ChunkId, Rescue>;

#[derive(Debug, Default)]
pub(super) struct Rescue {
    /// Unix seconds of the next attempt; None when every copy was tried.
    next: Option<u32>,
    tried: Vec<ServerId>,
}

impl Chunks {
    /// A damaged copy was reported, of a chunk that has no other.
    pub(super) fn expect_rescue(&mut self, chunk: ChunkId, now: u32) {
        self.rescues.entry(chunk).or_default().next = Some(now.saturating_add(WAIT_SECONDS));
    }

    /// A copy may be taken back yet.
    pub(super) fn rescue_is_possible(&self, chunk: ChunkId) -> bool {
        self.rescues.get(&chunk).is_some_and(|rescue| rescue.next.is_some())
    }

    /// When that will be tried next, Unix seconds.
    pub(super) fn rescue_time(&self, chunk: ChunkId) -> Option<u32> {
        self.rescues.get(&chunk)?.next
    }

    /// Looks at the chunks whose time has come.
    pub(super) fn serve_rescues(&mut self, table: &impl Table, now: u32, effects: &mut Effects) {
        let is_due = |rescue: &Rescue| rescue.next.is_some_and(|next| next <= now);
        let due: Vec<ChunkId> =
            self.rescues.iter().filter(|(_, rescue)| is_due(rescue)).map(|(chunk, _)| *chunk).collect();
        for chunk in due {
            match table.facts(chunk) {
                Some(facts) if facts.files > 0 && self.records.contains_key(&chunk) => {
                    self.examine(chunk, table, now, effects);
                }
                _ => drop(self.rescues.remove(&chunk)),
            }
        }
    }

    /// Takes the next damaged copy back. The caller has seen that there is no usable copy and no running operation.
    pub(super) fn rescue(&mut self, chunk: ChunkId, facts: &Facts, now: u32, effects: &mut Effects) {
        let all_known = self.all_data_known(now);
        let Some(rescue) = self.rescues.get_mut(&chunk) else { return };
        if !all_known || rescue.next.is_none_or(|next| next > now) {
            return;
        }
        let Some(record) = self.records.get_mut(&chunk) else { return };
        let untried = record.copies.iter().find(|copy| {
            copy.state.kind == CopyKind::Invalid
                && self.servers.contains(copy.server)
                && !rescue.tried.contains(&copy.server)
        });
        let Some(&copy) = untried else {
            rescue.next = None;
            return;
        };
        rescue.tried.push(copy.server);
        rescue.next = Some(now.saturating_add(WAIT_SECONDS));
        record.set(copy.server, copy.state.with(CopyKind::Busy));
        record.operation = Operation::TakeBack;
        // If it succeeds the version rises at once, so that no other copy of this one can come between.
        record.interrupted = true;
        record.client_waits = false;
        self.operating.insert(chunk);
        effects.push(Effect::Notice(Notice::TakenBack { chunk, server: copy.server }));
        self.ask_version(chunk, copy.server, facts.version, effects);
    }
}
