//! What is to be done about one chunk now; if nothing, why not.
//!
//! Pure: nothing is changed here. The planner carries a decision out, and `explain` tells it to people, so that what
//! they read is what happens. Spec 41, 8.3 and 8.4.

use wire::{Ip4, Version};

use super::copies::{Census, CopyKind, CopyState, Operation, Record};
use super::labels::Candidate;
use super::pace::Pace;
use super::{ChunkId, Chunks, Facts, LOCK_SECONDS, LabelMask, Labels, Mode, Random, Server, ServerId, Table, Unique};

/// Why the planner rests altogether. Spec 41, 8.1. Times are Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// So many servers have begun to register and have not listed all their chunks.
    Registering(usize),
    /// Copies of a lost server are still being removed.
    Departing,
    /// A server reported new or lost chunks just now.
    Receiving {
        until: u32,
    },
    /// REPLICATIONS_DELAY_INIT.
    Started {
        until: u32,
    },
    /// REPLICATIONS_DELAY_DISCONNECT.
    Disconnected {
        until: u32,
    },
    NoServers,
}

/// What becomes of a chunk at the next look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The namespace does not know the chunk (any more).
    Unknown,
    /// A writer has it, until this time at most (Unix seconds).
    Locked { until: u32 },
    /// Servers were told to do something with it and have not all answered.
    Operating(Operation),
    /// No file and no copy: nothing keeps its record.
    RemoveRecord,
    /// No file wants it: its copies go.
    DeleteUnused,
    /// A file wants it, and no server that is here has a copy of any kind.
    NoCopies,
    /// No good copy; those of this neighbouring version become the chunk.
    Adopt(Version),
    /// No good copy, and the bad ones prove nothing.
    Unavailable,
    /// A change was begun and its end is not known: it is ended on the copies that are here.
    Settle,
    /// The same, but more copies are waited for until this time (Unix seconds). They can be read meanwhile.
    Unsettled { until: u32 },
    /// One more copy is made.
    Replicate(Copying),
    /// One more copy, or one elsewhere, is wanted and cannot be made now.
    Stuck { elsewhere: bool, obstacle: Obstacle, instead: Option<Instead> },
    /// Damaged copies and copies of other versions go, since there are enough good ones.
    DeleteBad,
    /// More copies than wanted: these go. Empty if all that could go are on servers that are spared.
    DeleteSurplus(Vec<ServerId>),
    /// Nothing is wrong with it.
    AsWanted,
}

/// From where to where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copying {
    pub source: ServerId,
    pub target: ServerId,
    /// Only one good copy is left.
    pub endangered: bool,
}

/// Why no copy can be made now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// All servers that are away are in maintenance: they will be back.
    Maintenance,
    /// No server can take it; `explain` has the reason of each.
    NoTarget,
    /// Servers could take it, but not one with the labels that are wanted.
    NoMatchingTarget,
    /// No server that has it can be read from.
    NoSource,
}

/// What is done where no copy can be made because every server has one of some kind already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instead {
    /// Bad copies stand in the way: they go.
    DeleteBad,
    /// This copy, on a disk marked for removal, makes room for a regular one.
    MakeRoom(ServerId),
}

/// Why a server does not take a copy, or give one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It has an entry of the chunk already.
    HasCopy(CopyState),
    /// It has no copy that could be read.
    NoCopy,
    /// It has no disk, or has not told of one.
    NoDisk,
    /// Not more than 1 % is free.
    AlmostFull,
    /// It says itself that it has too much to do.
    Overloaded,
    Maintenance,
    /// CHUNKS_WRITE_REP_LIMIT or CHUNKS_READ_REP_LIMIT: so many copies are under way.
    Limit {
        running: u32,
    },
    /// It is slow: it would not complete more within seconds than is under way.
    Slow {
        running: u32,
        millis_per_copy: u32,
    },
}

/// The classes of CHUNKS_WRITE_REP_LIMIT and CHUNKS_READ_REP_LIMIT. Spec 41, 8.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Endangered = 0,
    Undergoal = 1,
    SlowRebalance = 2,
    FastRebalance = 3,
}

impl Facts {
    /// A writer has the chunk.
    pub(super) fn is_locked(&self, now: u32) -> bool {
        self.locked_to != 0 && self.locked_to >= now
    }
}

