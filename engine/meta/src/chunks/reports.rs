//! Servers come, report what they have, lose it, and go. Spec 41, 3 and 9; Spec 40, 3, 6 and 11.

use wire::{ChunkId, ChunkReport, Version};

use super::copies::{CopyKind, CopyState, Operation};
use super::pace::End;
use super::{CHUNK_ID_JUMP_MAX, Chunks, Departing, Effect, Effects, Notice, Server, ServerId, Table};

/// Records of lost servers removed in one tick.
const DEPARTING_STEP: usize = 20_000;
/// A report of new chunks keeps the planner at rest for so long. Spec 40, 7.4.
const RECEIVING_NEW_SECONDS: u32 = 3;
const RECEIVING_LOST_SECONDS: u32 = 1;

/// What came of a list of reported chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReportOutcome {
    pub good: usize,
    pub wrong_version: usize,
    pub quarantined: usize,
    pub doomed: usize,
    pub ignored: usize,
}

impl Chunks {
    /// BEGIN was accepted. The slot is free of earlier holders' copies.
    pub fn connect(&mut self, server: Server) -> Option<ServerId> {
        let departing = |id: ServerId| self.departing.iter().any(|departing| departing.server == id);
        let id = (0..=u16::MAX).map(ServerId).find(|&id| !self.servers.contains(id) && !departing(id))?;
        self.departures.retain(|_, csid| *csid != server.csid);
        self.servers.insert(id, server);
        Some(id)
    }

    /// END: the server has reported all that it has. Returns whether no other registration is under way.
    pub fn registered(&mut self, server: ServerId) -> bool {
        if let Some(server) = self.servers.get_mut(server) {
            server.registering = false;
        }
        self.servers.registering() == 0
    }

    /// The connection is gone, and with it all copies of this server; chunks under operation first. Spec 41, 9.
    pub fn disconnect(&mut self, server: ServerId, table: &impl Table, now: u32, effects: &mut Effects) {
        let Some(csid) = self.servers.remove(server).map(|server| server.csid) else { return };
        let departure = if self.expected.contains(&csid) { self.note_departure(csid) } else { 0 };
        self.last_disconnect = now;
        let concerned: Vec<(ChunkId, ServerId)> = self
            .replications
            .iter()
            .filter(|&(&(_, target), replication)| target == server || replication.source == server)
            .map(|(&key, _)| key)
            .collect();
        for (chunk, target) in concerned {
            self.take_replication(chunk, target, End::Otherwise);
            // A destination that lost its source will answer with an error; its copy is not waited for.
            if let Some(record) = self.records.get_mut(&chunk)
                && matches!(record.operation, Operation::Replicate { .. })
            {
                if target != server && record.copy(target).is_some_and(|state| state.kind == CopyKind::Busy) {
                    record.set(target, CopyState::INVALID);
                }
                self.end_replication(chunk, effects);
            }
        }
        self.doomed.retain(|&(other, _)| other != server);
        self.full.retain(|&(_, other)| other != server);
        let quarantined: Vec<_> = self.quarantine.keys().filter(|key| key.1 == server).copied().collect();
        for key in quarantined {
            self.quarantine.remove(&key);
        }
        for chunk in self.operating.clone() {
            self.remove_copy(chunk, server, table, now, effects);
        }
        self.departing.push(Departing { server, from: ChunkId(0), departure });
    }

    /// A number for the departure of this server.
    fn note_departure(&mut self, csid: u16) -> u16 {
        self.last_departure = self.last_departure.checked_add(1).unwrap_or(1);
        self.departures.insert(self.last_departure, csid);
        self.last_departure
    }

    /// Removes copies of lost servers, some records at a time. Returns whether more is left.
    pub(super) fn walk_departing(&mut self, table: &impl Table, now: u32, effects: &mut Effects) -> bool {
        let Some(departing) = self.departing.pop() else { return false };
        let Departing { server, from, departure } = departing;
        let mut last = None;
        let mut held: Vec<ChunkId> = Vec::new();
        for (&chunk, record) in self.records.range_mut(from..).take(DEPARTING_STEP) {
            last = Some(chunk);
            if let Some(state) = record.copy(server) {
                record.note_departure(state, departure);
                held.push(chunk);
            }
        }
        for chunk in held {
            self.remove_copy(chunk, server, table, now, effects);
        }
        if let Some(last) = last {
            self.departing.push(Departing { from: ChunkId(last.0.saturating_add(1)), ..departing });
        }
        !self.departing.is_empty()
    }

