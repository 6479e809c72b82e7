//! What to do next: queues of chunks that need work, most urgent first, and a slow sweep for what no event told.
//!
//! An event (a report, an answer, an unlock) reviews its chunk and queues it if something is wrong with it. A tick
//! takes chunks from the queues within the budget and does one step for each, as far as the servers' limits allow:
//! what cannot be done now goes back to the end of its queue. Spec 41, 8.
//!
//! A replication blocks writers of its chunk for as long as it runs; a rebalancing one does not, and its result is
//! dropped if the chunk changed meanwhile.

use std::time::Duration;

use wire::{ChunkId, Version};

use super::copies::{CopyKind, CopyState, Operation, Record};
use super::decision::{Class, Copying, Decision, Instead};
use super::pace::End;
use super::{
    Chunks, Command, DELETED_REMEMBERED_MAX, Effect, Effects, Facts, LOCK_SECONDS, Notice, Replication, ServerId, Table,
};

/// Why a chunk needs work, most urgent first. Spec 41, 8.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Queue {
    /// One copy left of three or more.
    EndangeredHighGoal = 0,
    /// One copy left of two.
    Endangered = 1,
    /// One copy left, others on disks marked for removal.
    UndergoalMarked = 2,
    /// Copies on disks marked for removal.
    Marked = 3,
    Undergoal = 4,
    WrongLabel = 5,
    Overgoal = 6,
    /// Damaged copies, or copies of another version.
    Cleanup = 7,
    /// No file refers to the chunk.
    Unused = 8,
}

/// Queues.
pub const QUEUES: usize = 9;

/// The first queues, whose work is replication.
const REPLICATING: std::ops::RangeInclusive<usize> = 0..=5;

const ALL: [Queue; QUEUES] = [
    Queue::EndangeredHighGoal,
    Queue::Endangered,
    Queue::UndergoalMarked,
    Queue::Marked,
    Queue::Undergoal,
    Queue::WrongLabel,
    Queue::Overgoal,
    Queue::Cleanup,
    Queue::Unused,
];

/// In one tick a queue is left after so many chunks in a row that could not be helped.
const BLOCKED_MAX: usize = 64;

/// What one look at a chunk gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing more to do now; the next event reviews it again.
    Done,
    /// There is work, but limits forbid it now.
    Blocked,
}

impl Chunks {
    /// Time passed: remove copies of lost servers, serve the queues, go on with the sweep.
    ///
    /// `elapsed`: since the last tick. Call it some tens of times per second.
    pub fn tick(&mut self, table: &impl Table, now: u32, elapsed: Duration, effects: &mut Effects) {
        self.stale.clear();
        self.clock += elapsed.as_secs_f64();
        if self.walk_departing(table, now, effects) {
            return;
        }
        self.expire_replications(table, now, effects);
        if self.rest(now).is_some() {
            return;
        }
        let budget = (f64::from(self.settings.examined_per_second) * elapsed.as_secs_f64()).ceil() as usize;
        self.serve_queues(budget, table, now, effects);
        self.serve_rescues(table, now, effects);
        self.drop_doomed(effects);
        self.sweep(budget, elapsed, table, now, effects);
    }

    /// Queues the chunk if it needs work.
    pub(super) fn review(&mut self, chunk: ChunkId, table: &impl Table, now: u32) {
        let Some(facts) = table.facts(chunk) else { return };
        let Some(record) = self.records.get(&chunk) else { return };
        if record.operation != Operation::None || facts.is_locked(now) {
            return;
        }
        let misplaced = || self.misplaced(self.rule(chunk, table).as_ref(), record);
        let Some(queue) = classify(&facts, record, misplaced) else { return };
        if record.queued.is_some_and(|queued| queued <= queue) {
            return;
        }
        self.enqueue(chunk, queue);
    }

    /// As `review`; a chunk without copies and files loses its record. Spec 41, 13.
    pub(super) fn review_or_remove(&mut self, chunk: ChunkId, table: &impl Table, now: u32, effects: &mut Effects) {
        match table.facts(chunk) {
            Some(facts) if facts.files == 0 => {
                self.remove_if_unused(chunk, &facts, now, effects);
                self.review(chunk, table, now);
            }
            _ => self.review(chunk, table, now),
        }
    }