impl Chunks {
    /// Why nothing is copied or deleted at all, if so.
    pub fn rest(&self, now: u32) -> Option<Rest> {
        let started = self.started.saturating_add(self.settings.delay_init_seconds);
        let disconnected = self.last_disconnect.saturating_add(self.settings.delay_disconnect_seconds);
        match self.incomplete(now) {
            Some(rest) => Some(rest),
            None if now < started => Some(Rest::Started { until: started }),
            None if self.last_disconnect != 0 && now < disconnected => Some(Rest::Disconnected { until: disconnected }),
            None if self.servers.is_empty() => Some(Rest::NoServers),
            None => None,
        }
    }

    /// What is not known of the servers that are here, or just went. Spec 41, 2, "in progress".
    pub(super) fn incomplete(&self, now: u32) -> Option<Rest> {
        let receiving = self.receiving_new_until.max(self.receiving_lost_until);
        match self.servers.registering() {
            0 if !self.departing.is_empty() => Some(Rest::Departing),
            0 if now < receiving => Some(Rest::Receiving { until: receiving }),
            0 => None,
            servers => Some(Rest::Registering(servers)),
        }
    }

    /// What the chunk's record says once what no longer counts is left out; the planner does the same before it decides.
    pub(super) fn tidied(&self, chunk: ChunkId) -> Option<Record> {
        let mut record = self.records.get(&chunk)?.clone();
        record.copies.retain(|copy| self.servers.contains(copy.server));
        record.give_up_busy();
        Some(record)
    }

    /// The decision about a chunk whose record is tidied. `random` breaks ties.
    pub(super) fn decide(
        &self,
        chunk: ChunkId,
        record: Option<&Record>,
        table: &impl Table,
        now: u32,
        random: &mut Random,
    ) -> Decision {
        let Some(facts) = table.facts(chunk) else { return Decision::Unknown };
        if facts.is_locked(now) {
            return Decision::Locked { until: facts.locked_to };
        }
        let Some(record) = record else {
            return if facts.files == 0 { Decision::RemoveRecord } else { Decision::NoCopies };
        };
        if record.operation != Operation::None {
            return Decision::Operating(record.operation);
        }
        let census = record.census();
        if facts.files == 0 {
            return if record.copies.is_empty() { Decision::RemoveRecord } else { Decision::DeleteUnused };
        }
        if census.usable() == 0 {
            return match self.adoptable(chunk, &facts, record, now) {
                Some(version) => Decision::Adopt(version),
                None if census.all() == 0 => Decision::NoCopies,
                None => Decision::Unavailable,
            };
        }
        if !facts.is_settled() {
            return match self.settles_at(chunk, &facts, record, now) {
                None => Decision::Settle,
                Some(until) => Decision::Unsettled { until },
            };
        }
        let goal = usize::from(facts.goal);
        let bad = record.bad(facts.version);
        let labels = self.rule(chunk, table);
        let elsewhere = census.valid >= goal && self.misplaced(labels.as_ref(), record);
        if census.valid < goal || elsewhere {
            return match self.copying(record, census, labels.as_ref(), now, random) {
                Ok(copying) => Decision::Replicate(copying),
                Err(obstacle) => {
                    let full = !elsewhere && self.no_server_left(record, labels.as_ref());
                    let instead = match (full, bad) {
                        (false, _) => None,
                        (true, 1..) => Some(Instead::DeleteBad),
                        (true, 0) => self.room_on_marked(record, census).map(Instead::MakeRoom),
                    };
                    Decision::Stuck { elsewhere, obstacle, instead }
                }
            };
        }
        if bad > 0 {
            return Decision::DeleteBad;
        }
        if census.valid > goal {
            return Decision::DeleteSurplus(self.surplus(record, goal, labels.as_ref()));
        }
        Decision::AsWanted
    }

    /// Which servers may hold the chunk; None = any. No two copies in one place is a rule too. Spec 41, 7.5.
    pub(super) fn rule(&self, chunk: ChunkId, table: &impl Table) -> Option<Labels> {
        let labels = table.labels(chunk);
        if labels.is_some() || self.settings.unique == Unique::No {
            return labels;
        }
        let goal = usize::from(table.facts(chunk)?.goal);
        Some(Labels { mode: Mode::Standard, copies: vec![LabelMask::default(); goal] })
    }

