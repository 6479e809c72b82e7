//! Where the copies of chunks are, and what has to be done about them.
//!
//! The namespace knows which chunks exist, their versions and locks, and how many copies their files want: that is
//! durable. This module knows what comes and goes: connected servers, the copies that they reported, operations under
//! way, queues of chunks that need work. Nothing here is stored; after a start it is rebuilt from the servers' reports.
//!
//! Everything is a decision: events come in (a report, an answer, a client's wish, the passing of time), `Effects`
//! come out (send this command to that server, set this version in the journal, wake those who wait). Time is an
//! argument, and tie-breaking comes from a seed, so the same events give the same effects. Spec 41.
//!
//! What is deliberately stricter than MooseFS: a chunk that the namespace does not know is quarantined and never
//! deleted, unless the journal showed its deletion; and no copy goes while fewer valid ones than wanted would be left,
//! or while servers are coming or going.

mod choose;
mod client;
mod copies;
mod decision;
mod explain;
pub mod identity;
mod labels;
mod operations;
#[cfg(test)]
mod outages;
mod pace;
mod planner;
mod reports;
mod rescue;
mod servers;
mod settle;
#[cfg(test)]
mod simulation;
mod table;
#[cfg(test)]
mod tests;
mod topology;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use wire::{ChunkId, Ip4, Status, Version};

pub use client::WriteStep;
pub use copies::{Census, CopyKind, CopyState, Operation};
pub use decision::{Copying, Decision, Instead, Obstacle, Refusal, Rest};
pub use explain::Explanation;
pub use labels::{LabelMask, Labels, Mode};
pub use operations::Answered;
pub use planner::{QUEUES, Queue};
pub use reports::ReportOutcome;
pub use servers::{HeavyLoad, Server, ServerId, Servers, Space};
pub use table::labels_of;
pub use topology::Topology;

use copies::Record;

/// How long a writer's lock lives, and a replication may take, in seconds. Spec 41, constants.
pub const LOCK_SECONDS: u32 = 120;
/// A reported chunk id further than this above the next one is nonsense. Spec 41, 3.
const CHUNK_ID_JUMP_MAX: u64 = 1_000_000_000;
/// How many deleted chunks are remembered, so that a server that comes back late may drop its copies of them.
const DELETED_REMEMBERED_MAX: usize = 1 << 20;

/// What the namespace says about a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The highest version that any server was ever told of.
    pub version: Version,
    /// That of the last writer who was let in. Below `version` while a change was begun and not ended.
    pub floor: Version,
    /// Bytes to which the copies must be cut by the next change.
    pub cut: Option<u32>,
    /// Unix seconds; the chunk is under a writer's lock while this is not below now. 0 = never.
    pub locked_to: u32,
    /// File slots that refer to the chunk.
    pub files: u32,
    /// Copies wanted: keep or archive rule of the effective storage class. At least 1 if there are files.
    pub goal: u8,
}

/// The durable chunk table, as the namespace keeps it.
pub trait Table {
    fn facts(&self, chunk: ChunkId) -> Option<Facts>;
    /// The chunk behind a position, and its position. Positions begin at 0 and say nothing else; a chunk that was
    /// there all the time is met once on the way through.
    fn next_chunk(&self, position: u32) -> Option<(u32, ChunkId)>;
    /// The id that the next new chunk will get.
    fn next_chunk_id(&self) -> u64;
    /// Which servers may hold the chunk; `None` = any, the usual case.
    fn labels(&self, _chunk: ChunkId) -> Option<Labels> {
        None
    }
}