    fn enqueue(&mut self, chunk: ChunkId, queue: Queue) {
        let Some(record) = self.records.get_mut(&chunk) else { return };
        record.queued = Some(queue);
        let waiting = &mut self.queues[queue as usize];
        waiting.push_back(chunk);
        if waiting.len() > self.settings.queue_length
            && let Some(dropped) = waiting.pop_front()
            && let Some(record) = self.records.get_mut(&dropped)
        {
            record.queued = None; // the sweep finds it again
        }
    }

    fn serve_queues(&mut self, budget: usize, table: &impl Table, now: u32, effects: &mut Effects) {
        let mut left = budget;
        for queue in ALL {
            let index = queue as usize;
            // Every queue gets a share, so that a million undergoal chunks do not keep deletions waiting for ever.
            let mut share = if index < QUEUES - 1 { left - left / 4 } else { left };
            let mut in_a_row = 0;
            let mut turn = self.queues[index].len();
            while share > 0 && turn > 0 && in_a_row < BLOCKED_MAX {
                let Some(chunk) = self.queues[index].pop_front() else { break };
                turn -= 1;
                let Some(record) = self.records.get_mut(&chunk) else { continue };
                if record.queued != Some(queue) {
                    continue; // it moved to another queue
                }
                record.queued = None;
                share -= 1;
                left = left.saturating_sub(1);
                let sent_before = effects.len();
                match self.examine(chunk, table, now, effects) {
                    Progress::Done => in_a_row = 0,
                    Progress::Blocked => {
                        in_a_row = if effects.len() > sent_before { 0 } else { in_a_row + 1 };
                        self.review(chunk, table, now);
                    }
                }
            }
        }
    }

    /// Looks at every chunk once in `sweep_seconds`, for what no event tells: locks that ran out, balance.
    fn sweep(&mut self, budget: usize, elapsed: Duration, table: &impl Table, now: u32, effects: &mut Effects) {
        let rate = self.records.len().max(1000) as f64 / f64::from(self.settings.sweep_seconds.max(1));
        self.sweep_credit = (self.sweep_credit + rate * elapsed.as_secs_f64()).min(budget as f64);
        while self.sweep_credit >= 1.0 {
            let Some((position, chunk)) = table.next_chunk(self.sweep_at) else {
                self.statistics.sweep_started = self.statistics.sweep_ended;
                self.statistics.sweep_ended = now;
                self.sweep_at = 0;
                self.sweep_credit = 0.0;
                return;
            };
            self.sweep_credit -= 1.0;
            self.sweep_at = position;
            if self.examine(chunk, table, now, effects) == Progress::Blocked {
                self.review(chunk, table, now);
            } else {
                self.rebalance(chunk, table, now, effects);
            }
        }
    }

    /// One step for one chunk. Spec 41, 8.3.
    pub(super) fn examine(&mut self, chunk: ChunkId, table: &impl Table, now: u32, effects: &mut Effects) -> Progress {
        if self.stale.contains(&chunk) {
            return Progress::Blocked;
        }
        self.forget_departed(chunk);
        let facts = table.facts(chunk);
        if facts.is_some_and(|facts| !facts.is_locked(now)) {
            if self.records.get(&chunk).is_some_and(|record| record.write_in_progress) {
                // A lock that ran out: the writer never said how far it came.
                self.write_ended(chunk);
                if let Some(record) = self.records.get_mut(&chunk) {
                    record.needs_version_increase = true;
                }
            }
            if let Some(record) = self.records.get_mut(&chunk) {
                record.give_up_busy();
            }
        }
        if let Some(facts) = &facts {
            self.note_unsettled(chunk, facts, now);
        }
        let mut random = self.random.clone();
        let decision = self.decide(chunk, self.records.get(&chunk), table, now, &mut random);
        self.random = random;
        let Some(facts) = facts else {
            self.forsake(chunk);
            return Progress::Done;
        };
        self.carry_out(decision, chunk, (&facts, table), now, effects)
    }