    /// The servers that serve the wanted copies: for each its index in `servers`, of which earlier ones are preferred.
    pub(super) fn assign(&self, labels: &Labels, servers: &[ServerId]) -> Vec<Option<usize>> {
        let candidates: Vec<Candidate> = servers.iter().map(|&id| self.candidate(id)).collect();
        labels.assign(&candidates)
    }

    /// Wanted copies that none of these servers serves.
    pub(super) fn unmatched(&self, labels: &Labels, servers: &[ServerId]) -> usize {
        self.assign(labels, servers).iter().filter(|assigned| assigned.is_none()).count()
    }

    fn candidate(&self, id: ServerId) -> Candidate {
        let Some(server) = self.servers.get(id) else { return Candidate { labels: 0, group: u64::from(id.0) } };
        let alone = u64::from(id.0);
        let group = match self.settings.unique {
            Unique::No => alone,
            Unique::Address => 1 << 32 | u64::from(server.ip.0),
            Unique::Rack => self.topology.rack(server.ip).map_or(alone, |rack| 2 << 32 | rack as u64),
        };
        Candidate { labels: server.labels, group }
    }

    /// No good copy, but copies of other versions, of which one becomes the chunk's, in two cases. Spec 41, 8.3, step 2b,
    /// and stricter:
    ///
    /// - higher: the servers went on, and this master's journal is older. Nobody has anything newer.
    /// - one lower: the journal went on and the servers may never have heard of it. Only for lines of programs that did
    ///   not write down how a change ended, if the last master ended just then, no copy of the present version was seen
    ///   since, none is damaged, no server is missing, and there are as many as wanted; else these may be old bytes, and
    ///   an error is better.
    fn adoptable(&self, chunk: ChunkId, facts: &Facts, record: &Record, now: u32) -> Option<Version> {
        let versions = record.copies.iter().filter_map(|copy| match copy.state.kind {
            CopyKind::WrongVersion(version) => Some(version),
            _ => None,
        });
        let best = versions.max()?;
        let census = record.census();
        let agree = record.copies.iter().filter(|copy| copy.state.kind == CopyKind::WrongVersion(best)).count();
        let (as_many, all_known) = (agree >= usize::from(facts.goal), self.all_data_known(now));
        let never_raised = self.unfinished.contains(&chunk) && census.invalid == 0;
        let safe = match best > facts.version {
            true => as_many || all_known,
            false => best.next() == facts.version && as_many && all_known && never_raised,
        };
        safe.then_some(best)
    }

    /// From where to where one more copy could be made now. Spec 41, 8.4.
    fn copying(
        &self,
        record: &Record,
        census: Census,
        labels: Option<&Labels>,
        now: u32,
        random: &mut Random,
    ) -> Result<Copying, Obstacle> {
        if self.waits_for_maintenance() || self.is_awaited(record) {
            return Err(Obstacle::Maintenance);
        }
        let endangered = census.valid + census.valid_marked == 1;
        let class = if endangered { Class::Endangered } else { Class::Undergoal };
        let sources = self.sources(record, class, now, random);
        let target = self.target(record, class, labels, &sources, now, random)?;
        let nearest = |id: &ServerId| match self.settings.replications_near {
            0 => 0,
            _ => self.distance(*id, target),
        };
        let marked = |id: &ServerId| record.copy(*id).is_some_and(|state| state.marked);
        // The first of equal ones is as good as any: their order was drawn by lot.
        let source = sources.iter().copied().min_by_key(|id| (marked(id), nearest(id))).ok_or(Obstacle::NoSource)?;
        Ok(Copying { source, target, endangered })
    }