/// Policy of the planner. Spec 41, 15; defaults as there, delays as Mooring's configuration gives them.
#[derive(Clone, Debug)]
pub struct Settings {
    /// No replication or deletion in the first seconds after the start. REPLICATIONS_DELAY_INIT.
    pub delay_init_seconds: u32,
    /// Nor in the first seconds after a server was lost: it may be restarting. OPERATIONS_DELAY_DISCONNECT.
    pub delay_disconnect_seconds: u32,
    /// From then on the set of servers counts as settled.
    pub stable_after_seconds: u32,
    /// Replications to one server at once, by class: endangered, undergoal, slow rebalance, fast rebalance.
    pub write_replications: [f64; 4],
    /// The same from one server.
    pub read_replications: [f64; 4],
    /// Deletions outstanding at one server.
    pub deletions: u32,
    /// Chunks looked at in one second by queues and sweep.
    pub examined_per_second: u32,
    /// A sweep over all chunks takes at least this long.
    pub sweep_seconds: u32,
    /// Difference of usage, as a fraction, from which chunks are moved.
    pub acceptable_difference: f64,
    pub queue_length: usize,
    /// New chunks go first to servers nearer than this to their writer; 0 = no matter. CREATIONS_RESPECT_TOPOLOGY.
    pub creations_near: u32,
    /// 1: copies are made from the nearest source; 2: and rather in racks that have one. REPLICATIONS_RESPECT_TOPOLOGY.
    pub replications_near: u8,
    /// CHUNKS_UNIQUE_MODE.
    pub unique: Unique,
}

/// What no two copies of a chunk shall share, as far as there are servers enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Unique {
    #[default]
    No,
    Address,
    /// A server without a rack is one of its own.
    Rack,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            delay_init_seconds: 60,
            delay_disconnect_seconds: 10,
            stable_after_seconds: 10,
            write_replications: [2.0, 1.0, 1.0, 4.0],
            read_replications: [10.0, 5.0, 2.0, 5.0],
            deletions: 10,
            examined_per_second: 100_000,
            sweep_seconds: 300,
            acceptable_difference: 0.01,
            queue_length: 1_000_000,
            creations_near: 0,
            replications_near: 0,
            unique: Unique::No,
        }
    }
}

/// A packet to a chunkserver. Spec 40, 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Create {
        chunk: ChunkId,
        version: Version,
    },
    /// Version 0 = whatever version is there.
    Delete {
        chunk: ChunkId,
        version: Version,
    },
    SetVersion {
        chunk: ChunkId,
        new: Version,
        old: Version,
    },
    Duplicate {
        new: ChunkId,
        new_version: Version,
        old: ChunkId,
        old_version: Version,
    },
    Truncate {
        chunk: ChunkId,
        length_bytes: u32,
        new: Version,
        old: Version,
    },
    DuplicateTruncate {
        new: ChunkId,
        new_version: Version,
        old: ChunkId,
        old_version: Version,
        length_bytes: u32,
    },
    Replicate {
        chunk: ChunkId,
        version: Version,
        source_ip: Ip4,
        source_port: u16,
    },
}

/// What the caller has to do. In order; the journal's part before the commands leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Send {
        server: ServerId,
        command: Command,
    },
    /// Journal that copies are about to be given this version. `RAISE`.
    Raise {
        chunk: ChunkId,
        version: Version,
    },
    /// Journal that this is the chunk's version, and that what was begun is done. `SETVERSION`.
    SetVersion {
        chunk: ChunkId,
        version: Version,
    },
    /// No file, no copy: remove the chunk's record. `CHUNKDEL`.
    RemoveRecord {
        chunk: ChunkId,
        version: Version,
    },
    /// Chunk ids from this one on are free. `NEXTCHUNKID`.
    RaiseNextChunkId {
        next: u64,
    },
    /// The operation that a client asked for has ended.
    Finished {
        chunk: ChunkId,
        status: Status,
    },
    /// Requests that found this chunk busy may try again.
    Wake {
        chunk: ChunkId,
    },
    /// Worth a line in the log.
    Notice(Notice),
}

/// What an operator should hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A server reported a chunk that the namespace does not know. It is kept.
    Quarantined { server: ServerId, chunk: ChunkId, version: Version },
    /// A chunk id far above all that were given out.
    ChunkIdOutOfRange { server: ServerId, chunk: ChunkId },
    /// No good copy was left, so copies of a neighbouring version became the chunk.
    VersionAdopted { chunk: ChunkId, from: Version, to: Version },
    /// Every copy is damaged, and no server is missing: this one is asked whether it counts all the same.
    TakenBack { chunk: ChunkId, server: ServerId },
    /// A file's chunk has no usable copy now.
    Unavailable { chunk: ChunkId, other_copies: usize },
    /// An answer that nobody waited for.
    UnexpectedAnswer { server: ServerId, chunk: ChunkId },
}