    fn carry_out(
        &mut self,
        decision: Decision,
        chunk: ChunkId,
        (facts, table): (&Facts, &impl Table),
        now: u32,
        effects: &mut Effects,
    ) -> Progress {
        match decision {
            Decision::Unknown | Decision::Locked { .. } | Decision::Operating(_) | Decision::AsWanted => Progress::Done,
            Decision::RemoveRecord => {
                self.remove_if_unused(chunk, facts, now, effects);
                Progress::Done
            }
            Decision::DeleteUnused => self.delete_unused(chunk, facts, effects),
            Decision::Adopt(version) => {
                self.stale.insert(chunk);
                effects.push(Effect::SetVersion { chunk, version });
                effects.push(Effect::Notice(Notice::VersionAdopted { chunk, from: facts.version, to: version }));
                effects.push(Effect::Wake { chunk });
                self.adopt_version(chunk, version);
                Progress::Done
            }
            Decision::Settle => {
                self.settle(chunk, table, effects);
                Progress::Done
            }
            Decision::Unsettled { .. } => Progress::Blocked,
            Decision::NoCopies | Decision::Unavailable => {
                let other_copies = self.census(chunk).all();
                effects.push(Effect::Notice(Notice::Unavailable { chunk, other_copies }));
                self.rescue(chunk, facts, now, effects);
                Progress::Done
            }
            Decision::Replicate(Copying { source, target, .. }) => {
                let record = self.records.get_mut(&chunk).expect("its copies were just looked at");
                record.set(target, CopyState::VALID.with(CopyKind::Busy));
                record.operation = Operation::Replicate { deadline: now.saturating_add(LOCK_SECONDS) };
                record.needs_version_increase = true;
                self.operating.insert(chunk);
                self.send_replication(chunk, facts.version, (source, target), now, effects);
                Progress::Done
            }
            Decision::Stuck { instead, .. } => {
                match instead {
                    None => {}
                    Some(Instead::DeleteBad) => drop(self.delete_bad(chunk, facts, effects)),
                    Some(Instead::MakeRoom(server)) => drop(self.delete(chunk, server, facts.version, effects)),
                }
                Progress::Blocked
            }
            Decision::DeleteBad => self.delete_bad(chunk, facts, effects),
            Decision::DeleteSurplus(servers) => self.delete_surplus(chunk, facts, &servers, effects),
        }
    }

    /// The namespace knows the chunk no more, though copies are known: they are kept, unless the deletion was seen.
    fn forsake(&mut self, chunk: ChunkId) {
        let Some(record) = self.records.remove(&chunk) else { return };
        for copy in record.copies {
            if self.deleted.contains(&chunk) {
                self.doomed.push_back((copy.server, chunk));
            } else {
                self.quarantine.insert((chunk, copy.server), Version(0));
            }
        }
    }

    fn remove_if_unused(&mut self, chunk: ChunkId, facts: &Facts, now: u32, effects: &mut Effects) {
        let empty = self.records.get(&chunk).is_none_or(|r| r.copies.is_empty() && r.operation == Operation::None);
        if facts.files == 0 && empty && !facts.is_locked(now) && self.all_data_known(now) && self.stale.insert(chunk) {
            self.records.remove(&chunk);
            self.remember_deleted(chunk);
            effects.push(Effect::RemoveRecord { chunk, version: facts.version });
        }
    }

    /// No file wants the chunk: every copy goes. Spec 41, 8.3, step 6.
    fn delete_unused(&mut self, chunk: ChunkId, facts: &Facts, effects: &mut Effects) -> Progress {
        let copies = self.records[&chunk].copies.clone();
        let mut progress = Progress::Done;
        for copy in copies {
            let version = match copy.state.kind {
                CopyKind::Valid => facts.version,
                CopyKind::Deleting => continue,
                _ => Version::ANY,
            };
            match self.delete(chunk, copy.server, version, effects) {
                true => self.statistics.deleted_unused += 1,
                false => progress = Progress::Blocked,
            }
        }
        progress
    }

    /// Damaged copies and older ones go, as long as a good one stays. Newer ones never do: they may be what an older copy
    /// of the metadata does not know.
    fn delete_bad(&mut self, chunk: ChunkId, facts: &Facts, effects: &mut Effects) -> Progress {
        let copies = self.records[&chunk].copies.clone();
        assert!(copies.iter().any(|copy| copy.state.kind == CopyKind::Valid), "bad copies go only beside a good one");
        let mut progress = Progress::Done;
        for copy in copies {
            let version = match copy.state.kind {
                CopyKind::Invalid => Version::ANY,
                CopyKind::WrongVersion(version) if version < facts.version => version,
                _ => continue,
            };
            match self.delete(chunk, copy.server, version, effects) {
                true => self.statistics.deleted_invalid += 1,
                false => progress = Progress::Blocked,
            }
        }
        progress
    }