    /// "I have these chunks": at registration, or new. Spec 41, 3.
    pub fn report_chunks(
        &mut self,
        server: ServerId,
        reports: &[ChunkReport],
        table: &impl Table,
        now: u32,
        effects: &mut Effects,
    ) -> ReportOutcome {
        let mut outcome = ReportOutcome::default();
        if !self.servers.contains(server) {
            return outcome;
        }
        self.receiving_new_until = now.saturating_add(RECEIVING_NEW_SECONDS);
        let next = table.next_chunk_id();
        let mut highest_unknown = 0;
        for report in reports {
            let chunk = report.chunkid;
            let marked = report.version & Version::MARKED_FOR_REMOVAL != 0;
            let version = Version(report.version & !Version::MARKED_FOR_REMOVAL);
            if chunk.0 == 0 || chunk.0 > next.saturating_add(CHUNK_ID_JUMP_MAX) {
                effects.push(Effect::Notice(Notice::ChunkIdOutOfRange { server, chunk }));
                outcome.ignored += 1;
                continue;
            }
            let Some(facts) = table.facts(chunk) else {
                if self.deleted.contains(&chunk) {
                    self.doomed.push_back((server, chunk));
                    outcome.doomed += 1;
                } else {
                    if self.quarantine.insert((chunk, server), version).is_none() {
                        effects.push(Effect::Notice(Notice::Quarantined { server, chunk, version }));
                    }
                    outcome.quarantined += 1;
                    highest_unknown = highest_unknown.max(chunk.0);
                }
                continue;
            };
            let record = self.records.entry(chunk).or_default();
            match record.copy_mut(server) {
                Some(state) if state.is_usable() => {
                    state.marked = marked;
                    outcome.good += 1;
                }
                Some(_) => outcome.ignored += 1,
                None => {
                    let kind = facts.kind_of(version);
                    let good = facts.is_good(version);
                    record.set(server, CopyState { kind, marked });
                    record.needs_version_increase = true;
                    if good
                        && record.write_in_progress
                        && let Some(server) = self.servers.get_mut(server)
                    {
                        server.writes += 1;
                    }
                    if kind == CopyKind::Valid {
                        self.unfinished.remove(&chunk);
                    }
                    *(if good { &mut outcome.good } else { &mut outcome.wrong_version }) += 1;
                }
            }
            self.review(chunk, table, now);
        }
        if highest_unknown >= next {
            effects.push(Effect::RaiseNextChunkId { next: highest_unknown + 1 });
        }
        outcome
    }

    /// These copies are damaged.
    pub fn report_damaged(
        &mut self,
        server: ServerId,
        chunks: &[ChunkId],
        table: &impl Table,
        now: u32,
        effects: &mut Effects,
    ) {
        for &chunk in chunks {
            if !self.servers.contains(server) || table.facts(chunk).is_none() {
                continue;
            }
            let record = self.records.entry(chunk).or_default();
            let was = record.copy(server);
            if was.is_some_and(|state| state.kind == CopyKind::Deleting) {
                continue;
            }
            record.set(server, CopyState { kind: CopyKind::Invalid, marked: was.is_some_and(|state| state.marked) });
            if record.census().usable() == 0 {
                self.expect_rescue(chunk, now);
            }
            self.copy_went(chunk, server, was, table, now, effects);
        }
    }

