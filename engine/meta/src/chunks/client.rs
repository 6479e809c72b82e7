//! What clients ask about chunks: may I write, where are the copies, I am done. Spec 41, 4, 5.3 and 10.

use wire::limits::LOCATIONS_MAX;
use wire::{ChunkId, Ip4, Location, Status, Version};

use super::copies::{Copy, CopyKind, Operation, Record};
use super::{Chunks, Effect, Effects, ServerId, Table};
use crate::arena::Memory;

/// How a write or truncation goes on. The journal's line comes between this and the operation's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteStep {
    /// All copies have the present version: granted at once.
    Grant,
    /// The copies must be changed first: version raised, or duplicated if the chunk is shared.
    Operation,
}

impl Chunks {
    /// May this chunk be written now? Spec 41, 4.2 and 4.3.
    ///
    /// `shared`: more than one file slot refers to it. `continues`: the writer holds the lock (CONTINUEOP).
    /// Errors: NOCHUNK; LOCKED, CHUNKBUSY (park and try again); EAGAIN; CHUNKLOST, CSNOTPRESENT; NOSPACE if the last write
    /// found no room on any copy.
    pub fn before_write(
        &mut self,
        chunk: ChunkId,
        shared: bool,
        continues: bool,
        table: &impl Table,
        now: u32,
    ) -> Result<WriteStep, Status> {
        let facts = table.facts(chunk).ok_or(Status::NOCHUNK)?;
        if facts.locked_to >= now && facts.locked_to != 0 && !continues {
            return Err(Status::LOCKED);
        }
        self.forget_departed(chunk);
        let changing = self.servers_changing(now);
        let all_known = self.all_data_known(now);
        let is_lost = all_known && !self.rescue_is_possible(chunk);
        let missing = if is_lost { Status::CHUNKLOST } else { Status::CSNOTPRESENT };
        let record = self.records.get(&chunk).ok_or(missing)?;
        if record.operation != Operation::None {
            return Err(Status::CHUNKBUSY);
        }
        let census = record.census();
        if shared && !facts.is_settled() {
            return Err(Status::CHUNKBUSY); // the caller has it settled first: see `settle`
        }
        if changing && census.good() < usize::from(facts.goal) {
            return Err(Status::EAGAIN);
        }
        if census.usable() == 0 {
            return Err(missing);
        }
        // The last writer never said that it had ended: some of its packets may still be on their way.
        let is_abandoned = record.write_in_progress && !continues;
        let operation = shared || record.needs_version_increase || is_abandoned || !facts.is_settled();
        if self.take_full(chunk) {
            return Err(Status::NOSPACE);
        }
        Ok(if operation { WriteStep::Operation } else { WriteStep::Grant })
    }

    /// May this chunk be cut now? As `before_write`; always needs an operation. Spec 41, 4.4.
    pub fn before_truncate(&mut self, chunk: ChunkId, table: &impl Table, now: u32) -> Result<(), Status> {
        self.before_write(chunk, false, false, table, now).map(|_| ())
    }

    /// May this chunk be read now? Errors: NOCHUNK; LOCKED, CHUNKBUSY (park and try again).
    ///
    /// A running replication does not change the chunk, so readers go on meanwhile.
    pub fn before_read(&self, chunk: ChunkId, table: &impl Table, now: u32) -> Result<(), Status> {
        let facts = table.facts(chunk).ok_or(Status::NOCHUNK)?;
        if facts.locked_to >= now && facts.locked_to != 0 {
            return Err(Status::LOCKED);
        }
        match self.records.get(&chunk) {
            Some(record) if record.is_changing() => Err(Status::CHUNKBUSY),
            _ => Ok(()),
        }
    }

    /// Where a client finds the copies, and of which version they are: nearest first, equal ones in random order. While a
    /// change is in doubt, those of the highest version that is here. Spec 41, 10; docs/versions.md.
    ///
    /// Empty = none now, ask again later. Errors: NOCHUNK; CHUNKLOST if no server that could have it is missing.
    pub fn locations(
        &mut self,
        chunk: ChunkId,
        client: Ip4,
        table: &impl Table,
        now: u32,
    ) -> Result<(Version, Vec<Location>), Status> {
        let facts = table.facts(chunk).ok_or(Status::NOCHUNK)?;
        self.forget_departed(chunk);
        let readable = self.records.get(&chunk).and_then(|record| record.readable(facts.version));
        let (version, mut found) = readable.unwrap_or((facts.version, Vec::new()));
        if found.is_empty() && self.all_data_known(now) && !self.rescue_is_possible(chunk) {
            return Err(Status::CHUNKLOST);
        }
        self.random.shuffle(&mut found);
        let mut locations: Vec<Location> = found
            .into_iter()
            .filter_map(|id| self.servers.get(id))
            .map(|server| Location { ip: server.ip, port: server.port, version: server.version, labels: server.labels })
            .collect();
        locations.sort_by_key(|location| self.topology.distance(location.ip, client));
        locations.truncate(LOCATIONS_MAX);
        Ok((version, locations))
    }