    fn delete_surplus(
        &mut self,
        chunk: ChunkId,
        facts: &Facts,
        servers: &[ServerId],
        effects: &mut Effects,
    ) -> Progress {
        for &server in servers {
            if !self.delete(chunk, server, facts.version, effects) {
                return Progress::Blocked;
            }
            self.statistics.deleted_overgoal += 1;
        }
        Progress::Done
    }

    /// Sends a deletion if the server's limit allows it. Returns whether it did.
    fn delete(&mut self, chunk: ChunkId, server: ServerId, version: Version, effects: &mut Effects) -> bool {
        let limit = self.settings.deletions;
        let Some(target) = self.servers.get_mut(server) else { return false };
        if target.deletions >= limit {
            return false;
        }
        target.deletions += 1;
        let record = self.records.get_mut(&chunk).expect("its copies were just looked at");
        let state = record.copy(server).expect("its copies were just looked at");
        record.set(server, state.with(CopyKind::Deleting));
        record.needs_version_increase = true;
        effects.push(Effect::Send { server, command: Command::Delete { chunk, version } });
        true
    }

    /// Copies that servers still had of chunks whose deletion the journal showed.
    fn drop_doomed(&mut self, effects: &mut Effects) {
        for _ in 0..self.doomed.len().min(DELETED_REMEMBERED_MAX) {
            let Some((server, chunk)) = self.doomed.pop_front() else { return };
            let limit = self.settings.deletions;
            let Some(target) = self.servers.get_mut(server) else { continue };
            if target.deletions >= limit {
                self.doomed.push_back((server, chunk));
                return;
            }
            target.deletions += 1;
            effects.push(Effect::Send { server, command: Command::Delete { chunk, version: Version::ANY } });
        }
    }

    fn send_replication(
        &mut self,
        chunk: ChunkId,
        version: Version,
        (source, target): (ServerId, ServerId),
        now: u32,
        effects: &mut Effects,
    ) {
        self.replications.insert((chunk, target), Replication { source, version, started: now });
        let clock = self.clock;
        if let Some(server) = self.servers.get_mut(target) {
            server.pace_in.begin(clock, server.replications_in);
            server.replications_in += 1;
        }
        let Some(from) = self.servers.get_mut(source) else { return };
        from.pace_out.begin(clock, from.replications_out);
        from.replications_out += 1;
        let command = Command::Replicate { chunk, version, source_ip: from.ip, source_port: from.port };
        effects.push(Effect::Send { server: target, command });
    }

    /// Moves a copy from a full server to an empty one. Spec 41, 8.6.
    fn rebalance(&mut self, chunk: ChunkId, table: &impl Table, now: u32, effects: &mut Effects) {
        if REPLICATING.clone().any(|queue| !self.queues[queue].is_empty()) {
            return;
        }
        let (Some(facts), Some(record)) = (table.facts(chunk), self.records.get(&chunk)) else { return };
        let census = record.census();
        let balanced = census.valid == usize::from(facts.goal) && census.all() == census.valid;
        let busy = record.operation != Operation::None || facts.is_locked(now);
        if facts.files == 0 || !balanced || busy {
            return;
        }
        let usage = |id: ServerId| self.servers.get(id).map_or(0.0, |server| server.usage());
        // A spared server's copy is never deleted, so copying it away would not empty it. Of equals the first, as in
        // `surplus`.
        let may_go = record.valid_servers().into_iter().filter(|&id| self.servers.get(id).is_some_and(|s| !s.spared()));
        let source = may_go.rev().max_by(|a, b| usage(*a).total_cmp(&usage(*b)));
        let Some(source) = source else { return };
        if self.replications.keys().any(|&(running, _)| running == chunk) {
            return;
        }
        // Where a copy may be is not given up for the sake of balance.
        let labels = self.rule(chunk, table);
        let fits = |target: ServerId| {
            labels.as_ref().is_none_or(|labels| {
                let held = record.valid_servers();
                let moved: Vec<ServerId> = held.iter().map(|&id| if id == source { target } else { id }).collect();
                self.unmatched(labels, &moved) <= self.unmatched(labels, &held)
            })
        };
        // A copy is moved only if the one that it is moved from will be the one that goes: else it goes round for ever.
        let leaves = |target: ServerId| {
            let mut copied = record.clone();
            copied.set(target, CopyState::VALID);
            self.surplus(&copied, usize::from(facts.goal), labels.as_ref()) == [source]
        };
        let mut targets: Vec<ServerId> = self
            .servers
            .iter()
            .filter(|(id, server)| {
                record.copy(*id).is_none() && !server.spared() && !server.almost_full() && server.space.total > 0
            })
            .map(|(id, _)| id)
            .filter(|&id| usage(source) - usage(id) > self.settings.acceptable_difference)
            .collect();
        targets.sort_by(|a, b| usage(*a).total_cmp(&usage(*b)));
        let Some(target) = targets.into_iter().find(|&id| fits(id) && leaves(id)) else { return };
        let difference = usage(source) - usage(target);
        let acceptable = self.settings.acceptable_difference;
        let class = if difference > 1.5 * acceptable { Class::FastRebalance } else { Class::SlowRebalance };
        let Some(to) = self.servers.get(target) else { return };
        let allowed = self.too_busy_to_take(target, class, now).is_none()
            && self.too_busy_to_give(source, class, now).is_none()
            // A move must not overshoot: a chunk is a large part of a small disk.
            && difference > 2.0 * f64::from(wire::limits::CHUNK_BYTES) / to.space.total as f64;
        if !allowed {
            return;
        }
        if let Some(record) = self.records.get_mut(&chunk) {
            record.needs_version_increase = true;
        }
        self.send_replication(chunk, facts.version, (source, target), now, effects);
    }