    /// Writes to these copies found no room; they hold what they held before.
    ///
    /// If another copy may take the write, the chunk goes on without this one, which is made anew where there is room.
    /// Otherwise all copies stay as they are, and the next writer is told that there is no space.
    pub fn report_write_failed(
        &mut self,
        server: ServerId,
        chunks: &[ChunkId],
        table: &impl Table,
        now: u32,
        effects: &mut Effects,
    ) {
        for &chunk in chunks {
            let Some(record) = self.records.get_mut(&chunk) else { continue };
            let Some(was) = record.copy(server).filter(|state| state.kind == CopyKind::Valid) else { continue };
            if !self.servers.contains(server) || table.facts(chunk).is_none() {
                continue;
            }
            self.full.insert((chunk, server));
            let has_room =
                |id: ServerId| self.servers.get(id).is_some_and(|other| other.space.used < other.space.total);
            let takes_it = |copy: &super::copies::Copy| {
                copy.state.kind == CopyKind::Valid
                    && !self.full.contains(&(chunk, copy.server))
                    && has_room(copy.server)
            };
            if record.copies.iter().any(takes_it) {
                self.full.remove(&(chunk, server));
                record.set(server, was.with(CopyKind::Invalid));
                self.copy_went(chunk, server, Some(was), table, now, effects);
            }
        }
    }

    /// Whether a write found no room on any usable copy of this chunk since this was asked: told to one writer, so that
    /// the next one tries again.
    pub(super) fn take_full(&mut self, chunk: ChunkId) -> bool {
        let Some(record) = self.records.get(&chunk) else { return false };
        let mut usable = record.copies.iter().filter(|copy| copy.state.is_usable()).peekable();
        let is_full = usable.peek().is_some() && usable.all(|copy| self.full.contains(&(chunk, copy.server)));
        if is_full {
            self.full.retain(|(other, _)| *other != chunk);
        }
        is_full
    }

    /// These copies are gone.
    pub fn report_lost(
        &mut self,
        server: ServerId,
        chunks: &[ChunkId],
        table: &impl Table,
        now: u32,
        effects: &mut Effects,
    ) {
        for &chunk in chunks {
            self.quarantine.remove(&(chunk, server));
            if self.records.get(&chunk).is_some_and(|record| record.copy(server).is_some()) {
                self.receiving_lost_until = now.saturating_add(RECEIVING_LOST_SECONDS);
                self.remove_copy(chunk, server, table, now, effects);
            }
        }
    }

    /// Removes the copy on `server` and draws the consequences.
    pub(super) fn remove_copy(
        &mut self,
        chunk: ChunkId,
        server: ServerId,
        table: &impl Table,
        now: u32,
        effects: &mut Effects,
    ) {
        let Some(record) = self.records.get_mut(&chunk) else { return };
        let Some(was) = record.remove(server) else { return };
        self.copy_went(chunk, server, Some(was), table, now, effects);
    }

    /// A copy that was `was` is not that any more: the version must rise, a running operation may end.
    fn copy_went(
        &mut self,
        chunk: ChunkId,
        server: ServerId,
        was: Option<CopyState>,
        table: &impl Table,
        now: u32,
        effects: &mut Effects,
    ) {
        self.changing.remove(&(chunk, server));
        let Some(record) = self.records.get_mut(&chunk) else { return };
        record.needs_version_increase = true;
        if was.is_some_and(|state| state.is_usable()) && record.write_in_progress {
            self.servers.lower(server, |server| &mut server.writes);
        }
        let was_busy = was.is_some_and(|state| state.kind == CopyKind::Busy);
        if was_busy && matches!(record.operation, Operation::Replicate { .. }) {
            self.take_replication(chunk, server, End::Otherwise);
            self.end_replication(chunk, effects);
        } else if was_busy || record.is_changing() {
            record.interrupted = true;
            record.only_no_space = false;
            self.finish_if_all_answered(chunk, table, now, effects);
        }
        self.review_or_remove(chunk, table, now, effects);
    }

    /// Copies of servers that are gone are dropped as soon as their chunk is looked at.
    pub(super) fn forget_departed(&mut self, chunk: ChunkId) {
        let Some(record) = self.records.get_mut(&chunk) else { return };
        let before = record.copies.len();
        for departing in &self.departing {
            if let Some(state) = record.copy(departing.server) {
                record.note_departure(state, departing.departure);
            }
        }
        record.copies.retain(|copy| self.servers.contains(copy.server));
        if record.copies.len() != before {
            record.needs_version_increase = true;
        }
    }
}