    /// A writer got the chunk: its servers keep room for it. Spec 41, 1.4.
    pub fn write_granted(&mut self, chunk: ChunkId) {
        let Some(record) = self.records.get_mut(&chunk) else { return };
        if !std::mem::replace(&mut record.write_in_progress, true) {
            for server in record.usable_servers() {
                if let Some(server) = self.servers.get_mut(server) {
                    server.writes += 1;
                }
            }
        }
    }

    /// A write session failed: what it sent may reach a server late. The next writer gets another version, which a server
    /// that takes the order for it no longer lets such packets touch.
    pub fn write_failed(&mut self, chunk: ChunkId) {
        if let Some(record) = self.records.get_mut(&chunk) {
            record.needs_version_increase = true;
        }
    }

    /// The chunk was unlocked: the next in line may have it. Spec 41, 5.3.
    pub fn unlocked(&mut self, chunk: ChunkId, table: &impl Table, now: u32, effects: &mut Effects) {
        self.write_ended(chunk);
        effects.push(Effect::Wake { chunk });
        self.review(chunk, table, now);
    }

    /// The namespace changed something about this chunk: references, goal.
    pub fn touched(&mut self, chunk: ChunkId, table: &impl Table, now: u32, effects: &mut Effects) {
        self.review_or_remove(chunk, table, now, effects);
    }

    pub(super) fn write_ended(&mut self, chunk: ChunkId) {
        let Some(record) = self.records.get_mut(&chunk) else { return };
        if std::mem::take(&mut record.write_in_progress) {
            for server in record.usable_servers() {
                self.servers.lower(server, |server| &mut server.writes);
            }
        }
    }

    /// What is known of a chunk's copies, for CHECK: server and state, connected servers only. Spec 32, 32.3.
    pub fn copies(&self, chunk: ChunkId) -> impl Iterator<Item = (ServerId, super::CopyState)> + '_ {
        let copies = self.records.get(&chunk).map_or(&[][..], |record| &record.copies[..]);
        copies.iter().filter(|copy| self.servers.contains(copy.server)).map(|copy| (copy.server, copy.state))
    }

    /// The copies by state.
    pub fn census(&self, chunk: ChunkId) -> super::Census {
        self.records.get(&chunk).map(|record| record.census()).unwrap_or_default()
    }

    /// Memory of the records of chunks, by their number and that of their copies: room is taken for four of these at
    /// least. Spec 70, 4.10.
    pub fn memory(&self, copies: u64) -> Memory {
        const COPIES_MIN: u64 = 4;
        let (record, copy) = (size_of::<(ChunkId, Record)>() as u64, size_of::<Copy>() as u64);
        let records = self.records.len() as u64;
        Memory {
            allocated: records * record + copies.max(records * COPIES_MIN) * copy,
            used: records * record + copies * copy,
        }
    }

    /// For REPAIR: the highest version among copies of another version, if there is no usable copy. Spec 41, 12.
    pub fn best_wrong_version(&self, chunk: ChunkId) -> Option<Version> {
        let record = self.records.get(&chunk)?;
        let versions = record.copies.iter().filter_map(|copy| match copy.state.kind {
            CopyKind::WrongVersion(version) if self.servers.contains(copy.server) => Some(version),
            _ => None,
        });
        versions.max().filter(|_| record.census().usable() == 0)
    }

    /// The namespace took `version` as the chunk's: copies of it are good from now on.
    pub fn adopt_version(&mut self, chunk: ChunkId, version: Version) {
        let Some(record) = self.records.get_mut(&chunk) else { return };
        for copy in &mut record.copies {
            if copy.state.kind == CopyKind::WrongVersion(version) {
                copy.state = copy.state.with(CopyKind::Valid);
            }
        }
        record.needs_version_increase = true;
    }
}