    /// A replication that is not answered in time is given up; whatever comes of it is not trusted.
    fn expire_replications(&mut self, table: &impl Table, now: u32, effects: &mut Effects) {
        let overdue: Vec<ChunkId> = self
            .operating
            .iter()
            .filter(|chunk| {
                matches!(self.records.get(chunk).map(|r| r.operation),
                    Some(Operation::Replicate { deadline }) if deadline < now)
            })
            .copied()
            .collect();
        for chunk in overdue {
            let Some(record) = self.records.get_mut(&chunk) else { continue };
            let busy: Vec<ServerId> =
                record.copies.iter().filter(|c| c.state.kind == CopyKind::Busy).map(|copy| copy.server).collect();
            for server in busy {
                record.set(server, CopyState::INVALID);
            }
            let targets: Vec<ServerId> =
                self.replications.keys().filter(|key| key.0 == chunk).map(|key| key.1).collect();
            for target in targets {
                self.take_replication(chunk, target, End::GivenUp);
            }
            self.end_replication(chunk, effects);
            self.review(chunk, table, now);
        }
        // Those that only balance have no operation.
        let lost: Vec<(ChunkId, ServerId)> = self
            .replications
            .iter()
            .filter(|(_, replication)| replication.started.saturating_add(LOCK_SECONDS) < now)
            .map(|(&key, _)| key)
            .collect();
        for (chunk, target) in lost {
            self.take_replication(chunk, target, End::GivenUp);
            if let Some(record) = self.records.get_mut(&chunk)
                && record.copy(target).is_none()
            {
                record.set(target, CopyState::INVALID);
                record.needs_version_increase = true;
            }
            self.review(chunk, table, now);
        }
    }
}

/// Which queue, if any. `misplaced` is asked only when nothing worse is found. Spec 41, 8.2.
fn classify(facts: &Facts, record: &Record, misplaced: impl FnOnce() -> bool) -> Option<Queue> {
    let census = record.census();
    let goal = usize::from(facts.goal);
    let (valid, marked) = (census.valid, census.valid_marked);
    let bad = record.bad(facts.version);
    if facts.files == 0 {
        return (census.all() > census.deleting).then_some(Queue::Unused);
    }
    match valid + marked {
        _ if !facts.is_settled() && census.good() > 0 => return Some(Queue::Endangered),
        0 => return (census.wrong_version > 0).then_some(Queue::Cleanup),
        1 if goal > 2 => return Some(Queue::EndangeredHighGoal),
        1 if goal == 2 => return Some(Queue::Endangered),
        _ => {}
    }
    if valid < goal {
        return Some(match (valid, marked) {
            (1, 1..) => Queue::UndergoalMarked,
            (_, 1..) => Queue::Marked,
            _ => Queue::Undergoal,
        });
    }
    if bad > 0 {
        return Some(Queue::Cleanup);
    }
    if valid > goal {
        return Some(Queue::Overgoal);
    }
    misplaced().then_some(Queue::WrongLabel)
}