pub type Effects = Vec<Effect>;

/// Shown to administrators. Spec 41, 8.8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    pub deleted_invalid: u32,
    pub deleted_unused: u32,
    /// On disks marked for removal.
    pub deleted_marked: u32,
    pub deleted_overgoal: u32,
    pub replicated_undergoal: u32,
    /// To servers that fit the labels better.
    pub replicated_labels: u32,
    pub rebalanced: u32,
    pub sweep_started: u32,
    pub sweep_ended: u32,
}

/// A running replication.
#[derive(Clone, Copy, Debug)]
struct Replication {
    source: ServerId,
    version: Version,
    /// Unix seconds.
    started: u32,
}

/// A lost server whose copies are being removed.
#[derive(Clone, Copy, Debug)]
struct Departing {
    server: ServerId,
    /// The next chunk to look at.
    from: ChunkId,
    /// The number of its departure if it announced its restart, else 0.
    departure: u16,
}

/// The volatile half of chunk management. See the module's header.
#[derive(Debug)]
pub struct Chunks {
    settings: Settings,
    topology: Topology,
    servers: Servers,
    records: BTreeMap<ChunkId, Record>,
    queues: [VecDeque<ChunkId>; QUEUES],
    /// Chunks with an operation under way: few.
    operating: BTreeSet<ChunkId>,
    /// Busy copies whose version is being changed.
    changing: BTreeMap<(ChunkId, ServerId), settle::Changing>,
    /// By chunk and destination.
    replications: BTreeMap<(ChunkId, ServerId), Replication>,
    /// Copies of chunks that the namespace does not know. Kept, listed, never deleted.
    quarantine: BTreeMap<(ChunkId, ServerId), Version>,
    /// Chunks whose deletion the journal showed, oldest first in the queue.
    deleted: BTreeSet<ChunkId>,
    deleted_order: VecDeque<ChunkId>,
    /// Chunks that were granted to a writer when the last master ended, and of whose present version no copy was seen
    /// since: the change of version may never have reached a server.
    unfinished: BTreeSet<ChunkId>,
    rescues: rescue::Rescues,
    /// Chunks with a change in doubt and a good copy.
    unsettled: BTreeMap<ChunkId, settle::Waiting>,
    /// Copies of deleted chunks that servers still reported.
    doomed: VecDeque<(ServerId, ChunkId)>,
    /// Copies to which a write found no room; see `report_write_failed`.
    full: BTreeSet<(ChunkId, ServerId)>,
    /// Lost servers whose copies are being removed, with the position of the walk.
    departing: Vec<Departing>,
    /// Departures of servers that announced their restart and are not back: number -> their csid.
    departures: BTreeMap<u16, u16>,
    last_departure: u16,
    /// Chunk reports came until then (Unix seconds). Spec 41, 2.
    receiving_new_until: u32,
    receiving_lost_until: u32,
    started: u32,
    /// Seconds of ticks since then, with their fractions: what paces are measured by.
    clock: f64,
    last_disconnect: u32,
    /// Known servers that are not connected, and how many of these are in maintenance.
    absent_servers: usize,
    absent_in_maintenance: usize,
    /// Servers that announced their restart, by csid.
    expected: BTreeSet<u16>,
    sweep_at: u32,
    sweep_credit: f64,
    /// Chunks whose durable facts this tick's effects change: not looked at again before the next tick.
    stale: BTreeSet<ChunkId>,
    statistics: Statistics,
    random: Random,
}

impl Chunks {
    /// `now`: Unix seconds of the start. `seed`: breaks ties.
    pub fn new(settings: Settings, now: u32, seed: u64) -> Chunks {
        Chunks {
            settings,
            topology: Topology::default(),
            servers: Servers::default(),
            records: BTreeMap::new(),
            queues: std::array::from_fn(|_| VecDeque::new()),
            operating: BTreeSet::new(),
            changing: BTreeMap::new(),
            replications: BTreeMap::new(),
            quarantine: BTreeMap::new(),
            deleted: BTreeSet::new(),
            deleted_order: VecDeque::new(),
            unfinished: BTreeSet::new(),
            rescues: rescue::Rescues::new(),
            unsettled: BTreeMap::new(),
            doomed: VecDeque::new(),
            full: BTreeSet::new(),
            departing: Vec::new(),
            departures: BTreeMap::new(),
            last_departure: 0,
            receiving_new_until: 0,
            receiving_lost_until: 0,
            started: now,
            clock: 0.0,
            last_disconnect: 0,
            absent_servers: 0,
            absent_in_maintenance: 0,
            expected: BTreeSet::new(),
            sweep_at: 0,
            sweep_credit: 0.0,
            stale: BTreeSet::new(),
            statistics: Statistics::default(),
            random: Random(seed),
        }
    }