    /// A server for one more copy: by labels if there are any. Spec 41, 8.4.
    fn target(
        &self,
        record: &Record,
        class: Class,
        labels: Option<&Labels>,
        sources: &[ServerId],
        now: u32,
        random: &mut Random,
    ) -> Result<ServerId, Obstacle> {
        let mut free: Vec<ServerId> = self
            .servers
            .iter()
            .map(|(id, _)| id)
            .filter(|&id| self.refusal_as_target(record, id, class, now).is_none())
            .collect();
        random.shuffle(&mut free);
        // Spared servers only if there is no other; then, if so set, racks that the copy need not leave.
        let near = |id: ServerId| sources.iter().any(|source| self.distance(*source, id) == 1);
        free.sort_by_key(|id| {
            let is_spared = self.servers.get(*id).is_none_or(|server| server.spared());
            (is_spared, self.settings.replications_near == 2 && !near(*id))
        });
        let any = free.first().copied().ok_or(Obstacle::NoTarget);
        let Some(labels) = labels else { return any };
        let held = record.valid_servers();
        let candidates: Vec<ServerId> = held.iter().chain(&free).copied().collect();
        let assigned = self.assign(labels, &candidates);
        let fitting = assigned.iter().flatten().map(|&index| candidates[index]).find(|id| !held.contains(id));
        match (fitting, labels.mode) {
            (Some(server), _) => Ok(server),
            // Copies must exist first; where they belong comes second.
            (None, Mode::Standard | Mode::Loose) if held.len() < labels.copies.len() => any,
            (None, _) => Err(if free.is_empty() { Obstacle::NoTarget } else { Obstacle::NoMatchingTarget }),
        }
    }

    /// Why this server gets no copy now, labels aside.
    pub(super) fn refusal_as_target(&self, record: &Record, id: ServerId, class: Class, now: u32) -> Option<Refusal> {
        let server = self.servers.get(id)?;
        let may_be_spared = class == Class::Endangered;
        match record.copy(id) {
            Some(state) => Some(Refusal::HasCopy(state)),
            None if server.space.total == 0 => Some(Refusal::NoDisk),
            None if server.almost_full() => Some(Refusal::AlmostFull),
            None if server.maintenance && !may_be_spared => Some(Refusal::Maintenance),
            None if server.spared() && !may_be_spared => Some(Refusal::Overloaded),
            None => self.too_busy_to_take(id, class, now),
        }
    }

    /// Servers that a copy can be read from now, in an order drawn by lot.
    fn sources(&self, record: &Record, class: Class, now: u32, random: &mut Random) -> Vec<ServerId> {
        let held = record.copies.iter().map(|copy| copy.server);
        let mut sources: Vec<ServerId> =
            held.filter(|&id| self.refusal_as_source(record, id, class, now).is_none()).collect();
        random.shuffle(&mut sources);
        sources
    }

    /// How far servers are from each other. Spec 41, 10.1.
    fn distance(&self, one: ServerId, other: ServerId) -> u32 {
        let ip = |id| self.servers.get(id).map_or(Ip4(0), |server| server.ip);
        self.topology.distance(ip(one), ip(other))
    }

    /// Why nothing is copied from this server now.
    pub(super) fn refusal_as_source(&self, record: &Record, id: ServerId, class: Class, now: u32) -> Option<Refusal> {
        match record.copy(id) {
            Some(CopyState { kind: CopyKind::Valid, .. }) if self.servers.contains(id) => {
                self.too_busy_to_give(id, class, now)
            }
            _ => Some(Refusal::NoCopy),
        }
    }

    pub(super) fn too_busy_to_take(&self, id: ServerId, class: Class, now: u32) -> Option<Refusal> {
        let server = self.servers.get(id)?;
        let limit = self.settings.write_replications[class as usize];
        too_busy(server.replications_in, limit, (&server.pace_in, class), id, now)
    }

    pub(super) fn too_busy_to_give(&self, id: ServerId, class: Class, now: u32) -> Option<Refusal> {
        let server = self.servers.get(id)?;
        let limit = self.settings.read_replications[class as usize];
        too_busy(server.replications_out, limit, (&server.pace_out, class), id, now)
    }

    /// There is a good copy, and every server with space that could take one more has an entry of this chunk, good or
    /// bad. If only some servers are allowed, no other one counts.
    fn no_server_left(&self, record: &Record, labels: Option<&Labels>) -> bool {
        let valid = record.copies.iter().any(|copy| copy.state.kind == CopyKind::Valid);
        valid && {
            let free = self.servers_without(record);
            match labels.filter(|labels| labels.mode == Mode::Strict) {
                None => free.is_empty(),
                Some(labels) => {
                    let held = record.valid_servers();
                    let all: Vec<ServerId> = held.iter().copied().chain(free).collect();
                    self.unmatched(labels, &all) == self.unmatched(labels, &held)
                }
            }
        }
    }

