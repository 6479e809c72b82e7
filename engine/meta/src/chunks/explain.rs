//! What people are told about a chunk: what is known, what would be done with it now, what that waits for.
//!
//! Nothing is decided here a second time: the decision is the planner's own (`decision`), and so are the refusals of
//! servers. Words are made by whoever prints them.

use wire::ChunkId;

use super::decision::{Class, Decision, Obstacle, Refusal, Rest};
use super::{Chunks, CopyState, Facts, LabelMask, Mode, Queue, ServerId, Table};

/// A place in a queue is looked for so far, since queues may be a million long.
const PLACE_MAX: usize = 10_000;

/// Everything about one chunk. Copies and servers in order of their slots.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// None: the namespace does not know the chunk.
    pub facts: Option<Facts>,
    pub copies: Vec<(ServerId, CopyState)>,
    /// Where a class wants its copies, each with the server that serves it now. Empty: any servers will do.
    pub wanted: Vec<(LabelMask, Option<ServerId>)>,
    pub mode: Option<Mode>,
    /// Nothing at all is copied or deleted now.
    pub rest: Option<Rest>,
    pub decision: Decision,
    /// The queue in which it waits, and how many are before it in that queue, or so many and more.
    pub queued: Option<(Queue, usize)>,
    /// Copies under way: from, to, and since when.
    pub copying: Vec<(ServerId, ServerId, u32)>,
    /// If no copy can be made: why none of the servers takes one, and why none gives one.
    pub targets: Vec<(ServerId, Refusal)>,
    pub sources: Vec<(ServerId, Refusal)>,
    /// If copies are to go: servers that have as many deletions before them as they may.
    pub at_deletion_limit: Vec<ServerId>,
    /// Every copy is damaged, and one may be taken back at this time (Unix seconds).
    pub rescue_at: Option<u32>,
    /// Copies of a chunk that the namespace does not know, with the version that each server told.
    pub quarantined: Vec<(ServerId, wire::Version)>,
    /// The journal showed its deletion.
    pub was_deleted: bool,
    /// A chunk that is in no queue is looked at once in so many seconds.
    pub sweep_seconds: u32,
    /// How many known servers are away, and how many of these are in maintenance.
    pub absent: (usize, usize),
}

impl Chunks {
    /// Why this chunk is as it is. Spec 41, 8.
    pub fn explain(&self, chunk: ChunkId, table: &impl Table, now: u32) -> Explanation {
        let record = self.tidied(chunk);
        let decision = self.decide(chunk, record.as_ref(), table, now, &mut self.random.clone());
        let copies: Vec<(ServerId, CopyState)> =
            record.iter().flat_map(|record| &record.copies).map(|copy| (copy.server, copy.state)).collect();
        let labels = self.rule(chunk, table);
        let held = record.as_ref().map(|record| record.valid_servers()).unwrap_or_default();
        let wanted = labels.as_ref().map_or_else(Vec::new, |labels| {
            let assigned = self.assign(labels, &held);
            let server = |index: &Option<usize>| index.map(|index| held[index]);
            labels.copies.iter().cloned().zip(assigned.iter().map(server)).collect()
        });
        let (mut targets, mut sources) = (Vec::new(), Vec::new());
        if let (Decision::Stuck { obstacle, .. }, Some(record)) = (&decision, &record) {
            let census = record.census();
            let class = if census.valid + census.valid_marked == 1 { Class::Endangered } else { Class::Undergoal };
            let all = || self.servers.iter().map(|(id, _)| id);
            if *obstacle != Obstacle::NoSource {
                targets.extend(all().filter_map(|id| Some((id, self.refusal_as_target(record, id, class, now)?))));
            } else {
                let holders = all().filter(|id| record.copy(*id).is_some());
                sources.extend(holders.filter_map(|id| Some((id, self.refusal_as_source(record, id, class, now)?))));
            }
        }
        let going: Vec<ServerId> = match &decision {
            Decision::DeleteSurplus(servers) => servers.clone(),
            Decision::DeleteUnused | Decision::DeleteBad => copies.iter().map(|copy| copy.0).collect(),
            _ => Vec::new(),
        };
        let is_at_limit =
            |id: &ServerId| self.servers.get(*id).is_some_and(|server| server.deletions >= self.settings.deletions);
        let range = (chunk, ServerId(0))..=(chunk, ServerId(u16::MAX));
        Explanation {
            facts: table.facts(chunk),
            mode: labels.as_ref().map(|labels| labels.mode),
            wanted,
            rest: self.rest(now),
            queued: self.place_in_queue(chunk),
            copying: self
                .replications
                .range(range.clone())
                .map(|(&(_, target), running)| (running.source, target, running.started))
                .collect(),
            targets,
            sources,
            at_deletion_limit: going.into_iter().filter(is_at_limit).collect(),
            rescue_at: self.rescue_time(chunk),
            quarantined: self.quarantine.range(range).map(|(key, version)| (key.1, *version)).collect(),
            was_deleted: self.deleted.contains(&chunk),
            sweep_seconds: self.settings.sweep_seconds,
            absent: (self.absent_servers, self.absent_in_maintenance),
            copies,
            decision,
        }
    }

    fn place_in_queue(&self, chunk: ChunkId) -> Option<(Queue, usize)> {
        let queue = self.records.get(&chunk)?.queued?;
        let mut ahead = self.queues[queue as usize].iter().take(PLACE_MAX);
        Some((queue, ahead.position(|waiting| *waiting == chunk).unwrap_or(PLACE_MAX)))
    }
}