    pub fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// Who is near whom, from now on.
    pub fn set_topology(&mut self, topology: Topology) {
        self.topology = topology;
    }

    pub fn servers(&self) -> &Servers {
        &self.servers
    }

    pub fn servers_mut(&mut self) -> &mut Servers {
        &mut self.servers
    }

    pub fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// Copies of chunks that the namespace does not know: chunk, server, version.
    pub fn quarantined(&self) -> impl Iterator<Item = (ChunkId, ServerId, Version)> + '_ {
        self.quarantine.iter().map(|(&(chunk, server), &version)| (chunk, server, version))
    }

    /// The same, from one chunk on.
    pub fn quarantined_from(&self, first: ChunkId) -> impl Iterator<Item = (ChunkId, ServerId, Version)> + '_ {
        self.quarantine.range((first, ServerId(0))..).map(|(&(chunk, server), &version)| (chunk, server, version))
    }

    /// Chunks waiting in each queue, most urgent first.
    pub fn queue_lengths(&self) -> [usize; QUEUES] {
        std::array::from_fn(|queue| self.queues[queue].len())
    }

    /// How many known servers are not connected, and how many of these are in maintenance. Spec 41, 2 and 8.4.
    pub fn set_absent_servers(&mut self, absent: usize, in_maintenance: usize) {
        self.absent_servers = absent;
        self.absent_in_maintenance = in_maintenance;
    }

    /// The servers (csid) that announced their restart: until they are back, or this is taken from them, chunks of which
    /// they had a copy are not copied. Those of them that are away are in the numbers of `set_absent_servers` too.
    pub fn set_expected_servers(&mut self, expected: BTreeSet<u16>) {
        self.expected = expected;
    }

    /// The journal showed that this chunk was deleted: copies that turn up later may go. Spec 41, 13.
    pub fn remember_deleted(&mut self, chunk: ChunkId) {
        if self.deleted.insert(chunk) {
            self.deleted_order.push_back(chunk);
        }
        if self.deleted_order.len() > DELETED_REMEMBERED_MAX
            && let Some(oldest) = self.deleted_order.pop_front()
        {
            self.deleted.remove(&oldest);
        }
    }

    /// The replayed journal ended with a grant of this chunk that nobody let go of.
    pub fn remember_unfinished(&mut self, chunk: ChunkId) {
        self.unfinished.insert(chunk);
    }

    /// Servers are registering, reporting or being removed: the view is not complete. Spec 41, 2.
    pub fn in_progress(&self, now: u32) -> bool {
        self.incomplete(now).is_some()
    }

    /// All that any server could report is known. Spec 41, 2, "csalldata".
    pub fn all_data_known(&self, now: u32) -> bool {
        !self.in_progress(now) && self.absent_servers == 0 && self.settled(now)
    }

    /// The set of servers is not changing. Spec 41, 2, "csstable".
    pub fn settled(&self, now: u32) -> bool {
        now >= self.started.saturating_add(self.settings.stable_after_seconds) && self.servers.registering() == 0
    }

    /// Spec 41, 2, "cschanges".
    fn servers_changing(&self, now: u32) -> bool {
        !self.settled(now) || now < self.receiving_new_until
    }
}

/// SplitMix64: ties are broken by it, nothing depends on its quality.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        let mut seed = wire::Seed(self.0);
        let value = seed.next_u64();
        self.0 = seed.0;
        value
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            let pick = usize::try_from(self.next() % (end as u64 + 1)).expect("below a slice's length");
            items.swap(pick, end);
        }
    }
}