    /// Servers with space and without an entry of the chunk.
    fn servers_without(&self, record: &Record) -> Vec<ServerId> {
        let without = |(id, server): &(ServerId, &Server)| record.copy(*id).is_none() && !server.almost_full();
        self.servers.iter().filter(without).map(|(id, _)| id).collect()
    }

    /// All servers that are away are in maintenance, and an operator said so of one of them: nothing is copied because
    /// of them.
    fn waits_for_maintenance(&self) -> bool {
        let is_away = |csid: &&u16| self.servers.by_csid(**csid).is_none();
        let by_operator = self.absent_in_maintenance.saturating_sub(self.expected.iter().filter(is_away).count());
        by_operator > 0 && self.absent_servers == self.absent_in_maintenance
    }

    /// A server that announced its restart took a copy of this chunk with it, and is not back.
    fn is_awaited(&self, record: &Record) -> bool {
        self.departures.get(&record.awaited).is_some_and(|csid| self.expected.contains(csid))
    }

    /// Every server has the chunk already, some on a disk marked for removal: one such copy makes room for a regular
    /// one, as long as two good ones stay. Spec 41, 8.3, step 7.2.
    fn room_on_marked(&self, record: &Record, census: Census) -> Option<ServerId> {
        if census.valid + census.valid_marked < 3 {
            return None;
        }
        let has_room = |id: ServerId| self.servers.get(id).is_some_and(|server| !server.almost_full());
        let marked = record
            .copies
            .iter()
            .find(|copy| copy.state.kind == CopyKind::Valid && copy.state.marked && has_room(copy.server));
        marked.map(|copy| copy.server)
    }

    /// The valid copies do not fit the labels, and some connected server would fit better.
    pub(super) fn misplaced(&self, labels: Option<&Labels>, record: &Record) -> bool {
        let Some(labels) = labels else { return false };
        let held = record.valid_servers();
        let all: Vec<ServerId> = held.iter().copied().chain(self.servers_without(record)).collect();
        self.unmatched(labels, &held) > self.unmatched(labels, &all)
    }

    /// Which copies are too many: those on the fullest servers. Spec 41, 8.3, step 7.1.
    pub(super) fn surplus(&self, record: &Record, goal: usize, labels: Option<&Labels>) -> Vec<ServerId> {
        let mut held = record.valid_servers();
        let count = held.len().saturating_sub(goal);
        held.sort_by(|a, b| {
            let usage = |id: &ServerId| self.servers.get(*id).map_or(0.0, |server| server.usage());
            usage(b).total_cmp(&usage(a))
        });
        let needed: Vec<ServerId> = match labels {
            // The emptier servers are preferred for the matching, so the fuller ones are free to go.
            Some(labels) => {
                let preferred: Vec<ServerId> = held.iter().rev().copied().collect();
                self.assign(labels, &preferred).into_iter().flatten().map(|index| preferred[index]).collect()
            }
            None => Vec::new(),
        };
        held.retain(|&server| {
            !needed.contains(&server) && self.servers.get(server).is_some_and(|server| !server.spared())
        });
        held.truncate(count);
        held
    }
}

/// Whether the settings' limit, or what the server is able to do, forbids one more. A chunk that is endangered gets one
/// place beyond what the server is able to do, where all will surely be done before they are given up: what else is under
/// way there may be for balance only.
fn too_busy(running: u32, limit: f64, (pace, class): (&Pace, Class), id: ServerId, now: u32) -> Option<Refusal> {
    if !below_limit(running, limit, id, now) {
        return Some(Refusal::Limit { running });
    }
    let millis_per_copy = pace.seconds_per_copy().map_or(0, |seconds| (seconds * 1000.0) as u32);
    let is_in_time = u64::from(millis_per_copy) * u64::from(running + 1) <= u64::from(LOCK_SECONDS) * 1000 / 2;
    let more = if class == Class::Endangered && is_in_time { 1.0 } else { 0.0 };
    let able = limit.min(pace.allows(limit) + more);
    (!below_limit(running, able, id, now)).then_some(Refusal::Slow { running, millis_per_copy })
}

/// A fraction of a limit holds in that fraction of seconds. Spec 41, 8.4.
fn below_limit(running: u32, limit: f64, server: ServerId, now: u32) -> bool {
    let fraction =
        (wire::Seed(u64::from(now) << 16 | u64::from(server.0)).next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    f64::from(running) + fraction < limit
}
