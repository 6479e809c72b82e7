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

use super::copies::{Census, CopyKind, CopyState, Operation};
use super::{
    Chunks, Command, DELETED_REMEMBERED_MAX, Effect, Effects, Facts, LOCK_SECONDS, Mode, Notice, Replication, ServerId,
    Table,
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
        if self.walk_departing(table, now, effects) {
            return;
        }
        self.expire_replications(table, now, effects);
        let waiting = self.in_progress(now)
            || now < self.started.saturating_add(self.settings.delay_init_seconds)
            || (self.last_disconnect != 0
                && now < self.last_disconnect.saturating_add(self.settings.delay_disconnect_seconds))
            || self.servers.is_empty();
        if waiting {
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
        let labels_violated = |record: &super::copies::Record| self.labels_violated(chunk, record, table);
        let Some(record) = self.records.get(&chunk) else { return };
        if record.operation != Operation::None || (facts.locked_to != 0 && facts.locked_to >= now) {
            return;
        }
        let Some(queue) = classify(&facts, record.census(), || labels_violated(record)) else { return };
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
        let Some(facts) = table.facts(chunk) else {
            self.forsake(chunk);
            return Progress::Done;
        };
        let locked = facts.locked_to != 0 && facts.locked_to >= now;
        if locked {
            return Progress::Done;
        }
        if self.records.get(&chunk).is_some_and(|record| record.write_in_progress) {
            // A lock that ran out: the writer never said how far it came.
            self.write_ended(chunk);
            if let Some(record) = self.records.get_mut(&chunk) {
                record.needs_version_increase = true;
            }
        }
        let Some(record) = self.records.get_mut(&chunk) else {
            if facts.files == 0 {
                self.remove_if_unused(chunk, &facts, now, effects);
            } else {
                effects.push(Effect::Notice(Notice::Unavailable { chunk, other_copies: 0 }));
            }
            return Progress::Done;
        };
        if record.operation != Operation::None {
            return Progress::Done;
        }
        for copy in &mut record.copies {
            if copy.state.kind == CopyKind::Busy {
                copy.state = copy.state.with(CopyKind::Invalid); // nothing is under way that could answer
            }
        }
        let census = record.census();
        if facts.files == 0 {
            return self.delete_unused(chunk, &facts, now, effects);
        }
        if census.usable() == 0 {
            self.adopt_neighbour_version(chunk, &facts, census, now, effects);
            return Progress::Done;
        }
        let goal = usize::from(facts.goal);
        let wrong = census.valid >= goal && {
            let record = &self.records[&chunk];
            self.labels_violated(chunk, record, table)
        };
        if census.valid < goal || wrong {
            let progress = self.replicate(chunk, &facts, census, table, now, effects);
            if progress == Progress::Done {
                return progress;
            }
            // Nowhere to go: a bad copy may be what stands in the way.
            if !wrong && self.no_server_left(chunk) {
                if census.wrong_version + census.invalid > 0 {
                    self.delete_bad(chunk, effects);
                } else {
                    self.make_room_on_marked(chunk, census, effects);
                }
            }
            return progress;
        }
        if census.wrong_version + census.invalid > 0 {
            return self.delete_bad(chunk, effects);
        }
        if census.valid > goal {
            return self.delete_surplus(chunk, goal, table, effects);
        }
        Progress::Done
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
        let locked = facts.locked_to != 0 && facts.locked_to >= now;
        if facts.files == 0 && empty && !locked && self.all_data_known(now) && self.stale.insert(chunk) {
            self.records.remove(&chunk);
            self.remember_deleted(chunk);
            effects.push(Effect::RemoveRecord { chunk, version: facts.version });
        }
    }

    /// No file wants the chunk: every copy goes. Spec 41, 8.3, step 6.
    fn delete_unused(&mut self, chunk: ChunkId, facts: &Facts, now: u32, effects: &mut Effects) -> Progress {
        let copies = self.records[&chunk].copies.clone();
        if copies.is_empty() {
            self.remove_if_unused(chunk, facts, now, effects);
            return Progress::Done;
        }
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

    /// Damaged copies and copies of other versions go, as long as a good one stays.
    fn delete_bad(&mut self, chunk: ChunkId, effects: &mut Effects) -> Progress {
        let copies = self.records[&chunk].copies.clone();
        assert!(copies.iter().any(|copy| copy.state.kind == CopyKind::Valid), "bad copies go only beside a good one");
        let mut progress = Progress::Done;
        for copy in copies {
            if matches!(copy.state.kind, CopyKind::Invalid | CopyKind::WrongVersion(_)) {
                match self.delete(chunk, copy.server, Version::ANY, effects) {
                    true => self.statistics.deleted_invalid += 1,
                    false => progress = Progress::Blocked,
                }
            }
        }
        progress
    }

    /// More copies than wanted: those on the fullest servers go. Spec 41, 8.3, step 7.1.
    fn delete_surplus(&mut self, chunk: ChunkId, goal: usize, table: &impl Table, effects: &mut Effects) -> Progress {
        let record = &self.records[&chunk];
        let mut held: Vec<ServerId> =
            record.copies.iter().filter(|copy| copy.state == CopyState::VALID).map(|copy| copy.server).collect();
        let mut surplus = held.len().saturating_sub(goal);
        held.sort_by(|a, b| {
            let usage = |id: &ServerId| self.servers.get(*id).map_or(0.0, |server| server.usage());
            usage(b).total_cmp(&usage(a))
        });
        let needed: Vec<ServerId> = match table.labels(chunk) {
            // The emptier servers are preferred for the matching, so the fuller ones are free to go.
            Some(labels) => {
                let preferred: Vec<ServerId> = held.iter().rev().copied().collect();
                labels.assign(&self.servers, &preferred).into_iter().flatten().map(|index| preferred[index]).collect()
            }
            None => Vec::new(),
        };
        let mut progress = Progress::Done;
        for server in held {
            if surplus == 0 {
                break;
            }
            if needed.contains(&server) || self.servers.get(server).is_none_or(|server| server.spared()) {
                continue;
            }
            if !self.delete(chunk, server, Version::ANY, effects) {
                progress = Progress::Blocked;
                break;
            }
            self.statistics.deleted_overgoal += 1;
            surplus -= 1;
        }
        progress
    }

    /// Every server has the chunk already, some on a disk marked for removal: one such copy makes room for a regular
    /// one, as long as two good ones stay. Spec 41, 8.3, step 7.2.
    fn make_room_on_marked(&mut self, chunk: ChunkId, census: Census, effects: &mut Effects) {
        if census.valid + census.valid_marked < 3 {
            return;
        }
        let marked = self.records[&chunk].copies.iter().find(|copy| {
            copy.state.kind == CopyKind::Valid
                && copy.state.marked
                && self.servers.get(copy.server).is_some_and(|server| !server.almost_full())
        });
        if let Some(server) = marked.map(|copy| copy.server) {
            self.delete(chunk, server, Version::ANY, effects);
        }
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

    /// No good copy, but copies one version off: a crash came between the servers and the journal. Their version
    /// becomes the chunk's, in two cases. Spec 41, 8.3, step 2b, and stricter:
    ///
    /// - higher: the servers went on, the journal lost it. Nobody has anything newer.
    /// - lower: the journal went on and the servers may never have heard of it. Only if the last master ended just
    ///   then, no copy of the present version was seen since, none is damaged, no server is missing, and there are as
    ///   many as wanted; else these may be old bytes, and an error is better.
    fn adopt_neighbour_version(
        &mut self,
        chunk: ChunkId,
        facts: &Facts,
        census: Census,
        now: u32,
        effects: &mut Effects,
    ) {
        let record = &self.records[&chunk];
        let best = record.copies.iter().filter_map(|copy| match copy.state.kind {
            CopyKind::WrongVersion(version) => Some(version),
            _ => None,
        });
        let best = best.max();
        let neighbour = best.filter(|best| best.0.abs_diff(facts.version.0) == 1);
        let (as_many, all_known) = (census.wrong_version >= usize::from(facts.goal), self.all_data_known(now));
        let never_raised = self.unfinished.contains(&chunk) && census.invalid == 0;
        let safe = |best: &Version| match *best > facts.version {
            true => as_many || all_known,
            false => as_many && all_known && never_raised,
        };
        match neighbour.filter(safe) {
            Some(version) => {
                self.stale.insert(chunk);
                effects.push(Effect::SetVersion { chunk, version });
                effects.push(Effect::Notice(Notice::VersionAdopted { chunk, from: facts.version, to: version }));
                effects.push(Effect::Wake { chunk });
                self.adopt_version(chunk, version);
            }
            None => {
                effects.push(Effect::Notice(Notice::Unavailable { chunk, other_copies: census.all() }));
                self.rescue(chunk, facts, now, effects);
            }
        }
    }

    /// Makes one more copy. Spec 41, 8.4.
    fn replicate(
        &mut self,
        chunk: ChunkId,
        facts: &Facts,
        census: Census,
        table: &impl Table,
        now: u32,
        effects: &mut Effects,
    ) -> Progress {
        if self.absent_servers > 0 && self.absent_servers == self.absent_in_maintenance {
            return Progress::Blocked;
        }
        let endangered = census.valid + census.valid_marked == 1;
        let class = usize::from(!endangered);
        let Some(target) = self.target(chunk, endangered, class, table, now) else { return Progress::Blocked };
        let Some(source) = self.source(chunk, class, now) else { return Progress::Blocked };
        let record = self.records.get_mut(&chunk).expect("its copies were just looked at");
        record.set(target, CopyState::VALID.with(CopyKind::Busy));
        record.operation = Operation::Replicate { deadline: now.saturating_add(LOCK_SECONDS) };
        record.needs_version_increase = true;
        self.operating.insert(chunk);
        self.send_replication(chunk, facts.version, source, target, effects);
        Progress::Done
    }

    fn send_replication(
        &mut self,
        chunk: ChunkId,
        version: Version,
        source: ServerId,
        target: ServerId,
        effects: &mut Effects,
    ) {
        self.replications.insert((chunk, target), Replication { source, version });
        if let Some(server) = self.servers.get_mut(target) {
            server.replications_in += 1;
        }
        let Some(from) = self.servers.get_mut(source) else { return };
        from.replications_out += 1;
        let command = Command::Replicate { chunk, version, source_ip: from.ip, source_port: from.port };
        effects.push(Effect::Send { server: target, command });
    }

    /// A server for one more copy: without an entry of the chunk, with space, below its limit; by labels if there are
    /// any. Spec 41, 8.4.
    fn target(
        &mut self,
        chunk: ChunkId,
        endangered: bool,
        class: usize,
        table: &impl Table,
        now: u32,
    ) -> Option<ServerId> {
        let record = self.records.get(&chunk)?;
        let limit = self.settings.write_replications[class];
        let mut free: Vec<ServerId> = self
            .servers
            .iter()
            .filter(|(id, server)| {
                record.copy(*id).is_none()
                    && server.space.total > 0
                    && !server.almost_full()
                    && (endangered || !server.spared())
                    && below_limit(server.replications_in, limit, *id, now)
            })
            .map(|(id, _)| id)
            .collect();
        let labels = table.labels(chunk);
        let held: Vec<ServerId> =
            record.copies.iter().filter(|c| c.state == CopyState::VALID).map(|copy| copy.server).collect();
        self.random.shuffle(&mut free);
        // Spared servers only if there is no other.
        free.sort_by_key(|id| self.servers.get(*id).is_none_or(|server| server.spared()));
        let Some(labels) = labels else { return free.first().copied() };
        let candidates: Vec<ServerId> = held.iter().chain(&free).copied().collect();
        let assigned = labels.assign(&self.servers, &candidates);
        let fitting = assigned.iter().flatten().map(|&index| candidates[index]).find(|id| !held.contains(id));
        match labels.mode {
            Mode::Strict => fitting,
            // Copies must exist first; where they belong comes second.
            Mode::Standard | Mode::Loose if held.len() < labels.copies.len() => {
                fitting.or_else(|| free.first().copied())
            }
            Mode::Standard | Mode::Loose => fitting,
        }
    }

    /// A server to copy from: a good copy, preferably on a disk that stays.
    fn source(&mut self, chunk: ChunkId, class: usize, now: u32) -> Option<ServerId> {
        let record = self.records.get(&chunk)?;
        let limit = self.settings.read_replications[class];
        let mut sources: Vec<(bool, ServerId)> = record
            .copies
            .iter()
            .filter(|copy| copy.state.kind == CopyKind::Valid)
            .filter(|copy| {
                self.servers
                    .get(copy.server)
                    .is_some_and(|server| below_limit(server.replications_out, limit, copy.server, now))
            })
            .map(|copy| (copy.state.marked, copy.server))
            .collect();
        self.random.shuffle(&mut sources);
        sources.sort_by_key(|source| source.0);
        sources.first().map(|source| source.1)
    }

    /// Every server with space has an entry of this chunk, good or bad.
    fn no_server_left(&self, chunk: ChunkId) -> bool {
        let record = &self.records[&chunk];
        let valid = record.copies.iter().any(|copy| copy.state.kind == CopyKind::Valid);
        valid && self.servers.iter().all(|(id, server)| server.almost_full() || record.copy(id).is_some())
    }

    /// The valid copies do not fit the labels, and some connected server would fit better.
    fn labels_violated(&self, chunk: ChunkId, record: &super::copies::Record, table: &impl Table) -> bool {
        let Some(labels) = table.labels(chunk) else { return false };
        let held: Vec<ServerId> =
            record.copies.iter().filter(|c| c.state == CopyState::VALID).map(|copy| copy.server).collect();
        let unmatched = |candidates: &[ServerId]| {
            labels.assign(&self.servers, candidates).iter().filter(|assigned| assigned.is_none()).count()
        };
        let all: Vec<ServerId> = held
            .iter()
            .copied()
            .chain(self.servers.iter().filter(|(id, s)| record.copy(*id).is_none() && !s.almost_full()).map(|s| s.0))
            .collect();
        unmatched(&held) > unmatched(&all)
    }

    /// Moves a copy from a full server to an empty one. Spec 41, 8.6.
    fn rebalance(&mut self, chunk: ChunkId, table: &impl Table, now: u32, effects: &mut Effects) {
        if REPLICATING.clone().any(|queue| !self.queues[queue].is_empty()) {
            return;
        }
        let (Some(facts), Some(record)) = (table.facts(chunk), self.records.get(&chunk)) else { return };
        let census = record.census();
        let balanced = census.valid == usize::from(facts.goal) && census.all() == census.valid;
        let busy = record.operation != Operation::None || (facts.locked_to != 0 && facts.locked_to >= now);
        if facts.files == 0 || !balanced || busy || table.labels(chunk).is_some() {
            return;
        }
        let usage = |id: ServerId| self.servers.get(id).map_or(0.0, |server| server.usage());
        let source = record.copies.iter().map(|c| c.server).max_by(|a, b| usage(*a).total_cmp(&usage(*b)));
        let target = self
            .servers
            .iter()
            .filter(|(id, server)| {
                record.copy(*id).is_none() && !server.spared() && !server.almost_full() && server.space.total > 0
            })
            .map(|(id, _)| id)
            .min_by(|a, b| usage(*a).total_cmp(&usage(*b)));
        let (Some(source), Some(target)) = (source, target) else { return };
        if self.replications.keys().any(|&(running, _)| running == chunk) {
            return;
        }
        let difference = usage(source) - usage(target);
        let acceptable = self.settings.acceptable_difference;
        let class = if difference > 1.5 * acceptable { 3 } else { 2 };
        let (Some(from), Some(to)) = (self.servers.get(source), self.servers.get(target)) else { return };
        let allowed = difference > acceptable
            && below_limit(to.replications_in, self.settings.write_replications[class], target, now)
            && below_limit(from.replications_out, self.settings.read_replications[class], source, now)
            // A move must not overshoot: a chunk is a large part of a small disk.
            && difference > 2.0 * f64::from(wire::limits::CHUNK_BYTES) / to.space.total as f64;
        if !allowed {
            return;
        }
        if let Some(record) = self.records.get_mut(&chunk) {
            record.needs_version_increase = true;
        }
        self.send_replication(chunk, facts.version, source, target, effects);
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
                self.take_replication(chunk, target);
            }
            self.end_replication(chunk, effects);
            self.review(chunk, table, now);
        }
    }
}

/// Which queue, if any. `labels_violated` is asked only when nothing worse is found. Spec 41, 8.2.
fn classify(facts: &Facts, census: Census, labels_violated: impl FnOnce() -> bool) -> Option<Queue> {
    let goal = usize::from(facts.goal);
    let (valid, marked) = (census.valid, census.valid_marked);
    let bad = census.wrong_version + census.invalid;
    if facts.files == 0 {
        return (census.all() > census.deleting).then_some(Queue::Unused);
    }
    match valid + marked {
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
    labels_violated().then_some(Queue::WrongLabel)
}

/// A fraction of a limit holds in that fraction of seconds. Spec 41, 8.4.
fn below_limit(running: u32, limit: f64, server: ServerId, now: u32) -> bool {
    let fraction =
        (wire::Seed(u64::from(now) << 16 | u64::from(server.0)).next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    f64::from(running) + fraction < limit
}
